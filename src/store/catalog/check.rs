//! Whether the rows of the catalog agree with each other, and look-ups for those who compare them with the segments.
//!
//! What is checked is a catalog in which every log was read to its end and settled: then no object is live, nothing
//! that is deleted waits to be purged, and nothing is written to any segment.

use std::collections::{BTreeMap, HashMap, HashSet};

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::changes::{EXTENT_LENGTH, StoredExtent};
use super::database::View;
use super::failure::{Result, failure};
use super::service::CreateDocument;
use super::tables::{
    BUCKETS, DECLARED, DELETED, DOUBTFUL, ENDS, EXTENTS, GENERATIONS, LIVE, LOGS, META, MOVED, OBJECTS,
    ObjectValue, SEALED, SEGMENTS, SegmentRow, TOMBSTONE_PLACES, TOMBSTONES,
};
use super::work::state_of;
use crate::log::format::{RECORD_HEADER_LENGTH, SEGMENT_HEADER_LENGTH};
use crate::store::finding::{Finding, Part, Touched};
use crate::store::name::Name;
use crate::store::object::State;

/// What the rows say a segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Which use of the file.
    pub epoch: u64,
    /// Nothing counts in it, and its file says so.
    pub is_free: bool,
    /// It failed, or it holds what makes clear that parts of a failed one are void.
    pub is_pinned: bool,
    /// Nothing in it is needed any more.
    pub is_empty: bool,
    /// Runs of bytes of objects.
    pub extents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Creations of objects that exist.
    pub creations: u64,
    /// Seals of objects that exist.
    pub seals: u64,
    /// Deletions that must not be lost, with those in the segment of the creation.
    pub deletions: u64,
}

/// What the rows add up to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Each segment by number.
    pub segments: BTreeMap<u64, Tally>,
    /// For each log the first block that is not in the catalog, and the term of the last one that is.
    pub logs: HashMap<u16, (u64, u32)>,
    /// How many objects there are.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many rows were looked at.
    pub rows: u64,
}

/// An object's row.
#[derive(Clone, Debug)]
pub struct ObjectLook {
    /// `bucket/key`.
    pub name: String,
    /// Which generation.
    pub generation: u64,
    /// Where it stands.
    pub state: State,
    /// Its bytes, in whole appends.
    pub length: u64,
    /// The segment with its creation.
    pub create_segment: u64,
    /// The segment with its seal; 0 where there is none.
    pub seal_segment: u64,
    /// The payload of its creation.
    pub document: Vec<u8>,
}

impl ObjectLook {
    fn new(
        name: String,
        generation: u64,
        (state, length, _, _, create_segment, seal_segment, document): ObjectValue<'_>,
    ) -> ObjectLook {
        let (state, document) = (state_of(state), document.to_vec());
        ObjectLook { name, generation, state, length, create_segment, seal_segment, document }
    }
}

impl ObjectLook {
    /// This part of it.
    pub fn touched(&self, part: Part) -> Touched {
        Touched { name: Some(self.name.clone()), generation: self.generation, part }
    }
}

