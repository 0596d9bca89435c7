//! A simulated kernel: deterministic, seeded, with a device that loses what was not synced when the power is cut.
//!
//! A [`World`] is a device, a clock, and one source of chance. Any number of cores run in it, in one thread, each on a
//! [`SimulatedKernel`] of its own. The same seed and the same calls give the same run to the last bit:
//! [`World::trace`] says whether they did.
//!
//! # What is true of it
//!
//! - An operation is taken from the queue by `enter`, ends at a moment that chance chooses, and has its whole effect
//!   at that moment. So operations in flight together end in any order. Only a power cut finds them half done.
//! - Time passes a little with every `enter`, and jumps to the next event where an `enter` waits. An `enter` that would
//!   wait for ever answers EDEADLK.
//! - A cancellation comes in time or too late. In time, the operation answers ECANCELED and may have been done in part.
//! - What is on stable storage, and when: see `disk`. A write with `durable` makes its sectors durable and no change
//!   of the file's length; a sync of a file what was complete when it was begun; a sync of a folder its names.
//! - A sync that fails is of the worst kind: the bytes that it should have made durable are read as before, no later
//!   sync writes them, and a part of them is on no medium.
//! - A write that fails, but for EINTR and EAGAIN, may have been done in part.
//! - [`World::cut_power`] keeps or drops each sector that was not synced, and each sector of the writes in flight; ends
//!   all descriptors and kernels. [`World::kill`] ends descriptors and kernels only: what was written is read.
//!   After either, kernels of the next boot are made with [`World::kernel`]. A kernel of an earlier boot answers
//!   ECANCELED to everything, so that what ran on it can be taken down.
//!
//! # What it does not know
//!
//! Sockets, pipes, splices, page cache and readahead, folders within folders coming and going. Names change only where
//! a blocking file's do (see `blocking`), and a removal is durable at once.
//! A sector is never torn within itself. Writes are never misdirected.

mod blocking;
mod disk;
mod faults;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_queue::SegQueue;
use fastrand::Rng;
use rustix::io::Errno;

use super::{Allocation, Arena, Completion, Descriptor, Files, Kernel, OpenMode, Operation, Wait};
pub use blocking::BlockingFile;
use disk::{Disk, Found, SECTOR};
use faults::Fault;
pub use faults::{ERRNOS, Faults, Kind};

/// How many operations a queue takes before `enter` has to make room: few, so that this happens.
const QUEUE_LENGTH: usize = 8;
/// How many fixed places a kernel has.
const PLACES: usize = 4;
/// How many events a trace remembers.
const EVENTS_REMEMBERED: usize = 400;
/// What the clocks of all worlds begin with, in seconds since 1970.
const BEGINNING_SECONDS: u64 = 1_800_000_000;

/// What a world is like.
#[derive(Clone, Debug)]
pub struct WorldSettings {
    /// What everything that is left to chance depends on.
    pub seed: u64,
    /// The size of the device in bytes.
    pub capacity_bytes: u64,
    /// Whether files can be opened for direct writes.
    pub takes_direct: bool,
    /// Whether room can be reserved; otherwise EOPNOTSUPP.
    pub reserves: bool,
    /// Whether the device writes zeroes by itself; otherwise EOPNOTSUPP.
    pub writes_zeroes: bool,
    /// How long an operation takes.
    pub delay: Range<Duration>,
    /// How many descriptors there can be; then EMFILE.
    pub descriptors_max: usize,
}

impl Default for WorldSettings {
    fn default() -> WorldSettings {
        WorldSettings {
            seed: 0,
            capacity_bytes: 1 << 30,
            takes_direct: true,
            reserves: true,
            writes_zeroes: false,
            delay: Duration::from_micros(10)..Duration::from_micros(800),
            descriptors_max: 1024,
        }
    }
}

/// A device, a clock, and chance. Clones are the same world.
#[derive(Clone)]
pub struct World {
    state: Rc<RefCell<State>>,
}

struct State {
    settings: WorldSettings,
    faults: Faults,
    blocking_faults: Faults,
    blocking_calls: u64,
    errors: u64,
    /// The process dies in the midst of the call after so many more on blocking files.
    blocking_calls_left: Option<u64>,
    is_failing: bool,
    random: Rng,
    base: Instant,
    now: Duration,
    /// Which boot this is: descriptors and kernels of earlier ones are dead.
    boot: u64,
    disk: Disk,
    cores: BTreeMap<usize, CoreState>,
    in_flight: BTreeMap<(Duration, u64), Flight>,
    submitted: u64,
    open: BTreeMap<u64, Open>,
    opened: u64,
    /// Descriptors that were dropped since anybody looked.
    closed: Arc<SegQueue<u64>>,
    /// Who holds the lock of a file.
    locks: BTreeMap<u64, u64>,
    trace: Trace,
}

