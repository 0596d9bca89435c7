//! The log on a real ring and real files, with a kernel that can be told to fail.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Instant, SystemTime};

use rustix::io::Errno;

use super::format::{RecordHeader, RecordKind};
use super::*;
use crate::context::{Canceller, Context};
use crate::error::{Error, Kind, Result};
use crate::metrics::CoreMetrics;
use crate::ring::{Arena, Completion, Descriptor, Files, Kernel, Operation, Ring, Uring, Wait};
use crate::runtime::{Core, Mailbox, Task};

const SEGMENT_BYTES: u64 = 2 << 20;

/// What a block write is to answer instead of what it did.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// The next so many block writes fail.
    Fail {
        writes: u32,
        errno: Errno,
    },
    /// The next so many block writes stop after one aligned unit.
    Short {
        writes: u32,
    },
}

/// The real kernel, but block writes (those to a segment behind its header) answer what they are told.
struct Faulty {
    inner: Uring,
    fault: Rc<Cell<Fault>>,
    writes: HashSet<u64>,
}

impl Kernel for Faulty {
    fn push(&mut self, token: u64, operation: &mut Operation) -> bool {
        let pushed = self.inner.push(token, operation);
        if let (true, Operation::Write { position: 1.., durable: true, .. }) = (pushed, &operation) {
            self.writes.insert(token);
        }
        pushed
    }

