//! The recovery scan over a folder of segments that the input has changed, on the simulated kernel.
//!
//! Whatever is in the files: nothing panics, every record that is reported stands in a block that checks out, and a
//! second scan, after what does not count was cleared, reports nothing that the first one did not. (It may report less:
//! that something damaged was durable once may be said in a segment that is cleared.)

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tailwater::log::format::{
    BLOCK_HEADER_LENGTH, BlockHeader, RECORD_HEADER_LENGTH, RecordHeader, RecordKind, SegmentHeader,
    record_length, records_of,
};
use tailwater::log::{Known, KnownSegment, RecoveredRecord, Space, SpaceSettings};
use tailwater::ring::{Arena, OpenMode};
use tailwater::runtime::Core;
use tailwater::simulation::{Cores, Pause, World, WorldSettings};

const FOLDER: &str = "/data/segments";
const STORE: u64 = 7;
const PAGE: usize = 4096;
const PAGES: usize = 12;
const SEGMENTS: usize = 3;

/// Bytes that are taken one after the other; zeroes behind the last.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        usize::from(*first)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A record that was found: segment, epoch, place, header, whether it is whole, document.
type Found = (u64, u64, u64, RecordHeader, bool, Vec<u8>);

/// Runs the scan over segments as logs write them, changed as the input says.
pub fn survey(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut segments = write(&mut input);
    let known = known(&mut input);
    change(&mut segments, &mut input);

    let world = World::new(WorldSettings { capacity_bytes: 16 << 20, ..WorldSettings::default() });
    world.make_folder(Path::new(FOLDER));
    let files = segments.clone();
    turn(&world, async move |core| {
        for (index, content) in files.into_iter().enumerate() {
            let path = Space::path(Path::new(FOLDER), index as u64 + 1);
            let file = core.open(&path, OpenMode::WriteBuffered).await.unwrap();
            let arena = Arena::new(1, content.len()).unwrap();
            let mut fill = arena.take().unwrap();
            fill.space().copy_from_slice(&content);
            core.write(&file, None, 0, fill.commit(content.len()), true).await.unwrap();
        }
    });
    let first = scan(&world, &known, &segments);
    let Some(first) = first else { return };
    let contents: Vec<Vec<u8>> = (1..=SEGMENTS as u64)
        .map(|number| world.content(&Space::path(Path::new(FOLDER), number)).unwrap())
        .collect();
    let second = scan(&world, &known, &contents);
    let second = second.expect("what was cleared can be scanned");
    for found in &second {
        let (segment, epoch, position, ..) = found;
        let is_known = first.contains(found);
        assert!(is_known, "a second scan finds {epoch} at {position} of {segment}, which the first did not");
    }
}

/// Segments as two logs write them: each block with what was durable before it.
fn write(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let mut sequences = [0u64; 2];
    let segment = |index: usize| {
        let mut content = vec![0; PAGE * PAGES];
        let (log, epoch) = (input.byte() % 2, 10 + index as u64);
        let header =
            SegmentHeader { store: STORE, number: index as u64 + 1, epoch, length: content.len() as u64 };
        header.encode(&mut content);
        let mut position = PAGE;
        for _ in 0..input.byte() % 6 {
            let mut block = vec![0; BLOCK_HEADER_LENGTH];
            let records = input.byte() % 4 + 1;
            for record in 0..records {
                let length = input.byte() * 20;
                let kind = [RecordKind::Create, RecordKind::Append, RecordKind::Delete][record % 3];
                let header = RecordHeader {
                    kind,
                    continued: false,
                    length: length as u32,
                    generation: sequences[log],
                    offset: 0,
                    timestamp: 1,
                };
                let start = block.len();
                block.resize(start + RECORD_HEADER_LENGTH + length, record as u8 + 1);
                header.encode(&mut block[start..]);
                block.resize(start + record_length(length), 0);
            }
            if position + block.len() > content.len() {
                break;
            }
            let header = BlockHeader {
                store: STORE,
                epoch,
                sequence: sequences[log],
                durable: sequences[log].saturating_sub(input.byte() as u64 % 3),
                term_start: 0,
                term: 1,
                length: block.len() as u32,
                records: records as u32,
                log: log as u16,
                position: position as u64,
            };
            header.encode(&mut block);
            content[position..position + block.len()].copy_from_slice(&block);
            position += block.len().next_multiple_of(PAGE);
            sequences[log] += 1;
        }
        content
    };
    (0..SEGMENTS).map(segment).collect()
}

/// What is known beforehand: mostly nothing.
fn known(input: &mut Input<'_>) -> Known {
    let mut known = Known::default();
    let choice = input.byte();
    if choice % 4 == 3 {
        let (first, second) = (input.byte() as u64, input.byte() as u64);
        known.segments.insert(1, KnownSegment::Covered { epoch: 10 });
        known.segments.insert(2, KnownSegment::Begun { epoch: 11, next_sequence: 3 });
        known.segments.insert(3, KnownSegment::Free { epoch: 12 + first % 2 });
        known.logs.insert(0, (first % 8, 1));
        known.logs.insert(1, (second % 8, 1));
    }
    known
}