type ObjectRow = (u8, u64, u64, u64, u64, u64, &'static [u8]);

/// The tables, open for many look-ups.
pub struct Lookup {
    transaction: ReadTransaction,
    objects: ReadOnlyTable<(&'static str, &'static [u8], u64), ObjectRow>,
    generations: ReadOnlyTable<u64, (&'static str, &'static [u8])>,
    extents: ReadOnlyTable<(u64, u64), &'static [u8]>,
    tombstones: ReadOnlyTable<(u64, u64), u64>,
    tombstone_places: ReadOnlyTable<(u64, u64, u64), ()>,
    /// The row that was asked for last: records of one object follow each other.
    last_row: Option<(u64, Vec<StoredExtent>)>,
    last_object: Option<(u64, Option<ObjectLook>)>,
}

impl Lookup {
    /// Look-ups in this view.
    ///
    /// # Errors
    /// What the disk says.
    pub fn new(view: View) -> Result<Lookup> {
        let transaction = view.transaction;
        Ok(Lookup {
            objects: transaction.open_table(OBJECTS).map_err(failure)?,
            generations: transaction.open_table(GENERATIONS).map_err(failure)?,
            extents: transaction.open_table(EXTENTS).map_err(failure)?,
            tombstones: transaction.open_table(TOMBSTONES).map_err(failure)?,
            tombstone_places: transaction.open_table(TOMBSTONE_PLACES).map_err(failure)?,
            last_row: None,
            last_object: None,
            transaction,
        })
    }

    /// The object of a generation.
    ///
    /// # Errors
    /// What the disk says.
    pub fn object(&mut self, generation: u64) -> Result<Option<&ObjectLook>> {
        if self.last_object.as_ref().is_none_or(|last| last.0 != generation) {
            self.last_object = Some((generation, self.find_object(generation)?));
        }
        Ok(self.last_object.as_ref().and_then(|last| last.1.as_ref()))
    }

    fn find_object(&self, generation: u64) -> Result<Option<ObjectLook>> {
        let Some(name) = self.generations.get(generation).map_err(failure)? else { return Ok(None) };
        let (bucket, key) = name.value();
        let Some(row) = self.objects.get((bucket, key, generation)).map_err(failure)? else {
            return Ok(None);
        };
        Ok(Some(ObjectLook::new(text_of(bucket, key), generation, row.value())))
    }

    /// The extent of a generation that begins at an offset.
    ///
    /// # Errors
    /// What the disk says.
    pub fn extent(&mut self, generation: u64, offset: u64) -> Result<Option<StoredExtent>> {
        let is_in = |extents: &[StoredExtent]| {
            extents.first().is_some_and(|first| first.offset <= offset)
                && extents.last().is_some_and(|last| offset <= last.offset)
        };
        let is_held = self.last_row.as_ref().is_some_and(|(of, extents)| *of == generation && is_in(extents));
        if !is_held {
            let range = (generation, 0)..=(generation, offset);
            let row = self.extents.range(range).map_err(failure)?.next_back().transpose().map_err(failure)?;
            let Some((_, value)) = row else { return Ok(None) };
            self.last_row = Some((generation, StoredExtent::decode_row(value.value())));
        }
        Ok(self.last_row.as_ref().and_then(|(_, extents)| {
            let place = extents.binary_search_by_key(&offset, |extent| extent.offset).ok()?;
            extents.get(place).copied()
        }))
    }

    /// Whether the catalog knows that the creation of a generation in this segment is void.
    ///
    /// # Errors
    /// What the disk says.
    pub fn is_deleted(&self, create_segment: u64, generation: u64) -> Result<bool> {
        Ok(self.tombstones.get((create_segment, generation)).map_err(failure)?.is_some())
    }

    /// The generations whose deletions must stand in this segment.
    ///
    /// # Errors
    /// What the disk says.
    pub fn deletions_in(&self, segment: u64) -> Result<HashSet<u64>> {
        let rows = self.tombstone_places.range((segment, 0, 0)..=(segment, u64::MAX, u64::MAX));
        rows.map_err(failure)?.map(|row| Ok(row.map_err(failure)?.0.value().2)).collect()
    }

    /// All runs of bytes in these segments, with the generation.
    ///
    /// # Errors
    /// What the disk says.
    pub fn each_extent_in(
        &self,
        segments: &HashSet<u64>,
        mut each: impl FnMut(u64, StoredExtent),
    ) -> Result<()> {
        for row in self.extents.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let extents = value.value().chunks_exact(EXTENT_LENGTH).map(StoredExtent::decode);
            extents
                .filter(|extent| segments.contains(&extent.segment))
                .for_each(|extent| each(key.value().0, extent));
        }
        Ok(())
    }

    /// All runs of bytes, with the generation.
    ///
    /// # Errors
    /// What the disk says.
    #[cfg(any(test, feature = "simulation"))]
    pub fn each_extent(&self, mut each: impl FnMut(u64, StoredExtent)) -> Result<()> {
        for row in self.extents.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let generation = key.value().0;
            StoredExtent::decode_row(value.value()).into_iter().for_each(|extent| each(generation, extent));
        }
        Ok(())
    }

    /// All objects.
    ///
    /// # Errors
    /// What the disk says.
    pub fn each_object(&self, mut each: impl FnMut(ObjectLook)) -> Result<()> {
        for row in self.objects.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let (bucket, key, generation) = key.value();
            each(ObjectLook::new(text_of(bucket, key), generation, value.value()));
        }
        Ok(())
    }

    /// Goes through all rows, adds them up, and tells what does not agree.
    ///
    /// # Errors
    /// What the disk says.
    pub fn check(&mut self, segment_bytes: u64, mut found: impl FnMut(Finding)) -> Result<Totals> {
        let mut totals = Totals::default();
        let rows = self.segments(&mut totals)?;
        let mut buckets: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        self.check_objects(&mut totals, &mut buckets, &mut found)?;
        self.check_extents(&mut totals, segment_bytes, &mut found)?;
        self.check_buckets(&mut totals, &buckets, &mut found)?;
        self.check_leftovers(&mut totals, &mut found)?;
        let needed = self.check_tombstones(&mut totals, &mut found)?;
        for (number, row) in rows {
            let tally = totals.segments.get(&number).copied().unwrap_or_default();
            let records = tally.extents + tally.creations + tally.seals;
            let tombstones = needed.get(&number).copied().unwrap_or(0);
            if (row.live_records, row.live_bytes, row.tombstones) != (records, tally.bytes, tombstones) {
                found(Finding::new(format!(
                    "the catalog says that segment {number} has {} records with {} bytes and {} deletions, and its \
                     rows say {records} with {} and {tombstones}",
                    row.live_records, row.live_bytes, row.tombstones, tally.bytes
                )));
            }
            if row.is_free && records + tombstones > 0 {
                found(Finding::new(format!(
                    "the catalog says that segment {number} is free, and that {records} records and {tombstones} \
                     deletions are in it"
                )));
            }
        }
        for (number, tally) in &totals.segments {
            if tally.epoch == 0 {
                found(Finding::new(format!(
                    "the catalog has no segment {number}, in which {} records should be",
                    tally.extents + tally.creations + tally.seals
                )));
            }
        }
        Ok(totals)
    }

    fn segments(&self, totals: &mut Totals) -> Result<Vec<(u64, SegmentRow)>> {
        let mut rows = Vec::new();
        for row in self.transaction.open_table(SEGMENTS).map_err(failure)?.iter().map_err(failure)? {
            let (number, value) = row.map_err(failure)?;
            let (number, row) = (number.value(), SegmentRow::from_value(value.value()));
            let tally = Tally {
                epoch: row.epoch,
                is_free: row.is_free,
                is_pinned: row.is_pinned,
                is_empty: row.is_empty(),
                ..Tally::default()
            };
            totals.segments.insert(number, tally);
            totals.rows += 1;
            rows.push((number, row));
        }
        for row in self.transaction.open_table(LOGS).map_err(failure)?.iter().map_err(failure)? {
            let (log, value) = row.map_err(failure)?;
            totals.logs.insert(log.value(), value.value());
            totals.rows += 1;
        }
        Ok(rows)
    }

    /// The rows of objects, their names, and their places in the order of sealing.
    fn check_objects(
        &mut self,
        totals: &mut Totals,
        buckets: &mut BTreeMap<String, (u64, u64)>,
        found: &mut impl FnMut(Finding),
    ) -> Result<()> {
        let sealed = self.transaction.open_table(SEALED).map_err(failure)?;
        let meta = self.transaction.open_table(META).map_err(failure)?;
        let generation_max = meta.get("generation_max").map_err(failure)?.map_or(0, |value| value.value());
        let mut sealed_count = 0;
        for row in self.objects.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let (bucket, key, generation) = key.value();
            let (state, length, _, modified, create_segment, seal_segment, document) = value.value();
            let name = text_of(bucket, key);
            let mut wrong = |what: &str| {
                let touched = Touched { name: Some(name.clone()), generation, part: Part::Catalog };
                found(Finding::of(format!("the catalog: {what}"), touched));
            };
            totals.rows += 1;
            totals.objects += 1;
            totals.bytes += length;
            let is_name = std::str::from_utf8(key).is_ok_and(|key| Name::new(bucket, key).is_ok());
            let said = serde_json::from_slice::<CreateDocument>(document).map(|document| document.name);
            if !is_name || said.as_ref().ok() != Some(&name) {
                wrong("the metadata of an object is of another name, or cannot be read");
            }
            let known = self.generations.get(generation).map_err(failure)?;
            if known.is_none_or(|known| known.value() != (bucket, key)) {
                wrong("a generation is not known by the name that it has");
            }
            if generation > generation_max {
                wrong("a generation is larger than the largest that was given");
            }
            totals.segments.entry(create_segment).or_default().creations += 1;
            if seal_segment != 0 {
                totals.segments.entry(seal_segment).or_default().seals += 1;
            }
            match state_of(state) {
                State::Live => wrong("an object is live though its log has ended"),
                State::Interrupted => {}
                State::Sealed => {
                    sealed_count += 1;
                    let counts = buckets.entry(bucket.to_owned()).or_default();
                    *counts = (counts.0 + 1, counts.1 + length);
                    let row = sealed.get((bucket, modified, generation)).map_err(failure)?;
                    match row.map(|row| row.value()) {
                        Some(sealed) if sealed == length => {}
                        Some(sealed) => {
                            wrong(&format!("an object of {length} bytes was sealed with {sealed}"));
                        }
                        None => wrong("a sealed object is missing in the order of sealing"),
                    }
                    if seal_segment == 0 {
                        wrong("nobody knows where the seal of a sealed object is");
                    }
                }
            }
            if length > 0
                && self
                    .extents
                    .range((generation, 0)..=(generation, u64::MAX))
                    .map_err(failure)?
                    .next()
                    .is_none()
            {
                found(Finding::of(
                    "the catalog: an object has no extents",
                    Touched { name: Some(name), generation, part: Part::Bytes(0..length) },
                ));
            }
        }
        let counts = [
            ("names of generations", self.generations.len().map_err(failure)?, totals.objects),
            ("objects in the order of sealing", sealed.len().map_err(failure)?, sealed_count),
        ];
        totals.rows += counts[0].1 + counts[1].1;
        for (what, has, should) in counts {
            if has != should {
                found(Finding::new(format!(
                    "the catalog has {has} {what}, where {should} belong to objects"
                )));
            }
        }
        Ok(())
    }

    /// The rows of extents: in order, without gaps up to the object's length, inside segments.
    fn check_extents(
        &mut self,
        totals: &mut Totals,
        segment_bytes: u64,
        found: &mut impl FnMut(Finding),
    ) -> Result<()> {
        let table = self.transaction.open_table(EXTENTS).map_err(failure)?;
        let mut walk: Option<Walk> = None;
        for row in table.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let ((generation, first), row) = (key.value(), value.value());
            totals.rows += 1;
            if walk.as_ref().is_none_or(|walk| walk.generation != generation) {
                if let Some(walk) = walk.take() {
                    walk.end(found);
                }
                walk = Some(Walk::new(generation, self.object(generation)?.cloned()));
            }
            let Some(walk) = &mut walk else { continue };
            let extents = StoredExtent::decode_row(row);
            let is_row = row.len().is_multiple_of(EXTENT_LENGTH)
                && extents.first().map(|first| first.offset) == Some(first);
            if !is_row {
                walk.wrong(found, "a row of extents does not begin where it says");
            }
            for extent in extents {
                let tally = totals.segments.entry(extent.segment).or_default();
                tally.extents += 1;
                tally.bytes += u64::from(extent.length);
                let start = (SEGMENT_HEADER_LENGTH + RECORD_HEADER_LENGTH) as u64;
                let is_inside = extent.position >= start
                    && extent.position + u64::from(extent.length) <= segment_bytes
                    && !tally.is_free
                    && tally.epoch != 0;
                if !is_inside {
                    walk.wrong(found, &format!("an extent at {} lies in no segment", extent.offset));
                }
                walk.take(extent, found);
            }
        }
        if let Some(walk) = walk {
            walk.end(found);
        }
        Ok(())
    }

    fn check_buckets(
        &self,
        totals: &mut Totals,
        expected: &BTreeMap<String, (u64, u64)>,
        found: &mut impl FnMut(Finding),
    ) -> Result<()> {
        let table = self.transaction.open_table(BUCKETS).map_err(failure)?;
        let mut seen = 0;
        for row in table.iter().map_err(failure)? {
            let (bucket, value) = row.map_err(failure)?;
            let (count, bytes) = value.value();
            totals.rows += 1;
            let (objects, length) = expected.get(bucket.value()).copied().unwrap_or_default();
            seen += usize::from(expected.contains_key(bucket.value()));
            if (count, bytes) != (objects, length) {
                found(Finding::new(format!(
                    "the catalog says that bucket {} has {count} sealed objects with {bytes} bytes, and it has \
                     {objects} with {length}",
                    bucket.value()
                )));
            }
        }
        if seen != expected.len() {
            found(Finding::new(format!(
                "the catalog has no totals of {} of {} buckets",
                expected.len() - seen,
                expected.len()
            )));
        }
        Ok(())
    }

    /// What must not be there after every log was read to its end.
    fn check_leftovers(&mut self, totals: &mut Totals, found: &mut impl FnMut(Finding)) -> Result<()> {
        let mut leftovers = Vec::new();
        for row in self.transaction.open_table(LIVE).map_err(failure)?.iter().map_err(failure)? {
            leftovers.push((row.map_err(failure)?.0.value(), "is live though its log has ended"));
        }
        for row in self.transaction.open_table(DELETED).map_err(failure)?.iter().map_err(failure)? {
            let (generation, value) = row.map_err(failure)?;
            let (_, create_segment, seal_segment) = value.value();
            if create_segment != 0 {
                totals.segments.entry(create_segment).or_default().creations += 1;
            }
            if seal_segment != 0 {
                totals.segments.entry(seal_segment).or_default().seals += 1;
            }
            leftovers.push((generation.value(), "is deleted and still has its bytes"));
        }
        for row in self.transaction.open_table(ENDS).map_err(failure)?.iter().map_err(failure)? {
            let (generation, value) = row.map_err(failure)?;
            let (state, _, _, segment) = value.value();
            if state_of(state) == State::Sealed {
                totals.segments.entry(segment).or_default().seals += 1;
            }
            leftovers.push((generation.value(), "has an end and no creation"));
        }
        for row in self.transaction.open_table(DECLARED).map_err(failure)?.iter().map_err(failure)? {
            let generation = row.map_err(failure)?.0.value();
            totals.rows += 1;
            if self.object(generation)?.is_none_or(|object| object.state == State::Sealed) {
                leftovers.push((generation, "has a length to come and is complete or not there"));
            }
        }
        for row in self.transaction.open_table(DOUBTFUL).map_err(failure)?.iter().map_err(failure)? {
            leftovers.push((row.map_err(failure)?.0.value(), "is said to have another creation somewhere"));
        }
        for (generation, what) in leftovers {
            totals.rows += 1;
            let touched = match self.object(generation)? {
                Some(object) => object.touched(Part::Catalog),
                None => Touched { name: None, generation, part: Part::Catalog },
            };
            found(Finding::of(format!("the catalog: a generation {what}"), touched));
        }
        Ok(())
    }

    /// Both tables of deletions. Answers how many each segment is needed for.
    fn check_tombstones(
        &mut self,
        totals: &mut Totals,
        found: &mut impl FnMut(Finding),
    ) -> Result<HashMap<u64, u64>> {
        let mut needed: HashMap<u64, u64> = HashMap::new();
        let mut count = 0;
        let table = self.transaction.open_table(TOMBSTONES).map_err(failure)?;
        for row in table.iter().map_err(failure)? {
            let (key, value) = row.map_err(failure)?;
            let ((create_segment, generation), place) = (key.value(), value.value());
            count += 1;
            totals.rows += 2;
            if place != create_segment {
                *needed.entry(place).or_default() += 1;
            }
            let is_placed =
                self.tombstone_places.get((place, create_segment, generation)).map_err(failure)?.is_some();
            if !is_placed {
                let touched = Touched { name: None, generation, part: Part::Deletion };
                found(Finding::of(
                    format!("the catalog: segment {place} does not know of a deletion in it"),
                    touched,
                ));
            }
            if let Some(object) = self.object(generation)? {
                found(Finding::of(
                    "the catalog: an object is deleted and still there",
                    object.touched(Part::Catalog),
                ));
            }
        }
        for row in self.transaction.open_table(MOVED).map_err(failure)?.iter().map_err(failure)? {
            *needed.entry(row.map_err(failure)?.1.value()).or_default() += 1;
            totals.rows += 1;
        }
        let places = self.tombstone_places.len().map_err(failure)?;
        if places != count {
            found(Finding::new(format!(
                "the catalog has {places} places of deletions for {count} deletions"
            )));
        }
        let mut last = None;
        for row in self.tombstone_places.iter().map_err(failure)? {
            let (place, _, generation) = row.map_err(failure)?.0.value();
            // One deletion may speak of several copies of a creation.
            if last.replace((place, generation)) != Some((place, generation)) {
                totals.segments.entry(place).or_default();
            }
        }
        let numbers: Vec<u64> = totals.segments.keys().copied().collect();
        for number in numbers {
            let deletions = self.deletions_in(number)?.len() as u64;
            totals.segments.entry(number).or_default().deletions = deletions;
        }
        Ok(needed)
    }
}

