//! Damage of a closed store: every field of every header and every payload, one at a time. Each is found and named,
//! nothing else is affected, nothing panics; with the catalog and without it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use common::{block_on, content};
use tailwater::log::format::{
    ALIGNMENT, BlockHeader, RECORD_HEADER_LENGTH, RecordHeader, RecordKind, SEGMENT_HEADER_LENGTH,
    SegmentHeader, records_of,
};
use tailwater::store::finding::Part;
use tailwater::store::offline::{self, Offline, Run};
use tailwater::store::verify::{Report, verify};
use tailwater::{Config, Context, Engine, Kind, Metadata, Name, State};

/// The fields of the header of a segment, as the table in `src/log/mod.rs` has them: where, how long, what.
const SEGMENT_FIELDS: &[(usize, usize, &str)] = &[
    (0, 8, "magic"),
    (8, 4, "checksum"),
    (12, 4, "version"),
    (16, 8, "store"),
    (24, 8, "number"),
    (32, 8, "epoch"),
    (40, 8, "length"),
    (48, 16, "zero"),
];
/// Those of a block.
const BLOCK_FIELDS: &[(usize, usize, &str)] = &[
    (0, 4, "magic"),
    (4, 4, "checksum"),
    (8, 8, "epoch"),
    (16, 8, "sequence"),
    (24, 8, "durable"),
    (32, 8, "term start"),
    (40, 4, "term"),
    (44, 4, "length"),
    (48, 4, "records"),
    (52, 2, "log"),
    (54, 2, "zero"),
    (56, 8, "position"),
    (64, 8, "store"),
];
/// Those of a record.
const RECORD_FIELDS: &[(usize, usize, &str)] = &[
    (0, 4, "checksum"),
    (4, 4, "length"),
    (8, 8, "generation"),
    (16, 8, "offset"),
    (24, 8, "timestamp"),
    (32, 1, "kind"),
    (33, 1, "flags"),
    (34, 2, "zero"),
    (36, 4, "checksum of the payload"),
];

const THREADS: usize = 8;
const ROUNDS: usize = 6;

fn config(data: &Path) -> Config {
    Config {
        data: data.to_owned(),
        cores: 1,
        arena_bytes: 4 << 20,
        block_bytes: 64 << 10,
        segment_bytes: Some(2 << 20),
        ..Config::default()
    }
}

/// What a name must serve.
#[derive(Clone, Debug)]
struct Expected {
    generation: u64,
    bytes: Vec<u8>,
    state: State,
}

/// A closed store, and what is in it.
struct Closed {
    folder: tempfile::TempDir,
    objects: BTreeMap<String, Expected>,
    /// Names that were deleted.
    deleted: BTreeSet<String>,
}

impl Closed {
    fn new() -> Closed {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let engine = Engine::start(&config(&folder.path().join("data"))).unwrap();
        let writers: Vec<_> = (0..THREADS)
            .map(|number| {
                let store = engine.store();
                thread::spawn(move || block_on(write(store, number)))
            })
            .collect();
        let (mut objects, mut deleted) = (BTreeMap::new(), BTreeSet::new());
        for writer in writers {
            for (name, expected) in writer.join().unwrap() {
                match expected {
                    Some(expected) => {
                        objects.insert(name, expected);
                    }
                    None => {
                        deleted.insert(name);
                    }
                }
            }
        }
        engine.stop().unwrap();
        // Again, so that everything is settled and nothing else is to come.
        Engine::start(&config(&folder.path().join("data"))).unwrap().stop().unwrap();
        Closed { folder, objects, deleted }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A copy of the folder, to be damaged for good.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.folder.path().join(name);
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(to.join("segments")).unwrap();
        for entry in fs::read_dir(self.data()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        for entry in fs::read_dir(self.data().join("segments")).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join("segments").join(entry.file_name())).unwrap();
        }
        to
    }
}

