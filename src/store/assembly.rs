//! What a running store is put together from, whatever turns it: the threads of an engine, or a simulated world.
//!
//! In this order: [`open_catalog`], [`recover`](super::recover::recover) on one core, [`CatalogFiles::keep_rebuilt`]
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
    /// Where it is while it is being made anew: an attempt that is cut off is begun anew.
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

    /// Gives the catalog that was made anew its own place, durably.
    fn keep_rebuilt(&self) -> Result<()>;
}

/// Opens the catalog, and says whether it is to be made anew from the segments. Until that is done it lies beside its
/// own place.
///
/// # Errors
/// What the disk says; [`Kind::Damaged`].
pub(crate) fn open_catalog(files: &dyn CatalogFiles, notices: &mut Vec<String>) -> Result<(Database, bool)> {
    let (has_segments, length) = (files.has_segments(), files.length());
    let is_rebuilt = has_segments && length.is_none();
    if !is_rebuilt {
        // The database would take an empty file for a new one.
        if has_segments && length == Some(0) {
            return Err(Error::new(
                Kind::Damaged,
                format!("the catalog is damaged (its file is empty): {CURE}"),
            ));
        }
        return match files.open(Place::Own) {
            // The first start was cut off while it made the catalog.
            Err(error) if error.kind() == Kind::Damaged && !has_segments => {
                files.remove(Place::Own)?;
                Ok((files.open(Place::Own)?, false))
            }
            opened => Ok((opened?, false)),
        };
    }
    let notice = "there is no catalog: it is made anew from the segments, which reads all of them";
    tracing::warn!("{notice}");
    notices.push(notice.to_owned());
    files.remove(Place::Beside)?;
    Ok((files.open(Place::Beside)?, true))
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
