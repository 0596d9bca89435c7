//! The recovery scan: what of the segments counts, and where each log goes on.
//!
//! [`survey`] reads every segment that [`Known`] does not cover, block by block ([`scan`]), and settles by the rules of
//! the log's room which blocks count ([`resolve`], which is pure). [`Survey::read`] then answers the records of one
//! segment after the other, so that a store of any size can be read in bounded memory. Nothing is changed before
//! [`Survey::clear_void`] and [`Survey::settle`]: when those have returned, what does not count can no longer be taken
//! for anything else.

mod resolve;
mod scan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

pub use self::resolve::Continuation;
use self::resolve::{Found, Resolution, resolve};
pub use self::scan::KnownSegment;
use self::scan::{FoundHeader, Scan, ScanError, ScannedBlock, cannot_read, find_header, read_header, scan};
use super::format::{ALIGNMENT, BlockHeader, Record, RecordHeader, RecordKind, records_of};
use super::segment::{Space, clear, lock, open_for_reading, zeroed_region};
use super::window::Window;
use crate::error::{Error, Kind, Result};
use crate::ring::OpenMode;
use crate::runtime::Core;

/// How many of the segments that are covered are looked at all the same, to notice another store's.
const COVERED_CHECKED: usize = 16;

/// What need not be read, because somebody keeps books of it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Segments by number.
    pub segments: HashMap<u64, KnownSegment>,
    /// For each log the first block that is not known, and the term of the last one that is.
    pub logs: HashMap<u16, (u64, u32)>,
}

/// What the segments hold.
#[derive(Default)]
pub struct Survey {
    /// The segments with blocks that count, log by log in the order of writing.
    pub segments: Vec<SurveyedSegment>,
    /// Where each log goes on.
    pub logs: BTreeMap<u16, Continuation>,
    /// What is damaged, a sentence each.
    pub damage: Vec<String>,
    /// Segments that are free, as is known.
    pub free: Vec<u64>,
    /// Segments that were read, because not everything in them was known.
    pub scanned: Vec<u64>,
    /// How many bytes were read.
    pub scanned_bytes: u64,
    /// Files without a whole header, in which nothing can be.
    without_header: Vec<u64>,
    /// Segments of which nothing counts.
    nothing_counts: Vec<u64>,
    /// Positions of blocks that do not count, in segments where others do.
    pub void: Vec<(u64, Vec<u64>)>,
    /// Where the last block that counts ends, in segments that nothing more is written to.
    ends: Vec<(u64, u64)>,
}

/// A segment with blocks that count.
pub struct SurveyedSegment {
    /// Its number.
    pub number: u64,
    /// Which use of the file.
    pub epoch: u64,
    /// The log.
    pub log: u16,
    /// The blocks that count: where, how long, which, of which term.
    blocks: Vec<BlockHeader>,
}

impl SurveyedSegment {
    /// The sequence behind the last block that counts, and its term.
    pub fn covers(&self) -> (u64, u32) {
        self.blocks.last().map_or((0, 0), |block| (block.sequence + 1, block.term))
    }
}

/// A record that counts.
#[derive(Clone, Debug)]
pub struct RecoveredRecord {
    /// Its header.
    pub header: RecordHeader,
    /// Where its payload begins in the segment, in bytes.
    pub position: u64,
    /// Whether the payload is what was written: that of a deleted object may be punched out.
    pub is_whole: bool,
    /// The payload of a create record; empty for others.
    pub document: Vec<u8>,
}

/// Reads all segments of a store that are not known, and settles what counts. Dropping the future leaves the segments as
/// they are.
///
/// # Errors
/// A folder or file that cannot be read, a segment of another store or of another format version.
pub async fn survey(core: &Rc<Core>, space: &Arc<Space>, known: &Known) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut scans = Vec::new();
    let numbers = list(core, space)?;
    // Whoever made a file may have been killed before its name was durable; from here on it is counted on.
    sync_folder(core, space).await?;
    for number in known.segments.keys().filter(|number| numbers.binary_search(number).is_err()) {
        if !matches!(known.segments[number], KnownSegment::Free { .. }) {
            survey.damage.push(format!("segment {number} is missing: what lies in it is lost"));
        }
    }
    // Whatever the files say, or if they are gone.
    for (&number, segment) in &known.segments {
        space.resume_after(number, segment.epoch());
    }
    let mut to_check = COVERED_CHECKED;
    for number in numbers.into_iter().rev() {
        let known = known.segments.get(&number).copied();
        if !matches!(known, Some(KnownSegment::Covered { .. })) {
            scans.extend(survey.look_at(core, space, number, known).await?);
        } else if to_check > 0 {
            to_check -= 1;
            check_store(core, space, number).await?;
        }
    }
    let resolution = settle_what_counts(core, space, &scans, known).await?;
    survey.conclude(&scans, resolution);
    Ok(survey)
}

