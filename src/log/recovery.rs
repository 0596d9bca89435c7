//! The recovery scan: what of the segments counts, and where each log goes on.
//!
//! [`survey`] reads every segment that [`Known`] does not cover, block by block, and [`resolve`], which is pure,
//! settles by the rules of the room's header which blocks count. [`Survey::read`] then answers the records of one
//! segment after the other, so that a store of any size can be read in bounded memory. Nothing is changed before
//! [`Survey::settle`]: when that returns, what does not count can no longer be taken for anything else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::format::{
    ALIGNMENT, BLOCK_HEADER_LENGTH, BlockHeader, Record, RecordHeader, RecordKind, SEGMENT_HEADER_LENGTH,
    SegmentHeader, records_of,
};
use super::segment::{Space, clear, lock, open_for_reading, zeroed_region};
use crate::error::{Error, Kind, Result};
use crate::ring::{Descriptor, OpenMode};
use crate::runtime::Core;

/// How much is read at a time, in bytes.
const READ_LENGTH: usize = 4 << 20;
/// The longest block that is believed in, in bytes: what a piece of an arena can have.
pub(super) const BLOCK_LENGTH_MAX: usize = 16 << 20;

/// A segment without a block in so many bytes at its beginning was prepared and not used: more than a log ever has in
/// flight.
const UNUSED_LENGTH: u64 = 64 << 20;
/// How many of the segments that are covered are looked at all the same, to notice another store's.
const COVERED_CHECKED: usize = 16;

/// What is known of a segment beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownSegment {
    /// Everything in it is known, in this use of it.
    Covered {
        /// Which use of the file.
        epoch: u64,
    },
    /// What it begins with is known.
    Begun {
        /// Which use of the file.
        epoch: u64,
        /// The log's first block that is not. Where the log is known to go on behind it, that was in another segment.
        next_sequence: u64,
    },
    /// Nothing is in it in this use; it may have been begun anew since.
    Free {
        /// Which use of the file.
        epoch: u64,
    },
}

impl KnownSegment {
    fn epoch(self) -> u64 {
        match self {
            KnownSegment::Covered { epoch }
            | KnownSegment::Begun { epoch, .. }
            | KnownSegment::Free { epoch } => epoch,
        }
    }
}

/// What need not be read, because somebody keeps books of it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Segments by number.
    pub segments: HashMap<u64, KnownSegment>,
    /// For each log the first block that is not known, and the term of the last one that is.
    pub logs: HashMap<u16, (u64, u32)>,
}

