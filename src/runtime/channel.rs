//! Messages from any thread to one task.
//!
//! Unbounded and without a lock on the way in: who sends must itself be bounded (a message per interested core
//! and commit; a call that waits for its answer). The receiver is woken once, however many messages come before
//! it looks. `tests/models.rs` tries every interleaving of this.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, PoisonError, SegQueue, fence};

struct Shared<T> {
    queue: SegQueue<T>,
    /// The receiver has found the queue empty and left its waker.
    waiting: AtomicBool,
    waker: Mutex<Option<Waker>>,
    senders: AtomicUsize,
    received: AtomicBool,
}

/// Sends to the one receiver. Clones send to the same.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Receives what the senders send.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// A channel without bound.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: SegQueue::new(),
        waiting: AtomicBool::new(false),
        waker: Mutex::new(None),
        senders: AtomicUsize::new(1),
        received: AtomicBool::new(true),
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

impl<T> Shared<T> {
    fn clear(&self) {
        while self.queue.pop().is_some() {}
    }

    fn wake(&self) {
        if self.waiting.swap(false, Ordering::SeqCst) {
            let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Sender<T> {
    /// Sends a message. It is dropped where the receiver is gone.
    pub fn send(&self, message: T) {
        if self.shared.received.load(Ordering::SeqCst) {
            self.shared.queue.push(message);
            fence(Ordering::SeqCst);
            // The receiver may have gone meanwhile: either it has seen the message, or this sees that it is gone. A
            // message that stayed in the queue would keep whoever waits for its answer waiting.
            if !self.shared.received.load(Ordering::SeqCst) {
                self.shared.clear();
            }
            self.shared.wake();
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.senders.fetch_add(1, Ordering::SeqCst);
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next message, if one is there.
    pub fn try_receive(&mut self) -> Option<T> {
        self.shared.queue.pop()
    }

    /// The next message; None when all senders are gone. Dropping the future loses no message, and no sender knows of
    /// the wait any more.
    pub async fn receive(&mut self) -> Option<T> {
        let mut wait = Wait { shared: &self.shared, is_registered: false };
        poll_fn(|context| {
            if let Some(message) = self.shared.queue.pop() {
                return Poll::Ready(Some(message));
            }
            let waker = context.waker().clone();
            let former = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).replace(waker);
            drop(former);
            wait.is_registered = true;
            self.shared.waiting.store(true, Ordering::SeqCst);
            // Once more: a message may have come before `waiting` could be seen. The senders first: what the last
            // one has sent before it went is in the queue once it is seen to be gone.
            let is_last_look = self.shared.senders.load(Ordering::SeqCst) == 0;
            match self.shared.queue.pop() {
                Some(message) => Poll::Ready(Some(message)),
                None if is_last_look => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// A wait for a message: leaves no waker behind. Senders may be there for long, and the waker keeps the task that has
/// waited.
struct Wait<'a, T> {
    shared: &'a Shared<T>,
    is_registered: bool,
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        // Whoever has taken it out of `waiting` takes the waker too.
        if self.is_registered && self.shared.waiting.swap(false, Ordering::SeqCst) {
            let waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(waker);
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.received.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.shared.clear();
    }
}
