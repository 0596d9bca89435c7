//! The catalog's database: what it answers, and the transactions that change it.
//!
//! Everything here blocks, and belongs on the catalog's own threads. A change is on stable storage when its call
//! returns.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use redb::{Builder, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend};

use super::changes::{Batch, DeadRange, EXTENT_LENGTH, SegmentUse, StoredExtent};
use super::failure::{CURE, Result, failure};
use super::tables::{
    BUCKETS, DECLARED, DELETED, EXTENTS, GENERATIONS, LIVE, LOGS, META, OBJECTS, ObjectValue, SEALED,
    SEGMENTS, SegmentRow, TOMBSTONE_PLACES, Tables,
};
use super::work::{Work, state_of};
use crate::error::{Error, Kind};
use crate::log::KnownSegment;
use crate::store::object::State;

/// The version of the tables. A catalog of another version is made anew from the segments.
const VERSION: u64 = 2;
/// What of the database is kept in memory, in bytes.
const CACHE_BYTES: usize = 32 << 20;

/// The database.
pub struct Database {
    inner: Arc<redb::Database>,
}

/// Which generations may have left records without a creation: of objects that were deleted long ago, or of which the
/// rest was on a disk that failed.
pub enum Nameless {
    /// Any that there are.
    Any,
    /// At most these.
    These(Vec<u64>),
}

/// One thing that the catalog is told.
#[derive(Clone, Debug)]
pub enum Step {
    /// Records that follow what is known of a log.
    Enter(Arc<Batch>),
    /// A generation is deleted: its deletion is durable in this segment. Its bytes stay until they are purged.
    Delete {
        /// Which.
        generation: u64,
        /// The segment with the deletion.
        segment: SegmentUse,
    },
    /// Nobody reads a deleted generation any more.
    Purge {
        /// Which.
        generation: u64,
    },
    /// A copy of a generation's creation could not be written, and a start may find it all the same.
    Doubt {
        /// Which.
        generation: u64,
    },
    /// A segment holds nothing, and its file says so.
    Free(SegmentUse),
    /// A deletion is durable in another segment too.
    MoveTombstone {
        /// Of which generation.
        generation: u64,
        /// The number of the segment where it was.
        from: u64,
        /// The segment where it is.
        to: SegmentUse,
    },
}

/// What a change to the catalog leads to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Segments in which nothing is needed any more.
    pub emptied: Vec<SegmentUse>,
    /// Parts of other segments in which nothing is alive.
    pub dead: Vec<DeadRange>,
    /// Sealed generations whose bytes do not add up to their length, as far as is known.
    pub unequal: Vec<u64>,
}

/// What the catalog knows of the segments and logs.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// What is known of each segment.
    pub segments: HashMap<u64, KnownSegment>,
    /// For each log the first block that is not in the catalog, and the term of the last one that is.
    pub logs: HashMap<u16, (u64, u32)>,
}

/// Some interrupted objects with their places, and where more may be.
pub type Interrupted = (Vec<(Place, StoredObject)>, Option<Place>);

/// A place in the order of all objects.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: Vec<u8>,
    /// The generation.
    pub generation: u64,
}

/// An object as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Which generation.
    pub generation: u64,
    /// Where it stands.
    pub state: State,
    /// Its bytes, in whole appends.
    pub length: u64,
    /// When it was begun, in microseconds since 1970.
    pub begun_microseconds: u64,
    /// When it was sealed or interrupted, in microseconds since 1970.
    pub modified_microseconds: u64,
    /// The payload of its creation: a JSON document.
    pub document: Vec<u8>,
}

/// How full a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFill {
    /// Which.
    pub segment: SegmentUse,
    /// Records of objects that exist.
    pub live_records: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Deletions that must not be lost.
    pub tombstones: u64,
}

/// A sealed object that may have reached the end of its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedObject {
    /// Which generation.
    pub generation: u64,
    /// The key in its bucket.
    pub key: String,
    /// When it was sealed, in microseconds since 1970.
    pub sealed_microseconds: u64,
    /// Its bytes.
    pub length: u64,
}

