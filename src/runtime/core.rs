//! The loop of one core, and the way into it from other threads.
//!
//! A turn of the loop: take what other threads have handed over, fire the timers that are due, run what is
//! ready, then one `enter` that submits everything the tasks have started and, if nothing is ready, waits.
//!
//! Waking a core from outside: its mailbox is a queue; who pushes and finds the core asleep wakes it, by a
//! message between rings if on a core itself, by an event descriptor otherwise. How none is missed: `handover`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use async_task::Runnable;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use slab::Slab;

use super::handover::HandOver;
use super::timer::{Elapsed, Sleep, Timers};
use crate::ring::{Descriptor, Operation, Readiness, Ring, Wait, ring_bell, silence_bell};

pub use async_task::Task;

/// How many tasks run between two looks at the kernel.
const TASKS_PER_TURN: usize = 128;

/// One thread with one ring.
pub struct Core {
    index: usize,
    ring: Rc<Ring>,
    mailbox: Arc<Mailbox>,
    ready: Rc<RefCell<VecDeque<Runnable>>>,
    timers: RefCell<Timers>,
    now: Cell<Instant>,
    turns: Cell<u64>,
    /// Every task, for who has to be rid of all of them in the midst of their work.
    #[cfg(any(test, feature = "simulation"))]
    spawned: RefCell<Vec<std::task::Waker>>,
}

/// The way into a core from other threads.
pub struct Mailbox {
    identity: u64,
    hand_over: HandOver<Runnable>,
    bell: Arc<Descriptor>,
    address: AtomicI32,
}

/// The core whose turn it is on this thread.
struct Current {
    identity: u64,
    ready: Rc<RefCell<VecDeque<Runnable>>>,
    ring: Rc<Ring>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

impl Mailbox {
    /// A mailbox for a core that is to be started.
    ///
    /// # Errors
    /// EMFILE, when the process has no descriptor left.
    pub fn new() -> Result<Arc<Mailbox>, Errno> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox::with_bell(Descriptor::from(bell)))
    }

    /// A mailbox with this bell: what [`ring_bell`] and [`silence_bell`] take.
    pub(crate) fn with_bell(bell: Descriptor) -> Arc<Mailbox> {
        static IDENTITY: AtomicU64 = AtomicU64::new(1);
        Arc::new(Mailbox {
            identity: IDENTITY.fetch_add(1, Ordering::Relaxed),
            hand_over: HandOver::new(),
            bell: Arc::new(bell),
            address: AtomicI32::new(-1),
        })
    }

    /// Puts a task where its core will run it; from any thread.
    fn deliver(&self, runnable: Runnable) {
        let foreign = CURRENT.with_borrow(|current| match current {
            Some(current) if current.identity == self.identity => {
                current.ready.borrow_mut().push_back(runnable);
                None
            }
            Some(current) => Some((runnable, Some(current.ring.clone()))),
            None => Some((runnable, None)),
        });
        let Some((runnable, ring)) = foreign else { return };
        if !self.hand_over.push(runnable) {
            return;
        }
        let address = self.address.load(Ordering::Acquire);
        match ring {
            Some(ring) if address >= 0 => {
                ring.start_detached(Operation::Message { address, bell: self.bell.clone() });
            }
            _ => ring_bell(&self.bell),
        }
    }
}

impl Core {
    /// The core with this number, on the calling thread, over a ring and with its mailbox.
    pub fn new(index: usize, ring: Rc<Ring>, mailbox: Arc<Mailbox>) -> Rc<Core> {
        mailbox.address.store(ring.address(), Ordering::Release);
        let now = ring.now();
        Rc::new(Core {
            index,
            ring,
            mailbox,
            ready: Rc::default(),
            timers: RefCell::default(),
            now: Cell::new(now),
            turns: Cell::new(0),
            #[cfg(any(test, feature = "simulation"))]
            spawned: RefCell::default(),
        })
    }

