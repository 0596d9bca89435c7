//! What the logs tell the catalog, and what the catalog tells of the segments.

use crate::store::name::Name;

/// One use of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentUse {
    /// The segment's number.
    pub number: u64,
    /// Which use of the file.
    pub epoch: u64,
}

/// A durable record, as far as it matters for finding things.
#[derive(Clone, Debug)]
pub enum Change {
    /// A generation began. Again, for one that exists: its creation was moved here.
    Create {
        /// Which.
        generation: u64,
        /// Its name.
        name: Name,
        /// The record's payload: a JSON document.
        document: Box<[u8]>,
        /// When, in microseconds since 1970.
        at_microseconds: u64,
    },
    /// Bytes of an object. Again, for the same offset and length: they were moved here.
    Data {
        /// Whose.
        generation: u64,
        /// The object's offset of the first byte.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// The append goes on in the object's next record.
        continued: bool,
        /// Where in the segment, in bytes.
        position: u64,
    },
    /// The object is complete.
    Seal {
        /// Which.
        generation: u64,
        /// Its length in bytes.
        length: u64,
        /// When, in microseconds since 1970.
        at_microseconds: u64,
    },
    /// The object's writer is gone.
    Interrupt {
        /// Which.
        generation: u64,
        /// When, in microseconds since 1970.
        at_microseconds: u64,
    },
    /// The object is going to be this long.
    Declare {
        /// Which.
        generation: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The generation is deleted.
    Delete {
        /// Which.
        generation: u64,
    },
}

impl Change {
    /// The generation that it is about.
    pub fn generation(&self) -> u64 {
        match self {
            Change::Create { generation, .. }
            | Change::Data { generation, .. }
            | Change::Seal { generation, .. }
            | Change::Interrupt { generation, .. }
            | Change::Declare { generation, .. }
            | Change::Delete { generation } => *generation,
        }
    }
}

/// A run of one log's records, all of one segment, that follows what the catalog has of that log.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where they lie.
    pub segment: SegmentUse,
    /// The log.
    pub log: u16,
    /// The log's first block that is not in this batch.
    pub next_sequence: u64,
    /// The term of the last block in this batch.
    pub term: u32,
    /// Nothing is written to this segment any more.
    pub is_full: bool,
    /// The segment is not to be used again before a start has read it, whatever becomes of its records.
    pub is_pinned: bool,
    /// The catalog is being made anew: what others wrote of the same objects before may be entered later.
    pub is_rebuilt: bool,
    /// The records.
    pub changes: Vec<Change>,
}

/// A run of an object's bytes, as the catalog keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// The object's offset of the first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
    /// The append goes on in the next extent: it counts only together with that.
    pub continued: bool,
    /// The number of the segment.
    pub segment: u64,
    /// Where in the segment, in bytes.
    pub position: u64,
}

const CONTINUED: u32 = 1 << 31;
/// How long an extent is in a row, in bytes.
pub(super) const EXTENT_LENGTH: usize = 24;

impl StoredExtent {
    /// The object's offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    pub(super) fn encode(&self, row: &mut Vec<u8>) {
        let flag = if self.continued { CONTINUED } else { 0 };
        row.extend_from_slice(&self.offset.to_le_bytes());
        row.extend_from_slice(&(self.length | flag).to_le_bytes());
        row.extend_from_slice(&(self.position as u32).to_le_bytes());
        row.extend_from_slice(&self.segment.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> StoredExtent {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let length_and_position = number(8);
        let length = length_and_position as u32;
        StoredExtent {
            offset: number(0),
            length: length & !CONTINUED,
            continued: length & CONTINUED != 0,
            position: length_and_position >> 32,
            segment: number(16),
        }
    }

    /// All extents of a row.
    pub(super) fn decode_row(row: &[u8]) -> Vec<StoredExtent> {
        row.chunks_exact(EXTENT_LENGTH).map(StoredExtent::decode).collect()
    }
}

/// A part of a segment in which nothing is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadRange {
    /// Which segment.
    pub segment: SegmentUse,
    /// Where in the segment, in bytes.
    pub position: u64,
    /// How many bytes.
    pub length: u64,
}
