//! What the database says, as errors of ours.

use std::io;

use rustix::io::Errno;

use crate::error::{Error, Kind};

pub(super) type Result<T> = crate::error::Result<T>;

/// An error of the database as one of ours: a full or failing disk, a damaged file.
pub(super) fn failure(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) => from_io(&error),
        redb::Error::PreviousIo => Error::new(Kind::Device, "the catalog failed before: it is opened again"),
        redb::Error::DatabaseAlreadyOpen => {
            Error::new(Kind::Locked, "the catalog is in use by another process")
        }
        error => Error::new(Kind::Damaged, format!("the catalog is damaged ({error}): {CURE}")),
    }
}

/// What helps against a damaged catalog.
pub(super) const CURE: &str = "tailwater serve --rebuild-catalog makes it anew from the segments";

fn from_io(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) => Error::device("the catalog", Errno::from_raw_os_error(errno)),
        None => Error::new(Kind::Damaged, format!("the catalog is damaged ({error}): {CURE}")),
    }
}