    fn push_cancel(&mut self, token: u64) -> bool {
        self.inner.push_cancel(token)
    }

    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> std::result::Result<(), Errno> {
        let before = completions.len();
        self.inner.enter(wait, completions)?;
        for completion in &mut completions[before..] {
            if !self.writes.remove(&completion.token) {
                continue;
            }
            match self.fault.get() {
                Fault::Fail { writes: writes @ 1.., errno } => {
                    self.fault.set(Fault::Fail { writes: writes - 1, errno });
                    completion.result = -errno.raw_os_error();
                }
                Fault::Short { writes: writes @ 1.. } if completion.result > 4096 => {
                    self.fault.set(Fault::Short { writes: writes - 1 });
                    completion.result = 4096;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn land(&mut self, completion: Completion, operation: &mut Operation) {
        self.inner.land(completion, operation);
    }

    fn register_arena(&mut self, arena: &Arena) -> std::result::Result<(), Errno> {
        self.inner.register_arena(arena)
    }

    fn register_file(&mut self, file: &Descriptor) -> Option<u32> {
        self.inner.register_file(file)
    }

    fn unregister_file(&mut self, place: u32) {
        self.inner.unregister_file(place);
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn wall_clock(&self) -> SystemTime {
        self.inner.wall_clock()
    }

    fn files(&self) -> &(dyn Files + 'static) {
        self.inner.files()
    }

    fn address(&self) -> i32 {
        self.inner.address()
    }
}

/// Where an append was said to lie.
struct Place {
    number: u64,
    segment: u64,
    epoch: u64,
    position: u64,
    length: u32,
}

/// Remembers what has become durable, and where.
#[derive(Default)]
struct Durable {
    numbers: RefCell<Vec<u64>>,
    failed: RefCell<Vec<u64>>,
    places: RefCell<Vec<Place>>,
    segments: RefCell<Vec<Arc<Segment>>>,
    keeps_segments: Cell<bool>,
}

impl Sink for Durable {
    type Note = u64;

    fn durable(&self, note: u64, placement: Placement<'_>) {
        self.numbers.borrow_mut().push(note);
        let segment = placement.segment;
        let place = Place {
            number: note,
            segment: segment.number(),
            epoch: segment.epoch(),
            position: placement.position,
            length: placement.length,
        };
        self.places.borrow_mut().push(place);
        if self.keeps_segments.get() {
            self.segments.borrow_mut().push(placement.segment.clone());
        } else {
            placement.segment.set_empty();
        }
    }

    fn block_done(&self) {}

    fn failed(&self, note: u64) {
        self.failed.borrow_mut().push(note);
    }
}

/// What a start has found.
struct Recovered {
    numbers: Vec<u64>,
    /// Gaps, and payloads that are not what was written.
    damage: Vec<String>,
}

async fn recover(core: &Rc<Core>, space: &Arc<Space>) -> Result<(Recovered, Continuation)> {
    let survey = survey(core, space, &Known::default()).await?;
    let mut recovered = Recovered { numbers: Vec::new(), damage: survey.damage.clone() };
    for segment in &survey.segments {
        for record in survey.read(core, space, segment).await? {
            let number = record.header.generation;
            match record.is_whole {
                true => recovered.numbers.push(number),
                false => recovered.damage.push(format!("{number} is damaged")),
            }
        }
    }
    survey.clear_void(core, space).await?;
    for (number, _) in survey.settle(core, space).await? {
        space.set_free(number);
    }
    Ok((recovered, survey.logs.get(&0).copied().unwrap_or_default()))
}

fn space(folder: &Path) -> Arc<Space> {
    Space::new(SpaceSettings {
        folder: folder.to_owned(),
        store: 77,
        segment_bytes: SEGMENT_BYTES,
        direct: true,
        spare_segments: 1,
        reserve_bytes: 0,
    })
}

struct Bench {
    core: Rc<Core>,
    log: Rc<Log<Durable>>,
    durable: Rc<Durable>,
    space: Arc<Space>,
    fault: Rc<Cell<Fault>>,
    recovered: Recovered,
    _tasks: [Task<()>; 2],
}

impl Bench {
    async fn open(core: &Rc<Core>, folder: &Path, fault: Rc<Cell<Fault>>) -> Result<Bench> {
        let space = space(folder);
        let (recovered, continuation) = recover(core, &space).await?;
        let free = Arc::downgrade(&space);
        space.set_cleared(Box::new(move |number, _| {
            free.upgrade().into_iter().for_each(|space| space.set_free(number));
        }));
        let arena = Arena::new(6, 1 << 20).map_err(|errno| Error::device("arena", errno))?;
        core.ring().register_arena(&arena).map_err(|errno| Error::device("arena", errno))?;
        let settings = LogSettings {
            log: 0,
            block_bytes: 256 << 10,
            durable: true,
            next_sequence: continuation.next_sequence,
            term: continuation.term,
        };
        let metrics = Rc::new(CoreMetrics::new());
        let (keeper, keeping) = Keeper::start(core, &space);
        let (log, flushing) = Log::start(core, settings, arena, keeper, metrics);
        let durable = Rc::new(Durable { keeps_segments: Cell::new(true), ..Durable::default() });
        log.set_sink(&durable);
        let core = core.clone();
        Ok(Bench { core, log, durable, space, fault, recovered, _tasks: [keeping, flushing] })
    }

    /// Appends `length` bytes under a number; returns when they are in the log.
    async fn append(&self, number: u64, length: usize) -> Result<u64> {
        loop {
            match self.try_append(number, length)? {
                Some(sequence) => return Ok(sequence),
                None => self.log.room(&Context::background(), length, true).await?,
            }
        }
    }

    /// As `append`, without waiting. None: there is no room now.
    fn try_append(&self, number: u64, length: usize) -> Result<Option<u64>> {
        let appended = self.log.append(
            length,
            true,
            |space| {
                space.fill(number as u8);
                Ok::<_, Error>(length)
            },
            |length| {
                let header = RecordHeader {
                    kind: RecordKind::Append,
                    continued: false,
                    length: length as u32,
                    generation: number,
                    offset: 0,
                    timestamp: 0,
                };
                (header, number)
            },
        )?;
        Ok(appended.map(|appended| appended.sequence))
    }

    async fn acknowledged(&self, sequence: u64) -> Result<()> {
        self.log.acknowledged(&Context::background(), sequence).await
    }

    fn recovered_numbers(&self) -> Vec<u64> {
        self.recovered.numbers.clone()
    }
}

/// Opens the log in a folder, lets `main` have it, and ends without flushing.
fn with_log<F, T>(folder: &Path, main: impl FnOnce(Bench) -> F) -> T
where
    F: Future<Output = T>,
{
    let fault = Rc::new(Cell::new(Fault::None));
    let kernel = Faulty { inner: Uring::new().unwrap(), fault: fault.clone(), writes: HashSet::new() };
    let core = Core::new(0, Ring::new(Box::new(kernel)), Mailbox::new().unwrap());
    let inner = core.clone();
    core.run(async move { main(Bench::open(&inner, folder, fault).await.unwrap()).await }).unwrap()
}

#[test]
fn what_is_acknowledged_is_there_after_a_start_in_order() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        let mut last = 0;
        for number in 0..500 {
            last = bench.append(number, 3000 + number as usize).await.unwrap();
        }
        bench.acknowledged(last).await.unwrap();
        assert_eq!(*bench.durable.numbers.borrow(), Vec::from_iter(0..500));
    });
    with_log(folder.path(), |bench| async move {
        assert_eq!(bench.recovered_numbers(), Vec::from_iter(0..500));
        assert!(bench.recovered.damage.is_empty());
    });
}

#[test]
fn appends_of_one_turn_share_a_block_and_go_out_at_once() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        // The first append may have to wait for the first segment.
        let first = bench.append(0, 10).await.unwrap();
        bench.acknowledged(first).await.unwrap();
        let one = bench.append(1, 10).await.unwrap();
        let two = bench.append(2, 10).await.unwrap();
        assert_eq!((one, two), (first + 1, first + 1));
        assert_eq!(bench.log.state().blocks_in_flight, 0, "others may still add to it in this turn");
        bench.acknowledged(two).await.unwrap();
    });
}