impl Database {
    /// Opens the catalog in a file, or makes it.
    ///
    /// # Errors
    /// [`Kind::Damaged`] for what is no catalog, or that of another store; [`Kind::NoSpace`]; [`Kind::Device`].
    pub fn open(path: &Path, store: u64) -> Result<Database> {
        unpanicked(|| {
            let database = Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(failure)?;
            Database::check(database, store)
        })
    }

    /// As [`Database::open`], on any storage.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_on(backend: impl StorageBackend, store: u64) -> Result<Database> {
        let database =
            Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend).map_err(failure)?;
        Database::check(database, store)
    }

    /// As [`Database::open_on`], after every page was checked. Nothing is made where there is nothing.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_checked(backend: impl StorageBackend, store: u64) -> Result<Database> {
        if backend.len().map_err(|error| failure(redb::Error::Io(error)))? == 0 {
            return Err(damaged("its file is empty"));
        }
        unpanicked(|| {
            let builder = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend);
            let mut database = builder.map_err(failure)?;
            match database.check_integrity() {
                Ok(true) => Database::check(database, store),
                Ok(false) => Err(damaged("its pages do not agree")),
                Err(error) => Err(failure(error)),
            }
        })
    }

    /// Whether the catalog knows a generation's name, or that it is deleted.
    ///
    /// # Errors
    /// What the disk says.
    pub fn is_named_or_deleted(&self, generation: u64) -> Result<bool> {
        let transaction = self.read()?;
        let is_named =
            transaction.open_table(GENERATIONS).map_err(failure)?.get(generation).map_err(failure)?.is_some();
        let deleted = transaction.open_table(DELETED).map_err(failure)?;
        Ok(is_named || deleted.get(generation).map_err(failure)?.is_some())
    }

    /// Generations that have bytes or an end, and no creation and no deletion; and how many bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn nameless(&self) -> Result<Vec<(u64, u64)>> {
        let mut nameless = Vec::new();
        self.change(|work| {
            for generation in orphans(work)? {
                let tables = work.tables();
                if tables.deleted.get(generation).map_err(failure)?.is_some() {
                    continue;
                }
                let mut bytes = 0;
                for row in tables.extents.range((generation, 0)..=(generation, u64::MAX)).map_err(failure)? {
                    let extents = StoredExtent::decode_row(row.map_err(failure)?.1.value());
                    bytes += extents.iter().map(|extent| u64::from(extent.length)).sum::<u64>();
                }
                nameless.push((generation, bytes));
            }
            Ok(())
        })?;
        Ok(nameless)
    }

    fn check(inner: redb::Database, store: u64) -> Result<Database> {
        let database = Database { inner: Arc::new(inner) };
        database.change(|work| {
            let meta = &mut work.tables().meta;
            let known = meta.get("store").map_err(failure)?.map(|value| value.value());
            let version = meta.get("version").map_err(failure)?.map_or(VERSION, |value| value.value());
            if version != VERSION {
                return Err(Error::new(
                    Kind::Damaged,
                    format!(
                        "the catalog is of version {version}, and this program has version {VERSION}: {CURE}"
                    ),
                ));
            }
            match known {
                Some(known) if known == store => Ok(()),
                Some(_) => {
                    Err(Error::new(Kind::Damaged, format!("the catalog belongs to another store: {CURE}")))
                }
                None => {
                    meta.insert("store", store).map_err(failure)?;
                    meta.insert("version", VERSION).map_err(failure)?;
                    Ok(())
                }
            }
        })?;
        Ok(database)
    }

    fn change(&self, apply: impl FnOnce(&mut Work<'_>) -> Result<()>) -> Result<Outcome> {
        let mut transaction = self.inner.begin_write().map_err(failure)?;
        // Opening after a crash then takes no time that grows with the catalog.
        transaction.set_quick_repair(true);
        let outcome = {
            let mut work = Work::new(Tables::open(&transaction)?);
            apply(&mut work)?;
            work.finish()?
        };
        transaction.commit().map_err(failure)?;
        Ok(outcome)
    }

    /// Takes steps, in order and in one transaction.
    ///
    /// # Errors
    /// What the disk says; nothing is changed then.
    pub fn take<'s>(&self, steps: impl IntoIterator<Item = &'s Step>) -> Result<Outcome> {
        self.change(|work| {
            steps.into_iter().try_for_each(|step| match step {
                Step::Enter(batch) => work.enter(batch),
                &Step::Delete { generation, segment } => work.delete_in(generation, segment),
                &Step::Purge { generation } => work.purge(generation, false),
                &Step::Doubt { generation } => work.doubt(generation),
                &Step::Free(segment) => work.free(segment),
                &Step::MoveTombstone { generation, from, to } => work.move_tombstones(generation, from, to),
            })
        })
    }

    /// A start begins to enter what it reads. True: an earlier one did, and was cut off before it had settled that.
    ///
    /// # Errors
    /// What the disk says; nothing is changed then.
    pub fn begin_start(&self) -> Result<bool> {
        let mut was_cut_off = false;
        self.change(|work| {
            was_cut_off = work.tables().meta.insert("unsettled", 1).map_err(failure)?.is_some();
            Ok(())
        })?;
        Ok(was_cut_off)
    }

    /// After every log was read: what has no seal is interrupted, what is deleted is let go of, and nothing is written
    /// to any segment that is known. `touched` are generations that came up while reading, and when last; `declared`
    /// those with the length that they are going to have. Of those that `may_be_nameless` it lets go where nothing says
    /// what they are. Answers what is damaged, a sentence each.
    ///
    /// # Errors
    /// What the disk says; nothing is changed then.
    pub fn settle(
        &self,
        touched: &HashMap<u64, u64>,
        declared: &HashMap<u64, u64>,
        may_be_nameless: Nameless,
    ) -> Result<(Outcome, Vec<String>)> {
        let mut damage = Vec::new();
        let outcome = self.change(|work| {
            let deleted = keys(&work.tables().deleted)?;
            for generation in deleted {
                work.purge(generation, true)?;
            }
            let mut unsettled = keys(&work.tables().live)?;
            unsettled.extend(touched.keys());
            unsettled.sort_unstable();
            unsettled.dedup();
            for generation in unsettled {
                let at_microseconds = touched.get(&generation).copied().unwrap_or(0);
                if let Some((row, sealed)) = work.settle_end(generation, at_microseconds)? {
                    damage.push(format!(
                        "{}/{} (generation {generation}) was sealed with {sealed} bytes, of which {} are left",
                        row.bucket,
                        String::from_utf8_lossy(&row.key),
                        row.length
                    ));
                }
            }
            for (&generation, &length) in declared {
                work.declare(generation, length)?;
            }
            work.tables().doubtful.retain(|_, ()| false).map_err(failure)?;
            work.fill_all()?;
            work.tables().meta.remove("unsettled").map_err(failure)?;
            for generation in match may_be_nameless {
                Nameless::Any => orphans(work)?,
                Nameless::These(generations) => generations,
            } {
                if work.tables().generations.get(generation).map_err(failure)?.is_none() {
                    work.purge_orphan(generation)?;
                }
            }
            Ok(())
        })?;
        Ok((outcome, damage))
    }

    fn read(&self) -> Result<ReadTransaction> {
        self.inner.begin_read().map_err(failure)
    }

    /// What need not be read at the start.
    ///
    /// # Errors
    /// What the disk says.
    pub fn coverage(&self) -> Result<Coverage> {
        let transaction = self.read()?;
        let mut coverage = Coverage::default();
        let segments = transaction.open_table(SEGMENTS).map_err(failure)?;
        for row in segments.range::<u64>(..).map_err(failure)? {
            let (number, value) = row.map_err(failure)?;
            let row = SegmentRow::from_value(value.value());
            let (epoch, next_sequence) = (row.epoch, row.next_sequence);
            let known = match row {
                SegmentRow { is_free: true, .. } => KnownSegment::Free { epoch },
                SegmentRow { is_full: true, is_pinned: false, .. } => KnownSegment::Covered { epoch },
                // Of those that are pinned there may be more on the disk than counts.
                SegmentRow { .. } => KnownSegment::Begun { epoch, next_sequence },
            };
            coverage.segments.insert(number.value(), known);
        }
        let logs = transaction.open_table(LOGS).map_err(failure)?;
        for row in logs.range::<u16>(..).map_err(failure)? {
            let (log, value) = row.map_err(failure)?;
            coverage.logs.insert(log.value(), value.value());
        }
        Ok(coverage)
    }

    /// A view of this moment, for look-ups.
    ///
    /// # Errors
    /// What the disk says.
    pub fn view(&self) -> Result<View> {
        Ok(View { transaction: self.read()? })
    }
}

