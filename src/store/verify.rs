//! Whether a store is whole: every block, record, checksum and extent, and every row of the catalog.
//!
//! When [`verify`] returns, every segment was read to its end and compared with the catalog as it would be after a
//! start. What the catalog says must be in the segments, whole and where it says; and what the segments say must be in
//! the catalog. What is left of deleted objects is no damage: their bytes are given back to the file system.
//! Nothing in the store is changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::catalog::CreateDocument;
use super::catalog::check::{Lookup, Tally, Totals};
use super::finding::{Finding, Part, Touched};
use super::object::State;
use super::offline::Offline;
use crate::error::{Error, Kind, Result};
use crate::log::format::RecordKind;
use crate::log::{Hole, Inspected, Inspection, Space, inspect};
use crate::runtime::Core;

/// What was checked, and what is damaged.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is damaged. Empty: nothing is.
    pub findings: Vec<Finding>,
    /// How many segments were read.
    pub segments: u64,
    /// How many blocks were checked.
    pub blocks: u64,
    /// How many records were checked.
    pub records: u64,
    /// How many objects the store holds.
    pub objects: u64,
    /// How many bytes they have.
    pub object_bytes: u64,
    /// How many rows of the catalog were checked.
    pub rows: u64,
    /// How many bytes of segments were read.
    pub read_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Checks the store in the data folder at `path`. `progress` is told how many bytes of how many are checked. Dropping the
