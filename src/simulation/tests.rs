//! A fixed number of seeds, and seeds that have found something.

use super::log;

fn run_all(seeds: std::ops::Range<u64>) {
    let mut sum = log::Tally::default();
    for seed in seeds {
        let tally = log::run(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        sum.add(&tally);
    }
    assert!(sum.cuts > 0 && sum.kills > 0 && sum.ends > 0 && sum.acknowledged > 0, "{sum:?}");
}

#[test]
fn what_the_log_acknowledges_survives_cuts_kills_and_faults() {
    run_all(0..300);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        assert_eq!(log::run(seed), log::run(seed), "seed {seed}");
    }
}
