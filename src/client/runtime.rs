//! One tokio-uring runtime on the calling thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{Error, Result, timer};

/// Runs `main` to its end on a ring of its own, on this thread. `operations_max` is how many operations may be in
/// flight at once (two for each connection): the completion queue holds that many, because tokio-uring is not
/// made for one that overflows. What was spawned and has not ended is dropped when `main` ends.
///
/// # Errors
/// [`Error::NoRing`] if the host does not give one.
pub fn run<F: Future>(operations_max: usize, main: F) -> Result<F::Output> {
    let completions =
        u32::try_from(operations_max).unwrap_or(u32::MAX).clamp(1024, 32_768).next_power_of_two();
    let mut ring = tokio_uring::uring_builder();
    ring.setup_cqsize(completions);
    let mut builder = tokio_uring::builder();
    builder.entries((completions / 4).min(1024)).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder).map_err(Error::NoRing)?;
    runtime.block_on(async {
        let _installed = timer::install().map_err(Error::NoRing)?;
        Ok(main.await)
    })
}

/// Runs a task beside the others of this runtime.
pub fn spawn<F: Future + 'static>(task: F) -> Task<F::Output> {
    let running = tokio_uring::spawn(task);
    Task(Box::pin(async move {
        match running.await {
            Ok(output) => output,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("a task is only cancelled with its runtime, and so is who awaits it"),
            },
        }
    }))
}

/// A task that runs. Awaiting it gives its output, or passes on its panic; dropping it leaves the task running.
pub struct Task<T>(Pin<Box<dyn Future<Output = T>>>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.0.as_mut().poll(context)
    }
}
