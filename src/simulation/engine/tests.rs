use super::*;

#[test]
fn what_the_engine_promises_holds_under_cuts_kills_and_faults() {
    let mut sum = Tally::default();
    for seed in 0..20 {
        sum.add(&run(seed, Limits::default()).unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
    }
    println!("{sum:?}");
}
