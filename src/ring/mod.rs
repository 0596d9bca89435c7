//! The seam to the kernel.
//!
//! Above this room nobody names `io_uring`, and nobody writes `unsafe`.
//!
//! An [`Operation`] owns everything the kernel touches while it runs: buffers, paths, descriptors. It moves
//! through these states, and through no others:
//!
//! ```text
//!              start()                terminal completion            poll() of the future
//!   (caller) ──────────▶ InFlight ───────────────────────▶ Landed ───────────────────────▶ (caller)
//!      │                    │                                 │
//!      │                    │ drop of the future:             │ drop of the future
//!      │                    │ ASYNC_CANCEL is queued          ▼
//!      │                    ▼                               freed ◀──┐
//!      └─────────────▶ Abandoned ─────── terminal completion ────────┘
//!     start_detached()
//! ```
//!
//! - Who owns the operation, with its buffers, paths and references to descriptors: the slot, from `start` until
//!   `Landed` is polled or the slot is freed; the caller before and after. The future owns the token alone.
//! - Dropping the future frees nothing that the kernel may still use. The answer to the cancellation itself frees
//!   nothing either, whatever it says and whenever it comes; only the operation's own completion does.
//! - What is freed takes along what it has produced: a descriptor that was opened or accepted for nobody is closed.
//! - The queue may be full: then a start, or a cancellation, waits in the backlog, in the order in which they came. A
//!   slot is not freed meanwhile: it has had no completion.
//! - A token is the slot's number and a generation, so that a late completion can never be taken for that of
//!   the slot's next tenant.
//! - A wake is outside of all this: dropping the future drops the waker that the slot has, at once.
//! - When the ring goes down, everything is cancelled and reaped first; what does not come back is leaked
//!   rather than freed.
//!
//! [`Kernel`] is the one trait between this bookkeeping and the kernel, so that a simulated one can run the
//! engine in tests; `uring` is the real one.

mod arena;
mod operation;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;
mod uring;

use std::cell::{Cell, Ref, RefCell};
use std::ffi::OsString;
use std::future::Future;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use slab::Slab;

pub use arena::{Arena, Fill, Region, WeakRegion};
pub use operation::{Allocation, Descriptor, OpenMode, Operation, Readiness};
pub use uring::{RingSettings, Uring, UringReport, probe};

/// What the kernel answers: which operation, and its result as the system call would have returned it.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The token that was given with the operation.
    pub token: u64,
    /// The result: a count, a descriptor number, or a negated error number.
    pub result: i32,
}

/// How long [`Kernel::enter`] may wait.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// Not at all: submit, collect what is there.
    No,
    /// Until something completes.
    Forever,
    /// Until something completes, or this much time has passed.
    AtMost(Duration),
}

/// A kernel that runs operations: the real one, or a simulated one.
pub trait Kernel {
    /// Queues an operation under a token. False when the queue is full: `enter` makes room.
    ///
    /// The memory and the descriptors that the operation names stay valid and in place until its completion;
    /// the caller, which is [`Ring`], guarantees it by keeping the operation in its slot.
    fn push(&mut self, token: u64, operation: &mut Operation) -> bool;

    /// Queues the cancellation of the operation with this token. False when the queue is full.
    fn push_cancel(&mut self, token: u64) -> bool;

    /// Submits what is queued, waits as told, and appends what has completed.
    ///
    /// # Errors
    /// Only what leaves the kernel unusable.
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> Result<(), Errno>;

    /// Gives the operation what its completion stands for and the memory that it owns does not hold yet: a new
    /// descriptor, and whatever else a kernel that is not the system's has for it.
    fn land(&mut self, completion: Completion, operation: &mut Operation);

    /// Tells the kernel of the arena that writes will come from. An error means that writes take the plain
    /// way, which costs more CPU and is otherwise the same.
    ///
    /// # Errors
    /// What the kernel says; ENOMEM is the memlock limit.
    fn register_arena(&mut self, arena: &Arena) -> Result<(), Errno>;

    /// Gives a file a fixed place, so that operations on it need no reference count. None: no place is left.
    fn register_file(&mut self, file: &Descriptor) -> Option<u32>;

