//! What is in the file of one segment: its header, its blocks, and what is left of others. Nothing is changed.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, Kind};
use crate::log::format::{ALIGNMENT, BlockHeader, SEGMENT_HEADER_LENGTH, SegmentHeader, records_of};
use crate::log::segment::Space;
use crate::log::window::Window;
use crate::ring::Descriptor;
use crate::runtime::Core;

/// A segment without a block in so many bytes at its beginning is taken for one that was prepared and not used.
const UNUSED_LENGTH: u64 = 64 << 20;

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
    /// Which use of the file.
    pub fn epoch(self) -> u64 {
        match self {
            KnownSegment::Covered { epoch }
            | KnownSegment::Begun { epoch, .. }
            | KnownSegment::Free { epoch } => epoch,
        }
    }
}

/// What is in a segment.
pub struct Scan {
    /// The segment.
    pub number: u64,
    /// Which use of the file.
    pub epoch: u64,
    /// The whole blocks of this use, in the order in which they stand.
    pub blocks: Vec<ScannedBlock>,
    /// Where something is left of further blocks of the same use: torn writes, or damage.
    pub leftovers: Vec<u64>,
    /// How many bytes were read.
    pub read_bytes: u64,
    /// The largest epoch of whatever block is in the file.
    pub epoch_max: u64,
    /// The log's first block behind what is known of this use of the segment. None: nothing is.
    pub known_until: Option<u64>,
}

impl Scan {
    /// The last block that counts, as `counts` says for one after the other, or is known.
    fn last(&self, counts: &[bool]) -> Option<&BlockHeader> {
        let wanted = self.known_until.unwrap_or(0);
        let mut blocks = self.blocks.iter().zip(counts);
        blocks
            .rfind(|(block, counts)| **counts || block.header.sequence < wanted)
            .map(|(block, _)| &block.header)
    }

    /// Whether the last block is gone that is known to be in the segment.
    pub fn lacks_known(&self) -> bool {
        let sequences = self.blocks.iter().map(|block| block.header.sequence);
        self.known_until.is_some_and(|until| until > 0 && !sequences.into_iter().any(|it| it == until - 1))
    }

    /// Where the last block ends that counts or is known. None: there is none.
    pub fn end(&self, counts: &[bool]) -> Option<u64> {
        let last = self.last(counts)?;
        Some((last.position + u64::from(last.length)).next_multiple_of(ALIGNMENT as u64))
    }

    /// Where blocks stand that do not count, and with `is_cut_off` what is left of others behind the last that does:
    /// a start has cut that off, which is no damage.
    pub fn void(&self, counts: &[bool], is_cut_off: bool) -> Vec<u64> {
        // What is known stays as it is. Where the log goes on elsewhere, what is behind it was written again there.
        let unknown = self.known_until.unwrap_or(0);
        let void = self.blocks.iter().zip(counts);
        let void = void.filter(|(block, counts)| !**counts && block.header.sequence >= unknown);
        let mut positions: Vec<u64> = void.map(|(block, _)| block.header.position).collect();
        if is_cut_off {
            let last = self.last(counts).map_or(0, |block| block.position);
            positions.extend(self.leftovers.iter().filter(|&&position| position > last));
        }
        positions
    }
}

/// A whole block, and what is behind it.
#[derive(Clone)]
pub struct ScannedBlock {
    /// Its header.
    pub header: BlockHeader,
    /// Generations of records whose payload is not what was written.
    pub broken: Vec<u64>,
    /// Behind it is what is left of another block of the same use of the file.
    pub damage_follows: bool,
    /// What the header of that one says, where it is whole.
    pub follower: Option<BlockHeader>,
}

/// Why a segment could not be read.
pub enum ScanError {
    /// What the device says.
    Read(Errno),
    /// It is another store's, or of another format.
    Foreign(String),
}

impl From<Errno> for ScanError {
    fn from(errno: Errno) -> ScanError {
        ScanError::Read(errno)
    }
}

