use super::inspection::{Found, verified};
use super::*;

#[test]
fn what_the_engine_promises_holds_under_cuts_kills_and_faults() {
    let mut sum = Tally::default();
    for seed in (0..50).chain(RESUMING_FROM..RESUMING_FROM + 30) {
        let outcome = run(seed, Limits::default());
        sum.add(&outcome.unwrap_or_else(|violation| panic!("scripts/simulate --engine {seed}: {violation}")));
    }
    assert!(sum.cuts > 100 && sum.kills > 10 && sum.in_catalog > 20 && sum.ends > 120, "{sum:?}");
    assert!(sum.acknowledged > 4_000 && sum.sealed > 1_000 && sum.deleted > 300, "{sum:?}");
    assert!(sum.failed_starts > 5 && sum.rebuilt > 5 && sum.faults > 500 && sum.verified > 120, "{sum:?}");
    assert!(sum.punched_bytes > 0 && sum.expired > 0 && sum.resumed > 40, "{sum:?}");
}

/// Seeds that have shown something that did not hold, and what that was.
const SEEDS_OF_BUGS: &[(u64, &str)] = &[
    (210, "who looked at a store while its first start had failed found its catalog damaged"),
    (645, "a first start was killed while it made the catalog, which was named as damaged"),
    (308, "data waited for ever while the only segment that was prepared was of the reserve"),
    (1113, "data waited for ever on a full disk, as deletions had a segment of the reserve"),
    (298, "a look-up found no live object whose bytes had found no room, before its writer knew of that"),
    (1528, "a generation of which nothing could be written superseded one whose bytes were acknowledged"),
    (
        1207,
        "a deletion was forgotten before the next start found its creation, which had failed to be written",
    ),
    (1322, "what had failed to be written came back where the catalog was made anew years later"),
    (982, "what had failed to be written was called damage where its later place was used again"),
    (971, "the end of a deleted object, found on a disk that had failed, stayed in the catalog"),
    (975, "bytes of a deleted object, found on a disk that had failed, stayed in the catalog"),
    (987, "a start was cut off while it entered what it had read: who verified called what is void damage"),
    (1028, "blocks of an earlier use of a segment, behind its last one, were called damage"),
    (1289, "a segment that was being initialised again had lost its header, and was called damaged"),
    (
        3631,
        "a deletion in the last block of a log made the block count as torn where the catalog was made anew",
    ),
    (5513, "what a start that was cut off had entered of a deleted object stayed in the catalog"),
    (8356, "what was left of a torn write, before blocks that were void, was called damage years later"),
    (
        1_000_044,
        "after a start, a part of an append that had not become whole was read in place of what was written there",
    ),
    (1_000_136, "the same, where the object had nothing else"),
    (1_000_235, "the same, where the catalog could not be written"),
    (25449, "a process died of a creation that found a segment of the reserve, which is not for it"),
    (1_022_571, "a copy that could not be written brought back a deleted object, which verify named"),
    (
        1_041_418,
        "what an append that did not become whole had left was punched out, and called damage without the catalog",
    ),
    (41803, "the same, where a segment was copied out"),
    (
        1_060_394,
        "a catalog that was made anew took what another core had given up for what went on with the object",
    ),
    (
        81235,
        "blocks of a segment that was used again were said to be lost, where only a torn one can have stood",
    ),
    (385, "a listing showed no live object whose log had failed, before its writer knew of that"),
];

