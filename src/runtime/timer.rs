//! Timers of one core, in user space: the loop waits until the next one is due.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::core::Core;

/// A time limit has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// The timers that wait, by deadline, then by age.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    started: u64,
}

impl Timers {
    /// Takes out who is due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        due
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(&(deadline, _), _)| deadline)
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Completes at a time. Dropping it takes its timer away.
pub struct Sleep {
    core: Rc<Core>,
    deadline: Instant,
    timer: Option<u64>,
}

impl Sleep {
    pub(super) fn new(core: Rc<Core>, deadline: Instant) -> Sleep {
        Sleep { core, deadline, timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.deadline {
            return Poll::Ready(());
        }
        let core = self.core.clone();
        let mut timers = core.timers().borrow_mut();
        let number = *self.timer.get_or_insert_with(|| {
            timers.started += 1;
            timers.started
        });
        let former = timers.waiting.insert((self.deadline, number), context.waker().clone());
        drop(timers);
        drop(former);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            let former = self.core.timers().borrow_mut().waiting.remove(&(self.deadline, number));
            drop(former);
        }
    }
}
