//! How a command ends when it did not do what was asked: one sentence, and an exit code of its own.

use std::fmt;

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

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}