/// Where a log goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// The sequence of the next block.
    pub next_sequence: u64,
    /// The next term.
    pub term: u32,
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
    let settings = space.settings();
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
    // Whatever the files say: that of a free segment may have lost its header while it was being initialised again.
    for (&number, segment) in &known.segments {
        space.resume_after(number, segment.epoch());
    }
    let is_covered = |number: &u64| matches!(known.segments.get(number), Some(KnownSegment::Covered { .. }));
    let mut to_check = COVERED_CHECKED;
    for number in numbers.into_iter().rev() {
        let known = known.segments.get(&number);
        if is_covered(&number) && to_check == 0 {
            continue;
        }
        let path = Space::path(&settings.folder, number);
        let failed = |what: &str, errno: Errno| Error::device(format!("{what} {}", path.display()), errno);
        let file = open_for_reading(core, &path).await.map_err(|errno| failed("cannot open", errno))?;
        let scan_failed = |error| match error {
            ScanError::Read(errno) => failed("cannot read", errno),
            ScanError::Foreign(message) => {
                Error::new(Kind::DataFolder, format!("{}: {message}", path.display()))
            }
        };
        if is_covered(&number) {
            to_check -= 1;
            read_header(core, settings.store, &file).await.map_err(scan_failed)?;
            continue;
        }
        // Wait for the last writes of a killed process, then make durable what is going to be believed.
        lock(core, &file).await.map_err(|errno| failed("another process writes", errno))?;
        let _ = core.unlock(&file);
        let header = match find_header(core, space, number, known.copied(), &file)
            .await
            .map_err(scan_failed)?
        {
            FoundHeader::None => None,
            FoundHeader::Whole(header) => Some(header),
            FoundHeader::Known(header) => {
                survey
                    .damage
                    .push(format!("the header of segment {number} is damaged; what lies in it is not"));
                Some(header)
            }
            FoundHeader::Lost { epoch_max } => {
                // Its number and its epochs are not given again, and its file stays as it is.
                space.resume_after(number, epoch_max);
                survey.damage.push(format!(
                    "the header of segment {number} is damaged: what lies in it is lost, and the file is left as it is"
                ));
                continue;
            }
        };
        space.resume_after(number, header.map_or(0, |header| header.epoch));
        if let (Some(&KnownSegment::Free { epoch }), Some(header)) = (known, header)
            && header.epoch == epoch
        {
            survey.free.push(number);
            continue;
        }
        match core.sync(&file).await {
            // A file system that cannot be written has nothing that is not on stable storage.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => {}
            Err(errno) => return Err(failed("cannot sync", errno)),
        }
        let scan = scan(core, settings.store, number, header, &file).await.map_err(scan_failed)?;
        // A header that a disk has lost gives way to an earlier one: its epoch must not come again.
        space.resume_after(number, scan.epoch_max);
        survey.scanned_bytes += scan.read_bytes;
        survey.scanned.push(number);
        scans.push(scan);
    }

    let mut found = Vec::new();
    for (index, scan) in scans.iter().enumerate() {
        for (place, block) in scan.blocks.iter().enumerate() {
            let ScannedBlock { header, damage_follows, follower, .. } = *block;
            let is_whole = block.broken.is_empty();
            found.push(Found { header, is_whole, damage_follows, follower, segment: index, place });
        }
    }
    let mut resolution = resolve(&mut found, &known.logs);
    if !resolution.doubtful.is_empty() {
        excuse(core, space, &scans, &mut found, &resolution).await?;
        resolution = resolve(&mut found, &known.logs);
    }
    survey.logs = resolution.logs;
    survey.damage.extend(resolution.gaps.iter().map(|gap| gap.describe(&scans)));

    let mut counts: Vec<Vec<bool>> = scans.iter().map(|scan| vec![false; scan.blocks.len()]).collect();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for found in &resolution.counting {
        counts[found.segment][found.place] = true;
        let scan = &scans[found.segment];
        let place = *places.entry(found.segment).or_insert_with(|| {
            survey.segments.push(SurveyedSegment {
                number: scan.number,
                epoch: found.header.epoch,
                log: found.header.log,
                blocks: Vec::new(),
            });
            survey.segments.len() - 1
        });
        let segment = &mut survey.segments[place];
        segment.blocks.push(found.header);
    }
    for (index, scan) in scans.iter().enumerate() {
        let is_damaged_behind = resolution.gaps.iter().any(|gap| gap.behind == Some(index));
        if let Some(end) = scan.end(&counts[index], known).filter(|_| !is_damaged_behind) {
            survey.ends.push((scan.number, end));
        }
        tracing::debug!(
            segment = scan.number,
            epoch = scan.epoch,
            blocks = scan.blocks.len(),
            counting = counts[index].iter().filter(|&&counts| counts).count(),
            leftovers = scan.leftovers.len(),
            known = ?known.segments.get(&scan.number),
            "scanned"
        );
        // All that counts in a segment may be known; behind that there may be what this start cuts off.
        let known_until = scan.known_until(known);
        if !places.contains_key(&index) && known_until.is_none() {
            match scan.epoch {
                None => survey.without_header.push(scan.number),
                Some(_) => survey.nothing_counts.push(scan.number),
            }
            continue;
        }
        let void = scan.blocks.iter().zip(&counts[index]).filter(|(block, counts)| {
            // What is known stays as it is. Where the log goes on elsewhere, what is behind it was written again there.
            !**counts && known_until.is_none_or(|next| block.header.sequence >= next)
        });
        let mut positions: Vec<u64> = void.map(|(block, _)| block.header.position).collect();
        // What a start has cut off is no damage, also when the segments behind it were used again.
        if !is_damaged_behind {
            let counting = scan.blocks.iter().zip(&counts[index]).rfind(|(block, counts)| {
                **counts || known_until.is_some_and(|next| block.header.sequence < next)
            });
            let end = counting.map_or(0, |(block, _)| block.header.position);
            positions.extend(scan.leftovers.iter().filter(|&&position| position > end));
        }
        if !positions.is_empty() {
            tracing::debug!(segment = scan.number, ?positions, "blocks are void");
            survey.void.push((scan.number, positions));
        }
    }
    Ok(survey)
}

