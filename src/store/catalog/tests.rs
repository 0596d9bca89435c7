//! What the catalog makes of what it is told, where the order is not the usual one.

use std::collections::HashMap;
use std::sync::Arc;

use redb::backends::InMemoryBackend;

use super::changes::{Batch, Change, SegmentUse};
use super::database::{Database, Nameless, Outcome, Step};
use crate::log::KnownSegment;
use crate::store::name::Name;

const GENERATION: u64 = 7;

fn database() -> Database {
    Database::open_on(InMemoryBackend::new(), 77).unwrap()
}

fn segment(number: u64) -> SegmentUse {
    SegmentUse { number, epoch: 100 + number }
}

/// Changes in a segment that is full with them.
fn full(number: u64, changes: Vec<Change>) -> Step {
    let segment = segment(number);
    let (log, next_sequence, term) = (0, 10 * number, 1);
    let (is_full, is_pinned) = (true, false);
    Step::Enter(Arc::new(Batch { segment, log, next_sequence, term, is_full, is_pinned, changes }))
}

fn create() -> Change {
    let (name, document) = (Name::parse("b/k").unwrap(), br#"{"name":"b/k"}"#[..].into());
    Change::Create { generation: GENERATION, name, document, at_microseconds: 1 }
}

fn seal() -> Change {
    Change::Seal { generation: GENERATION, length: 0, at_microseconds: 2 }
}

fn emptied(outcome: &Outcome) -> Vec<u64> {
    outcome.emptied.iter().map(|segment| segment.number).collect()
}

fn exists(database: &Database) -> bool {
    !database.view().unwrap().objects("b", b"k").unwrap().is_empty()
}

/// What was deleted before its creation could be written came back, when that was found on the disk all the same.
#[test]
fn a_deletion_is_kept_for_a_creation_that_the_next_start_may_find() {
    let database = database();
    let deletion = Step::Delete { generation: GENERATION, segment: segment(1) };
    let purge = Step::Purge { generation: GENERATION };
    database.take([&deletion, &purge, &full(1, Vec::new())]).unwrap();
    // The next start finds it, and has then read everything.
    database.take([&full(2, vec![create(), seal()])]).unwrap();
    assert!(!exists(&database));
    let outcome = database.settle(&HashMap::new(), &HashMap::new(), Nameless::These(Vec::new())).unwrap().0;
    assert!(!exists(&database));
    assert_eq!(emptied(&outcome), [2], "the deletion stays as long as the creation can be read");
    assert_eq!(emptied(&database.take([&Step::Free(segment(2))]).unwrap()), [1]);
}

#[test]
fn a_deletion_of_what_never_came_goes_with_the_next_start() {
    let database = database();
    let deletion = Step::Delete { generation: GENERATION, segment: segment(1) };
    database.take([&deletion, &Step::Purge { generation: GENERATION }, &full(1, Vec::new())]).unwrap();
    let outcome = database.settle(&HashMap::new(), &HashMap::new(), Nameless::These(Vec::new())).unwrap().0;
    assert_eq!(emptied(&outcome), [1]);
}

/// The original was still to be read when the deletion, which spoke of the copy only, was gone: without the catalog the
/// object came back.
#[test]
fn a_copy_of_a_creation_stays_as_long_as_the_original_can_be_read() {
    for is_read_again in [false, true] {
        let database = database();
        let (original, copy) = (full(1, vec![create(), seal()]), full(2, vec![create(), seal()]));
        assert_eq!(emptied(&database.take([&original, &copy]).unwrap()), [1]);
        if is_read_again {
            database.take([&original]).unwrap();
        }
        let deletion = Step::Delete { generation: GENERATION, segment: segment(3) };
        let steps = [&deletion, &Step::Purge { generation: GENERATION }, &full(3, Vec::new())];
        let outcome = database.take(steps).unwrap();
        assert!(!emptied(&outcome).contains(&2) && !emptied(&outcome).contains(&3), "{outcome:?}");
        assert_eq!(emptied(&database.take([&Step::Free(segment(1))]).unwrap()), [2]);
        assert_eq!(emptied(&database.take([&Step::Free(segment(2))]).unwrap()), [3]);
    }
}

/// Of a segment that had failed nothing was read again: what had failed to be written stayed in it.
#[test]
fn a_segment_that_failed_is_read_by_the_next_start_and_may_be_used_after_it() {
    let database = database();
    let (segment, changes) = (segment(1), vec![create(), seal()]);
    let (log, next_sequence, term, is_full, is_pinned) = (0, 10, 1, true, true);
    let batch = Batch { segment, log, next_sequence, term, is_full, is_pinned, changes };
    database.take([&Step::Enter(Arc::new(batch))]).unwrap();
    let epoch = segment.epoch;
    let known = |database: &Database| database.coverage().unwrap().segments[&1];
    assert_eq!(known(&database), KnownSegment::Begun { epoch, next_sequence });
    database.settle(&HashMap::new(), &HashMap::new(), Nameless::These(Vec::new())).unwrap();
    assert_eq!(known(&database), KnownSegment::Covered { epoch });
}

/// Ends of what was deleted long ago were found on a disk that had failed, and stayed.
#[test]
fn what_came_up_without_a_creation_goes_with_the_start() {
    let database = database();
    database.take([&full(1, vec![seal()])]).unwrap();
    let settle = |nameless| database.settle(&HashMap::new(), &HashMap::new(), nameless).unwrap().0;
    assert_eq!(emptied(&settle(Nameless::These(vec![GENERATION + 1]))), Vec::<u64>::new());
    assert_eq!(emptied(&settle(Nameless::These(vec![GENERATION]))), [1]);
}
