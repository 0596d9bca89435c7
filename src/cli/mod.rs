//! The commands.
//!
//! A command is a module with `Arguments`, what clap reads, and `run`, which does it and returns only when it is
//! done. What it cannot do is a [`failure::Failure`]: printed here, in one line on standard error.

pub mod demo;
pub mod doctor;
pub mod export;
pub mod failure;
pub mod get;
pub mod list;
pub mod load;
pub mod logging;
pub mod put;
mod remote;
pub mod remove;
pub mod serve;
pub mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

const FIRST_MINUTES: &str = "\
The first five minutes:
  tailwater demo                                   see the main job done, and verified
  tailwater serve                                  start a server here, in ./tailwater-data

  and in other terminals, against that server:
  ffmpeg -re -f lavfi -i testsrc2 -c:v libx264 -f mpegts \\
      -method PUT -chunked_post 1 http://127.0.0.1:8420/cam/live.ts
  curl -s http://127.0.0.1:8420/cam/live.ts | ffplay -
  tailwater put http://127.0.0.1:8420/docs/a.pdf a.pdf
  tailwater ls  http://127.0.0.1:8420/docs/

Exit codes: 0 done, 1 failed, 2 wrong use, 3 configuration, 4 address taken, 5 data folder, 6 data folder in
use, 7 no io_uring, 8 no space, 9 not found, 10 unreachable, 11 damaged.";

/// Storage for ingest nodes: one writer per object, any number of readers that follow it while it is written.
///
/// An append is acknowledged when it is on stable storage, and readers are served up to there, to the real end.
#[derive(Parser)]
#[command(version, after_help = FIRST_MINUTES, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Serve(serve::Arguments),
    Put(put::Arguments),
    Get(get::Arguments),
    #[command(name = "ls")]
    List(list::Arguments),
    #[command(name = "rm")]
    Remove(remove::Arguments),
    Verify(verify::Arguments),
    Export(export::Arguments),
    Load(load::Arguments),
    Doctor(doctor::Arguments),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Command::Demo(arguments) => demo::run(arguments),
            Command::Serve(arguments) => serve::run(arguments),
            Command::Put(arguments) => put::run(arguments),
            Command::Get(arguments) => get::run(arguments),
            Command::List(arguments) => list::run(arguments),
            Command::Remove(arguments) => remove::run(arguments),
            Command::Verify(arguments) => verify::run(arguments),
            Command::Export(arguments) => export::run(arguments),
            Command::Load(arguments) => load::run(arguments),
            Command::Doctor(arguments) => doctor::run(arguments),
        }
    }
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    match CommandLine::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is gone too, the exit code is all there is left to say it.
            let _ = writeln!(std::io::stderr(), "tailwater: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn help_has_an_example_and_every_exit_code() {
        let help = CommandLine::command().render_long_help().to_string();
        for needed in ["tailwater demo", "ffmpeg", "curl", "0 done", "11 damaged"] {
            assert!(help.contains(needed), "{needed:?} is missing");
        }
    }
}
