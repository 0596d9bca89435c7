//! What can be asked of the kernel. An operation owns all that the kernel touches while it runs.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::arena::Region;

/// An open file, socket or pipe end. Closed when dropped; operations in flight hold it open.
#[derive(Debug)]
pub struct Descriptor {
    inside: Inside,
}

#[derive(Debug)]
enum Inside {
    System(OwnedFd),
    #[cfg(any(test, feature = "simulation"))]
    Simulated(super::simulated::Handle),
}

impl Descriptor {
    /// The system's descriptor.
    ///
    /// # Panics
    /// If it is one of a simulated kernel.
    pub fn system(&self) -> &OwnedFd {
        match &self.inside {
            Inside::System(system) => system,
            #[cfg(any(test, feature = "simulation"))]
            Inside::Simulated(handle) => panic!("the system knows nothing of {handle:?}"),
        }
    }
}

#[cfg(any(test, feature = "simulation"))]
impl Descriptor {
    pub(super) fn simulated(handle: super::simulated::Handle) -> Descriptor {
        Descriptor { inside: Inside::Simulated(handle) }
    }

    pub(super) fn as_simulated(&self) -> Option<&super::simulated::Handle> {
        match &self.inside {
            Inside::System(_) => None,
            Inside::Simulated(handle) => Some(handle),
        }
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(system: OwnedFd) -> Descriptor {
        Descriptor { inside: Inside::System(system) }
    }
}

/// What to wait for on a socket or pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Something can be read, or the peer has finished.
    Readable,
    /// Something can be written.
    Writable,
    /// The peer has closed its side, at least for sending, or the connection broke.
    PeerFinished,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading, through the page cache.
    Read,
    /// For reading and writing past the page cache (`O_DIRECT`); created where absent.
    WriteDirect,
    /// For reading and writing through the page cache; created where absent.
    WriteBuffered,
}

/// How room in a file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Room for all of it, the file's length set.
    Reserve,
    /// Room, and zeroes that the device itself writes, so that later writes change no metadata
    /// (`FALLOC_FL_WRITE_ZEROES`, Linux 6.17, where file system and device have it).
    WriteZeroes,
}

/// One thing asked of the kernel.
#[derive(Debug)]
pub enum Operation {
    /// Completes when the descriptor is ready.
    Poll {
        /// The socket or pipe.
        descriptor: Arc<Descriptor>,
        /// What to wait for.
        readiness: Readiness,
    },
    /// Takes a connection from a listener.
    Accept {
        /// The listening socket.
        listener: Arc<Descriptor>,
        /// The connection, once there is one.
        accepted: Option<Descriptor>,
    },
    /// Opens a file.
    Open {
        /// Where it is.
        path: CString,
        /// How.
        mode: OpenMode,
        /// The file, once it is open.
        opened: Option<Descriptor>,
    },
    /// Makes room in a part of a file, which is at least as long as that reaches afterwards.
    Allocate {
        /// The file.
        file: Arc<Descriptor>,
        /// Where the part begins, in bytes.
        position: u64,
        /// How long it is, in bytes.
        length: u64,
        /// In which way.
        allocation: Allocation,
    },
    /// Gives the room of a part of a file back, which then reads as zeroes. The file keeps its length.
    Punch {
        /// The file.
        file: Arc<Descriptor>,
        /// Where the part begins, in bytes.
        position: u64,
        /// How long it is, in bytes.
        length: u64,
    },
    /// Makes a file's or a folder's content durable.
    Sync {
        /// The file or folder.
        file: Arc<Descriptor>,
    },
    /// Reads into the buffer from `start`, at most to its end.
    Read {
        /// The file.
        file: Arc<Descriptor>,
        /// Where in the file.
        position: u64,
        /// The buffer.
        buffer: Vec<u8>,
        /// Where in the buffer.
        start: usize,
    },
    /// Writes the region. What it covers cannot change any more.
    Write {
        /// The file.
        file: Arc<Descriptor>,
        /// The file's fixed place on this ring, if it has one.
        place: Option<u32>,
        /// Where in the file.
        position: u64,
        /// The bytes.
        region: Region,
        /// Complete only when the bytes are on stable storage (`RWF_DSYNC`).
        durable: bool,
    },
    /// Moves bytes of a file into a pipe.
    Splice {
        /// The file.
        file: Arc<Descriptor>,
        /// Where in the file.
        position: u64,
        /// The pipe's writing end.
        pipe: Arc<Descriptor>,
        /// How many bytes at most.
        length: u32,
    },
    /// Ends the wait of the core with this address.
    Message {
        /// The other core's [`super::Kernel::address`].
        address: i32,
        /// The event descriptor that wakes it all the same where the message cannot be delivered (its ring
        /// overflows, or is on its way down).
        bell: Arc<Descriptor>,
    },
}

impl Operation {
    /// Whether success answers a new descriptor.
    pub(super) fn produces_descriptor(&self) -> bool {
        matches!(self, Operation::Accept { .. } | Operation::Open { .. })
    }

    /// Takes the descriptor that success has produced.
    pub(super) fn receive(&mut self, descriptor: Descriptor) {
        match self {
            Operation::Accept { accepted, .. } => *accepted = Some(descriptor),
            Operation::Open { opened, .. } => *opened = Some(descriptor),
            other => unreachable!("{other:?} produces no descriptor"),
        }
    }
}