#[test]
fn what_seeds_have_shown_stays_repaired() {
    for &(seed, story) in SEEDS_OF_BUGS {
        let outcome = run(seed, Limits::default());
        outcome.unwrap_or_else(|violation| panic!("scripts/simulate --engine {seed}: {violation} ({story})"));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [0, 2, 3] {
        assert_eq!(run(seed, Limits::default()), run(seed, Limits::default()), "seed {seed}");
    }
}

/// A store in which something was done, and nobody is at work.
fn at_rest(seed: u64) -> (Scenario, Rng) {
    let mut random = Rng::with_seed(seed);
    let limits = Limits { faults: false, ..Limits::default() };
    let mut scenario = Scenario::new(seed, limits, random.fork());
    scenario.make_room();
    scenario.session_in_order(&mut random, false, &mut |_| {}).unwrap();
    (scenario, random)
}

/// Who looked at what a first start had left, when it was cut off while it made the catalog, was told of damage.
#[test]
fn a_start_that_is_cut_off_while_it_makes_the_catalog_needs_nobodys_hand() {
    for (calls, ending) in (0..40).flat_map(|calls| [(calls, Ending::Kill), (calls, Ending::Cut)]) {
        for has_segments in [false, true] {
            let (mut scenario, mut random) = match has_segments {
                true => at_rest(calls),
                false => {
                    let mut random = Rng::with_seed(calls);
                    (Scenario::new(calls, Limits::default(), random.fork()), random)
                }
            };
            scenario.make_room();
            let story = format!("{ending:?} in call {calls}, segments: {has_segments}");
            let plan = Plan {
                dies_after: Some(calls),
                loses_catalog: has_segments,
                is_in_order: false,
                ..Plan::in_order(&mut random, 4)
            };
            let cut_off = scenario.session(plan, TURNS_MAX, ending, &mut |_| {});
            assert_eq!(cut_off, Ok(Pause::Failed), "{story}");
            scenario
                .session_in_order(&mut random, false, &mut |_| {})
                .unwrap_or_else(|violation| panic!("{story}: {violation}"));
        }
    }
}

fn look(scenario: &Scenario) -> Found {
    verified(scenario, scenario.files.view().unwrap()).unwrap().unwrap()
}

#[test]
fn bits_that_rot_in_segments_are_named_and_touch_nothing_else() {
    let mut damaged = 0;
    for seed in 0..4 {
        let (scenario, mut random) = at_rest(seed);
        let whole = look(&scenario);
        assert_eq!(whole.findings, []);
        for _ in 0..6 {
            let Some(&(generation, segment, position, length)) = random.choice(&whole.places) else {
                continue;
            };
            let path = Space::path(Path::new(FOLDER), segment);
            let (at, bit) = (position + random.u64(0..u64::from(length)), random.u8(0..8));
            scenario.world.rot(&path, at, bit).unwrap();
            let found = look(&scenario);
            assert_eq!(found.rows, whole.rows, "seed {seed}");
            assert!(!found.findings.is_empty(), "seed {seed}: nobody has noticed position {at} of {segment}");
            let touched = found.findings.iter().flat_map(|finding| &finding.touched);
            assert!(touched.clone().all(|touched| touched.generation == generation), "{:?}", found.findings);
            scenario.world.rot(&path, at, bit).unwrap();
            damaged += 1;
        }
        assert_eq!(look(&scenario).findings, [], "seed {seed}: nothing was changed");
    }
    assert!(damaged > 10);
}

/// Once, or of the wrong place: whoever verifies says so or does not meet it, and nobody panics.
#[test]
fn reads_that_go_wrong_once_change_nothing() {
    for seed in 0..4 {
        let (scenario, _) = at_rest(seed);
        let whole = look(&scenario);
        for faults in [
            Faults { flipped_read: 0.2, ..Faults::none() },
            Faults { misdirected_read: 0.2, ..Faults::none() },
            Faults { zero_read: 0.1, short_read: 0.2, ..Faults::none() },
        ] {
            scenario.world.set_faults(faults);
            // It may be answered with an error too.
            let _ = verified(&scenario, scenario.files.view().unwrap()).unwrap();
            scenario.world.set_faults(Faults::none());
            let found = look(&scenario);
            assert_eq!((found.findings, &found.rows), (Vec::new(), &whole.rows), "seed {seed}");
        }
    }
}

#[test]
fn bits_that_rot_in_the_catalog_are_noticed_or_in_no_use() {
    let path = Path::new("/data/catalog");
    let mut noticed = 0;
    for seed in 0..3 {
        let (scenario, mut random) = at_rest(seed);
        let whole = look(&scenario);
        let length = scenario.world.length(path).unwrap();
        for round in 0..12 {
            // Most of the file is in no use; what it begins with says that it is a catalog.
            let at = random.u64(0..if round == 0 { 8 } else { length.min(200_000) });
            scenario.world.rot(path, at, 1).unwrap();
            match scenario.files.view() {
                Err(error) => {
                    assert_eq!(error.kind(), crate::Kind::Damaged, "{error}");
                    noticed += 1;
                }
                Ok(_) => assert_eq!(look(&scenario).rows, whole.rows, "seed {seed}, position {at}"),
            }
            scenario.world.rot(path, at, 1).unwrap();
        }
    }
    assert!(noticed > 0);
}
