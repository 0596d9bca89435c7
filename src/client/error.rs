//! How a request fails, told so that a person knows who can act.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why a request did not do what was asked.
#[derive(Debug)]
pub enum Error {
    /// The location is not one that this client can ask.
    Location(String),
    /// No connection could be made.
    Unreachable {
        /// Whom it was to reach: `host:port`.
        address: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The connection ended before a byte of the answer came.
    Lost {
        /// Who it was made to: `host:port`.
        address: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The server answered that it will not.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the server said about it, or the name of the status.
        detail: String,
    },
    /// The connection ended in the middle of a message: what was received is not the whole.
    Interrupted(String),
    /// What arrived is not HTTP/1.1 as RFC 9112 has it.
    Malformed(String),
    /// Nothing moved for as long as the limits allow.
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// This host does not give the client an io_uring.
    NoRing(io::Error),
}

impl Error {
    /// The HTTP status, if the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the connection is at fault, so that another attempt may succeed.
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. } | Error::Lost { .. } | Error::Interrupted(_) | Error::TimedOut { .. }
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Location(rule) => formatter.write_str(rule),
            Error::Unreachable { address, cause } => write!(formatter, "cannot reach {address}: {cause}"),
            Error::Lost { address, cause } => {
                write!(formatter, "{address} closed the connection without an answer: {cause}")
            }
            Error::Refused { status, detail } => write!(formatter, "the server answered {status}: {detail}"),
            Error::Interrupted(what) => formatter.write_str(what),
            Error::Malformed(what) => write!(formatter, "the answer is not valid HTTP: {what}"),
            Error::TimedOut { what, after } => {
                write!(formatter, "{what} did not come within {} s", after.as_secs_f64())
            }
            Error::NoRing(cause) => write!(formatter, "this host does not allow io_uring: {cause}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Unreachable { cause, .. } | Error::Lost { cause, .. } | Error::NoRing(cause) => {
                Some(cause)
            }
            _ => None,
        }
    }
}
