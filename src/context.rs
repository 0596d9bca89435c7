//! The cancellation, deadline and request-scoped values that a piece of work runs under.
//!
//! A [`Context`] is the first parameter of every call that may wait. It is cheap to clone, and is never kept
//! in anything that outlives the work. Today it carries the request's number, for the log lines of any depth.

use std::fmt;

/// What a piece of work runs under.
#[derive(Clone, Debug, Default)]
pub struct Context {
    request: Option<RequestId>,
}

/// The number of a request, unique in a run of the process; on every log line of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

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

    /// A context for one request, derived from this one.
    pub fn with_request(&self, request: RequestId) -> Context {
        Context { request: Some(request) }
    }

    /// The request that this work belongs to.
    pub fn request(&self) -> Option<RequestId> {
        self.request
    }
}
