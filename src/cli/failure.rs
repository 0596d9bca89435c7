//! How a command ends when it did not do what was asked: one sentence, and an exit code of its own.

use std::fmt;

use crate::error::{Error, Kind};

/// Why a command ends without having done what was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub code: ExitStatus,
    /// One sentence: what happened, who can act, and how.
    pub message: String,
}

/// The exit codes of the program; 2 is the command line's own, for a wrong use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The configuration file, an environment variable or a combination of settings is wrong.
    Configuration = 3,
    /// A listening address is taken, or cannot be bound.
    Address = 4,
    /// The data folder cannot be written, or is not tailwater's.
    DataFolder = 5,
    /// Another process has the data folder open.
    Locked = 6,
    /// This host does not allow io_uring.
    NoRing = 7,
    /// The disk is too small or full.
    NoSpace = 8,
    /// The server answered that there is no such object.
    NotFound = 9,
    /// The server could not be reached, or the connection broke.
    Unreachable = 10,
    /// What arrived or what is stored is not what it should be.
    Damaged = 11,
}

impl Failure {
    /// A failure with its code and its sentence.
    pub fn new(code: ExitStatus, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

/// What the engine says, with the exit code of its kind. Where the host allows no ring, the sentence goes on
/// with the reason, as `tailwater doctor` would give it.
impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = exit_status(error.kind());
        match code {
            ExitStatus::NoRing => {
                let reason = super::doctor::why_no_ring(error.errno());
                Failure::new(code, format!("{error}: {}; {}", reason.cause, reason.cure))
            }
            _ => Failure::new(code, error.to_string()),
        }
    }
}

fn exit_status(kind: Kind) -> ExitStatus {
    match kind {
        Kind::InvalidArgument => ExitStatus::Configuration,
        Kind::AddressInUse => ExitStatus::Address,
        Kind::DataFolder => ExitStatus::DataFolder,
        Kind::Locked => ExitStatus::Locked,
        Kind::NoRing => ExitStatus::NoRing,
        Kind::NoSpace => ExitStatus::NoSpace,
        Kind::NotFound => ExitStatus::NotFound,
        Kind::Damaged | Kind::Interrupted => ExitStatus::Damaged,
        Kind::InvalidName
        | Kind::Exists
        | Kind::WrongState
        | Kind::Cancelled
        | Kind::DeadlineExceeded
        | Kind::ReadOnly
        | Kind::Device
        | Kind::Closed
        | Kind::Startup
        | Kind::Busy => ExitStatus::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_not_to_start_has_its_own_exit_code() {
        let table = [
            (Kind::Startup, 1),
            (Kind::InvalidArgument, 3),
            (Kind::AddressInUse, 4),
            (Kind::DataFolder, 5),
            (Kind::Locked, 6),
            (Kind::NoRing, 7),
            (Kind::NoSpace, 8),
        ];
        for (kind, code) in table {
            let failure = Failure::from(Error::new(kind, "the engine cannot start"));
            assert_eq!(failure.code as u8, code, "{kind:?}");
            assert!(failure.message.starts_with("the engine cannot start"), "{failure}");
        }
    }

    #[test]
    fn no_ring_comes_with_its_reason() {
        let error = Error::new(Kind::NoRing, "no ring can be set up");
        let message = Failure::from(error).message;
        assert!(message.len() > "no ring can be set up: ; ".len(), "{message}");
    }

    #[test]
    fn a_full_disk_is_told_from_a_failing_one() {
        let code = |errno| Failure::from(Error::device("write of segment 7", errno)).code;
        assert_eq!(code(rustix::io::Errno::NOSPC), ExitStatus::NoSpace);
        assert_eq!(code(rustix::io::Errno::IO), ExitStatus::Failed);
    }
}
