//! What the engine makes of each errno that an operation on its files can give: one table, asked by everything that
//! decides.
//!
//! | errno | what the engine does | the caller sees | readers see | the operator sees |
//! | --- | --- | --- | --- | --- |
//! | `EINTR`, `EAGAIN` | the same again, at once | nothing | nothing | nothing |
//! | a short read or write | goes on where it stopped (a direct write at the aligned place before that) | nothing | nothing | nothing |
//! | zero bytes written, or read before the end | as `EIO` | as `EIO` | as `EIO` | as `EIO` |
//! | `ECANCELED` | once more, since kernels before 6.14 cancel what nobody has cancelled; then as `EIO` | nothing | nothing | nothing |
//! | `ENOSPC`, `EDQUOT`, `EFBIG` | no further segment until there is room; every request looks again, and deletions have a reserve. Blocks that could not be written, and find no other segment, are given up: who waits for them is told, and the log goes on when there is room | 507, `NoSpace` | everything that is there; of an upload that found no room what is committed, and no clean end | a log line, once; `/readyz` stays 200 |
//! | `EMFILE`, `ENFILE`, `ENOMEM` | no further segment until there are descriptors or memory again; new connections wait to be accepted | 503 with `Retry-After`, `Busy` | what needs no further descriptor goes on | a log line, once |
//! | `EIO` and everything that is not named here | a block is written again from memory to a fresh segment, and the failed one is not used again before the next start; where no segment can be written the store is read-only until it is started anew. Nothing is tried again in place | nothing; 500 or 503, `Device` or `ReadOnly`, where the store is read-only | what is committed, wherever it can be read; where not, an answer that is cut short | a log line that names the segment; `tailwater_block_write_failures_total`, `tailwater_segments_retired_total`; `/readyz` 503 and `tailwater_logs_failed` when the store is read-only |
//! | `EROFS` | as `EIO`: no other segment can be written either | 503, `ReadOnly` | as with `EIO` | as with `EIO` |
//! | `EINVAL`, `EBADF`, `EFAULT` | as `EIO`: a direct write that is not aligned as this disk wants it, or a fault of ours, and neither gets better by trying again. (A file system without `O_DIRECT` is noticed at the start, and written through the page cache) | as `EIO` | as `EIO` | as `EIO` |
//!
//! Blocks are written to room that is reserved. Where a block cannot be written for lack of room or memory all the
//! same, what the failed write has left is unknown: its segment is retired as with `EIO`. The store stays writable.
//!
//! The catalog is a file of its own, which no acknowledgement waits for. Where it cannot be written, whatever the errno,
//! that is tried again every second; what is acknowledged is durable in the segments meanwhile, and no room is won back.
//! The operator sees one log line, `tailwater_catalog_failing` at 1 and, unless it is for want of room, `/readyz` 503. A
//! store that is stopped meanwhile ends, and its next start reads the segments.

use rustix::io::Errno;

/// What is to be done about an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing has happened: the same again, at once.
    Repeat,
    /// The same once more; if that ends so too, it has failed.
    RepeatOnce,
    /// There is no room. The file can be used when there is.
    NoRoom,
    /// The process or the system is at a limit. The file can be used when it is not.
    AtLimit,
    /// The file system takes no writes.
    ReadOnly,
    /// The operation has failed, and what is in the file is unknown: nothing more is written to it.
    Failed,
}

/// What is to be done about an errno of an operation on a file; the table in the header of this module, as code.
pub fn policy(errno: Errno) -> Policy {
    match errno {
        // A signal, a file that others hold locked, or a queue that was full for a moment.
        Errno::INTR | Errno::AGAIN => Policy::Repeat,
        // Kernel workers before Linux 6.14 could cancel what nobody had cancelled.
        Errno::CANCELED => Policy::RepeatOnce,
        // The disk, the quota, or how large a file may be (RLIMIT_FSIZE).
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Policy::NoRoom,
        // Of descriptors (RLIMIT_NOFILE, fs.file-max) or of memory.
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Policy::AtLimit,
        // Mounted so, or remounted so by the kernel after an error.
        Errno::ROFS => Policy::ReadOnly,
        // EIO; EINVAL where a direct write is not aligned; EBADF; and whatever a file system may think of.
        _ => Policy::Failed,
    }
}

impl Policy {
    /// Whether the file is as good as before, and only the moment was wrong.
    pub fn is_for_now(self) -> bool {
        match self {
            Policy::Repeat | Policy::NoRoom | Policy::AtLimit => true,
            Policy::RepeatOnce | Policy::ReadOnly | Policy::Failed => false,
        }
    }

    /// Whether to do the same again at once, which `repeated` says has been done once already.
    pub fn repeats(self, repeated: &mut bool) -> bool {
        match self {
            Policy::Repeat => true,
            Policy::RepeatOnce => !std::mem::replace(repeated, true),
            Policy::NoRoom | Policy::AtLimit | Policy::ReadOnly | Policy::Failed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_policy() {
        for (errno, expected) in [
            (Errno::INTR, Policy::Repeat),
            (Errno::AGAIN, Policy::Repeat),
            (Errno::WOULDBLOCK, Policy::Repeat),
            (Errno::CANCELED, Policy::RepeatOnce),
            (Errno::NOSPC, Policy::NoRoom),
            (Errno::DQUOT, Policy::NoRoom),
            (Errno::FBIG, Policy::NoRoom),
            (Errno::MFILE, Policy::AtLimit),
            (Errno::NFILE, Policy::AtLimit),
            (Errno::NOMEM, Policy::AtLimit),
            (Errno::ROFS, Policy::ReadOnly),
            (Errno::IO, Policy::Failed),
            (Errno::INVAL, Policy::Failed),
            (Errno::BADF, Policy::Failed),
            (Errno::NXIO, Policy::Failed),
        ] {
            assert_eq!(policy(errno), expected, "{errno:?}");
        }
    }

    #[test]
    fn what_is_canceled_is_repeated_once() {
        let mut repeated = false;
        assert!(policy(Errno::INTR).repeats(&mut repeated) && !repeated);
        assert!(policy(Errno::CANCELED).repeats(&mut repeated));
        assert!(!policy(Errno::CANCELED).repeats(&mut repeated));
        assert!(policy(Errno::AGAIN).repeats(&mut repeated));
        assert!(!policy(Errno::IO).repeats(&mut false));
    }

    #[test]
    fn a_file_that_failed_is_not_used_again() {
        assert!(policy(Errno::NOSPC).is_for_now() && policy(Errno::MFILE).is_for_now());
        assert!(policy(Errno::FBIG).is_for_now(), "the limit may be raised");
        assert!(!policy(Errno::IO).is_for_now() && !policy(Errno::ROFS).is_for_now());
    }
}