    /// The core's number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The core's ring.
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    /// The time at the beginning of this turn.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// The time right now, for measuring latencies.
    pub fn precise_now(&self) -> Instant {
        self.ring.now()
    }

    /// The time of day, for timestamps.
    pub fn wall_clock(&self) -> SystemTime {
        self.ring.wall_clock()
    }

    /// How many turns the loop has made.
    pub fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Runs a future on this core, beside the others. Dropping the task cancels it.
    pub fn spawn<F>(self: &Rc<Core>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let mailbox = self.mailbox.clone();
        let (runnable, task) = async_task::spawn_local(future, move |runnable| mailbox.deliver(runnable));
        #[cfg(any(test, feature = "simulation"))]
        self.spawned.borrow_mut().push(runnable.waker());
        runnable.schedule();
        task
    }

    /// Drops all tasks that wait, whoever holds them: what is killed in a simulated world would hold itself for ever.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn abandon_tasks(&self) {
        loop {
            let spawned = self.spawned.take();
            if spawned.is_empty() {
                return;
            }
            spawned.into_iter().for_each(std::task::Waker::wake);
            let ready = self.ready.take();
            drop(ready);
        }
    }

    /// Completes when this much time has passed. Dropping it takes its timer away.
    pub fn sleep(self: &Rc<Core>, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Completes at this time. Dropping it takes its timer away.
    pub fn sleep_until(self: &Rc<Core>, deadline: Instant) -> Sleep {
        Sleep::new(self.clone(), deadline)
    }

    /// Waits for a future for this long at most, then drops it.
    ///
    /// # Errors
    /// [`Elapsed`] when the time was over first.
    pub async fn timeout<F: Future>(
        self: &Rc<Core>,
        duration: Duration,
        future: F,
    ) -> Result<F::Output, Elapsed> {
        match super::race(future, self.sleep(duration)).await {
            super::Either::First(output) => Ok(output),
            super::Either::Second(()) => Err(Elapsed),
        }
    }

    /// How many timers wait.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn timers_waiting(&self) -> usize {
        self.timers.borrow().len()
    }

    pub(super) fn timers(&self) -> &RefCell<Timers> {
        &self.timers
    }

    /// Runs the core until `main` is done; then cancels what is still in flight and drops what tasks are ready.
    ///
    /// # Errors
    /// What leaves the ring unusable.
    pub fn run<F: Future>(self: &Rc<Core>, main: F) -> Result<F::Output, Errno> {
        let _entered = self.enter();
        let mut running = Running::new(self, main);
        let output = loop {
            match running.work() {
                Turn::Ended(output) => break output,
                Turn::Waits(wait) => self.ring.turn(wait)?,
            };
        };
        running.end();
        Ok(output)
    }

    /// Makes this core the one whose turn it is on this thread, until what is returned is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered::new(self)
    }

    fn collect(&self) {
        self.mailbox.hand_over.awake();
        self.turns.set(self.turns.get() + 1);
        self.now.set(self.ring.now());
        while let Some(runnable) = self.mailbox.hand_over.pop() {
            self.ready.borrow_mut().push_back(runnable);
        }
        let due = self.timers.borrow_mut().due(self.now());
        for waker in due {
            waker.wake();
        }
    }

    fn run_ready(&self) {
        for _ in 0..TASKS_PER_TURN {
            let Some(runnable) = self.ready.borrow_mut().pop_front() else { return };
            runnable.run();
        }
    }

    fn may_wait(&self) -> Wait {
        if !self.ready.borrow().is_empty() {
            return Wait::No;
        }
        if !self.mailbox.hand_over.may_sleep() {
            return Wait::No;
        }
        match self.timers.borrow().next_deadline() {
            None => Wait::Forever,
            Some(deadline) => match deadline.checked_duration_since(self.ring.now()) {
                None | Some(Duration::ZERO) => Wait::No,
                Some(duration) => Wait::AtMost(duration),
            },
        }
    }

    /// Lets tasks that were cancelled end, and the kernel give back what it holds.
    fn wind_down(&self) {
        for _ in 0..64 {
            self.collect();
            self.run_ready();
            if self.ready.borrow().is_empty() && self.mailbox.hand_over.is_empty() {
                break;
            }
        }
        if !self.ring.close() {
            tracing::error!(left = self.ring.in_flight(), "operations did not end; their memory is given up");
        }
        for _ in 0..64 {
            self.collect();
            self.run_ready();
        }
        // What is dropped here may wake others, so nothing is borrowed meanwhile.
        for _ in 0..64 {
            let (timers, ready) = (self.timers.take(), self.ready.take());
            if timers.is_empty() && ready.is_empty() {
                break;
            }
            drop((timers, ready));
        }
        // Messages to other cores that were begun on the way.
        let _ = self.ring.turn(Wait::No);
    }
}

