//! The tables of the catalog and what their rows mean.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `objects` | bucket, key, generation | state, length, begun, modified (microseconds), segments of its creation and its seal, document |
//! | `generations` | generation | bucket, key |
//! | `extents` | generation, offset of the first | up to 128 extents |
//! | `live` | generation | - (neither sealed nor interrupted when it was last heard of) |
//! | `ends` | generation | the end of an object whose creation is not known yet |
//! | `declared` | generation of an object that is not complete | its length, where that was declared after it began |
//! | `deleted` | generation | segments of its deletion, creation and seal: its extents are still to be purged |
//! | `sealed` | bucket, when (microseconds), generation | length |
//! | `buckets` | bucket | how many sealed objects, their bytes |
//! | `segments` | number | epoch, flags, records and bytes that are alive in it, tombstones that are needed, the log's first block behind what is known of it |
//! | `logs` | log | first block that is not in the catalog, term of the last that is |
//! | `tombstones` | segment of a creation (0: nobody knows where), generation | segment of the deletion |
//! | `tombstone_places` | segment of a deletion, segment of the creation, generation | - |
//! | `doubtful` | generation | - (somewhere there may be another creation of it, which could not be written) |
//! | `moved` | segment that a creation was copied out of, generation | segment of the copy |
//! | `meta` | `store`, `version`, `generation_max`, `unsettled` (while a start enters what it reads) | a number |
//!
//! A *tombstone* is the record of a deletion. It is needed as long as the object's creation could be read in
//! another segment: without the catalog, the segments alone must tell that the object is gone. So a copy of a creation
//! keeps its segment, and with that the tombstone that speaks of the copy, as long as the original could be read; it counts
//! among the tombstones of its segment. Where a copy could not be written, a failing disk may have it all the same: nobody
//! knows where, until a start has read every log. The deletion of such an object is kept that long.

use redb::{Table, TableDefinition, WriteTransaction};

use super::failure::{Result, failure};

/// Epoch, flags, live records, live bytes, tombstones, next sequence.
pub(super) type SegmentValue = (u64, u8, u64, u64, u64, u64);
/// State, length, begun, modified, segments of creation and seal, document.
pub(super) type ObjectValue<'a> = (u8, u64, u64, u64, u64, u64, &'a [u8]);

pub(super) const OBJECTS: TableDefinition<(&str, &[u8], u64), ObjectValue<'static>> =
    TableDefinition::new("objects");
pub(super) const GENERATIONS: TableDefinition<u64, (&str, &[u8])> = TableDefinition::new("generations");
pub(super) const EXTENTS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("extents");
pub(super) const LIVE: TableDefinition<u64, ()> = TableDefinition::new("live");
pub(super) const ENDS: TableDefinition<u64, (u8, u64, u64, u64)> = TableDefinition::new("ends");
pub(super) const DECLARED: TableDefinition<u64, u64> = TableDefinition::new("declared");
pub(super) const DELETED: TableDefinition<u64, (u64, u64, u64)> = TableDefinition::new("deleted");
pub(super) const SEALED: TableDefinition<(&str, u64, u64), u64> = TableDefinition::new("sealed");
pub(super) const BUCKETS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("buckets");
pub(super) const SEGMENTS: TableDefinition<u64, SegmentValue> = TableDefinition::new("segments");
pub(super) const LOGS: TableDefinition<u16, (u64, u32)> = TableDefinition::new("logs");
pub(super) const TOMBSTONES: TableDefinition<(u64, u64), u64> = TableDefinition::new("tombstones");
pub(super) const TOMBSTONE_PLACES: TableDefinition<(u64, u64, u64), ()> =
    TableDefinition::new("tombstone_places");