async fn write(store: tailwater::Store, thread: usize) -> Vec<(String, Option<Expected>)> {
    let context = Context::background();
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        let text = format!("d/{thread}-{round}");
        let name = Name::parse(&text).unwrap();
        let metadata = || Metadata { content_type: Some("video/mp2t".to_owned()), ..Metadata::default() };
        if round == 3 {
            // Something that is going to be replaced.
            let mut writer = store.create(&context, name.clone(), metadata(), false).await.unwrap();
            writer.append(&context, content(99, 3000).into()).await.unwrap();
            writer.seal(&context).await.unwrap();
        }
        let mut writer = store.create(&context, name.clone(), metadata(), false).await.unwrap();
        let generation = writer.object().generation();
        let mut bytes = Vec::new();
        for (part, length) in [12_000, 37, 30_000, 9_000].into_iter().enumerate() {
            let part_bytes = content((thread * 100 + round * 10 + part) as u64, length);
            bytes.extend_from_slice(&part_bytes);
            match part {
                3 => writer.write_frame(&context, 1_000, part_bytes.into()).await.unwrap(),
                _ => writer.append(&context, part_bytes.into()).await.unwrap(),
            };
        }
        let mut state = State::Interrupted;
        if round == 4 {
            drop(writer);
        } else {
            writer.seal(&context).await.unwrap();
            state = State::Sealed;
        }
        if round == 1 {
            store.delete(&context, &name).await.unwrap();
            written.push((text, None));
        } else {
            written.push((text, Some(Expected { generation, bytes, state })));
        }
    }
    written
}

/// A byte that is changed until this is dropped.
struct Flip {
    file: File,
    position: u64,
    former: u8,
}

impl Flip {
    fn new(path: &Path, position: u64, mask: u8) -> Flip {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, position).unwrap();
        file.write_all_at(&[byte[0] ^ mask], position).unwrap();
        Flip { file, position, former: byte[0] }
    }
}

impl Drop for Flip {
    fn drop(&mut self) {
        self.file.write_all_at(&[self.former], self.position).unwrap();
    }
}

/// A block, as it stands.
#[derive(Clone)]
struct Block {
    segment: u64,
    position: u64,
    sequence: u64,
    /// Each with the position of its header in the segment.
    records: Vec<(RecordHeader, u64)>,
}

fn path_of(data: &Path, segment: u64) -> PathBuf {
    data.join(format!("segments/{segment:012}.segment"))
}

/// All blocks, in the order of writing.
fn blocks(data: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    for entry in fs::read_dir(data.join("segments")).unwrap().map(Result::unwrap) {
        let bytes = fs::read(entry.path()).unwrap();
        let Some(segment) = SegmentHeader::decode(&bytes).unwrap() else { continue };
        let mut position = SEGMENT_HEADER_LENGTH;
        while position + ALIGNMENT <= bytes.len() {
            let header = BlockHeader::decode(&bytes[position..]).filter(|block| block.epoch == segment.epoch);
            let Some(header) = header else {
                position += ALIGNMENT;
                continue;
            };
            let records = records_of(&header, &bytes[position..]).unwrap();
            let records = records.iter().map(|record| {
                (record.header, (position + record.payload_start - RECORD_HEADER_LENGTH) as u64)
            });
            blocks.push(Block {
                segment: segment.number,
                position: position as u64,
                sequence: header.sequence,
                records: records.collect(),
            });
            position = (position + header.length as usize).next_multiple_of(ALIGNMENT);
        }
    }
    blocks.sort_by_key(|block| block.sequence);
    blocks
}

/// What is changed, and what that touches.
struct Case {
    what: String,
    segment: u64,
    position: u64,
    mask: u8,
    /// What of the block is lost where there is no catalog that could tell where its records are.
    block: Option<Block>,
    /// The record, where only one is damaged.
    record: Option<RecordHeader>,
    is_payload: bool,
}

