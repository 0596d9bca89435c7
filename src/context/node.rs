//! The tree of contexts that can end.
//!
//! A node holds its parent; a parent knows its children weakly, each at a place that the child gives back when it
//! ends or is dropped. Ending a node walks down what derives from it. At any moment at most one node is locked, and
//! no waker is called or dropped meanwhile: either may end up here again. `tests/models.rs` tries every interleaving of
//! small cases.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{self, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::error::{Error, Kind};
use crate::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, PoisonError, Weak};

/// A time to end at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub at: Instant,
    /// The limit that was set, where it was one.
    pub limit: Option<Duration>,
}

/// How a context has ended.
pub(super) struct Ended {
    kind: Kind,
    cause: Error,
}

impl Ended {
    pub(super) fn by_canceller(cause: Error) -> Arc<Ended> {
        Arc::new(Ended { kind: Kind::Cancelled, cause })
    }

    pub(super) fn by_deadline(deadline: Deadline) -> Arc<Ended> {
        let message = match deadline.limit {
            Some(limit) => format!("the time limit of {limit:?} has passed"),
            None => "the deadline has passed".to_owned(),
        };
        let kind = Kind::DeadlineExceeded;
        Arc::new(Ended { kind, cause: Error::new(kind, message) })
    }

    pub(super) fn cause(&self) -> &Error {
        &self.cause
    }

    /// What a call that was under way answers.
    pub(super) fn error(self: &Arc<Ended>) -> Error {
        match self.kind {
            Kind::Cancelled => Error::new(Kind::Cancelled, format!("cancelled: {}", self.cause)),
            _ => self.cause.clone(),
        }
    }
}

/// A context that can end.
pub(super) struct Node {
    parent: Option<Arc<Node>>,
    /// Where the parent has it, as long as `is_known` says that it has.
    place: usize,
    is_known: AtomicBool,
    /// The earliest one from the root on.
    deadline: Option<Deadline>,
    /// Set once, with the lock held.
    ended: OnceLock<Arc<Ended>>,
    below: Mutex<Below>,
}

/// Who is to learn of the end. Empty once that has come.
#[derive(Default)]
struct Below {
    derived: Slab<Weak<Node>>,
    waiting: Slab<Waker>,
}

impl Node {
    /// A node below `parent`, where there is one; ended already if that has. `deadline` is earlier than the parent's.
    pub(super) fn derive(parent: Option<&Arc<Node>>, deadline: Option<Deadline>) -> Arc<Node> {
        let node = |place, is_known, ended| {
            Arc::new(Node {
                parent: parent.cloned(),
                place,
                is_known: AtomicBool::new(is_known),
                deadline: deadline.or_else(|| parent?.deadline),
                ended,
                below: Mutex::default(),
            })
        };
        let Some(above) = parent else { return node(0, false, OnceLock::new()) };
        let mut below = above.lock();
        if let Some(ended) = above.ended.get() {
            return node(0, false, OnceLock::from(ended.clone()));
        }
        let entry = below.derived.vacant_entry();
        let node = node(entry.key(), true, OnceLock::new());
        entry.insert(Arc::downgrade(&node));
        node
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    pub(super) fn ended(&self) -> Option<&Arc<Ended>> {
        self.ended.get()
    }

    /// Ends this node and all below it that have not ended yet.
    pub(super) fn end(self: &Arc<Node>, ended: &Arc<Ended>) {
        let mut to_end = vec![self.clone()];
        while let Some(node) = to_end.pop() {
            let mut below = node.lock();
            if node.ended.set(ended.clone()).is_err() {
                continue;
            }
            let Below { derived, waiting } = std::mem::take(&mut *below);
            drop(below);
            to_end.extend(derived.into_iter().filter_map(|(_, derived)| derived.upgrade()));
            for (_, waker) in waiting {
                waker.wake();
            }
        }
        self.leave_parent();
    }

    fn leave_parent(&self) {
        if let Some(parent) = &self.parent
            && self.is_known.swap(false, Ordering::SeqCst)
        {
            // A parent that has ended knows nobody any more, and nobody new comes.
            let former = parent.lock().derived.try_remove(self.place);
            drop(former);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Below> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nodes it knows below it, how many wait for its end, and how many places it has for both.
    #[cfg(test)]
    pub(super) fn census(&self) -> (usize, usize, usize) {
        let below = self.lock();
        let places = below.derived.capacity() + below.waiting.capacity();
        (below.derived.len(), below.waiting.len(), places)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.leave_parent();
        // One after the other: a long line of ancestors would be a deep recursion.
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            node.leave_parent();
            parent = node.parent.take();
        }
    }
}

/// Completes when a context is cancelled. Dropping it leaves nothing behind.
pub struct Cancelled {
    node: Option<Arc<Node>>,
    /// Where the waker is.
    place: Option<usize>,
}

impl Cancelled {
    pub(super) fn new(node: Option<Arc<Node>>) -> Cancelled {
        Cancelled { node, place: None }
    }
}

impl Future for Cancelled {
    type Output = Error;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Error> {
        let this = &mut *self;
        let Some(node) = &this.node else { return Poll::Pending };
        if let Some(ended) = node.ended.get() {
            return Poll::Ready(ended.error());
        }
        let waker = context.waker().clone();
        let mut below = node.lock();
        // Once more: it may have ended before this waker could be seen.
        if let Some(ended) = node.ended.get() {
            return Poll::Ready(ended.error());
        }
        let former = match this.place {
            Some(place) => Some(std::mem::replace(&mut below.waiting[place], waker)),
            None => {
                this.place = Some(below.waiting.insert(waker));
                None
            }
        };
        drop(below);
        drop(former);
        Poll::Pending
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if let (Some(node), Some(place)) = (&self.node, self.place) {
            let former = node.lock().waiting.try_remove(place);
            drop(former);
        }
    }
}