fn damaged(what: &str) -> Error {
    Error::new(Kind::Damaged, format!("the catalog is damaged ({what}): {CURE}"))
}

/// Opens a database. It believes some of what it reads in its file, and panics where that was wrong; here that is an
/// error like any other, and nothing is printed.
fn unpanicked(open: impl FnOnce() -> Result<Database>) -> Result<Database> {
    use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
    let (former, here) = (Arc::new(take_hook()), std::thread::current().id());
    let others = former.clone();
    set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            others(panic);
        }
    }));
    let opened = catch_unwind(AssertUnwindSafe(open));
    drop(take_hook());
    // Somebody else may have done the same meanwhile, and hold it.
    match Arc::try_unwrap(former) {
        Ok(former) => set_hook(former),
        Err(former) => set_hook(Box::new(move |panic| former(panic))),
    }
    opened.unwrap_or_else(|_| Err(damaged("what its file says cannot be")))
}

/// The generations that one of these tables is keyed by.
fn keys<V: redb::Value + 'static>(table: &impl ReadableTable<u64, V>) -> Result<Vec<u64>> {
    table.iter().map_err(failure)?.map(|row| row.map(|(key, _)| key.value()).map_err(failure)).collect()
}

/// Generations that have bytes or an end, and no creation.
fn orphans(work: &mut Work<'_>) -> Result<Vec<u64>> {
    let mut orphans = keys(&work.tables().ends)?;
    let mut from = 0;
    loop {
        let tables = work.tables();
        let next = tables.extents.range((from, 0)..).map_err(failure)?.next().transpose().map_err(failure)?;
        let Some(generation) = next.map(|(key, _)| key.value().0) else { break };
        if tables.generations.get(generation).map_err(failure)?.is_none() {
            orphans.push(generation);
        }
        let Some(following) = generation.checked_add(1) else { break };
        from = following;
    }
    orphans.sort_unstable();
    orphans.dedup();
    Ok(orphans)
}