/// A core at work: the loop of [`Core::run`] in pieces, for whoever turns several cores in one thread. Everything on
/// it is called between [`Core::enter`] and the drop of what that returns.
pub(crate) struct Running<F: Future> {
    core: Rc<Core>,
    main: Pin<Box<F>>,
    waker: Waker,
    doorman: Task<()>,
}

/// How a core's work came to a pause.
pub(crate) enum Turn<T> {
    /// The main future is done.
    Ended(T),
    /// The next thing to do is a turn of the ring, which may wait like this. Until the next work begins, the core is
    /// asleep for the others if this is not [`Wait::No`].
    Waits(Wait),
}

impl<F: Future> Running<F> {
    pub(crate) fn new(core: &Rc<Core>, main: F) -> Running<F> {
        let main_waker = Arc::new(MainWaker { mailbox: core.mailbox.clone() });
        core.mailbox.hand_over.wake_main_here();
        Running {
            core: core.clone(),
            main: Box::pin(main),
            waker: Waker::from(main_waker),
            doorman: core.spawn(listen_to_bell(core.clone())),
        }
    }

    /// Runs what is ready.
    pub(crate) fn work(&mut self) -> Turn<F::Output> {
        self.core.collect();
        if self.core.mailbox.hand_over.take_main_woken()
            && let Poll::Ready(output) = self.main.as_mut().poll(&mut Context::from_waker(&self.waker))
        {
            return Turn::Ended(output);
        }
        self.core.run_ready();
        Turn::Waits(self.core.may_wait())
    }

    /// Cancels what is still in flight, and drops the main future and what tasks are ready.
    pub(crate) fn end(self) {
        let Running { core, main, doorman, .. } = self;
        drop((main, doorman));
        core.wind_down();
    }
}

/// Marks this core as the one whose turn it is, until dropped.
pub(crate) struct Entered;

impl Entered {
    fn new(core: &Core) -> Entered {
        let current =
            Current { identity: core.mailbox.identity, ready: core.ready.clone(), ring: core.ring.clone() };
        let former = CURRENT.replace(Some(current));
        assert!(former.is_none(), "a core runs inside of another");
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(CURRENT.take());
    }
}

struct MainWaker {
    mailbox: Arc<Mailbox>,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        let at_home = CURRENT.with_borrow(|current| {
            current.as_ref().is_some_and(|current| current.identity == self.mailbox.identity)
        });
        if at_home {
            self.mailbox.hand_over.wake_main_here();
        } else if self.mailbox.hand_over.wake_main() {
            ring_bell(&self.mailbox.bell);
        }
    }
}

async fn listen_to_bell(core: Rc<Core>) {
    let bell = core.mailbox.bell.clone();
    loop {
        let poll = Operation::Poll { descriptor: bell.clone(), readiness: Readiness::Readable };
        if core.ring.start(poll).await.0.is_err() {
            return; // the ring is going down
        }
        silence_bell(&bell);
    }
}

/// Tasks that end together. Dropping the group cancels them.
#[derive(Default)]
pub struct TaskGroup {
    tasks: Rc<RefCell<Slab<Option<Task<()>>>>>,
}