/// Refuses a segment of another store. One without a whole header passes.
async fn check_store(core: &Rc<Core>, space: &Space, number: u64) -> Result<()> {
    let path = Space::path(&space.settings().folder, number);
    let outcome = match open_for_reading(core, &path).await {
        Ok(file) => read_header(core, space.settings().store, &file).await,
        Err(errno) => Err(ScanError::Read(errno)),
    };
    outcome.map(drop).map_err(|error| error.of(&path))
}

/// Which blocks count.
async fn settle_what_counts(
    core: &Rc<Core>,
    space: &Space,
    scans: &[Scan],
    known: &Known,
) -> Result<Resolution> {
    let mut found = Vec::new();
    for (segment, scan) in scans.iter().enumerate() {
        for (place, block) in scan.blocks.iter().enumerate() {
            let ScannedBlock { header, damage_follows, follower, .. } = *block;
            let is_whole = block.broken.is_empty();
            found.push(Found { header, is_whole, damage_follows, follower, segment, place });
        }
    }
    let resolution = resolve(&mut found, &known.logs);
    if resolution.doubtful.is_empty() {
        return Ok(resolution);
    }
    excuse(core, space, scans, &mut found, &resolution).await?;
    Ok(resolve(&mut found, &known.logs))
}

impl Survey {
    /// Reads a segment of which not everything is known. None: there is nothing to read, and it stands where it belongs.
    async fn look_at(
        &mut self,
        core: &Rc<Core>,
        space: &Space,
        number: u64,
        known: Option<KnownSegment>,
    ) -> Result<Option<Scan>> {
        let path = Space::path(&space.settings().folder, number);
        let failed = |what: &str, errno: Errno| Error::device(format!("{what} {}", path.display()), errno);
        let file = open_for_reading(core, &path).await.map_err(|errno| failed("cannot open", errno))?;
        // Wait for the last writes of a killed process, then make durable what is going to be believed.
        lock(core, &file).await.map_err(|errno| failed("another process writes", errno))?;
        let _ = core.unlock(&file);
        let header = match find_header(core, space, number, known, &file).await.map_err(|it| it.of(&path))? {
            FoundHeader::None => None,
            FoundHeader::Whole(header) => Some(header),
            FoundHeader::Known(header) => {
                self.damage.push(format!("the header of segment {number} is damaged; what it was is known"));
                Some(header)
            }
            FoundHeader::Lost { epoch_max } => {
                // Its number and its epochs are not given again, and its file stays as it is.
                space.resume_after(number, epoch_max);
                self.damage.push(format!(
                    "the header of segment {number} is damaged: what lies in it is lost, and the file is left as it is"
                ));
                return Ok(None);
            }
        };
        space.resume_after(number, header.map_or(0, |header| header.epoch));
        if let (Some(KnownSegment::Free { epoch }), Some(header)) = (known, header)
            && header.epoch == epoch
        {
            self.free.push(number);
            return Ok(None);
        }
        match core.sync(&file).await {
            // A file system that cannot be written has nothing that is not on stable storage.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => {}
            Err(errno) => return Err(failed("cannot sync", errno)),
        }
        self.scanned.push(number);
        let Some(header) = header else {
            self.without_header.push(number);
            return Ok(None);
        };
        let scan = scan(core, number, header, known, &file).await.map_err(|error| error.of(&path))?;
        // A header that a disk has lost gives way to an earlier one: its epoch must not come again.
        space.resume_after(number, scan.epoch_max);
        self.scanned_bytes += scan.read_bytes;
        Ok(Some(scan))
    }