/// The catalog at one moment.
pub struct View {
    pub(super) transaction: ReadTransaction,
}

fn stored(
    generation: u64,
    (state, length, begun, modified, _, _, document): ObjectValue<'_>,
) -> StoredObject {
    StoredObject {
        generation,
        state: state_of(state),
        length,
        begun_microseconds: begun,
        modified_microseconds: modified,
        document: document.to_vec(),
    }
}

impl View {
    /// All generations of a name, in ascending order.
    ///
    /// # Errors
    /// What the disk says.
    pub fn objects(&self, bucket: &str, key: &[u8]) -> Result<Vec<StoredObject>> {
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        objects
            .range((bucket, key, 0)..=(bucket, key, u64::MAX))
            .map_err(failure)?
            .map(|row| {
                let (key, value) = row.map_err(failure)?;
                Ok(stored(key.value().2, value.value()))
            })
            .collect()
    }

    /// The interrupted ones among the objects from a place on, of so many rows, and where to go on if there are more.
    ///
    /// # Errors
    /// What the disk says.
    pub fn interrupted(&self, from: &Place, rows_max: usize) -> Result<Interrupted> {
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        let start = (from.bucket.as_str(), from.key.as_slice(), from.generation);
        let mut found = Vec::new();
        for (count, row) in objects.range(start..).map_err(failure)?.enumerate() {
            let (key, value) = row.map_err(failure)?;
            let (bucket, key, generation) = key.value();
            let place = Place { bucket: bucket.to_owned(), key: key.to_owned(), generation };
            if count == rows_max {
                return Ok((found, Some(place)));
            }
            let row = stored(generation, value.value());
            if row.state == State::Interrupted {
                found.push((place, row));
            }
        }
        Ok((found, None))
    }

