//! What goes wrong in a simulated world, and how often.

use fastrand::Rng;
use rustix::io::Errno;

/// A kind of operation, as faults and traces know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`crate::ring::Operation::Poll`]: of bells only.
    Poll,
    /// [`crate::ring::Operation::Open`].
    Open,
    /// [`crate::ring::Operation::Allocate`].
    Allocate,
    /// [`crate::ring::Operation::Punch`].
    Punch,
    /// [`crate::ring::Operation::Sync`].
    Sync,
    /// [`crate::ring::Operation::Read`].
    Read,
    /// [`crate::ring::Operation::Write`].
    Write,
    /// [`crate::ring::Operation::Message`].
    Message,
    /// [`crate::ring::Files`]: every method of it.
    Files,
}

/// Every error number that an operation on a file is known to answer.
pub const ERRNOS: [Errno; 13] = [
    Errno::INTR,
    Errno::AGAIN,
    Errno::CANCELED,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::FBIG,
    Errno::IO,
    Errno::ROFS,
    Errno::INVAL,
    Errno::NOMEM,
    Errno::MFILE,
    Errno::NFILE,
    Errno::BADF,
];

/// How often what goes wrong. Every number is a chance between 0 and 1 for each operation that it concerns.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Which kinds of operations are answered with which error.
    pub errors: Vec<(Kind, Errno, f64)>,
    /// A read gives fewer bytes than there are.
    pub short_read: f64,
    /// A write takes fewer bytes than it was given: whole sectors.
    pub short_write: f64,
    /// A read says that the file ends where it does not.
    pub zero_read: f64,
    /// A write takes nothing and says so.
    pub zero_write: f64,
    /// A read gives one bit wrong, and the next one gives it right.
    pub flipped_read: f64,
    /// A bit that is read is wrong from now on.
    pub rotten_read: f64,
    /// A read gives what is somewhere else in the file.
    pub misdirected_read: f64,
    /// An operation takes a thousand times as long.
    pub slow: f64,
    /// A sector that was being changed when the power was cut cannot be read until it is written again.
    pub unreadable_after_cut: f64,
}

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Error(Errno),
    Short,
    Zero,
    Flipped,
    Rotten,
    Misdirected,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// What happens on a machine that is in order: interruptions, answers that ask for another attempt, short reads
    /// and writes, a device that is slow at times. Nobody outside is to notice.
    pub fn disturbances() -> Faults {
        let faults = Faults { short_read: 0.05, short_write: 0.05, slow: 0.01, ..Faults::none() };
        let faults = [Kind::Read, Kind::Write].into_iter().fold(faults, |faults, kind| {
            faults.and(kind, Errno::INTR, 0.03).and(kind, Errno::AGAIN, 0.03).and(kind, Errno::CANCELED, 0.01)
        });
        faults.and(Kind::Message, Errno::OVERFLOW, 0.05)
    }

    /// Adds an error with which operations of a kind are answered.
    pub fn and(mut self, kind: Kind, errno: Errno, chance: f64) -> Faults {
        self.errors.push((kind, errno, chance));
        self
    }

    /// Adds every error of [`ERRNOS`] for operations of a kind, with this chance together.
    pub fn and_any_error(self, kind: Kind, chance: f64) -> Faults {
        let share = chance / ERRNOS.len() as f64;
        ERRNOS.into_iter().fold(self, |faults, errno| faults.and(kind, errno, share))
    }

    /// What goes wrong with an operation of this kind, if anything.
    pub(super) fn choose(&self, kind: Kind, random: &mut Rng) -> Option<Fault> {
        let errors = self.errors.iter().filter(|error| error.0 == kind);
        let mut candidates: Vec<(Fault, f64)> =
            errors.map(|error| (Fault::Error(error.1), error.2)).collect();
        match kind {
            Kind::Read => candidates.extend([
                (Fault::Short, self.short_read),
                (Fault::Zero, self.zero_read),
                (Fault::Flipped, self.flipped_read),
                (Fault::Rotten, self.rotten_read),
                (Fault::Misdirected, self.misdirected_read),
            ]),
            Kind::Write => {
                candidates.extend([(Fault::Short, self.short_write), (Fault::Zero, self.zero_write)])
            }
            _ => {}
        }
        let mut lot = random.f64();
        for (fault, chance) in candidates {
            if lot < chance {
                return Some(fault);
            }
            lot -= chance;
        }
        None
    }
}
