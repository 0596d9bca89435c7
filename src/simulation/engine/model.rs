//! What a workload on the engine expects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use super::Tally;
use crate::store::{Name, Object, State};

/// An append, as the bytes of the object that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub start: u64,
    pub end: u64,
    /// Tells its bytes from those of another append in the same place.
    pub salt: u64,
}

/// How sure something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sure {
    /// It was never tried.
    #[default]
    No,
    /// It was tried, and may come about.
    Maybe,
    /// It was acknowledged, or seen: it is so for ever.
    Yes,
}

/// What is expected of one generation.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub name: Name,
    /// Whole appends, in order.
    pub parts: Vec<Part>,
    /// What a start may find in their place: what had been appended and was lost before somebody went on. A write that
    /// has failed may be on the disk all the same, and counts until something behind it is durable.
    lost: Vec<Vec<Part>>,
    /// These bytes were acknowledged, or read: they are there as long as the object is.
    pub committed: u64,
    pub created: Sure,
    pub sealed: Sure,
    pub deleted: Sure,
    /// Its writer is there.
    pub is_written: bool,
    /// How often it was gone on with: who wrote it before that is out of the game, and may not know it.
    pub turn: u64,
    /// What its writer writes.
    object: Weak<Object>,
    /// A start did not find it: it must never come back.
    pub is_gone: bool,
}

impl Generation {
    /// Where the last append ends.
    pub fn end(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// All that a start may find of it, or the beginning of one of these.
    fn possible(&self) -> impl Iterator<Item = &Vec<Part>> {
        std::iter::once(&self.parts).chain(&self.lost)
    }

    /// Everything before this is durable.
    fn commit(&mut self, end: u64) {
        self.committed = self.committed.max(end);
        self.created = Sure::Yes;
        let durable = &self.parts[..self.parts.partition_point(|part| part.start < self.committed)];
        self.lost.retain(|lost| lost.starts_with(durable));
    }

    /// How often its writing was taken up again, as far as that can be told.
    fn resumes(&self) -> Option<u64> {
        self.object.upgrade().map(|object| object.resumes())
    }

    /// Its writer is there, and it has not ended before that: where something that was appended finds no room the object
    /// is interrupted at once, and its writer learns of it with its next call.
    fn is_live(&self) -> bool {
        self.is_written && self.object.upgrade().is_some_and(|object| object.state() == State::Live)
    }

    fn is_there_for_sure(&self) -> bool {
        !self.is_gone && self.deleted == Sure::No && self.created == Sure::Yes
    }
}

/// What is expected of everything.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub generations: BTreeMap<u64, Generation>,
    /// Names with deletions under way, and how many.
    deleting: BTreeMap<Name, usize>,
    /// Names of which a creation was dropped: there may be an empty, interrupted generation that nobody knows.
    pub unknown: BTreeSet<Name>,
    pub salt: u64,
    /// The session has ended and does not know it.
    pub is_dead: bool,
    pub violation: Option<String>,
    pub tally: Tally,
}

/// What was known of a name before it was looked up.
pub(super) struct Before {
    name: Name,
    /// A generation that must be found, or a later one, unless something happens to it meanwhile; and how often it had
    /// been taken up again, where it was live: in between it is interrupted, and may be passed over.
    floor: Option<(u64, Option<u64>)>,
    deleted: Vec<u64>,
}

impl Model {
    /// Notes what does not hold. The first counts.
    pub fn violate(&mut self, what: String) {
        if !self.is_dead {
            self.violation.get_or_insert(what);
        }
    }

    /// A generation has begun. `may_expire`: retention may delete it.
    pub fn begin(&mut self, object: &Arc<Object>, may_expire: bool) {
        if self.is_dead {
            return;
        }
        let (generation, name) = (object.generation(), object.name());
        if self.generations.last_key_value().is_some_and(|(&last, _)| last >= generation) {
            // Cores begin side by side, but nothing that a name has had comes again.
            if self.generations.contains_key(&generation) {
                self.violate(format!("generation {generation} was given twice"));
            }
        }
        let is_deleted = may_expire || self.deleting.contains_key(name);
        let begun = Generation {
            name: name.clone(),
            parts: Vec::new(),
            lost: Vec::new(),
            committed: 0,
            created: Sure::Maybe,
            sealed: Sure::No,
            deleted: if is_deleted { Sure::Maybe } else { Sure::No },
            is_written: true,
            turn: 0,
            object: Arc::downgrade(object),
            is_gone: false,
        };
        self.generations.insert(generation, begun);
        self.tally.created += 1;
    }

