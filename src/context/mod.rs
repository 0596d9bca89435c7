//! The cancellation, deadline and request-scoped values that a piece of work runs under.
//!
//! A [`Context`] is the first parameter of every call that may wait. It is cheap to clone, can be used from any
//! thread, and is never kept in anything that outlives the work. Contexts derive from one another:
//!
//! - Cancelling a context ends it and all that derive from it; neither its parent nor its siblings.
//! - Of all deadlines from the root on, the earliest counts.
//! - A context ends once, and the reason that is noticed first stays: [`Kind::Cancelled`] or
//!   [`Kind::DeadlineExceeded`], with the cause in the message.
//! - A context that was let go of or has ended is referenced by its parent no more.
//!
//! A context has no thread and no timer of its own. It is cancelled by a [`Canceller`], and a deadline counts when
//! somebody looks: [`Context::check`] by the system's clock, and every wait on a core by the core's timers
//! ([`Core::under`](crate::runtime::Core::under)), which take their timer away when the wait is over. The calls of
//! [`Store`](crate::Store) wait on a core whatever runtime they are made from, so deadlines hold there too.
//!
//! The tree below is ours: `tokio-util`'s `CancellationToken`, the crate of choice for the flag alone,
//! knows neither causes nor deadlines; that the first cause stays, for all that derive too, needs its lock.

mod node;
#[cfg(test)]
mod tests;

use std::any::{Any, TypeId};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::node::Cancelled;
use self::node::{Deadline, Ended, Node};
use crate::error::{Error, Kind, Result};

/// What a piece of work runs under. Clones are the same context.
#[derive(Clone, Default)]
pub struct Context {
    /// None: it never ends.
    node: Option<Arc<Node>>,
    /// One of each type.
    values: Option<Arc<[Value]>>,
}

type Value = (TypeId, Arc<dyn Any + Send + Sync>);

/// The number of a request, unique in a run of the process; on every log line of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// Whom a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(pub SocketAddr);

/// On whose behalf a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal(pub Arc<str>);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:x}", self.0)
    }
}

impl Context {
    /// The context at the root: never cancelled, no deadline, no values.
    pub fn background() -> Context {
        Context::default()
    }

    /// A context that can be cancelled, and what cancels it: on [`Canceller::cancel`], and when the canceller is
    /// dropped, because then whoever wanted the work is gone.
    pub fn with_cancel(&self) -> (Context, Canceller) {
        let node = Node::derive(self.node.as_ref(), None);
        (Context { node: Some(node.clone()), values: self.values.clone() }, Canceller { node: Some(node) })
    }

    /// A context that ends at this time, or when this one does.
    pub fn with_deadline(&self, deadline: Instant) -> Context {
        self.with(Deadline { at: deadline, limit: None })
    }

    /// A context that ends when this much time has passed by the system's clock, or when this one does.
    pub fn with_timeout(&self, limit: Duration) -> Context {
        // What lies beyond the range of the clock is never.
        match Instant::now().checked_add(limit) {
            Some(at) => self.with(Deadline { at, limit: Some(limit) }),
            None => self.clone(),
        }
    }

    fn with(&self, deadline: Deadline) -> Context {
        if self.deadline().is_some_and(|earlier| earlier <= deadline.at) {
            return self.clone();
        }
        Context { node: Some(Node::derive(self.node.as_ref(), Some(deadline))), values: self.values.clone() }
    }

    /// A context that carries a value, in place of the one of the same type that this one may carry. For what
    /// belongs to the request, such as its number, peer and principal; never for arguments.
    pub fn with_value<T: Any + Send + Sync>(&self, value: T) -> Context {
        let kind = TypeId::of::<T>();
        let kept = self.values.iter().flat_map(|values| values.iter()).filter(|(other, _)| *other != kind);
        let value: Value = (kind, Arc::new(value));
        let values = kept.cloned().chain([value]).collect();
        Context { node: self.node.clone(), values: Some(values) }
    }

