//! Runs seeds in the simulated world until one fails, or until time is up: see `scripts/simulate`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tailwater::simulation::engine::{self, Limits, RESUMING_FROM};
use tailwater::simulation::{World, log};

/// Runs the engine in a simulated world that fails in every way there is.
#[derive(Clone, Parser)]
struct Arguments {
    /// Runs this seed of the whole engine only.
    #[arg(long)]
    engine: Option<u64>,
    /// Runs this seed of the log alone only.
    #[arg(long, conflicts_with = "engine")]
    log: Option<u64>,
    /// The first seed to run, of both kinds.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds to run at most.
    #[arg(long, default_value_t = u64::MAX)]
    seeds: u64,
    /// For how long to begin further seeds.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Runs seeds of the whole engine only.
    #[arg(long)]
    engine_only: bool,
    /// How many cores the engine has at most.
    #[arg(long, default_value_t = Limits::default().cores)]
    cores: usize,
    /// How many tasks work on each core at most.
    #[arg(long, default_value_t = Limits::default().tasks)]
    tasks: usize,
    /// How many steps each task takes at most.
    #[arg(long, default_value_t = Limits::default().steps)]
    steps: usize,
    /// How many sessions there are before the last two at most.
    #[arg(long, default_value_t = Limits::default().sessions)]
    sessions: usize,
    /// Nothing goes wrong but power cuts and kills.
    #[arg(long)]
    no_faults: bool,
    /// Shows the last events before each session's end.
    #[arg(long)]
    events: bool,
    /// Shows what the engine logs.
    #[arg(long)]
    verbose: bool,
    /// Goes on behind seeds that fail.
    #[arg(long)]
    keep_going: bool,
    /// Looks for no smaller story of a seed that fails.
    #[arg(long)]
    no_shrink: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.verbose {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).without_time().init();
    }
    let limits = Limits {
        cores: arguments.cores,
        tasks: arguments.tasks,
        steps: arguments.steps,
        sessions: arguments.sessions,
        faults: !arguments.no_faults,
    };
    let one = arguments.engine.or(arguments.log);
    let (first, count) = one.map_or((arguments.first, arguments.seeds), |seed| (seed, 1));
    let (began, limit) = (Instant::now(), Duration::from_secs_f64(arguments.minutes * 60.0));
    let (mut runs, mut failures) = (0u64, 0u64);
    let (mut logs, mut engines) = (log::Tally::default(), engine::Tally::default());
    for seed in first..first.saturating_add(count) {
        if began.elapsed() >= limit {
            break;
        }
        runs += 1;
        if arguments.engine.is_none() && !arguments.engine_only {
            match run_log(seed, arguments.events) {
                Ok(tally) => {
                    logs.add(&tally);
                    logs.trace = tally.trace;
                }
                Err(violation) => {
                    failures += 1;
                    eprintln!("log, seed {seed}: {violation}\n  scripts/simulate --log {seed}");
                }
            }
        }
        // Of the engine there are two kinds of seeds.
        let seeds = match (arguments.log, arguments.engine) {
            (Some(_), _) => Vec::new(),
            (None, Some(seed)) => vec![seed],
            (None, None) => vec![seed, RESUMING_FROM.saturating_add(seed)],
        };
        for seed in seeds {
            match run_engine(seed, limits, arguments.events) {
                Ok(tally) => {
                    engines.add(&tally);
                    engines.trace = tally.trace;
                }
                Err(violation) => {
                    failures += 1;
                    eprintln!("engine, seed {seed}: {violation}");
                    let smaller = if arguments.no_shrink { limits } else { shrink(seed, limits) };
                    eprintln!("  {}", command(seed, smaller));
                }
            }
        }
        if failures > 0 && !arguments.keep_going {
            break;
        }
    }
    println!(
        "{runs} seeds in {:.1} s, {failures} failed\n{logs:?}\n{engines:?}",
        began.elapsed().as_secs_f64()
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(events: bool) -> impl FnMut(&World) {
    move |world| {
        if events {
            world.events().iter().rev().for_each(|event| println!("{event:?}"));
            println!();
        }
    }
}

fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("a panic, see above".to_owned()))
}

fn run_log(seed: u64, events: bool) -> Result<log::Tally, String> {
    caught(|| log::run_observed(seed, &mut show(events)))
}

fn run_engine(seed: u64, limits: Limits, events: bool) -> Result<engine::Tally, String> {
    caught(|| engine::run_observed(seed, limits, &mut show(events)))
}

/// The smallest limits with which this seed still fails, one after the other: less happens then.
fn shrink(seed: u64, limits: Limits) -> Limits {
    let mut best = limits;
    // Only the first panic is of interest.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut attempt = |smaller: Limits| {
        let fails = smaller != best && run_engine(seed, smaller, false).is_err();
        if fails {
            best = smaller;
        }
        best
    };
    let mut now = attempt(Limits { faults: false, ..limits });
    for sessions in 0..now.sessions {
        now = attempt(Limits { sessions: sessions.min(now.sessions), ..now });
    }
    for cores in 1..now.cores {
        now = attempt(Limits { cores: cores.min(now.cores), ..now });
    }
    for tasks in 1..now.tasks {
        now = attempt(Limits { tasks: tasks.min(now.tasks), ..now });
    }
    for steps in [1, 2, 3, 5, 8, 12, 18] {
        now = attempt(Limits { steps: steps.min(now.steps), ..now });
    }
    std::panic::set_hook(hook);
    now
}

fn command(seed: u64, limits: Limits) -> String {
    let all = Limits::default();
    let mut command = format!("scripts/simulate --engine {seed}");
    let numbers = [
        ("cores", limits.cores, all.cores),
        ("tasks", limits.tasks, all.tasks),
        ("steps", limits.steps, all.steps),
        ("sessions", limits.sessions, all.sessions),
    ];
    for (name, limit, usual) in numbers {
        if limit != usual {
            command += &format!(" --{name} {limit}");
        }
    }
    if !limits.faults {
        command += " --no-faults";
    }
    command
}
