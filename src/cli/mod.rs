//! The commands.

pub mod demo;
pub mod failure;
pub mod get;
pub mod list;
pub mod load;
pub mod put;
mod remote;
pub mod remove;

/// Parses the command line and runs the command.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
