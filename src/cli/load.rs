//! `tailwater load`: the load tester's command line.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::failure::{ExitStatus, Failure};
use super::remote::{failure, read_bytes};
use crate::client::Location;
use crate::load::{self, Plan, Workload};

/// Load a server on a schedule, verify every byte, and report the latencies
///
/// Open loop: load comes when it is due, however slow the server is, and latencies count from when it was due.
/// Ends with 0 only if everything was as it should be. What a run makes, it removes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tailwater load follow --streams 50 --followers 10 --rate 30 --piece-bytes 16KiB --seconds 30
  tailwater load put --rate 2000 --size 4KiB --json > result.json")]
pub struct Arguments {
    #[command(subcommand)]
    workload: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Live streams, appended to piece by piece; read back and verified when they are sealed
    Ingest {
        #[command(flatten)]
        streams: Streams,
        #[command(flatten)]
        common: Common,
    },
    /// Live streams with followers, which verify every byte while it is written
    Follow {
        #[command(flatten)]
        streams: Streams,
        /// How many follow each stream
        #[arg(long, value_name = "COUNT", default_value_t = 2)]
        followers: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Uploads of whole objects; read back and verified afterwards
    Put {
        #[command(flatten)]
        objects: Objects,
        #[command(flatten)]
        common: Common,
    },
    /// Downloads of whole objects that the run uploads first, each verified
    Get {
        #[command(flatten)]
        objects: Objects,
        /// How many objects are uploaded, to be read in no order
        #[arg(long = "objects", value_name = "COUNT", default_value_t = 200)]
        count: u64,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8420")]
    target: String,
    /// For how long load is due
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Threads of the tester, each with a ring of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    threads: u64,
    /// The bucket to work in, under a prefix that no other run uses
    #[arg(long, value_name = "NAME", default_value = "load")]
    bucket: String,
    /// What the content is made from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Leave the objects on the server
    #[arg(long)]
    keep: bool,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Streams {
    /// How many streams are written at a time
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    streams: u64,
    /// Pieces per second on each stream
    #[arg(long, value_name = "PER_SECOND", default_value_t = 30.0)]
    rate: f64,
    /// The size of a piece, such as 32KiB
    #[arg(long, value_name = "SIZE", default_value = "32KiB", value_parser = read_bytes)]
    piece_bytes: u64,
}

#[derive(Debug, Args)]
struct Objects {
    /// Requests per second in all
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500.0)]
    rate: f64,
    /// The most requests at a time; what is due when all are busy waits, and is charged for it
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    connections: u64,
    /// The size of an object, such as 64KiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = read_bytes)]
    size: u64,
}

/// Runs the command.
///
/// # Errors
/// If the run could not be made, if anything that was verified was wrong ([`ExitStatus::Damaged`]), or if a request
/// failed. Load that came too late is reported, and no failure.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let (plan, json) = arguments.into_plan()?;
    let report = load::run(plan).map_err(|error| failure(&error))?;
    let text = if json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    // The result is in the exit code as well.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let errors = &report.measurements.errors;
    match (errors.verification, errors.failed) {
        (0, 0) => Ok(()),
        (0, failed) => Err(Failure::new(ExitStatus::Failed, format!("{failed} requests failed"))),
        (wrong, _) => Err(Failure::new(
            ExitStatus::Damaged,
            format!("{wrong} times, what was read was not what had been written"),
        )),
    }
}

impl Arguments {
    fn into_plan(self) -> Result<(Plan, bool), Failure> {
        let (workload, common, streams, objects, followers, count) = match self.workload {
            Command::Ingest { streams, common } => (Workload::Ingest, common, Some(streams), None, 0, 0),
            Command::Follow { streams, followers, common } => {
                (Workload::Follow, common, Some(streams), None, followers, 0)
            }
            Command::Put { objects, common } => (Workload::Put, common, None, Some(objects), 0, 0),
            Command::Get { objects, count, common } => (Workload::Get, common, None, Some(objects), 0, count),
        };
        let wrong = |rule: String| Failure::new(ExitStatus::Configuration, rule);
        let target = Location::parse(&common.target).map_err(|error| failure(&error))?;
        let duration = Duration::try_from_secs_f64(common.seconds)
            .map_err(|_| wrong("--seconds is not a length of time".to_owned()))?;
        let piece_bytes = streams.as_ref().map_or(0, |streams| streams.piece_bytes);
        let plan = Plan {
            workload,
            target,
            bucket: common.bucket,
            duration,
            rate_per_second: match (&streams, &objects) {
                (Some(streams), _) => streams.rate,
                (None, objects) => objects.as_ref().map_or(0.0, |objects| objects.rate),
            },
            streams: streams.as_ref().map_or(0, |streams| streams.streams),
            followers,
            piece_bytes: usize::try_from(piece_bytes).map_err(|error| wrong(error.to_string()))?,
            connections: objects.as_ref().map_or(0, |objects| objects.connections),
            size_bytes: objects.as_ref().map_or(0, |objects| objects.size),
            objects: count,
            threads: common.threads,
            seed: common.seed,
            keep: common.keep,
        };
        plan.check().map_err(wrong)?;
        Ok((plan, common.json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(line: &str) -> Result<Plan, Failure> {
        let line = CommandLine::try_parse_from(line.split(' ')).unwrap();
        line.arguments.into_plan().map(|(plan, _)| plan)
    }

    #[test]
    fn every_workload_has_defaults_that_can_be_run() {
        for workload in ["ingest", "follow", "put", "get"] {
            plan(&format!("load {workload}")).unwrap();
        }
    }

    #[test]
    fn settings_arrive_in_the_plan() {
        let plan =
            plan("load follow --streams 3 --followers 4 --rate 5 --piece-bytes 1KiB --seconds 2.5").unwrap();
        assert_eq!((plan.streams, plan.followers, plan.piece_bytes), (3, 4, 1024));
        assert_eq!((plan.rate_per_second, plan.duration), (5.0, Duration::from_millis(2_500)));
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        for line in [
            "load ingest --streams 0",
            "load ingest --rate 0",
            "load ingest --piece-bytes 40",
            "load follow --followers 0",
            "load put --connections 0",
            "load get --objects 0",
            "load get --seconds 0",
            "load get --threads 0",
            "load get --rate inf",
        ] {
            assert_eq!(plan(line).unwrap_err().code, ExitStatus::Configuration, "{line}");
        }
    }
}