impl Survey {
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
        let failed = |errno: Errno| Error::device(format!("cannot read {}", path.display()), errno);
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
    let failed = |errno: Errno| Error::device(format!("cannot read {}", path.display()), errno);
    let damaged = |why: String| Error::new(Kind::Damaged, format!("{}: {why}", path.display()));
    let scan_failed = |error| match error {
        ScanError::Read(errno) => failed(errno),
        ScanError::Foreign(why) => damaged(why),
    };
    let file = open_for_reading(core, &path).await.map_err(failed)?;
    let header = read_header(core, settings.store, &file).await.map_err(scan_failed)?;
    if header.is_none_or(|header| header.epoch != epoch) {
        return Err(damaged("it is not in the use that it was".to_owned()));
    }
    let scan = scan(core, settings.store, number, header, &file).await.map_err(scan_failed)?;
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

struct Scan {
    number: u64,
    /// Which use of the file, if its header is whole.
    epoch: Option<u64>,
    blocks: Vec<ScannedBlock>,
    /// Where something is left of further blocks of the same use: torn writes, or damage.
    leftovers: Vec<u64>,
    read_bytes: u64,
    /// The largest epoch of whatever block is in the file.
    epoch_max: u64,
}

impl Scan {
    /// The log's first block behind what is known of this use of the segment. None: nothing is.
    fn known_until(&self, known: &Known) -> Option<u64> {
        match known.segments.get(&self.number) {
            Some(&KnownSegment::Begun { epoch, next_sequence }) if Some(epoch) == self.epoch => {
                Some(next_sequence)
            }
            _ => None,
        }
    }

    /// Where the last block ends that counts now or is known. None: that cannot be told.
    fn end(&self, counts: &[bool], known: &Known) -> Option<u64> {
        // Of a segment that is known to hold something, all of that must be there.
        let wanted = self.known_until(known).unwrap_or(0);
        let mut blocks = self.blocks.iter().zip(counts);
        let last = blocks.rfind(|(block, counts)| **counts || block.header.sequence < wanted)?.0.header;
        let end = (last.position + u64::from(last.length)).next_multiple_of(ALIGNMENT as u64);
        (last.sequence + 1 >= wanted).then_some(end)
    }
}

#[derive(Clone)]
struct ScannedBlock {
    header: BlockHeader,
    /// Generations of records whose payload is not what was written.
    broken: Vec<u64>,
    /// Behind it is what is left of another block of the same use of the file.
    damage_follows: bool,
    /// What the header of that one says, where it is whole.
    follower: Option<BlockHeader>,
}

enum ScanError {
    Read(Errno),
    Foreign(String),
}

impl From<Errno> for ScanError {
    fn from(errno: Errno) -> ScanError {
        ScanError::Read(errno)
    }
}

/// A part of a file in memory.
pub(super) struct Window<'a> {
    core: &'a Rc<Core>,
    file: &'a Arc<Descriptor>,
    start: u64,
    buffer: Vec<u8>,
    filled: usize,
    read_bytes: u64,
}

impl<'a> Window<'a> {
    pub fn new(core: &'a Rc<Core>, file: &'a Arc<Descriptor>) -> Window<'a> {
        Window { core, file, start: 0, buffer: Vec::new(), filled: 0, read_bytes: 0 }
    }

    /// How many bytes were read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The bytes from `position`, `length` of them, or fewer at the end of the file. Dropping the future drops what is
    /// held with it.
    pub async fn at(&mut self, position: u64, length: usize) -> std::result::Result<&[u8], Errno> {
        let held = position >= self.start && position + length as u64 <= self.start + self.filled as u64;
        if !held {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(READ_LENGTH.max(length), 0);
            let (result, buffer) = self.core.read(self.file, position, buffer, 0).await;
            self.buffer = buffer;
            self.filled = result?;
            self.start = position;
            self.read_bytes += self.filled as u64;
        }
        let from = (position - self.start) as usize;
        Ok(&self.buffer[from.min(self.filled)..(from + length).min(self.filled)])
    }
}

