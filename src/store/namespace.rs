//! Which generations a name has, and which of them it serves.
//!
//! A name serves its newest generation that is live or sealed, and an interrupted one only where there is no
//! other. When a generation is sealed, older ones are superseded; of interrupted ones only the newest is kept.
//!
//! Here are the names about which there is something that the catalog does not know yet: a generation that is being
//! written, or whose records lie in an active segment, or whose deletion is under way. An entry that is *complete*
//! holds all generations, also those of the catalog, and is the truth about its name; one that is not still waits
//! for what the catalog has. For a name without an entry the catalog is the truth.
//!
//! One map for all cores, behind a lock that is held for a look-up or a change of one name: taken when a request
//! begins and when an object begins or ends, never for its bytes.

use std::collections::btree_map::Range;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::name::{Name, Place};
use super::object::{Object, State};
use crate::error::{Error, Kind, Result};

/// The names with news.
#[derive(Default)]
pub struct Namespace {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<Name, Entry>,
    /// A bit for each core with requests that wait for a name.
    awaited: HashMap<Name, u64>,
    /// Listings that are being made: until they are done, no entry leaves.
    listings: usize,
    /// Entries that might leave after that.
    leaving: Vec<Name>,
}

#[derive(Default)]
struct Entry {
    /// Generations in ascending order.
    generations: Vec<Arc<Object>>,
    /// Deleted, which the catalog does not know yet.
    deleted: Vec<Arc<Object>>,
    /// Those of them that the catalog knows of by now. Whoever asked it before that may not see it: they stay until
    /// all answers have come.
    deletions_stored: Vec<u64>,
    /// Nothing of this name is only in the catalog.
    is_complete: bool,
    /// Who needs the entry to stay: everybody who waits for the catalog's answer about the name.
    pins: usize,
}

/// What a look at the names finds.
pub enum Look {
    /// The generation that the name serves.
    Found(Arc<Object>),
    /// The name serves nothing.
    Nothing,
    /// Only the catalog can tell.
    Ask,
}

/// What a name serves, as a listing sees it.
pub enum Visible {
    /// This generation.
    Object(Arc<Object>),
    /// Nothing.
    Nothing,
    /// The newest of what is here, which is interrupted, and of what the catalog has, but for these generations.
    Ask(Option<Arc<Object>>, Vec<u64>),
}

/// Keeps the entry of a name.
pub struct Pin<'a> {
    namespace: &'a Namespace,
    name: &'a Name,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut inner = self.namespace.lock();
        if let Some(entry) = inner.entries.get_mut(self.name) {
            entry.pins -= 1;
        }
        inner.leave_if_possible(self.name);
    }
}

/// Keeps all entries.
pub struct Listing<'a> {
    namespace: &'a Namespace,
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        let mut inner = self.namespace.lock();
        inner.listings -= 1;
        if inner.listings == 0 {
            for name in std::mem::take(&mut inner.leaving) {
                inner.leave_if_possible(&name);
            }
        }
    }
}

impl Inner {
    /// The entries from a place on.
    fn from<'p>(&self, place: Bound<&(dyn Place + 'p)>) -> Range<'_, Name, Entry> {
        self.entries.range::<dyn Place + 'p, _>((place, Bound::Unbounded))
    }

    /// Lets go of what the catalog has and nobody needs here any more.
    fn leave_if_possible(&mut self, name: &Name) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        if entry.pins > 0 {
            return;
        }
        if self.listings > 0 {
            self.leaving.push(name.clone());
            return;
        }
        let stored = std::mem::take(&mut entry.deletions_stored);
        entry.deleted.retain(|object| !stored.contains(&object.generation()));
        let is_known = entry.is_complete
            && entry.deleted.is_empty()
            && entry.generations.iter().all(|object| object.is_stored());
        if is_known {
            self.entries.remove(name);
        }
    }
}

impl Entry {
    fn look(&self) -> Look {
        let newest = self.generations.iter().rev().find(|object| object.state() != State::Interrupted);
        match newest.or(self.generations.last().filter(|_| self.is_complete)) {
            Some(object) => Look::Found(object.clone()),
            None if self.is_complete => Look::Nothing,
            None => Look::Ask,
        }
    }

