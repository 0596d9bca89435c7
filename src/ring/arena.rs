//! The memory that blocks are built in and written from.
//!
//! An [`Arena`] is one mapping, cut into pieces of equal size. A piece is filled from front to back by its one
//! [`Fill`]; what was committed never changes again and can be shared, on any core, as a [`Region`]. When the
//! fill and the last region of a piece are gone, the piece is free again.
//!
//! Why this is sound: bytes `[0, committed)` of a piece are only ever read, through regions; bytes
//! `[committed, end)` are only ever touched through the one `Fill`, by `&mut self`. `committed` only grows while
//! the piece is taken, and a region is only made by `commit`. A piece goes back to the free list when its last
//! `Arc` is dropped, so neither a fill nor a region of its earlier life can exist when it is taken again.

#![allow(unsafe_code)]

use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Memory of fixed size, cut into pieces. Clones share it.
#[derive(Clone)]
pub struct Arena {
    memory: Arc<Memory>,
}

struct Memory {
    base: NonNull<u8>,
    length: usize,
    piece_length: usize,
    identity: u64,
    free: Mutex<Vec<u32>>,
}

// SAFETY: `base` points to a mapping that this struct alone owns and that stays in place until it is dropped;
// who may touch which bytes of it is settled by `Fill` and `Region` (module header), not by the thread.
unsafe impl Send for Memory {}
// SAFETY: the only interior mutability besides the bytes themselves (see above) is behind the mutex.
unsafe impl Sync for Memory {}

impl Arena {
    /// An arena of `pieces` pieces of `piece_length` bytes, zeroed and resident.
    ///
    /// # Errors
    /// What the system says, when there is not enough memory.
    ///
    /// # Panics
    /// If a piece is not a multiple of 4096 bytes, or there are none.
    pub fn new(pieces: usize, piece_length: usize) -> Result<Arena, Errno> {
        static IDENTITY: AtomicU64 = AtomicU64::new(1);
        assert!(pieces > 0 && piece_length > 0 && piece_length.is_multiple_of(4096));
        assert!(u32::try_from(pieces).is_ok() && u32::try_from(piece_length).is_ok());
        let length = pieces.checked_mul(piece_length).ok_or(Errno::NOMEM)?;
        // SAFETY: a new private mapping at an address of the kernel's choice; no memory of ours is replaced.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // SAFETY: the range is the mapping just made; this advice changes no content. Its failure is harmless.
        let _ = unsafe { rustix::mm::madvise(base, length, Advice::LinuxHugepage) };
        // SAFETY: as above; this one makes the pages resident, so that no fault comes later.
        let _ = unsafe { rustix::mm::madvise(base, length, Advice::LinuxPopulateWrite) };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let free = (0..pieces as u32).rev().collect();
        let identity = IDENTITY.fetch_add(1, Ordering::Relaxed);
        Ok(Arena {
            memory: Arc::new(Memory { base, length, piece_length, identity, free: Mutex::new(free) }),
        })
    }