/// What the world keeps for one core.
#[derive(Default)]
struct CoreState {
    /// Waits for bells.
    polls: Vec<(u64, Arc<AtomicBool>)>,
    ended: Vec<(Completion, Answer)>,
    /// A message has come.
    has_message: bool,
    /// Something is in the queue that no `enter` has taken.
    has_queued: bool,
}

struct Open {
    found: Found,
    mode: OpenMode,
}

/// An operation in flight.
struct Flight {
    core: usize,
    token: u64,
    request: Request,
    is_cancelled: bool,
}

/// An operation as the world keeps it: without what belongs to the caller.
enum Request {
    Poll {
        bell: Arc<AtomicBool>,
    },
    Open {
        path: PathBuf,
        mode: OpenMode,
    },
    Allocate {
        file: u64,
        position: u64,
        length: u64,
        allocation: Allocation,
    },
    Punch {
        file: u64,
        position: u64,
        length: u64,
    },
    /// Of blocking files only.
    SetLength {
        file: u64,
        length: u64,
    },
    Sync {
        file: u64,
        covers: Covers,
    },
    Read {
        file: u64,
        position: u64,
        length: u64,
    },
    Write {
        file: u64,
        place: Option<u32>,
        position: u64,
        bytes: Vec<u8>,
        durable: bool,
    },
    Message {
        address: i32,
    },
    /// What is not simulated.
    Foreign,
}

/// What a sync makes durable: what was complete when it was begun.
enum Covers {
    Unknown,
    Changes(u64),
    Files(Vec<u64>),
}

/// What comes to an operation with its completion.
enum Answer {
    Nothing,
    Descriptor(Handle),
    Bytes(Vec<u8>),
}

impl Request {
    fn kind(&self) -> Kind {
        match self {
            Request::Poll { .. } | Request::Foreign => Kind::Poll,
            Request::Open { .. } => Kind::Open,
            Request::Allocate { .. } => Kind::Allocate,
            Request::Punch { .. } => Kind::Punch,
            Request::SetLength { .. } => Kind::Allocate,
            Request::Sync { .. } => Kind::Sync,
            Request::Read { .. } => Kind::Read,
            Request::Write { .. } => Kind::Write,
            Request::Message { .. } => Kind::Message,
        }
    }

    /// The descriptor's number, the position and the length, as far as there are any.
    fn place(&self) -> (u64, u64, u64) {
        match self {
            Request::Poll { .. } | Request::Open { .. } | Request::Foreign => (0, 0, 0),
            Request::SetLength { file, length } => (*file, 0, *length),
            Request::Allocate { file, position, length, .. }
            | Request::Punch { file, position, length }
            | Request::Read { file, position, length } => (*file, *position, *length),
            Request::Sync { file, .. } => (*file, 0, 0),
            Request::Write { file, position, bytes, .. } => (*file, *position, bytes.len() as u64),
            Request::Message { address } => (*address as u64, 0, 0),
        }
    }
}

/// What a [`Descriptor`] of a simulated world is.
#[derive(Debug)]
pub struct Handle {
    boot: u64,
    what: Handled,
}

#[derive(Debug)]
enum Handled {
    /// A file or folder; its number is put here when it is closed.
    File(u64, Arc<SegQueue<u64>>),
    Bell(Arc<AtomicBool>),
}

impl Handle {
    /// The number of an open file. Bells have none.
    fn number(&self) -> u64 {
        match &self.what {
            Handled::File(number, _) => *number,
            Handled::Bell(_) => u64::MAX,
        }
    }

    /// Rings, or silences, a bell.
    pub(super) fn set_ringing(&self, rings: bool) {
        if let Handled::Bell(bell) = &self.what {
            bell.store(rings, Ordering::SeqCst);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Handled::File(number, closed) = &self.what {
            closed.push(*number);
        }
    }
}

/// Something that happened in a world.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// When, since the world began.
    pub at: Duration,
    /// On which core.
    pub core: usize,
    /// What ended.
    pub kind: Kind,
    /// The number of its descriptor, its position and its length, as far as it has them.
    pub place: (u64, u64, u64),
    /// How it ended.
    pub result: i32,
}

/// What has happened, as a sum, and the last of it as it was.
#[derive(Default)]
struct Trace {
    sum: u64,
    events: VecDeque<Event>,
}

