//! What the commands that talk to a server share: locations, progress, and how failures are told.

use std::io::IsTerminal;
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::{ExitStatus, Failure};
use crate::client::{Error, Location};

/// The failure that an error of the client is.
pub(super) fn failure(error: &Error) -> Failure {
    let code = match error {
        Error::Refused { status: 404, .. } => ExitStatus::NotFound,
        Error::Refused { status: 507, .. } => ExitStatus::NoSpace,
        Error::Location(_) | Error::Refused { .. } => ExitStatus::Failed,
        Error::Unreachable { .. } | Error::Lost { .. } | Error::Interrupted(_) | Error::TimedOut { .. } => {
            ExitStatus::Unreachable
        }
        Error::Malformed(_) => ExitStatus::Damaged,
        Error::NoRing(_) => ExitStatus::NoRing,
    };
    Failure::new(code, error.to_string())
}

/// The same, with what it happened to.
pub(super) fn failure_of(what: impl std::fmt::Display, error: &Error) -> Failure {
    let Failure { code, message } = failure(error);
    Failure::new(code, format!("{what}: {message}"))
}

/// A failed operation on a local file or stream.
pub(super) fn local_failure(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ExitStatus::NoSpace,
        _ => ExitStatus::Failed,
    };
    Failure::new(code, format!("cannot {what} {}: {error}", path.display()))
}

/// Reads the location of an object.
pub(super) fn object(text: &str) -> Result<Location, Failure> {
    let location = Location::parse(text).map_err(|error| failure(&error))?;
    if location.is_object() {
        Ok(location)
    } else {
        Err(Failure::new(
            ExitStatus::Failed,
            format!(
                "{text} is not an object: it needs a bucket and a key, as in http://host:port/bucket/key"
            ),
        ))
    }
}

/// Progress on standard error, where that is a terminal. `length` is in bytes, if it is known. It is not shown when
/// the bytes themselves go to the terminal.
pub(super) fn progress(length: Option<u64>, to_standard_output: bool) -> ProgressBar {
    if to_standard_output && std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{bytes:>12} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta} left",
        None => "{spinner} {bytes:>12} {bytes_per_sec}, {elapsed}",
    };
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    // A template that indicatif cannot read leaves it with its own.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Reads a number of bytes: `65536`, `64KiB`, `1MiB`, `2GiB`.
pub(super) fn read_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("the unit is one of KiB, MiB, GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size is a number, such as 64KiB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in
            [("0", 0), ("65536", 65_536), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(read_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1.5MiB", "-1", "1 parsec", "99999999999GiB"] {
            assert!(read_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn failures_have_their_exit_codes() {
        let refused = |status| failure(&Error::Refused { status, detail: "x".to_owned() }).code;
        assert_eq!(refused(404), ExitStatus::NotFound);
        assert_eq!(refused(507), ExitStatus::NoSpace);
        assert_eq!(refused(412), ExitStatus::Failed);
        assert_eq!(failure(&Error::Interrupted("x".to_owned())).code, ExitStatus::Unreachable);
        assert_eq!(failure(&Error::Malformed("x".to_owned())).code, ExitStatus::Damaged);
    }

    #[test]
    fn an_object_has_a_bucket_and_a_key() {
        assert!(object("http://h/b/k").is_ok());
        for text in ["http://h", "http://h/b", "http://h/b/", "b/k"] {
            assert!(object(text).is_err(), "{text}");
        }
    }
}