    fn has(&self, generation: u64) -> bool {
        self.generations.iter().chain(&self.deleted).any(|object| object.generation() == generation)
    }

    fn add(&mut self, object: Arc<Object>) {
        let place = self.generations.partition_point(|other| other.generation() < object.generation());
        self.generations.insert(place, object);
    }

    fn complete(&mut self, stored: &[Arc<Object>]) {
        if !std::mem::replace(&mut self.is_complete, true) {
            for object in stored.iter().filter(|object| !object.is_deleted()) {
                if !self.has(object.generation()) {
                    self.add(object.clone());
                }
            }
        }
    }
}

impl Namespace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a generation that begins. Answers the cores (a bit each) with requests that wait for its name.
    ///
    /// With `only_if_absent` the entry must be complete where nothing that it has decides.
    ///
    /// # Errors
    /// [`Kind::Exists`] with `only_if_absent`, where the name already serves something live or sealed.
    pub fn begin(&self, object: &Arc<Object>, only_if_absent: bool) -> Result<u64> {
        let mut inner = self.lock();
        let entry = inner.entries.entry(object.name().clone()).or_default();
        if only_if_absent && entry.generations.iter().any(|other| other.state() != State::Interrupted) {
            return Err(Error::new(Kind::Exists, "the object exists already"));
        }
        assert!(entry.is_complete || !only_if_absent, "what the catalog has is known where it matters");
        entry.add(object.clone());
        Ok(inner.awaited.remove(object.name()).unwrap_or(0))
    }

    /// The generation that the name serves, as far as it is known here.
    pub fn find(&self, name: &Name) -> Look {
        self.lock().entries.get(name).map_or(Look::Ask, Entry::look)
    }

    /// As [`Namespace::find`]; unless something is found, `begin` will tell that this core waits.
    pub fn find_or_await(&self, name: &Name, core: usize) -> Look {
        let mut inner = self.lock();
        let look = inner.entries.get(name).map_or(Look::Ask, Entry::look);
        if !matches!(look, Look::Found(_)) {
            *inner.awaited.entry(name.clone()).or_default() |= 1 << core;
        }
        look
    }

    /// Forgets that this core waits for a name.
    pub fn no_longer_await(&self, name: &Name, core: usize) {
        let mut inner = self.lock();
        if let Some(awaiting) = inner.awaited.get_mut(name) {
            *awaiting &= !(1 << core);
            if *awaiting == 0 {
                inner.awaited.remove(name);
            }
        }
    }

    /// How many names are awaited, and how many times an entry is to stay.
    #[cfg(test)]
    pub(super) fn awaited_and_pinned(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.awaited.len(), inner.entries.values().map(|entry| entry.pins).sum())
    }

    /// Makes sure that the name has an entry, and keeps it until the answer is dropped.
    pub fn pin<'a>(&'a self, name: &'a Name) -> Pin<'a> {
        self.lock().entries.entry(name.clone()).or_default().pins += 1;
        Pin { namespace: self, name }
    }

    /// Whether the name has an entry, and that has all generations.
    pub fn is_complete(&self, name: &Name) -> bool {
        self.lock().entries.get(name).is_some_and(|entry| entry.is_complete)
    }

    /// Adds to an entry what the catalog has of its name, and answers what the name serves then. Without an entry
    /// the catalog alone decides.
    pub fn complete(&self, name: &Name, stored: &[Arc<Object>]) -> Option<Arc<Object>> {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name) else {
            return served(stored).cloned();
        };
        entry.complete(stored);
        let look = entry.look();
        inner.leave_if_possible(name);
        match look {
            Look::Found(object) => Some(object),
            Look::Nothing | Look::Ask => None,
        }
    }

    /// Takes out what is superseded, after a generation of this name has ended. Its deletion is to be logged. An
    /// entry that is not complete is settled later.
    pub fn settle(&self, name: &Name) -> Vec<Arc<Object>> {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(name).filter(|entry| entry.is_complete) else {
            return Vec::new();
        };
        let newest = |state| entry.generations.iter().rev().find(|object| object.state() == state);
        let sealed = newest(State::Sealed).map_or(0, |object| object.generation());
        let interrupted = newest(State::Interrupted).map_or(0, |object| object.generation());
        let (superseded, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut entry.generations).into_iter().partition(|object| {
                let generation = object.generation();
                match object.state() {
                    State::Live => false,
                    State::Sealed => generation < sealed,
                    State::Interrupted => generation < sealed || generation < interrupted,
                }
            });
        entry.generations = kept;
        for object in &superseded {
            object.set_deleted();
        }
        entry.deleted.extend(superseded.iter().cloned());
        superseded
    }

    /// All generations of a name that a deletion must be logged of, of a complete entry: what it holds, and what was
    /// superseded and is not durably deleted. In such an order that the one which is served comes last: a crash in
    /// between does not bring another one to light. Nothing, if the name serves nothing.
    pub fn to_be_deleted(&self, name: &Name) -> Vec<Arc<Object>> {
        let inner = self.lock();
        let Some(entry) = inner.entries.get(name).filter(|entry| !entry.generations.is_empty()) else {
            return Vec::new();
        };
        let superseded = entry.deleted.iter().filter(|object| !object.is_durably_deleted());
        let mut all: Vec<_> = entry.generations.iter().chain(superseded).cloned().collect();
        all.sort_by_key(|object| (object.state() != State::Interrupted, object.generation()));
        all
    }

    /// One generation of a complete entry, if it is there and sealed.
    pub fn sealed_generation(&self, name: &Name, generation: u64) -> Option<Arc<Object>> {
        let inner = self.lock();
        let is_it =
            |object: &&Arc<Object>| object.generation() == generation && object.state() == State::Sealed;
        inner.entries.get(name)?.generations.iter().find(is_it).cloned()
    }

    /// The deletion of this generation is durable: the name does not lead to it any more. False: it did not before.
    pub fn deletion_is_durable(&self, object: &Arc<Object>) -> bool {
        object.set_durably_deleted();
        let was_there = !object.set_deleted();
        let mut inner = self.lock();
        let entry = inner.entries.entry(object.name().clone()).or_default();
        entry.generations.retain(|other| other.generation() != object.generation());
        if !entry.deleted.iter().any(|other| other.generation() == object.generation()) {
            entry.deleted.push(object.clone());
        }
        was_there
    }

    /// The catalog knows that this generation is deleted.
    pub fn deletion_is_stored(&self, object: &Object) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get_mut(object.name()) {
            entry.deletions_stored.push(object.generation());
        }
        inner.leave_if_possible(object.name());
    }

    /// The catalog knows all of this generation, as it was when its writing had been taken up again so many times.
    pub fn is_stored(&self, object: &Object, resumes: u64) {
        let mut inner = self.lock();
        if object.resumes() == resumes {
            object.set_stored(true);
            inner.leave_if_possible(object.name());
        }
    }

    /// One generation of a complete entry that is pinned.
    pub fn generation(&self, name: &Name, generation: u64) -> Option<Arc<Object>> {
        let inner = self.lock();
        let is_it = |object: &&Arc<Object>| object.generation() == generation && !object.is_deleted();
        inner.entries.get(name)?.generations.iter().find(is_it).cloned()
    }

    /// The newest generation of a complete entry that is pinned, if it is not sealed.
    pub fn unfinished(&self, name: &Name) -> Option<Arc<Object>> {
        let inner = self.lock();
        let newest = inner.entries.get(name)?.generations.last()?;
        (newest.state() != State::Sealed && !newest.is_deleted()).then(|| newest.clone())
    }

    /// Makes an interrupted generation of a complete entry, which is pinned, live again, on this core. False: somebody
    /// else was faster, or it is not there any more.
    pub fn resume(&self, object: &Arc<Object>, core: usize) -> bool {
        let inner = self.lock();
        let is_here = inner
            .entries
            .get(object.name())
            .is_some_and(|entry| entry.generations.iter().any(|other| Arc::ptr_eq(other, object)));
        let may_resume = is_here
            && object.state() == State::Interrupted
            && object.home().is_none_or(|home| home == core)
            && !object.is_deleted();
        if may_resume {
            object.resume(core);
        }
        may_resume
    }

    /// Takes one generation out whose creation may be on stable storage or not. Its deletion is to be logged, and goes with
    /// one of the name.
    pub fn give_up(&self, object: &Arc<Object>) {
        object.set_deleted();
        let mut inner = self.lock();
        let entry = inner.entries.entry(object.name().clone()).or_default();
        entry.generations.retain(|other| other.generation() != object.generation());
        entry.deleted.push(object.clone());
    }

    /// Keeps all entries until the answer is dropped: what leaves here and what a look at the catalog sees then
    /// fit together.
    pub fn list(&self) -> Listing<'_> {
        self.lock().listings += 1;
        Listing { namespace: self }
    }

    /// The first name of a bucket from a place on, and what it serves.
    pub fn next_key(&self, bucket: &str, from: &Bound<Vec<u8>>) -> Option<(String, Visible)> {
        let inner = self.lock();
        let place = from.as_ref().map(|key| (bucket, key.as_slice()));
        let (name, entry) = inner.from(place.as_ref().map(|place| place as &dyn Place)).next()?;
        if name.bucket() != bucket {
            return None;
        }
        let visible = match entry.look() {
            Look::Found(object) => Visible::Object(object),
            Look::Nothing => Visible::Nothing,
            Look::Ask => {
                let known = entry.generations.iter().chain(&entry.deleted);
                let known = known.map(|object| object.generation()).collect();
                Visible::Ask(entry.generations.last().cloned(), known)
            }
        };
        Some((name.key().to_owned(), visible))
    }

    /// The first bucket from a text on with an entry.
    pub fn next_bucket(&self, from: &str) -> Option<String> {
        let inner = self.lock();
        let mut entries = inner.from(Bound::Included(&(from, &b""[..])));
        entries.next().map(|(name, _)| name.bucket().to_owned())
    }

    /// Sealed objects of a bucket that are only here so far.
    pub fn sealed(&self, bucket: &str) -> Vec<Arc<Object>> {
        let inner = self.lock();
        inner
            .from(Bound::Included(&(bucket, &b""[..])))
            .take_while(|(name, _)| name.bucket() == bucket)
            .flat_map(|(_, entry)| &entry.generations)
            .filter(|object| object.state() == State::Sealed && !object.is_stored())
            .cloned()
            .collect()
    }
}