impl Trace {
    fn note(&mut self, event: Event) {
        let (first, second, third) = event.place;
        let at = event.at.as_nanos() as u64;
        for word in
            [at, event.core as u64, event.kind as u64, first, second, third, event.result as u32 as u64]
        {
            self.sum = (self.sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        }
        self.events.truncate(EVENTS_REMEMBERED - 1);
        self.events.push_front(event);
    }
}

impl World {
    /// A world with an empty device, at the beginning of its time.
    pub fn new(settings: WorldSettings) -> World {
        let state = State {
            faults: Faults::none(),
            blocking_faults: Faults::none(),
            blocking_calls: 0,
            errors: 0,
            blocking_calls_left: None,
            is_failing: false,
            random: Rng::with_seed(settings.seed),
            base: Instant::now(),
            now: Duration::ZERO,
            boot: 1,
            disk: Disk::new(settings.capacity_bytes),
            cores: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            submitted: 0,
            open: BTreeMap::new(),
            opened: 0,
            closed: Arc::default(),
            locks: BTreeMap::new(),
            trace: Trace::default(),
            settings,
        };
        World { state: Rc::new(RefCell::new(state)) }
    }

    /// Another world whose device has the same on it, where chance goes another way. Nobody is at work there.
    #[cfg(test)]
    pub(crate) fn twin(&self, seed: u64) -> World {
        let state = self.state.borrow();
        let twin = World::new(WorldSettings { seed, ..state.settings.clone() });
        twin.state.borrow_mut().disk = state.disk.clone();
        twin
    }

    /// The kernel of one core, from now until the next power cut.
    pub fn kernel(&self, core: usize) -> SimulatedKernel {
        let mut state = self.state.borrow_mut();
        state.cores.insert(core, CoreState::default());
        SimulatedKernel {
            world: self.clone(),
            core,
            boot: state.boot,
            queue: VecDeque::new(),
            outstanding: BTreeSet::new(),
            places: vec![None; PLACES],
            answers: BTreeMap::new(),
        }
    }

    /// A bell for a core's mailbox.
    pub fn bell(&self) -> Descriptor {
        let boot = self.state.borrow().boot;
        Descriptor::simulated(Handle { boot, what: Handled::Bell(Arc::default()) })
    }

    /// Makes a folder, durably. Its parents need not exist.
    pub fn make_folder(&self, path: &Path) {
        self.state.borrow_mut().disk.make_folder(path);
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.borrow_mut().faults = faults;
    }

    /// Changes the size of the device; what is there stays.
    pub fn set_capacity_bytes(&self, capacity_bytes: u64) {
        self.state.borrow_mut().disk.set_capacity_bytes(capacity_bytes);
    }

    /// How many bytes of the device are in use.
    pub fn used_bytes(&self) -> u64 {
        self.state.borrow().disk.used_bytes()
    }

    /// Makes a part of a file unusable for ever: reads and writes of its sectors answer EIO.
    ///
    /// # Errors
    /// ENOENT.
    pub fn make_bad(&self, path: &Path, bytes: Range<u64>) -> Result<(), Errno> {
        let sectors = disk::sectors_of(bytes.start, bytes.end - bytes.start);
        self.with_file(path, |file, _| file.make_bad(sectors))
    }

    /// Changes one bit of a file, unnoticed and for ever.
    ///
    /// # Errors
    /// ENOENT.
    pub fn rot(&self, path: &Path, position: u64, bit: u8) -> Result<(), Errno> {
        self.with_file(path, |file, _| file.rot(position, bit))
    }

    /// What a file holds now.
    ///
    /// # Errors
    /// ENOENT; EIO where it cannot be read.
    pub fn content(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        self.with_file(path, |file, _| file.read(0, u64::MAX))?
    }

    fn with_file<T>(
        &self,
        path: &Path,
        call: impl FnOnce(&mut disk::File, &mut Rng) -> T,
    ) -> Result<T, Errno> {
        let state = &mut *self.state.borrow_mut();
        match state.disk.find(path)? {
            Found::File(number) => Ok(call(state.disk.file_mut(number)?, &mut state.random)),
            Found::Folder(_) => Err(Errno::ISDIR),
        }
    }

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// ENOENT.
    pub fn names(&self, folder: &Path) -> Result<Vec<OsString>, Errno> {
        self.state.borrow().disk.list(folder)
    }

    /// How many descriptors are open.
    pub fn open_descriptors(&self) -> usize {
        let mut state = self.state.borrow_mut();
        state.notice_closed();
        state.open.len()
    }

    /// A source of chance that depends on this world's seed, for whoever drives it.
    pub fn chance(&self) -> Rng {
        self.state.borrow_mut().random.fork()
    }

    /// How long the world has existed, by its own clock.
    pub fn age(&self) -> Duration {
        self.state.borrow().now
    }

    /// The time.
    pub fn now(&self) -> Instant {
        let state = self.state.borrow();
        state.base + state.now
    }

    /// Whether this core is to `enter`: for a completion, a message, its bell, or what it has queued.
    pub fn calls(&self, core: usize) -> bool {
        let mut state = self.state.borrow_mut();
        state.catch_up();
        state.calls(core)
    }