    /// The first key of a bucket from a place on, if there is one.
    ///
    /// # Errors
    /// What the disk says.
    pub fn next_key(&self, bucket: &str, from: &Bound<Vec<u8>>) -> Result<Option<String>> {
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        let start = match from {
            Bound::Included(key) => Bound::Included((bucket, key.as_slice(), 0)),
            Bound::Excluded(key) => Bound::Excluded((bucket, key.as_slice(), u64::MAX)),
            Bound::Unbounded => Bound::Included((bucket, &[][..], 0)),
        };
        let row = objects
            .range::<(&str, &[u8], u64)>((start, Bound::Unbounded))
            .map_err(failure)?
            .next()
            .transpose()
            .map_err(failure)?;
        let Some((found, _)) = row else { return Ok(None) };
        let (found_bucket, key, _) = found.value();
        Ok((found_bucket == bucket).then(|| String::from_utf8_lossy(key).into_owned()))
    }

    /// The first bucket from a text on.
    ///
    /// # Errors
    /// What the disk says.
    pub fn next_bucket(&self, from: &str) -> Result<Option<String>> {
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        let row =
            objects.range((from, &[][..], 0)..).map_err(failure)?.next().transpose().map_err(failure)?;
        Ok(row.map(|(key, _)| key.value().0.to_owned()))
    }

