use std::time::Duration;

use super::*;
use crate::context::Context;
use crate::error::Result;
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{Keeper, Log, LogSettings, Placement, Sink};
use crate::metrics::CoreMetrics;
use crate::ring::Arena;
use crate::simulation::ERRNOS;
use rustix::io::Errno;

fn scenario(seed: u64) -> Scenario {
    Scenario::new(seed, Rng::with_seed(seed))
}

/// Of these a cut keeps what it likes, so each is tried often enough to meet the one that matters.
const ROUNDS: u64 = 20;

#[test]
fn what_the_log_acknowledges_survives_cuts_kills_and_faults() {
    let mut sum = Tally::default();
    for seed in 0..300 {
        sum.add(&run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
    }
    assert!(sum.cuts > 500 && sum.kills > 50 && sum.ends > 500 && sum.acknowledged > 10_000, "{sum:?}");
    assert!(sum.failed_recoveries > 0 && sum.failed_logs > 0, "{sum:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(0).unwrap().trace, run(1).unwrap().trace);
}

/// A segment whose preparation was cut short had its full length when the next attempt came, which took it as it was:
/// its length and its name were on no stable storage, and what was acknowledged in it was lost with the power.
#[test]
fn a_segment_that_could_not_be_synced_is_made_durable_before_it_is_used() {
    for (kind, errno) in [(Kind::Sync, Errno::NOSPC), (Kind::Open, Errno::MFILE), (Kind::Write, Errno::NOMEM)]
    {
        for seed in 0..ROUNDS {
            let mut scenario = scenario(seed);
            let faults = Faults::none().and(kind, errno, 0.5);
            let plan = Plan { faults, ..Plan::in_order(10) };
            scenario.session(plan, TURNS_MAX, Ending::Cut, &mut |_| {}).unwrap();
            scenario.make_room();
            scenario
                .session_in_order(&mut |_| {})
                .unwrap_or_else(|violation| panic!("{kind:?} {seed}: {violation}"));
        }
    }
}

/// A process that was killed between making a segment and syncing its folder left a file that the next one took as it
/// was: its name was on no stable storage.
#[test]
fn a_segment_that_a_killed_process_has_made_is_durable_before_it_is_used() {
    for (killed_after, cut_after) in
        (5..30).flat_map(|killed| (20..80).step_by(6).map(move |cut| (killed, cut)))
    {
        for seed in 0..4 {
            let mut scenario = scenario(seed);
            scenario.make_room();
            scenario.session(Plan::in_order(1), killed_after, Ending::Kill, &mut |_| {}).unwrap();
            scenario.session(Plan::in_order(3), cut_after, Ending::Cut, &mut |_| {}).unwrap();
            let outcome = scenario.session_in_order(&mut |_| {});
            assert_eq!(
                outcome,
                Ok(()),
                "killed after {killed_after} turns, cut after {cut_after}, seed {seed}"
            );
        }
    }
}

#[test]
fn interruptions_are_noticed_by_nobody() {
    for errno in [Errno::INTR, Errno::AGAIN] {
        let mut scenario = scenario(2);
        scenario.make_room();
        let kinds = [Kind::Open, Kind::Allocate, Kind::Sync, Kind::Read, Kind::Write];
        let faults = kinds.into_iter().fold(Faults::none(), |faults, kind| faults.and(kind, errno, 0.5));
        let plan = Plan { recovery_faults: faults.clone(), faults, ..Plan::in_order(20) };
        assert_eq!(scenario.session(plan, TURNS_MAX, Ending::Cut, &mut |_| {}), Ok(Pause::Ended));
        let tally = scenario.model.borrow().tally;
        assert_eq!((tally.acknowledged, tally.failed_logs), (tally.appended, 0));
        let segments = scenario.world.names(Path::new(FOLDER)).unwrap().len();
        assert!(segments <= 4, "{segments} segments for what fits into few: some were given up");
    }
}

#[test]
fn each_error_alone_loses_nothing_and_ends_nothing_for_ever() {
    for errno in ERRNOS {
        for kind in [Kind::Open, Kind::Allocate, Kind::Sync, Kind::Write, Kind::Files] {
            let mut scenario = scenario(1);
            scenario.make_room();
            let plan = Plan { faults: Faults::none().and(kind, errno, 0.3), ..Plan::in_order(10) };
            let outcome = scenario.session(plan, TURNS_MAX, Ending::Cut, &mut |_| {});
            assert_eq!(outcome, Ok(Pause::Ended), "{kind:?} {errno}");
            assert_eq!(scenario.session_in_order(&mut |_| {}), Ok(()), "{kind:?} {errno}");
        }
    }
}

/// The model is of no use if it does not notice.
#[test]
fn a_bit_that_rots_is_noticed() {
    let mut unnoticed = 0;
    for seed in 0..ROUNDS {
        let mut scenario = scenario(seed);
        scenario.make_room();
        scenario.session_in_order(&mut |_| {}).unwrap();
        let paths = scenario.world.names(Path::new(FOLDER)).unwrap();
        let path = Path::new(FOLDER).join(&paths[0]);
        scenario.world.rot(&path, 4096 + 100, 3).unwrap();
        unnoticed += u32::from(scenario.session_in_order(&mut |_| {}).is_ok());
    }
    assert_eq!(unnoticed, 0);
}

/// Nobody wants to know what has become durable.
struct Nobody;

impl Sink for Nobody {
    type Note = ();

    fn durable(&self, (): (), _: Placement<'_>) {}

    fn block_done(&self) {}

    fn failed(&self, (): ()) {}
}

fn append(log: &Log<Nobody>, length: usize) -> Result<Option<u64>> {
    let fill = |_: &mut [u8]| Ok::<_, crate::Error>(length);
    let appended = log.append(length, true, fill, |length| {
        let (kind, length) = (RecordKind::Append, length as u32);
        (RecordHeader { kind, continued: false, length, generation: 1, offset: 0, timestamp: 0 }, ())
    })?;
    Ok(appended.map(|appended| appended.sequence))
}

/// A deletion on a full disk that was given up left a segment of the reserve prepared. No other was tried beside it, and
/// data waited for ever for the answer.
#[test]
fn data_learns_that_a_disk_is_full_though_a_segment_of_the_reserve_is_prepared() {
    const LENGTH: usize = 4000;
    let world = World::new(WorldSettings { capacity_bytes: 12 * SEGMENT_BYTES, ..WorldSettings::default() });
    world.make_folder(Path::new(FOLDER));
    let space = Space::new(SpaceSettings {
        folder: FOLDER.into(),
        store: STORE,
        segment_bytes: SEGMENT_BYTES,
        direct: true,
        spare_segments: 1,
        reserve_bytes: 8 * SEGMENT_BYTES,
    });
    let mut cores = Cores::new(&world, 1);
    let answered = Rc::new(RefCell::new(None));
    let answer = answered.clone();
    cores.begin(0, |core| async move {
        let settings =
            LogSettings { log: 0, block_bytes: PIECE_LENGTH, durable: true, next_sequence: 0, term: 1 };
        let (keeper, keeping) = Keeper::start(&core, &space);
        let arena = Arena::new(6, PIECE_LENGTH).unwrap();
        let metrics = Rc::new(CoreMetrics::new());
        let (log, flushing) = Log::<Nobody>::start(&core, settings, arena, keeper.clone(), metrics);
        let context = Context::background();
        while log.room(&context, LENGTH, true).await.is_ok() {
            append(&log, LENGTH).unwrap();
        }
        while let Some(sequence) = append(&log, 0).unwrap() {
            log.acknowledged(&context, sequence).await.unwrap();
        }
        let _ = core.timeout(Duration::ZERO, log.room(&context, 0, true)).await;
        core.sleep(Duration::from_secs(1)).await;
        assert_eq!(keeper.prepared(), 1, "a deletion would find room now");
        // What is left of the segment at hand is anybody's then.
        let refused = loop {
            match log.room(&context, LENGTH, true).await {
                Ok(()) => drop(append(&log, LENGTH).unwrap()),
                Err(error) => break error,
            }
        };
        *answer.borrow_mut() = Some(refused.kind());
        flushing.cancel().await;
        keeping.cancel().await;
    });
    assert_eq!(cores.run(TURNS_MAX), Pause::Ended);
    assert_eq!(answered.take(), Some(crate::Kind::NoSpace));
}