    /// Lets time pass until the next operation ends, or until `limit`, whichever is first. False: there is neither.
    pub fn pass(&self, limit: Option<Instant>) -> bool {
        let mut state = self.state.borrow_mut();
        let limit = limit.map(|limit| limit.saturating_duration_since(state.base));
        state.pass(limit)
    }

    /// The power fails. When this returns there is on the device what was on stable storage, and of the rest what
    /// chance has kept; all kernels and descriptors are dead; power is back.
    pub fn cut_power(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let unreadable = state.faults.unreadable_after_cut;
        state.end_boot();
        state.disk.cut(&mut state.random, unreadable);
    }

    /// The process is killed. When this returns its operations have ended one way or the other, and all kernels and
    /// descriptors are dead.
    pub fn kill(&self) {
        self.state.borrow_mut().end_boot();
    }

    /// Which boot this is: it grows with every [`World::cut_power`] and [`World::kill`].
    pub fn boot(&self) -> u64 {
        self.state.borrow().boot
    }

    /// How many operations were answered with an error that chance had chosen.
    pub fn errors(&self) -> u64 {
        self.state.borrow().errors
    }

    /// A sum over everything that has happened: equal for equal runs.
    pub fn trace(&self) -> u64 {
        self.state.borrow().trace.sum
    }

    /// The last events, newest first.
    pub fn events(&self) -> Vec<Event> {
        self.state.borrow().trace.events.iter().copied().collect()
    }
}

impl State {
    fn notice_closed(&mut self) {
        while let Some(number) = self.closed.pop() {
            self.open.remove(&number);
            self.locks.retain(|_, holder| *holder != number);
        }
    }

    /// Ends what is due.
    fn catch_up(&mut self) {
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let flight = entry.remove();
            self.end(flight);
        }
    }

    fn pass(&mut self, limit: Option<Duration>) -> bool {
        let next = self.in_flight.first_key_value().map(|(&(at, _), _)| at);
        let Some(until) = next.into_iter().chain(limit).min() else { return false };
        self.now = self.now.max(until);
        self.catch_up();
        true
    }

    fn calls(&self, core: usize) -> bool {
        self.cores.get(&core).is_some_and(|core| {
            let rings = core.polls.iter().any(|(_, bell)| bell.load(Ordering::SeqCst));
            core.has_message || core.has_queued || rings || !core.ended.is_empty()
        })
    }

    /// Nothing of this boot goes on. What is in flight is done wholly, in part or not at all.
    fn end_boot(&mut self) {
        self.boot += 1;
        for flight in std::mem::take(&mut self.in_flight).into_values() {
            match flight.request {
                Request::Write { file, position, bytes, .. } => self.write_some(file, position, &bytes),
                request if self.random.bool() => drop(self.carry_out(request)),
                _ => {}
            }
        }
        self.open.clear();
        self.locks.clear();
        self.cores.clear();
        (self.blocking_calls_left, self.is_failing) = (None, false);
    }

    /// A moment at which an operation that begins now ends.
    fn moment(&mut self, kind: Kind) -> Duration {
        let delay = self.settings.delay.clone();
        let nanoseconds = self.random.u64(delay.start.as_nanos() as u64..=delay.end.as_nanos() as u64);
        let is_slow = kind != Kind::Message && self.random.f64() < self.faults.slow;
        self.now + Duration::from_nanos(if is_slow { nanoseconds * 1000 } else { nanoseconds })
    }

    fn submit(&mut self, core: usize, token: u64, mut request: Request) {
        if let Request::Poll { bell } = request {
            if let Some(core) = self.cores.get_mut(&core) {
                core.polls.push((token, bell));
            }
            return;
        }
        if let Request::Sync { file, covers } = &mut request {
            *covers = match self.open.get(file).map(|open| &open.found) {
                Some(Found::File(number)) => {
                    Covers::Changes(self.disk.file(*number).map_or(0, |file| file.changed()))
                }
                Some(Found::Folder(path)) => Covers::Files(self.disk.files_of(path)),
                None => Covers::Unknown,
            };
        }
        let moment = self.moment(request.kind());
        self.submitted += 1;
        self.in_flight.insert((moment, self.submitted), Flight { core, token, request, is_cancelled: false });
    }

    fn cancel(&mut self, core: usize, token: u64) {
        if let Some(state) = self.cores.get_mut(&core)
            && let Some(place) = state.polls.iter().position(|poll| poll.0 == token)
        {
            state.polls.remove(place);
            let completion = Completion { token, result: -Errno::CANCELED.raw_os_error() };
            state.ended.push((completion, Answer::Nothing));
            return;
        }
        let found = self.in_flight.iter().find(|(_, flight)| (flight.core, flight.token) == (core, token));
        let Some(key) = found.map(|(&key, _)| key) else { return };
        // A cancellation may come too late, and an operation that is cancelled may take its time to say so.
        if self.random.bool()
            && let Some(mut flight) = self.in_flight.remove(&key)
        {
            flight.is_cancelled = true;
            let moment = self.moment(Kind::Poll);
            self.submitted += 1;
            self.in_flight.insert((moment, self.submitted), flight);
        }
    }

