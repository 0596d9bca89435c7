//! `tailwater export`: an object of a store that nobody serves, as a plain file.
//!
//! Every byte is checked before it is written. When this ends with 0, the output is the whole of a sealed object.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::failure::{ExitStatus, Failure};
use super::remote::{local_failure, progress};
use crate::error::Error;
use crate::runtime::Core;
use crate::store::offline::{Kept, Offline, Run, run as run_offline};
use crate::store::{Name, State};

/// What is written at a time for bytes that are lost.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Copy an object out of a data folder, without a server
///
/// No server may have the folder open. Nothing in it is changed, so a read-only disk or copy will do; a catalog that
/// is missing or damaged is done without.
///
/// Ends with 0 only if the object was sealed and all of it was written. Of an interrupted one, what is kept is
/// written, and it ends with 11. It ends with 11, too, at the first byte that is damaged or lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tailwater export tailwater-data cam/front.ts front.ts
  tailwater export tailwater-data cam/front.ts | ffplay -
  tailwater export --fill tailwater-data cam/front.ts rescued.ts")]
pub struct Arguments {
    /// The data folder: what a server is given as --data
    #[arg(value_name = "DIR")]
    data: PathBuf,
    /// The object: bucket/key
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to write it; standard output if it is '-' or missing
    #[arg(value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// Write zeroes for bytes that are damaged or lost, and go on behind them; it still ends with 11
    #[arg(long)]
    fill: bool,
    /// Not what the name serves, but this generation of it, as tailwater verify names it
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// If not every byte of a sealed object was written to the output. A reader of standard output that goes away is no
/// failure.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let name = Name::parse(&arguments.name).map_err(|error| {
        Failure::new(ExitStatus::Failed, format!("{:?} is no object: {error}", arguments.name))
    })?;
    run_offline(async |core| {
        let store = Offline::open(core, &arguments.data).await?;
        let kept = store.find(&name, arguments.generation)?;
        Ok(copy(core, &store, &kept, &name, &arguments).await)
    })?
}

async fn copy(
    core: &Rc<Core>,
    store: &Offline,
    kept: &Kept,
    name: &Name,
    arguments: &Arguments,
) -> Result<(), Failure> {
    // Not before it is known that there is something to write.
    let mut output = Output::open(arguments.output.as_deref(), arguments.force)?;
    let bar = progress(Some(kept.length), output.is_standard);
    let (mut damage, mut damaged_bytes) = (None, 0);
    let read = store.read(core, kept, |run| {
        match run {
            Run::Whole(bytes) => output.write(bytes)?,
            Run::Lost(range, why) => {
                let first = damage.get_or_insert_with(|| {
                    format!("bytes {} to {}: {why}", range.start, range.end.saturating_sub(1))
                });
                if !arguments.fill {
                    return Err(End::Damaged(first.clone()));
                }
                damaged_bytes += range.end - range.start;
                output.fill(range.end - range.start)?;
            }
        }
        bar.set_position(output.written);
        Ok(())
    });
    let ended = read.await;
    bar.finish_and_clear();
    let (written, length) = (output.written, kept.length);
    match ended {
        Err(End::Failed(failure)) => Err(failure),
        Err(End::NobodyReads) => Ok(()),
        Err(End::Damaged(damage)) => Err(Failure::new(
            ExitStatus::Damaged,
            format!(
                "{name} is damaged ({damage}): {written} of {length} bytes were written; --fill goes on behind"
            ),
        )),
        Ok(()) => match (damage, kept.state) {
            (Some(damage), _) => Err(Failure::new(
                ExitStatus::Damaged,
                format!(
                    "{name} is damaged: {damaged_bytes} of {length} bytes are zeroes instead, first {damage}"
                ),
            )),
            (None, State::Sealed) => Ok(()),
            (None, _) => Err(Failure::new(
                ExitStatus::Damaged,
                format!("{name} is interrupted: {length} bytes are kept, and were written"),
            )),
        },
    }
}

/// Why writing ends before the end of the object.
enum End {
    Failed(Failure),
    Damaged(String),
    NobodyReads,
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Failed(error.into())
    }
}

/// Where the bytes go.
struct Output {
    file: File,
    path: PathBuf,
    is_standard: bool,
    /// How many bytes were written.
    written: u64,
}

impl Output {
    fn open(path: Option<&Path>, force: bool) -> Result<Output, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let path = PathBuf::from("standard output");
            // The library's own stdout holds back what follows the last line break, and video has no lines.
            let descriptor = std::io::stdout().as_fd().try_clone_to_owned();
            let file = descriptor.map(File::from).map_err(|error| local_failure("write", &path, &error))?;
            return Ok(Output { file, path, is_standard: true, written: 0 });
        };
        let mut options = OpenOptions::new();
        options.write(true);
        let opened = match force {
            true => options.create(true).truncate(true).open(path),
            false => options.create_new(true).open(path),
        };
        match opened {
            Ok(file) => Ok(Output { file, path: path.to_owned(), is_standard: false, written: 0 }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let message = format!("{} is there already: --force writes over it", path.display());
                Err(Failure::new(ExitStatus::Failed, message))
            }
            Err(error) => Err(local_failure("write", path, &error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.written += bytes.len() as u64;
                Ok(())
            }
            Err(error) if self.is_standard && error.kind() == ErrorKind::BrokenPipe => Err(End::NobodyReads),
            Err(error) => Err(End::Failed(local_failure("write", &self.path, &error))),
        }
    }

    fn fill(&mut self, mut length: u64) -> Result<(), End> {
        while length > 0 {
            let count = length.min(ZEROES.len() as u64);
            self.write(&ZEROES[..count as usize])?;
            length -= count;
        }
        Ok(())
    }
}
