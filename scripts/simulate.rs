//! Runs seeds in the simulated world until one fails, or until time is up: see `scripts/simulate`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tailwater::simulation::log;

/// Runs the engine in a simulated world that fails in every way there is.
#[derive(Parser)]
struct Arguments {
    /// Runs this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed to run.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds to run at most.
    #[arg(long, default_value_t = u64::MAX)]
    seeds: u64,
    /// For how long to begin further seeds.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Shows the last events before each session's end.
    #[arg(long)]
    events: bool,
    /// Goes on behind seeds that fail.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (first, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.first, arguments.seeds),
    };
    let (began, limit) = (Instant::now(), Duration::from_secs_f64(arguments.minutes * 60.0));
    let (mut runs, mut failures) = (0u64, 0u64);
    let mut sum = log::Tally::default();
    for seed in first..first.saturating_add(count) {
        if began.elapsed() >= limit {
            break;
        }
        runs += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            log::run_observed(seed, &mut |world| {
                if arguments.events {
                    world.events().iter().rev().for_each(|event| println!("{event:?}"));
                    println!();
                }
            })
        }));
        let violation = match outcome {
            Ok(Ok(tally)) => {
                sum.add(&tally);
                continue;
            }
            Ok(Err(violation)) => violation,
            Err(_) => "a panic, see above".to_owned(),
        };
        failures += 1;
        eprintln!("seed {seed}: {violation}");
        eprintln!("  scripts/simulate --seed {seed}");
        if !arguments.keep_going {
            break;
        }
    }
    println!("{runs} seeds in {:.1} s, {failures} failed; {sum:?}", began.elapsed().as_secs_f64());
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
