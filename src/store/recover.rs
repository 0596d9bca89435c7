//! From the segments back to the catalog, at the start.
//!
//! The catalog covers what it was told; here it gets told the rest: the records of segments that were active when the
//! store ended, or of all segments where the catalog was lost. When [`recover`] returns, the catalog has everything
//! that counts, on stable storage, and nothing that does not count can be taken for anything else.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::catalog::database::View;
use super::catalog::{Batch, Change, CreateDocument, Database, Nameless, Outcome, SegmentUse, Step};
use super::name::Name;
use super::object::State;
use crate::error::Result;
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{Continuation, Known, RecoveredRecord, Space, Survey, SurveyedSegment, survey};
use crate::runtime::Core;

/// What came back, and what did not.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Where each log goes on.
    pub logs: BTreeMap<u16, Continuation>,
    /// The largest generation that was ever begun.
    pub generation_max: u64,
    /// What is damaged, a sentence each.
    pub damage: Vec<String>,
    /// How many records were read.
    pub records: usize,
    /// How many bytes were read.
    pub scanned_bytes: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Names with several generations: some may be superseded.
    pub names: Vec<Name>,
}

/// A payload that is not what was written.
struct Broken {
    generation: u64,
    kind: RecordKind,
    segment: u64,
    position: u64,
    /// Which of the object's bytes.
    bytes: std::ops::Range<u64>,
}

/// Reads what the catalog does not cover, and tells it. With `is_rebuilt` it covers nothing. Dropping the future is as if
/// the process were killed: another one, from the beginning, finds the same. A catalog that was being made anew is begun
/// anew.
///
/// # Errors
/// A folder, file or catalog that cannot be read or written.
pub async fn recover(
    core: &Rc<Core>,
    space: &Arc<Space>,
    database: &Database,
    is_rebuilt: bool,
) -> Result<Recovered> {
    let began = core.precise_now();
    let Learned { mut recovered, survey, outcome } = learn(core, space, database, is_rebuilt, true).await?;
    let cleared = survey.settle(core, space).await?;
    let freed = cleared.iter().map(|&(number, epoch)| Step::Free(SegmentUse { number, epoch }));
    let freed: Vec<Step> = freed.collect();
    let last = database.take(&freed)?;
    for segment in outcome.emptied.into_iter().chain(last.emptied) {
        space.segment(segment.number, segment.epoch).set_empty();
    }
    for number in survey.free.iter().copied().chain(cleared.iter().map(|&(number, _)| number)) {
        space.set_free(number);
    }
    recovered.elapsed = core.precise_now().saturating_duration_since(began);
    Ok(recovered)
}

/// What was learned from the segments, before any of them is changed.
pub struct Learned {
    /// What came back, and what did not.
    pub recovered: Recovered,
    /// What of the segments counts.
    pub survey: Survey,
    /// What the catalog makes of it.
    pub outcome: Outcome,
}

/// As [`recover`], and leaves the segments as they are: only the catalog is changed. With `is_start`, blocks that do not
/// count are made unreadable before the catalog covers their segments: a crash in between would leave them for ever.
/// Dropping the future: as for [`recover`].
///
/// # Errors
/// A folder, file or catalog that cannot be read, a catalog that cannot be written.
pub async fn learn(
    core: &Rc<Core>,
    space: &Arc<Space>,
    database: &Database,
    is_rebuilt: bool,
    is_start: bool,
) -> Result<Learned> {
    let coverage = database.coverage()?;
    let known = Known { segments: coverage.segments, logs: coverage.logs };
    let survey = survey(core, space, &known).await?;
    let mut recovered = Recovered {
        logs: survey.logs.clone(),
        scanned_bytes: survey.scanned_bytes,
        damage: survey.damage.clone(),
        ..Recovered::default()
    };
    let mut reading = Reading::default();
    let was_cut_off = database.begin_start()?;
    for segment in &survey.segments {
        let records = survey.read(core, space, segment).await?;
        recovered.records += records.len();
        let batch = reading.batch(segment, records, is_rebuilt);
        let outcome = database.take(&[Step::Enter(Arc::new(batch))])?;
        for generation in outcome.unequal {
            reading.touched.entry(generation).or_default();
        }
    }
    let mut nameless = Vec::new();
    for broken in reading.broken.iter().filter(|broken| broken.kind == RecordKind::Create) {
        if !database.is_named_or_deleted(broken.generation)? {
            recovered.damage.push(format!(
                "an object of which only its number is known (generation {}) has lost its name: position {} of \
                 segment {} is damaged",
                broken.generation, broken.position, broken.segment
            ));
            nameless.push(broken.generation);
        }
    }
    // Where nothing is damaged, bytes without a name are what is left of objects that were deleted long ago.
    if !survey.damage.is_empty() {
        for (generation, bytes) in database.nameless()? {
            if !nameless.contains(&generation) {
                recovered.damage.push(format!(
                    "{bytes} bytes of an object of which only its number is known (generation {generation}) have no \
                     name: it is lost, unless it was deleted"
                ));
            }
        }
    }
    // Where records are lost, they may be the ends of objects.
    let is_damaged = !survey.damage.is_empty() || !reading.broken.is_empty();
    if !survey.damage.is_empty() {
        let unended = database.view()?.unended()?;
        recovered.damage.extend(unended.into_iter().map(|(generation, bucket, key)| {
            format!(
                "{bucket}/{key} (generation {generation}) has no end: it is lost, unless the object was being written \
                 when the store ended"
            )
        }));
    }
    if is_start {
        survey.clear_void(core, space).await?;
    }
    let may_be_nameless = match is_rebuilt || was_cut_off {
        true => Nameless::Any,
        // What has lost its name to damage stays, and is named again.
        false if !survey.damage.is_empty() || !nameless.is_empty() => Nameless::These(Vec::new()),
        false => Nameless::These(reading.touched.keys().chain(&reading.sealed).copied().collect()),
    };
    let (outcome, damage) = database.settle(&reading.touched, &reading.declared, may_be_nameless)?;
    recovered.damage.extend(reading.damage);
    recovered.damage.extend(damage);
    let view = database.view()?;
    for broken in reading.broken {
        // What is deleted has been punched out, and is missed by nobody.
        if let Some((bucket, key)) = view.name(broken.generation)? {
            // Parts of an append that was given up are dead when the next one is in their place.
            if broken.kind.is_data() && is_replaced(&view, &broken)? {
                continue;
            }
            let what = match broken.kind {
                RecordKind::Create => "its metadata".to_owned(),
                _ => format!("its bytes {} to {}", broken.bytes.start, broken.bytes.end.saturating_sub(1)),
            };
            recovered.damage.push(format!(
                "{bucket}/{key} (generation {}) has lost {what}: position {} of segment {} is damaged",
                broken.generation, broken.position, broken.segment
            ));
        }
    }
    for (&generation, &length) in reading.interrupted.iter().filter(|_| is_damaged) {
        let Some((bucket, key)) = view.name(generation)? else { continue };
        let rows = view.objects(&bucket, key.as_bytes())?;
        let row = rows.iter().find(|row| row.generation == generation && row.state == State::Interrupted);
        if let Some(row) = row.filter(|row| row.length < length) {
            recovered.damage.push(format!(
                "{bucket}/{key} (generation {generation}) was interrupted with {length} bytes, of which {} are left",
                row.length
            ));
        }
    }
    let several = match is_rebuilt {
        true => view.names_with_several_generations()?,
        false => view.several_generations_of(&reading.sealed)?,
    };
    recovered.names = several.iter().filter_map(|(bucket, key)| Name::new(bucket, key).ok()).collect();
    recovered.generation_max = view.generation_max()?;
    drop(view);
    Ok(Learned { recovered, survey, outcome })
}

