//! One writing transaction: changes go in, in any order between logs, and the counts of every segment stay true.
//!
//! An object's records may arrive more than once (a copy that moved, a log that is read again) and, from different
//! logs, in any order. What is said twice counts once; the later place wins.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableTable, Table};

use super::changes::{Batch, Change, DeadRange, EXTENT_LENGTH, SegmentUse, StoredExtent};
use super::database::Outcome;
use super::failure::{Result, failure};
use super::tables::{SegmentRow, Tables};
use crate::store::name::Name;
use crate::store::object::State;

/// How many extents share a row.
const EXTENTS_PER_ROW: usize = 128;

/// A row of `objects` and its key.
#[derive(Clone, Debug)]
pub(super) struct ObjectRow {
    pub bucket: String,
    pub key: Vec<u8>,
    pub generation: u64,
    pub state: State,
    pub length: u64,
    pub begun_microseconds: u64,
    pub modified_microseconds: u64,
    pub create_segment: u64,
    /// 0 where there is no seal.
    pub seal_segment: u64,
    pub document: Vec<u8>,
}

/// The extents of the last row of an object.
struct LastRow {
    first: u64,
    extents: Vec<StoredExtent>,
}

/// A transaction under way.
pub(super) struct Work<'t> {
    tables: Tables<'t>,
    segments: BTreeMap<u64, SegmentRow>,
    /// Rows of objects that are to be written.
    objects: BTreeMap<u64, ObjectRow>,
    last_rows: BTreeMap<u64, LastRow>,
    /// Generations that got bytes or a seal.
    touched: BTreeSet<u64>,
    /// What became dead.
    dead: Vec<StoredExtent>,
    /// Sealed generations whose bytes do not add up to their length.
    unequal: Vec<u64>,
}

pub(super) fn state_of(byte: u8) -> State {
    match byte {
        0 => State::Live,
        1 => State::Sealed,
        _ => State::Interrupted,
    }
}

/// The rows whose key begins with this segment.
fn of_segment(table: &Table<'_, (u64, u64), u64>, number: u64) -> Result<Vec<((u64, u64), u64)>> {
    let rows = table.range((number, 0)..=(number, u64::MAX)).map_err(failure)?;
    rows.map(|row| row.map(|(key, value)| (key.value(), value.value())).map_err(failure)).collect()
}

impl<'t> Work<'t> {
    pub fn new(tables: Tables<'t>) -> Work<'t> {
        Work {
            tables,
            segments: BTreeMap::new(),
            objects: BTreeMap::new(),
            last_rows: BTreeMap::new(),
            touched: BTreeSet::new(),
            dead: Vec::new(),
            unequal: Vec::new(),
        }
    }

    pub fn tables(&mut self) -> &mut Tables<'t> {
        &mut self.tables
    }

    /// Enters a batch.
    pub fn enter(&mut self, batch: &Batch) -> Result<()> {
        self.begin_use(batch.segment)?;
        let row = self.segment(batch.segment.number)?;
        row.is_full |= batch.is_full;
        row.is_pinned |= batch.is_pinned;
        row.next_sequence = batch.next_sequence;
        let segment = batch.segment.number;
        for change in &batch.changes {
            match change {
                Change::Create { generation, name, document, at_microseconds } => {
                    self.create(*generation, name, document, *at_microseconds, segment)?;
                }
                &Change::Data { generation, offset, length, continued, position } => {
                    self.touched.insert(generation);
                    let extent = StoredExtent { offset, length, continued, segment, position };
                    self.data(generation, extent, batch.is_rebuilt)?;
                }
                &Change::Seal { generation, length, at_microseconds } => {
                    self.touched.insert(generation);
                    self.end(generation, State::Sealed, length, at_microseconds, segment)?;
                }
                &Change::Interrupt { generation, at_microseconds } => {
                    self.end(generation, State::Interrupted, 0, at_microseconds, segment)?;
                    if !batch.is_rebuilt
                        && let Some(length) = self.update_length(generation)?
                    {
                        self.drop_torn_append(generation, length)?;
                    }
                }
                &Change::Declare { generation, length } => self.declare(generation, length)?,
                &Change::Delete { generation } => self.delete(generation, segment)?,
            }
        }
        let generation_max = batch.changes.iter().map(Change::generation).max().unwrap_or(0);
        self.raise_generation_max(generation_max)?;
        let value = (batch.next_sequence, batch.term);
        self.tables.logs.insert(batch.log, value).map_err(failure)?;
        Ok(())
    }

