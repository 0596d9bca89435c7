//! What can go wrong, and who can do something about it.
//!
//! Every error is one sentence that says what happened; [`Error::actor`] says who can act on it: the caller
//! (a wrong name, a wrong offset), the operator (a full or failing disk, a limit), or nobody (the writer went
//! away). Front ends map [`Kind`] to their own answers (HTTP status, exit code).

use std::fmt;

use rustix::io::Errno;

use crate::errno::{Policy, policy};

/// The result of a call into tailwater.
pub type Result<T> = std::result::Result<T, Error>;

/// Who can do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Whoever made the call: another argument, another moment.
    Caller,
    /// Whoever runs the node: space, permissions, hardware, limits.
    Operator,
    /// Nobody: it happened, and the answer is to know it.
    Nobody,
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Actor::Caller => "caller",
            Actor::Operator => "operator",
            Actor::Nobody => "nobody",
        })
    }
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bucket or key that cannot be a name.
    InvalidName,
    /// An argument outside of what the call takes.
    InvalidArgument,
    /// No such object.
    NotFound,
    /// The object exists, and the caller asked for one that does not.
    Exists,
    /// The object is not in a state that allows the call, such as an append after a seal.
    WrongState,
    /// The writer is gone without sealing: what was read so far is not the whole.
    Interrupted,
    /// The call's context was cancelled.
    Cancelled,
    /// The call's deadline has passed.
    DeadlineExceeded,
    /// No room for more bytes.
    NoSpace,
    /// The store no longer accepts writes, because its device failed.
    ReadOnly,
    /// The device or file system failed an operation.
    Device,
    /// What is stored is damaged.
    Damaged,
    /// The engine is shutting down or gone.
    Closed,
    /// The engine cannot start as asked.
    Startup,
    /// An address to listen on is taken, or is not one of this host.
    AddressInUse,
    /// The data folder cannot be written, or belongs to something else.
    DataFolder,
    /// Another process has the data folder open.
    Locked,
    /// This host does not allow io_uring.
    NoRing,
    /// The node is at one of its limits; a later attempt may succeed.
    Busy,
}

/// An error: its kind, and a sentence for people.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    errno: Option<Errno>,
}

impl Error {
    /// An error of a kind, told in one sentence without a final stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), errno: None }
    }

    /// A failed operation of the device or file system. `what` names the operation and its object.
    pub fn device(what: impl fmt::Display, errno: Errno) -> Error {
        let kind = match policy(errno) {
            Policy::NoRoom => Kind::NoSpace,
            Policy::AtLimit => Kind::Busy,
            Policy::ReadOnly => Kind::ReadOnly,
            Policy::Repeat | Policy::RepeatOnce | Policy::Failed => Kind::Device,
        };
        Error { kind, message: format!("{what}: {errno}"), errno: Some(errno) }
    }

    /// The same with what can be done about it.
    pub(crate) fn advising(mut self, advice: &str) -> Error {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    /// No ring could be set up; the errno tells why.
    pub fn no_ring(errno: Errno) -> Error {
        Error { kind: Kind::NoRing, message: format!("no ring can be set up: {errno}"), errno: Some(errno) }
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The system's error number, where one is behind this.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// Who can do something about it.
    pub fn actor(&self) -> Actor {
        match self.kind {
            Kind::InvalidName
            | Kind::InvalidArgument
            | Kind::NotFound
            | Kind::Exists
            | Kind::WrongState
            | Kind::Cancelled
            | Kind::DeadlineExceeded => Actor::Caller,
            // A limit of the system is the operator's; one of our own is there for callers to come back later.
            Kind::Busy if self.errno.is_some() => Actor::Operator,
            Kind::Busy => Actor::Caller,
            Kind::NoSpace
            | Kind::ReadOnly
            | Kind::Device
            | Kind::Damaged
            | Kind::Startup
            | Kind::AddressInUse
            | Kind::DataFolder
            | Kind::Locked
            | Kind::NoRing => Actor::Operator,
            Kind::Interrupted | Kind::Closed => Actor::Nobody,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}
