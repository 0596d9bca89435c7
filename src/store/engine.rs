//! The engine: from a data folder to running cores, and back.
//!
//! When [`Engine::start`] returns, the folder is ours, the segments were read and what counts is known, every core
//! runs its log and its service. When [`Engine::stop`] returns, the services have ended, what was appended is
//! durable, and the threads are gone.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pollster::block_on;

use rustix::io::Errno;

use super::assembly::{
    Assembly, Beginning, CatalogFiles, CatalogWork, CoreSettings, Orders, Place, assemble, open_catalog, work,
};
use super::catalog::Database;
use super::catalog::service::opener;
use super::folder::Folder;
use super::handle::Store;
use super::local::LocalStore;
use super::recover::{Recovered, recover};
use super::shared::Shared;
use crate::config::{Config, Durability};
use crate::error::{Error, Kind, Result};
use crate::log::{Space, SpaceSettings};
use crate::ring::{Arena, Ring, Uring};
use crate::runtime::{Core, Mailbox, allowed_processors};

/// How long a piece of the arena is, in bytes, where blocks are not longer.
const PIECE_LENGTH: usize = 1 << 20;

/// What runs on every core beside its store. It returns when its work is done after
/// [`LocalStore::stopping`] has returned.
pub type Service = Arc<dyn Fn(Rc<LocalStore>) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

/// Running cores over a data folder.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    catalog_threads: Vec<JoinHandle<()>>,
    notices: Vec<String>,
    _folder: Folder,
}

impl Engine {
    /// Opens the data folder of `config`, reads what is there, and starts the cores. What HTTP needs of `config`,
    /// such as addresses, is not looked at.
    ///
    /// # Errors
    /// [`Kind::DataFolder`], [`Kind::Locked`], [`Kind::NoSpace`]: the folder. [`Kind::NoRing`]: this host does not
    /// let us use io_uring. [`Kind::Startup`]: anything else.
    pub fn start(config: &Config) -> Result<Engine> {
        Engine::start_with(
            config,
            Arc::new(|local: Rc<LocalStore>| Box::pin(async move { local.stopping().await })),
        )
    }

    /// Removes the catalog of the data folder of `config`: the next start makes it anew from the segments, which reads
    /// all of them.
    ///
    /// # Errors
    /// [`Kind::DataFolder`], [`Kind::Locked`], [`Kind::NoSpace`]: the folder.
    pub fn forget_catalog(config: &Config) -> Result<()> {
        remove(&Folder::open(&config.data, config.segment_bytes)?.catalog)
    }

    /// As [`Engine::start`], with `service` running on every core.
    ///
    /// # Errors
    /// [`Kind::DataFolder`], [`Kind::Locked`], [`Kind::NoSpace`]: the folder. [`Kind::NoRing`]: this host does not
    /// let us use io_uring. [`Kind::Startup`]: anything else.
    pub fn start_with(config: &Config, service: Service) -> Result<Engine> {
        config.check()?;
        let mut notices = Vec::new();
        // The ring first: without it there is no need to make a folder.
        Uring::new().map_err(Error::no_ring)?;
        let folder = Folder::open(&config.data, config.segment_bytes)?;
        if !folder.direct {
            notices.push(format!(
                "the file system of {} has no O_DIRECT: blocks are written through the page cache, which costs \
                 more CPU and is as durable",
                config.data.display()
            ));
        }
        let (database, is_rebuilt) = open_catalog(&folder, &mut notices)?;
        let space = Space::new(SpaceSettings {
            folder: folder.segments.clone(),
            store: folder.store,
            segment_bytes: folder.segment_bytes,
            direct: folder.direct,
            spare_segments: config.spare_segments,
            reserve_bytes: folder.reserve_bytes,
        });
        let mailboxes: Vec<_> =
            (0..config.cores).map(|_| Mailbox::new()).collect::<std::result::Result<_, Errno>>().map_err(
                |errno| Error::new(Kind::Startup, format!("cannot make an event descriptor: {errno}")),
            )?;

        let (started_sender, started) = mpsc::channel();
        let (recovered_sender, recovered) = mpsc::channel();
        let mut database = Some(database);
        let mut threads = Vec::new();
        let mut orders_senders = Vec::new();
        let processors = allowed_processors();
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let (orders_sender, orders) = mpsc::channel::<Orders>();
            orders_senders.push(orders_sender);
            let core = CoreThread {
                index,
                processor: processors[index % processors.len()],
                config: config.clone(),
                space: space.clone(),
                mailbox,
                service: service.clone(),
                orders,
                started: Some(started_sender.clone()),
                has_begun: Arc::default(),
                recovery: database.take().map(|database| Recovery {
                    database,
                    is_rebuilt,
                    recovered: recovered_sender.clone(),
                }),
            };
            let thread =
                std::thread::Builder::new().name(format!("core-{index}")).spawn(move || core.run_to_end());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // The others may be reading the folder, which is ours until they have ended.
                    drop(orders_senders);
                    first_failure(threads);
                    return Err(Error::new(Kind::Startup, format!("cannot start a thread: {error}")));
                }
            }
        }
        drop((started_sender, recovered_sender));

        // Core 0 reads what is there; the others wait for what it finds.
        let Ok((database, found)) = recovered.recv() else {
            drop(orders_senders); // they wait for no orders any more
            return Err(first_failure(threads));
        };
        if is_rebuilt {
            folder.keep_made()?;
        }
        for damage in &found.damage {
            tracing::error!("{damage}");
            notices.push(damage.clone());
        }
        tracing::info!(
            records = found.records,
            scanned_bytes = found.scanned_bytes,
            seconds = found.elapsed.as_secs_f64(),
            "recovered"
        );
        let Assembly { shared, orders, catalog } = assemble(Beginning {
            cores: config.cores,
            database,
            reopen: opener(folder.catalog.clone(), folder.store),
            space,
            found,
            may_splice: folder.may_splice,
            started: Instant::now(),
        });
        let mut catalog_threads = start_catalog(catalog)?;
        for (sender, orders) in orders_senders.iter().zip(orders) {
            // A core that is gone shows below.
            let _ = sender.send(orders);
        }
        drop(orders_senders);
        for _ in 0..config.cores {
            match started.recv() {
                Ok(notice) => notices.extend(notice),
                Err(_) => {
                    shared.stop();
                    let failure = first_failure(threads);
                    let _ = shared.close_catalog(&mut catalog_threads);
                    return Err(failure);
                }
            }
        }
        notices.dedup();
        Ok(Engine { shared, threads, catalog_threads, notices, _folder: folder })
    }

    /// The store, for any thread and runtime.
    pub fn store(&self) -> Store {
        Store::new(self.shared.clone())
    }

    /// What this host does not allow, or what was found damaged: a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Tells the services to end, waits for them, makes durable what was appended, and ends the threads.
    ///
    /// # Errors
    /// The first failure of a core.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop();
        let mut outcome = Ok(());
        for thread in self.threads.drain(..) {
            let ended = thread.join().unwrap_or_else(|_| {
                Err(Error::new(Kind::Closed, "a core ended by a panic; its log is whole"))
            });
            outcome = outcome.and(ended);
        }
        outcome.and(self.shared.close_catalog(&mut self.catalog_threads))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the engine did not end well");
        }
    }
}

