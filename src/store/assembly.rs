//! What a running store is put together from, whatever turns it: the threads of an engine, or a simulated world.
//!
//! In this order: [`open_catalog`], [`recover`](super::recover::recover) on one core, [`CatalogFiles::keep_made`]
//! where the catalog was made anew, [`assemble`]; then the two loops of [`CatalogWork`] and, on each core, [`work`].

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::catalog::{Books, CURE, Database, Dead, Read, SegmentUse, Write};
use super::expiry::expire_uploads;
use super::local::LocalStore;
use super::namespace::Namespace;
use super::reclaim::{give_back, look_after};
use super::recover::Recovered;
use super::shared::{Message, Parts, Shared};
use crate::config::Retention;
use crate::error::{Error, Kind, Result};
use crate::log::{Continuation, Keeper, Log, LogSettings, Space};
use crate::metrics::CoreMetrics;
use crate::ring::Arena;
use crate::runtime::{Core, Receiver, Sender, channel};

/// How many generations an epoch has room for: more objects than fit into a segment. Numbers stay below 2^53, which
/// every reader of JSON can represent, for 2^29 uses of a segment.
const GENERATIONS_PER_EPOCH_BITS: u32 = 24;

/// Where a catalog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the next start looks for it.
    Own,
    /// Where it is while it is being made, first or anew: an attempt that is cut off is begun anew.
    Beside,
}

/// The files of a store's catalog.
pub(crate) trait CatalogFiles {
    /// Whether there is anything that the catalog could be made anew from.
    fn has_segments(&self) -> bool;

    /// How long the catalog's own file is, in bytes. None: there is none.
    fn length(&self) -> Option<u64>;

    /// Opens a catalog, or makes it.
    fn open(&self, place: Place) -> Result<Database>;

    /// Removes a catalog, if there is one.
    fn remove(&self, place: Place) -> Result<()>;

    /// Gives the catalog that was made its own place, durably. It is open meanwhile.
    fn keep_made(&self) -> Result<()>;

    /// Makes durable that the catalog has its own place.
    fn sync_names(&self) -> Result<()>;
}

/// Opens the catalog, and says whether it is to be made anew from the segments: then it lies beside its own place until
/// that is done. One that is made for the first time lies there until it is whole. So what is in its own place was whole
/// once, whenever a start was cut off; what is no catalog there is damaged.
///
/// # Errors
/// What the disk says; [`Kind::Damaged`].
pub(crate) fn open_catalog(files: &dyn CatalogFiles, notices: &mut Vec<String>) -> Result<(Database, bool)> {
    match files.length() {
        // The database would take it for a new one.
        Some(0) => {
            let message = format!("the catalog is damaged (its file is empty): {CURE}");
            return Err(Error::new(Kind::Damaged, message));
        }
        Some(_) => {
            let database = files.open(Place::Own)?;
            // A start that was killed may have got no further than to give it its place.
            files.sync_names()?;
            return Ok((database, false));
        }
        None => {}
    }
    let is_rebuilt = files.has_segments();
    if is_rebuilt {
        let notice = "there is no catalog: it is made anew from the segments, which reads all of them";
        tracing::warn!("{notice}");
        notices.push(notice.to_owned());
    }
    files.remove(Place::Beside)?;
    let database = files.open(Place::Beside)?;
    if !is_rebuilt {
        files.keep_made()?;
    }
    Ok((database, is_rebuilt))
}

/// What a store begins with.
pub(crate) struct Beginning {
    pub cores: usize,
    pub database: Database,
    /// Opens the database once more, after a failure.
    pub reopen: Box<dyn Fn() -> Result<Database> + Send + Sync>,
    pub space: Arc<Space>,
    pub found: Recovered,
    pub may_splice: bool,
    /// The time, by the cores' clock.
    pub started: Instant,
}

/// A store, put together.
pub(crate) struct Assembly {
    pub shared: Arc<Shared>,
    /// For each core.
    pub orders: Vec<Orders>,
    pub catalog: CatalogWork,
}

/// What a core needs to begin.
pub(crate) struct Orders {
    index: usize,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    continuation: Continuation,
    /// One core gives dead parts of segments back to the file system.
    dead: Option<Receiver<Vec<Dead>>>,
}