/// future leaves nothing behind.
///
/// # Errors
/// [`Kind::DataFolder`]: it cannot be read, or is none. [`Kind::Locked`]: a server has it open. What is damaged is no
/// error, but in the report.
pub async fn verify(core: &Rc<Core>, path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Report> {
    let began = core.precise_now();
    let mut report = verify_open(core, &Offline::open(core, path).await?, &mut progress).await?;
    report.elapsed = core.precise_now().saturating_duration_since(began);
    Ok(report)
}

/// As [`verify`], of a store that was opened already.
///
/// # Errors
/// As [`verify`].
pub(crate) async fn verify_open(
    core: &Rc<Core>,
    store: &Offline,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Report> {
    let mut findings = store.findings().to_vec();
    let mut lookup = store.lookup()?;
    let totals = lookup.check(store.segment_bytes(), |finding| findings.push(finding))?;
    let mut check = Check {
        store,
        totals: &totals,
        findings,
        report: Report {
            objects: totals.objects,
            object_bytes: totals.bytes,
            rows: totals.rows,
            ..Report::default()
        },
        terms: HashMap::new(),
        last_blocks: Vec::new(),
        deleted: HashSet::new(),
        unknown: BTreeMap::new(),
        incomplete: HashMap::new(),
    };
    let numbers = check.numbers(core)?;
    let (mut done, whole) = (0, numbers.len() as u64 * store.segment_bytes());
    for number in numbers {
        check.segment(core, &mut lookup, number).await?;
        done += store.segment_bytes();
        progress(done, whole);
    }
    check.end(&lookup)?;
    let Check { findings, mut report, .. } = check;
    report.findings = findings;
    Ok(report)
}

struct Check<'a> {
    store: &'a Offline,
    totals: &'a Totals,
    findings: Vec<Finding>,
    report: Report,
    /// For each log the terms that were seen, with the sequence that each began with, and its last block.
    terms: HashMap<u16, BTreeMap<u32, (u64, u64)>>,
    /// Blocks whose header is whole and whose records are not, and that nothing follows in their segment.
    last_blocks: Vec<(u64, Hole)>,
    /// Generations whose deletion stands somewhere.
    deleted: HashSet<u64>,
    /// Creations of which the catalog knows nothing: where, and the name.
    unknown: BTreeMap<u64, (u64, u64, Option<String>)>,
    /// Segments in which something is missing that the catalog has there.
    incomplete: HashMap<u64, Incomplete>,
}

/// What was found in a segment in which something is missing.
struct Incomplete {
    seen: Seen,
    holes: Vec<Hole>,
    /// Why all of it is missing, if so.
    reason: Option<String>,
}

/// What of a segment the catalog has, and was found.
#[derive(Default)]
struct Seen {
    /// Extents: position, generation, offset. One place may be claimed by several.
    extents: HashSet<(u64, u64, u64)>,
    creations: HashSet<u64>,
    seals: HashSet<u64>,
    deletions: HashSet<u64>,
}

impl Seen {
    fn is_all_of(&self, tally: &Tally) -> bool {
        self.extents.len() as u64 == tally.extents
            && self.creations.len() as u64 == tally.creations
            && self.seals.len() as u64 == tally.seals
            && self.deletions.len() as u64 == tally.deletions
    }
}

impl Check<'_> {
    /// The segments that are there, and those that should be.
    fn numbers(&self, core: &Core) -> Result<Vec<u64>> {
        let folder = self.store.segments();
        let names = core.list(folder).map_err(|errno| {
            Error::new(Kind::DataFolder, format!("cannot list the segments in {}: {errno}", folder.display()))
        })?;
        let numbers = names.iter().filter_map(|name| name.to_str()?.strip_suffix(".segment")?.parse().ok());
        let mut numbers: Vec<u64> = numbers.collect();
        // What is free need not be there.
        let needed = self.totals.segments.iter().filter(|(_, tally)| !tally.is_free && !tally.is_empty);
        numbers.extend(needed.map(|(&number, _)| number));
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    async fn segment(&mut self, core: &Rc<Core>, lookup: &mut Lookup, number: u64) -> Result<()> {
        let tally = self.totals.segments.get(&number).copied();
        let in_use = tally.filter(|tally| !tally.is_free && !tally.is_empty && tally.epoch != 0);
        let wanted = match in_use {
            Some(_) => lookup.deletions_in(number)?,
            None => HashSet::new(),
        };
        let mut reading = Reading {
            number,
            in_use,
            wanted,
            lookup,
            seen: Seen::default(),
            deleted: &mut self.deleted,
            unknown: &mut self.unknown,
            findings: &mut self.findings,
            failure: None,
        };
        let epoch = in_use.map(|tally| tally.epoch);
        let (folder, store) = (self.store.segments(), self.store.store());
        let void = self.store.void_in(number);
        let visit = |record: Inspected<'_>| {
            // A crash may have left whole blocks behind the end of a log too.
            if record.block.is_none_or(|block| !void.contains(&block)) {
                reading.record(record);
            }
        };
        let outcome = inspect(core, folder, store, number, epoch, visit).await;
        let Reading { seen, failure, .. } = reading;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let inspection = match outcome {
            Ok(inspection) => inspection,
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                let path = Space::path(folder, number);
                return Err(Error::new(Kind::DataFolder, format!("cannot read {}: {errno}", path.display())));
            }
            Err(errno) => {
                let reason = match errno {
                    Errno::NOENT => format!("segment {number} is missing"),
                    errno => format!("segment {number} cannot be read: {errno}"),
                };
                self.incomplete.insert(number, Incomplete { seen, holes: Vec::new(), reason: Some(reason) });
                return Ok(());
            }
        };
        self.report.segments += 1;
        self.report.blocks += inspection.blocks;
        self.report.records += inspection.records;
        self.report.read_bytes += inspection.read_bytes;
        self.note_terms(&inspection);
        self.header(number, in_use, &inspection);
        let Some(tally) = in_use else { return Ok(()) };
        if let Some((position, errno)) = inspection.unread {
            self.findings.push(Finding::new(format!(
                "segment {number} cannot be read from position {position} on: {errno}"
            )));
        }
        let is_complete = seen.is_all_of(&tally);
        let is_surveyed = self.store.surveyed().contains(&number);
        let mut holes = Vec::new();
        for hole in inspection.holes {
            // What a failed write has left is void, and what follows a torn write too.
            let is_damage = hole.was_block || hole.has_follower && !is_surveyed && !tally.is_pinned;
            if is_damage {
                holes.push(hole);
            } else if hole.block.is_some() && !is_surveyed && !tally.is_pinned {
                self.last_blocks.push((number, hole));
            }
        }
        if is_complete {
            for hole in holes {
                self.findings.push(Finding::new(describe(number, &hole)));
            }
        } else {
            self.incomplete.insert(number, Incomplete { seen, holes, reason: None });
        }
        Ok(())
    }

    fn note_terms(&mut self, inspection: &Inspection) {
        for &(log, term, start, last) in &inspection.terms {
            let known = self.terms.entry(log).or_default().entry(term).or_insert((start, last));
            known.1 = known.1.max(last);
        }
    }

    /// The header of the file, and its length.
    fn header(&mut self, number: u64, in_use: Option<Tally>, inspection: &Inspection) {
        let segment_bytes = self.store.segment_bytes();
        let mut wrong = |what: String| self.findings.push(Finding::new(format!("segment {number}: {what}")));
        if let Some(foreign) = &inspection.foreign {
            wrong(foreign.clone());
        }
        match inspection.header {
            Some(header) => {
                if header.store != self.store.store() {
                    wrong("its header says that it belongs to another store".to_owned());
                }
                if header.number != number {
                    wrong(format!("its header says that it is segment {}", header.number));
                }
                if header.length != segment_bytes {
                    wrong(format!("its header says that it is {} bytes long", header.length));
                }
                if let Some(tally) = in_use
                    && header.epoch != tally.epoch
                {
                    wrong(format!(
                        "its header is of use {} of the file, and the catalog of use {}",
                        header.epoch, tally.epoch
                    ));
                }
            }
            None if inspection.is_header_damaged => wrong("its header is damaged".to_owned()),
            None if in_use.is_some() && inspection.foreign.is_none() => wrong("it has no header".to_owned()),
            None => {}
        }
        if in_use.is_some() && inspection.file_bytes != segment_bytes {
            wrong(format!("its file is {} bytes long, and not {segment_bytes}", inspection.file_bytes));
        }
    }

    /// What can be told only after every segment was read.
    fn end(&mut self, lookup: &Lookup) -> Result<()> {
        for (number, hole) in std::mem::take(&mut self.last_blocks) {
            if hole.block.is_some_and(|block| self.was_durable(block)) {
                match self.incomplete.get_mut(&number) {
                    Some(incomplete) => incomplete.holes.push(hole),
                    None => self.findings.push(Finding::new(describe(number, &hole))),
                }
            }
        }
        for (generation, (segment, position, name)) in std::mem::take(&mut self.unknown) {
            if self.deleted.contains(&generation) {
                continue;
            }
            let what = match name {
                Some(_) => "is not in the catalog and was not deleted",
                None => "is damaged",
            };
            self.findings.push(Finding::of(
                format!("segment {segment}, position {position}: the creation of an object {what}"),
                Touched { name, generation, part: Part::Creation },
            ));
        }
        self.missing(lookup)
    }

    /// Whether a block at the end of a segment was durable once; otherwise a crash has cut its writing off.
    fn was_durable(&self, (log, term, sequence): (u16, u32, u64)) -> bool {
        let terms = self.terms.get(&log);
        let is_void =
            terms.is_some_and(|terms| terms.range(term + 1..).any(|(_, &(start, _))| start <= sequence));
        let went_on = terms.and_then(|terms| terms.get(&term)).is_some_and(|&(_, last)| last > sequence);
        let is_known =
            self.totals.logs.get(&log).is_some_and(|&(next, last)| last == term && sequence < next);
        !is_void && (went_on || is_known)
    }

    /// Names what the catalog has in segments and is not there.
    fn missing(&mut self, lookup: &Lookup) -> Result<()> {
        if self.incomplete.is_empty() {
            return Ok(());
        }
        let incomplete = std::mem::take(&mut self.incomplete);
        let segments: HashSet<u64> = incomplete.keys().copied().collect();
        let mut lost: BTreeMap<u64, Vec<(Option<u64>, u64, Part)>> = BTreeMap::new();
        let mut names: HashMap<u64, String> = HashMap::new();
        lookup.each_extent_in(&segments, |generation, extent| {
            let key = (extent.position, generation, extent.offset);
            if !incomplete[&extent.segment].seen.extents.contains(&key) {
                let part = Part::Bytes(extent.offset..extent.end());
                lost.entry(extent.segment).or_default().push((Some(extent.position), generation, part));
            }
        })?;
        let needed: HashSet<u64> = lost.values().flatten().map(|(_, generation, _)| *generation).collect();
        lookup.each_object(|object| {
            let generation = object.generation;
            let mut is_named = needed.contains(&generation);
            if let Some(segment) = incomplete.get(&object.create_segment)
                && !segment.seen.creations.contains(&generation)
            {
                lost.entry(object.create_segment).or_default().push((None, generation, Part::Creation));
                is_named = true;
            }
            if let Some(segment) = incomplete.get(&object.seal_segment)
                && object.seal_segment != 0
                && !segment.seen.seals.contains(&generation)
            {
                lost.entry(object.seal_segment).or_default().push((None, generation, Part::Seal));
                is_named = true;
            }
            if is_named {
                names.insert(generation, object.name);
            }
        })?;
        for (&number, segment) in &incomplete {
            for generation in lookup.deletions_in(number)? {
                if !segment.seen.deletions.contains(&generation) {
                    lost.entry(number).or_default().push((None, generation, Part::Deletion));
                }
            }
        }
        let mut numbers: Vec<u64> = segments.into_iter().collect();
        numbers.sort_unstable();
        for number in numbers {
            let Some(segment) = incomplete.get(&number) else { continue };
            let mut parts = lost.remove(&number).unwrap_or_default();
            parts.sort_by_key(|(position, generation, part)| (*generation, order_of(part), *position));
            let touched = |generation: u64, part: Part| Touched {
                name: names.get(&generation).cloned(),
                generation,
                part,
            };
            if let Some(reason) = &segment.reason {
                let all = parts.into_iter().map(|(_, generation, part)| touched(generation, part));
                self.findings.push(Finding { what: reason.clone(), touched: merged(all) });
                continue;
            }
            let is_in = |hole: &Hole, position: u64| (hole.start..hole.end).contains(&position);
            for (index, hole) in segment.holes.iter().enumerate() {
                // Where creations, seals and deletions were is not known.
                let (inside, rest): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(position, _, _)| {
                    position.map_or(index == 0, |position| is_in(hole, position))
                });
                parts = rest;
                let inside = inside.into_iter().map(|(_, generation, part)| touched(generation, part));
                self.findings.push(Finding { what: describe(number, hole), touched: merged(inside) });
            }
            for (position, generation, part) in parts {
                let what = match position {
                    Some(position) => {
                        format!("segment {number}, position {position}: the record is not there")
                    }
                    None => format!("segment {number}: a record is missing"),
                };
                self.findings.push(Finding::of(what, touched(generation, part)));
            }
        }
        Ok(())
    }
}