fn first_failure(threads: Vec<JoinHandle<Result<()>>>) -> Error {
    let mut failure = None;
    for thread in threads {
        if let Ok(Err(error)) = thread.join() {
            failure.get_or_insert(error);
        }
    }
    failure.unwrap_or_else(|| Error::new(Kind::Startup, "a core ended before it had started"))
}

/// The catalog's files in a data folder.
impl CatalogFiles for Folder {
    fn has_segments(&self) -> bool {
        std::fs::read_dir(&self.segments).is_ok_and(|mut segments| segments.next().is_some())
    }

    fn length(&self) -> Option<u64> {
        match std::fs::metadata(&self.catalog) {
            Ok(file) => Some(file.len()),
            // That it cannot be looked at will show when it is opened.
            Err(_) => self.catalog.exists().then_some(u64::MAX),
        }
    }

    fn open(&self, place: Place) -> Result<Database> {
        Database::open(&path_of(self, place), self.store)
    }

    fn remove(&self, place: Place) -> Result<()> {
        remove(&path_of(self, place))
    }

    fn keep_made(&self) -> Result<()> {
        std::fs::rename(path_of(self, Place::Beside), &self.catalog).map_err(|error| {
            Error::new(Kind::DataFolder, format!("cannot rename to {}: {error}", self.catalog.display()))
        })?;
        self.sync_names()
    }

    fn sync_names(&self) -> Result<()> {
        let parent = self.catalog.parent().unwrap_or(std::path::Path::new("."));
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| {
            Error::new(Kind::DataFolder, format!("cannot sync {}: {error}", parent.display()))
        })
    }
}

fn path_of(folder: &Folder, place: Place) -> PathBuf {
    match place {
        Place::Own => folder.catalog.clone(),
        Place::Beside => folder.catalog.with_extension("new"),
    }
}

fn remove(file: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(Kind::DataFolder, format!("cannot remove {}: {error}", file.display())))
        }
        _ => Ok(()),
    }
}

fn start_catalog(catalog: CatalogWork) -> Result<Vec<JoinHandle<()>>> {
    let CatalogWork { books, questions, news, last_drops, dead } = catalog;
    let answering = books.clone();
    let start = |name: &'static str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || or_abort(name, work))
            .map_err(|error| Error::new(Kind::Startup, format!("cannot start a thread: {error}")))
    };
    Ok(vec![
        start("catalog-read", Box::new(move || block_on(answering.answer(questions))))?,
        start(
            "catalog-write",
            Box::new(move || {
                let pause = async |duration: Duration| {
                    if !duration.is_zero() {
                        std::thread::sleep(duration);
                    }
                };
                block_on(books.write(news, last_drops, dead, pause));
            }),
        )?,
    ])
}