    fn end(&mut self, flight: Flight) {
        let Flight { core, token, request, is_cancelled } = flight;
        let (kind, place) = (request.kind(), request.place());
        let fault = match is_cancelled {
            true => Some(Fault::Error(Errno::CANCELED)),
            false => self.faults.choose(kind, &mut self.random),
        };
        let outcome = match fault {
            Some(Fault::Error(errno)) => {
                self.fail(request, errno);
                Err(errno)
            }
            Some(fault) => self.carry_out_with(request, fault),
            None => self.carry_out(request),
        };
        let (result, answer) = match outcome {
            Ok((result, answer)) => (result as i32, answer),
            Err(errno) => (-errno.raw_os_error(), Answer::Nothing),
        };
        self.trace.note(Event { at: self.now, core, kind, place, result });
        if let Some(core) = self.cores.get_mut(&core) {
            core.ended.push((Completion { token, result }, answer));
        }
    }

    /// What an operation leaves behind that answers an error.
    fn fail(&mut self, request: Request, errno: Errno) {
        self.errors += 1;
        if matches!(errno, Errno::INTR | Errno::AGAIN) {
            return;
        }
        match request {
            Request::Write { file, position, bytes, .. }
                if errno == Errno::IO || errno == Errno::CANCELED =>
            {
                self.write_some(file, position, &bytes);
            }
            Request::Sync { file, covers: Covers::Changes(changed) } if errno == Errno::IO => {
                if let Some(Open { found: Found::File(number), .. }) = self.open.get(&file)
                    && let Ok(file) = self.disk.file_mut(*number)
                {
                    file.fail_to_sync(changed, &mut self.random);
                }
            }
            Request::Punch { .. } | Request::Allocate { .. }
                if errno == Errno::CANCELED && self.random.bool() =>
            {
                drop(self.carry_out(request));
            }
            _ => {}
        }
    }

    fn write_some(&mut self, handle: u64, position: u64, bytes: &[u8]) {
        if let Some(Open { found: Found::File(number), .. }) = self.open.get(&handle)
            && let Ok(file) = self.disk.file_mut(*number)
        {
            // Where there is no room nothing is written, and a bad sector takes nothing.
            let length = bytes.len() as u64;
            if file.pages_without_room(position, length).next().is_none()
                && file.first_bad(position, length).is_none()
            {
                file.write_some(position, bytes, &mut self.random);
            }
        }
    }

    fn carry_out_with(&mut self, request: Request, fault: Fault) -> Result<(u32, Answer), Errno> {
        match (request, fault) {
            (Request::Write { .. } | Request::Read { .. }, Fault::Zero) => Ok((0, Answer::Nothing)),
            (Request::Write { file, place, position, mut bytes, durable }, _) => {
                let sectors = bytes.len() / SECTOR as usize;
                if sectors > 1 {
                    // Most devices stop between pages, some between sectors.
                    let step = if sectors > 8 && self.random.bool() { 8 } else { 1 };
                    let kept = self.random.usize(1..=(sectors - 1) / step) * step;
                    bytes.truncate(kept * SECTOR as usize);
                }
                self.carry_out(Request::Write { file, place, position, bytes, durable })
            }
            (Request::Read { file, position, length }, Fault::Short) => {
                let sectors = length / SECTOR;
                let length = if sectors > 1 { self.random.u64(1..sectors) * SECTOR } else { length };
                self.carry_out(Request::Read { file, position, length })
            }
            (Request::Read { file, position, length }, Fault::Misdirected) => {
                let elsewhere = position.saturating_sub(self.random.u64(1..64) * SECTOR);
                self.carry_out(Request::Read { file, position: elsewhere, length })
            }
            (Request::Read { file, position, length }, fault) => {
                let (count, answer) = self.carry_out(Request::Read { file, position, length })?;
                let Answer::Bytes(mut bytes) = answer else { return Ok((count, answer)) };
                if !bytes.is_empty() {
                    let (at, bit) = (self.random.usize(0..bytes.len()), self.random.u8(0..8));
                    bytes[at] ^= 1 << bit;
                    if fault == Fault::Rotten {
                        self.file_mut(file)?.rot(position + at as u64, bit);
                    }
                }
                Ok((count, Answer::Bytes(bytes)))
            }
            (request, _) => self.carry_out(request),
        }
    }