    /// The segments with the creation of an object and with its seal (0 stands for no seal), and its length in bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn segments_and_length_of(&self, generation: u64) -> Result<Option<(u64, u64, u64)>> {
        let Some((bucket, key)) = self.name(generation)? else { return Ok(None) };
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        let row = objects.get((bucket.as_str(), key.as_bytes(), generation)).map_err(failure)?;
        Ok(row.map(|row| {
            let (_, length, _, _, create_segment, seal_segment, _) = row.value();
            (create_segment, seal_segment, length)
        }))
    }

    /// The largest generation that was ever entered.
    ///
    /// # Errors
    /// What the disk says.
    pub fn generation_max(&self) -> Result<u64> {
        let meta = self.transaction.open_table(META).map_err(failure)?;
        Ok(meta.get("generation_max").map_err(failure)?.map_or(0, |value| value.value()))
    }

    /// Names of these generations that have others too.
    ///
    /// # Errors
    /// What the disk says.
    pub fn several_generations_of(&self, generations: &[u64]) -> Result<Vec<(String, String)>> {
        let mut names = Vec::new();
        for &generation in generations {
            if let Some((bucket, key)) = self.name(generation)?
                && self.objects(&bucket, key.as_bytes())?.len() > 1
            {
                names.push((bucket, key));
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// All names that have several generations.
    ///
    /// # Errors
    /// What the disk says.
    pub fn names_with_several_generations(&self) -> Result<Vec<(String, String)>> {
        let objects = self.transaction.open_table(OBJECTS).map_err(failure)?;
        let mut names: Vec<(String, String)> = Vec::new();
        let mut former: Option<(String, Vec<u8>)> = None;
        for row in objects.iter().map_err(failure)? {
            let (key, _) = row.map_err(failure)?;
            let (bucket, key, _) = key.value();
            let is_same = former.as_ref().is_some_and(|former| former.0 == bucket && former.1 == key);
            if is_same {
                names.push((bucket.to_owned(), String::from_utf8_lossy(key).into_owned()));
            } else {
                former = Some((bucket.to_owned(), key.to_owned()));
            }
        }
        names.dedup();
        Ok(names)
    }

    /// The generations of which no end is known, with their names.
    ///
    /// # Errors
    /// What the disk says.
    pub fn unended(&self) -> Result<Vec<(u64, String, String)>> {
        let live = keys(&self.transaction.open_table(LIVE).map_err(failure)?)?;
        let mut unended = Vec::new();
        for generation in live {
            if let Some((bucket, key)) = self.name(generation)? {
                unended.push((generation, bucket, key));
            }
        }
        Ok(unended)
    }

    /// The name of a generation.
    ///
    /// # Errors
    /// What the disk says.
    pub fn name(&self, generation: u64) -> Result<Option<(String, String)>> {
        let generations = self.transaction.open_table(GENERATIONS).map_err(failure)?;
        let name = generations.get(generation).map_err(failure)?;
        Ok(name.map(|name| {
            let (bucket, key) = name.value();
            (bucket.to_owned(), String::from_utf8_lossy(key).into_owned())
        }))
    }

    /// How long an object is going to be, where that was declared after it began.
    ///
    /// # Errors
    /// What the disk says.
    pub fn declared_length(&self, generation: u64) -> Result<Option<u64>> {
        let declared = self.transaction.open_table(DECLARED).map_err(failure)?;
        Ok(declared.get(generation).map_err(failure)?.map(|length| length.value()))
    }

    /// The extents of an object from the one that holds `offset` on, about `count` of them, with the epoch of each
    /// segment.
    ///
    /// # Errors
    /// What the disk says.
    pub fn extents(&self, generation: u64, offset: u64, count: usize) -> Result<Vec<(StoredExtent, u64)>> {
        let table = self.transaction.open_table(EXTENTS).map_err(failure)?;
        let segments = self.transaction.open_table(SEGMENTS).map_err(failure)?;
        let first = table
            .range((generation, 0)..=(generation, offset))
            .map_err(failure)?
            .next_back()
            .transpose()
            .map_err(failure)?
            .map_or(offset, |(key, _)| key.value().1);
        let mut extents = Vec::new();
        let mut epoch = (0, 0);
        for row in table.range((generation, first)..=(generation, u64::MAX)).map_err(failure)? {
            let (_, value) = row.map_err(failure)?;
            for bytes in value.value().chunks_exact(EXTENT_LENGTH) {
                let extent = StoredExtent::decode(bytes);
                if extent.end() <= offset {
                    continue;
                }
                if epoch.0 != extent.segment {
                    let row = segments.get(extent.segment).map_err(failure)?;
                    epoch = (extent.segment, row.map_or(0, |row| row.value().0));
                }
                extents.push((extent, epoch.1));
            }
            if extents.len() >= count {
                break;
            }
        }
        Ok(extents)
    }

    /// How full each segment is that nothing is written to any more.
    ///
    /// # Errors
    /// What the disk says.
    pub fn fills(&self) -> Result<Vec<SegmentFill>> {
        let segments = self.transaction.open_table(SEGMENTS).map_err(failure)?;
        let mut fills = Vec::new();
        for row in segments.iter().map_err(failure)? {
            let (number, value) = row.map_err(failure)?;
            let row = SegmentRow::from_value(value.value());
            if row.is_full && !row.is_free && !row.is_pinned {
                fills.push(SegmentFill {
                    segment: SegmentUse { number: number.value(), epoch: row.epoch },
                    live_records: row.live_records,
                    live_bytes: row.live_bytes,
                    tombstones: row.tombstones,
                });
            }
        }
        Ok(fills)
    }

    /// The generations whose deletions in this segment must not be lost.
    ///
    /// # Errors
    /// What the disk says.
    pub fn tombstones_in(&self, segment: u64) -> Result<Vec<u64>> {
        let places = self.transaction.open_table(TOMBSTONE_PLACES).map_err(failure)?;
        let rows = places.range((segment, 0, 0)..=(segment, u64::MAX, u64::MAX)).map_err(failure)?;
        let mut generations = Vec::new();
        for row in rows {
            let (_, create_segment, generation) = row.map_err(failure)?.0.value();
            if create_segment != segment {
                generations.push(generation);
            }
        }
        generations.dedup();
        Ok(generations)
    }

    /// How many sealed objects a bucket has, and their bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn bucket_totals(&self, bucket: &str) -> Result<(u64, u64)> {
        let buckets = self.transaction.open_table(BUCKETS).map_err(failure)?;
        Ok(buckets.get(bucket).map_err(failure)?.map_or((0, 0), |value| value.value()))
    }

    /// The sealed objects of a bucket, the one that was sealed first before the others, at most `count`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn oldest_sealed(&self, bucket: &str, count: usize) -> Result<Vec<SealedObject>> {
        let sealed = self.transaction.open_table(SEALED).map_err(failure)?;
        let mut oldest = Vec::new();
        for row in sealed.range((bucket, 0, 0)..=(bucket, u64::MAX, u64::MAX)).map_err(failure)?.take(count) {
            let (key, length) = row.map_err(failure)?;
            let (_, sealed_microseconds, generation) = key.value();
            let Some((_, key)) = self.name(generation)? else { continue };
            oldest.push(SealedObject { generation, key, sealed_microseconds, length: length.value() });
        }
        Ok(oldest)
    }
}
