//! Reading a segment to the last byte, for those who check it: every block, every record, and where there should be
//! one and is none. Nothing is written, and no lock is taken.
//!
//! Of a block that is damaged, records are looked for one by one: they have checksums of their own.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::format::{
    ALIGNMENT, BLOCK_HEADER_LENGTH, BLOCK_LENGTH_MAX, BlockHeader, RECORD_ALIGNMENT, RECORD_HEADER_LENGTH,
    Record, RecordHeader, SEGMENT_HEADER_LENGTH, SegmentHeader, records_of,
};
use super::segment::{Space, open_for_reading};
use super::window::Window;
use crate::ring::{Descriptor, OpenMode};
use crate::runtime::Core;

/// What was found in a segment's file.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The header, where it is whole.
    pub header: Option<SegmentHeader>,
    /// There are bytes where the header should be, and they are none.
    pub is_header_damaged: bool,
    /// What the header says about the version of the format, where that is another.
    pub foreign: Option<String>,
    /// How long the file is, in bytes.
    pub file_bytes: u64,
    /// How many bytes were read.
    pub read_bytes: u64,
    /// How many whole blocks there are of this use of the file.
    pub blocks: u64,
    /// How many records are in them.
    pub records: u64,
    /// For each log and term in it: where the term began, and the last of its blocks here.
    pub terms: Vec<(u16, u32, u64, u64)>,
    /// Where there is no block, or a damaged one.
    pub holes: Vec<Hole>,
    /// The file could not be read from this position on.
    pub unread: Option<(u64, Errno)>,
}

/// A part of a segment in which no whole block is.
#[derive(Clone, Debug)]
pub struct Hole {
    /// Where it begins, in bytes.
    pub start: u64,
    /// Where it ends: at a block, or where this one must end at the latest.
    pub end: u64,
    /// A whole block of the same use of the file follows.
    pub has_follower: bool,
    /// What is left shows that there was a block of this use of the file.
    pub was_block: bool,
    /// The block's own header is whole: log, term and sequence.
    pub block: Option<(u16, u32, u64)>,
}

/// A record, as it is found.
#[derive(Clone, Copy, Debug)]
pub struct Inspected<'a> {
    /// Its header.
    pub header: RecordHeader,
    /// Where its payload begins in the segment, in bytes.
    pub position: u64,
    /// Whether the payload is what was written.
    pub is_whole: bool,
    /// The payload.
    pub payload: &'a [u8],
    /// The block that it is in is damaged.
    pub is_in_hole: bool,
    /// Where its block begins in the segment, in bytes, where that is whole.
    pub block: Option<u64>,
}

/// Reads a whole segment. Blocks count that are of `epoch`; where that is not given, of the header's. `visit` gets
/// every record in order of position, those in damaged blocks last. Dropping the future leaves nothing behind.
///
/// # Errors
/// As open(2). What cannot be read later is in the answer.
pub async fn inspect(
    core: &Rc<Core>,
    folder: &Path,
    store: u64,
    number: u64,
    epoch: Option<u64>,
    mut visit: impl FnMut(Inspected<'_>),
) -> Result<Inspection, Errno> {
    let file = open_for_reading(core, &Space::path(folder, number)).await?;
    let mut inspection = Inspection { file_bytes: core.length(&file)?, ..Inspection::default() };
    let mut window = Window::new(core, &file);
    let outcome = walk(&mut window, &mut inspection, store, epoch, &mut visit).await;
    inspection.read_bytes = window.read_bytes();
    if let Err(stopped) = outcome {
        inspection.unread = Some(stopped);
    }
    Ok(inspection)
}

async fn walk(
    window: &mut Window<'_>,
    inspection: &mut Inspection,
    store: u64,
    epoch: Option<u64>,
    visit: &mut impl FnMut(Inspected<'_>),
) -> Result<(), (u64, Errno)> {
    let bytes = window.at(0, SEGMENT_HEADER_LENGTH).await.map_err(|errno| (0, errno))?;
    match SegmentHeader::decode(bytes) {
        Ok(header) => {
            inspection.header = header;
            inspection.is_header_damaged = header.is_none() && bytes.iter().any(|&byte| byte != 0);
        }
        Err(error) => inspection.foreign = Some(error.to_string()),
    }
    let Some(epoch) = epoch.or(inspection.header.map(|header| header.epoch)) else { return Ok(()) };
    let mut position = SEGMENT_HEADER_LENGTH as u64;
    let mut hole: Option<Hole> = None;
    while position + ALIGNMENT as u64 <= inspection.file_bytes {
        let bytes = window.at(position, ALIGNMENT).await.map_err(|errno| (position, errno))?;
        if bytes.len() < ALIGNMENT {
            break;
        }
        let header = BlockHeader::decode(bytes);
        let was_block = header.is_none() && BlockHeader::was_in(bytes, store, epoch, position);
        let end = inspection.file_bytes;
        let header = header.filter(|block| block.belongs(store, epoch, position, end));
        if let Some(header) = header {
            let length = header.length as usize;
            let bytes = window.at(position, length).await.map_err(|errno| (position, errno))?;
            if let Some(records) = records_of(&header, bytes) {
                if let Some(mut hole) = hole.take() {
                    hole.end = position;
                    hole.has_follower = true;
                    inspection.holes.push(hole);
                }
                inspection.blocks += 1;
                inspection.records += records.len() as u64;
                note_term(&mut inspection.terms, &header);
                for record in records {
                    visit(inspected(&record, bytes, position));
                }
                position = (position + u64::from(header.length)).next_multiple_of(ALIGNMENT as u64);
                continue;
            }
        }
        let hole = hole.get_or_insert(Hole {
            start: position,
            end: inspection.file_bytes,
            has_follower: false,
            was_block: false,
            block: None,
        });
        hole.was_block |= was_block;
        if hole.block.is_none() {
            hole.block = header.map(|header| (header.log, header.term, header.sequence));
        }
        position += ALIGNMENT as u64;
    }
    if let Some(mut hole) = hole {
        hole.end = hole.end.min(hole.start + BLOCK_LENGTH_MAX as u64);
        inspection.holes.push(hole);
    }
    let damaged =
        inspection.holes.iter().filter(|hole| hole.has_follower || hole.was_block || hole.block.is_some());
    for hole in damaged {
        search(window, hole, visit).await?;
    }
    Ok(())
}

fn note_term(terms: &mut Vec<(u16, u32, u64, u64)>, header: &BlockHeader) {
    let known = terms.iter_mut().find(|known| known.0 == header.log && known.1 == header.term);
    match known {
        Some(known) => known.3 = known.3.max(header.sequence),
        None => terms.push((header.log, header.term, header.term_start, header.sequence)),
    }
}

fn inspected<'a>(record: &Record, block: &'a [u8], position: u64) -> Inspected<'a> {
    Inspected {
        header: record.header,
        position: position + record.payload_start as u64,
        is_whole: record.is_whole,
        payload: record.payload(block),
        is_in_hole: false,
        block: Some(position),
    }
}