    /// Gives a fixed place back. Nothing on it is in flight.
    fn unregister_file(&mut self, place: u32);

    /// The time, for timers and latencies.
    fn now(&self) -> Instant;

    /// The time of day, for timestamps.
    fn wall_clock(&self) -> SystemTime;

    /// What can be asked of files without an operation.
    fn files(&self) -> &(dyn Files + 'static);

    /// What another core puts in [`Operation::Message`] to wake this one.
    fn address(&self) -> i32;
}

/// What is asked of files so seldom, or answered so quickly, that it is answered at once.
pub trait Files {
    /// How long the file is, in bytes.
    ///
    /// # Errors
    /// As fstat(2).
    fn length(&self, file: &Descriptor) -> Result<u64, Errno>;

    /// How much room the file has, in bytes: less than its length where it has holes.
    ///
    /// # Errors
    /// As fstat(2).
    fn allocated_bytes(&self, file: &Descriptor) -> Result<u64, Errno>;

    /// Makes the file this long. What it grows by has no room of its own yet.
    ///
    /// # Errors
    /// As ftruncate(2).
    fn set_length(&self, file: &Descriptor, length: u64) -> Result<(), Errno>;

    /// Takes the file's lock, which is held until [`Files::unlock`] or until the descriptor is closed, and not
    /// before the last operation on it is done.
    ///
    /// # Errors
    /// As flock(2); EWOULDBLOCK while somebody else holds it.
    fn lock(&self, file: &Descriptor) -> Result<(), Errno>;

    /// Gives the file's lock back.
    ///
    /// # Errors
    /// As flock(2).
    fn unlock(&self, file: &Descriptor) -> Result<(), Errno>;

    /// Says that reads through the page cache are to read what they ask for, and nothing ahead of it.
    ///
    /// # Errors
    /// As posix_fadvise(2).
    fn read_nothing_ahead(&self, file: &Descriptor) -> Result<(), Errno>;

    /// How many bytes the file system of a folder has left for us.
    ///
    /// # Errors
    /// As statvfs(3).
    fn free_bytes(&self, folder: &Path) -> Result<u64, Errno>;

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// As open(2) and getdents(2).
    fn list(&self, folder: &Path) -> Result<Vec<OsString>, Errno>;
}

/// One core's operations in flight.
pub struct Ring {
    inner: RefCell<Inner>,
    closing: Cell<bool>,
}

struct Inner {
    kernel: Box<dyn Kernel>,
    slots: Slab<Slot>,
    generation: u32,
    /// Slots whose operation found the queue full, first come first served.
    backlog: std::collections::VecDeque<Queued>,
    completions: Vec<Completion>,
}

enum Queued {
    Start(u64),
    Cancel(u64),
}

struct Slot {
    generation: u32,
    state: State,
    operation: Operation,
}

enum State {
    InFlight(Option<Waker>),
    Landed(i32),
    Abandoned,
}

fn token_of(slot: usize, generation: u32) -> u64 {
    (u64::from(generation) << 32) | slot as u64
}

fn slot_of(token: u64) -> (usize, u32) {
    ((token & u64::from(u32::MAX)) as usize, (token >> 32) as u32)
}

/// Tokens that belong to no slot: slot numbers never come near this.
const NO_SLOT: u32 = u32::MAX;
/// The token of a message from another core: it only ends the wait.
pub(crate) const TOKEN_MESSAGE: u64 = NO_SLOT as u64;
/// The token of a cancellation's own answer, which says nothing that matters.
pub(crate) const TOKEN_CANCEL: u64 = (1 << 32) | NO_SLOT as u64;

impl Ring {
    /// A ring over a kernel.
    pub fn new(kernel: Box<dyn Kernel>) -> Rc<Ring> {
        Rc::new(Ring {
            inner: RefCell::new(Inner {
                kernel,
                slots: Slab::with_capacity(256),
                generation: 0,
                backlog: std::collections::VecDeque::new(),
                completions: Vec::with_capacity(256),
            }),
            closing: Cell::new(false),
        })
    }

