//! Where an object's bytes lie: a list that one core appends to and any core reads, without a lock.
//!
//! The list holds the end of the object; what comes before it is in the catalog. It begins with the object, and what
//! the catalog has learned leaves it chunk by chunk.
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

impl Drop for Chunk {
    /// One after the other: a long chain must not be dropped by recursion.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(chunk) = next {
            next = Arc::into_inner(chunk).and_then(|mut chunk| chunk.next.take());
        }
    }
}

/// The extents of one object, in order and without gaps.
pub struct Extents {
    /// Chunks with the offset of their first extent.
    index: Mutex<Vec<(u64, Arc<Chunk>)>>,
}

impl Extents {
    /// An empty list, for what comes from this offset on.
    pub fn beginning_at(offset: u64) -> Extents {
        Extents { index: Mutex::new(vec![(offset, Chunk::new(FIRST_CHUNK))]) }
    }

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

    /// A place at the extent that holds `offset`, or where it will be. None: that is in the catalog.
    pub fn cursor(&self, offset: u64) -> Option<Cursor> {
        let chunks = self.chunks();
        let chunk = chunks.partition_point(|(first, _)| *first <= offset).checked_sub(1)?;
        let mut cursor = Cursor { chunk: chunks[chunk].1.clone(), index: 0 };
        drop(chunks);
        while cursor.get().is_some_and(|extent| extent.end() <= offset) {
            cursor.advance();
        }
        Some(cursor)
    }

    /// Where the list begins: the catalog has everything before, and all that it has before is what was appended there.
    /// Of what comes from here on it may have other things too, such as parts of an append that was given up.
    pub fn beginning(&self) -> u64 {
        self.chunks().first().map_or(0, |(first, _)| *first)
    }

    /// Lets go of what lies before this offset, as far as whole chunks go: the catalog has it.
    pub fn forget_before(&self, offset: u64) {
        let mut chunks = self.chunks();
        // A chunk goes when the next one begins at the offset or before; the last one stays.
        let gone = chunks.partition_point(|(first, _)| *first <= offset).saturating_sub(1);
        let former: Vec<_> = chunks.drain(..gone).collect();
        drop(chunks);
        drop(former);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Space, SpaceSettings};

    fn segment() -> Arc<Segment> {
        let settings = SpaceSettings {
            folder: "/nowhere".into(),
            store: 1,
            segment_bytes: 1 << 22,
            direct: false,
            spare_segments: 1,
            reserve_bytes: 0,
        };
        Space::new(settings).segment(1, 1)
    }

    #[test]
    fn what_the_catalog_has_leaves_chunk_by_chunk_and_cursors_in_it_walk_on() {
        let (extents, segment) = (Extents::beginning_at(0), segment());
        let mut tail = extents.tail();
        for index in 0..600u64 {
            let extent = Extent {
                offset: index * 10,
                length: 10,
                position: 0,
                segment: segment.clone(),
                hot: WeakRegion::default(),
            };
            tail.push(&extents, extent);
        }
        let mut early = extents.cursor(0).unwrap();
        extents.forget_before(3000);
        assert!(extents.cursor(0).is_none());
        let mut cursor = extents.cursor(3005).unwrap();
        assert_eq!(cursor.get().unwrap().offset, 3000);
        let mut seen = 0;
        while early.get().is_some() {
            seen += 1;
            early.advance();
        }
        assert_eq!(seen, 600);
        extents.forget_before(6000);
        assert!(extents.cursor(6000).is_some(), "the last chunk stays");
        assert!(extents.chunks().len() == 1);
    }

    #[test]
    fn a_list_may_begin_where_the_catalog_ends() {
        let extents = Extents::beginning_at(500);
        assert!(extents.cursor(499).is_none());
        assert!(extents.cursor(500).unwrap().get().is_none());
    }
}