    /// Does what was asked for, as far as the device can.
    fn carry_out(&mut self, request: Request) -> Result<(u32, Answer), Errno> {
        match request {
            Request::Open { path, mode } => return self.open(&path, mode),
            Request::Allocate { file, position, length, allocation } => {
                let is_possible = match allocation {
                    Allocation::Reserve => self.settings.reserves,
                    Allocation::WriteZeroes => self.settings.writes_zeroes,
                };
                if !is_possible {
                    return Err(Errno::OPNOTSUPP);
                }
                self.check_writable(file)?;
                let free = self.disk.free_pages();
                let file = self.file_mut(file)?;
                let end = position + length;
                if file.pages_without_room(position, length).count() as u64 > free {
                    file.allocate_some(end, free);
                    return Err(Errno::NOSPC);
                }
                file.set_length(end.max(file.length()), true);
                if allocation == Allocation::WriteZeroes {
                    file.write(position, &vec![0; length as usize], false);
                }
            }
            Request::Punch { file, position, length } => {
                self.check_writable(file)?;
                self.file_mut(file)?.punch(position, length);
            }
            Request::SetLength { file, length } => self.file_mut(file)?.set_length(length, false),
            Request::Sync { file, covers } => match (covers, self.open.get(&file).map(|open| &open.found)) {
                (Covers::Changes(changed), Some(Found::File(number))) => {
                    self.disk.file_mut(*number)?.sync(changed);
                }
                (Covers::Files(files), Some(Found::Folder(path))) => {
                    let path = path.clone();
                    self.disk.sync_folder(&path, &files);
                }
                _ => return Err(Errno::BADF),
            },
            Request::Read { file, position, length } => {
                self.check_alignment(file, position, length)?;
                let bytes = self.file_mut(file)?.read(position, length)?;
                return Ok((bytes.len() as u32, Answer::Bytes(bytes)));
            }
            Request::Write { file, position, mut bytes, durable, .. } => {
                self.check_writable(file)?;
                self.check_alignment(file, position, bytes.len() as u64)?;
                let free = self.disk.free_pages();
                let file = self.file_mut(file)?;
                // As far as there is room, and no farther than to the first bad sector.
                let length = bytes.len() as u64;
                let full = file.pages_without_room(position, length).nth(free as usize);
                let full = full.map(|page| (page * disk::PAGE, Errno::NOSPC));
                let bad = file.first_bad(position, length).map(|sector| (sector * SECTOR, Errno::IO));
                if let Some((end, errno)) = full.into_iter().chain(bad).min_by_key(|end| end.0) {
                    if end <= position {
                        return Err(errno);
                    }
                    bytes.truncate((end - position) as usize);
                }
                file.write(position, &bytes, durable);
                return Ok((bytes.len() as u32, Answer::Nothing));
            }
            Request::Message { address } => {
                let core = usize::try_from(address).ok().and_then(|core| self.cores.get_mut(&core));
                core.ok_or(Errno::BADFD)?.has_message = true;
            }
            Request::Poll { .. } | Request::Foreign => return Err(Errno::OPNOTSUPP),
        }
        Ok((0, Answer::Nothing))
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> Result<(u32, Answer), Errno> {
        self.notice_closed();
        if self.open.len() >= self.settings.descriptors_max {
            return Err(Errno::MFILE);
        }
        let found = match self.disk.find(path) {
            Ok(Found::Folder(_)) if mode != OpenMode::Read => return Err(Errno::ISDIR),
            Ok(found) => found,
            Err(Errno::NOENT) if mode != OpenMode::Read => Found::File(self.disk.create(path)?),
            Err(errno) => return Err(errno),
        };
        // As on Linux, the file is there all the same.
        if mode == OpenMode::WriteDirect && !self.settings.takes_direct {
            return Err(Errno::INVAL);
        }
        self.opened += 1;
        let number = self.opened;
        self.open.insert(number, Open { found, mode });
        let handle = Handle { boot: self.boot, what: Handled::File(number, self.closed.clone()) };
        Ok((number as u32, Answer::Descriptor(handle)))
    }

    fn file_mut(&mut self, handle: u64) -> Result<&mut disk::File, Errno> {
        match self.open.get(&handle).map(|open| &open.found) {
            Some(Found::File(number)) => self.disk.file_mut(*number),
            Some(Found::Folder(_)) => Err(Errno::ISDIR),
            None => Err(Errno::BADF),
        }
    }

    fn check_writable(&self, handle: u64) -> Result<(), Errno> {
        let is_writable = self.open.get(&handle).is_some_and(|open| open.mode != OpenMode::Read);
        if is_writable { Ok(()) } else { Err(Errno::BADF) }
    }

    fn check_alignment(&self, handle: u64, position: u64, length: u64) -> Result<(), Errno> {
        let is_direct = self.open.get(&handle).is_some_and(|open| open.mode == OpenMode::WriteDirect);
        let is_aligned = position.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        if is_direct && !is_aligned { Err(Errno::INVAL) } else { Ok(()) }
    }
}

/// One core's way into a [`World`].
pub struct SimulatedKernel {
    world: World,
    core: usize,
    boot: u64,
    queue: VecDeque<Queued>,
    /// What was submitted and has not ended.
    outstanding: BTreeSet<u64>,
    /// The descriptors with a fixed place.
    places: Vec<Option<u64>>,
    answers: BTreeMap<u64, Answer>,
}

enum Queued {
    Start(u64, Request),
    Cancel(u64),
}

impl SimulatedKernel {
    /// The number of an open file of this boot. Others are nobody's.
    fn number_of(&self, descriptor: &Descriptor) -> u64 {
        match descriptor.as_simulated() {
            Some(handle) if handle.boot == self.boot => handle.number(),
            _ => u64::MAX,
        }
    }