fn order_of(part: &Part) -> u64 {
    match part {
        Part::Bytes(range) => range.start,
        Part::Creation | Part::Seal | Part::Deletion | Part::Catalog => u64::MAX,
    }
}

/// Runs of bytes of one object that follow each other are one.
fn merged(parts: impl Iterator<Item = Touched>) -> Vec<Touched> {
    let mut all: Vec<Touched> = Vec::new();
    for touched in parts {
        if let (Some(last), Part::Bytes(range)) = (all.last_mut(), &touched.part)
            && last.generation == touched.generation
            && let Part::Bytes(former) = &mut last.part
            && former.end == range.start
        {
            former.end = range.end;
            continue;
        }
        all.push(touched);
    }
    all
}

fn describe(number: u64, hole: &Hole) -> String {
    let what = match hole.block {
        Some(_) => "a record's header in a block is damaged",
        None => "a block is damaged",
    };
    match hole.has_follower {
        true => format!("segment {number}, positions {} to {}: {what}", hole.start, hole.end - 1),
        false => format!("segment {number}, from position {} on: {what}", hole.start),
    }
}

/// One segment while it is read.
struct Reading<'a> {
    number: u64,
    in_use: Option<Tally>,
    /// Deletions that must be here.
    wanted: HashSet<u64>,
    lookup: &'a mut Lookup,
    seen: Seen,
    deleted: &'a mut HashSet<u64>,
    unknown: &'a mut BTreeMap<u64, (u64, u64, Option<String>)>,
    findings: &'a mut Vec<Finding>,
    failure: Option<Error>,
}

