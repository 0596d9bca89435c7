//! From the records that count after a start back to objects.
//!
//! Per generation: its creation gives name and metadata; its appends, in the order of their offsets and up to the
//! first gap, its bytes; an append of several records counts only when it is whole. With a seal that matches it is
//! sealed, otherwise interrupted. A deletion takes it out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::Deserialize;

use super::extents::Extent;
use super::name::Name;
use super::namespace::Namespace;
use super::object::{Metadata, Object, State};
use crate::log::format::RecordKind;
use crate::log::{RecoveredRecord, Segment};
use crate::ring::WeakRegion;

#[derive(Deserialize)]
struct CreateDocument {
    name: String,
    #[serde(flatten)]
    metadata: Metadata,
}

#[derive(Default)]
struct Generation {
    document: Option<CreateDocument>,
    created_microseconds: u64,
    log: u16,
    /// Bytes by log, in the order of writing: the extent, and whether its append goes on in the next.
    appends: BTreeMap<u16, VecDeque<(Extent, bool)>>,
    end: Option<(State, u64)>,
    last_microseconds: u64,
    anchors: Vec<Arc<Segment>>,
    deletion: Option<Arc<Segment>>,
}

/// What came back, in numbers, and what did not.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Sealed objects.
    pub sealed: usize,
    /// Interrupted ones.
    pub interrupted: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged, a sentence each.
    pub damage: Vec<String>,
}

/// Fills the namespace. `cores` is how many there are now: an object whose log has no core any more gets another
/// home.
pub fn rebuild(records: Vec<RecoveredRecord>, namespace: &Namespace, cores: usize) -> Rebuilt {
    let mut generations: BTreeMap<u64, Generation> = BTreeMap::new();
    let mut rebuilt = Rebuilt::default();
    for record in records {
        let header = record.header;
        let generation = generations.entry(header.generation).or_default();
        if header.kind == RecordKind::Delete {
            generation.deletion = Some(record.segment);
            continue;
        }
        generation.log = record.log;
        match header.kind {
            RecordKind::Create => {
                match serde_json::from_slice(&record.metadata) {
                    Ok(document) => generation.document = Some(document),
                    Err(error) => rebuilt.damage.push(format!(
                        "the metadata of generation {} cannot be read: {error}",
                        header.generation
                    )),
                }
                generation.created_microseconds = header.timestamp;
                generation.last_microseconds = generation.last_microseconds.max(header.timestamp);
                generation.anchors.push(record.segment);
            }
            RecordKind::Append | RecordKind::Frame => {
                if header.kind == RecordKind::Append {
                    generation.last_microseconds = generation.last_microseconds.max(header.timestamp);
                }
                let extent = Extent {
                    offset: header.offset,
                    length: header.length,
                    position: record.position,
                    segment: record.segment,
                    hot: WeakRegion::default(),
                };
                generation.appends.entry(record.log).or_default().push_back((extent, header.continued));
            }
            RecordKind::Seal | RecordKind::Interrupt => {
                generation.last_microseconds = header.timestamp;
                if header.kind == RecordKind::Seal {
                    generation.end = Some((State::Sealed, header.offset));
                }
                generation.anchors.push(record.segment);
            }
            RecordKind::Delete => unreachable!("handled above"),
        }
    }
    for (number, generation) in generations {
        if let Some(deletion) = &generation.deletion {
            for segment in generation.segments() {
                segment.keep(deletion);
            }
            continue;
        }
        // Without its creation nothing leads to it: it was deleted, and that segment was used again already.
        let Some(document) = &generation.document else { continue };
        let name = match Name::parse(&document.name) {
            Ok(name) => name,
            Err(error) => {
                rebuilt.damage.push(format!("generation {number} has no name: {error}"));
                continue;
            }
        };
        let object = generation.object(name, number, cores, &mut rebuilt);
        match object.state() {
            State::Sealed => rebuilt.sealed += 1,
            _ => rebuilt.interrupted += 1,
        }
        rebuilt.bytes += object.committed();
        let begun = namespace.begin(&object, false);
        assert!(begun.is_ok(), "nothing refuses a generation here");
    }
    rebuilt
}

impl Generation {
    fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.appends.values().flatten().map(|(extent, _)| &extent.segment).chain(&self.anchors)
    }

    fn object(mut self, name: Name, number: u64, cores: usize, rebuilt: &mut Rebuilt) -> Arc<Object> {
        let home = usize::from(self.log) % cores;
        let metadata = self.document.take().map(|document| document.metadata).unwrap_or_default();
        let object = Object::new(name, number, metadata, home, self.created_microseconds);
        for anchor in &self.anchors {
            object.anchor(anchor);
        }
        let committed = self.take_appends(&object);
        let state = match self.end {
            Some((State::Sealed, length)) if length == committed => State::Sealed,
            Some((State::Sealed, length)) => {
                rebuilt.damage.push(format!(
                    "{} (generation {number}) was sealed with {length} bytes, of which {committed} are left",
                    object.name()
                ));
                State::Interrupted
            }
            _ => State::Interrupted,
        };
        object.end(state, self.last_microseconds);
        object
    }

    /// Gives the object its bytes up to the first gap, and answers how many. A writer that went on elsewhere has
    /// left them in several logs.
    fn take_appends(&mut self, object: &Object) -> u64 {
        let mut tail = object.extents().tail();
        let mut committed = 0;
        loop {
            let before = committed;
            for records in self.appends.values_mut() {
                committed = take_in_order(records, committed, |extent| tail.push(object.extents(), extent));
            }
            if committed == before {
                object.commit(committed);
                return committed;
            }
        }
    }
}

/// Takes the whole appends that follow `committed` from the records of one log, and answers where they end.
fn take_in_order(
    records: &mut VecDeque<(Extent, bool)>,
    mut committed: u64,
    mut take: impl FnMut(Extent),
) -> u64 {
    let mut parts: Vec<Extent> = Vec::new();
    while let Some((extent, _)) = records.front() {
        let expected = parts.last().map_or(committed, Extent::end);
        if extent.offset != expected {
            // What was given up in the middle is followed by another append in its place.
            parts.clear();
            if extent.offset > committed {
                break;
            }
        }
        let Some((extent, continued)) = records.pop_front() else { break };
        if extent.offset < committed {
            continue;
        }
        let end = extent.end();
        parts.push(extent);
        if !continued {
            parts.drain(..).for_each(&mut take);
            committed = end;
        }
    }
    committed
}