    /// What follows from which blocks count.
    fn conclude(&mut self, scans: &[Scan], resolution: Resolution) {
        self.logs = resolution.logs;
        let number_of = |segment: usize| scans[segment].number;
        self.damage.extend(resolution.gaps.iter().map(|gap| gap.describe(number_of)));
        let mut counts: Vec<Vec<bool>> = scans.iter().map(|scan| vec![false; scan.blocks.len()]).collect();
        let mut places: HashMap<usize, usize> = HashMap::new();
        for Found { header, segment, place, .. } in resolution.counting {
            counts[segment][place] = true;
            let place = *places.entry(segment).or_insert_with(|| {
                let BlockHeader { epoch, log, .. } = header;
                let number = number_of(segment);
                self.segments.push(SurveyedSegment { number, epoch, log, blocks: Vec::new() });
                self.segments.len() - 1
            });
            self.segments[place].blocks.push(header);
        }
        for (segment, (scan, counts)) in scans.iter().zip(&counts).enumerate() {
            let number = scan.number;
            let is_damaged =
                scan.lacks_known() || resolution.gaps.iter().any(|gap| gap.behind == Some(segment));
            tracing::debug!(
                segment = number,
                epoch = scan.epoch,
                blocks = scan.blocks.len(),
                counting = counts.iter().filter(|&&counts| counts).count(),
                leftovers = scan.leftovers.len(),
                known_until = ?scan.known_until,
                "scanned"
            );
            if !places.contains_key(&segment) && scan.known_until.is_none() {
                self.nothing_counts.push(number);
                continue;
            }
            if scan.lacks_known() {
                self.damage.push(format!(
                    "segment {number} has lost blocks that were known to be in it: tailwater verify names the objects"
                ));
            }
            if let Some(end) = scan.end(counts).filter(|_| !is_damaged) {
                self.ends.push((number, end));
            }
            // What a start has cut off is no damage, and what is damaged was not cut off.
            let positions = scan.void(counts, !is_damaged);
            if !positions.is_empty() {
                tracing::debug!(segment = number, ?positions, "blocks are void");
                self.void.push((number, positions));
            }
        }
    }

    /// The records of one segment that count, in order. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not what it was.
    pub async fn read(
        &self,
        core: &Rc<Core>,
        space: &Space,
        segment: &SurveyedSegment,
    ) -> Result<Vec<RecoveredRecord>> {
        let path = Space::path(&space.settings().folder, segment.number);
        let failed = |errno: Errno| cannot_read(&path, errno);
        let file = open_for_reading(core, &path).await.map_err(failed)?;
        let mut window = Window::new(core, &file);
        let mut found = Vec::new();
        for block in &segment.blocks {
            let bytes = window.at(block.position, block.length as usize).await.map_err(failed)?;
            let records = records_of(block, bytes).ok_or_else(|| {
                let message = format!("{} has changed while it was read", path.display());
                Error::new(Kind::Damaged, message)
            })?;
            found.extend(records.into_iter().map(|record| recovered(block, record, bytes)));
        }
        Ok(found)
    }

    /// Makes blocks unreadable that do not count, in segments where others do: why they do not may be written in
    /// segments that are used again one day. To be done before anybody notes that these segments need not be read again.
    /// Dropping the future leaves some of them readable: the next survey finds those.
    ///
    /// # Errors
    /// What the device says.
    pub async fn clear_void(&self, core: &Rc<Core>, space: &Arc<Space>) -> Result<()> {
        for (number, positions) in &self.void {
            clear_blocks(core, space, *number, positions).await?;
        }
        Ok(())
    }

    /// Makes sure that what does not count never will, and gives back the room behind what does: a start goes on in
    /// segments of its own. Answers the segments that hold nothing, each with its new epoch. After
    /// [`Survey::clear_void`]. Dropping the future leaves some of it to the next survey.
    ///
    /// # Errors
    /// What the device says.
    pub async fn settle(&self, core: &Rc<Core>, space: &Arc<Space>) -> Result<Vec<(u64, u64)>> {
        for &(number, end) in &self.ends {
            if let Err(errno) = trim(core, space, number, end).await {
                tracing::debug!(segment = number, %errno, "the rest of a segment could not be given back");
            }
        }
        let mut cleared = Vec::new();
        for &number in &self.nothing_counts {
            cleared.push((number, clear(core, space, number).await?));
        }
        self.without_header.iter().for_each(|&number| space.set_begun(number));
        Ok(cleared)
    }
}

fn recovered(block: &BlockHeader, record: Record, bytes: &[u8]) -> RecoveredRecord {
    let document = match record.header.kind {
        RecordKind::Create => record.payload(bytes).to_vec(),
        _ => Vec::new(),
    };
    RecoveredRecord {
        header: record.header,
        position: block.position + record.payload_start as u64,
        is_whole: record.is_whole,
        document,
    }
}

