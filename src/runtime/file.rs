//! Files of one core: opened, read, written and spliced through its ring.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::core::Core;
use super::stream::Stream;
use crate::errno::policy;
use crate::ring::{Allocation, Descriptor, OpenMode, Operation, Region};

impl Core {
    /// Runs an operation, and runs it again where the answer says nothing about it: after an interruption, and after a
    /// cancellation that nobody has asked for (kernel workers before Linux 6.14 could do that), once.
    async fn persist(&self, mut operation: Operation) -> (Result<u32, Errno>, Operation) {
        let mut repeated = false;
        loop {
            let (result, back) = self.ring().start(operation).await;
            operation = back;
            match result {
                Err(errno) if !self.ring().is_closing() && policy(errno).repeats(&mut repeated) => {}
                result => return (result, operation),
            }
        }
    }

    /// Opens a file. Dropping the future closes the file, where it is opened all the same; it may have been created.
    ///
    /// # Errors
    /// As open(2); EINVAL where the file system has no `O_DIRECT`.
    pub async fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<Descriptor>, Errno> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        match self.persist(Operation::Open { path, mode, opened: None }).await {
            (Ok(_), Operation::Open { opened: Some(file), .. }) => Ok(Arc::new(file)),
            (Ok(_), _) => unreachable!("an open without a file"),
            (Err(errno), _) => Err(errno),
        }
    }

    /// Makes room in a part of a file, which is at least as long as that reaches afterwards. Dropping the future leaves the room made, in part, or not.
    ///
    /// # Errors
    /// As fallocate(2); EOPNOTSUPP where the file system has not this way.
    pub async fn allocate(
        &self,
        file: &Arc<Descriptor>,
        position: u64,
        length: u64,
        allocation: Allocation,
    ) -> Result<(), Errno> {
        let operation = Operation::Allocate { file: file.clone(), position, length, allocation };
        self.persist(operation).await.0.map(drop)
    }

    /// Gives the room of a part of a file back, which then reads as zeroes. The file keeps its length. It is durable
    /// after the next [`Core::sync`] of the file. Dropping the future leaves the room given back, in part, or not.
    ///
    /// # Errors
    /// As fallocate(2); EOPNOTSUPP where the file system has no holes.
    pub async fn punch(&self, file: &Arc<Descriptor>, position: u64, length: u64) -> Result<(), Errno> {
        let operation = Operation::Punch { file: file.clone(), position, length };
        self.persist(operation).await.0.map(drop)
    }

    /// Makes a file's or a folder's content durable. Dropping the future says nothing about what is durable.
    ///
    /// # Errors
    /// As fsync(2). After one the content is unknown: do not try again on the same file.
    pub async fn sync(&self, file: &Arc<Descriptor>) -> Result<(), Errno> {
        self.persist(Operation::Sync { file: file.clone() }).await.0.map(drop)
    }

    /// Reads into `buffer[start..]` and gives the buffer back with the count; less than asked for only at the
    /// end of the file. Dropping the future drops the buffer, once the kernel is done with it.
    pub async fn read(
        &self,
        file: &Arc<Descriptor>,
        position: u64,
        mut buffer: Vec<u8>,
        start: usize,
    ) -> (Result<usize, Errno>, Vec<u8>) {
        let mut filled = start;
        loop {
            if filled == buffer.len() {
                return (Ok(filled - start), buffer);
            }
            let at = position + (filled - start) as u64;
            let operation = Operation::Read { file: file.clone(), position: at, buffer, start: filled };
            let (result, operation) = self.persist(operation).await;
            let Operation::Read { buffer: back, .. } = operation else { unreachable!("another operation") };
            buffer = back;
            match result {
                Ok(0) => return (Ok(filled - start), buffer),
                Ok(count) => filled += count as usize,
                Err(errno) => return (Err(errno), buffer),
            }
        }
    }

    /// Writes the whole region at a position; short writes are continued. With `durable` it is on stable storage
    /// when this returns. `place` is the file's fixed place on this core's ring. Dropping the future leaves the region
    /// written, in part, or not; its memory is not used again before the kernel is done with it.
    ///
    /// # Errors
    /// As pwritev2(2). What is in the file is then unknown.
    pub async fn write(
        &self,
        file: &Arc<Descriptor>,
        place: Option<u32>,
        position: u64,
        region: Region,
        durable: bool,
    ) -> Result<(), Errno> {
        let mut written = 0;
        while written < region.len() {
            let operation = Operation::Write {
                file: file.clone(),
                place,
                position: position + written as u64,
                region: region.slice(written..region.len()),
                durable,
            };
            match self.persist(operation).await.0 {
                Ok(0) => return Err(Errno::IO),
                // A direct write goes on at an aligned place; what overlaps is written twice, the same.
                Ok(count) if written + (count as usize) < region.len() => {
                    let next = (written + count as usize) / 4096 * 4096;
                    if next == written {
                        return Err(Errno::IO);
                    }
                    written = next;
                }
                Ok(count) => written += count as usize,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// How long a file is, in bytes.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn length(&self, file: &Descriptor) -> Result<u64, Errno> {
        self.ring().files().length(file)
    }

    /// How much room a file has, in bytes: less than its length where it has holes.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn allocated_bytes(&self, file: &Descriptor) -> Result<u64, Errno> {
        self.ring().files().allocated_bytes(file)
    }

    /// Makes a file this long. What it grows by has no room of its own yet.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn set_length(&self, file: &Descriptor, length: u64) -> Result<(), Errno> {
        self.ring().files().set_length(file, length)
    }

    /// Takes a file's lock, which is held until [`Core::unlock`] or until the descriptor is closed and the last
    /// operation on it is done.
    ///
    /// # Errors
    /// As flock(2); EWOULDBLOCK while somebody else holds it.
    pub fn lock(&self, file: &Descriptor) -> Result<(), Errno> {
        self.ring().files().lock(file)
    }

    /// Gives a file's lock back.
    ///
    /// # Errors
    /// As flock(2).
    pub fn unlock(&self, file: &Descriptor) -> Result<(), Errno> {
        self.ring().files().unlock(file)
    }

    /// Says that reads of a file are to read what they ask for, and nothing ahead of it.
    ///
    /// # Errors
    /// As posix_fadvise(2).
    pub fn read_nothing_ahead(&self, file: &Descriptor) -> Result<(), Errno> {
        self.ring().files().read_nothing_ahead(file)
    }

    /// How many bytes the file system of a folder has left for us.
    ///
    /// # Errors
    /// As statvfs(3).
    pub fn free_bytes(&self, folder: &Path) -> Result<u64, Errno> {
        self.ring().files().free_bytes(folder)
    }

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// As open(2) and getdents(2).
    pub fn list(&self, folder: &Path) -> Result<Vec<OsString>, Errno> {
        self.ring().files().list(folder)
    }
}