    /// A writer goes on with this at `offset`; everything before is there, and nothing behind. Answers which turn that
    /// is. None: nobody knows of the object.
    pub fn resume(&mut self, object: &Arc<Object>, offset: u64) -> Option<u64> {
        let generation = object.generation();
        let known = self.generations.get_mut(&generation).filter(|_| !self.is_dead)?;
        let is_end = offset == 0 || known.parts.iter().any(|part| part.end == offset);
        let (committed, sealed) = (known.committed, known.sealed);
        let appended = known.parts.clone();
        known.parts.retain(|part| part.end <= offset);
        if appended.len() > known.parts.len() {
            known.lost.push(appended);
        }
        known.object = Arc::downgrade(object);
        known.is_written = true;
        known.turn += 1;
        let turn = known.turn;
        let told = format!("{} (generation {generation}) is gone on with at {offset}", object.name());
        if !is_end || offset < committed {
            self.violate(format!("{told}, and {committed} bytes were acknowledged or read"));
        } else if sealed == Sure::Yes {
            self.violate(format!("{told}, and was sealed"));
        }
        self.commit(generation, offset);
        self.tally.resumed += 1;
        Some(turn)
    }

    /// Whether this turn of writing an object is the last one.
    pub fn is_at_turn(&self, generation: u64, turn: u64) -> bool {
        self.generations.get(&generation).is_none_or(|object| object.turn == turn)
    }

    /// Who wrote an object in this turn does so no more.
    pub fn let_go(&mut self, generation: u64, turn: u64) {
        if let Some(object) = self.generations.get_mut(&generation)
            && object.turn == turn
        {
            object.is_written = false;
        }
    }

    /// An append is about to be made. Answers what tells its bytes from others.
    pub fn append(&mut self, generation: u64, length: u64) -> Part {
        self.salt += 1;
        let salt = self.salt;
        let Some(object) = self.generations.get_mut(&generation) else {
            return Part { start: 0, end: 0, salt };
        };
        let start = object.end();
        let part = Part { start, end: start + length, salt };
        object.parts.push(part);
        self.tally.appends += 1;
        part
    }

    /// The append that was tried last is not in the object.
    pub fn take_back(&mut self, generation: u64, part: Part) {
        if let Some(object) = self.generations.get_mut(&generation)
            && object.parts.last() == Some(&part)
        {
            object.parts.pop();
        }
    }

    /// So much of an object was acknowledged, or read.
    pub fn commit(&mut self, generation: u64, end: u64) {
        if self.is_dead {
            return;
        }
        if let Some(object) = self.generations.get_mut(&generation) {
            object.commit(end);
        }
    }

    /// The object was seen to be sealed, or its seal was acknowledged.
    pub fn seal(&mut self, generation: u64, length: u64) {
        if self.is_dead {
            return;
        }
        self.commit(generation, length);
        let Some(object) = self.generations.get_mut(&generation) else { return };
        let (end, sealed) = (object.end(), object.sealed);
        object.sealed = Sure::Yes;
        object.lost.clear();
        if sealed == Sure::No {
            self.violate(format!("{generation} is sealed, and nobody has tried that"));
        } else if end != length {
            self.violate(format!("{generation} is sealed with {length} bytes of {end}"));
        }
    }

    /// A deletion of a name begins. Answers what it must have deleted when it succeeds.
    pub fn begin_deletion(&mut self, name: &Name) -> Vec<u64> {
        *self.deleting.entry(name.clone()).or_default() += 1;
        let mut doomed = Vec::new();
        for (&generation, object) in &mut self.generations {
            if object.name == *name && !object.is_gone {
                object.deleted = object.deleted.max(Sure::Maybe);
                doomed.push(generation);
            }
        }
        doomed
    }