/// The header of a segment. None: there is none, or a torn one.
async fn read_header(
    core: &Rc<Core>,
    store: u64,
    file: &Arc<Descriptor>,
) -> std::result::Result<Option<SegmentHeader>, ScanError> {
    let (result, bytes) = core.read(file, 0, vec![0; SEGMENT_HEADER_LENGTH], 0).await;
    let header =
        SegmentHeader::decode(&bytes[..result?]).map_err(|error| ScanError::Foreign(error.to_string()))?;
    match header {
        Some(header) if header.store != store => {
            Err(ScanError::Foreign("the segment belongs to another store".to_owned()))
        }
        header => Ok(header),
    }
}

/// What is known of a segment's header.
enum FoundHeader {
    /// There is none: the file was never used.
    None,
    Whole(SegmentHeader),
    /// It is damaged, and what it was is known all the same.
    Known(SegmentHeader),
    /// It is damaged, and so nobody can say which of the blocks in the file count.
    Lost {
        epoch_max: u64,
    },
}

/// The header of a segment; of a damaged one, what it was. That must not be guessed: a header with a new epoch is how
/// a file says that what lies in it is void. It is believed where somebody keeps books of it, or where all of the
/// header but one field is as the blocks behind it say.
async fn find_header(
    core: &Rc<Core>,
    space: &Space,
    number: u64,
    known: Option<KnownSegment>,
    file: &Arc<Descriptor>,
) -> std::result::Result<FoundHeader, ScanError> {
    let settings = space.settings();
    if let Some(header) = read_header(core, settings.store, file).await? {
        return Ok(FoundHeader::Whole(header));
    }
    let (result, bytes) = core.read(file, 0, vec![0; 2 * ALIGNMENT], 0).await;
    let (bytes, behind) = bytes[..result?].split_at_checked(SEGMENT_HEADER_LENGTH).unwrap_or_default();
    let first = BlockHeader::decode(behind)
        .filter(|block| block.store == settings.store && block.position == SEGMENT_HEADER_LENGTH as u64);
    // A free segment that lost its room is initialised again, header and all: a crash in between leaves what lay in it
    // before, of an earlier use.
    let is_free = |epoch: u64| matches!(known, Some(KnownSegment::Free { epoch: freed }) if epoch <= freed);
    if bytes.iter().all(|&byte| byte == 0) && first.is_none_or(|block| is_free(block.epoch)) {
        return Ok(FoundHeader::None);
    }
    let header =
        |epoch| SegmentHeader { store: settings.store, number, epoch, length: settings.segment_bytes };
    if let Some(KnownSegment::Begun { epoch, .. }) = known {
        return Ok(FoundHeader::Known(header(epoch)));
    }
    let candidates = [first.map(|block| block.epoch), SegmentHeader::epoch_in(bytes)];
    let found =
        candidates.into_iter().flatten().map(header).find(|header| header.is_all_but_one_field_of(bytes));
    Ok(match found {
        Some(header) => FoundHeader::Known(header),
        None => FoundHeader::Lost { epoch_max: first.map_or(0, |block| block.epoch) },
    })
}

