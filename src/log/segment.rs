//! Segments: the files that blocks lie in, how they are prepared ahead of need, and how they are used again.
//!
//! A [`Keeper`] (one per core) keeps a few segments prepared, so that a log never waits for one: each is there in
//! full length, its blocks are initialised (so that writing them changes no metadata), and its header with a new
//! epoch is on stable storage. A [`Segment`] that nobody refers to any more, neither an object nor a reader,
//! goes back to the [`Space`] that all keepers draw from before they make a new file.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::format::{ALIGNMENT, SEGMENT_HEADER_LENGTH, SegmentHeader};
use crate::error::{Error, Kind, Result};
use crate::ring::{Allocation, Arena, Descriptor, OpenMode, Region};
use crate::runtime::{Core, Sender, channel};

/// How long initialising pauses after each write while blocks are being written.
const PAUSE_WHEN_BUSY: Duration = Duration::from_millis(5);

/// A segment in use: active or filled. Shared by all who refer to bytes in it.
pub struct Segment {
    number: u64,
    epoch: u64,
    file: Arc<Descriptor>,
    /// A failed segment is kept as it is: it is never used again.
    retired: AtomicBool,
    /// Segments with what says that records in this one are deleted: not used again before this one is.
    keeps: Mutex<Vec<Arc<Segment>>>,
    space: Arc<Space>,
}

impl Segment {
    pub(super) fn new(number: u64, epoch: u64, file: Arc<Descriptor>, space: Arc<Space>) -> Arc<Segment> {
        Arc::new(Segment {
            number,
            epoch,
            file,
            retired: AtomicBool::new(false),
            keeps: Mutex::default(),
            space,
        })
    }

    /// The segment's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Which use of the file this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The file, for reading through the page cache.
    pub fn file(&self) -> &Arc<Descriptor> {
        &self.file
    }

    /// Says that `later` holds the deletion of records in this segment, so that it must stay as long as they could
    /// be found here.
    ///
    /// The deletion is logged by the core that wrote the records, so `later` is never an earlier segment of that
    /// log, and no circle of segments that keep each other comes about.
    pub fn keep(&self, later: &Arc<Segment>) {
        if later.epoch != self.epoch {
            let mut keeps = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
            if !keeps.iter().any(|kept| kept.epoch == later.epoch) {
                keeps.push(later.clone());
            }
        }
    }

    /// Keeps the segment from ever being used again.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let keeps = std::mem::take(self.keeps.get_mut().unwrap_or_else(PoisonError::into_inner));
        let empty = Empty { number: self.number, file: Some(self.file.clone()), durable: true, keeps };
        if self.retired.load(Ordering::Relaxed) {
            // The file stays as it is, so what says that its records are deleted must stay too.
            self.space.set_aside.lock().unwrap_or_else(PoisonError::into_inner).push(empty);
        } else {
            self.space.give_back(empty);
        }
    }
}

/// What a store knows about the room for its segments.
#[derive(Clone, Debug)]
pub struct SpaceSettings {
    /// The folder of the segments.
    pub folder: PathBuf,
    /// The store's number.
    pub store: u64,
    /// The length of a segment in bytes.
    pub segment_bytes: u64,
    /// Whether the file system takes `O_DIRECT`.
    pub direct: bool,
    /// How many segments each keeper keeps prepared.
    pub spare_segments: usize,
}

/// A segment in which nothing is alive.
#[derive(Default)]
pub struct Empty {
    /// Its number.
    pub number: u64,
    /// The file, if it is open for reading.
    pub file: Option<Arc<Descriptor>>,
    /// The file's name is on stable storage, and so is its length, if it is whole.
    pub durable: bool,
    /// What must stay until its header is written anew.
    pub keeps: Vec<Arc<Segment>>,
}

/// The segments of a store that hold nothing, and the numbers for new ones. Shared by all cores; touched when a
/// segment changes hands, never on the data path.
pub struct Space {
    settings: SpaceSettings,
    next_number: AtomicU64,
    next_epoch: AtomicU64,
    free: Mutex<Vec<Empty>>,
    /// Files that failed: never used again, and neither is what must stay as long as they do.
    set_aside: Mutex<Vec<Empty>>,
    /// Segments that were begun after a failure: their term voids what the failed one may still hold.
    pinned: Mutex<Vec<Arc<Segment>>>,
    keepers: Mutex<Vec<Sender<()>>>,
}

impl Space {
    /// The room of a store that has no segments yet.
    pub fn new(settings: SpaceSettings) -> Arc<Space> {
        Arc::new(Space {
            settings,
            next_number: AtomicU64::new(1),
            next_epoch: AtomicU64::new(1),
            free: Mutex::default(),
            set_aside: Mutex::default(),
            pinned: Mutex::default(),
            keepers: Mutex::default(),
        })
    }