/// The header of a segment. None: there is none, or a torn one.
pub async fn read_header(
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

impl ScanError {
    /// The error of the file that could not be read.
    pub fn of(self, path: &Path) -> Error {
        match self {
            ScanError::Read(errno) => cannot_read(path, errno),
            ScanError::Foreign(why) => Error::new(Kind::DataFolder, format!("{}: {why}", path.display())),
        }
    }
}

/// The error of a segment that cannot be read. Whether what lies in it is given up is nothing for a start to decide: the
/// disk may only be away for now.
pub fn cannot_read(path: &Path, errno: Errno) -> Error {
    let error = Error::device(format!("cannot read {}", path.display()), errno);
    match errno {
        Errno::IO => error.advising(
            "if the disk stays like that, put a copy that ddrescue(1) makes of the file in its place, or take the file \
             away; tailwater verify then names what has lost something, as far as what is left tells",
        ),
        _ => error,
    }
}

/// What is known of a segment's header.
pub enum FoundHeader {
    /// There is none: the file was never used.
    None,
    /// It is as it was written.
    Whole(SegmentHeader),
    /// It is damaged, and what it was is known all the same.
    Known(SegmentHeader),
    /// It is damaged, and so nobody can say which of the blocks in the file count.
    Lost {
        /// The largest epoch of whatever block is in the file.
        epoch_max: u64,
    },
}

/// The header of a segment; of a damaged one, what it was. That must not be guessed: a header with a new epoch is how
/// a file says that what lies in it is void. It is believed where somebody keeps books of it, or where all of the
/// header but one field is as the blocks behind it say. A file is only taken for one that was never used where nobody
/// knows better and no block is in it.
pub async fn find_header(
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
    let header =
        |epoch| SegmentHeader { store: settings.store, number, epoch, length: settings.segment_bytes };
    if let Some(KnownSegment::Begun { epoch, .. }) = known {
        return Ok(FoundHeader::Known(header(epoch)));
    }
    let mut window = Window::new(core, file);
    let bytes = window.at(0, SEGMENT_HEADER_LENGTH).await?.to_vec();
    let epochs = epochs_in(&mut window, settings.store, settings.segment_bytes).await?;
    if bytes.iter().all(|&byte| byte == 0) && epochs.is_none() {
        return Ok(FoundHeader::None);
    }
    let candidates = [epochs.map(|(first, _)| first), SegmentHeader::epoch_in(&bytes)];
    let found =
        candidates.into_iter().flatten().map(header).find(|header| header.is_all_but_one_field_of(&bytes));
    Ok(match found {
        Some(header) => FoundHeader::Known(header),
        None => FoundHeader::Lost { epoch_max: epochs.map_or(0, |(_, max)| max) },
    })
}

/// The epoch of the first block in a file, whatever use of it that is from, and the largest one. None: there is no block.
async fn epochs_in(
    window: &mut Window<'_>,
    store: u64,
    length: u64,
) -> std::result::Result<Option<(u64, u64)>, Errno> {
    let mut epochs = None;
    let mut position = SEGMENT_HEADER_LENGTH as u64;
    while position < length && (epochs.is_some() || position <= UNUSED_LENGTH) {
        let block = BlockHeader::decode(window.at(position, ALIGNMENT).await?);
        if let Some(block) = block.filter(|block| block.store == store && block.position == position) {
            let (first, max) = epochs.unwrap_or((block.epoch, block.epoch));
            epochs = Some((first, max.max(block.epoch)));
        }
        position += ALIGNMENT as u64;
    }
    Ok(epochs)
}

/// Every block of a segment in the use that its header says. Where there is none, the next is looked for at every
/// aligned place.
pub async fn scan(
    core: &Rc<Core>,
    number: u64,
    segment: SegmentHeader,
    known: Option<KnownSegment>,
    file: &Arc<Descriptor>,
) -> std::result::Result<Scan, ScanError> {
    let SegmentHeader { store, epoch, length, .. } = segment;
    let mut window = Window::new(core, file);
    let mut blocks: Vec<ScannedBlock> = Vec::new();
    let mut leftovers = Vec::new();
    let mut follower = None;
    let mut epoch_max = epoch;
    let mut position = SEGMENT_HEADER_LENGTH as u64;
    while position + ALIGNMENT as u64 <= length {
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
        let plausible = ours.filter(|block| block.belongs(store, epoch, position, length));
        // A whole header of an earlier use of the file is none of this one's.
        let is_torn = found.is_none() && BlockHeader::was_in(bytes, store, epoch, position);
        let mut next = position + ALIGNMENT as u64;
        let mut records = None;
        if let Some(header) = plausible {
            records = records_of(&header, window.at(position, header.length as usize).await?);
        }
        if let (Some(header), Some(records)) = (plausible, records) {
            let broken = records.iter().filter(|record| !record.is_whole);
            let broken = broken.map(|record| record.header.generation).collect();
            blocks.push(ScannedBlock { header, broken, damage_follows: false, follower: None });
            follower = None;
            next = (position + u64::from(header.length)).next_multiple_of(ALIGNMENT as u64);
        } else if plausible.is_some() || is_torn {
            leftovers.push(position);
            follower = follower.or(plausible);
        }
        position = next;
    }
    if let Some(last) = blocks.last_mut() {
        last.damage_follows = leftovers.last().is_some_and(|&position| position > last.header.position);
        last.follower = follower;
    }
    let known_until = match known {
        Some(KnownSegment::Begun { epoch: known, next_sequence }) if known == epoch => Some(next_sequence),
        _ => None,
    };
    Ok(Scan { number, epoch, blocks, leftovers, read_bytes: window.read_bytes(), epoch_max, known_until })
}
