//! Threads beside the cores, without a ring: futures that are polled when they were woken, and late at times.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::ring::simulated::World;

/// A thread that runs one future.
pub(super) struct Thread {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    woken: Arc<Woken>,
    /// It gets no time before this.
    rests_until: Instant,
    timer: Rc<Cell<Option<Instant>>>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How a thread waits for time to pass.
#[derive(Clone)]
pub struct Pauses {
    world: World,
    timer: Rc<Cell<Option<Instant>>>,
}

impl Pauses {
    /// Waits for this long. Without any time, others get a turn where chance has it.
    pub async fn pause(&self, duration: Duration) {
        let until = self.world.now() + duration;
        let mut is_first = true;
        poll_fn(|_| {
            if std::mem::take(&mut is_first) || self.world.now() < until {
                self.timer.set(Some(until));
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Thread {
    pub(super) fn new<F: Future<Output = ()> + 'static>(
        world: &World,
        main: impl FnOnce(Pauses) -> F,
    ) -> Thread {
        let timer = Rc::default();
        let pauses = Pauses { world: world.clone(), timer: Rc::clone(&timer) };
        Thread {
            future: Some(Box::pin(main(pauses))),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            rests_until: world.now(),
            timer,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.future.is_none()
    }

    /// When it is to be polled. None: never, as things are.
    pub(super) fn next(&self) -> Option<Instant> {
        let _running = self.future.as_ref()?;
        let woken = self.woken.0.load(Ordering::SeqCst).then_some(self.rests_until);
        let timer = self.timer.get().map(|timer| timer.max(self.rests_until));
        woken.into_iter().chain(timer).min()
    }

    pub(super) fn turn(&mut self, world: &World, random: &mut Rng) {
        let Some(future) = &mut self.future else { return };
        self.woken.0.store(false, Ordering::SeqCst);
        if self.timer.get().is_some_and(|timer| timer <= world.now()) {
            self.timer.set(None);
        }
        let waker = Waker::from(self.woken.clone());
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
        // Mostly it is quick, and at times others have all the processors.
        let rest = match random.u8(0..8) {
            0 => random.u64(0..3_000_000),
            1 | 2 => random.u64(0..200_000),
            _ => 0,
        };
        self.rests_until = world.now() + Duration::from_nanos(rest);
    }

    /// Lets go of what it holds.
    pub(super) fn end(&mut self) {
        self.future = None;
    }
}