/// The generation that is served of these, which are in ascending order.
fn served(generations: &[Arc<Object>]) -> Option<&Arc<Object>> {
    let known = || generations.iter().rev().filter(|object| !object.is_deleted());
    known().find(|object| object.state() != State::Interrupted).or_else(|| known().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::object::Metadata;

    fn object(generation: u64, state: State) -> Arc<Object> {
        let name = Name::parse("b/k").unwrap();
        let object = Object::new(name, generation, Metadata::default(), 0);
        if state != State::Live {
            object.end(state, 0);
        }
        object
    }

    fn name() -> Name {
        Name::parse("b/k").unwrap()
    }

    /// An entry with generations from 1 on, of which the first so many are known from the catalog.
    fn namespace(stored: usize, states: &[State]) -> Namespace {
        let namespace = Namespace::default();
        let objects: Vec<_> =
            states.iter().enumerate().map(|(index, &state)| object(index as u64 + 1, state)).collect();
        for object in &objects[stored..] {
            namespace.begin(object, false).unwrap();
        }
        let name = name();
        std::mem::forget(namespace.pin(&name));
        namespace.complete(&name, &objects[..stored]);
        namespace
    }

    fn found(look: Look) -> Option<u64> {
        match look {
            Look::Found(object) => Some(object.generation()),
            Look::Nothing => None,
            Look::Ask => Some(0),
        }
    }

    fn generations(objects: &[Arc<Object>]) -> Vec<u64> {
        objects.iter().map(|object| object.generation()).collect()
    }

    #[test]
    fn a_name_serves_its_newest_live_or_sealed_generation() {
        use State::{Interrupted, Live, Sealed};
        for (states, expected) in [
            (&[Sealed][..], 1),
            (&[Sealed, Live], 2),
            (&[Sealed, Interrupted], 1),
            (&[Interrupted, Interrupted], 2),
            (&[Live, Interrupted], 1),
            (&[Sealed, Live, Interrupted], 2),
        ] {
            for stored in 0..=states.len() {
                let namespace = namespace(stored, states);
                assert_eq!(found(namespace.find(&name())), Some(expected), "{states:?} {stored}");
            }
        }
    }

    #[test]
    fn what_is_only_in_the_catalog_is_asked_for_where_it_decides() {
        let namespace = Namespace::default();
        assert_eq!(found(namespace.find(&name())), Some(0), "no entry");
        namespace.begin(&object(5, State::Interrupted), false).unwrap();
        assert_eq!(found(namespace.find(&name())), Some(0), "there may be a sealed one");
        let served = namespace.complete(&name(), &[object(3, State::Sealed), object(4, State::Interrupted)]);
        assert_eq!(served.unwrap().generation(), 3);
        assert_eq!(generations(&namespace.settle(&name())), [4]);
    }

    #[test]
    fn an_entry_stays_until_the_catalog_knows_all_of_it() {
        let namespace = Namespace::default();
        let object = object(1, State::Sealed);
        namespace.begin(&object, false).unwrap();
        namespace.is_stored(&object, 0);
        assert_eq!(namespace.lock().entries.len(), 1, "what the catalog has is not known yet");
        let pin = name();
        let pin = namespace.pin(&pin);
        namespace.complete(&name(), &[]);
        assert_eq!(namespace.lock().entries.len(), 1, "it is pinned");
        let listing = namespace.list();
        drop(pin);
        assert_eq!(namespace.lock().entries.len(), 1, "a listing is being made");
        drop(listing);
        assert_eq!(namespace.lock().entries.len(), 0);
    }

    #[test]
    fn an_entry_stays_until_the_catalog_knows_of_a_deletion() {
        let namespace = namespace(1, &[State::Sealed]);
        namespace.lock().entries.get_mut(&name()).unwrap().pins = 0;
        let objects = namespace.to_be_deleted(&name());
        assert_eq!(generations(&objects), [1]);
        assert_eq!(found(namespace.find(&name())), Some(1), "nothing is deleted before that is durable");
        assert!(namespace.deletion_is_durable(&objects[0]) && objects[0].is_deleted());
        assert!(!namespace.deletion_is_durable(&objects[0]), "it was deleted already");
        assert_eq!(found(namespace.find(&name())), None);
        assert!(namespace.to_be_deleted(&name()).is_empty(), "the name is gone");
        namespace.deletion_is_stored(&objects[0]);
        assert_eq!(namespace.lock().entries.len(), 0);
    }

    /// A listing showed an object whose deletion was acknowledged: its view of the catalog was older than the news.
    #[test]
    fn a_listing_does_not_show_what_is_deleted_while_it_is_made() {
        let namespace = Namespace::default();
        let object = object(1, State::Sealed);
        let listing = namespace.list();
        namespace.deletion_is_durable(&object);
        namespace.deletion_is_stored(&object);
        let hides = |namespace: &Namespace| match namespace.next_key("b", &Bound::Unbounded) {
            Some((_, Visible::Ask(_, known))) => known == [1],
            Some((_, Visible::Nothing)) => true,
            _ => false,
        };
        assert!(hides(&namespace));
        drop(listing);
        assert!(!hides(&namespace), "the next view of the catalog does not have it");
    }

    #[test]
    fn a_sealed_generation_supersedes_older_ones_that_have_ended() {
        use State::{Interrupted, Live, Sealed};
        for (states, expected) in [
            (&[Sealed, Sealed][..], &[1][..]),
            (&[Sealed, Live], &[]),
            (&[Interrupted, Interrupted], &[1]),
            (&[Sealed, Interrupted], &[]),
            (&[Live, Interrupted, Sealed, Interrupted, Interrupted], &[2, 4]),
        ] {
            for stored in 0..=states.len() {
                let superseded = namespace(stored, states).settle(&name());
                assert_eq!(generations(&superseded), expected, "{states:?}");
                assert!(superseded.iter().all(|object| object.is_deleted()));
            }
        }
    }

    #[test]
    fn a_name_is_deleted_with_what_it_has_superseded_until_that_is_durably_deleted() {
        let namespace = namespace(0, &[State::Sealed, State::Sealed]);
        let superseded = namespace.settle(&name());
        assert_eq!(generations(&superseded), [1]);
        assert_eq!(generations(&namespace.to_be_deleted(&name())), [1, 2], "the oldest first");
        namespace.begin(&object(3, State::Live), false).unwrap();
        namespace.deletion_is_durable(&superseded[0]);
        assert_eq!(generations(&namespace.to_be_deleted(&name())), [2, 3]);
    }

    /// A name was deleted, and a start found the creation of a generation that had failed to be written: the name served
    /// that.
    #[test]
    fn what_was_given_up_is_deleted_with_its_name_and_supersedes_nothing() {
        use State::{Interrupted, Sealed};
        let namespace = namespace(0, &[Sealed, Interrupted]);
        let failed = object(3, State::Live);
        namespace.begin(&failed, false).unwrap();
        namespace.give_up(&failed);
        failed.end(Interrupted, 0);
        assert!(namespace.settle(&name()).is_empty());
        assert_eq!(found(namespace.find(&name())), Some(1));
        assert_eq!(generations(&namespace.to_be_deleted(&name())), [2, 3, 1]);
        namespace.deletion_is_durable(&failed);
        assert_eq!(generations(&namespace.to_be_deleted(&name())), [2, 1]);
    }

    #[test]
    fn of_a_name_that_is_deleted_the_served_generation_goes_last() {
        use State::{Interrupted, Sealed};
        let namespace = namespace(0, &[Interrupted, Sealed, Interrupted]);
        assert_eq!(generations(&namespace.to_be_deleted(&name())), [1, 3, 2]);
    }

    #[test]
    fn only_if_absent_refuses_what_is_live_or_sealed() {
        for (state, refused) in [(State::Live, true), (State::Sealed, true), (State::Interrupted, false)] {
            let outcome = namespace(0, &[state]).begin(&object(9, State::Live), true);
            assert_eq!(outcome.is_err(), refused, "{state:?}");
        }
    }

    #[test]
    fn who_waits_for_a_name_is_told_once() {
        let namespace = Namespace::default();
        assert!(!matches!(namespace.find_or_await(&name(), 0), Look::Found(_)));
        assert!(!matches!(namespace.find_or_await(&name(), 3), Look::Found(_)));
        assert_eq!(namespace.begin(&object(1, State::Live), false).unwrap(), 0b1001);
        assert_eq!(namespace.begin(&object(2, State::Live), false).unwrap(), 0);
    }

    #[test]
    fn nobody_waits_for_a_name_for_ever() {
        let namespace = Namespace::default();
        assert!(!matches!(namespace.find_or_await(&name(), 0), Look::Found(_)));
        assert!(!matches!(namespace.find_or_await(&name(), 1), Look::Found(_)));
        namespace.no_longer_await(&name(), 0);
        assert_eq!(namespace.lock().awaited.get(&name()), Some(&0b10));
        namespace.no_longer_await(&name(), 1);
        assert!(namespace.lock().awaited.is_empty());
    }

    #[test]
    fn keys_come_in_order_from_any_place_on() {
        let namespace = Namespace::default();
        for text in ["a/x", "b/k/1", "b/k/2", "c/x"] {
            let object = Object::new(Name::parse(text).unwrap(), 1, Metadata::default(), 0);
            namespace.begin(&object, false).unwrap();
        }
        let next = |from| namespace.next_key("b", &from).map(|(key, _)| key);
        assert_eq!(next(Bound::Included(b"".to_vec())).as_deref(), Some("k/1"));
        assert_eq!(next(Bound::Excluded(b"k/1".to_vec())).as_deref(), Some("k/2"));
        assert_eq!(next(Bound::Included(b"k/\xff".to_vec())), None);
        assert_eq!(namespace.next_bucket("a\0").as_deref(), Some("b"));
    }
}