    /// A deletion is answered.
    pub fn end_deletion(&mut self, name: &Name) {
        if let Some(count) = self.deleting.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.deleting.remove(name);
            }
        }
    }

    /// A deletion was acknowledged.
    pub fn deleted(&mut self, doomed: &[u64]) {
        if self.is_dead {
            return;
        }
        for generation in doomed {
            if let Some(object) = self.generations.get_mut(generation) {
                object.deleted = Sure::Yes;
            }
        }
        self.tally.deleted += 1;
    }

    /// Whether these bytes are what was appended there.
    pub fn check_content(&self, generation: u64, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(object) = self.generations.get(&generation) else {
            return Err(format!("generation {generation} is unknown"));
        };
        let mut part = object.parts.partition_point(|part| part.end <= offset);
        for (offset, &byte) in (offset..).zip(bytes) {
            while object.parts.get(part).is_some_and(|part| part.end <= offset) {
                part += 1;
            }
            match object.parts.get(part) {
                Some(part) if byte_of(generation, part.salt, offset) == byte => {}
                Some(_) => {
                    return Err(format!(
                        "byte {offset} of {} (generation {generation}) is something else",
                        object.name
                    ));
                }
                None => return Err(format!("byte {offset} of generation {generation} was never appended")),
            }
        }
        Ok(())
    }

    /// What is known of a name, before it is looked up.
    pub fn before(&self, name: &Name) -> Before {
        let of_name = || self.generations.iter().filter(|(_, object)| object.name == *name);
        let floor = of_name().rfind(|(_, object)| is_floor(object)).map(|(&generation, object)| {
            (generation, object.resumes().filter(|_| object.sealed != Sure::Yes))
        });
        let deleted = of_name().filter(|(_, object)| object.deleted == Sure::Yes || object.is_gone);
        Before { name: name.clone(), floor, deleted: deleted.map(|(&generation, _)| generation).collect() }
    }

    /// Whether who looked then may have found this now, whatever else the name has.
    pub fn check_not_deleted(&mut self, before: &Before, found: u64, how: &str) {
        if before.deleted.contains(&found) {
            self.violate(format!("{how} shows {found} of {}, which was deleted", before.name));
        }
    }

    /// Whether a look-up that began then may have found this now.
    pub fn check_found(&mut self, before: &Before, found: Option<u64>, how: &str) {
        if self.is_dead {
            return;
        }
        let Before { name, floor, .. } = before;
        if let Some(found) = found {
            self.check_not_deleted(before, found, how);
            match self.generations.get(&found) {
                Some(object) if object.name == *name => {}
                Some(_) => return self.violate(format!("{how} shows {found} under the name {name}")),
                None if self.unknown.contains(name) => {}
                None => return self.violate(format!("{how} shows {found} of {name}, which nobody began")),
            }
        }
        let Some((floor, resumes)) = floor else { return };
        let is_still = self.generations.get(floor).is_some_and(|object| {
            is_floor(object) && resumes.is_none_or(|resumes| object.resumes() == Some(resumes))
        });
        if is_still && found.is_none_or(|found| found < *floor) {
            self.violate(format!("{how} shows {found:?} of {name}, and not {floor}"));
        }
    }

    /// Compares what a start has found with what is expected, and goes on from there.
    pub fn compare(&mut self, found: &[(String, u64, State, u64)]) -> Result<(), String> {
        let rows: BTreeMap<u64, &(String, u64, State, u64)> = found.iter().map(|row| (row.1, row)).collect();
        for (name, generation, state, length) in found {
            let Some(object) = self.generations.get_mut(generation) else {
                let is_left = self.unknown.iter().any(|unknown| unknown.as_str() == name);
                if is_left && *state == State::Interrupted && *length == 0 {
                    continue;
                }
                return Err(format!("found {generation} of {name}, which nobody began"));
            };
            let told = format!("{name} (generation {generation})");
            let committed = object.committed;
            if object.name.as_str() != name {
                return Err(format!("{told} is found, and has the name {}", object.name));
            }
            if object.is_gone || object.deleted == Sure::Yes {
                return Err(format!("{told} was deleted or cut off, and has come back"));
            }
            if *length < committed {
                return Err(format!("{told} has {length} bytes, and {committed} were acknowledged or read"));
            }
            let ends_there = |part: &Part| part.end == *length;
            if *length != 0 && !object.possible().any(|parts| parts.iter().any(ends_there)) {
                return Err(format!("{told} has {length} bytes, where no append ends: {:?}", object.parts));
            }
            let mut ends = object.possible().map(|parts| parts.last().map_or(0, |part| part.end));
            match state {
                State::Live => return Err(format!("{told} is live after a start")),
                State::Interrupted if object.sealed == Sure::Yes => {
                    return Err(format!("{told} was sealed, and is interrupted"));
                }
                State::Sealed if object.sealed == Sure::No => {
                    return Err(format!("{told} is sealed, and nobody has tried that"));
                }
                State::Sealed if !ends.any(|end| end == *length) => {
                    return Err(format!("{told} is sealed with {length} bytes of {}", object.end()));
                }
                _ => {}
            }
        }
        // From the newest on: what is missing may have been superseded by what came later.
        let mut later: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        // Sealed ones that a deletion of their name has taken, which takes them last.
        let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
        let mut gone = Vec::new();
        for (&generation, object) in self.generations.iter().rev() {
            let (sealed_later, any_later) = later.entry(object.name.as_str()).or_default();
            if object.is_gone {
                continue;
            }
            match rows.get(&generation) {
                Some(row) => {
                    if let Some(taken) = taken.get(object.name.as_str()) {
                        return Err(format!(
                            "{} (generation {generation}) has come to light, as {taken} was deleted first",
                            object.name
                        ));
                    }
                    *sealed_later |= row.2 == State::Sealed;
                    *any_later = true;
                }
                None => {
                    let is_superseded = *sealed_later || (*any_later && object.sealed != Sure::Yes);
                    if object.is_there_for_sure() && !is_superseded {
                        let what = if object.sealed == Sure::Yes { "sealed" } else { "acknowledged" };
                        return Err(format!(
                            "{} (generation {generation}) was {what}, and is lost",
                            object.name
                        ));
                    }
                    // Retention deletes one generation, and not the name.
                    let is_alone = object.name.bucket() == "short" || is_superseded;
                    if object.sealed == Sure::Yes && object.deleted != Sure::No && !is_alone {
                        taken.entry(object.name.as_str()).or_insert(generation);
                    }
                    if object.deleted != Sure::No || is_superseded {
                        *sealed_later |= object.sealed != Sure::No;
                        *any_later = true;
                    }
                    gone.push(generation);
                }
            }
        }
        for generation in gone {
            if let Some(object) = self.generations.get_mut(&generation) {
                object.is_gone = true;
                object.is_written = false;
            }
        }
        for (_, generation, state, length) in found {
            let Some(object) = self.generations.get_mut(generation) else { continue };
            let found = object.possible().find(|parts| parts.iter().any(|part| part.end == *length));
            object.parts = found.cloned().unwrap_or_default();
            object.parts.retain(|part| part.end <= *length);
            object.lost.clear();
            object.committed = *length;
            object.created = Sure::Yes;
            object.sealed = if *state == State::Sealed { Sure::Yes } else { Sure::No };
            object.deleted = Sure::No;
            object.is_written = false;
        }
        self.deleting.clear();
        Ok(())
    }

    /// What a name must serve when nothing goes on. None: that is not certain.
    pub fn served(&self, name: &Name) -> Option<Option<u64>> {
        let mut newest = [None; 2];
        let is_of =
            |object: &&Generation| object.name == *name && !object.is_gone && object.deleted != Sure::Yes;
        if self.unknown.contains(name) {
            return None;
        }
        for (&generation, object) in self.generations.iter().filter(|(_, object)| is_of(object)) {
            if object.deleted == Sure::Maybe || object.sealed == Sure::Maybe || object.is_written {
                return None;
            }
            newest[usize::from(object.sealed == Sure::Yes)] = Some(generation);
        }
        Some(newest[1].or(newest[0]))
    }

    /// Retention may delete what is in this bucket.
    pub fn expire(&mut self, bucket: &str) {
        for object in self.generations.values_mut().filter(|object| object.name.bucket() == bucket) {
            object.deleted = object.deleted.max(Sure::Maybe);
        }
    }
}

/// Whether a look-up must find this, or what is newer.
fn is_floor(object: &Generation) -> bool {
    let is_served = object.sealed == Sure::Yes || (object.is_live() && object.sealed == Sure::No);
    is_served && !object.is_gone && object.deleted == Sure::No
}

/// The byte at a place of an object.
pub(super) fn byte_of(generation: u64, salt: u64, offset: u64) -> u8 {
    let mixed =
        generation.wrapping_mul(31).wrapping_add(salt.wrapping_mul(131)).wrapping_add(offset.wrapping_mul(7));
    mixed.wrapping_add(offset >> 8) as u8
}