impl TaskGroup {
    /// Runs a future on `core` as one of this group.
    pub fn spawn(&self, core: &Rc<Core>, future: impl Future<Output = ()> + 'static) {
        let key = self.tasks.borrow_mut().insert(None);
        let tasks = Rc::downgrade(&self.tasks);
        let task = core.spawn(async move {
            future.await;
            if let Some(tasks) = tasks.upgrade() {
                let ended = tasks.borrow_mut().try_remove(key).flatten();
                if let Some(task) = ended {
                    task.detach();
                }
            }
        });
        self.tasks.borrow_mut()[key] = Some(task);
    }

    /// How many of the group's tasks have not ended.
    pub fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Whether all tasks have ended.
    pub fn is_empty(&self) -> bool {
        self.tasks.borrow().is_empty()
    }

    /// Cancels all tasks and waits until they are gone. Dropping the future leaves them cancelled.
    pub async fn cancel(&self) {
        let tasks: Vec<_> = self.tasks.borrow_mut().drain().collect();
        for task in tasks.into_iter().flatten() {
            task.cancel().await;
        }
    }
}

/// The processors that this process may run on.
pub fn allowed_processors() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect(),
        Err(_) => vec![0],
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ring::Uring;
    use crate::runtime::{channel, yield_now};

    pub(crate) fn run_alone<F: Future>(main: impl FnOnce(Rc<Core>) -> F) -> F::Output {
        let ring = Ring::new(Box::new(Uring::new().unwrap()));
        let core = Core::new(0, ring, Mailbox::new().unwrap());
        let future = main(core.clone());
        core.run(future).unwrap()
    }

    #[test]
    fn tasks_run_beside_each_other() {
        let order = run_alone(|core| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..3)
                .map(|number| {
                    let order = order.clone();
                    core.spawn(async move {
                        order.borrow_mut().push(number);
                        yield_now().await;
                        order.borrow_mut().push(number + 10);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            order.take()
        });
        assert_eq!(order, [0, 1, 2, 10, 11, 12]);
    }

    #[test]
    fn timers_fire_in_order_and_dropped_ones_not() {
        run_alone(|core| async move {
            let start = core.precise_now();
            assert!(core.timeout(Duration::from_millis(5), std::future::pending::<()>()).await.is_err());
            assert!(core.precise_now() - start >= Duration::from_millis(5));
            assert!(core.timeout(Duration::from_secs(3600), async {}).await.is_ok());
            assert!(core.timers.borrow().next_deadline().is_none(), "a finished wait leaves no timer");
        });
    }

    #[test]
    fn two_cores_and_a_foreign_thread_wake_each_other() {
        const ROUNDS: u64 = 2_000;
        let (to_first, mut at_first) = channel::<u64>();
        let (to_second, mut at_second) = channel::<u64>();
        let starter = to_first.clone();
        let second = std::thread::spawn(move || {
            run_alone(|_| async move {
                while let Some(number) = at_second.receive().await {
                    to_first.send(number + 1);
                }
            });
        });
        let foreign = std::thread::spawn(move || starter.send(0));
        let last = run_alone(|_| async move {
            loop {
                let number = at_first.receive().await.unwrap();
                if number >= ROUNDS {
                    break number;
                }
                to_second.send(number);
            }
        });
        assert_eq!(last, ROUNDS);
        foreign.join().unwrap();
        second.join().unwrap();
    }

    #[test]
    fn a_cancelled_group_is_gone() {
        run_alone(|core| async move {
            let group = TaskGroup::default();
            let alive = Rc::new(());
            for _ in 0..10 {
                let (inner, alive) = (core.clone(), alive.clone());
                group.spawn(&core, async move {
                    inner.sleep(Duration::from_secs(3600)).await;
                    drop(alive);
                });
            }
            group.spawn(&core, async {});
            yield_now().await;
            assert_eq!(group.len(), 10);
            group.cancel().await;
            assert_eq!(Rc::strong_count(&alive), 1);
        });
    }
}