    fn request_of(&self, operation: &Operation) -> Request {
        match operation {
            Operation::Poll { descriptor, .. } => {
                match descriptor.as_simulated().map(|handle| &handle.what) {
                    Some(Handled::Bell(bell)) => Request::Poll { bell: bell.clone() },
                    _ => Request::Foreign,
                }
            }
            Operation::Open { path, mode, .. } => Request::Open {
                path: Path::new(std::ffi::OsStr::from_bytes(path.as_bytes())).to_owned(),
                mode: *mode,
            },
            Operation::Allocate { file, position, length, allocation } => {
                let (file, position, length) = (self.number_of(file), *position, *length);
                Request::Allocate { file, position, length, allocation: *allocation }
            }
            Operation::Punch { file, position, length } => {
                Request::Punch { file: self.number_of(file), position: *position, length: *length }
            }
            Operation::Sync { file } => Request::Sync { file: self.number_of(file), covers: Covers::Unknown },
            Operation::Read { file, position, buffer, start } => Request::Read {
                file: self.number_of(file),
                position: *position,
                length: (buffer.len() - start) as u64,
            },
            Operation::Write { file, place, position, region, durable } => Request::Write {
                file: self.number_of(file),
                place: *place,
                position: *position,
                bytes: region.to_vec(),
                durable: *durable,
            },
            Operation::Message { address, .. } => Request::Message { address: *address },
            Operation::Accept { .. } | Operation::Splice { .. } => Request::Foreign,
        }
    }

    fn enqueue(&mut self, queued: Queued) {
        self.queue.push_back(queued);
        let state = &mut *self.world.state.borrow_mut();
        if state.boot == self.boot
            && let Some(core) = state.cores.get_mut(&self.core)
        {
            core.has_queued = true;
        }
    }

    fn submit(&mut self, state: &mut State) {
        if let Some(core) = state.cores.get_mut(&self.core) {
            core.has_queued = false;
        }
        for queued in self.queue.drain(..) {
            match queued {
                Queued::Start(token, mut request) => {
                    // As the kernel does: what is at the fixed place is written to, whoever was meant.
                    if let Request::Write { file, place: Some(place), .. } = &mut request {
                        *file = self.places[*place as usize].unwrap_or(u64::MAX);
                    }
                    self.outstanding.insert(token);
                    state.submit(self.core, token, request);
                }
                Queued::Cancel(token) => state.cancel(self.core, token),
            }
        }
    }

    /// Takes what has ended, in any order. True if that, or a message, is worth waking up for.
    fn collect(&mut self, state: &mut State, completions: &mut Vec<Completion>) -> bool {
        let Some(core) = state.cores.get_mut(&self.core) else { return false };
        let mut ended = std::mem::take(&mut core.ended);
        core.polls.retain(|(token, bell)| {
            let rings = bell.load(Ordering::SeqCst);
            if rings {
                ended.push((Completion { token: *token, result: 1 }, Answer::Nothing));
                let (at, core) = (state.now, self.core);
                state.trace.note(Event { at, core, kind: Kind::Poll, place: (0, 0, 0), result: 1 });
            }
            !rings
        });
        let is_awake = std::mem::take(&mut core.has_message) || !ended.is_empty();
        state.random.shuffle(&mut ended);
        for (completion, answer) in ended {
            self.outstanding.remove(&completion.token);
            self.answers.insert(completion.token, answer);
            completions.push(completion);
        }
        is_awake
    }

    /// The world has moved on without this kernel: everything ends.
    fn end_all(&mut self, completions: &mut Vec<Completion>) {
        for queued in std::mem::take(&mut self.queue) {
            if let Queued::Start(token, _) = queued {
                self.outstanding.insert(token);
            }
        }
        for token in std::mem::take(&mut self.outstanding) {
            completions.push(Completion { token, result: -Errno::CANCELED.raw_os_error() });
        }
    }