/// Whether another record has a place of the object that this one had: then this one does not count any more.
fn is_replaced(view: &View, broken: &Broken) -> Result<bool> {
    let extents = view.extents(broken.generation, broken.bytes.start, 1)?;
    Ok(extents.first().is_some_and(|(extent, _)| extent.offset < broken.bytes.end))
}

/// What comes up while segments are read.
#[derive(Default)]
struct Reading {
    /// Generations without a seal so far, and when they were last heard of, in microseconds since 1970.
    touched: HashMap<u64, u64>,
    sealed: Vec<u64>,
    /// How many bytes objects were interrupted with.
    interrupted: HashMap<u64, u64>,
    /// How long objects are going to be. Their creations may be in logs that are read later.
    declared: HashMap<u64, u64>,
    broken: Vec<Broken>,
    damage: Vec<String>,
}

impl Reading {
    /// What the catalog is to be told of a segment.
    fn batch(&mut self, segment: &SurveyedSegment, records: Vec<RecoveredRecord>, is_rebuilt: bool) -> Batch {
        let mut changes = Vec::with_capacity(records.len());
        for record in records {
            let header = record.header;
            let generation = header.generation;
            if !record.is_whole {
                let (kind, position) = (header.kind, record.position);
                let bytes = header.offset..header.offset + u64::from(header.length);
                self.broken.push(Broken { generation, kind, segment: segment.number, position, bytes });
                continue;
            }
            if header.kind == RecordKind::Interrupt {
                self.interrupted.insert(generation, header.offset);
            }
            match header.kind {
                RecordKind::Delete => {
                    self.touched.remove(&generation);
                }
                // A frame has a timestamp of the caller's.
                RecordKind::Frame => {
                    self.touched.entry(generation).or_default();
                }
                RecordKind::Seal => {
                    self.touched.remove(&generation);
                    self.sealed.push(generation);
                }
                RecordKind::Declare => {
                    self.declared.insert(generation, header.offset);
                    continue;
                }
                RecordKind::Create | RecordKind::Append | RecordKind::Interrupt => {
                    let last = self.touched.entry(generation).or_default();
                    *last = header.timestamp.max(*last);
                }
            }
            match change(&header, record.position, &record.document) {
                Ok(change) => changes.push(change),
                Err(message) => self.damage.push(format!("generation {generation}: {message}")),
            }
        }
        let (next_sequence, term) = segment.covers();
        Batch {
            segment: SegmentUse { number: segment.number, epoch: segment.epoch },
            log: segment.log,
            next_sequence,
            term,
            is_full: false,
            is_pinned: false,
            is_rebuilt,
            changes,
        }
    }
}

/// What the catalog is to be told of a record.
pub(super) fn change(
    header: &RecordHeader,
    position: u64,
    payload: &[u8],
) -> std::result::Result<Change, String> {
    let (generation, at_microseconds) = (header.generation, header.timestamp);
    Ok(match header.kind {
        RecordKind::Create => {
            let document: CreateDocument = serde_json::from_slice(payload)
                .map_err(|error| format!("its metadata cannot be read: {error}"))?;
            let name = Name::parse(&document.name).map_err(|error| format!("it has no name: {error}"))?;
            let document = payload.into();
            Change::Create { generation, name, document, at_microseconds }
        }
        RecordKind::Append | RecordKind::Frame => Change::Data {
            generation,
            offset: header.offset,
            length: header.length,
            continued: header.continued,
            position,
        },
        RecordKind::Seal => Change::Seal { generation, length: header.offset, at_microseconds },
        RecordKind::Interrupt => Change::Interrupt { generation, at_microseconds },
        RecordKind::Declare => Change::Declare { generation, length: header.offset },
        RecordKind::Delete => Change::Delete { generation },
    })
}