#[test]
fn a_wait_that_is_dropped_leaves_nothing_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        let sequence = bench.append(1, 100).await.unwrap();
        let limit = std::time::Duration::ZERO;
        let _ = bench.core.timeout(limit, bench.acknowledged(sequence)).await;
        bench.log.flush(&Context::background()).await.unwrap();
        assert_eq!(*bench.durable.numbers.borrow(), [1]);
    });
}

/// Polls a wait once, ends its context, and answers what it then says.
async fn end_under_way(
    context: &Context,
    canceller: Canceller,
    wait: impl Future<Output = Result<()>>,
) -> Error {
    let mut wait = pin!(wait);
    poll_fn(|polling| {
        assert!(context.check().is_ok() && wait.as_mut().poll(polling).is_pending());
        canceller.cancel(Error::new(Kind::Closed, "the test says so"));
        match wait.as_mut().poll(polling) {
            Poll::Ready(outcome) => Poll::Ready(outcome.unwrap_err()),
            Poll::Pending => panic!("the end of the context is not noticed"),
        }
    })
    .await
}

#[test]
fn a_wait_whose_context_ends_says_so_leaves_nothing_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        let (log, background) = (&bench.log, Context::background());
        let mut last = bench.append(0, 100).await.unwrap();
        let (context, canceller) = background.with_cancel();
        let error = end_under_way(&context, canceller, log.acknowledged(&context, last)).await;
        assert_eq!((error.kind(), &*error.to_string()), (Kind::Cancelled, "cancelled: the test says so"));
        let (context, canceller) = background.with_cancel();
        assert_eq!(end_under_way(&context, canceller, log.flush(&context)).await.kind(), Kind::Cancelled);

        // Without a turn of the core in between no block comes back, and at some time there is no more room.
        let mut count = 1;
        while let Some(sequence) = bench.try_append(count, 60_000).unwrap() {
            (last, count) = (sequence, count + 1);
        }
        let (context, canceller) = background.with_cancel();
        let error = end_under_way(&context, canceller, log.room(&context, 60_000, true)).await;
        assert_eq!(error.kind(), Kind::Cancelled);
        let past = background.with_deadline(bench.core.now());
        assert_eq!(log.room(&past, 1, false).await.unwrap_err().kind(), Kind::DeadlineExceeded);
        assert_eq!(log.acknowledged(&past, last).await.unwrap_err().kind(), Kind::DeadlineExceeded);
        assert_eq!(log.flush(&past).await.unwrap_err().kind(), Kind::DeadlineExceeded);
        assert_eq!(log.waiters(), 0);

        log.room(&background, 60_000, true).await.unwrap();
        log.acknowledged(&background, last).await.unwrap();
        assert_eq!(*bench.durable.numbers.borrow(), Vec::from_iter(0..count));
        assert_eq!(log.waiters(), 0);
    });
}