/// What the two loops of the catalog need: [`Books::answer`] and [`Books::write`].
pub(crate) struct CatalogWork {
    pub books: Arc<Books>,
    pub questions: Receiver<Read>,
    pub news: Receiver<Write>,
    pub last_drops: Sender<Write>,
    pub dead: Sender<Vec<Dead>>,
}

/// Puts a store together, after what is there was read.
pub(crate) fn assemble(beginning: Beginning) -> Assembly {
    let Beginning { cores, database, reopen, space, found, may_splice, started } = beginning;
    // A generation never comes twice, also when everything that had it was deleted: each run takes its own from
    // behind an epoch that it makes durable before its first block.
    let next_generation = (found.generation_max + 1).max(space.next_epoch() << GENERATIONS_PER_EPOCH_BITS);
    let namespace = Arc::new(Namespace::default());
    let books = Books::new(database, reopen, space.clone(), namespace.clone());
    let (question_sender, questions) = channel();
    let (news_sender, news) = channel();
    let (dead_sender, dead) = channel();
    let clearing = news_sender.clone();
    space.set_cleared(Box::new(move |number, epoch| {
        clearing.send(Write::Cleared(SegmentUse { number, epoch }));
    }));
    let last_drops = news_sender.clone();
    let (shared, receivers) = Shared::new(Parts {
        cores,
        namespace,
        books: books.clone(),
        questions: question_sender,
        news: news_sender,
        next_generation,
        may_splice,
        started,
    });
    let mut dead = Some(dead);
    let orders = receivers.into_iter().enumerate().map(|(index, messages)| Orders {
        index,
        shared: shared.clone(),
        messages,
        continuation: found.logs.get(&(index as u16)).copied().unwrap_or_default(),
        dead: dead.take(),
    });
    let orders = orders.collect();
    // What a crash has left superseded is deleted now.
    for name in found.names {
        shared.call(0, move |local| local.settle_later(name));
    }
    Assembly {
        shared,
        orders,
        catalog: CatalogWork { books, questions, news, last_drops, dead: dead_sender },
    }
}

/// How a core works.
pub(crate) struct CoreSettings {
    /// The longest block in bytes.
    pub block_bytes: usize,
    /// Whether blocks are written through to stable storage.
    pub durable: bool,
    pub retention: Retention,
    /// How long unfinished tus uploads are kept.
    pub tus_expiry: Duration,
}

/// What a core does: it runs its log and its store with `service` beside them, until the store is told to stop and the
/// service has ended. `begun` is called when it is at work; `at_work` says whether it is, and was not told to end.
///
/// # Errors
/// The failure of its log, when all has ended.
#[expect(clippy::too_many_arguments, reason = "each is another matter, and it is called twice")]
pub(crate) async fn work<S: Future<Output = ()> + 'static>(
    core: &Rc<Core>,
    space: &Arc<Space>,
    arena: Arena,
    settings: CoreSettings,
    orders: Orders,
    service: impl FnOnce(Rc<LocalStore>) -> S,
    begun: impl FnOnce(),
    at_work: &AtomicBool,
) -> Result<()> {
    let metrics = Rc::new(CoreMetrics::new());
    let (keeper, keeping) = Keeper::start(core, space);
    let log_settings = LogSettings {
        log: orders.index as u16,
        block_bytes: settings.block_bytes,
        durable: settings.durable,
        next_sequence: orders.continuation.next_sequence,
        term: orders.continuation.term,
    };
    let (log, flushing) = Log::start(core, log_settings, arena, keeper.clone(), metrics.clone());
    let local = LocalStore::new(core, orders.shared, log, keeper, metrics);
    let listening = core.spawn(local.clone().listen(orders.messages));
    if let Some(dead) = orders.dead {
        local.spawn(give_back(local.clone(), dead));
        local.spawn(look_after(local.clone(), settings.retention));
        local.spawn(expire_uploads(local.clone(), settings.tus_expiry));
    }
    let service = core.spawn(service(local.clone()));
    at_work.store(true, Ordering::SeqCst);
    begun();

    local.stopping().await;
    service.await;
    // What was asked for is done and answered; then nothing more is asked for.
    let flushed = local.flush().await;
    at_work.store(false, Ordering::SeqCst);
    listening.cancel().await;
    let outcome = flushed.and(local.close().await);
    flushing.cancel().await;
    keeping.cancel().await;
    outcome
}