/// A pipe: the way of bytes from a file to a socket without a copy.
pub struct Pipe {
    reading: Arc<Descriptor>,
    writing: Arc<Descriptor>,
    capacity: usize,
    held: usize,
}

impl Pipe {
    /// A pipe of about this capacity in bytes, or what the system grants.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are too many descriptors.
    pub fn new(capacity: usize) -> Result<Pipe, Errno> {
        let (reading, writing) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = match rustix::pipe::fcntl_setpipe_size(&writing, capacity) {
            Ok(granted) => granted,
            Err(_) => rustix::pipe::fcntl_getpipe_size(&writing)?,
        };
        Ok(Pipe {
            reading: Arc::new(Descriptor::from(reading)),
            writing: Arc::new(Descriptor::from(writing)),
            capacity,
            held: 0,
        })
    }

    /// How much it takes at most, in bytes, when pages are whole.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many bytes are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Fills the empty pipe from a file and says how many bytes it took, which may be fewer than asked for.
    /// A pipe whose filling was dropped holds an unknown number of bytes and must not be used again.
    ///
    /// # Errors
    /// As splice(2).
    pub async fn fill(
        &mut self,
        core: &Rc<Core>,
        file: &Arc<Descriptor>,
        position: u64,
        length: usize,
    ) -> Result<usize, Errno> {
        assert_eq!(self.held, 0, "a pipe is emptied before it is filled");
        let length = length.min(self.capacity) as u32;
        let operation =
            Operation::Splice { file: file.clone(), position, pipe: self.writing.clone(), length };
        self.held = core.persist(operation).await.0? as usize;
        Ok(self.held)
    }

    /// Moves bytes from the pipe to the socket, as many as it takes now. None: it is full. `more`: the rest follows
    /// at once, so a small packet may wait for it.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET and their like, when the connection broke.
    pub fn try_drain(&mut self, stream: &Stream, more: bool) -> Result<Option<usize>, Errno> {
        let mut flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        if more {
            flags |= SpliceFlags::MORE;
        }
        loop {
            match rustix::pipe::splice(&*self.reading, None, stream.descriptor(), None, self.held, flags) {
                Ok(0) => return Err(Errno::PIPE),
                Ok(count) => {
                    self.held -= count;
                    return Ok(Some(count));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