    /// A free piece, if there is one.
    pub fn take(&self) -> Option<Fill> {
        let index = self.memory.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Fill { piece: Arc::new(Piece { memory: self.memory.clone(), index }), committed: 0 })
    }

    /// The length of a piece in bytes.
    pub fn piece_length(&self) -> usize {
        self.memory.piece_length
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.memory.length / self.memory.piece_length
    }

    /// How many pieces are free.
    pub fn free_pieces(&self) -> usize {
        self.memory.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Tells one arena from another.
    pub(super) fn identity(&self) -> u64 {
        self.memory.identity
    }

    /// Where the whole mapping lies, to register it.
    pub(super) fn mapping(&self) -> (*mut u8, usize) {
        (self.memory.base.as_ptr(), self.memory.length)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole; every piece holds an `Arc` of this struct, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

struct Piece {
    memory: Arc<Memory>,
    index: u32,
}

impl Piece {
    fn start(&self) -> NonNull<u8> {
        // SAFETY: `index` is below the number of pieces, so the offset stays within the mapping.
        unsafe { self.memory.base.add(self.index as usize * self.memory.piece_length) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.memory.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// A piece being filled: the one way to write into it.
pub struct Fill {
    piece: Arc<Piece>,
    committed: usize,
}

impl Fill {
    /// What is not committed yet. It may hold bytes of the piece's earlier life.
    pub fn space(&mut self) -> &mut [u8] {
        let length = self.remaining();
        // SAFETY: the bytes behind `committed` are initialised (the mapping was zeroed), no region covers
        // them, and `&mut self` of the one fill makes this the only reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.piece.start().add(self.committed).as_ptr(), length) }
    }

    /// How many bytes are not committed yet.
    pub fn remaining(&self) -> usize {
        self.piece.memory.piece_length - self.committed
    }

    /// Freezes the next `length` bytes: they never change again while a region of them exists.
    ///
    /// # Panics
    /// If less than that remains.
    pub fn commit(&mut self, length: usize) -> Region {
        assert!(length <= self.remaining(), "a commit past the end of the piece");
        let start = self.committed;
        self.committed += length;
        Region { piece: self.piece.clone(), start: start as u32, length: length as u32 }
    }
}

/// Bytes of an arena that no longer change. Clones share them; they stay until the last is gone.
#[derive(Clone)]
pub struct Region {
    piece: Arc<Piece>,
    start: u32,
    length: u32,
}

impl Region {
    /// A part of this region.
    ///
    /// # Panics
    /// If the range is not within it.
    pub fn slice(&self, range: Range<usize>) -> Region {
        assert!(
            range.start <= range.end && range.end <= self.length as usize,
            "a slice outside of its region"
        );
        Region {
            piece: self.piece.clone(),
            start: self.start + range.start as u32,
            length: (range.end - range.start) as u32,
        }
    }

    /// A reference that does not keep the bytes.
    pub fn downgrade(&self) -> WeakRegion {
        WeakRegion { piece: Arc::downgrade(&self.piece), start: self.start, length: self.length }
    }

    /// Which arena this is of.
    pub(super) fn arena_identity(&self) -> u64 {
        self.piece.memory.identity
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a region covers committed bytes only: initialised, within the piece, and never written again
        // while `self.piece` is held (module header).
        unsafe {
            std::slice::from_raw_parts(
                self.piece.start().add(self.start as usize).as_ptr(),
                self.length as usize,
            )
        }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Region({}+{}, {} bytes)", self.piece.index, self.start, self.length)
    }
}

/// Bytes of an arena, as long as somebody else keeps them.
#[derive(Clone, Default)]
pub struct WeakRegion {
    piece: Weak<Piece>,
    start: u32,
    length: u32,
}

impl WeakRegion {
    /// The region this was made of, if its bytes are still there.
    pub fn upgrade(&self) -> Option<Region> {
        Some(Region { piece: self.piece.upgrade()?, start: self.start, length: self.length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_free_again_when_fill_and_regions_are_gone() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut fill = arena.take().unwrap();
        assert!(arena.take().is_none());
        fill.space()[..5].copy_from_slice(b"hello");
        let region = fill.commit(5);
        drop(fill);
        assert!(arena.take().is_none(), "a region still holds the piece");
        assert_eq!(&*region, b"hello");
        drop(region);
        assert!(arena.take().is_some());
    }

    #[test]
    fn committed_bytes_stay_while_the_rest_is_filled() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut fill = arena.take().unwrap();
        fill.space()[0] = 1;
        let first = fill.commit(1);
        fill.space().fill(2);
        let second = fill.commit(4095);
        assert_eq!(first[0], 1);
        assert!(second.iter().all(|&byte| byte == 2));
        assert_eq!(fill.remaining(), 0);
        assert_eq!(second.slice(4094..4095).len(), 1);
    }

    #[test]
    fn a_weak_region_keeps_nothing() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut fill = arena.take().unwrap();
        fill.space()[..4].copy_from_slice(b"abcd");
        let region = fill.commit(4);
        let weak = region.slice(1..3).downgrade();
        assert_eq!(&*weak.upgrade().unwrap(), b"bc");
        drop((fill, region));
        assert!(weak.upgrade().is_none());
        assert_eq!(arena.free_pieces(), 1);
    }

    #[test]
    #[should_panic(expected = "past the end of the piece")]
    fn a_commit_past_the_end_is_refused() {
        let arena = Arena::new(1, 4096).unwrap();
        arena.take().unwrap().commit(4097);
    }
}