/// Changes what the rest of the input says: a few bytes each.
fn change(segments: &mut [Vec<u8>], input: &mut Input<'_>) {
    while !input.is_empty() {
        let (kind, index) = (input.byte(), input.byte() % SEGMENTS);
        let at = (input.byte() << 8 | input.byte()) % (PAGE * PAGES);
        // The headers of blocks and segments are what matters most.
        let at = if kind & 8 == 0 { at / PAGE * PAGE + at % 120 } else { at };
        let value = input.byte();
        match kind % 8 {
            0 => segments[index][at] ^= value as u8 | 1,
            1 => segments[index][at] = value as u8,
            2 => {
                let end = (at + value * 64).min(PAGE * PAGES);
                segments[index][at..end].fill(0);
            }
            3 => {
                // A page from elsewhere: what a recycled segment has, or a misdirected write.
                let (from, page) = (value % SEGMENTS, value / SEGMENTS % PAGES);
                let copied = segments[from][page * PAGE..][..PAGE].to_vec();
                segments[index][at / PAGE * PAGE..][..PAGE].copy_from_slice(&copied);
            }
            4 => {
                // Another header that checks out.
                let page = at / PAGE * PAGE;
                if let Some(mut header) = BlockHeader::decode(&segments[index][page..]) {
                    match value % 8 {
                        0 => header.sequence = value as u64 / 8,
                        1 => header.durable = value as u64 / 8,
                        2 => header.term = value as u32 / 8,
                        3 => header.term_start = value as u64 / 8,
                        4 => header.length = (value as u32 / 8) << 9,
                        5 => header.position = (value as u64 / 8) << 12,
                        6 => header.log = value as u16 / 8,
                        _ => header.sequence = u64::MAX - value as u64,
                    }
                    header.encode(&mut segments[index][page..]);
                }
            }
            5 => segments[index].truncate(at),
            _ => {
                let header = SegmentHeader {
                    store: STORE,
                    number: index as u64 + 1,
                    epoch: value as u64 % 16,
                    length: (PAGE * PAGES) as u64,
                };
                header.encode(&mut segments[index][..PAGE.min(PAGE * PAGES)]);
            }
        }
        // A file that was cut off is zeroes from there on.
        segments[index].resize(PAGE * PAGES, 0);
    }
}

fn turn<F: Future<Output = ()> + 'static>(world: &World, main: impl FnOnce(Rc<Core>) -> F) {
    let mut cores = Cores::new(world, 1);
    cores.begin(0, main);
    assert_eq!(cores.run(1_000_000), Pause::Ended, "the scan does not end");
}

/// What a scan reports, after that was compared with the files; then what does not count is cleared. None: an error.
fn scan(world: &World, known: &Known, contents: &[Vec<u8>]) -> Option<Vec<Found>> {
    let space = Space::new(SpaceSettings {
        folder: FOLDER.into(),
        store: STORE,
        segment_bytes: (PAGE * PAGES) as u64,
        direct: false,
        spare_segments: 1,
        reserve_bytes: 0,
    });
    let reported: Rc<RefCell<Option<Vec<Found>>>> = Rc::default();
    let (result, known) = (reported.clone(), known.clone());
    turn(world, async move |core| {
        *result.borrow_mut() = report(&core, &space, &known).await;
    });
    let reported = reported.borrow_mut().take()?;
    for found in &reported {
        let content = &contents[found.0 as usize - 1];
        assert!(checks_out(content, found), "{found:?} is in no block that checks out");
    }
    Some(reported)
}

async fn report(core: &Rc<Core>, space: &Arc<Space>, known: &Known) -> Option<Vec<Found>> {
    let survey = tailwater::log::survey(core, space, known).await.ok()?;
    let mut reported = Vec::new();
    for segment in &survey.segments {
        let records = survey.read(core, space, segment).await.expect("what was scanned can be read");
        reported.extend(records.into_iter().map(|record| {
            let RecoveredRecord { header, position, is_whole, document } = record;
            (segment.number, segment.epoch, position, header, is_whole, document)
        }));
    }
    survey.settle(core, space).await.expect("the disk is whole");
    Some(reported)
}

/// Whether a record is in a block of its segment and epoch that checks out as a whole, at that very place.
fn checks_out(content: &[u8], (_, epoch, position, header, is_whole, document): &Found) -> bool {
    (PAGE..content.len()).step_by(PAGE).any(|at| {
        let Some(block) = BlockHeader::decode(&content[at..]) else { return false };
        if block.store != STORE || block.epoch != *epoch || block.position != at as u64 {
            return false;
        }
        let records = records_of(&block, &content[at..]).unwrap_or_default();
        records.iter().any(|record| {
            let payload = record.payload(&content[at..]);
            (at + record.payload_start) as u64 == *position
                && record.header == *header
                && record.is_whole == *is_whole
                && (header.kind != RecordKind::Create || document == payload)
        })
    })
}
