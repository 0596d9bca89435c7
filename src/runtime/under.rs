//! Waits of a core under a context: they end with what they wait for, with the context's cancellation, or at its
//! deadline, by the core's own timers.
//!
//! When a wait is over or was dropped, neither the context nor the core knows of it any more. Calls of other
//! runtimes wait here too: their context travels with the call, and the core that carries it out ends it.

use std::future::{Future, pending};
use std::rc::Rc;

use super::core::Core;
use super::race::{Either, race};
use crate::context::Context;
use crate::error::{Error, Result};

impl Core {
    /// Waits for a future for as long as the context lasts, then drops it. Where the context has ended before, the
    /// future is not begun; where both come at once, the future counts. Dropping this drops the future, and leaves
    /// nothing else behind.
    ///
    /// # Errors
    /// [`Kind::Cancelled`](crate::Kind::Cancelled) and [`Kind::DeadlineExceeded`](crate::Kind::DeadlineExceeded),
    /// from the context.
    pub async fn under<F: Future>(self: &Rc<Core>, context: &Context, future: F) -> Result<F::Output> {
        self.check(context)?;
        if !context.can_end() {
            return Ok(future.await);
        }
        match race(future, self.ended(context)).await {
            Either::First(output) => Ok(output),
            Either::Second(error) => Err(error),
        }
    }

    /// Nothing, as long as the context has not ended by this core's clock.
    ///
    /// # Errors
    /// As [`Core::under`].
    pub fn check(&self, context: &Context) -> Result<()> {
        context.error_at(self.now()).map_or(Ok(()), Err)
    }

    /// Completes when the context has ended, with the error that tells how; never, where it does not end. Dropping
    /// the future takes its timer away.
    pub async fn ended(self: &Rc<Core>, context: &Context) -> Error {
        loop {
            let deadline = async {
                match context.deadline() {
                    Some(deadline) => self.sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            if let Either::First(error) = race(context.cancelled(), deadline).await {
                return error;
            }
            if let Some(error) = context.error_at(self.now()) {
                return error;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::super::core::tests::run_alone;
    use super::super::yield_now;
    use super::*;
    use crate::error::Kind;

    /// Says when it is dropped.
    struct Dropped(Arc<AtomicBool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_deadline_ends_a_wait_and_its_timer_is_gone() {
        run_alone(|core| async move {
            let (parent, _canceller) = Context::background().with_cancel();
            let start = core.precise_now();
            let context = parent.with_deadline(start + Duration::from_millis(5));
            let is_dropped = Arc::new(AtomicBool::new(false));
            let held = Dropped(is_dropped.clone());
            let waiting = core.under(&context, async move {
                let _held = held;
                pending::<()>().await
            });
            assert_eq!(waiting.await.unwrap_err().kind(), Kind::DeadlineExceeded);
            assert!(core.precise_now() - start >= Duration::from_millis(5));
            assert!(is_dropped.load(Ordering::SeqCst), "what was waited for is dropped");
            assert_eq!(core.timers_waiting(), 0);
            assert!(parent.check().is_ok());
        });
    }

    #[test]
    fn a_cancellation_from_another_thread_ends_a_wait_and_its_timer_is_gone() {
        run_alone(|core| async move {
            let (context, canceller) = Context::background().with_cancel();
            let context = context.with_timeout(Duration::from_secs(3600));
            let (begun, waits) = mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                waits.recv().unwrap();
                canceller.cancel(Error::new(Kind::Closed, "the test says so"));
            });
            let waiting = core.under(&context, async {
                begun.send(()).unwrap();
                pending::<()>().await
            });
            let error = waiting.await.unwrap_err();
            assert_eq!(error.kind(), Kind::Cancelled);
            assert_eq!(error.to_string(), "cancelled: the test says so");
            assert_eq!(core.timers_waiting(), 0);
            thread.join().unwrap();
        });
    }

    #[test]
    fn what_is_done_counts_and_what_comes_too_late_is_not_begun() {
        run_alone(|core| async move {
            let (context, canceller) = Context::background().with_cancel();
            let outcome = core.under(&context, async {
                canceller.cancel(Error::new(Kind::Closed, "meanwhile"));
                7
            });
            assert_eq!(outcome.await.unwrap(), 7);
            let outcome = core.under(&context, async { unreachable!("the context has ended") });
            assert_eq!(outcome.await.unwrap_err().kind(), Kind::Cancelled);
            let past = Context::background().with_deadline(core.now());
            assert_eq!(core.check(&past).unwrap_err().kind(), Kind::DeadlineExceeded);
        });
    }

    #[test]
    fn a_million_short_waits_leave_no_timer_and_no_waiter() {
        run_alone(|core| async move {
            let (connection, _canceller) = Context::background().with_cancel();
            for number in 0..1_000_000 {
                let request = connection.with_timeout(Duration::from_secs(3600));
                match number % 2 {
                    // The wait is dropped, with its timer set.
                    0 => drop(race(core.under(&request, pending::<()>()), async {}).await),
                    _ => core.under(&request, std::future::ready(())).await.unwrap(),
                }
                if number % 1000 == 0 {
                    yield_now().await;
                    assert_eq!(core.timers_waiting(), 0);
                }
            }
        });
    }
}
