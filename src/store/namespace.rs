//! Which generations a name has, and which of them it serves.
//!
//! A name serves its newest generation that is live or sealed, and an interrupted one only where there is no
//! other. When a generation is sealed, older ones are superseded; of interrupted ones only the newest is kept.
//!
//! One map for all cores, behind a lock that is held for a look-up or a change of one name (a page of a listing,
//! at the most): taken when a request begins and when an object begins or ends, never for its bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::listing::{self, ListingQuery};
use super::name::Name;
use super::object::{Object, State};
use crate::error::{Error, Kind, Result};

/// The names of a store.
#[derive(Default)]
pub struct Namespace {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Generations in ascending order; never empty.
    names: BTreeMap<Name, Vec<Arc<Object>>>,
    /// A bit for each core with requests that wait for a name.
    awaited: HashMap<Name, u64>,
    /// What was superseded under a name, as long as a crash could bring it back.
    superseded: HashMap<Name, Vec<Arc<Object>>>,
}

/// A page of a bucket.
pub struct Listing {
    /// The objects that the names serve, in name order.
    pub objects: Vec<Arc<Object>>,
    /// Folded prefixes, in order.
    pub prefixes: Vec<String>,
    /// What to pass as `after` for the following page.
    pub next: Option<String>,
}

impl Namespace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a generation that begins. Answers the cores (a bit each) with requests that wait for its name.
    ///
    /// # Errors
    /// [`Kind::Exists`] with `only_if_absent`, where the name already serves something live or sealed.
    pub fn begin(&self, object: &Arc<Object>, only_if_absent: bool) -> Result<u64> {
        let mut inner = self.lock();
        let generations = inner.names.entry(object.name().clone()).or_default();
        if only_if_absent && generations.iter().any(|other| other.state() != State::Interrupted) {
            return Err(Error::new(Kind::Exists, "the object exists already"));
        }
        let place = generations.partition_point(|other| other.generation() < object.generation());
        generations.insert(place, object.clone());
        Ok(inner.awaited.remove(object.name()).unwrap_or(0))
    }

    /// The generation that the name serves.
    pub fn find(&self, name: &Name) -> Option<Arc<Object>> {
        self.lock().names.get(name).and_then(|generations| served(generations)).cloned()
    }

    /// As [`Namespace::find`]; where there is none, `begin` will tell that this core waits.
    pub fn find_or_await(&self, name: &Name, core: usize) -> Option<Arc<Object>> {
        let mut inner = self.lock();
        let found = inner.names.get(name).and_then(|generations| served(generations)).cloned();
        if found.is_none() {
            *inner.awaited.entry(name.clone()).or_default() |= 1 << core;
        }
        found
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

    /// Takes out what is superseded, after a generation of this name has ended. Its deletion is to be logged.
    pub fn settle(&self, name: &Name) -> Vec<Arc<Object>> {
        let mut inner = self.lock();
        let Some(generations) = inner.names.get_mut(name) else { return Vec::new() };
        let newest = |state| generations.iter().rev().find(|object| object.state() == state);
        let sealed = newest(State::Sealed).map_or(0, |object| object.generation());
        let interrupted = newest(State::Interrupted).map_or(0, |object| object.generation());
        let (superseded, kept) = std::mem::take(generations).into_iter().partition(|object| {
            let generation = object.generation();
            match object.state() {
                State::Live => false,
                State::Sealed => generation < sealed,
                State::Interrupted => generation < sealed || generation < interrupted,
            }
        });
        *generations = kept;
        if !superseded.is_empty() {
            inner.superseded.entry(name.clone()).or_default().extend(superseded.iter().cloned());
        }
        superseded
    }

    /// Takes all generations of a name out. Answers them, and with them what they have superseded and what is not
    /// durably deleted yet: the name is gone for good only when all of these are.
    pub fn remove(&self, name: &Name) -> Vec<Arc<Object>> {
        let mut inner = self.lock();
        let Some(mut generations) = inner.names.remove(name) else { return Vec::new() };
        generations.extend(inner.superseded.get(name).into_iter().flatten().cloned());
        generations
    }

    /// Says that no crash can bring a generation back.
    pub fn deletion_is_durable(&self, object: &Object) {
        let mut inner = self.lock();
        if let Some(superseded) = inner.superseded.get_mut(object.name()) {
            superseded.retain(|other| other.generation() != object.generation());
            if superseded.is_empty() {
                inner.superseded.remove(object.name());
            }
        }
    }

    /// Takes one generation out.
    pub fn forget(&self, object: &Object) {
        let mut inner = self.lock();
        if let Some(generations) = inner.names.get_mut(object.name()) {
            generations.retain(|other| other.generation() != object.generation());
            if generations.is_empty() {
                inner.names.remove(object.name());
            }
        }
    }

    /// The page of a bucket that is asked for.
    pub fn list(&self, bucket: &str, query: &ListingQuery) -> Listing {
        let inner = self.lock();
        let page = listing::page(&inner.names, bucket, query, |_| true);
        let objects =
            page.entries.iter().filter_map(|(_, generations)| served(generations).cloned()).collect();
        Listing { objects, prefixes: page.prefixes, next: page.next }
    }

    /// All buckets that hold something, in order.
    pub fn buckets(&self) -> Vec<String> {
        let inner = self.lock();
        listing::buckets(&inner.names, |_| true).into_iter().map(str::to_owned).collect()
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<Name> {
        self.lock().names.keys().cloned().collect()
    }
}

fn served(generations: &[Arc<Object>]) -> Option<&Arc<Object>> {
    generations
        .iter()
        .rev()
        .find(|object| object.state() != State::Interrupted)
        .or_else(|| generations.last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::object::Metadata;

    fn object(generation: u64, state: State) -> Arc<Object> {
        let name = Name::parse("b/k").unwrap();
        let object = Object::new(name, generation, Metadata::default(), 0, 0);
        if state != State::Live {
            object.end(state, 0);
        }
        object
    }

    fn namespace(states: &[State]) -> Namespace {
        let namespace = Namespace::default();
        for (index, &state) in states.iter().enumerate() {
            namespace.begin(&object(index as u64 + 1, state), false).unwrap();
        }
        namespace
    }

    #[test]
    fn a_name_serves_its_newest_live_or_sealed_generation() {
        use State::{Interrupted, Live, Sealed};
        let name = Name::parse("b/k").unwrap();
        for (states, expected) in [
            (&[Sealed][..], 1),
            (&[Sealed, Live], 2),
            (&[Sealed, Interrupted], 1),
            (&[Interrupted, Interrupted], 2),
            (&[Live, Interrupted], 1),
            (&[Sealed, Live, Interrupted], 2),
        ] {
            let found = namespace(states).find(&name).unwrap();
            assert_eq!(found.generation(), expected, "{states:?}");
        }
    }

    #[test]
    fn a_sealed_generation_supersedes_older_ones_that_have_ended() {
        use State::{Interrupted, Live, Sealed};
        let name = Name::parse("b/k").unwrap();
        for (states, expected) in [
            (&[Sealed, Sealed][..], &[1][..]),
            (&[Sealed, Live], &[]),
            (&[Interrupted, Interrupted], &[1]),
            (&[Sealed, Interrupted], &[]),
            (&[Live, Interrupted, Sealed, Interrupted, Interrupted], &[2, 4]),
        ] {
            let superseded = namespace(states).settle(&name);
            let generations: Vec<u64> = superseded.iter().map(|object| object.generation()).collect();
            assert_eq!(generations, expected, "{states:?}");
        }
    }

    #[test]
    fn a_name_is_removed_with_what_it_has_superseded_until_that_is_durably_deleted() {
        let generations = |objects: Vec<Arc<Object>>| -> Vec<u64> {
            objects.iter().map(|object| object.generation()).collect()
        };
        let name = Name::parse("b/k").unwrap();
        let namespace = namespace(&[State::Sealed, State::Sealed]);
        let superseded = namespace.settle(&name);
        assert_eq!(generations(namespace.remove(&name)), [2, 1]);
        assert!(namespace.remove(&name).is_empty(), "the name is gone");
        namespace.begin(&object(3, State::Live), false).unwrap();
        namespace.deletion_is_durable(&superseded[0]);
        assert_eq!(generations(namespace.remove(&name)), [3]);
    }

    #[test]
    fn only_if_absent_refuses_what_is_live_or_sealed() {
        for (state, refused) in [(State::Live, true), (State::Sealed, true), (State::Interrupted, false)] {
            let outcome = namespace(&[state]).begin(&object(9, State::Live), true);
            assert_eq!(outcome.is_err(), refused, "{state:?}");
        }
    }

    #[test]
    fn who_waits_for_a_name_is_told_once() {
        let namespace = Namespace::default();
        let name = Name::parse("b/k").unwrap();
        assert!(namespace.find_or_await(&name, 0).is_none());
        assert!(namespace.find_or_await(&name, 3).is_none());
        assert_eq!(namespace.begin(&object(1, State::Live), false).unwrap(), 0b1001);
        assert_eq!(namespace.begin(&object(2, State::Live), false).unwrap(), 0);
    }

    #[test]
    fn nobody_waits_for_a_name_for_ever() {
        let namespace = Namespace::default();
        let name = Name::parse("b/k").unwrap();
        assert!(namespace.find_or_await(&name, 0).is_none());
        assert!(namespace.find_or_await(&name, 1).is_none());
        namespace.no_longer_await(&name, 0);
        assert_eq!(namespace.lock().awaited.get(&name), Some(&0b10));
        namespace.no_longer_await(&name, 1);
        assert!(namespace.lock().awaited.is_empty());
    }
}