/// Every block of a segment. Where there is none, the next is looked for at every aligned place.
async fn scan(
    core: &Rc<Core>,
    store: u64,
    number: u64,
    header: Option<SegmentHeader>,
    file: &Arc<Descriptor>,
) -> std::result::Result<Scan, ScanError> {
    let mut window = Window::new(core, file);
    let mut blocks: Vec<ScannedBlock> = Vec::new();
    let mut leftovers = Vec::new();
    let mut follower = None;
    let mut epoch_max = 0;
    if let Some(segment) = header {
        let mut position = SEGMENT_HEADER_LENGTH as u64;
        while position + ALIGNMENT as u64 <= segment.length {
            if blocks.is_empty() && position > UNUSED_LENGTH {
                break;
            }
            let bytes = window.at(position, ALIGNMENT).await?;
            if bytes.len() < ALIGNMENT {
                break;
            }
            let found = BlockHeader::decode(bytes);
            let ours = found.filter(|block| block.store == store);
            epoch_max = ours.map_or(epoch_max, |block| block.epoch.max(epoch_max));
            let plausible = ours.filter(|block| {
                block.epoch == segment.epoch
                    && block.position == position
                    && (BLOCK_HEADER_LENGTH..=BLOCK_LENGTH_MAX).contains(&(block.length as usize))
                    && position + u64::from(block.length) <= segment.length
            });
            let mut next = position + ALIGNMENT as u64;
            // A whole header of an earlier use of the file is none of this one's.
            let is_torn = found.is_none() && BlockHeader::was_in(bytes, store, segment.epoch, position);
            if plausible.is_some() || is_torn {
                leftovers.push(position);
                follower = follower.or(plausible);
            }
            if let Some(header) = plausible {
                let bytes = window.at(position, header.length as usize).await?;
                if let Some(records) = records_of(&header, bytes) {
                    let broken = records.iter().filter(|record| !record.is_whole);
                    let broken = broken.map(|record| record.header.generation).collect();
                    blocks.push(ScannedBlock { header, broken, damage_follows: false, follower: None });
                    // It is whole, and nothing that is merely left.
                    leftovers.pop();
                    follower = None;
                    next = (position + u64::from(header.length)).next_multiple_of(ALIGNMENT as u64);
                }
            }
            position = next;
        }
    }
    if let Some(last) = blocks.last_mut() {
        last.damage_follows = leftovers.last().is_some_and(|&position| position > last.header.position);
        last.follower = follower;
    }
    let epoch = header.map(|header| header.epoch);
    Ok(Scan { number, epoch, blocks, leftovers, read_bytes: window.read_bytes, epoch_max })
}

/// A block, and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    header: BlockHeader,
    is_whole: bool,
    damage_follows: bool,
    follower: Option<BlockHeader>,
    segment: usize,
    place: usize,
}

impl Found {
    /// Whether no other block can have stood before it in its segment. What does not count never stands before what
    /// does.
    fn begins_segment(&self) -> bool {
        self.header.position == SEGMENT_HEADER_LENGTH as u64
    }
}

#[derive(Default)]
struct Resolution {
    /// The blocks that count, by log, then by sequence.
    counting: Vec<Found>,
    logs: BTreeMap<u16, Continuation>,
    gaps: Vec<Gap>,
    /// The blocks that no later term voids.
    stands: Vec<Found>,
    /// Blocks of logs of which nothing is known, with payloads that are not what was written, of which no other block
    /// says that they were durable: torn writes, or they have lost what was deleted.
    doubtful: Vec<Found>,
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
        let failed = |errno: Errno| Error::device(format!("cannot read {}", path.display()), errno);
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

/// Blocks that were durable and are missing before one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    log: u16,
    /// None: how many there were is not known.
    first_sequence: Option<u64>,
    end_sequence: u64,
    segment: usize,
    position: u64,
    /// The segment at the end of which something is damaged, if it is another one.
    behind: Option<usize>,
}

impl Gap {
    fn describe(&self, scans: &[Scan]) -> String {
        let which = match self.first_sequence {
            Some(first) => format!("blocks {first} to {}", self.end_sequence - 1),
            None => format!("blocks up to {}", self.end_sequence - 1),
        };
        if let Some(behind) = self.behind {
            return format!(
                "{which} of log {} are lost: the end of segment {} is damaged",
                self.log, scans[behind].number
            );
        }
        format!(
            "{which} of log {} are lost: they stood before position {} of segment {}",
            self.log, self.position, scans[self.segment].number
        )
    }
}