    /// Writes what is held back, and answers what that leads to.
    pub fn finish(mut self) -> Result<Outcome> {
        for generation in std::mem::take(&mut self.touched) {
            self.update_length(generation)?;
        }
        for (generation, row) in std::mem::take(&mut self.last_rows) {
            self.write_row(generation, &row)?;
        }
        for (_, row) in std::mem::take(&mut self.objects) {
            self.write_object(&row)?;
        }
        let mut outcome = Outcome { unequal: self.unequal, ..Outcome::default() };
        for (&number, row) in &self.segments {
            self.tables.segments.insert(number, row.value()).map_err(failure)?;
            if row.is_empty() {
                outcome.emptied.push(SegmentUse { number, epoch: row.epoch });
            }
        }
        for extent in self.dead {
            // What has become empty is used again as a whole.
            let Some(row) = self.segments.get(&extent.segment).filter(|row| !row.is_empty()) else {
                continue;
            };
            outcome.dead.push(DeadRange {
                segment: SegmentUse { number: extent.segment, epoch: row.epoch },
                position: extent.position,
                length: u64::from(extent.length),
            });
        }
        Ok(outcome)
    }

    fn raise_generation_max(&mut self, generation: u64) -> Result<()> {
        let former =
            self.tables.meta.get("generation_max").map_err(failure)?.map_or(0, |value| value.value());
        if generation > former {
            self.tables.meta.insert("generation_max", generation).map_err(failure)?;
        }
        Ok(())
    }

    fn segment(&mut self, number: u64) -> Result<&mut SegmentRow> {
        if !self.segments.contains_key(&number) {
            let row = self.tables.segments.get(number).map_err(failure)?;
            let row = row.map(|value| SegmentRow::from_value(value.value())).unwrap_or_default();
            self.segments.insert(number, row);
        }
        Ok(self.segments.entry(number).or_default())
    }

    /// Another use of a segment's file: what was known of the former one is void. What is written to is not free.
    fn begin_use(&mut self, segment: SegmentUse) -> Result<()> {
        let row = self.segment(segment.number)?;
        if row.epoch != segment.epoch || row.is_free {
            self.forget_creations_in(segment.number)?;
            *self.segment(segment.number)? = SegmentRow { epoch: segment.epoch, ..SegmentRow::default() };
        }
        Ok(())
    }

    /// Says that a segment's file cannot be read as what it was any more, and holds nothing.
    pub fn free(&mut self, segment: SegmentUse) -> Result<()> {
        self.forget_creations_in(segment.number)?;
        *self.segment(segment.number)? =
            SegmentRow { epoch: segment.epoch, is_full: true, is_free: true, ..SegmentRow::default() };
        Ok(())
    }

    /// The creations in this segment can no longer be read: tombstones that speak of them are not needed.
    fn forget_creations_in(&mut self, number: u64) -> Result<()> {
        for ((create_segment, generation), place) in of_segment(&self.tables.tombstones, number)? {
            self.remove_tombstone(create_segment, generation, place)?;
        }
        for (from, to) in of_segment(&self.tables.moved, number)? {
            self.tables.moved.remove(from).map_err(failure)?;
            self.segment(to)?.tombstones -= 1;
        }
        Ok(())
    }

    fn remove_tombstone(&mut self, create_segment: u64, generation: u64, place: u64) -> Result<()> {
        self.tables.tombstones.remove((create_segment, generation)).map_err(failure)?;
        let removed = self
            .tables
            .tombstone_places
            .remove((place, create_segment, generation))
            .map_err(failure)?
            .is_some();
        if removed && place != create_segment {
            self.segment(place)?.tombstones -= 1;
        }
        Ok(())
    }

    /// Where the deletion stands that speaks of this creation.
    fn tombstone_place(&self, create_segment: u64, generation: u64) -> Result<Option<u64>> {
        let place = self.tables.tombstones.get((create_segment, generation)).map_err(failure)?;
        Ok(place.map(|place| place.value()))
    }

