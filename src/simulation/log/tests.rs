use super::*;
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