/// A walk over one generation's extents.
struct Walk {
    generation: u64,
    object: Option<ObjectLook>,
    /// Where the last extent ended.
    reached: u64,
    bytes: u64,
    /// The first gap below the object's length.
    gap: Option<(u64, u64)>,
    overlaps: bool,
}

impl Walk {
    fn new(generation: u64, object: Option<ObjectLook>) -> Walk {
        Walk { generation, object, reached: 0, bytes: 0, gap: None, overlaps: false }
    }

    fn touched(&self, part: Part) -> Touched {
        match &self.object {
            Some(object) => object.touched(part),
            None => Touched { name: None, generation: self.generation, part },
        }
    }

    fn wrong(&self, found: &mut impl FnMut(Finding), what: &str) {
        found(Finding::of(format!("the catalog: {what}"), self.touched(Part::Catalog)));
    }

    fn take(&mut self, extent: StoredExtent, found: &mut impl FnMut(Finding)) {
        if extent.offset < self.reached && !self.overlaps {
            self.overlaps = true;
            self.wrong(found, &format!("two extents hold the byte at {}", extent.offset));
        }
        if extent.offset > self.reached && self.gap.is_none() {
            self.gap = Some((self.reached, extent.offset));
        }
        self.reached = self.reached.max(extent.end());
        self.bytes += u64::from(extent.length);
    }

    fn end(self, found: &mut impl FnMut(Finding)) {
        let Some(object) = &self.object else {
            let touched = self.touched(Part::Bytes(0..self.reached));
            found(Finding::of(
                format!("the catalog has {} bytes that belong to no object", self.bytes),
                touched,
            ));
            return;
        };
        let gap = self.gap.unwrap_or((self.reached, object.length));
        if gap.0 < object.length {
            let lost = gap.0..gap.1.min(object.length);
            found(Finding::of(
                "the catalog: extents of an object are missing",
                object.touched(Part::Bytes(lost)),
            ));
        }
    }
}

fn text_of(bucket: &str, key: &[u8]) -> String {
    format!("{bucket}/{}", String::from_utf8_lossy(key))
}
