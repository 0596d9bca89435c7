//! Segments: the files that blocks lie in, how they are prepared ahead of need, and how they are used again.
//!
//! A [`Keeper`] (one per core) keeps a few segments prepared, so that a log never waits for one: each is there in
//! full length, its blocks are initialised (so that writing them changes no metadata), and its header with a new
//! epoch is on stable storage. A [`Segment`] in which nothing is needed, and that no reader holds, goes back to the
//! [`Space`] that all keepers draw from before they make a new file.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;

use super::format::{ALIGNMENT, SEGMENT_HEADER_LENGTH, SegmentHeader};
use crate::errno::policy;
use crate::error::{Error, Kind, Result};
use crate::ring::{Allocation, Arena, Descriptor, OpenMode, Region};
use crate::runtime::{Core, Sender, channel};

/// How long initialising pauses after each write while blocks are being written.
const PAUSE_WHEN_BUSY: Duration = Duration::from_millis(5);

/// How many segments in a row may fail to be prepared before no further one is tried: each leaves a file behind, and
/// they must not fill a disk that fails.
const FAILURES_MAX: u32 = 3;

/// A segment in use: active or filled. Shared by all who refer to bytes in it.
pub struct Segment {
    number: u64,
    epoch: u64,
    /// Nothing in it is needed any more: whoever lets go of it last gives its file back.
    is_empty: AtomicBool,
    /// Not used again while the store runs: it failed, or it holds what makes clear that parts of a failed one are void.
    /// The next start makes those unreadable.
    is_pinned: AtomicBool,
    has_failed: AtomicBool,
    space: Arc<Space>,
}

impl Segment {
    /// The segment's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Which use of the file this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it is not to be used again while the store runs.
    pub fn is_pinned(&self) -> bool {
        self.is_pinned.load(Ordering::Relaxed)
    }

    /// Says that nothing in it is needed any more, except by those who hold it.
    pub fn set_empty(&self) {
        self.is_empty.store(true, Ordering::Relaxed);
    }

    /// Keeps the segment from being used again while the store runs.
    pub(super) fn pin(&self) {
        self.is_pinned.store(true, Ordering::Relaxed);
    }

    /// Keeps the segment from being used again while the store runs, because it has failed. False: it had failed already.
    pub(super) fn retire(&self) -> bool {
        self.pin();
        !self.has_failed.swap(true, Ordering::Relaxed)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let is_to_be_used = *self.is_empty.get_mut() && !*self.is_pinned.get_mut();
        self.space.let_go(self.number, is_to_be_used);
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
    /// How much of the file system no segment is made in, in bytes: the books of the store can always be written, so
    /// that a full disk can be emptied.
    pub reserve_bytes: u64,
}

/// What makes room, and may take some of the reserve for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Records of deletions.
    Deletions,
    /// Copies out of segments in which little is alive.
    Copies,
}

impl SpaceSettings {
    /// What is left of the reserve for the books. Deletions leave room for copies too.
    fn reserve_left_bytes(&self, need: Need) -> u64 {
        match need {
            Need::Deletions => (self.reserve_bytes / 2 + self.segment_bytes).min(self.reserve_bytes),
            Need::Copies => self.reserve_bytes / 2,
        }
    }
}

/// A segment that holds nothing.
struct Empty {
    number: u64,
    /// The file's name is on stable storage, and so is its length, if it is whole.
    is_durable: bool,
    room: FreeRoom,
}

/// How much of the disk a segment takes that holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FreeRoom {
    /// Nobody has looked since it was used: it may have holes.
    Unknown,
    /// All of its length. It is used again as it is.
    Whole,
    /// Next to nothing: the rest was given back to the file system.
    GivenBack,
}

/// Who learns that a file has been cleared: its number and its new epoch.
pub type Cleared = Box<dyn Fn(u64, u64) + Send + Sync>;

