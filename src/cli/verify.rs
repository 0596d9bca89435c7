//! `tailwater verify`: whether a store that nobody serves is whole.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::failure::{ExitStatus, Failure};
use super::remote::progress;
use crate::store::offline;
use crate::store::verify::{Report, verify};

/// Check a data folder: every block, record and checksum, and the catalog
///
/// No server may have the folder open. Nothing in it is changed, so a read-only disk or copy will do. What is damaged
/// is named on standard output, a line each, and indented below it the objects that lose something by it: name,
/// generation and bytes. What is left of deleted objects is no damage.
///
/// Ends with 0 only if nothing is damaged, and with 11 if something is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tailwater verify tailwater-data
  tailwater verify /mnt/copy && echo whole

What helps: an object with damaged bytes is saved as far as it goes with tailwater export --fill. A catalog that is
missing or damaged is made anew from the segments by tailwater serve --rebuild-catalog.")]
pub struct Arguments {
    /// The data folder: what a server is given as --data
    #[arg(value_name = "DIR")]
    data: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If something is damaged, and if the folder cannot be read.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let report = offline::run(async |core| {
        let mut bar: Option<ProgressBar> = None;
        let report = verify(core, &arguments.data, |done, whole| {
            bar.get_or_insert_with(|| progress(Some(whole), false)).set_position(done);
        })
        .await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        report
    })?;
    // What counts is the exit code, also where nobody reads this.
    let _ = std::io::stdout().lock().write_all(text(&report).as_bytes());
    match report.findings.len() {
        0 => Ok(()),
        1 => Err(damaged("1 thing is damaged")),
        count => Err(damaged(&format!("{count} things are damaged"))),
    }
}

fn damaged(what: &str) -> Failure {
    Failure::new(ExitStatus::Damaged, what)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "damaged: {finding}");
    }
    let Report { segments, blocks, records, objects, object_bytes, rows, read_bytes, elapsed, .. } = report;
    let _ = writeln!(
        text,
        "checked {segments} segments ({read_bytes} bytes) with {blocks} blocks and {records} records, {rows} rows of \
         the catalog, {objects} objects with {object_bytes} bytes, in {:.1} s",
        elapsed.as_secs_f64()
    );
    if report.findings.is_empty() {
        text += "nothing is damaged\n";
    }
    text
}
