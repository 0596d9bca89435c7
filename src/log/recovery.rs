//! The recovery scan: what of the segments counts, and where each log goes on.
//!
//! Reading comes first (`scan`): every block that checks out, of every segment. Then [`resolve`], which is pure,
//! settles by the rules of the room's header which of them count. When [`recover`] returns, what it decided on is
//! on stable storage, and segments of which nothing counts can no longer be taken for anything else.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::format::{
    ALIGNMENT, BLOCK_HEADER_LENGTH, BlockHeader, RecordHeader, RecordKind, SEGMENT_HEADER_LENGTH,
    SegmentHeader, records_of,
};
use super::segment::{Empty, Segment, Space, header_region, lock, open_for_reading, zeroed_region};
use crate::error::{Error, Kind, Result};
use crate::ring::{Descriptor, OpenMode};
use crate::runtime::Core;

/// How much is read at a time, in bytes.
const READ_LENGTH: usize = 4 << 20;
/// The longest block that is believed in, in bytes: what a piece of an arena can have.
const BLOCK_LENGTH_MAX: usize = 16 << 20;

/// A record that counts.
pub struct RecoveredRecord {
    /// Its header.
    pub header: RecordHeader,
    /// The log that it is in.
    pub log: u16,
    /// The segment that it is in.
    pub segment: Arc<Segment>,
    /// Where its payload begins in the segment, in bytes.
    pub position: u64,
    /// The payload of a create record; empty for others.
    pub metadata: Vec<u8>,
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
pub struct Recovery {
    /// The records that count, log by log in the order of writing.
    pub records: Vec<RecoveredRecord>,
    /// Where each log goes on.
    pub logs: BTreeMap<u16, Continuation>,
    /// The largest generation that was ever begun, also in what does not count.
    pub generation_max: u64,
    /// What is damaged, a sentence each.
    pub damage: Vec<String>,
    /// How many bytes were read.
    pub scanned_bytes: u64,
}

/// Reads all segments of a store and settles what counts.
///
/// # Errors
/// A folder or file that cannot be read, a segment of another store or of another format version.
pub async fn recover(core: &Rc<Core>, space: &Arc<Space>) -> Result<Recovery> {
    let settings = space.settings();
    let mut recovery = Recovery::default();
    let mut scans = Vec::new();
    let numbers = list(core, space)?;
    // Whoever made a file may have been killed before its name was durable; from here on it is counted on.
    sync_folder(core, space).await?;
    for number in numbers {
        let path = Space::path(&settings.folder, number);
        let failed = |what: &str, errno: Errno| Error::device(format!("{what} {}", path.display()), errno);
        let file = open_for_reading(core, &path).await.map_err(|errno| failed("cannot open", errno))?;
        // Wait for the last writes of a killed process, then make durable what is going to be believed.
        lock(core, &file).await.map_err(|errno| failed("another process writes", errno))?;
        let _ = core.unlock(&file);
        core.sync(&file).await.map_err(|errno| failed("cannot sync", errno))?;
        let scan = scan(core, settings.store, number, file).await.map_err(|error| match error {
            ScanError::Read(errno) => failed("cannot read", errno),
            ScanError::Foreign(message) => {
                Error::new(Kind::DataFolder, format!("{}: {message}", path.display()))
            }
        })?;
        recovery.scanned_bytes += scan.read_bytes;
        space.resume_after(number, scan.header.map_or(0, |header| header.epoch));
        scans.push(scan);
    }

    let mut found = Vec::new();
    for (index, scan) in scans.iter().enumerate() {
        for (place, block) in scan.blocks.iter().enumerate() {
            found.push(Found { header: block.header, segment: index, place });
            for (record, _) in &block.records {
                recovery.generation_max = recovery.generation_max.max(record.generation);
            }
        }
    }
    let resolution = resolve(&mut found);
    recovery.logs = resolution.logs;
    for gap in resolution.gaps {
        recovery.damage.push(gap.describe(&scans));
    }

    let mut segments: Vec<Option<Arc<Segment>>> = Vec::new();
    let mut is_used = vec![false; scans.len()];
    let mut counts: Vec<Vec<bool>> = scans.iter().map(|scan| vec![false; scan.blocks.len()]).collect();
    for found in &resolution.counting {
        is_used[found.segment] = true;
        counts[found.segment][found.place] = true;
    }
    // Why a block does not count may be written in segments that are used again one day: it is made unreadable now.
    for (index, scan) in scans.iter().enumerate().filter(|(index, _)| is_used[*index]) {
        let void = scan.blocks.iter().zip(&counts[index]).filter(|(_, counts)| !**counts);
        let positions: Vec<u64> = void.map(|(block, _)| block.header.position).collect();
        clear_blocks(core, space, scan.number, &positions).await?;
    }
    for (index, scan) in scans.iter().enumerate() {
        segments.push(match scan.header {
            Some(header) if is_used[index] => {
                Some(Segment::new(scan.number, header.epoch, scan.file.clone(), space.clone()))
            }
            _ => {
                if !scan.blocks.is_empty() {
                    invalidate(core, space, scan).await?;
                }
                space.give_back(Empty {
                    number: scan.number,
                    file: Some(scan.file.clone()),
                    durable: true,
                    keeps: Vec::new(),
                });
                None
            }
        });
    }
    for found in resolution.counting {
        let Some(segment) = &segments[found.segment] else { continue };
        let block = &mut scans[found.segment].blocks[found.place];
        for (index, (header, at)) in block.records.iter().enumerate() {
            let metadata = match header.kind {
                RecordKind::Create => block.metadata.remove(&index).unwrap_or_default(),
                _ => Vec::new(),
            };
            let position = block.header.position + *at as u64;
            let log = block.header.log;
            recovery.records.push(RecoveredRecord {
                header: *header,
                log,
                segment: segment.clone(),
                position,
                metadata,
            });
        }
    }
    Ok(recovery)
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

/// Makes sure that what lies in a segment of which nothing counts never will: gives it another epoch.
async fn invalidate(core: &Rc<Core>, space: &Space, scan: &Scan) -> Result<()> {
    let Some(header) = scan.header else { return Ok(()) };
    let path = Space::path(&space.settings().folder, scan.number);
    let failed = |errno| Error::device(format!("cannot clear {}", path.display()), errno);
    let file = core.open(&path, OpenMode::WriteBuffered).await.map_err(failed)?;
    let region = header_region(&SegmentHeader { epoch: space.take_epoch(), ..header }).map_err(failed)?;
    core.write(&file, None, 0, region, true).await.map_err(failed)
}

/// Overwrites the headers of blocks that do not count, in a segment where others do.
async fn clear_blocks(core: &Rc<Core>, space: &Space, number: u64, positions: &[u64]) -> Result<()> {
    if positions.is_empty() {
        return Ok(());
    }
    let path = Space::path(&space.settings().folder, number);
    let failed = |errno| Error::device(format!("cannot clear blocks in {}", path.display()), errno);
    let file = core.open(&path, OpenMode::WriteBuffered).await.map_err(failed)?;
    let zeroes = zeroed_region(ALIGNMENT).map_err(failed)?;
    for &position in positions {
        core.write(&file, None, position, zeroes.clone(), true).await.map_err(failed)?;
    }
    Ok(())
}

struct Scan {
    number: u64,
    file: Arc<Descriptor>,
    header: Option<SegmentHeader>,
    blocks: Vec<ScannedBlock>,
    read_bytes: u64,
}

struct ScannedBlock {
    header: BlockHeader,
    records: Vec<(RecordHeader, usize)>,
    /// Payloads of create records, by the record's place.
    metadata: BTreeMap<usize, Vec<u8>>,
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
struct Window<'a> {
    core: &'a Rc<Core>,
    file: &'a Arc<Descriptor>,
    start: u64,
    buffer: Vec<u8>,
    filled: usize,
    read_bytes: u64,
}

impl Window<'_> {
    /// The bytes from `position`, `length` of them, or fewer at the end of the file.
    async fn at(&mut self, position: u64, length: usize) -> std::result::Result<&[u8], Errno> {
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

/// Every block of a segment that checks out. Where one does not, the next is looked for at every aligned place.
async fn scan(
    core: &Rc<Core>,
    store: u64,
    number: u64,
    file: Arc<Descriptor>,
) -> std::result::Result<Scan, ScanError> {
    let mut window = Window { core, file: &file, start: 0, buffer: Vec::new(), filled: 0, read_bytes: 0 };
    let bytes = window.at(0, SEGMENT_HEADER_LENGTH).await?;
    let header = SegmentHeader::decode(bytes).map_err(|error| ScanError::Foreign(error.to_string()))?;
    let mut blocks = Vec::new();
    if let Some(segment) = header {
        if segment.store != store {
            return Err(ScanError::Foreign("the segment belongs to another store".to_owned()));
        }
        let mut position = SEGMENT_HEADER_LENGTH as u64;
        while position + ALIGNMENT as u64 <= segment.length {
            let bytes = window.at(position, ALIGNMENT).await?;
            if bytes.len() < ALIGNMENT {
                break;
            }
            let plausible = BlockHeader::decode(bytes).filter(|block| {
                block.store == store
                    && block.epoch == segment.epoch
                    && block.position == position
                    && (BLOCK_HEADER_LENGTH..=BLOCK_LENGTH_MAX).contains(&(block.length as usize))
                    && position + u64::from(block.length) <= segment.length
            });
            let mut next = position + ALIGNMENT as u64;
            if let Some(block) = plausible {
                let bytes = window.at(position, block.length as usize).await?;
                if let Some(records) = records_of(&block, bytes) {
                    let metadata = records
                        .iter()
                        .enumerate()
                        .filter(|(_, (record, _))| record.kind == RecordKind::Create)
                        .map(|(index, (record, at))| {
                            (index, bytes[*at..at + record.length as usize].to_vec())
                        })
                        .collect();
                    blocks.push(ScannedBlock { header: block, records, metadata });
                    next = (position + u64::from(block.length)).next_multiple_of(ALIGNMENT as u64);
                }
            }
            position = next;
        }
    }
    let read_bytes = window.read_bytes;
    Ok(Scan { number, file, header, blocks, read_bytes })
}

/// A block that checks out, and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    header: BlockHeader,
    segment: usize,
    place: usize,
}

#[derive(Default)]
struct Resolution {
    /// The blocks that count, by log, then by sequence.
    counting: Vec<Found>,
    logs: BTreeMap<u16, Continuation>,
    gaps: Vec<Gap>,
}

/// Blocks that were durable and are missing between two that are there, in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    log: u16,
    first_sequence: u64,
    end_sequence: u64,
    segment: usize,
    position: u64,
}

impl Gap {
    fn describe(&self, scans: &[Scan]) -> String {
        format!(
            "segment {} is damaged before position {}: blocks {} to {} of log {} are lost",
            scans[self.segment].number,
            self.position,
            self.first_sequence,
            self.end_sequence - 1,
            self.log
        )
    }
}

/// Settles which blocks count, by the rules in the header of the room.
fn resolve(found: &mut [Found]) -> Resolution {
    found
        .sort_by_key(|found| (found.header.log, found.header.sequence, std::cmp::Reverse(found.header.term)));
    let mut resolution = Resolution::default();
    for log in found.chunk_by(|first, second| first.header.log == second.header.log) {
        let number = log[0].header.log;
        let terms: BTreeMap<u32, u64> =
            log.iter().map(|found| (found.header.term, found.header.term_start)).collect();
        let is_void = |header: &BlockHeader| {
            terms.range(header.term + 1..).any(|(_, &term_start)| term_start <= header.sequence)
        };
        let valid: Vec<Found> = log.iter().copied().filter(|found| !is_void(&found.header)).collect();
        // What some block says was durable before it.
        let durable =
            valid.iter().map(|found| found.header.durable.max(found.header.term_start)).max().unwrap_or(0);
        let mut expected: Option<(u64, usize)> = None;
        let mut next_sequence = durable;
        for found in valid {
            let sequence = found.header.sequence;
            if let Some((wanted, former_segment)) = expected {
                if sequence < wanted {
                    continue; // the same block of an earlier term
                }
                if sequence > wanted {
                    if wanted >= durable {
                        break; // the log ends here: what follows was never acknowledged
                    }
                    if found.segment == former_segment {
                        resolution.gaps.push(Gap {
                            log: number,
                            first_sequence: wanted,
                            end_sequence: sequence,
                            segment: found.segment,
                            position: found.header.position,
                        });
                    }
                    // Otherwise segments in between were used again; nothing in them was alive. If the gap
                    // reaches beyond what was durable, its end was torn.
                    if sequence > durable {
                        break;
                    }
                }
            } else if sequence > durable {
                break; // the block before it is torn
            }
            expected = Some((sequence + 1, found.segment));
            next_sequence = next_sequence.max(sequence + 1);
            resolution.counting.push(found);
        }
        let term = terms.last_key_value().map_or(0, |(&term, _)| term) + 1;
        resolution.logs.insert(number, Continuation { next_sequence, term });
    }
    resolution
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as (segment, sequence, durable, term, term start), in log 0.
    fn found(blocks: &[(usize, u64, u64, u32, u64)]) -> Vec<Found> {
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
                    position: 4096 * (sequence + 1),
                },
                segment,
                place,
            })
            .collect()
    }

    fn counting(blocks: &[(usize, u64, u64, u32, u64)]) -> (Vec<(usize, u64)>, Continuation, usize) {
        let resolution = resolve(&mut found(blocks));
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
    fn logs_do_not_mix() {
        let mut blocks = found(&[(0, 0, 0, 1, 0), (1, 0, 0, 1, 0), (1, 1, 0, 1, 0)]);
        blocks[1].header.log = 1;
        blocks[2].header.log = 1;
        let resolution = resolve(&mut blocks);
        assert_eq!(resolution.counting.len(), 3);
        assert_eq!(resolution.logs[&0].next_sequence, 1);
        assert_eq!(resolution.logs[&1].next_sequence, 2);
    }
}
