//! A file that is read from front to back, some megabytes at a time.

use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use crate::ring::Descriptor;
use crate::runtime::Core;

/// How much is read at a time, in bytes.
const READ_LENGTH: usize = 4 << 20;

/// A part of a file in memory.
pub(super) struct Window<'a> {
    core: &'a Rc<Core>,
    file: &'a Arc<Descriptor>,
    start: u64,
    buffer: Vec<u8>,
    filled: usize,
    read_bytes: u64,
}

impl<'a> Window<'a> {
    pub fn new(core: &'a Rc<Core>, file: &'a Arc<Descriptor>) -> Window<'a> {
        Window { core, file, start: 0, buffer: Vec::new(), filled: 0, read_bytes: 0 }
    }

    /// How many bytes were read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The bytes from `position`, `length` of them, or fewer at the end of the file. Dropping the future drops what is
    /// held with it.
    pub async fn at(&mut self, position: u64, length: usize) -> std::result::Result<&[u8], Errno> {
        let held = position >= self.start && position + length as u64 <= self.start + self.filled as u64;
        if !held {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(READ_LENGTH.max(length), 0);
            let (result, buffer) = self.core.read(self.file, position, buffer, 0).await;
            self.buffer = buffer;
            self.filled = result?;
            self.start = position;
            self.read_bytes += self.filled as u64;
        }
        let from = (position - self.start) as usize;
        Ok(&self.buffer[from.min(self.filled)..(from + length).min(self.filled)])
    }
}