    /// Starts an operation. It is submitted with the next [`Ring::turn`].
    ///
    /// The future gives the result and the operation with all it owns back. Dropping it cancels the
    /// operation; what the operation owns is freed when the kernel is done with it.
    pub fn start(self: &Rc<Ring>, operation: Operation) -> InFlight {
        let token = self.inner.borrow_mut().start(operation, State::InFlight(None));
        InFlight { ring: self.clone(), token, done: false }
    }

    /// Starts an operation whose result interests nobody.
    pub fn start_detached(self: &Rc<Ring>, operation: Operation) {
        self.inner.borrow_mut().start(operation, State::Abandoned);
    }

    /// Submits what was started, waits as told, and wakes whoever waits for what completed.
    ///
    /// # Errors
    /// Only what leaves the kernel unusable.
    pub fn turn(&self, wait: Wait) -> Result<usize, Errno> {
        let (mut completions, count) = {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            inner.drain_backlog();
            let mut completions = std::mem::take(&mut inner.completions);
            let wait = if inner.backlog.is_empty() { wait } else { Wait::No };
            inner.kernel.enter(wait, &mut completions)?;
            inner.drain_backlog();
            let count = completions.len();
            (completions, count)
        };
        for completion in completions.drain(..) {
            // The borrow ends before the waker runs: a waker may start operations.
            let woken = self.inner.borrow_mut().complete(completion);
            match woken {
                Landing::Wake(waker) => waker.wake(),
                Landing::Free(operation) => drop(operation),
                Landing::Nothing => {}
            }
        }
        self.inner.borrow_mut().completions = completions;
        Ok(count)
    }

    /// How many operations are in flight, abandoned ones included.
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().slots.len()
    }

    /// The kernel's time.
    pub fn now(&self) -> Instant {
        self.inner.borrow().kernel.now()
    }

    /// See [`Kernel::wall_clock`].
    pub fn wall_clock(&self) -> SystemTime {
        self.inner.borrow().kernel.wall_clock()
    }

    /// See [`Kernel::files`].
    pub fn files(&self) -> Ref<'_, dyn Files + 'static> {
        Ref::map(self.inner.borrow(), |inner| inner.kernel.files())
    }

    /// What other cores wake this one with.
    pub fn address(&self) -> i32 {
        self.inner.borrow().kernel.address()
    }

    /// See [`Kernel::register_arena`].
    ///
    /// # Errors
    /// What the kernel says; ENOMEM is the memlock limit.
    pub fn register_arena(&self, arena: &Arena) -> Result<(), Errno> {
        self.inner.borrow_mut().kernel.register_arena(arena)
    }

    /// See [`Kernel::register_file`].
    pub fn register_file(&self, file: &Descriptor) -> Option<u32> {
        self.inner.borrow_mut().kernel.register_file(file)
    }

    /// See [`Kernel::unregister_file`].
    pub fn unregister_file(&self, place: u32) {
        self.inner.borrow_mut().kernel.unregister_file(place);
    }

    /// Whether the ring is on its way down: what is answered ECANCELED is meant to be.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Cancels everything and reaps until nothing is in flight, for two seconds at most. True when nothing is
    /// left; what is left is leaked when the ring is dropped.
    pub fn close(&self) -> bool {
        self.closing.set(true);
        let tokens: Vec<u64> = {
            let inner = self.inner.borrow();
            inner.slots.iter().map(|(slot, entry)| token_of(slot, entry.generation)).collect()
        };
        for token in tokens {
            self.inner.borrow_mut().cancel(token);
        }
        let limit = self.now() + Duration::from_secs(2);
        while self.inner.borrow().slots.iter().any(|(_, slot)| !matches!(slot.state, State::Landed(_))) {
            if self.now() >= limit || self.turn(Wait::AtMost(Duration::from_millis(20))).is_err() {
                return false;
            }
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        for slot in std::mem::take(&mut inner.slots) {
            if !matches!(slot.1.state, State::Landed(_)) {
                // The kernel may still use what this operation owns.
                std::mem::forget(slot.1.operation);
            }
        }
    }
}

enum Landing {
    Wake(Waker),
    Free(Operation),
    Nothing,
}

impl Inner {
    fn start(&mut self, operation: Operation, state: State) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slot = self.slots.insert(Slot { generation, state, operation });
        assert!((slot as u64) < u64::from(NO_SLOT), "more operations in flight than tokens");
        let token = token_of(slot, generation);
        if !self.backlog.is_empty() || !self.kernel.push(token, &mut self.slots[slot].operation) {
            self.backlog.push_back(Queued::Start(token));
        }
        token
    }