    /// The same values, and no end: for work that goes on although who asked for it does not wait any more.
    pub fn detached(&self) -> Context {
        Context { node: None, values: self.values.clone() }
    }

    /// The value of this type.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<&T> {
        let kind = TypeId::of::<T>();
        self.values.as_ref()?.iter().find(|(other, _)| *other == kind)?.1.downcast_ref()
    }

    /// The request that this work belongs to.
    pub fn request(&self) -> Option<RequestId> {
        self.value().copied()
    }

    /// The span for the log lines of this work, with the number of its request. For where it begins, and for where
    /// a part of it is done by another task, thread or core: a span is not taken along by itself.
    pub fn span(&self) -> tracing::Span {
        match self.request() {
            Some(id) => tracing::info_span!("request", %id),
            None => tracing::Span::none(),
        }
    }

    /// When it ends at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.node.as_ref()?.deadline().map(|deadline| deadline.at)
    }

    /// Whether it can end at all.
    pub fn can_end(&self) -> bool {
        self.node.is_some()
    }

    /// Nothing, as long as it has not ended; by the system's clock.
    ///
    /// # Errors
    /// [`Kind::Cancelled`]; [`Kind::DeadlineExceeded`].
    pub fn check(&self) -> Result<()> {
        self.error().map_or(Ok(()), Err)
    }

    /// How it has ended, if so; by the system's clock.
    pub fn error(&self) -> Option<Error> {
        let node = self.node.as_ref()?;
        // Without a deadline there is no need to know the time.
        match node.deadline() {
            Some(_) => self.error_at(Instant::now()),
            None => node.ended().map(Ended::error),
        }
    }

    /// How it has ended, if so; by a clock of the caller's. A deadline that has passed by it counts from now on.
    pub fn error_at(&self, now: Instant) -> Option<Error> {
        let node = self.node.as_ref()?;
        if node.ended().is_none()
            && let Some(deadline) = node.deadline()
            && deadline.at <= now
        {
            node.end(&Ended::by_deadline(deadline));
        }
        node.ended().map(Ended::error)
    }

    /// Why it has ended, if so: what its [`Canceller`], or that of a context above it, was given, or the deadline.
    pub fn cause(&self) -> Option<Error> {
        self.error()?;
        Some(self.node.as_ref()?.ended()?.cause().clone())
    }

    /// Completes when the context is cancelled, with the error that tells why. A deadline that passes counts when it
    /// is noticed, and nothing here watches the time: see [`Core::under`](crate::runtime::Core::under). Dropping the
    /// future leaves nothing behind.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled::new(self.node.clone())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Context")
            .field("request", &self.request())
            .field("deadline", &self.deadline())
            .field("ended", &self.node.as_ref().and_then(|node| node.ended()).map(Ended::error))
            .finish_non_exhaustive()
    }
}

/// Ends a context and all that derive from it, from any thread. Dropping it does so too; [`Canceller::let_go`] does
/// not.
#[must_use = "dropping it cancels the context"]
pub struct Canceller {
    /// None once it was let go of.
    node: Option<Arc<Node>>,
}

impl Canceller {
    /// Ends the context for this reason, and all that derive from it, unless they have ended already. When this
    /// returns, and no other cancellation of the same context is under way, all of them have ended, and who waits
    /// for that is woken.
    pub fn cancel(&self, cause: Error) {
        if let Some(node) = &self.node {
            node.end(&Ended::by_canceller(cause));
        }
    }

    /// Goes without cancelling: the context ends when one above it does, or at its deadline.
    pub fn let_go(mut self) {
        self.node = None;
    }
}

impl Drop for Canceller {
    fn drop(&mut self) {
        if let Some(node) = self.node.take()
            && node.ended().is_none()
        {
            let cause = Error::new(Kind::Cancelled, "who wanted this work is gone");
            node.end(&Ended::by_canceller(cause));
        }
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Canceller").finish_non_exhaustive()
    }
}