    /// The creation of this generation stands in `create_segment` (0: nobody knows where), and its deletion in `place`.
    fn need_tombstone(&mut self, create_segment: u64, generation: u64, place: u64) -> Result<()> {
        let former = self.tombstone_place(create_segment, generation)?;
        if former == Some(place) {
            return Ok(());
        }
        if let Some(former) = former {
            self.remove_tombstone(create_segment, generation, former)?;
        }
        self.tables.tombstones.insert((create_segment, generation), place).map_err(failure)?;
        self.tables.tombstone_places.insert((place, create_segment, generation), ()).map_err(failure)?;
        if place != create_segment {
            self.segment(place)?.tombstones += 1;
        }
        Ok(())
    }

    /// Takes the row of an object; what is put back is written in the end.
    fn take_object(&mut self, generation: u64) -> Result<Option<ObjectRow>> {
        if let Some(row) = self.objects.remove(&generation) {
            return Ok(Some(row));
        }
        let Some(name) = self.tables.generations.get(generation).map_err(failure)? else { return Ok(None) };
        let (bucket, key) = name.value();
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        drop(name);
        let row = self.tables.objects.get((bucket.as_str(), key.as_slice(), generation)).map_err(failure)?;
        Ok(row.map(|row| {
            let (state, length, begun, modified, create_segment, seal_segment, document) = row.value();
            ObjectRow {
                generation,
                state: state_of(state),
                length,
                begun_microseconds: begun,
                modified_microseconds: modified,
                create_segment,
                seal_segment,
                document: document.to_vec(),
                bucket: bucket.clone(),
                key: key.clone(),
            }
        }))
    }

    fn put_object(&mut self, row: ObjectRow) {
        self.objects.insert(row.generation, row);
    }

    fn write_object(&mut self, row: &ObjectRow) -> Result<()> {
        let key = (row.bucket.as_str(), row.key.as_slice(), row.generation);
        let value = (
            row.state as u8,
            row.length,
            row.begun_microseconds,
            row.modified_microseconds,
            row.create_segment,
            row.seal_segment,
            row.document.as_slice(),
        );
        self.tables.objects.insert(key, value).map_err(failure)?;
        Ok(())
    }

    fn create(
        &mut self,
        generation: u64,
        name: &Name,
        document: &[u8],
        at_microseconds: u64,
        segment: u64,
    ) -> Result<()> {
        let deleted = self.tables.deleted.get(generation).map_err(failure)?.map(|value| value.value());
        if let Some((place, former, seal_segment)) = deleted {
            let place = self.tombstone_place(former, generation)?.unwrap_or(place);
            self.need_tombstone(segment, generation, place)?;
            if former == 0 {
                self.remove_tombstone(0, generation, place)?; // it was kept for the creation that was to come
            }
            if former != segment {
                self.move_record(former, segment)?;
                self.tables.deleted.insert(generation, (place, segment, seal_segment)).map_err(failure)?;
            }
            return Ok(());
        }
        if let Some(mut row) = self.take_object(generation)? {
            // What was copied may be read again after its copy.
            let is_original = self.tables.moved.get((segment, generation)).map_err(failure)?.is_some();
            if row.create_segment != segment && !is_original {
                self.tables.moved.insert((row.create_segment, generation), segment).map_err(failure)?;
                self.segment(segment)?.tombstones += 1;
                self.move_record(row.create_segment, segment)?;
                row.create_segment = segment;
            }
            self.put_object(row);
            return Ok(());
        }
        self.segment(segment)?.live_records += 1;
        let mut row = ObjectRow {
            bucket: name.bucket().to_owned(),
            key: name.key().as_bytes().to_vec(),
            generation,
            state: State::Live,
            length: 0,
            begun_microseconds: at_microseconds,
            modified_microseconds: at_microseconds,
            create_segment: segment,
            seal_segment: 0,
            document: document.to_vec(),
        };
        self.tables
            .generations
            .insert(generation, (name.bucket(), name.key().as_bytes()))
            .map_err(failure)?;
        self.tables.live.insert(generation, ()).map_err(failure)?;
        let end = self.tables.ends.remove(generation).map_err(failure)?.map(|value| value.value());
        if let Some((state, length, at_microseconds, end_segment)) = end {
            self.set_end(&mut row, state_of(state), length, at_microseconds, end_segment)?;
        }
        self.touched.insert(generation);
        self.put_object(row);
        Ok(())
    }