/// Settles which blocks count, by the rules in the header of the room. What is known of a log is not gone through
/// again.
fn resolve(found: &mut [Found], known: &HashMap<u16, (u64, u32)>) -> Resolution {
    found
        .sort_by_key(|found| (found.header.log, found.header.sequence, std::cmp::Reverse(found.header.term)));
    let mut resolution = Resolution::default();
    for (&log, &(next_sequence, term)) in known {
        resolution.logs.insert(log, Continuation { next_sequence, term: term + 1 });
    }
    for log in found.chunk_by(|first, second| first.header.log == second.header.log) {
        let number = log[0].header.log;
        let known = known.get(&number).copied();
        let terms: BTreeMap<u32, u64> =
            log.iter().map(|found| (found.header.term, found.header.term_start)).collect();
        let is_begun_anew =
            |header: &BlockHeader| terms.range(header.term + 1..).any(|(_, &start)| start <= header.sequence);
        let is_void = |header: &BlockHeader| {
            let is_known = known.is_some_and(|(next, term)| header.sequence < next || header.term < term);
            header.log == number && (is_begun_anew(header) || is_known)
        };
        resolution.stands.extend(log.iter().filter(|found| !is_begun_anew(&found.header)));
        let valid: Vec<Found> = log.iter().copied().filter(|found| !is_void(&found.header)).collect();
        // What some block says was durable before it.
        let durable =
            valid.iter().map(|found| found.header.durable.max(found.header.term_start)).max().unwrap_or(0);
        if known.is_none() {
            let is_doubtful = |found: &&Found| !found.is_whole && found.header.sequence >= durable;
            resolution.doubtful.extend(valid.iter().filter(is_doubtful));
        }
        let mut expected: Option<(u64, Option<usize>)> = known.map(|(next, _)| (next, None));
        let mut damage_follows = false;
        let mut next_sequence = durable.max(known.map_or(0, |(next, _)| next));
        for found in valid {
            let sequence = found.header.sequence;
            // A payload that is not whole is a torn write, unless it was durable once.
            if !found.is_whole && sequence >= durable {
                continue;
            }
            if let Some((wanted, former_segment)) = expected {
                if sequence < wanted {
                    continue; // the same block of an earlier term
                }
                if sequence > wanted {
                    if wanted >= durable {
                        break; // the log ends here: what follows was never acknowledged
                    }
                    // Where no books are kept, segments in between were used again; nothing in them was alive.
                    let behind = former_segment.filter(|&former| damage_follows && former != found.segment);
                    let is_in_segment = former_segment == Some(found.segment) || !found.begins_segment();
                    if known.is_some() || is_in_segment || behind.is_some() {
                        resolution.gaps.push(Gap {
                            log: number,
                            first_sequence: Some(wanted),
                            end_sequence: sequence.min(durable),
                            segment: found.segment,
                            position: found.header.position,
                            behind,
                        });
                    }
                    // If the gap reaches beyond what was durable, its end was torn.
                    if sequence > durable {
                        break;
                    }
                }
            } else if sequence > durable {
                break; // the block before it is torn
            } else if !found.begins_segment() && sequence > 0 {
                resolution.gaps.push(Gap {
                    log: number,
                    first_sequence: None,
                    end_sequence: sequence,
                    segment: found.segment,
                    position: found.header.position,
                    behind: None,
                });
            }
            expected = Some((sequence + 1, Some(found.segment)));
            // What was written again elsewhere, or given up, is missed by nobody.
            damage_follows = found.damage_follows && !found.follower.is_some_and(|header| is_void(&header));
            next_sequence = next_sequence.max(sequence + 1);
            resolution.counting.push(found);
        }
        let term =
            terms.last_key_value().map_or(0, |(&term, _)| term).max(known.map_or(0, |known| known.1)) + 1;
        resolution.logs.insert(number, Continuation { next_sequence, term });
    }
    resolution
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as (segment, sequence, durable, term, term start), in log 0.
    fn found(blocks: &[(usize, u64, u64, u32, u64)]) -> Vec<Found> {
        let first_of = |segment| blocks.iter().find(|block| block.0 == segment).map_or(0, |block| block.1);
        blocks
            .iter()
            .enumerate()
            .map(|(place, &(segment, sequence, durable, term, term_start))| Found {
                header: BlockHeader {
                    store: 1,
                    epoch: segment as u64,
                    sequence,
                    durable,
                    term_start,
                    term,
                    length: 100,
                    records: 1,
                    log: 0,
                    position: 4096 * (1 + sequence - first_of(segment)),
                },
                is_whole: true,
                damage_follows: false,
                follower: None,
                segment,
                place,
            })
            .collect()
    }

    fn counting(blocks: &[(usize, u64, u64, u32, u64)]) -> (Vec<(usize, u64)>, Continuation, usize) {
        let resolution = resolve(&mut found(blocks), &HashMap::new());
        let counting =
            resolution.counting.iter().map(|found| (found.segment, found.header.sequence)).collect();
        (counting, resolution.logs.get(&0).copied().unwrap_or_default(), resolution.gaps.len())
    }

    #[test]
    fn a_whole_log_counts_whole() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (1, 2, 1, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 1), (1, 2)]);
        assert_eq!(continuation, Continuation { next_sequence: 3, term: 2 });
        assert_eq!(gaps, 0);
    }

    #[test]
    fn the_log_ends_before_a_torn_block() {
        // Block 1 is torn; 2 and 3 were written behind it and never acknowledged.
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 1, 1, 0), (1, 3, 1, 1, 0)]);
        assert_eq!(blocks, [(0, 0)]);
        assert_eq!((continuation.next_sequence, gaps), (1, 0));
    }

    #[test]
    fn the_first_block_torn_means_an_empty_log() {
        let (blocks, continuation, _) = counting(&[(0, 1, 0, 1, 0), (0, 2, 0, 1, 0)]);
        assert!(blocks.is_empty());
        assert_eq!(continuation, Continuation { next_sequence: 0, term: 2 });
    }

    #[test]
    fn what_was_durable_and_is_gone_is_damage_and_the_log_goes_on() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 2, 1, 0), (0, 3, 3, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 2), (0, 3)]);
        assert_eq!((continuation.next_sequence, gaps), (4, 1));
    }

    #[test]
    fn damage_and_a_torn_tail_are_told_apart() {
        // 1 was durable (2 says so); 3 is torn, 4 was never acknowledged.
        let (blocks, _, gaps) = counting(&[(0, 0, 0, 1, 0), (0, 2, 2, 1, 0), (0, 4, 3, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (0, 2)]);
        assert_eq!(gaps, 1);
    }

    #[test]
    fn a_segment_that_was_used_again_is_no_damage() {
        let (blocks, continuation, gaps) = counting(&[(0, 0, 0, 1, 0), (2, 5, 5, 1, 0)]);
        assert_eq!(blocks, [(0, 0), (2, 5)]);
        assert_eq!((continuation.next_sequence, gaps), (6, 0));
    }

    #[test]
    fn blocks_are_missed_where_the_end_of_a_segment_is_damaged() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (2, 5, 5, 1, 0)]);
        assert!(resolve(&mut blocks.clone(), &HashMap::new()).gaps.is_empty());
        blocks[1].damage_follows = true;
        let gaps = resolve(&mut blocks, &HashMap::new()).gaps;
        assert_eq!((gaps.len(), gaps[0].first_sequence, gaps[0].end_sequence), (1, Some(2), 5));
        assert_eq!(gaps[0].behind, Some(0));
    }

    /// A block that failed was written again to another segment, which was used again since: what it had left behind
    /// was taken for damage.
    #[test]
    fn what_is_left_of_a_block_that_was_written_again_is_no_damage() {
        for (term, gaps) in [(1, 1), (2, 0)] {
            let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (2, 5, 5, term, 2)]);
            blocks[1].damage_follows = true;
            blocks[1].follower = Some(BlockHeader { sequence: 2, ..blocks[1].header });
            assert_eq!(resolve(&mut blocks, &HashMap::new()).gaps.len(), gaps, "term {term}");
        }
    }

    #[test]
    fn what_stood_before_the_first_block_of_a_segment_is_damage() {
        for first in [None, Some((0, 0, 0, 1, 0))] {
            let mut blocks: Vec<_> = first.into_iter().collect();
            blocks.extend([(2, 5, 5, 1, 0), (2, 6, 6, 1, 0)]);
            let mut found = found(&blocks);
            assert!(resolve(&mut found, &HashMap::new()).gaps.is_empty());
            for found in &mut found {
                found.header.position += if found.header.sequence == 0 { 0 } else { 4096 };
            }
            let resolution = resolve(&mut found, &HashMap::new());
            assert_eq!((resolution.counting.len(), resolution.gaps.len()), (blocks.len(), 1));
            assert_eq!(resolution.gaps[0].end_sequence, 5);
        }
    }

    #[test]
    fn what_a_start_has_cut_off_stays_cut_off() {
        // The first run left 0 and, behind a torn 1, the void 2. The second run began with 1 and has acknowledged.
        let (blocks, continuation, gaps) =
            counting(&[(0, 0, 0, 1, 0), (0, 2, 1, 1, 0), (1, 1, 1, 2, 1), (1, 2, 2, 2, 1), (1, 3, 3, 2, 1)]);
        assert_eq!(blocks, [(0, 0), (1, 1), (1, 2), (1, 3)]);
        assert_eq!((continuation, gaps), (Continuation { next_sequence: 4, term: 3 }, 0));
    }

    #[test]
    fn what_was_written_again_after_a_failure_counts_once() {
        let (blocks, _, gaps) =
            counting(&[(0, 0, 0, 1, 0), (0, 1, 0, 1, 0), (0, 2, 0, 1, 0), (1, 1, 1, 2, 1), (1, 2, 1, 2, 1)]);
        assert_eq!(blocks, [(0, 0), (1, 1), (1, 2)]);
        assert_eq!(gaps, 0);
    }

    #[test]
    fn what_is_known_is_not_gone_through_again_and_a_gap_behind_it_is_damage() {
        let known = HashMap::from([(0, (2, 1))]);
        // 2 and 3 are lost with their segment; 4 says that they were durable. 1 is a leftover.
        let mut blocks = found(&[(0, 1, 1, 1, 0), (1, 4, 4, 1, 0), (1, 5, 4, 1, 0)]);
        let resolution = resolve(&mut blocks, &known);
        let counting: Vec<u64> = resolution.counting.iter().map(|found| found.header.sequence).collect();
        assert_eq!(counting, [4, 5]);
        assert_eq!((resolution.gaps[0].first_sequence, resolution.gaps[0].end_sequence), (Some(2), 4));
        assert_eq!(resolution.logs[&0], Continuation { next_sequence: 6, term: 2 });
    }

    #[test]
    fn what_an_earlier_term_has_left_behind_what_is_known_is_void() {
        let known = HashMap::from([(0, (2, 3))]);
        let resolution = resolve(&mut found(&[(0, 2, 2, 2, 0), (0, 3, 2, 2, 0)]), &known);
        assert!(resolution.counting.is_empty());
        assert_eq!(resolution.logs[&0], Continuation { next_sequence: 2, term: 4 });
    }

    #[test]
    fn a_log_of_which_nothing_is_found_goes_on_behind_what_is_known() {
        let resolution = resolve(&mut [], &HashMap::from([(3, (7, 5))]));
        assert_eq!(resolution.logs[&3], Continuation { next_sequence: 7, term: 6 });
    }

    #[test]
    fn a_payload_that_is_gone_ends_the_log_only_where_it_was_not_durable() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (0, 1, 1, 1, 0), (0, 2, 2, 1, 0), (0, 3, 2, 1, 0)]);
        blocks[1].is_whole = false;
        blocks[2].is_whole = false;
        let resolution = resolve(&mut blocks, &HashMap::new());
        let counting: Vec<u64> = resolution.counting.iter().map(|found| found.header.sequence).collect();
        assert_eq!(counting, [0, 1], "1 was durable and is damaged, 2 was torn, 3 never acknowledged");
        assert!(resolution.gaps.is_empty());
    }

    #[test]
    fn logs_do_not_mix() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (1, 0, 0, 1, 0), (1, 1, 0, 1, 0)]);
        blocks[1].header.log = 1;
        blocks[2].header.log = 1;
        let resolution = resolve(&mut blocks, &HashMap::new());
        assert_eq!(resolution.counting.len(), 3);
        assert_eq!(resolution.logs[&0].next_sequence, 1);
        assert_eq!(resolution.logs[&1].next_sequence, 2);
    }
}