impl Reading<'_> {
    fn record(&mut self, record: Inspected<'_>) {
        // What lies in a segment that is free or unknown does not count.
        if self.in_use.is_none() || self.failure.is_some() {
            return;
        }
        let outcome = match record.header.kind {
            RecordKind::Create => self.creation(&record),
            RecordKind::Append | RecordKind::Frame => self.bytes(&record),
            RecordKind::Seal => self.seal(&record),
            RecordKind::Delete => self.deletion(&record),
            RecordKind::Interrupt | RecordKind::Declare => Ok(()),
        };
        self.failure = outcome.err();
    }

    fn damaged(&mut self, record: &Inspected<'_>, what: &str, touched: Touched) {
        let (number, position) = (self.number, record.position);
        self.findings.push(Finding::of(format!("segment {number}, position {position}: {what}"), touched));
    }

    fn is_pinned(&self) -> bool {
        self.in_use.is_some_and(|tally| tally.is_pinned)
    }

    fn creation(&mut self, record: &Inspected<'_>) -> Result<()> {
        let (number, generation) = (self.number, record.header.generation);
        let Some(object) = self.lookup.object(generation)?.cloned() else {
            if !record.is_in_hole && !self.is_pinned() && !self.lookup.is_deleted(number, generation)? {
                let document = serde_json::from_slice::<CreateDocument>(record.payload).ok();
                let name = document.filter(|_| record.is_whole).map(|document| document.name);
                self.unknown.insert(generation, (number, record.position, name));
            }
            return Ok(());
        };
        if object.create_segment != number {
            return Ok(());
        }
        if !self.seen.creations.insert(generation) {
            return Ok(());
        }
        if !record.is_whole {
            self.damaged(record, "the payload of a creation is damaged", object.touched(Part::Creation));
        } else if record.payload != object.document {
            self.damaged(
                record,
                "a creation is not what the catalog has of it",
                object.touched(Part::Creation),
            );
        }
        Ok(())
    }

    fn bytes(&mut self, record: &Inspected<'_>) -> Result<()> {
        let header = record.header;
        let range = header.offset..header.offset + u64::from(header.length);
        let found = self.lookup.extent(header.generation, header.offset)?;
        let is_here = found.is_some_and(|extent| {
            (extent.segment, extent.position, extent.length) == (self.number, record.position, header.length)
        });
        let is_pinned = self.is_pinned();
        let Some(object) = self.lookup.object(header.generation)?.cloned() else {
            // Of what is deleted nobody misses anything.
            if is_here {
                self.seen.extents.insert((record.position, header.generation, header.offset));
            }
            return Ok(());
        };
        if !is_here {
            let is_next = header.offset == object.length
                && object.state != State::Sealed
                && header.length > 0
                && !header.continued;
            if is_next && found.is_none() && record.is_whole && !record.is_in_hole && !is_pinned {
                self.damaged(
                    record,
                    "these bytes are not in the catalog",
                    object.touched(Part::Bytes(range)),
                );
            }
            return Ok(());
        }
        self.seen.extents.insert((record.position, header.generation, header.offset));
        if !record.is_whole {
            self.damaged(record, "the payload of a record is damaged", object.touched(Part::Bytes(range)));
        } else if found.is_some_and(|extent| extent.continued != header.continued) {
            self.damaged(record, "the catalog ends an append elsewhere", object.touched(Part::Bytes(range)));
        }
        Ok(())
    }

    fn seal(&mut self, record: &Inspected<'_>) -> Result<()> {
        let (number, generation) = (self.number, record.header.generation);
        let Some(object) = self.lookup.object(generation)?.cloned() else { return Ok(()) };
        if object.seal_segment == number && self.seen.seals.insert(generation) {
            let is_same = object.state != State::Sealed || object.length == record.header.offset;
            if !is_same {
                let what = format!("an object was sealed with {} bytes", record.header.offset);
                self.damaged(record, &what, object.touched(Part::Catalog));
            }
        }
        Ok(())
    }

    fn deletion(&mut self, record: &Inspected<'_>) -> Result<()> {
        let generation = record.header.generation;
        self.deleted.insert(generation);
        if self.wanted.contains(&generation) {
            self.seen.deletions.insert(generation);
        }
        let is_pinned = self.is_pinned();
        if let Some(object) = self.lookup.object(generation)?.cloned()
            && !is_pinned
            && !record.is_in_hole
        {
            self.damaged(
                record,
                "an object was deleted that the catalog has",
                object.touched(Part::Deletion),
            );
        }
        Ok(())
    }
}