    /// The settings.
    pub fn settings(&self) -> &SpaceSettings {
        &self.settings
    }

    /// Where the segment with this number is.
    pub fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("{number:012}.segment"))
    }

    /// Goes on behind these numbers and epochs, which were found in use.
    pub(super) fn resume_after(&self, number: u64, epoch: u64) {
        self.next_number.fetch_max(number + 1, Ordering::Relaxed);
        self.next_epoch.fetch_max(epoch + 1, Ordering::Relaxed);
    }

    /// The next epoch; whoever takes it makes a segment durable with it.
    pub(super) fn take_epoch(&self) -> u64 {
        self.next_epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// An epoch that no segment has had.
    pub fn next_epoch(&self) -> u64 {
        self.next_epoch.load(Ordering::Relaxed)
    }

    /// Takes a file in which nothing is alive any more.
    pub fn give_back(&self, empty: Empty) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(empty);
        for keeper in self.keepers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            keeper.send(());
        }
    }

    /// How many segments hold nothing and are not prepared.
    pub fn free_segments(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many numbers were given: the segments that exist.
    pub fn segments(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Lets go of all files, when nobody uses the store any more.
    pub fn close(&self) {
        loop {
            // What is dropped here may give further segments back.
            let mut all = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
            all.append(&mut self.set_aside.lock().unwrap_or_else(PoisonError::into_inner));
            let pinned = std::mem::take(&mut *self.pinned.lock().unwrap_or_else(PoisonError::into_inner));
            if all.is_empty() && pinned.is_empty() {
                return;
            }
        }
    }

    fn take_free(&self) -> Option<Empty> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A segment with its header on disk, ready to be written.
pub(super) struct Prepared {
    pub segment: Arc<Segment>,
    pub writing: Arc<Descriptor>,
}

/// The log that a keeper works for.
pub(super) trait KeeperClient {
    /// A segment has been prepared, or could not be.
    fn prepared(&self);

    /// Whether blocks are being written.
    fn is_busy(&self) -> bool;
}

/// Keeps segments prepared for one core's log.
pub struct Keeper {
    core: Rc<Core>,
    space: Arc<Space>,
    prepared: RefCell<VecDeque<Prepared>>,
    /// Why the last attempt to prepare a segment failed, until one succeeds.
    trouble: RefCell<Option<Error>>,
    /// The log has asked for a segment when there was none.
    starving: Cell<bool>,
    attempts: Cell<u64>,
    preparing: Cell<bool>,
    work: Sender<()>,
    client: RefCell<Option<Rc<dyn KeeperClient>>>,
    zeroes: RefCell<Option<Region>>,
}

impl Keeper {
    /// A keeper that works on `core` until the returned task is dropped.
    pub fn start(core: &Rc<Core>, space: &Arc<Space>) -> (Rc<Keeper>, crate::runtime::Task<()>) {
        let (work, mut orders) = channel();
        space.keepers.lock().unwrap_or_else(PoisonError::into_inner).push(work.clone());
        let keeper = Rc::new(Keeper {
            core: core.clone(),
            space: space.clone(),
            prepared: RefCell::default(),
            trouble: RefCell::default(),
            starving: Cell::new(false),
            attempts: Cell::new(0),
            preparing: Cell::new(false),
            work,
            client: RefCell::default(),
            zeroes: RefCell::default(),
        });
        keeper.work.send(());
        let working = keeper.clone();
        let task = core.spawn(async move {
            while orders.receive().await.is_some() {
                while orders.try_receive().is_some() {}
                working.fill_up().await;
            }
        });
        (keeper, task)
    }

    /// How many segments are prepared.
    pub fn prepared(&self) -> usize {
        self.prepared.borrow().len()
    }

    /// Whether a segment is being prepared.
    pub fn is_preparing(&self) -> bool {
        self.preparing.get()
    }

    /// How many segments of the whole store are empty and not prepared, and how many are anything else.
    pub fn space_counts(&self) -> (i64, i64) {
        let free = self.space.free_segments() as i64;
        (free, self.space.segments() as i64 - free)
    }

    /// The length of a segment in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.space.settings.segment_bytes
    }

    /// The store's number.
    pub fn store(&self) -> u64 {
        self.space.settings.store
    }

    /// Why no segment can be prepared, if so.
    pub fn trouble(&self) -> Option<Error> {
        self.trouble.borrow().clone()
    }

    /// How many attempts to prepare a segment have come to an end.
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.get()
    }

    /// Takes a prepared segment and orders the next one.
    pub(super) fn take(&self) -> Option<Prepared> {
        let prepared = self.prepared.borrow_mut().pop_front();
        self.starving.set(prepared.is_none());
        // Where the last attempt has failed another one follows when there is reason to hope: see `try_again`.
        if self.trouble.borrow().is_none() {
            self.work.send(());
        }
        prepared
    }

    /// Says that the log waits for a segment.
    pub(super) fn hurry(&self) {
        self.starving.set(true);
    }

    /// Keeps a segment from being used again as long as the store runs.
    pub(super) fn pin(&self, segment: &Arc<Segment>) {
        self.space.pinned.lock().unwrap_or_else(PoisonError::into_inner).push(segment.clone());
    }

    /// Asks for another attempt where the last one failed. A segment that is given back asks for one by itself.
    pub(super) fn try_again(&self) {
        self.work.send(());
    }

    /// Sets the log that this keeper works for.
    pub(super) fn set_client(&self, client: Rc<dyn KeeperClient>) {
        *self.client.borrow_mut() = Some(client);
    }

    async fn fill_up(&self) {
        let wanted = self.space.settings.spare_segments.max(1);
        while self.prepared() < wanted {
            self.preparing.set(true);
            let outcome = self.prepare().await;
            self.preparing.set(false);
            self.attempts.set(self.attempts.get() + 1);
            let failed = outcome.is_err();
            match outcome {
                Ok(prepared) => {
                    self.prepared.borrow_mut().push_back(prepared);
                    *self.trouble.borrow_mut() = None;
                }
                Err(error) => {
                    if self.trouble.borrow().is_none() {
                        tracing::warn!(%error, "no further segment can be prepared");
                    }
                    *self.trouble.borrow_mut() = Some(error);
                }
            }
            let client = self.client.borrow().clone();
            if let Some(client) = client {
                client.prepared();
            }
            if failed {
                return;
            }
        }
    }

    async fn prepare(&self) -> Result<Prepared> {
        let settings = &self.space.settings;
        let mut empty = self.space.take_free().unwrap_or_else(|| {
            let number = self.space.next_number.fetch_add(1, Ordering::Relaxed);
            Empty { number, ..Empty::default() }
        });
        match self.prepare_file(&mut empty).await {
            // From here on `empty.keeps` may go: the records that it speaks of are gone.
            Ok(prepared) => Ok(prepared),
            Err((what, errno)) => {
                let path = Space::path(&settings.folder, empty.number);
                let is_for_now = matches!(
                    errno,
                    Errno::NOSPC
                        | Errno::DQUOT
                        | Errno::MFILE
                        | Errno::NFILE
                        | Errno::NOMEM
                        | Errno::WOULDBLOCK
                );
                // What exists of it can be used when there is room again. A file that fails otherwise is left as it
                // is, and the next attempt takes another.
                let list = if is_for_now { &self.space.free } else { &self.space.set_aside };
                list.lock().unwrap_or_else(PoisonError::into_inner).push(empty);
                Err(Error::device(format!("{what} segment {}", path.display()), errno))
            }
        }
    }

    async fn prepare_file(&self, empty: &mut Empty) -> std::result::Result<Prepared, (&'static str, Errno)> {
        let settings = &self.space.settings;
        let number = empty.number;
        let path = Space::path(&settings.folder, number);
        let mode = if settings.direct { OpenMode::WriteDirect } else { OpenMode::WriteBuffered };
        let writing = self.core.open(&path, mode).await.map_err(|errno| ("cannot open", errno))?;
        // Held until the last write of this process is done, even if the process is killed: the next one waits.
        lock(&self.core, &writing).await.map_err(|errno| ("cannot lock", errno))?;
        // A file that a failed attempt left may be too short, or have its full length and be lost with the power.
        let is_whole = self.core.length(&writing) == Ok(settings.segment_bytes);
        if !empty.durable || !is_whole {
            empty.durable = false;
            self.initialise(&writing).await.map_err(|errno| ("cannot make room for", errno))?;
            let folder = self
                .core
                .open(&settings.folder, OpenMode::Read)
                .await
                .map_err(|errno| ("cannot open", errno))?;
            self.core.sync(&folder).await.map_err(|errno| ("cannot sync the folder of", errno))?;
            empty.durable = true;
        }
        let reading = match &empty.file {
            Some(reading) => reading.clone(),
            None => open_for_reading(&self.core, &path).await.map_err(|errno| ("cannot open", errno))?,
        };
        let epoch = self.space.take_epoch();
        let header = SegmentHeader { store: settings.store, number, epoch, length: settings.segment_bytes };
        let region = header_region(&header).map_err(|errno| ("no memory for the header of", errno))?;
        let written = self.core.write(&writing, None, 0, region, true).await;
        written.map_err(|errno| ("cannot write the header of", errno))?;
        let segment = Segment::new(number, epoch, reading, self.space.clone());
        Ok(Prepared { segment, writing })
    }

    /// Gives a new file its full length and, where nobody waits for it, initialised blocks.
    ///
    /// Writing to blocks that are not initialised changes metadata too, and is slower by a quarter or so; but it is
    /// much faster than writing everything twice. So a log that waits for a segment gets it as it is, and
    /// initialising makes way for blocks that are being written.
    async fn initialise(&self, file: &Arc<Descriptor>) -> std::result::Result<(), Errno> {
        let length = self.space.settings.segment_bytes;
        let nobody_waits = || !self.starving.get();
        if nobody_waits() && self.core.allocate(file, length, Allocation::WriteZeroes).await.is_ok() {
            return self.core.sync(file).await;
        }
        match self.core.allocate(file, length, Allocation::Reserve).await {
            Ok(()) => {}
            // The file system cannot reserve: that there is room shows when blocks are written.
            Err(Errno::OPNOTSUPP) => self.core.set_length(file, length)?,
            Err(errno) => return Err(errno),
        }
        let zeroes = self.zeroes()?;
        let mut position = 0;
        while position < length && nobody_waits() {
            let count = (length - position).min(zeroes.len() as u64) as usize;
            self.core.write(file, None, position, zeroes.slice(0..count), false).await?;
            position += count as u64;
            let is_busy = self.client.borrow().as_ref().is_some_and(|client| client.is_busy());
            if is_busy {
                self.core.sleep(PAUSE_WHEN_BUSY).await;
            }
        }
        self.core.sync(file).await
    }

    fn zeroes(&self) -> std::result::Result<Region, Errno> {
        if let Some(zeroes) = &*self.zeroes.borrow() {
            return Ok(zeroes.clone());
        }
        let zeroes = zeroed_region(1 << 20)?;
        *self.zeroes.borrow_mut() = Some(zeroes.clone());
        Ok(zeroes)
    }
}