/// Looks for records in what is left of a block.
async fn search(
    window: &mut Window<'_>,
    hole: &Hole,
    visit: &mut impl FnMut(Inspected<'_>),
) -> Result<(), (u64, Errno)> {
    let length = (hole.end - hole.start).min(BLOCK_LENGTH_MAX as u64) as usize;
    let bytes = window.at(hole.start, length).await.map_err(|errno| (hole.start, errno))?;
    let mut at = BLOCK_HEADER_LENGTH;
    while at + RECORD_HEADER_LENGTH <= bytes.len() {
        let found = RecordHeader::decode(&bytes[at..]).and_then(|(header, checksum)| {
            let start = at + RECORD_HEADER_LENGTH;
            let payload = bytes.get(start..start.checked_add(header.length as usize)?)?;
            Some((header, payload, checksum.is_of(payload)))
        });
        let Some((header, payload, is_whole)) = found else {
            at += RECORD_ALIGNMENT;
            continue;
        };
        let position = hole.start + (at + RECORD_HEADER_LENGTH) as u64;
        visit(Inspected { header, position, is_whole, payload, is_in_hole: true, block: None });
        at += super::format::record_length(payload.len());
    }
    Ok(())
}

/// Reads the record whose payload of `length` bytes begins at `position` of a segment. None: it is damaged, or there
/// is none. Dropping the future leaves nothing behind.
///
/// # Errors
/// As open(2) and read(2).
pub async fn read_record(
    core: &Rc<Core>,
    file: &Arc<Descriptor>,
    position: u64,
    length: u32,
) -> Result<Option<(RecordHeader, Vec<u8>)>, Errno> {
    let Some(start) = position.checked_sub(RECORD_HEADER_LENGTH as u64) else { return Ok(None) };
    let whole = RECORD_HEADER_LENGTH + length as usize;
    let (result, mut bytes) = core.read(file, start, vec![0; whole], 0).await;
    bytes.truncate(result?);
    let Some((header, checksum)) = RecordHeader::decode(&bytes) else { return Ok(None) };
    if header.length != length || bytes.len() < whole || !checksum.is_of(&bytes[RECORD_HEADER_LENGTH..]) {
        return Ok(None);
    }
    Ok(Some((header, bytes.split_off(RECORD_HEADER_LENGTH))))
}

/// The store that a segment's file says it belongs to, and how long it says it is, if it says so.
/// Dropping the future leaves nothing behind.
///
/// # Errors
/// As open(2) and read(2).
pub async fn store_in(core: &Rc<Core>, path: &Path) -> Result<Option<(u64, u64)>, Errno> {
    let file = core.open(path, OpenMode::Read).await?;
    let (result, bytes) = core.read(&file, 0, vec![0; SEGMENT_HEADER_LENGTH], 0).await;
    let header = SegmentHeader::decode(&bytes[..result?]).ok().flatten();
    Ok(header.map(|header| (header.store, header.length)))
}