#[test]
fn a_short_write_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        bench.fault.set(Fault::Short { writes: 3 });
        let sequence = bench.append(9, 200_000).await.unwrap();
        bench.acknowledged(sequence).await.unwrap();
        assert!(matches!(bench.fault.get(), Fault::Short { writes: 0 }), "it was short three times");
    });
    with_log(folder.path(), |bench| async move { assert_eq!(bench.recovered_numbers(), [9]) });
}

#[test]
fn blocks_that_fail_are_written_again_elsewhere_in_order() {
    // The first one in flight, and two attempts: with more, a log with little in flight has failed for good.
    for failures in 1..4 {
        let folder = tempfile::tempdir().unwrap();
        with_log(folder.path(), |bench| async move {
            for number in 0..20 {
                let sequence = bench.append(number, 50_000).await.unwrap();
                bench.acknowledged(sequence).await.unwrap();
            }
            bench.fault.set(Fault::Fail { writes: failures, errno: Errno::IO });
            let mut last = 0;
            for number in 20..80 {
                last = bench.append(number, 50_000).await.unwrap();
            }
            bench.acknowledged(last).await.unwrap();
            assert_eq!(*bench.durable.numbers.borrow(), Vec::from_iter(0..80), "{failures} failures");
            // Each is where the sink was told.
            for &Place { number, segment, position, length, .. } in &*bench.durable.places.borrow() {
                let file = std::fs::File::open(Space::path(&bench.space.settings().folder, segment)).unwrap();
                let mut bytes = vec![0; length as usize];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, position).unwrap();
                assert!(bytes.iter().all(|&byte| byte == number as u8), "{number} is not at its place");
            }
            assert!(bench.log.failure().is_none());
        });
        with_log(folder.path(), |bench| async move {
            assert_eq!(bench.recovered_numbers(), Vec::from_iter(0..80), "{failures} failures");
            // And the log goes on behind them.
            let sequence = bench.append(80, 10).await.unwrap();
            bench.acknowledged(sequence).await.unwrap();
        });
        with_log(folder.path(), |bench| async move {
            assert_eq!(bench.recovered_numbers(), Vec::from_iter(0..81), "{failures} failures");
        });
    }
}

#[test]
fn a_device_that_fails_everywhere_is_an_answer_and_not_a_hang() {
    let folder = tempfile::tempdir().unwrap();
    with_log(folder.path(), |bench| async move {
        let sequence = bench.append(0, 10).await.unwrap();
        bench.acknowledged(sequence).await.unwrap();
        bench.fault.set(Fault::Fail { writes: u32::MAX, errno: Errno::IO });
        let sequence = bench.append(1, 10).await.unwrap();
        assert_eq!(bench.acknowledged(sequence).await.unwrap_err().kind(), Kind::ReadOnly);
        assert!(bench.append(2, 10).await.is_err());
        assert!(bench.log.room(&Context::background(), 10, true).await.is_err());
        assert_eq!(*bench.durable.numbers.borrow(), [0]);
        assert_eq!(*bench.durable.failed.borrow(), [1], "who waits for it is told");
    });
    with_log(folder.path(), |bench| async move {
        assert_eq!(bench.recovered_numbers().first(), Some(&0), "what was acknowledged is there");
    });
}

#[test]
fn segments_are_used_again_when_nothing_in_them_is_alive() {
    let folder = tempfile::tempdir().unwrap();
    let places = with_log(folder.path(), |bench| async move {
        bench.durable.keeps_segments.set(false);
        for number in 0..400 {
            let sequence = bench.append(number, 100_000).await.unwrap();
            bench.acknowledged(sequence).await.unwrap();
        }
        assert!(bench.space.segments() <= 6, "40 MB went through {} segments", bench.space.segments());
        bench.durable.keeps_segments.set(true);
        let sequence = bench.append(400, 100_000).await.unwrap();
        bench.acknowledged(sequence).await.unwrap();
        bench.durable.places.take()
    });
    // Leftovers of earlier uses are not taken for what counts: what is found is the last part of the log, whole.
    with_log(folder.path(), |bench| async move {
        let numbers = bench.recovered_numbers();
        assert_eq!(numbers.last(), Some(&400));
        assert!(numbers.is_sorted() && numbers.len() < 150, "{numbers:?}");
        for number in numbers {
            let &Place { segment, epoch, .. } = places.iter().find(|place| place.number == number).unwrap();
            let is_leftover = places.iter().any(|place| place.segment == segment && place.epoch > epoch);
            assert!(!is_leftover, "{number} is of an earlier use of its segment");
        }
        assert!(bench.recovered.damage.is_empty(), "{:?}", bench.recovered.damage);
    });
}