/// Opens a segment for reading: no readahead, which could reach what is not written yet.
pub(super) async fn open_for_reading(
    core: &Core,
    path: &Path,
) -> std::result::Result<Arc<Descriptor>, Errno> {
    let file = core.open(path, OpenMode::Read).await?;
    core.read_nothing_ahead(&file)?;
    Ok(file)
}

/// Takes the lock of a segment, waiting a moment for an earlier process to be gone: the kernel holds the file, and
/// with it the lock, until the last write of a killed process is done.
pub(super) async fn lock(core: &Rc<Core>, file: &Descriptor) -> std::result::Result<(), Errno> {
    for _ in 0..100 {
        match core.lock(file) {
            Err(Errno::WOULDBLOCK) => core.sleep(Duration::from_millis(10)).await,
            other => return other,
        }
    }
    Err(Errno::WOULDBLOCK)
}

pub(super) fn zeroed_region(length: usize) -> std::result::Result<Region, Errno> {
    let arena = Arena::new(1, length)?;
    let mut fill = arena.take().ok_or(Errno::NOMEM)?;
    Ok(fill.commit(length))
}

pub(super) fn header_region(header: &SegmentHeader) -> std::result::Result<Region, Errno> {
    let arena = Arena::new(1, SEGMENT_HEADER_LENGTH.next_multiple_of(ALIGNMENT))?;
    let mut fill = arena.take().ok_or(Errno::NOMEM)?;
    header.encode(fill.space());
    Ok(fill.commit(SEGMENT_HEADER_LENGTH))
}

/// How long segments are on a disk of this size: a small part of it, so that the defaults work on any.
pub fn segment_bytes_for(disk_bytes: u64) -> u64 {
    const SMALLEST: u64 = 4 << 20;
    const LARGEST: u64 = 256 << 20;
    let share = (disk_bytes / 256).clamp(SMALLEST, LARGEST);
    1 << share.ilog2()
}

/// Refuses a segment length that the format cannot have.
///
/// # Errors
/// [`Kind::InvalidArgument`].
pub fn check_segment_bytes(segment_bytes: u64) -> Result<()> {
    if segment_bytes < 2 << 20 || !segment_bytes.is_multiple_of(ALIGNMENT as u64) || segment_bytes > 1 << 30 {
        return Err(Error::new(
            Kind::InvalidArgument,
            "a segment is between 2 MiB and 1 GiB long, and a multiple of 4096 bytes",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_suit_their_disk() {
        assert_eq!(segment_bytes_for(128 << 20), 4 << 20);
        assert_eq!(segment_bytes_for(10 << 30), 32 << 20);
        assert_eq!(segment_bytes_for(100 << 40), 256 << 20);
        assert_eq!(segment_bytes_for(0), 4 << 20);
    }
}