    fn with_file<T>(
        &self,
        descriptor: &Descriptor,
        call: impl FnOnce(&mut State, u64) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.world.state.borrow_mut();
        let state = &mut *state;
        if state.boot != self.boot {
            return Err(Errno::BADF);
        }
        state.notice_closed();
        match state.faults.choose(Kind::Files, &mut state.random) {
            Some(Fault::Error(errno)) => Err(errno),
            _ => call(state, self.number_of(descriptor)),
        }
    }
}

impl Kernel for SimulatedKernel {
    fn push(&mut self, token: u64, operation: &mut Operation) -> bool {
        if self.queue.len() >= QUEUE_LENGTH {
            return false;
        }
        let request = self.request_of(operation);
        self.enqueue(Queued::Start(token, request));
        true
    }

    fn push_cancel(&mut self, token: u64) -> bool {
        if self.queue.len() >= QUEUE_LENGTH {
            return false;
        }
        self.enqueue(Queued::Cancel(token));
        true
    }

    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        let world = self.world.clone();
        let state = &mut *world.state.borrow_mut();
        if state.boot != self.boot {
            self.end_all(completions);
            return Ok(());
        }
        state.now += Duration::from_nanos(state.random.u64(200..2000));
        let deadline = match wait {
            Wait::No => Some(state.now),
            Wait::AtMost(duration) => Some(state.now + duration),
            Wait::Forever => None,
        };
        self.submit(state);
        loop {
            state.catch_up();
            if self.collect(state, completions) || deadline.is_some_and(|deadline| deadline <= state.now) {
                return Ok(());
            }
            if !state.pass(deadline) {
                return Err(Errno::DEADLK);
            }
        }
    }

    fn land(&mut self, completion: Completion, operation: &mut Operation) {
        match (self.answers.remove(&completion.token), operation) {
            (Some(Answer::Descriptor(handle)), operation) => operation.receive(Descriptor::simulated(handle)),
            (Some(Answer::Bytes(bytes)), Operation::Read { buffer, start, .. }) => {
                buffer[*start..*start + bytes.len()].copy_from_slice(&bytes);
            }
            _ => {}
        }
    }

    fn register_arena(&mut self, _arena: &Arena) -> Result<(), Errno> {
        Ok(())
    }

    fn register_file(&mut self, file: &Descriptor) -> Option<u32> {
        let place = self.places.iter().position(Option::is_none)?;
        self.places[place] = Some(self.number_of(file));
        Some(place as u32)
    }

    fn unregister_file(&mut self, place: u32) {
        assert!(self.places[place as usize].take().is_some(), "the fixed place {place} was given back twice");
    }

    fn now(&self) -> Instant {
        self.world.now()
    }

    fn wall_clock(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(BEGINNING_SECONDS) + self.world.age()
    }

    fn files(&self) -> &(dyn Files + 'static) {
        self
    }

    fn address(&self) -> i32 {
        self.core as i32
    }
}

impl Files for SimulatedKernel {
    fn length(&self, file: &Descriptor) -> Result<u64, Errno> {
        self.with_file(file, |state, number| state.file_mut(number).map(|file| file.length()))
    }

    fn allocated_bytes(&self, file: &Descriptor) -> Result<u64, Errno> {
        self.with_file(file, |state, number| state.file_mut(number).map(|file| file.allocated_bytes()))
    }

    fn set_length(&self, file: &Descriptor, length: u64) -> Result<(), Errno> {
        self.with_file(file, |state, number| {
            state.check_writable(number)?;
            state.file_mut(number).map(|file| file.set_length(length, false))
        })
    }

    fn lock(&self, file: &Descriptor) -> Result<(), Errno> {
        self.with_file(file, |state, number| {
            let Some(Open { found: Found::File(locked), .. }) = state.open.get(&number) else {
                return Err(Errno::BADF);
            };
            let holder = *state.locks.entry(*locked).or_insert(number);
            if holder == number { Ok(()) } else { Err(Errno::WOULDBLOCK) }
        })
    }

    fn unlock(&self, file: &Descriptor) -> Result<(), Errno> {
        self.with_file(file, |state, number| {
            state.locks.retain(|_, holder| *holder != number);
            Ok(())
        })
    }

    fn read_nothing_ahead(&self, file: &Descriptor) -> Result<(), Errno> {
        self.with_file(file, |state, number| state.file_mut(number).map(drop))
    }

    fn free_bytes(&self, folder: &Path) -> Result<u64, Errno> {
        let state = self.world.state.borrow();
        state.disk.list(folder)?;
        Ok(state.disk.free_pages() * disk::PAGE)
    }

    fn list(&self, folder: &Path) -> Result<Vec<OsString>, Errno> {
        let state = &mut *self.world.state.borrow_mut();
        if let Some(Fault::Error(errno)) = state.faults.choose(Kind::Files, &mut state.random) {
            return Err(errno);
        }
        let mut names = state.disk.list(folder)?;
        state.random.shuffle(&mut names);
        Ok(names)
    }
}