    fn cancel(&mut self, token: u64) {
        if !self.backlog.is_empty() || !self.kernel.push_cancel(token) {
            self.backlog.push_back(Queued::Cancel(token));
        }
    }

    fn drain_backlog(&mut self) {
        while let Some(queued) = self.backlog.front() {
            let pushed = match *queued {
                Queued::Start(token) => {
                    let (slot, _) = slot_of(token);
                    self.kernel.push(token, &mut self.slots[slot].operation)
                }
                Queued::Cancel(token) => self.kernel.push_cancel(token),
            };
            if !pushed {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn complete(&mut self, completion: Completion) -> Landing {
        let (number, generation) = slot_of(completion.token);
        let Some(slot) = self.slots.get_mut(number) else { return Landing::Nothing };
        if slot.generation != generation {
            return Landing::Nothing;
        }
        self.kernel.land(completion, &mut slot.operation);
        match std::mem::replace(&mut slot.state, State::Landed(completion.result)) {
            State::InFlight(Some(waker)) => Landing::Wake(waker),
            State::InFlight(None) => Landing::Nothing,
            State::Abandoned => {
                let operation = self.slots.remove(number).operation;
                if let (Operation::Message { bell, .. }, true) = (&operation, completion.result < 0) {
                    ring_bell(bell);
                }
                Landing::Free(operation)
            }
            State::Landed(_) => unreachable!("an operation completed twice"),
        }
    }
}

/// Wakes the core that listens to this event descriptor; from any thread.
pub fn ring_bell(bell: &Descriptor) {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(handle) = bell.as_simulated() {
        return handle.set_ringing(true);
    }
    // It can fail only when the counter is full, and then the bell is already ringing.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// Silences a bell, so that it can be heard again.
pub fn silence_bell(bell: &Descriptor) {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(handle) = bell.as_simulated() {
        return handle.set_ringing(false);
    }
    let mut count = [0; 8];
    let _ = rustix::io::read(bell, &mut count);
}

/// An operation in flight: resolves to its result and the operation itself.
#[must_use = "dropping an operation in flight cancels it"]
pub struct InFlight {
    ring: Rc<Ring>,
    token: u64,
    done: bool,
}

impl Future for InFlight {
    type Output = (Result<u32, Errno>, Operation);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.done, "polled after completion");
        let (number, _) = slot_of(self.token);
        let ring = self.ring.clone();
        let mut inner = ring.inner.borrow_mut();
        let slot = &mut inner.slots[number];
        match &mut slot.state {
            State::InFlight(Some(waker)) if waker.will_wake(context.waker()) => Poll::Pending,
            State::InFlight(waker) => {
                // Dropping a waker can run code of its task, so it happens without the borrow.
                let former = waker.replace(context.waker().clone());
                drop(inner);
                drop(former);
                Poll::Pending
            }
            State::Landed(result) => {
                let result = match *result {
                    count if count >= 0 => Ok(count as u32),
                    negated => Err(Errno::from_raw_os_error(-negated)),
                };
                let slot = inner.slots.remove(number);
                self.done = true;
                Poll::Ready((result, slot.operation))
            }
            State::Abandoned => unreachable!("an abandoned operation has no future"),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (number, _) = slot_of(self.token);
        let freed = {
            let mut inner = self.ring.inner.borrow_mut();
            let slot = &mut inner.slots[number];
            match slot.state {
                State::InFlight(_) => {
                    slot.state = State::Abandoned;
                    inner.cancel(self.token);
                    None
                }
                State::Landed(_) => Some(inner.slots.remove(number).operation),
                State::Abandoned => unreachable!("only one future per operation"),
            }
        };
        drop(freed);
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.system().as_fd()
    }
}
