//! Timers for one runtime: a timerfd that the ring reads, so that they are as exact as the kernel's.
//!
//! A load tester that counts latency from the intended send time needs better than the millisecond wheel of an
//! ordinary runtime, and tokio-uring has no timers of its own.
//!
//! A sleeping task is one entry in an ordered map. The timerfd is set again only for a deadline that is earlier
//! than what it is set to; a timer that was dropped leaves it as it is, and costs at most one wake-up in vain.
//! Only wakers are kept in the thread's state, never an operation: those must not outlive the ring.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio_uring::fs::File;

/// Waits for `duration`. Dropping it forgets the timer.
pub async fn sleep(duration: Duration) {
    sleep_until(Instant::now() + duration).await;
}

/// Waits until `deadline`; at once if it has passed. Dropping it forgets the timer.
pub async fn sleep_until(deadline: Instant) {
    Sleep { deadline, key: None }.await;
}

/// Waits for `future`, for at most `duration`; `None` if that has passed. What `future` had in flight is dropped
/// then, so it must be one that may be dropped.
pub async fn within<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut sleep = Sleep { deadline: Instant::now() + duration, key: None };
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Pin::new(&mut sleep).poll(context).map(|()| None),
    })
    .await
}

thread_local! {
    static TIMERS: RefCell<Option<Timers>> = const { RefCell::new(None) };
}

struct Timers {
    descriptor: OwnedFd,
    /// What the descriptor is set to fire at.
    armed: Option<Instant>,
    /// The tasks that sleep, in the order in which they wake.
    waiting: BTreeMap<Key, Waker>,
    next_number: u64,
}

/// A deadline, and a number that tells equal deadlines apart.
type Key = (Instant, u64);

impl Timers {
    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let Some((&(deadline, _), _)) = self.waiting.first_key_value() else { return Ok(()) };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // A value of zero would disarm it.
        let left = deadline.saturating_duration_since(now).max(Duration::from_nanos(1));
        let value = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &value)?;
        self.armed = Some(deadline);
        Ok(())
    }

    fn wake_expired(&mut self, now: Instant) -> io::Result<()> {
        self.armed = None;
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            entry.remove().wake();
        }
        self.arm(now)
    }
}

/// Takes the timers of this thread down when the runtime ends.
pub(super) struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        TIMERS.with(|timers| timers.borrow_mut().take());
    }
}

/// Sets up the timers of this thread's runtime, from within it.
pub(super) fn install() -> io::Result<Installed> {
    let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let file = File::from_std(std::fs::File::from(descriptor.try_clone()?));
    TIMERS.with(|timers| {
        *timers.borrow_mut() =
            Some(Timers { descriptor, armed: None, waiting: BTreeMap::new(), next_number: 0 });
    });
    tokio_uring::spawn(fire(file));
    Ok(Installed)
}

/// Wakes what is due each time the timerfd fires, until the runtime ends.
async fn fire(file: File) {
    let mut expirations = Vec::with_capacity(8);
    loop {
        let (result, buffer) = file.read_at(expirations, 0).await;
        expirations = buffer;
        // Kernels before 6.14 cancel an operation now and then without being asked to.
        let woken = match result {
            Err(error) if error.raw_os_error() != Some(Errno::CANCELED.raw_os_error()) => Err(error),
            _ => TIMERS.with(|timers| match timers.borrow_mut().as_mut() {
                Some(timers) => timers.wake_expired(Instant::now()),
                None => Ok(()),
            }),
        };
        assert!(woken.is_ok(), "a timerfd cannot fail to be read and set: {woken:?}");
    }
}

struct Sleep {
    deadline: Instant,
    key: Option<Key>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if now >= self.deadline {
            return Poll::Ready(());
        }
        TIMERS.with(|timers| {
            let mut timers = timers.borrow_mut();
            let timers = timers.as_mut().expect("a timer is used inside of client::run only");
            let deadline = self.deadline;
            let key = *self.key.get_or_insert_with(|| {
                timers.next_number += 1;
                (deadline, timers.next_number)
            });
            timers.waiting.insert(key, context.waker().clone());
            timers.arm(now).expect("a timerfd can be set to any time to come");
        });
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            TIMERS.with(|timers| {
                if let Some(timers) = timers.borrow_mut().as_mut() {
                    timers.waiting.remove(&key);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::client::{run, spawn};

    #[test]
    fn sleepers_wake_in_the_order_of_their_deadlines() {
        let order = run(16, async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [30_u64, 10, 20, 10]
                .into_iter()
                .map(|milliseconds| {
                    let order = Rc::clone(&order);
                    spawn(async move {
                        sleep(Duration::from_millis(milliseconds)).await;
                        order.borrow_mut().push(milliseconds);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            order.take()
        })
        .unwrap();
        assert_eq!(order, [10, 10, 20, 30]);
    }

    #[test]
    fn none_wakes_before_its_deadline() {
        run(16, async {
            for microseconds in [0, 1, 500, 3_000] {
                let deadline = Instant::now() + Duration::from_micros(microseconds);
                sleep_until(deadline).await;
                assert!(Instant::now() >= deadline);
            }
        })
        .unwrap();
    }

    #[test]
    fn a_dropped_timer_is_forgotten_and_a_later_one_still_fires() {
        run(16, async {
            assert!(within(Duration::from_millis(5), sleep(Duration::from_secs(60))).await.is_none());
            assert!(within(Duration::from_secs(60), sleep(Duration::from_millis(5))).await.is_some());
            let waiting = TIMERS.with(|timers| timers.borrow().as_ref().map(|timers| timers.waiting.len()));
            assert_eq!(waiting, Some(0));
            sleep(Duration::from_millis(5)).await;
        })
        .unwrap();
    }

    #[test]
    fn a_second_runtime_on_the_thread_has_timers_of_its_own() {
        for _ in 0..2 {
            run(16, async {
                // Still asleep when the runtime ends.
                spawn(sleep(Duration::from_secs(60)));
                sleep(Duration::from_millis(2)).await;
            })
            .unwrap();
        }
    }
}
