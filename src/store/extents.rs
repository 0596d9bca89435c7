//! Where an object's bytes lie: a list that one core appends to and any core reads, without a lock.
//!
//! The list is a chain of chunks that never move. An extent is set once and then only read. The writer's core
//! appends at the [`Tail`], a reader keeps its [`Cursor`] in the chain and walks on. Only beginning a chunk and
//! finding a place (once a reader) take the lock of the index, which has one entry a chunk.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::log::Segment;
use crate::ring::WeakRegion;

/// A run of an object's bytes.
#[derive(Clone)]
pub struct Extent {
    /// The object's offset of the first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
    /// Where in the segment, in bytes.
    pub position: u64,
    /// The segment; kept in use as long as this is there.
    pub segment: Arc<Segment>,
    /// The same bytes in memory, as long as the arena keeps them.
    pub hot: WeakRegion,
}

impl Extent {
    /// The object's offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

const FIRST_CHUNK: usize = 1;
const LARGEST_CHUNK: usize = 256;

struct Chunk {
    extents: Box<[OnceLock<Extent>]>,
    next: OnceLock<Arc<Chunk>>,
}

impl Chunk {
    fn new(length: usize) -> Arc<Chunk> {
        Arc::new(Chunk { extents: (0..length).map(|_| OnceLock::new()).collect(), next: OnceLock::new() })
    }
}

/// The extents of one object, in order and without gaps.
///
/// Dropped front to back, chunk by chunk: the index holds every chunk, so that no chain of drops comes about.
pub struct Extents {
    /// Chunks with the offset of their first extent.
    index: Mutex<Vec<(u64, Arc<Chunk>)>>,
}

impl Default for Extents {
    fn default() -> Extents {
        Extents { index: Mutex::new(vec![(0, Chunk::new(FIRST_CHUNK))]) }
    }
}

impl Extents {
    fn chunks(&self) -> MutexGuard<'_, Vec<(u64, Arc<Chunk>)>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the list, for the one who appends to it.
    pub fn tail(&self) -> Tail {
        let chunks = self.chunks();
        let Some((_, chunk)) = chunks.last() else { unreachable!("there is always a chunk") };
        let used = chunk.extents.iter().take_while(|extent| extent.get().is_some()).count();
        Tail { chunk: chunk.clone(), used }
    }

    /// A place at the extent that holds `offset`, or where it will be.
    pub fn cursor(&self, offset: u64) -> Cursor {
        let chunks = self.chunks();
        let chunk = chunks.partition_point(|(first, _)| *first <= offset).saturating_sub(1);
        let mut cursor = Cursor { chunk: chunks[chunk].1.clone(), index: 0 };
        drop(chunks);
        while cursor.get().is_some_and(|extent| extent.end() <= offset) {
            cursor.advance();
        }
        cursor
    }

    /// Every segment that extents lie in, each once where they follow each other.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        let mut cursor = self.cursor(0);
        while let Some(extent) = cursor.get() {
            if segments.last().is_none_or(|last| !Arc::ptr_eq(last, &extent.segment)) {
                segments.push(extent.segment.clone());
            }
            cursor.advance();
        }
        segments
    }
}

/// The end of the list. There is one at a time for an object.
pub struct Tail {
    chunk: Arc<Chunk>,
    used: usize,
}

impl Tail {
    /// Adds the next extent to the list that this is the end of.
    pub fn push(&mut self, extents: &Extents, extent: Extent) {
        if self.used == self.chunk.extents.len() {
            let chunk = Chunk::new((self.used * 4).min(LARGEST_CHUNK));
            extents.chunks().push((extent.offset, chunk.clone()));
            let _ = self.chunk.next.set(chunk.clone());
            *self = Tail { chunk, used: 0 };
        }
        let was_free = self.chunk.extents[self.used].set(extent).is_ok();
        assert!(was_free, "an extent is set once");
        self.used += 1;
    }
}

/// A place in the list.
#[derive(Clone)]
pub struct Cursor {
    chunk: Arc<Chunk>,
    index: usize,
}

impl Cursor {
    /// The extent here, if it is there yet.
    pub fn get(&mut self) -> Option<&Extent> {
        if self.index == self.chunk.extents.len() {
            let next = self.chunk.next.get()?.clone();
            *self = Cursor { chunk: next, index: 0 };
        }
        self.chunk.extents[self.index].get()
    }

    /// Goes to the next one. Only from an extent that is there.
    pub fn advance(&mut self) {
        self.index += 1;
    }
}