#[test]
fn a_torn_block_ends_the_log_and_damage_does_not() {
    for (torn, expected_damage) in [(29, 0), (10, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let place = with_log(folder.path(), |bench| async move {
            for number in 0..30 {
                let sequence = bench.append(number, 1000).await.unwrap();
                bench.acknowledged(sequence).await.unwrap();
            }
            bench.durable.segments.borrow()[0].number()
        });
        // A block each: the header is the first unit of the segment.
        let path = Space::path(folder.path(), place);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096 * (1 + torn) + 500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        with_log(folder.path(), |bench| async move {
            let expected: Vec<u64> = (0..30).filter(|&number| number != torn as u64).collect();
            assert_eq!(bench.recovered_numbers(), expected);
            assert_eq!(bench.recovered.damage.len(), expected_damage, "{:?}", bench.recovered.damage);
        });
    }
}

#[test]
fn a_block_at_another_place_than_it_says_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let number = with_log(folder.path(), |bench| async move {
        for number in 0..3 {
            let sequence = bench.append(number, 1000).await.unwrap();
            bench.acknowledged(sequence).await.unwrap();
        }
        bench.durable.segments.borrow()[0].number()
    });
    // The last block overwrites the first, as if a write had gone astray.
    let path = Space::path(folder.path(), number);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.copy_within(4096 * 3..4096 * 4, 4096);
    std::fs::write(&path, bytes).unwrap();
    with_log(folder.path(), |bench| async move {
        assert_eq!(bench.recovered_numbers(), [1, 2]);
    });
}

#[test]
fn what_a_start_has_cut_off_cannot_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let number = with_log(folder.path(), |bench| async move {
        bench.durable.keeps_segments.set(true);
        for number in 0..4 {
            let sequence = bench.append(number, 1000).await.unwrap();
            bench.acknowledged(sequence).await.unwrap();
        }
        bench.durable.segments.borrow()[0].number()
    });
    // Block 2 is torn. Block 3 claims that 2 was durable, so it is rewritten to claim less, as if all had been in
    // flight together.
    let path = Space::path(folder.path(), number);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 3 + 500] ^= 1;
    let mut header = format::BlockHeader::decode(&bytes[4096 * 4..]).unwrap();
    header.durable = 2;
    header.encode(&mut bytes[4096 * 4..4096 * 5]);
    std::fs::write(&path, bytes).unwrap();
    with_log(folder.path(), |bench| async move { assert_eq!(bench.recovered_numbers(), [0, 1]) });
    let bytes = std::fs::read(&path).unwrap();
    assert!(
        format::BlockHeader::decode(&bytes[4096 * 4..]).is_none(),
        "what does not count is made unreadable"
    );
    assert!(format::BlockHeader::decode(&bytes[4096 * 2..]).is_some());
}

#[test]
fn a_full_disk_has_room_for_deletions_and_data_does_not_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    with_log(folder.path(), |bench| async move {
        let context = Context::background();
        let first = bench.append(0, 1000).await.unwrap();
        bench.acknowledged(first).await.unwrap();
        // No further segment can be made: a folder is where its file would be.
        for number in 1..100 {
            let _ = std::fs::create_dir(Space::path(&path, number));
        }
        let mut number = 1;
        while let Ok(sequence) = bench.append(number, 4000).await {
            bench.acknowledged(sequence).await.unwrap();
            number += 1;
        }
        assert!(number > 100, "{number} appends went in before the segments were full");
        for _ in 0..20 {
            let deletion = bench.append(5000, 0).await.unwrap();
            assert!(bench.log.room(&context, 4000, true).await.is_err(), "data rides in a deletion's block");
            bench.acknowledged(deletion).await.unwrap();
            assert!(bench.log.room(&context, 4000, true).await.is_err(), "data takes what deletions left");
        }
    });
}