/// What core 0 does before anything else.
struct Recovery {
    database: Database,
    is_rebuilt: bool,
    recovered: mpsc::Sender<(Database, Recovered)>,
}

/// Runs a thread without which requests would hang and others would fill its queues: a panic takes the process with it.
/// Everything acknowledged is durable, so a start is the right answer.
fn or_abort<T>(thread: &str, work: impl FnOnce() -> T) -> T {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!(thread, "a thread has panicked; the process ends, nothing acknowledged is lost");
        std::process::abort()
    })
}

struct CoreThread {
    index: usize,
    processor: usize,
    config: Config,
    space: Arc<Space>,
    mailbox: Arc<Mailbox>,
    service: Service,
    orders: mpsc::Receiver<Orders>,
    /// Taken when the core has started; dropped unused where it fails.
    started: Option<mpsc::Sender<Option<String>>>,
    /// The core has started and was not told to end.
    has_begun: Arc<AtomicBool>,
    recovery: Option<Recovery>,
}

impl CoreThread {
    /// A core that ends before it was told to takes the process with it.
    fn run_to_end(self) -> Result<()> {
        let (index, has_begun) = (self.index, self.has_begun.clone());
        let outcome = or_abort(&format!("core-{index}"), || self.run());
        if let Err(error) = &outcome
            && has_begun.load(Ordering::SeqCst)
        {
            tracing::error!(core = index, %error, "a core has failed");
            std::process::abort();
        }
        outcome
    }

    fn run(mut self) -> Result<()> {
        let mut set = rustix::thread::CpuSet::new();
        set.set(self.processor);
        if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
            tracing::warn!(core = self.index, %errno, "a core could not be pinned to its processor");
        }
        let ring = Ring::new(Box::new(Uring::new().map_err(Error::no_ring)?));
        let core = Core::new(self.index, ring, self.mailbox.clone());
        let index = self.index;
        let inner = core.clone();
        let outcome = core.run(async move { self.live(&inner).await });
        outcome
            .map_err(|errno| Error::new(Kind::Closed, format!("the ring of core {index} failed: {errno}")))?
    }

    async fn live(&mut self, core: &Rc<Core>) -> Result<()> {
        if let Some(Recovery { database, is_rebuilt, recovered }) = self.recovery.take() {
            let found = recover(core, &self.space, &database, is_rebuilt).await?;
            let _ = recovered.send((database, found));
        }
        // Nothing else is to be done before the orders come.
        let Ok(orders) = self.orders.recv() else { return Ok(()) };

        let (arena, notice) = self.arena(core)?;
        let settings = CoreSettings {
            block_bytes: self.config.block_bytes,
            durable: self.config.durability == Durability::Stable,
            retention: self.config.retention.clone(),
            tus_expiry: Duration::from_secs(self.config.tus_expiry_seconds),
        };
        let started = self.started.take();
        let begun = || {
            if let Some(started) = started {
                let _ = started.send(notice);
            }
        };
        let service = self.service.clone();
        work(core, &self.space, arena, settings, orders, |local| service(local), begun, &self.has_begun).await
    }

    fn arena(&self, core: &Core) -> Result<(Arena, Option<String>)> {
        let piece_length = PIECE_LENGTH.max(self.config.block_bytes).next_multiple_of(4096);
        let pieces = (self.config.arena_bytes / piece_length).max(4);
        let arena = Arena::new(pieces, piece_length).map_err(|errno| {
            Error::new(
                Kind::Startup,
                format!("no memory for an arena of {} bytes: {errno}", self.config.arena_bytes),
            )
        })?;
        let notice = core.ring().register_arena(&arena).err().map(|errno| {
            let cause = match errno {
                Errno::NOMEM => {
                    "the memlock limit is too small: raise it (ulimit -l, LimitMEMLOCK=)".to_owned()
                }
                errno => errno.to_string(),
            };
            format!("blocks are written from plain memory, which costs some CPU: {cause}")
        });
        Ok((arena, notice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(folder: &Folder) -> Result<bool> {
        open_catalog(folder, &mut Vec::new()).map(|(_, is_rebuilt)| is_rebuilt)
    }

    #[test]
    fn a_catalog_whose_making_was_cut_off_is_made_again_and_one_that_was_whole_is_named() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::open(data.path(), None).unwrap();
        let beside = path_of(&folder, Place::Beside);
        std::fs::write(&beside, vec![0; 10_000]).unwrap();
        assert!(!opened(&folder).unwrap());
        assert!(folder.catalog.exists() && !beside.exists());
        assert!(!opened(&folder).unwrap(), "it is found again");
        for text in ["", "something else"] {
            std::fs::write(&folder.catalog, text).unwrap();
            assert_eq!(opened(&folder).unwrap_err().kind(), Kind::Damaged);
        }
        std::fs::remove_file(&folder.catalog).unwrap();
        std::fs::write(Space::path(&folder.segments, 1), "").unwrap();
        std::fs::write(&beside, "cut off").unwrap();
        assert!(opened(&folder).unwrap(), "there are segments to make it anew from");
        assert!(!folder.catalog.exists(), "they were not read yet");
    }
}