/// What is there to be damaged: in a segment that is full, and in the last one.
fn cases(store: &Closed) -> Vec<Case> {
    let blocks = blocks(&store.data());
    let mut cases = Vec::new();
    let segments: BTreeSet<u64> = blocks.iter().map(|block| block.segment).collect();
    assert!(segments.len() >= 2, "{segments:?}");
    let mut flip = |what: &str, fields: &[(usize, usize, &str)], start: u64, segment: u64, block, record| {
        for &(at, length, field) in fields {
            // The whole of a byte, and a single bit.
            for (byte, mask) in [(length / 2, 0xFF), (length - 1, 0x01)] {
                cases.push(Case {
                    what: format!("{what}, {field}, byte {byte}, mask {mask:#x}"),
                    segment,
                    position: start + (at + byte) as u64,
                    mask,
                    block: Option::<&Block>::cloned(block),
                    record,
                    is_payload: field == "payload",
                });
            }
        }
    };
    for &segment in &segments {
        flip(&format!("header of segment {segment}"), SEGMENT_FIELDS, 0, segment, None, None);
        let within: Vec<&Block> = blocks.iter().filter(|block| block.segment == segment).collect();
        for (which, block) in
            [("first", within[0]), ("middle", within[within.len() / 2]), ("last", within[within.len() - 1])]
        {
            let what = format!("header of the {which} block of segment {segment}");
            flip(&what, BLOCK_FIELDS, block.position, segment, Some(block), None);
        }
    }
    let generations: BTreeSet<u64> = store.objects.values().map(|object| object.generation).collect();
    for kind in [
        RecordKind::Create,
        RecordKind::Append,
        RecordKind::Frame,
        RecordKind::Seal,
        RecordKind::Interrupt,
        RecordKind::Delete,
    ] {
        let is_wanted = |(header, _): &&(RecordHeader, u64)| {
            header.kind == kind && (kind == RecordKind::Delete || generations.contains(&header.generation))
        };
        let places: Vec<(&Block, RecordHeader, u64)> = blocks
            .iter()
            .flat_map(|block| block.records.iter().map(move |record| (block, record)))
            .filter(|(_, record)| is_wanted(record))
            .map(|(block, &(header, position))| (block, header, position))
            .collect();
        for (block, header, position) in [places[0], places[places.len() / 2]] {
            let what = format!("a record ({kind:?}) of segment {}", block.segment);
            flip(&what, RECORD_FIELDS, position, block.segment, Some(block), Some(header));
            if header.length > 0 {
                let start = position + RECORD_HEADER_LENGTH as u64;
                let payload = [(0, header.length as usize, "payload")];
                flip(&what, &payload, start, block.segment, Some(block), Some(header));
            }
        }
    }
    cases
}

fn look(data: &Path) -> Report {
    offline::run(async |core| verify(core, data, |_, _| {}).await).unwrap()
}

