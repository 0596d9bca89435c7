//! Blocks, records, segments, group commit, and the recovery scan.
//!
//! Every core writes one log. A log is a sequence of *blocks*, each of them one positioned write; a block holds
//! *records*, each of them an append to an object or an operation on one. Blocks lie in *segments*: preallocated
//! files of equal length, written front to back, used again when nothing in them is alive.
//!
//! [`Log::append`] puts a record into the open block and returns at once. The block is closed and written when it
//! is full, or when nothing else of this log is in flight: under load the batches grow by themselves, idle an
//! append goes out at once. [`Log::acknowledged`] returns when the record's block **and every block before it**
//! are on stable storage; in that order, too, the log tells its [`Sink`] what has become durable.
//!
//! # On disk
//!
//! All numbers are little-endian, all lengths and positions in bytes. Checksums are CRC32C.
//!
//! A data folder holds `tailwater.json` (what it is: format version, store number, segment length), `lock`, `catalog`
//! (a database that can be made anew from the segments), and `segments/NNNNNNNNNNNN.segment`, named by the segment's
//! number.
//!
//! A segment is a header of 4096 bytes, then blocks, each beginning at a multiple of 4096:
//!
//! | at | size | segment header |
//! | --- | --- | --- |
//! | 0 | 8 | `tailwtr` and the byte 1 |
//! | 8 | 4 | checksum of bytes 12 to 63 |
//! | 12 | 4 | format version: 2 |
//! | 16 | 8 | store: a number drawn when the store was made |
//! | 24 | 8 | the segment's number |
//! | 32 | 8 | epoch: which use of a file this is, never the same twice in a store |
//! | 40 | 8 | length of the file |
//! | 48 | 16 | zero |
//!
//! | at | size | block header |
//! | --- | --- | --- |
//! | 0 | 4 | `twb` and the byte 1 |
//! | 4 | 4 | checksum of bytes 8 to 71 |
//! | 8 | 8 | epoch of the segment; a block with another is a leftover of an earlier use |
//! | 16 | 8 | sequence: the number of the block in its log, without gaps |
//! | 24 | 8 | durable: all blocks of this log below this sequence were durable when this one was closed |
//! | 32 | 8 | term start: the sequence that this term began with |
//! | 40 | 4 | term: one more each time the log is begun anew (start of the store, failed segment) |
//! | 44 | 4 | length with this header, without the padding up to the next multiple of 4096 |
//! | 48 | 4 | number of records |
//! | 52 | 2 | log: the number of the core |
//! | 54 | 2 | zero |
//! | 56 | 8 | position of the block in its segment |
//! | 64 | 8 | store: no payload that somebody uploads can know it, so none is taken for a block |
//!
//! Records follow each other at multiples of 8:
//!
//! | at | size | record |
//! | --- | --- | --- |
//! | 0 | 4 | checksum of bytes 4 to 39 |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | generation of the object |
//! | 16 | 8 | offset in the object of the first payload byte; the length of the object for seal, interrupt and declare |
//! | 24 | 8 | timestamp: microseconds since 1970 |
//! | 32 | 1 | kind: 1 create, 2 append, 3 frame, 4 seal, 5 interrupt, 6 delete, 7 declare (the length) |
//! | 33 | 1 | flags: 1 = the append goes on in the object's next record |
//! | 34 | 2 | zero |
//! | 36 | 4 | checksum of the payload: of its own, because that of a deleted object is punched out |
//! | 40 | | payload; that of a create is a JSON document (name, metadata, declared length) |
//!
//! # What counts after a crash
//!
//! - A block counts only as a whole: header and every record check out, and it stands where it says. Of one that was
//!   durable once, a payload may be gone: punched out with its object, or damaged, which is reported.
//! - Where nothing says that a block was durable, as at the end of a log, missing payloads are a torn write; unless all of
//!   them are of generations that are deleted, and nobody keeps books of the log.
//! - Of a segment that is known, blocks behind what is known of it do not count where the log is known to go on elsewhere:
//!   they failed to be written here.
//! - A log ends before its first block that does not count, unless a later block says that it was durable: then
//!   it was damaged since, which is reported, and the log goes on.
//! - A term voids blocks of earlier terms from its start on. So what was cut off once stays cut off, and a block
//!   that was written again after a failure counts once.
//! - A segment without a header in which there is no block, and of which nobody keeps books, holds nothing. Of any other
//!   without one, and of a damaged header, it must be certain what it was: somebody keeps books of it, or one field of it
//!   differs from what the blocks say. Otherwise the file is left alone, and named.

pub mod format;
mod inspect;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod window;
mod writer;

pub use inspect::{Hole, Inspected, Inspection, inspect, read_record, store_in};
pub use recovery::{
    Continuation, Known, KnownSegment, RecoveredRecord, Survey, SurveyedSegment, records_in, survey,
};
pub use segment::{
    Cleared, Keeper, Promise, Segment, Space, SpaceSettings, check_segment_bytes, open_for_reading,
    segment_bytes_for,
};
pub use writer::{Appended, Log, LogSettings, LogState, Placement, Sink};