pub(super) const DOUBTFUL: TableDefinition<u64, ()> = TableDefinition::new("doubtful");
pub(super) const MOVED: TableDefinition<(u64, u64), u64> = TableDefinition::new("moved");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// All tables, in one transaction.
pub(super) struct Tables<'t> {
    pub objects: Table<'t, (&'static str, &'static [u8], u64), ObjectValue<'static>>,
    pub generations: Table<'t, u64, (&'static str, &'static [u8])>,
    pub extents: Table<'t, (u64, u64), &'static [u8]>,
    pub live: Table<'t, u64, ()>,
    pub ends: Table<'t, u64, (u8, u64, u64, u64)>,
    pub declared: Table<'t, u64, u64>,
    pub deleted: Table<'t, u64, (u64, u64, u64)>,
    pub sealed: Table<'t, (&'static str, u64, u64), u64>,
    pub buckets: Table<'t, &'static str, (u64, u64)>,
    pub segments: Table<'t, u64, SegmentValue>,
    pub logs: Table<'t, u16, (u64, u32)>,
    pub tombstones: Table<'t, (u64, u64), u64>,
    pub tombstone_places: Table<'t, (u64, u64, u64), ()>,
    pub doubtful: Table<'t, u64, ()>,
    pub moved: Table<'t, (u64, u64), u64>,
    pub meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    pub fn open(transaction: &'t WriteTransaction) -> Result<Tables<'t>> {
        Ok(Tables {
            objects: transaction.open_table(OBJECTS).map_err(failure)?,
            generations: transaction.open_table(GENERATIONS).map_err(failure)?,
            extents: transaction.open_table(EXTENTS).map_err(failure)?,
            live: transaction.open_table(LIVE).map_err(failure)?,
            ends: transaction.open_table(ENDS).map_err(failure)?,
            declared: transaction.open_table(DECLARED).map_err(failure)?,
            deleted: transaction.open_table(DELETED).map_err(failure)?,
            sealed: transaction.open_table(SEALED).map_err(failure)?,
            buckets: transaction.open_table(BUCKETS).map_err(failure)?,
            segments: transaction.open_table(SEGMENTS).map_err(failure)?,
            logs: transaction.open_table(LOGS).map_err(failure)?,
            tombstones: transaction.open_table(TOMBSTONES).map_err(failure)?,
            tombstone_places: transaction.open_table(TOMBSTONE_PLACES).map_err(failure)?,
            doubtful: transaction.open_table(DOUBTFUL).map_err(failure)?,
            moved: transaction.open_table(MOVED).map_err(failure)?,
            meta: transaction.open_table(META).map_err(failure)?,
        })
    }
}

/// A row of `segments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentRow {
    pub epoch: u64,
    pub is_full: bool,
    /// Nothing in it counts, and its file says so.
    pub is_free: bool,
    pub is_pinned: bool,
    pub live_records: u64,
    pub live_bytes: u64,
    pub tombstones: u64,
    /// Blocks from this sequence on that are in it, and not in the books, do not count once the log is known to go on
    /// elsewhere.
    pub next_sequence: u64,
}

const FULL: u8 = 1;
const FREE: u8 = 2;
const PINNED: u8 = 4;

impl SegmentRow {
    pub fn from_value(
        (epoch, flags, live_records, live_bytes, tombstones, next_sequence): SegmentValue,
    ) -> Self {
        SegmentRow {
            epoch,
            is_full: flags & FULL != 0,
            is_free: flags & FREE != 0,
            is_pinned: flags & PINNED != 0,
            live_records,
            live_bytes,
            tombstones,
            next_sequence,
        }
    }

    pub fn value(&self) -> SegmentValue {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.is_full, FULL) | flag(self.is_free, FREE) | flag(self.is_pinned, PINNED);
        (self.epoch, flags, self.live_records, self.live_bytes, self.tombstones, self.next_sequence)
    }

    /// Nothing in it is needed any more, and nothing will come.
    pub fn is_empty(&self) -> bool {
        self.is_full && !self.is_free && !self.is_pinned && self.live_records == 0 && self.tombstones == 0
    }
}
