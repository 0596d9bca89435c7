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
    let (is_full, is_pinned, is_rebuilt) = (true, false, false);
    Step::Enter(Arc::new(Batch {
        segment,
        log,
        next_sequence,
        term,
        is_full,
        is_pinned,
        is_rebuilt,
        changes,
    }))
}

fn create() -> Change {
    let (name, document) = (Name::parse("b/k").unwrap(), br#"{"name":"b/k"}"#[..].into());
    Change::Create { generation: GENERATION, name, document, at_microseconds: 1 }
}

fn seal() -> Change {
    seal_of(0)
}

fn seal_of(length: u64) -> Change {
    Change::Seal { generation: GENERATION, length, at_microseconds: 2 }
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
    let (log, next_sequence, term, is_full, is_pinned, is_rebuilt) = (0, 10, 1, true, true, false);
    let batch = Batch { segment, log, next_sequence, term, is_full, is_pinned, is_rebuilt, changes };
    database.take([&Step::Enter(Arc::new(batch))]).unwrap();
    let epoch = segment.epoch;
    let known = |database: &Database| database.coverage().unwrap().segments[&1];
    assert_eq!(known(&database), KnownSegment::Begun { epoch, next_sequence });
    database.settle(&HashMap::new(), &HashMap::new(), Nameless::These(Vec::new())).unwrap();
    assert_eq!(known(&database), KnownSegment::Covered { epoch });
}

#[test]
fn a_deletion_that_is_kept_for_the_next_start_can_be_moved() {
    let (doubt, purge) = (Step::Doubt { generation: GENERATION }, Step::Purge { generation: GENERATION });
    let deletion = Step::Delete { generation: GENERATION, segment: segment(1) };
    for (before, is_found) in [(None, false), (None, true), (Some(&doubt), false), (Some(&doubt), true)] {
        let database = database();
        if let Some(doubt) = before {
            database.take([&full(4, vec![create(), seal()]), doubt]).unwrap();
        }
        database.take([&deletion, &purge, &full(1, Vec::new())]).unwrap();
        database.take([&Step::Free(segment(4))]).unwrap();
        assert_eq!(database.view().unwrap().tombstones_in(1).unwrap(), [GENERATION]);
        let (to, from) = (segment(2), 1);
        let moving = Step::MoveTombstone { generation: GENERATION, from, to };
        assert_eq!(emptied(&database.take([&moving, &full(2, Vec::new())]).unwrap()), [1]);
        database.take([&Step::Free(segment(1))]).unwrap();
        if is_found {
            database.take([&full(3, vec![create(), seal()])]).unwrap();
        }
        let nameless = Nameless::These(Vec::new());
        let outcome = database.settle(&HashMap::new(), &HashMap::new(), nameless).unwrap().0;
        assert_eq!((exists(&database), emptied(&outcome)), (false, vec![if is_found { 3 } else { 2 }]));
        if is_found {
            assert_eq!(emptied(&database.take([&Step::Free(segment(3))]).unwrap()), [2]);
        }
    }
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

fn data(offset: u64, end: u64, continued: bool) -> Change {
    let length = (end - offset) as u32;
    Change::Data { generation: GENERATION, offset, length, continued, position: 4096 + offset }
}

fn interrupt() -> Change {
    Change::Interrupt { generation: GENERATION, at_microseconds: 2 }
}

fn settle_all(database: &Database) {
    let touched = HashMap::from([(GENERATION, 0)]);
    database.settle(&touched, &HashMap::new(), Nameless::These(Vec::new())).unwrap();
}

/// The length of the object, and where its extents begin and end.
fn extents(database: &Database) -> (u64, Vec<(u64, u64)>) {
    let view = database.view().unwrap();
    let length = view.objects("b", b"k").unwrap()[0].length;
    let extents = view.extents(GENERATION, 0, 100).unwrap();
    (length, extents.iter().map(|(extent, _)| (extent.offset, extent.end())).collect())
}

/// What was acknowledged where damage had made an object shorter was not entered: what had been behind it counted.
#[test]
fn who_goes_on_with_a_damaged_object_has_all_that_follows() {
    let left = [(0, 10), (20, 30), (30, 40)];
    for end in [15, 20, 25, 30, 35, 40, 45] {
        let database = database();
        let parts = left.map(|(offset, end)| data(offset, end, false));
        database.take([&full(1, [&[create()][..], &parts].concat())]).unwrap();
        settle_all(&database);
        assert_eq!(extents(&database), (10, left.to_vec()), "it may be repaired");
        database.take([&full(2, vec![data(10, end, false)])]).unwrap();
        assert_eq!(extents(&database), (end, vec![(0, 10), (10, end)]));
        database.take([&full(3, vec![data(end, 50, false), interrupt()])]).unwrap();
        assert_eq!(extents(&database), (50, vec![(0, 10), (10, end), (end, 50)]));
    }
}

/// As a catalog that is made anew is told it.
fn rebuilt(step: Step) -> Step {
    let Step::Enter(batch) = step else { unreachable!() };
    Step::Enter(Arc::new(Batch { is_rebuilt: true, ..(*batch).clone() }))
}

#[test]
fn a_catalog_that_is_made_anew_takes_writers_in_any_order() {
    let first = rebuilt(full(1, vec![create(), data(0, 10, false), interrupt(), data(20, 30, false)]));
    let second = rebuilt(full(2, vec![data(10, 20, false)]));
    for steps in [[&first, &second], [&second, &first]] {
        let database = database();
        steps.into_iter().for_each(|step| drop(database.take([step]).unwrap()));
        assert_eq!(extents(&database), (30, vec![(0, 10), (10, 20), (20, 30)]));
    }
}

/// What one writer had given up took the place of what another one had written there, where the log of the other was read
/// first and the parts were of the same length.
#[test]
fn a_catalog_that_is_made_anew_keeps_what_is_whole() {
    let first = rebuilt(full(1, vec![create(), data(0, 10, false), data(10, 20, true), interrupt()]));
    for parts in [vec![data(10, 20, true), data(20, 25, false)], vec![data(10, 20, false)]] {
        let second = rebuilt(full(2, parts));
        for steps in [[&first, &second], [&second, &first]] {
            let database = database();
            steps.into_iter().for_each(|step| drop(database.take([step]).unwrap()));
            let segments: Vec<_> = database.view().unwrap().extents(GENERATION, 0, 9).unwrap();
            let mut segments = segments.iter().map(|(extent, _)| extent.segment);
            assert!(segments.next() == Some(1) && segments.all(|segment| segment == 2));
        }
    }
}

/// Parts of an append that its writer had given up before it sealed the object kept their segment for ever.
#[test]
fn what_an_object_was_sealed_without_goes() {
    for wrap in [|step| step, rebuilt] {
        let database = database();
        database.take([&wrap(full(1, vec![create(), data(0, 10, false)]))]).unwrap();
        database.take([&wrap(full(2, vec![data(10, 20, true), data(20, 30, true)]))]).unwrap();
        let outcome = database.take([&wrap(full(3, vec![seal_of(10)]))]).unwrap();
        assert_eq!((extents(&database), emptied(&outcome)), ((10, vec![(0, 10)]), vec![2]));
        // And where they are read later.
        let outcome = database.take([&wrap(full(4, vec![data(10, 20, true)]))]).unwrap();
        assert_eq!((extents(&database), emptied(&outcome)), ((10, vec![(0, 10)]), vec![4]));
    }
}

#[test]
fn what_is_there_of_an_append_that_did_not_become_whole_goes_with_the_start() {
    let database = database();
    let changes = vec![create(), data(0, 10, false), data(10, 20, true), data(20, 30, true)];
    database.take([&full(1, changes)]).unwrap();
    database.take([&full(2, vec![data(30, 40, true)])]).unwrap();
    let touched = HashMap::from([(GENERATION, 0)]);
    let outcome = database.settle(&touched, &HashMap::new(), Nameless::These(Vec::new())).unwrap().0;
    assert_eq!(extents(&database), (10, vec![(0, 10)]));
    assert_eq!(emptied(&outcome), [2]);
}

/// A copy of a creation could not be written, and the next start found it: the object had been deleted, and came back.
#[test]
fn a_copy_that_could_not_be_written_does_not_bring_back_what_was_deleted() {
    let (doubt, purge) = (Step::Doubt { generation: GENERATION }, Step::Purge { generation: GENERATION });
    let deletion = Step::Delete { generation: GENERATION, segment: segment(3) };
    for (steps, is_found) in [[&doubt, &deletion], [&deletion, &doubt]]
        .into_iter()
        .flat_map(|steps| [(steps, true), (steps, false)])
    {
        let database = database();
        let original = full(1, vec![create(), data(0, 10, false), seal_of(10)]);
        database.take([&original]).unwrap();
        database.take(steps).unwrap();
        assert_eq!(
            emptied(&database.take([&purge, &full(3, Vec::new())]).unwrap()),
            [1],
            "its room comes back"
        );
        assert!(emptied(&database.take([&Step::Free(segment(1))]).unwrap()).is_empty());
        // A start.
        if is_found {
            let outcome = database.take([&full(2, vec![create(), data(0, 10, false), seal_of(10)])]).unwrap();
            assert!(!exists(&database) && emptied(&outcome).is_empty());
        }
        let nameless = Nameless::These(vec![GENERATION]);
        let outcome = database.settle(&HashMap::new(), &HashMap::new(), nameless).unwrap().0;
        assert!(!exists(&database));
        if is_found {
            assert_eq!(emptied(&outcome), [2], "the deletion stays as long as the copy can be read");
            assert_eq!(emptied(&database.take([&Step::Free(segment(2))]).unwrap()), [3]);
        } else {
            assert_eq!(emptied(&outcome), [3]);
        }
    }
}

#[test]
fn a_copy_that_could_not_be_written_is_in_doubt_until_the_next_start() {
    let (doubt, purge) = (Step::Doubt { generation: GENERATION }, Step::Purge { generation: GENERATION });
    let database = database();
    database.take([&full(1, vec![create(), seal()]), &doubt]).unwrap();
    settle_all(&database);
    assert!(exists(&database));
    let deletion = Step::Delete { generation: GENERATION, segment: segment(3) };
    assert_eq!(emptied(&database.take([&deletion, &purge, &full(3, Vec::new())]).unwrap()), [1]);
    assert_eq!(emptied(&database.take([&Step::Free(segment(1))]).unwrap()), [3]);
}

#[test]
fn what_is_there_of_an_append_that_did_not_become_whole_goes_when_its_object_is_interrupted() {
    let database = database();
    let changes = vec![create(), data(0, 10, false), data(10, 20, true), data(20, 30, true), interrupt()];
    database.take([&full(1, changes)]).unwrap();
    assert_eq!(extents(&database), (10, vec![(0, 10)]));
    // Who goes on in the same batch is not done.
    let changes = vec![data(10, 15, true), interrupt(), data(10, 14, false), data(14, 20, true)];
    database.take([&full(2, changes)]).unwrap();
    assert_eq!(extents(&database), (14, vec![(0, 10), (10, 14), (14, 20)]));
    database.take([&full(3, vec![data(20, 30, false)])]).unwrap();
    assert_eq!(extents(&database), (30, vec![(0, 10), (10, 14), (14, 20), (20, 30)]));
}