/// All records of a segment that nothing is written to any more, in this use of it, whether they count or not. Dropping
/// the future leaves nothing behind.
///
/// # Errors
/// A file that cannot be read, or is in another use.
pub async fn records_in(
    core: &Rc<Core>,
    space: &Space,
    number: u64,
    epoch: u64,
) -> Result<Vec<RecoveredRecord>> {
    let settings = space.settings();
    let path = Space::path(&settings.folder, number);
    let failed = |errno: Errno| cannot_read(&path, errno);
    let file = open_for_reading(core, &path).await.map_err(failed)?;
    let header = read_header(core, settings.store, &file).await.map_err(|error| error.of(&path))?;
    let Some(header) = header.filter(|header| header.epoch == epoch) else {
        let message = format!("{} is not in the use that it was", path.display());
        return Err(Error::new(Kind::Damaged, message));
    };
    let scan = scan(core, number, header, None, &file).await.map_err(|error| error.of(&path))?;
    let mut window = Window::new(core, &file);
    let mut stored = Vec::new();
    for block in &scan.blocks {
        let header = block.header;
        let bytes = window.at(header.position, header.length as usize).await.map_err(failed)?;
        let records = records_of(&header, bytes).unwrap_or_default();
        stored.extend(records.into_iter().map(|record| recovered(&header, record, bytes)));
    }
    Ok(stored)
}

fn list(core: &Core, space: &Space) -> Result<Vec<u64>> {
    let folder = &space.settings().folder;
    let failed = |errno: Errno| {
        Error::new(Kind::DataFolder, format!("cannot list the segments in {}: {errno}", folder.display()))
    };
    let mut numbers = Vec::new();
    for name in core.list(folder).map_err(failed)? {
        let number = name.to_str().and_then(|name| name.strip_suffix(".segment")?.parse().ok());
        match number {
            Some(number) => numbers.push(number),
            None => tracing::warn!(?name, "a file among the segments that is none is left alone"),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

async fn sync_folder(core: &Rc<Core>, space: &Space) -> Result<()> {
    let folder = &space.settings().folder;
    let failed = |errno| Error::device(format!("cannot sync the folder {}", folder.display()), errno);
    let file = core.open(folder, OpenMode::Read).await.map_err(failed)?;
    core.sync(&file).await.map_err(failed)
}

/// Overwrites the headers of blocks that do not count, in a segment where others do.
async fn clear_blocks(core: &Rc<Core>, space: &Space, number: u64, positions: &[u64]) -> Result<()> {
    let path = Space::path(&space.settings().folder, number);
    let failed = |errno| Error::device(format!("cannot clear blocks in {}", path.display()), errno);
    let file = core.open(&path, OpenMode::WriteBuffered).await.map_err(failed)?;
    let zeroes = zeroed_region(ALIGNMENT).map_err(failed)?;
    for &position in positions {
        core.write(&file, None, position, zeroes.clone(), true).await.map_err(failed)?;
    }
    Ok(())
}

/// Gives back the room of a segment from a position on.
async fn trim(core: &Rc<Core>, space: &Space, number: u64, position: u64) -> std::result::Result<(), Errno> {
    let settings = space.settings();
    if position >= settings.segment_bytes {
        return Ok(());
    }
    let file = core.open(&Space::path(&settings.folder, number), OpenMode::WriteBuffered).await?;
    core.punch(&file, position, settings.segment_bytes - position).await
}

/// Tells blocks at the end of a log that were durable, and of which what was deleted is punched out, from torn ones: in
/// the first all that is missing belongs to generations that are deleted. Those count as whole.
async fn excuse(
    core: &Rc<Core>,
    space: &Space,
    scans: &[Scan],
    found: &mut [Found],
    resolution: &Resolution,
) -> Result<()> {
    let broken_in = |found: &Found| &scans[found.segment].blocks[found.place].broken;
    let missed: HashSet<u64> = resolution.doubtful.iter().flat_map(broken_in).copied().collect();
    let mut deleted = HashSet::new();
    let mut stands = resolution.stands.clone();
    stands.sort_by_key(|found| (found.segment, found.place));
    for blocks in stands.chunk_by(|first, second| first.segment == second.segment) {
        let path = Space::path(&space.settings().folder, scans[blocks[0].segment].number);
        let failed = |errno: Errno| cannot_read(&path, errno);
        let file = open_for_reading(core, &path).await.map_err(failed)?;
        let mut window = Window::new(core, &file);
        for Found { header, .. } in blocks {
            let bytes = window.at(header.position, header.length as usize).await.map_err(failed)?;
            let records = records_of(header, bytes).unwrap_or_default();
            let deletions = records.iter().filter(|record| record.header.kind == RecordKind::Delete);
            deleted.extend(deletions.map(|record| record.header.generation).filter(|it| missed.contains(it)));
        }
    }
    for found in found.iter_mut().filter(|found| resolution.doubtful.contains(found)) {
        found.is_whole = broken_in(found).iter().all(|generation| deleted.contains(generation));
    }
    Ok(())
}