    /// A record that counts is now in another segment. 0 stands for none.
    fn move_record(&mut self, from: u64, to: u64) -> Result<()> {
        if from != to {
            if from != 0 {
                self.segment(from)?.live_records -= 1;
            }
            if to != 0 {
                self.segment(to)?.live_records += 1;
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        generation: u64,
        state: State,
        length: u64,
        at_microseconds: u64,
        segment: u64,
    ) -> Result<()> {
        let deleted = self.tables.deleted.get(generation).map_err(failure)?.map(|value| value.value());
        if let Some((place, create_segment, former)) = deleted {
            if state == State::Sealed {
                self.move_record(former, segment)?;
                self.tables.deleted.insert(generation, (place, create_segment, segment)).map_err(failure)?;
            }
            return Ok(());
        }
        let Some(mut row) = self.take_object(generation)? else {
            let known = self.tables.ends.get(generation).map_err(failure)?.map(|value| value.value());
            // A seal is final; and an interruption only says when.
            if known.is_none_or(|(known, ..)| state_of(known) != State::Sealed) || state == State::Sealed {
                if state == State::Sealed {
                    let former = known.filter(|known| state_of(known.0) == State::Sealed);
                    self.move_record(former.map_or(0, |former| former.3), segment)?;
                }
                let value = (state as u8, length, at_microseconds, segment);
                self.tables.ends.insert(generation, value).map_err(failure)?;
            }
            return Ok(());
        };
        if state == State::Sealed {
            self.move_record(row.seal_segment, segment)?;
        }
        self.set_end(&mut row, state, length, at_microseconds, segment)?;
        self.put_object(row);
        Ok(())
    }

    /// Notes how long an object is going to be that is not complete. Nothing, where there is none.
    pub fn declare(&mut self, generation: u64, length: u64) -> Result<()> {
        let Some(row) = self.take_object(generation)? else { return Ok(()) };
        if row.state != State::Sealed {
            self.tables.declared.insert(generation, length).map_err(failure)?;
        }
        self.put_object(row);
        Ok(())
    }

    /// Sets the end of an object; the count of the seal's segment is the caller's.
    fn set_end(
        &mut self,
        row: &mut ObjectRow,
        state: State,
        length: u64,
        at_microseconds: u64,
        segment: u64,
    ) -> Result<()> {
        if row.state == State::Sealed {
            if state == State::Sealed {
                row.seal_segment = segment;
            }
            return Ok(());
        }
        self.tables.live.remove(row.generation).map_err(failure)?;
        row.state = state;
        row.modified_microseconds = at_microseconds;
        if state == State::Sealed {
            self.tables.declared.remove(row.generation).map_err(failure)?;
            row.seal_segment = segment;
            self.count_sealed(row, length, true)?;
            self.tables
                .sealed
                .insert((row.bucket.as_str(), at_microseconds, row.generation), length)
                .map_err(failure)?;
        }
        Ok(())
    }

    fn count_sealed(&mut self, row: &ObjectRow, length: u64, is_more: bool) -> Result<()> {
        let counts = self.tables.buckets.get(row.bucket.as_str()).map_err(failure)?;
        let (count, bytes) = counts.map_or((0, 0), |value| value.value());
        let (count, bytes) =
            if is_more { (count + 1, bytes + length) } else { (count - 1, bytes.saturating_sub(length)) };
        if count == 0 {
            self.tables.buckets.remove(row.bucket.as_str()).map_err(failure)?;
        } else {
            self.tables.buckets.insert(row.bucket.as_str(), (count, bytes)).map_err(failure)?;
        }
        Ok(())
    }

    /// As [`Work::delete`], where the segment with the deletion may be new.
    pub fn delete_in(&mut self, generation: u64, segment: SegmentUse) -> Result<()> {
        self.begin_use(segment)?;
        self.delete(generation, segment.number)
    }

    /// Nothing is written any more to any segment that is known, and what does not count in those that failed cannot be
    /// read any more: they may be used again.
    pub fn fill_all(&mut self) -> Result<()> {
        let numbers = self
            .tables
            .segments
            .iter()
            .map_err(failure)?
            .map(|row| row.map(|(number, _)| number.value()).map_err(failure))
            .collect::<Result<Vec<u64>>>()?;
        for number in numbers {
            let row = self.segment(number)?;
            row.is_full = true;
            row.is_pinned = false;
        }
        Ok(())
    }

    /// Takes a generation from its name. Its extents stay until they are purged.
    fn delete(&mut self, generation: u64, place: u64) -> Result<()> {
        if self.tables.deleted.get(generation).map_err(failure)?.is_some() {
            return Ok(());
        }
        let Some(row) = self.take_object(generation)? else {
            // It is purged already, or its creation is still to come.
            let end = self.tables.ends.remove(generation).map_err(failure)?.map(|value| value.value());
            let seal_segment = end.filter(|end| state_of(end.0) == State::Sealed).map_or(0, |end| end.3);
            self.tables.deleted.insert(generation, (place, 0, seal_segment)).map_err(failure)?;
            // It is not known yet what creation this speaks of: until that, the deletion must not be lost.
            return self.need_tombstone(0, generation, place);
        };
        self.need_tombstone(row.create_segment, generation, place)?;
        let key = (row.bucket.as_str(), row.key.as_slice(), generation);
        self.tables.objects.remove(key).map_err(failure)?;
        self.tables.generations.remove(generation).map_err(failure)?;
        self.tables.live.remove(generation).map_err(failure)?;
        self.tables.declared.remove(generation).map_err(failure)?;
        if row.state == State::Sealed {
            let key = (row.bucket.as_str(), row.modified_microseconds, generation);
            let length = self.tables.sealed.remove(key).map_err(failure)?.map_or(0, |value| value.value());
            self.count_sealed(&row, length, false)?;
        }
        let value = (place, row.create_segment, row.seal_segment);
        self.tables.deleted.insert(generation, value).map_err(failure)?;
        let is_doubtful = self.tables.doubtful.remove(generation).map_err(failure)?.is_some();
        if is_doubtful { self.doubt(generation) } else { Ok(()) }
    }

    /// Somewhere there may be another creation of this generation: if it is deleted, the deletion is kept as if the one
    /// creation that is known were still to come.
    pub fn doubt(&mut self, generation: u64) -> Result<()> {
        let deleted = self.tables.deleted.get(generation).map_err(failure)?.map(|value| value.value());
        match deleted {
            Some((_, 0, _)) => {}
            Some((place, create_segment, seal_segment)) => {
                let place = self.tombstone_place(create_segment, generation)?.unwrap_or(place);
                self.move_record(create_segment, 0)?;
                self.need_tombstone(0, generation, place)?;
                self.tables.deleted.insert(generation, (place, 0, seal_segment)).map_err(failure)?;
            }
            None => {
                self.tables.doubtful.insert(generation, ()).map_err(failure)?;
            }
        }
        Ok(())
    }

    /// Tombstones of this generation stand in another place now.
    pub fn move_tombstones(&mut self, generation: u64, from: u64, to: SegmentUse) -> Result<()> {
        self.begin_use(to)?;
        let rows: Vec<(u64, u64, u64)> = self
            .tables
            .tombstone_places
            .range((from, 0, 0)..=(from, u64::MAX, u64::MAX))
            .map_err(failure)?
            .map(|row| row.map(|(key, _)| key.value()))
            .collect::<std::result::Result<_, _>>()
            .map_err(failure)?;
        for (_, create_segment, other) in rows {
            if other == generation {
                self.need_tombstone(create_segment, generation, to.number)?;
            }
        }
        Ok(())
    }

    /// Lets go of the bytes of a deleted generation, which nobody reads any more.
    ///
    /// Where a creation may be that is not known, nobody will write that any more; but what a failed write of it has left
    /// may be found by the next start, for which the deletion is kept. `every_log_was_read`: this is it.
    pub fn purge(&mut self, generation: u64, every_log_was_read: bool) -> Result<()> {
        let deleted = self.tables.deleted.get(generation).map_err(failure)?.map(|value| value.value());
        let Some((place, create_segment, seal_segment)) = deleted else { return Ok(()) };
        self.move_record(create_segment, 0)?;
        self.move_record(seal_segment, 0)?;
        if create_segment == 0 && !every_log_was_read {
            self.tables.deleted.insert(generation, (place, 0, 0)).map_err(failure)?;
        } else {
            self.tables.deleted.remove(generation).map_err(failure)?;
            if let Some(place) = self.tombstone_place(0, generation)? {
                self.remove_tombstone(0, generation, place)?;
            }
        }
        self.purge_extents(generation)
    }

    /// Lets go of bytes and of an end that belong to no object.
    pub fn purge_orphan(&mut self, generation: u64) -> Result<()> {
        let end = self.tables.ends.remove(generation).map_err(failure)?.map(|value| value.value());
        if let Some((state, _, _, segment)) = end
            && state_of(state) == State::Sealed
        {
            self.segment(segment)?.live_records -= 1;
        }
        self.purge_extents(generation)
    }

    fn purge_extents(&mut self, generation: u64) -> Result<()> {
        self.put_down(generation)?;
        self.touched.remove(&generation);
        let rows = self.rows(generation, 0, u64::MAX)?;
        for (first, extents) in rows {
            self.tables.extents.remove((generation, first)).map_err(failure)?;
            for extent in extents {
                self.drop_extent(extent)?;
            }
        }
        Ok(())
    }

    fn drop_extent(&mut self, extent: StoredExtent) -> Result<()> {
        let segment = self.segment(extent.segment)?;
        segment.live_records -= 1;
        segment.live_bytes -= u64::from(extent.length);
        self.dead.push(extent);
        Ok(())
    }

    fn take_extent(&mut self, extent: StoredExtent) -> Result<()> {
        let segment = self.segment(extent.segment)?;
        segment.live_records += 1;
        segment.live_bytes += u64::from(extent.length);
        Ok(())
    }

    fn write_row(&mut self, generation: u64, row: &LastRow) -> Result<()> {
        let mut bytes = Vec::with_capacity(row.extents.len() * EXTENT_LENGTH);
        row.extents.iter().for_each(|extent| extent.encode(&mut bytes));
        self.tables.extents.insert((generation, row.first), bytes.as_slice()).map_err(failure)?;
        Ok(())
    }

    /// Writes the last row of an object, if it is held back.
    fn put_down(&mut self, generation: u64) -> Result<()> {
        match self.last_rows.remove(&generation) {
            Some(row) => self.write_row(generation, &row),
            None => Ok(()),
        }
    }

    /// Takes the last row of an object up, to add to it.
    fn take_up(&mut self, generation: u64) -> Result<Option<&mut LastRow>> {
        if !self.last_rows.contains_key(&generation) {
            let range = (generation, 0)..=(generation, u64::MAX);
            let last = self.tables.extents.range(range).map_err(failure)?.next_back();
            let Some(last) = last else { return Ok(None) };
            let (key, value) = last.map_err(failure)?;
            let row = LastRow { first: key.value().1, extents: StoredExtent::decode_row(value.value()) };
            drop((key, value));
            self.last_rows.insert(generation, row);
        }
        Ok(self.last_rows.get_mut(&generation))
    }

    fn data(&mut self, generation: u64, extent: StoredExtent, is_rebuilt: bool) -> Result<()> {
        if extent.length == 0 {
            return Ok(());
        }
        let is_behind = match self.take_up(generation)? {
            Some(last) => last.extents.last().is_none_or(|last| last.end() <= extent.offset),
            None => {
                let row = LastRow { first: extent.offset, extents: Vec::new() };
                self.last_rows.insert(generation, row);
                true
            }
        };
        if !is_behind {
            if !is_rebuilt && self.is_interrupted_at(generation, extent.offset)? {
                self.drop_behind(generation, extent.offset)?;
            }
            return self.insert_between(generation, extent, is_rebuilt);
        }
        self.take_extent(extent)?;
        let is_full = self.last_rows.get(&generation).is_some_and(|row| row.extents.len() >= EXTENTS_PER_ROW);
        if is_full {
            self.put_down(generation)?;
            self.last_rows.insert(generation, LastRow { first: extent.offset, extents: vec![extent] });
        } else if let Some(row) = self.last_rows.get_mut(&generation) {
            row.extents.push(extent);
        }
        Ok(())
    }

    /// Whether what is written there goes on with an object that is interrupted.
    fn is_interrupted_at(&mut self, generation: u64, offset: u64) -> Result<bool> {
        let Some(row) = self.take_object(generation)? else { return Ok(false) };
        let is_end = row.state == State::Interrupted && row.length == offset;
        self.put_object(row);
        Ok(is_end)
    }

    /// Lets go of the extents that begin at this offset or later: what damage has cut off from the object, or what is
    /// there of an append that did not become whole. Somebody else's bytes come there now.
    fn drop_behind(&mut self, generation: u64, offset: u64) -> Result<()> {
        self.put_down(generation)?;
        for (first, mut extents) in self.rows(generation, offset, u64::MAX)? {
            self.tables.extents.remove((generation, first)).map_err(failure)?;
            let kept = extents.partition_point(|extent| extent.offset < offset);
            for extent in extents.drain(kept..) {
                self.drop_extent(extent)?;
                // Who reads the segments without the catalog would take it for damage if it were punched out.
                self.dead.pop();
            }
            if kept > 0 {
                self.write_row(generation, &LastRow { first, extents })?;
            }
        }
        Ok(())
    }

    /// Lets go of what is there of an append that did not become whole and follows the end of the object. What lies
    /// behind damage stays: that may be repaired.
    fn drop_torn_append(&mut self, generation: u64, length: u64) -> Result<()> {
        self.put_down(generation)?;
        let mut reached = length;
        for (_, extents) in self.rows(generation, length, u64::MAX)? {
            for extent in extents.iter().filter(|extent| extent.offset >= length) {
                if extent.offset != reached {
                    return Ok(());
                }
                reached = extent.end();
            }
        }
        match reached > length {
            true => self.drop_behind(generation, length),
            false => Ok(()),
        }
    }

    /// An extent that belongs before or in place of others. What it overlaps was given up, or has moved here; unless
    /// that is a whole append: then this one is what was given up, and its log is read after that of the writer who
    /// went on.
    fn insert_between(&mut self, generation: u64, extent: StoredExtent, is_rebuilt: bool) -> Result<()> {
        self.put_down(generation)?;
        let overlaps = |other: &StoredExtent| other.offset < extent.end() && extent.offset < other.end();
        let is_same = |other: &StoredExtent| other.offset == extent.offset && other.length == extent.length;
        let rows = self.rows(generation, extent.offset, extent.end())?;
        let others = rows.iter().flat_map(|(_, extents)| extents);
        // What is in the same place is a copy, or, where others may be read later, as well what was given up.
        for other in others.filter(|other| overlaps(other) && (is_rebuilt || !is_same(other))) {
            if self.is_whole(generation, other)? {
                return Ok(());
            }
        }
        let mut kept = Vec::new();
        for (first, extents) in rows {
            self.tables.extents.remove((generation, first)).map_err(failure)?;
            for other in extents {
                if overlaps(&other) {
                    self.drop_extent(other)?;
                    // A record that was read again is not dead; and of one that has moved readers may be in the
                    // former place.
                    if is_same(&other) {
                        self.dead.pop();
                    }
                } else {
                    kept.push(other);
                }
            }
        }
        self.take_extent(extent)?;
        let place = kept.partition_point(|other| other.offset < extent.offset);
        kept.insert(place, extent);
        for extents in kept.chunks(EXTENTS_PER_ROW) {
            let row = LastRow { first: extents[0].offset, extents: extents.to_vec() };
            self.write_row(generation, &row)?;
        }
        Ok(())
    }

    /// Whether all that follows of an extent's append is there.
    fn is_whole(&self, generation: u64, extent: &StoredExtent) -> Result<bool> {
        let (mut reached, mut is_end) = (extent.end(), !extent.continued);
        while !is_end {
            let rows = self.rows(generation, reached, reached + 1)?;
            let mut extents = rows.iter().flat_map(|(_, extents)| extents);
            let Some(next) = extents.find(|next| next.offset == reached) else { return Ok(false) };
            (reached, is_end) = (next.end(), !next.continued);
        }
        Ok(true)
    }

    /// Where the row begins that holds an offset, or would; the offset itself where there is none before it.
    fn first_row(&self, generation: u64, offset: u64) -> Result<u64> {
        let range = (generation, 0)..=(generation, offset);
        let row = self.tables.extents.range(range).map_err(failure)?.next_back().transpose();
        Ok(row.map_err(failure)?.map_or(offset, |(key, _)| key.value().1))
    }

    /// The rows with extents between two offsets; the first may begin before.
    fn rows(&self, generation: u64, start: u64, end: u64) -> Result<Vec<(u64, Vec<StoredExtent>)>> {
        let before = self.first_row(generation, start)?;
        self.tables
            .extents
            .range((generation, before)..(generation, end))
            .map_err(failure)?
            .map(|row| {
                let (key, value) = row.map_err(failure)?;
                Ok((key.value().1, StoredExtent::decode_row(value.value())))
            })
            .collect()
    }

    /// Where the whole appends end that follow each other without a gap from `start` on.
    pub fn whole_end(&mut self, generation: u64, start: u64) -> Result<u64> {
        let mut walk = Walk { start, reached: start, whole: start };
        if let Some(last) = self.last_rows.get(&generation).filter(|last| last.first <= start) {
            last.extents.iter().all(|extent| walk.goes_on(extent));
            return Ok(walk.whole);
        }
        self.put_down(generation)?;
        let before = self.first_row(generation, start)?;
        for row in
            self.tables.extents.range((generation, before)..=(generation, u64::MAX)).map_err(failure)?
        {
            let (_, value) = row.map_err(failure)?;
            let mut extents = value.value().chunks_exact(EXTENT_LENGTH).map(StoredExtent::decode);
            if !extents.all(|extent| walk.goes_on(&extent)) {
                break;
            }
        }
        Ok(walk.whole)
    }

    /// Brings the length of an object up to its bytes, and answers it.
    fn update_length(&mut self, generation: u64) -> Result<Option<u64>> {
        let Some(mut row) = self.take_object(generation)? else { return Ok(None) };
        let length = self.whole_end(generation, row.length)?;
        if row.state == State::Sealed {
            let key = (row.bucket.as_str(), row.modified_microseconds, generation);
            let sealed = self.tables.sealed.get(key).map_err(failure)?.map_or(0, |value| value.value());
            if sealed != length {
                self.unequal.push(generation);
            } else if self
                .take_up(generation)?
                .and_then(|row| row.extents.last())
                .is_some_and(|last| last.end() > length)
            {
                // What it was sealed without.
                self.drop_behind(generation, length)?;
            }
        }
        row.length = length;
        self.put_object(row);
        Ok(Some(length))
    }

    /// Settles the end of an object after all logs were read: what has no seal is interrupted. Answers the length
    /// that it was sealed with, where less is left: it is interrupted then.
    pub fn settle_end(&mut self, generation: u64, at_microseconds: u64) -> Result<Option<(ObjectRow, u64)>> {
        let Some(mut row) = self.take_object(generation)? else { return Ok(None) };
        row.length = self.whole_end(generation, row.length)?;
        let mut lost = None;
        if row.state != State::Sealed {
            self.drop_torn_append(generation, row.length)?;
        }
        match row.state {
            State::Live => {
                self.tables.live.remove(generation).map_err(failure)?;
                row.state = State::Interrupted;
                row.modified_microseconds = row.modified_microseconds.max(at_microseconds);
            }
            State::Interrupted => {
                row.modified_microseconds = row.modified_microseconds.max(at_microseconds);
            }
            State::Sealed => {
                let key = (row.bucket.as_str(), row.modified_microseconds, generation);
                let sealed = self.tables.sealed.get(key).map_err(failure)?.map_or(0, |value| value.value());
                if sealed == row.length {
                    self.put_object(row);
                    return Ok(None);
                }
                self.tables.sealed.remove(key).map_err(failure)?;
                self.count_sealed(&row, sealed, false)?;
                row.state = State::Interrupted;
                lost = Some(sealed);
            }
        }
        self.put_object(row.clone());
        Ok(lost.map(|sealed| (row, sealed)))
    }
}

/// A walk over extents in order, up to the first gap.
struct Walk {
    start: u64,
    reached: u64,
    whole: u64,
}

impl Walk {
    fn goes_on(&mut self, extent: &StoredExtent) -> bool {
        if extent.end() <= self.start {
            return true;
        }
        if extent.offset != self.reached {
            return false;
        }
        self.reached = extent.end();
        if !extent.continued {
            self.whole = self.reached;
        }
        true
    }
}