/// A kill while a free segment was being initialised again had left it without a header. Its epoch came again, the catalog
/// took what was written under it for nothing, and the next start would have lost it.
#[test]
fn an_epoch_that_somebody_knows_of_does_not_come_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(Space::path(folder.path(), 3), vec![0; SEGMENT_BYTES as usize]).unwrap();
    let known = Known {
        segments: [
            (3, KnownSegment::Free { epoch: 500 }),
            // Whose file is not there at all.
            (7, KnownSegment::Free { epoch: 20 }),
        ]
        .into(),
        ..Known::default()
    };
    let space = space(folder.path());
    let surveyed = space.clone();
    let core = Core::new(0, Ring::new(Box::new(Uring::new().unwrap())), Mailbox::new().unwrap());
    let inner = core.clone();
    core.run(async move { survey(&inner, &surveyed, &known).await.map(|_| ()) }).unwrap().unwrap();
    assert_eq!((space.next_epoch(), space.segments()), (501, 7));
}

/// Thirty blocks of a page each, and the segment that they are in: its number and its epoch.
fn thirty_blocks(folder: &Path) -> (u64, u64) {
    with_log(folder, |bench| async move {
        for number in 0..30 {
            let sequence = bench.append(number, 1000).await.unwrap();
            bench.acknowledged(sequence).await.unwrap();
        }
        let first = &bench.durable.segments.borrow()[0];
        (first.number(), first.epoch())
    })
}

/// What is left of a block is made unreadable where a start has cut it off. Here it is damaged, and its bytes may be
/// all that is left of an object.
#[test]
fn what_is_left_of_a_known_block_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (number, epoch) = thirty_blocks(folder.path());
    let path = Space::path(folder.path(), number);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 30 + 20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for (next_sequence, damages, voids) in [(30, 1, 0), (29, 0, 1)] {
        let known = Known {
            segments: [(number, KnownSegment::Begun { epoch, next_sequence })].into(),
            logs: [(0, (next_sequence, 0))].into(),
        };
        let surveyed = surveyed(folder.path(), known);
        assert_eq!(surveyed.damage.len(), damages, "{:?}", surveyed.damage);
        assert_eq!(surveyed.void.len(), voids, "{:?}", surveyed.void);
    }
}

/// What a start finds with what is known beforehand.
fn surveyed(folder: &Path, known: Known) -> Survey {
    let space = space(folder);
    let core = Core::new(0, Ring::new(Box::new(Uring::new().unwrap())), Mailbox::new().unwrap());
    let inner = core.clone();
    core.run(async move { survey(&inner, &space, &known).await }).unwrap().unwrap()
}

/// A disk had lost the first pages of a segment: its file was taken for one that was never used, to be written over with
/// all that was left in it.
#[test]
fn a_segment_that_has_lost_its_beginning_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let (number, epoch) = thirty_blocks(folder.path());
    let path = Space::path(folder.path(), number);
    let lose = |blocks: usize| {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..4096 * (1 + blocks)].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        bytes
    };
    // Where nobody keeps books it is left as it is.
    let left = lose(1);
    let damage = with_log(folder.path(), |bench| async move {
        let sequence = bench.append(100, 1000).await.unwrap();
        bench.acknowledged(sequence).await.unwrap();
        assert_ne!(bench.durable.places.borrow()[0].segment, number);
        bench.recovered.damage.clone()
    });
    assert!(damage.len() == 1 && damage[0].contains("what lies in it is lost"), "{damage:?}");
    assert!(std::fs::read(&path).unwrap() == left, "the file has changed");
    // Where somebody does, what is behind that is read; what should be before it is missed.
    for (lost, damages) in [(1, 1), (19, 1), (20, 2)] {
        lose(lost);
        let known = Known {
            segments: [(number, KnownSegment::Begun { epoch, next_sequence: 20 })].into(),
            logs: [(0, (20, 0))].into(),
        };
        let surveyed = surveyed(folder.path(), known);
        assert_eq!(surveyed.damage.len(), damages, "{lost} blocks lost: {:?}", surveyed.damage);
        assert_eq!(surveyed.segments[0].number, number);
    }
}