fn text(report: &Report) -> String {
    report.findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// What can be read of each name: where it stands, its bytes, and which of them are lost.
type Readable = BTreeMap<String, (State, Vec<u8>, Vec<std::ops::Range<u64>>)>;

fn read_all(data: &Path, names: impl Iterator<Item = String>) -> Readable {
    offline::run(async |core| {
        let store = Offline::open(core, data).await?;
        let mut readable = Readable::new();
        for text in names {
            let kept = match store.find(&Name::parse(&text)?, None) {
                Ok(kept) => kept,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let (mut bytes, mut lost) = (Vec::new(), Vec::new());
            store
                .read(core, &kept, |run| {
                    match run {
                        Run::Whole(some) => bytes.extend_from_slice(some),
                        Run::Lost(range, _) => {
                            bytes.resize(range.end as usize, 0);
                            lost.push(range);
                        }
                    }
                    Ok::<_, tailwater::Error>(())
                })
                .await?;
            readable.insert(text, (kept.state, bytes, lost));
        }
        Ok(readable)
    })
    .unwrap()
}

fn names(store: &Closed) -> impl Iterator<Item = String> {
    store.objects.keys().chain(&store.deleted).cloned().collect::<Vec<_>>().into_iter()
}

#[test]
fn a_closed_store_is_whole_with_its_catalog_and_without() {
    let store = Closed::new();
    let report = look(&store.data());
    assert_eq!(text(&report), "");
    assert!(report.blocks > 50 && report.records > 300, "{report:?}");
    assert_eq!(report.objects, store.objects.len() as u64);
    assert_whole(&store, &read_all(&store.data(), names(&store)), &BTreeSet::new(), "nothing");
    fs::remove_file(store.data().join("catalog")).unwrap();
    let report = look(&store.data());
    assert_eq!(report.findings.len(), 1, "{}", text(&report));
    assert!(text(&report).contains("the catalog is missing"), "{}", text(&report));
    assert_whole(&store, &read_all(&store.data(), names(&store)), &BTreeSet::new(), "nothing");
}

/// All but some objects are as they were written, and what is deleted is.
#[track_caller]
fn assert_whole(store: &Closed, readable: &Readable, but: &BTreeSet<u64>, what: &str) {
    for (name, expected) in store.objects.iter().filter(|(_, expected)| !but.contains(&expected.generation)) {
        let (state, bytes, lost) =
            readable.get(name).unwrap_or_else(|| panic!("{what}: {name} is not there"));
        assert_eq!(*state, expected.state, "{what}: {name}");
        assert!(lost.is_empty(), "{what}: {name} has lost {lost:?}");
        assert!(*bytes == expected.bytes, "{what}: {name} has other bytes");
    }
    for name in &store.deleted {
        assert!(!readable.contains_key(name), "{what}: {name} was deleted");
    }
}

#[test]
fn with_the_catalog_damage_is_named_to_the_byte_and_nothing_else_is_affected() {
    let store = Closed::new();
    let data = store.data();
    let cases = cases(&store);
    for case in &cases {
        let what = &case.what;
        let flip = Flip::new(&path_of(&data, case.segment), case.position, case.mask);
        let report = look(&data);
        let found = text(&report);
        assert!(!report.findings.is_empty(), "{what} is not noticed");
        assert!(found.contains(&format!("segment {}", case.segment)), "{what}: {found}");
        let touched: Vec<(u64, Part)> = report
            .findings
            .iter()
            .flat_map(|finding| &finding.touched)
            .map(|touched| (touched.generation, touched.part.clone()))
            .collect();
        let expected = case.record.and_then(|record| {
            let part = match record.kind {
                RecordKind::Create => Part::Creation,
                RecordKind::Append | RecordKind::Frame => {
                    Part::Bytes(record.offset..record.offset + u64::from(record.length))
                }
                RecordKind::Seal => Part::Seal,
                RecordKind::Interrupt | RecordKind::Declare => return None,
                RecordKind::Delete => Part::Deletion,
            };
            Some((record.generation, part))
        });
        assert_eq!(touched, expected.clone().into_iter().collect::<Vec<_>>(), "{what}: {found}");

        // What has lost bytes has lost these; what is in the catalog too is lost nowhere.
        let readable = read_all(&data, names(&store));
        let mut but = BTreeSet::new();
        if let Some((generation, Part::Bytes(range))) = expected {
            let (name, object) =
                store.objects.iter().find(|(_, object)| object.generation == generation).unwrap();
            assert!(found.contains(&format!("{name} (generation {generation}): bytes ")), "{what}: {found}");
            let (state, bytes, lost) = &readable[name];
            assert_eq!((*state, lost.as_slice()), (object.state, std::slice::from_ref(&range)), "{what}");
            let mut kept = object.bytes.clone();
            kept[range.start as usize..range.end as usize].fill(0);
            assert!(*bytes == kept, "{what}: {name} has other bytes");
            but.insert(generation);
        }
        assert_whole(&store, &readable, &but, what);
        drop(flip);
    }
    assert_eq!(text(&look(&data)), "", "looking has changed nothing");
    println!("{} cases of damage with the catalog", cases.len());
    assert!(cases.len() > 250);
}

#[test]
fn without_the_catalog_damage_is_named_and_nothing_else_is_affected() {
    let store = Closed::new();
    let data = store.data();
    fs::remove_file(data.join("catalog")).unwrap();
    let last = blocks(&data).pop().unwrap();
    let mut count = 0;
    for case in cases(&store) {
        let what = &case.what;
        // The end of the log looks as if its writing had been cut off: nobody can tell.
        if case.block.as_ref().is_some_and(|block| block.sequence == last.sequence) {
            continue;
        }
        count += 1;
        let flip = Flip::new(&path_of(&data, case.segment), case.position, case.mask);
        let report = look(&data);
        let found = text(&report);
        assert!(report.findings.len() >= 2, "{what} is not noticed: {found}");
        assert!(found.contains(&format!("segment {}", case.segment)), "{what}: {found}");
        let in_block: BTreeSet<u64> = match (&case.block, case.is_payload) {
            (_, true) => case.record.iter().map(|record| record.generation).collect(),
            (Some(block), false) => block.records.iter().map(|(header, _)| header.generation).collect(),
            (None, _) => BTreeSet::new(),
        };
        let mut readable = read_all(&data, names(&store));
        for (name, expected) in
            store.objects.iter().filter(|(_, expected)| in_block.contains(&expected.generation))
        {
            let is_same = readable.get(name).is_some_and(|(state, bytes, lost)| {
                *state == expected.state && lost.is_empty() && *bytes == expected.bytes
            });
            let is_named = found.contains(&format!("{name} (generation {})", expected.generation))
                || found.contains(&format!("(generation {})", expected.generation));
            assert!(is_same || is_named, "{what}: {name} has changed and is not named: {found}");
            if let Some((state, bytes, lost)) = readable.get(name) {
                assert!(
                    lost.is_empty() && expected.bytes.starts_with(bytes),
                    "{what}: {name} has other bytes"
                );
                assert!(
                    *state == State::Interrupted || *bytes == expected.bytes,
                    "{what}: {name} is not whole"
                );
            }
        }
        // A deletion that is lost with its block cannot be known.
        let deletes = case.block.iter().flat_map(|block| &block.records);
        if !case.is_payload && deletes.clone().any(|(header, _)| header.kind == RecordKind::Delete) {
            readable.retain(|name, _| !store.deleted.contains(name));
        }
        assert_whole(&store, &readable, &in_block, what);
        drop(flip);
    }
    println!("{count} cases of damage without a catalog");
    assert!(count > 200);
}

/// Starts an engine on a damaged folder, and reads everything: what may differ are these generations.
#[track_caller]
fn assert_served(store: &Closed, data: &Path, but: &BTreeSet<u64>, deleted: &BTreeSet<String>, what: &str) {
    let engine = Engine::start(&config(data)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (client, context) = (engine.store(), Context::background());
    for (name, expected) in store.objects.iter().filter(|(_, expected)| !but.contains(&expected.generation)) {
        let found = block_on(async {
            let mut reader = client.open(&context, &Name::parse(name)?, 0).await?;
            let state = reader.object().state();
            let mut bytes = Vec::new();
            loop {
                match reader.next(&Context::background(), 1 << 20).await {
                    Ok(Some(some)) => bytes.extend_from_slice(&some),
                    Ok(None) => return Ok((state, bytes)),
                    Err(error) if error.kind() == Kind::Interrupted && state == State::Interrupted => {
                        return Ok((state, bytes));
                    }
                    Err(error) => return Err(error),
                }
            }
        });
        let (state, bytes) = found.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        assert_eq!(state, expected.state, "{what}: {name}");
        assert!(bytes == expected.bytes, "{what}: {name} has other bytes");
    }
    for name in deleted {
        let name = Name::parse(name).unwrap();
        let error = block_on(client.open(&context, &name, 0)).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{what}: {name} was deleted");
    }
    // It takes new objects, and no segment that holds something is written over by them.
    for number in 0..3 {
        let name = Name::parse(&format!("new/{number}")).unwrap();
        block_on(async {
            let mut writer = client.create(&context, name, Metadata::default(), false).await?;
            writer.append(&context, content(number, 1 << 20).into()).await?;
            writer.seal(&context).await
        })
        .unwrap();
    }
    engine.stop().unwrap();
}

#[test]
fn an_engine_starts_on_damage_and_serves_all_else() {
    let store = Closed::new();
    let last = blocks(&store.data()).pop().unwrap();
    let mut count = 0;
    for (number, case) in cases(&store).into_iter().enumerate() {
        // Some of every kind: a start takes longer than a look.
        if number % 7 != 0 {
            continue;
        }
        let what = &case.what;
        let is_at_end = case.block.as_ref().is_some_and(|block| block.sequence == last.sequence);
        for has_catalog in [true, false] {
            if !has_catalog && is_at_end {
                continue;
            }
            count += 1;
            let data = store.copy("copy");
            if !has_catalog {
                fs::remove_file(data.join("catalog")).unwrap();
            }
            // For good: whoever writes to this file now writes beside it.
            let path = path_of(&data, case.segment);
            std::mem::forget(Flip::new(&path, case.position, case.mask));
            let mut but: BTreeSet<u64> = case.record.iter().map(|record| record.generation).collect();
            let mut deleted = store.deleted.clone();
            if !has_catalog && !case.is_payload {
                let lost = case.block.iter().flat_map(|block| &block.records);
                but.extend(lost.clone().map(|(header, _)| header.generation));
                if lost.clone().any(|(header, _)| header.kind == RecordKind::Delete) {
                    deleted.clear();
                }
            }
            assert_served(&store, &data, &but, &deleted, &format!("{what}, catalog: {has_catalog}"));
            // And again, with what was written in the meantime.
            assert_served(&store, &data, &but, &deleted, &format!("{what}, catalog: {has_catalog}, again"));
        }
    }
    println!("{count} starts on damage");
    assert!(count > 60);
}

#[test]
fn bytes_of_what_is_deleted_are_missed_by_nobody() {
    let store = Closed::new();
    let kept: BTreeSet<u64> = store.objects.values().map(|object| object.generation).collect();
    let mut flips = Vec::new();
    for block in blocks(&store.data()) {
        for (header, position) in &block.records {
            if header.kind.is_data() && !kept.contains(&header.generation) && header.length > 0 {
                let path = path_of(&store.data(), block.segment);
                flips.push(Flip::new(&path, position + RECORD_HEADER_LENGTH as u64, 0xFF));
            }
        }
    }
    assert!(flips.len() > 20);
    assert_eq!(text(&look(&store.data())), "");
}

#[test]
fn a_segment_that_is_gone_is_named_with_all_that_was_in_it() {
    let store = Closed::new();
    let lost = blocks(&store.data())[0].segment;
    let generations = |data: &Path| -> BTreeSet<u64> {
        let report = look(data);
        assert!(text(&report).contains(&format!("segment {lost} ")), "{}", text(&report));
        report
            .findings
            .iter()
            .flat_map(|finding| &finding.touched)
            .map(|touched| touched.generation)
            .collect()
    };
    let kept: BTreeSet<u64> = store.objects.values().map(|object| object.generation).collect();
    let in_it: BTreeSet<u64> = blocks(&store.data())
        .iter()
        .filter(|block| block.segment == lost)
        .flat_map(|block| &block.records)
        .map(|(header, _)| header.generation)
        .filter(|generation| kept.contains(generation))
        .collect();
    let data = store.copy("missing");
    fs::remove_file(path_of(&data, lost)).unwrap();
    let named = generations(&data);
    assert!(
        in_it.iter().filter(|generation| !named.contains(generation)).count() == 0,
        "{in_it:?} {named:?}"
    );

    // Cut off in its midst, and emptied.
    for length in [1 << 20, 0] {
        let data = store.copy("short");
        OpenOptions::new().write(true).open(path_of(&data, lost)).unwrap().set_len(length).unwrap();
        let report = look(&data);
        assert!(
            text(&report).contains(&format!("segment {lost}: its file is {length} bytes long")),
            "{}",
            text(&report)
        );
        assert!(report.findings.iter().any(|finding| !finding.touched.is_empty()));
    }
}

#[test]
fn a_catalog_of_which_any_part_is_damaged_is_named_and_nothing_is_lost_by_it() {
    let store = Closed::new();
    let data = store.data();
    let catalog = data.join("catalog");
    let length = fs::metadata(&catalog).unwrap().len();
    let whole = fs::read(&catalog).unwrap();
    let (mut noticed, mut count) = (0, 0);
    // What is free in the file carries nothing; what does is noticed.
    for position in (0..length).step_by((length / 150) as usize + 1) {
        count += 1;
        let flip = Flip::new(&catalog, position, 0xFF);
        let report = look(&data);
        noticed += usize::from(!report.findings.is_empty());
        assert_whole(
            &store,
            &read_all(&data, names(&store)),
            &BTreeSet::new(),
            &format!("catalog at {position}"),
        );
        drop(flip);
    }
    for length in [0, 1, 100, 4096, length / 2, length - 1] {
        count += 1;
        OpenOptions::new().write(true).open(&catalog).unwrap().set_len(length).unwrap();
        let report = look(&data);
        assert!(text(&report).contains("the catalog"), "{length}: {}", text(&report));
        noticed += 1;
        assert_whole(&store, &read_all(&data, names(&store)), &BTreeSet::new(), "a catalog that is cut off");
        fs::write(&catalog, &whole).unwrap();
    }
    assert_eq!(text(&look(&data)), "");
    println!("{count} cases of damage to the catalog, of which {noticed} are noticed");
}

/// One change to the rows of a catalog, as a fault in the program would make it.
type Tamper = fn(&redb::WriteTransaction);

/// Takes away the first row of a table; without one the test would show nothing.
macro_rules! without_first {
    ($name:literal, $key:ty, $value:ty) => {
        |transaction| {
            let table = redb::TableDefinition::<$key, $value>::new($name);
            assert!(transaction.open_table(table).unwrap().pop_first().unwrap().is_some());
        }
    };
}

const TAMPERS: &[(&str, Tamper)] = &[
    ("no object", without_first!("objects", (&str, &[u8], u64), (u8, u64, u64, u64, u64, u64, &[u8]))),
    ("no name", without_first!("generations", u64, (&str, &[u8]))),
    ("no extents", without_first!("extents", (u64, u64), &[u8])),
    ("no place in the order of sealing", without_first!("sealed", (&str, u64, u64), u64)),
    ("no totals", without_first!("buckets", &str, (u64, u64))),
    ("no segment", without_first!("segments", u64, (u64, u8, u64, u64, u64, u64))),
    ("no deletion", without_first!("tombstones", (u64, u64), u64)),
    ("no place of a deletion", without_first!("tombstone_places", (u64, u64, u64), ())),
    ("a live object", |transaction| {
        let table = redb::TableDefinition::<u64, ()>::new("live");
        transaction.open_table(table).unwrap().insert(1 << 40, ()).unwrap();
    }),
    ("an end of nothing", |transaction| {
        let table = redb::TableDefinition::<u64, (u8, u64, u64, u64)>::new("ends");
        transaction.open_table(table).unwrap().insert(1 << 40, (2, 5, 5, 1)).unwrap();
    }),
    ("a smaller largest generation", |transaction| {
        let table = redb::TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(table).unwrap().insert("generation_max", 1).unwrap();
    }),
    ("records of a segment", |transaction| count(transaction, |row| row.2 += 1)),
    ("bytes of a segment", |transaction| count(transaction, |row| row.3 += 1)),
    ("deletions of a segment", |transaction| count(transaction, |row| row.4 += 1)),
    ("an earlier use of a segment", |transaction| count(transaction, |row| row.0 += 1_000)),
    ("totals of a bucket", |transaction| {
        let table = redb::TableDefinition::<&str, (u64, u64)>::new("buckets");
        transaction.open_table(table).unwrap().insert("d", (1, 1)).unwrap();
    }),
    // The extent of one object in the place of another's.
    ("an extent of another object", |transaction| {
        extents(transaction, |rows| {
            let (first, second) = rows.split_at_mut(1);
            first[0].1[12..24].copy_from_slice(&second[0].1[12..24]);
        });
    }),
    ("an extent behind all segments", |transaction| {
        extents(transaction, |rows| rows[0].1[12..16].fill(0xFF));
    }),
    ("an extent elsewhere", |transaction| extents(transaction, |rows| rows[0].1[12] ^= 8)),
    ("an extent that is shorter", |transaction| extents(transaction, |rows| rows[0].1[8] ^= 1)),
    ("an extent that is another part", |transaction| extents(transaction, |rows| rows[0].1[24] ^= 1)),
];

fn count(transaction: &redb::WriteTransaction, change: impl Fn(&mut (u64, u8, u64, u64, u64, u64))) {
    let table = redb::TableDefinition::<u64, (u64, u8, u64, u64, u64, u64)>::new("segments");
    let mut table = transaction.open_table(table).unwrap();
    let mut row = redb::ReadableTable::get(&table, 1).unwrap().unwrap().value();
    change(&mut row);
    table.insert(1, row).unwrap();
}

type ExtentRows = Vec<((u64, u64), Vec<u8>)>;

fn extents(transaction: &redb::WriteTransaction, change: impl Fn(&mut ExtentRows)) {
    let table = redb::TableDefinition::<(u64, u64), &[u8]>::new("extents");
    let mut table = transaction.open_table(table).unwrap();
    let rows = redb::ReadableTable::iter(&table).unwrap().map(Result::unwrap);
    let mut rows: ExtentRows = rows.map(|(key, row)| (key.value(), row.value().to_vec())).collect();
    change(&mut rows);
    for (key, row) in rows {
        table.insert(key, row.as_slice()).unwrap();
    }
}

#[test]
fn rows_of_the_catalog_that_do_not_agree_are_named() {
    let store = Closed::new();
    let catalog = store.data().join("catalog");
    let whole = fs::read(&catalog).unwrap();
    for (what, tamper) in TAMPERS {
        let database = redb::Database::open(&catalog).unwrap();
        let transaction = database.begin_write().unwrap();
        tamper(&transaction);
        transaction.commit().unwrap();
        drop(database);
        let report = look(&store.data());
        assert!(!report.findings.is_empty(), "{what} is not noticed");
        assert!(!text(&report).contains("--rebuild-catalog"), "{what} is a fault of rows: {}", text(&report));
        fs::write(&catalog, &whole).unwrap();
    }
    assert_eq!(text(&look(&store.data())), "");
    println!("{} cases of rows that do not agree", TAMPERS.len());
}
