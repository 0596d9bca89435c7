//! Several cores of one world, turned in one thread.

#[cfg(test)]
mod tests;
mod threads;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use fastrand::Rng;

use crate::ring::simulated::World;
use crate::ring::{Ring, Wait};
use crate::runtime::{Core, Mailbox, Running, Turn};
use threads::Thread;

pub use threads::Pauses;

/// The cores of one boot of a world. Dropping them kills the process that they stand for.
pub struct Cores {
    world: World,
    boot: u64,
    random: Rng,
    seats: Vec<Seat>,
    threads: Vec<Thread>,
}

struct Seat {
    core: Rc<Core>,
    running: Option<Running<Pin<Box<dyn Future<Output = ()>>>>>,
    /// When it is to be turned again, if nothing calls it before. None: never.
    next: Option<Instant>,
}

/// Why [`Cores::run`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// All main futures are done.
    Ended,
    /// So many turns are over.
    Limit,
    /// Every core waits, and nothing will ever come.
    Stalled,
    /// The process has died in the midst of a call on a file: see [`World::fail_after`].
    Failed,
}

impl Cores {
    /// Cores 0 to `count - 1`, each with a kernel and a mailbox of its own and nothing to do. Cores of this world that
    /// there were before are dead.
    pub fn new(world: &World, count: usize) -> Cores {
        world.kill();
        let seats = (0..count).map(|index| {
            let ring = Ring::new(Box::new(world.kernel(index)));
            let core = Core::new(index, ring, Mailbox::with_bell(world.bell()));
            Seat { core, running: None, next: None }
        });
        let (seats, threads) = (seats.collect(), Vec::new());
        Cores { boot: world.boot(), seats, threads, random: world.chance(), world: world.clone() }
    }

    /// How many cores there are.
    pub fn count(&self) -> usize {
        self.seats.len()
    }

    /// A core, to begin with and to look at. Its tasks run only in [`Cores::run`].
    pub fn core(&self, index: usize) -> &Rc<Core> {
        &self.seats[index].core
    }

    /// Gives a core its main future. It is begun with the next [`Cores::run`].
    ///
    /// # Panics
    /// If the core has one that is not done.
    pub fn begin<F>(&mut self, index: usize, main: impl FnOnce(Rc<Core>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let seat = &mut self.seats[index];
        assert!(seat.running.is_none(), "core {index} is at work");
        let _entered = seat.core.enter();
        seat.running = Some(Running::new(&seat.core, Box::pin(main(seat.core.clone()))));
        seat.next = Some(self.world.now());
    }

    /// Begins a thread beside the cores, which runs one future. It is turned as the cores are.
    pub fn begin_thread<F>(&mut self, main: impl FnOnce(Pauses) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.threads.push(Thread::new(&self.world, main));
    }

    /// Turns cores and threads, whoever has something to do, in an order that chance chooses, until all futures are done
    /// or `turns` turns are over. Where all wait, time jumps to what comes next.
    ///
    /// # Panics
    /// With what the code under test panics.
    pub fn run(&mut self, turns: usize) -> Pause {
        for _ in 0..turns {
            let has_ended = self.seats.iter().all(|seat| seat.running.is_none())
                && self.threads.iter().all(Thread::has_ended);
            if has_ended {
                return Pause::Ended;
            }
            let Some(index) = self.choose() else { return Pause::Stalled };
            match index.checked_sub(self.seats.len()) {
                None => self.turn(index),
                Some(thread) => self.threads[thread].turn(&self.world, &mut self.random),
            }
            if self.world.is_failing() {
                return Pause::Failed;
            }
        }
        Pause::Limit
    }

    /// A core or a thread that has something to do, after waiting for one if need be. Threads come behind the cores.
    fn choose(&mut self) -> Option<usize> {
        loop {
            let now = self.world.now();
            let is_due = |index: usize, seat: &Seat| {
                let wakes = seat.next.is_some_and(|next| next <= now);
                seat.running.is_some() && (wakes || self.world.calls(index))
            };
            let due = self.seats.iter().enumerate().filter(|(index, seat)| is_due(*index, seat));
            let mut due: Vec<usize> = due.map(|(index, _)| index).collect();
            let threads = self.threads.iter().zip(self.seats.len()..);
            let threads = threads.filter(|(thread, _)| thread.next().is_some_and(|next| next <= now));
            due.extend(threads.map(|(_, index)| index));
            if !due.is_empty() {
                return Some(due[self.random.usize(0..due.len())]);
            }
            let running = self.seats.iter().filter(|seat| seat.running.is_some());
            let next =
                running.filter_map(|seat| seat.next).chain(self.threads.iter().filter_map(Thread::next));
            if !self.world.pass(next.min()) {
                return None;
            }
        }
    }

    fn turn(&mut self, index: usize) {
        let seat = &mut self.seats[index];
        let Some(running) = &mut seat.running else { return };
        let _entered = seat.core.enter();
        let look = || seat.core.ring().turn(Wait::No).expect("the simulated kernel stays usable");
        look();
        match running.work() {
            Turn::Ended(()) => {
                if let Some(running) = seat.running.take() {
                    running.end();
                }
            }
            Turn::Waits(wait) => {
                // What was started is submitted. The core sleeps for the others from here on, and for itself if
                // nothing has ended meanwhile.
                let ended = look();
                let now = self.world.now();
                seat.next = match wait {
                    Wait::AtMost(duration) if ended == 0 => Some(now + duration),
                    Wait::Forever if ended == 0 => None,
                    _ => Some(now),
                };
            }
        }
    }

    /// Cuts the power of the world, and drops whatever ran here.
    pub fn cut_power(self) {
        self.world.cut_power();
        // The rest is done by the drop: the kernels are dead, so nothing of it reaches the device.
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if self.world.boot() == self.boot {
            self.world.kill();
        }
        self.threads.iter_mut().for_each(Thread::end);
        for seat in &mut self.seats {
            let _entered = seat.core.enter();
            if let Some(running) = seat.running.take() {
                running.end();
            }
            seat.core.abandon_tasks();
        }
    }
}