/// The segments of a store, those that hold nothing, and the numbers for new ones. Shared by all cores; touched when
/// a segment changes hands, never on the data path.
///
/// A segment in which nothing is needed any more goes through three hands before it is written again: whoever let go
/// of it last says so here, a keeper *clears* it (its header with a new epoch is on stable storage then, and nothing
/// in it can be taken for anything), and who keeps the books of the store says that it is *free*.
pub struct Space {
    settings: SpaceSettings,
    next_number: AtomicU64,
    next_epoch: AtomicU64,
    in_use: Mutex<HashMap<u64, Weak<Segment>>>,
    emptied: Mutex<Vec<u64>>,
    free: Mutex<Vec<Empty>>,
    cleared: OnceLock<Cleared>,
    keepers: Mutex<Vec<Sender<()>>>,
    /// Bytes of files that are being made.
    making: AtomicU64,
    /// Segments that keepers have prepared.
    prepared: AtomicU64,
    /// Bytes that writers were promised room for, and have not appended yet.
    promised: AtomicU64,
}

/// A segment file that is being made: what it is going to take counts as taken.
struct Making<'a> {
    space: &'a Space,
    bytes: u64,
}

impl<'a> Making<'a> {
    /// None: there is no room for so many more bytes, beside the reserve.
    fn begin(space: &'a Space, core: &Core, bytes: u64, reserve_bytes: u64) -> Option<Making<'a>> {
        let others = space.making.fetch_add(bytes, Ordering::SeqCst);
        let making = Making { space, bytes };
        let free_bytes = core.free_bytes(&space.settings.folder).unwrap_or(u64::MAX);
        (free_bytes >= others + bytes + reserve_bytes).then_some(making)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.space.making.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Room that a writer was promised. What is left of the promise is given back when it is dropped.
pub struct Promise {
    space: Arc<Space>,
    bytes: u64,
}

impl Promise {
    /// Some of it was used.
    pub fn use_up(&mut self, bytes: u64) {
        let used = bytes.min(self.bytes);
        self.bytes -= used;
        self.space.promised.fetch_sub(used, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.use_up(self.bytes);
    }
}

impl Space {
    /// The room of a store that has no segments yet.
    pub fn new(settings: SpaceSettings) -> Arc<Space> {
        Arc::new(Space {
            settings,
            next_number: AtomicU64::new(1),
            next_epoch: AtomicU64::new(1),
            in_use: Mutex::default(),
            emptied: Mutex::default(),
            free: Mutex::default(),
            cleared: OnceLock::new(),
            keepers: Mutex::default(),
            making: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
            promised: AtomicU64::new(0),
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

    /// Says who learns that a file has been cleared. Once.
    pub fn set_cleared(&self, cleared: Cleared) {
        let was_first = self.cleared.set(cleared).is_ok();
        assert!(was_first, "the books of a store are kept in one place");
    }

    /// Goes on behind these numbers and epochs, which were found in use.
    pub fn resume_after(&self, number: u64, epoch: u64) {
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

    /// The segment with this number, in this use of it.
    pub fn segment(self: &Arc<Self>, number: u64, epoch: u64) -> Arc<Segment> {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let known = in_use.get(&number).and_then(Weak::upgrade);
        if let Some(segment) = known.as_ref().filter(|segment| segment.epoch == epoch) {
            return segment.clone();
        }
        let segment = Arc::new(Segment {
            number,
            epoch,
            is_empty: AtomicBool::new(false),
            is_pinned: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            space: self.clone(),
        });
        // Who comes with an earlier use, of a view that is out of date, does not take its place.
        if known.is_none_or(|known| known.epoch < epoch) {
            in_use.insert(number, Arc::downgrade(&segment));
        }
        segment
    }

    fn let_go(&self, number: u64, is_to_be_used: bool) {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have taken it up anew meanwhile.
        if in_use.get(&number).is_some_and(|segment| segment.strong_count() == 0) {
            in_use.remove(&number);
        }
        drop(in_use);
        if is_to_be_used {
            self.emptied().push(number);
            self.wake_keepers();
        }
    }

    /// Takes a segment that was cleared, and of which no book says anything else.
    pub fn set_free(&self, number: u64) {
        self.put_free(Empty { number, is_durable: true, room: FreeRoom::Unknown });
        self.wake_keepers();
    }

    /// Takes a file that an attempt to prepare a segment has left.
    pub(super) fn set_begun(&self, number: u64) {
        self.put_free(Empty { number, is_durable: false, room: FreeRoom::Unknown });
    }

    fn free(&self) -> MutexGuard<'_, Vec<Empty>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are whole lie behind the others: they are taken first.
    fn put_free(&self, empty: Empty) {
        let mut free = self.free();
        let place = if empty.room == FreeRoom::Whole { free.len() } else { 0 };
        free.insert(place, empty);
    }

    /// Takes a free segment of which nobody knows how much room it has.
    fn take_unknown(&self) -> Option<Empty> {
        let mut free = self.free();
        let place = free.iter().position(|empty| empty.room == FreeRoom::Unknown)?;
        Some(free.remove(place))
    }

    /// Takes a whole segment that is free where there are more than so many.
    fn take_surplus(&self, kept: usize) -> Option<Empty> {
        let mut free = self.free();
        let is_surplus = whole(&free) > kept;
        if is_surplus { free.pop() } else { None }
    }

    fn wake_keepers(&self) {
        for keeper in self.keepers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            keeper.send(());
        }
    }

    /// How many bytes segments have room for that nothing is written to yet, made or still to be made.
    pub fn room_bytes(&self, core: &Core) -> u64 {
        let settings = &self.settings;
        // What was given back of free segments is room of the file system's.
        let made = whole(&self.free()) as u64 + self.prepared.load(Ordering::Relaxed);
        // Where nothing is known of the disk, writing to it will tell.
        let free_bytes = core.free_bytes(&settings.folder).unwrap_or(u64::MAX);
        let to_be_made = free_bytes.saturating_sub(settings.reserve_bytes) / settings.segment_bytes;
        made.saturating_add(to_be_made).saturating_mul(settings.segment_bytes)
    }

    /// Promises room for so many bytes of payload.
    ///
    /// # Errors
    /// [`Kind::NoSpace`]: there is none, or others were promised it.
    pub fn promise(self: &Arc<Self>, core: &Core, bytes: u64) -> Result<Promise> {
        // Headers of records and blocks, and what is left over at the ends of segments.
        let with_headers = bytes.saturating_add(bytes / 64).saturating_add(self.settings.segment_bytes / 16);
        let promised = self.promised.fetch_add(bytes, Ordering::Relaxed);
        let promise = Promise { space: self.clone(), bytes };
        let room = self.room_bytes(core);
        if promised.saturating_add(with_headers) > room {
            let message = format!("there is no room for {bytes} bytes: {room} are free, {promised} promised");
            return Err(Error::new(Kind::NoSpace, message));
        }
        Ok(promise)
    }

    /// How many bytes are promised.
    #[cfg(test)]
    pub(crate) fn promised_bytes(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    /// How many segments can be made for copies, of the reserve too.
    pub(super) fn reserve_segments(&self, core: &Core) -> u64 {
        let free_bytes = core.free_bytes(&self.settings.folder).unwrap_or(0);
        let left_bytes = self.settings.reserve_left_bytes(Need::Copies);
        free_bytes.saturating_sub(left_bytes) / self.settings.segment_bytes
    }

    /// How many segments all keepers together keep prepared.
    pub fn wanted_segments(&self) -> usize {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner).len();
        keepers * self.settings.spare_segments.max(1)
    }

    /// How many segments hold nothing and are not prepared.
    pub fn free_segments(&self) -> usize {
        self.free().len()
    }

    /// How many numbers were given: the segments that exist.
    pub fn segments(&self) -> u64 {
        self.next_number.load(Ordering::Relaxed).saturating_sub(1)
    }

    fn take_free(&self) -> Option<Empty> {
        self.free().pop()
    }

    fn emptied(&self) -> MutexGuard<'_, Vec<u64>> {
        self.emptied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether segments wait to be cleared.
    pub fn has_emptied(&self) -> bool {
        !self.emptied().is_empty()
    }
}

/// How many of these can be used as they are.
fn whole(free: &[Empty]) -> usize {
    free.iter().filter(|empty| empty.room == FreeRoom::Whole).count()
}

/// A segment with its header on disk, ready to be written.
pub(super) struct Prepared {
    pub segment: Arc<Segment>,
    pub writing: Arc<Descriptor>,
    /// It was made in what the file system's reserve has: not for data.
    pub is_reserve: bool,
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
    /// Segments in a row that failed for another reason than the moment.
    failures: Cell<u32>,
    preparing: Cell<bool>,
    is_released: Cell<bool>,
    /// What the log has no segment for, though it makes room.
    need: Cell<Option<Need>>,
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
            failures: Cell::new(0),
            preparing: Cell::new(false),
            is_released: Cell::new(false),
            need: Cell::new(None),
            work,
            client: RefCell::default(),
            zeroes: RefCell::default(),
        });
        keeper.work.send(());
        let working = keeper.clone();
        let task = core.spawn(async move {
            while orders.receive().await.is_some() {
                while orders.try_receive().is_some() {}
                working.clear_emptied().await;
                working.look_at_free().await;
                working.refill_reserve().await;
                working.fill_up().await;
                working.give_back_surplus().await;
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

    /// The folder of the segments.
    pub fn folder(&self) -> &Path {
        &self.space.settings.folder
    }

    /// The store's number.
    pub fn store(&self) -> u64 {
        self.space.settings.store
    }

    /// Why no segment can be prepared, if so.
    pub fn trouble(&self) -> Option<Error> {
        self.trouble.borrow().clone()
    }

    /// Why no segment will be prepared any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.trouble().filter(|_| self.failures.get() >= FAILURES_MAX)
    }

    /// How many attempts to prepare a segment have come to an end.
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.get()
    }

    /// Takes a prepared segment and orders the next one.
    pub(super) fn take(&self) -> Option<Prepared> {
        let prepared = self.prepared.borrow_mut().pop_front();
        if prepared.is_some() {
            self.space.prepared.fetch_sub(1, Ordering::Relaxed);
        }
        self.starving.set(prepared.is_none());
        // Where the last attempt has failed another one follows when there is reason to hope: see `try_again`.
        if self.trouble.borrow().is_none() {
            self.work.send(());
        }
        prepared
    }

    /// Says whether the log has no segment even for what makes room.
    pub(super) fn set_need(&self, need: Option<Need>) {
        self.need.set(need);
    }

    /// Says that the log waits for a segment.
    pub(super) fn hurry(&self) {
        self.starving.set(true);
    }

    /// Asks for another attempt where the last one failed. A segment that is given back asks for one by itself.
    pub fn try_again(&self) {
        self.work.send(());
    }

    /// What all keepers of the store share.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Lets go of what is prepared, when nothing is written any more: each holds nothing in the use that it was prepared
    /// for.
    pub fn release(&self) {
        self.is_released.set(true);
        for prepared in self.prepared.borrow_mut().drain(..) {
            if let Some(cleared) = self.space.cleared.get() {
                cleared(prepared.segment.number(), prepared.segment.epoch());
            }
        }
    }

    /// Sets the log that this keeper works for.
    pub(super) fn set_client(&self, client: Rc<dyn KeeperClient>) {
        *self.client.borrow_mut() = Some(client);
    }

    /// How many segments are prepared that are for data too.
    fn prepared_for_data(&self) -> usize {
        self.prepared.borrow().iter().filter(|prepared| !prepared.is_reserve).count()
    }

    async fn fill_up(&self) {
        let wanted = self.space.settings.spare_segments.max(1);
        // One of the reserve is not what data waits for: beside it another attempt is made, which answers whoever waits.
        while self.prepared_for_data() < wanted && !self.is_released.get() {
            self.preparing.set(true);
            let outcome = self.prepare().await;
            self.preparing.set(false);
            self.attempts.set(self.attempts.get() + 1);
            let failed = outcome.is_err();
            match outcome {
                Ok(prepared) => {
                    // One that was made of the reserve says nothing about room for others.
                    if !prepared.is_reserve {
                        *self.trouble.borrow_mut() = None;
                    }
                    // What is of the reserve is taken last: data must not have it while there is no other.
                    let mut all = self.prepared.borrow_mut();
                    let place = all.iter().position(|other| other.is_reserve && !prepared.is_reserve);
                    let place = place.unwrap_or(all.len());
                    all.insert(place, prepared);
                    drop(all);
                    self.space.prepared.fetch_add(1, Ordering::Relaxed);
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

    /// Makes the files of segments in which nothing is needed any more unreadable as what they were.
    async fn clear_emptied(&self) {
        loop {
            let Some(number) = self.space.emptied().pop() else { return };
            match clear(&self.core, &self.space, number).await {
                Ok(epoch) => {
                    if let Some(cleared) = self.space.cleared.get() {
                        cleared(number, epoch);
                    }
                }
                // Of descriptors, memory or room there may be more later.
                Err(error) if matches!(error.kind(), Kind::Busy | Kind::NoSpace) => {
                    tracing::debug!(%error, "a segment cannot be used again yet");
                    self.space.emptied().push(number);
                    return;
                }
                // It stays what it was; the next start finds it.
                Err(error) => tracing::warn!(%error, "a segment cannot be used again"),
            }
        }
    }

    /// Gives back what is left of free segments with holes: they are initialised as new ones are.
    async fn look_at_free(&self) {
        let segment_bytes = self.space.settings.segment_bytes;
        while let Some(mut empty) = self.space.take_unknown() {
            let path = Space::path(&self.space.settings.folder, empty.number);
            let allocated = match self.core.open(&path, OpenMode::Read).await {
                Ok(file) => self.core.allocated_bytes(&file),
                Err(errno) => Err(errno),
            };
            match allocated {
                Ok(bytes) if bytes >= segment_bytes && empty.is_durable => empty.room = FreeRoom::Whole,
                _ => self.give_back(&mut empty).await,
            }
            self.space.put_free(empty);
        }
    }

    /// What the books of the store have taken of the reserve is put back before anything else is.
    async fn refill_reserve(&self) {
        let Space { settings, .. } = &*self.space;
        while self.core.free_bytes(&settings.folder).is_ok_and(|free| free < settings.reserve_bytes) {
            let Some(mut empty) = self.space.take_surplus(0) else { return };
            self.give_back(&mut empty).await;
            self.space.put_free(empty);
        }
    }

    /// As many free segments as are prepared are kept whole. The others' room is anybody's.
    async fn give_back_surplus(&self) {
        while let Some(mut empty) = self.space.take_surplus(self.space.wanted_segments()) {
            self.give_back(&mut empty).await;
            self.space.put_free(empty);
        }
    }

    /// Gives back the room of a free segment, all but that of its header.
    async fn give_back(&self, empty: &mut Empty) {
        empty.room = FreeRoom::GivenBack;
        let Space { settings, .. } = &*self.space;
        let path = Space::path(&settings.folder, empty.number);
        let header_bytes = SEGMENT_HEADER_LENGTH as u64;
        let outcome = match self.core.open(&path, OpenMode::WriteBuffered).await {
            Ok(file) => self.core.punch(&file, header_bytes, settings.segment_bytes - header_bytes).await,
            Err(errno) => Err(errno),
        };
        if let Err(errno) = outcome {
            tracing::debug!(segment = empty.number, %errno, "the room of a segment could not be given back");
        }
    }

    async fn prepare(&self) -> Result<Prepared> {
        let settings = &self.space.settings;
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let mut empty = self.space.take_free().unwrap_or_else(|| Empty {
            number: self.space.next_number.fetch_add(1, Ordering::Relaxed),
            is_durable: false,
            room: FreeRoom::GivenBack,
        });
        let (what, errno) = match self.prepare_file(&mut empty).await {
            Ok(prepared) => {
                self.failures.set(0);
                return Ok(prepared);
            }
            Err(failure) => failure,
        };
        let path = Space::path(&settings.folder, empty.number);
        let error = Error::device(format!("{what} segment {}", path.display()), errno);
        // What exists of it can be used when there is room again. A file that fails otherwise is left as it is, and the
        // next attempt takes another.
        if policy(errno).is_for_now() {
            self.space.put_free(empty);
            return Err(error);
        }
        tracing::error!(%error, "a segment could not be prepared");
        self.failures.set(self.failures.get() + 1);
        if self.failures.get() < FAILURES_MAX {
            return Err(error);
        }
        Err(Error::new(
            Kind::ReadOnly,
            format!("{FAILURES_MAX} segments in a row could not be prepared: {error}"),
        ))
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
        let file_bytes = self.core.length(&writing).map_err(|errno| ("cannot look at", errno))?;
        let is_whole = file_bytes == settings.segment_bytes;
        // What was punched out is initialised again like the rest: a block written to it would change metadata.
        let allocated_bytes = self.core.allocated_bytes(&writing).unwrap_or(0).min(settings.segment_bytes);
        let mut is_reserve = false;
        if !empty.is_durable || !is_whole || allocated_bytes < settings.segment_bytes {
            let missing_bytes = settings.segment_bytes - allocated_bytes;
            let mut making = Making::begin(&self.space, &self.core, missing_bytes, settings.reserve_bytes);
            // Half of the reserve is for a log that has no segment at all for what makes room.
            let need = self.need.get().filter(|_| making.is_none() && self.prepared() == 0);
            if let Some(need) = need {
                is_reserve = true;
                let reserve_bytes = settings.reserve_left_bytes(need);
                making = Making::begin(&self.space, &self.core, missing_bytes, reserve_bytes);
            }
            let Some(_making) = making else {
                return Err(("cannot make room for", Errno::NOSPC));
            };
            (empty.is_durable, empty.room) = (false, FreeRoom::GivenBack);
            // A header that is there says that nothing in the file counts. It stays until it is written anew.
            let header_bytes = SEGMENT_HEADER_LENGTH as u64;
            let start = if file_bytes < header_bytes { 0 } else { header_bytes };
            if let Err(errno) = self.initialise(&writing, start).await {
                // It may have got some of the room, which is nobody's good there.
                let _ = self.core.punch(&writing, start, settings.segment_bytes - start).await;
                return Err(("cannot make room for", errno));
            }
            empty.room = FreeRoom::Whole;
            let folder = self
                .core
                .open(&settings.folder, OpenMode::Read)
                .await
                .map_err(|errno| ("cannot open", errno))?;
            self.core.sync(&folder).await.map_err(|errno| ("cannot sync the folder of", errno))?;
            empty.is_durable = true;
        }
        let epoch = self.space.take_epoch();
        let header = SegmentHeader { store: settings.store, number, epoch, length: settings.segment_bytes };
        let region = header_region(&header).map_err(|errno| ("no memory for the header of", errno))?;
        let written = self.core.write(&writing, None, 0, region, true).await;
        written.map_err(|errno| ("cannot write the header of", errno))?;
        Ok(Prepared { segment: self.space.segment(number, epoch), writing, is_reserve })
    }

    /// Gives a file its full length and, where nobody waits for it, initialised blocks from `start` on.
    ///
    /// Writing to blocks that are not initialised changes metadata too, and is slower by a quarter or so; but it is
    /// much faster than writing everything twice. So a log that waits for a segment gets it as it is, and
    /// initialising makes way for blocks that are being written.
    async fn initialise(&self, file: &Arc<Descriptor>, start: u64) -> std::result::Result<(), Errno> {
        let end = self.space.settings.segment_bytes;
        let nobody_waits = || !self.starving.get();
        let allocate = |allocation| self.core.allocate(file, start, end - start, allocation);
        if nobody_waits() && allocate(Allocation::WriteZeroes).await.is_ok() {
            return self.core.sync(file).await;
        }
        match allocate(Allocation::Reserve).await {
            Ok(()) => {}
            // The file system cannot reserve: that there is room shows when blocks are written.
            Err(Errno::OPNOTSUPP) => self.core.set_length(file, end)?,
            Err(errno) => return Err(errno),
        }
        let zeroes = self.zeroes()?;
        let mut position = start;
        while position < end && nobody_waits() {
            let count = (end - position).min(zeroes.len() as u64) as usize;
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

/// Gives a segment's file a header with a new epoch, which it answers: nothing that lies in it counts any more.
pub(super) async fn clear(core: &Rc<Core>, space: &Space, number: u64) -> Result<u64> {
    let path = Space::path(&space.settings.folder, number);
    let failed = |errno| Error::device(format!("cannot clear {}", path.display()), errno);
    let file = core.open(&path, OpenMode::WriteBuffered).await.map_err(failed)?;
    let epoch = space.take_epoch();
    let (store, length) = (space.settings.store, space.settings.segment_bytes);
    let region = header_region(&SegmentHeader { store, number, epoch, length }).map_err(failed)?;
    core.write(&file, None, 0, region, true).await.map_err(failed)?;
    Ok(epoch)
}

/// Opens a segment for reading: no readahead, which could reach what is not written yet. Dropping the future closes what
/// was being opened.
///
/// # Errors
/// As open(2).
pub async fn open_for_reading(core: &Core, path: &Path) -> std::result::Result<Arc<Descriptor>, Errno> {
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
