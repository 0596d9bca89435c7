//! `tailwater get`: reads an object, following it to its real end if it is still being written.
//!
//! When the connection breaks, what is still there is asked for from where it broke, as long as it is the same
//! generation of the object. An interrupted object is read as far as it goes, and is then a failure: nobody should
//! take it for the whole.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;

use super::failure::{ExitStatus, Failure};
use super::remote::{failure, failure_of, local_failure, object, progress};
use crate::client::{self, Client, Error, Head, Limits, Location, Request, Response, sleep};

/// How often in a row a connection may break without a new byte.
const ATTEMPTS_MAX: u32 = 5;
/// The wait before the second attempt; it doubles each time.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// The last position that stands for "and all that is still to come" (RFC 8673, section 2.2).
const TO_THE_END: u64 = (1 << 53) - 1;

/// Read an object, following it to its end while it is written
///
/// Ends with 0 only if the object was sealed and every byte of it was written to the output. A connection that
/// breaks is made again, and reading continues where it broke.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tailwater get http://127.0.0.1:8420/cam/1.ts | ffplay -
  tailwater get -o a.pdf --resume http://127.0.0.1:8420/docs/a.pdf")]
pub struct Arguments {
    /// What to read: http://host:port/bucket/key
    #[arg(value_name = "URL")]
    url: String,
    /// Where to write it; standard output if it is '-' or missing
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Continue an output file that is there, instead of starting it anew
    #[arg(long, requires = "output", conflicts_with = "from_live")]
    resume: bool,
    /// Follow an object that is being written to its end (this is the default)
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// Read only what is there now
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Begin at what is written now, and leave out what was before
    #[arg(long, conflicts_with = "no_follow")]
    from_live: bool,
    /// Wait so long for an object that is not there yet
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// If not every byte of a sealed object was written to the output. A reader of standard output that goes away is
/// no failure.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let location = object(&arguments.url)?;
    let path = arguments.output.filter(|path| path != Path::new("-"));
    let output = Output::open(path, arguments.resume)?;
    let mut parameters = Vec::new();
    if arguments.no_follow {
        parameters.push(("follow", "0".to_owned()));
    }
    if arguments.from_live {
        parameters.push(("from", "live".to_owned()));
    }
    if let Some(seconds) = arguments.wait {
        parameters.push(("wait", seconds.to_string()));
    }
    let mut limits = Limits::default();
    limits.answer += Duration::from_secs(arguments.wait.unwrap_or(0));
    // A writer may pause for as long as the server lets it.
    limits.idle = None;
    let follows = !arguments.no_follow;
    let from_live = arguments.from_live;
    let read = read(&location, limits, parameters, follows, from_live, output);
    match client::run(16, read).map_err(|error| failure(&error))? {
        Ok(Whole::Sealed) | Err(End::NobodyReads) => Ok(()),
        Ok(Whole::Interrupted { length }) => Err(Failure::new(
            ExitStatus::Damaged,
            format!("{location} is interrupted: its writer went away after {length} bytes"),
        )),
        Err(End::Remote(error)) => Err(failure_of(&location, &error)),
        Err(End::Output(error)) => Err(error),
    }
}

/// What was read to its end.
enum Whole {
    Sealed,
    Interrupted { length: u64 },
}

async fn read(
    location: &Location,
    limits: Limits,
    parameters: Vec<(&'static str, String)>,
    follows: bool,
    from_live: bool,
    output: Output,
) -> Result<Whole, End> {
    let mut transfer = Transfer {
        client: Client::new(location, limits)?,
        location: location.clone(),
        parameters,
        follows,
        from_live,
        position: output.length,
        output,
        etag: None,
        interrupted: false,
        bar: None,
    };
    let ended = transfer.run().await;
    if let Some(bar) = &transfer.bar {
        bar.finish_and_clear();
    }
    ended?;
    let length = transfer.position;
    Ok(if transfer.interrupted { Whole::Interrupted { length } } else { Whole::Sealed })
}

/// Where the bytes go.
///
/// Writing blocks: this command has nothing else to do, and what does not read holds up nothing but its own
/// connection.
struct Output {
    file: File,
    path: PathBuf,
    /// How much of the object is there already, in bytes.
    length: u64,
    is_standard: bool,
}

impl Output {
    fn open(path: Option<PathBuf>, resume: bool) -> Result<Output, Failure> {
        let Some(path) = path else {
            let path = PathBuf::from("standard output");
            // The library's own stdout holds back what follows the last line break, and video has no lines.
            let descriptor = std::io::stdout().as_fd().try_clone_to_owned();
            let file = descriptor.map(File::from).map_err(|error| local_failure("write", &path, &error))?;
            return Ok(Output { file, path, length: 0, is_standard: true });
        };
        let open = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(!resume).open(&path)?;
            let length = if resume { file.seek(std::io::SeekFrom::End(0))? } else { 0 };
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| local_failure("write", &path, &error))?;
        Ok(Output { file, path, length, is_standard: false })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        match self.file.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) if self.is_standard && error.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(End::NobodyReads)
            }
            Err(error) => Err(End::Output(local_failure("write", &self.path, &error))),
        }
    }
}

/// Why reading ends before the end of the object.
enum End {
    Remote(Error),
    Output(Failure),
    NobodyReads,
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Remote(error)
    }
}

/// One object on its way to the output, over as many connections as it takes.
struct Transfer {
    client: Client,
    location: Location,
    parameters: Vec<(&'static str, String)>,
    follows: bool,
    from_live: bool,
    output: Output,
    /// The offset of the next byte for the output.
    position: u64,
    /// The generation that is read.
    etag: Option<String>,
    /// Whether the writer went away without sealing.
    interrupted: bool,
    bar: Option<ProgressBar>,
}

/// How an answer relates to the object.
#[derive(Debug, PartialEq, Eq)]
enum Extent {
    /// Its end is the end of the object, or of what was asked for.
    ToTheEnd,
    /// There may be more.
    Part,
}

impl Transfer {
    async fn run(&mut self) -> Result<(), End> {
        let mut attempts = 0;
        loop {
            let position = self.position;
            let error = match self.attempt().await {
                Ok(Extent::ToTheEnd) => return Ok(()),
                Ok(Extent::Part) => None,
                Err(End::Remote(error)) if error.is_connection() && self.can_continue() => Some(error),
                Err(end) => return Err(end),
            };
            attempts = if self.position > position { 1 } else { attempts + 1 };
            match error {
                Some(error) if attempts >= ATTEMPTS_MAX => return Err(End::Remote(error)),
                _ => sleep(RETRY_WAIT * 2_u32.pow(attempts.min(ATTEMPTS_MAX) - 1)).await,
            }
        }
    }

    /// Whether what follows can be asked for: something was received, and it is known of what.
    fn can_continue(&self) -> bool {
        self.etag.is_some() && !self.from_live
    }

    async fn attempt(&mut self) -> Result<Extent, End> {
        let mut request = Request::new("GET", self.target());
        if self.position > 0 {
            let head = self.client.request(&Request::new("HEAD", self.location.target())).await?;
            // The answer to HEAD has no body that could say why.
            let head = head.accepted().await?.head;
            self.check_generation(&head)?;
            let Some(range) = self.range_after(&head)? else { return Ok(Extent::ToTheEnd) };
            request = request.field("Range", range);
            if let Some(etag) = &self.etag {
                request = request.field("If-Range", etag.clone());
            }
        }
        let mut response = self.client.request(&request).await?.accepted().await?;
        if self.position > 0 && response.status() != 206 {
            return Err(self.replaced());
        }
        self.check_generation(&response.head)?;
        let extent = extent_of(&response.head)?;
        let state = state_of(&response.head);
        self.show_length(&response);
        while let Some(bytes) = response.chunk().await? {
            self.output.write(bytes)?;
            self.position += bytes.len() as u64;
            if let Some(bar) = &self.bar {
                bar.set_position(self.position);
            }
        }
        if extent == Extent::ToTheEnd {
            self.interrupted = state == State::Interrupted;
        }
        Ok(extent)
    }

    fn target(&self) -> String {
        let parameters: Vec<(&str, &str)> =
            self.parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.location.target_with(&parameters)
    }

    /// What to ask for, given what the object is now; nothing if all of it is there.
    fn range_after(&mut self, head: &Head) -> Result<Option<String>, End> {
        let state = state_of(head);
        let committed = head.field("tailwater-committed").and_then(|text| text.parse::<u64>().ok());
        if let Some(committed) = committed
            && (state != State::Live || !self.follows)
        {
            if self.position > committed {
                return Err(End::Remote(Error::Malformed(format!(
                    "the output has {} bytes, and the object only {committed}: it is not the same",
                    self.position
                ))));
            }
            if self.position == committed {
                self.interrupted = state == State::Interrupted;
                return Ok(None);
            }
        }
        let last = if state == State::Live && self.follows { TO_THE_END.to_string() } else { String::new() };
        Ok(Some(format!("bytes={}-{last}", self.position)))
    }

    fn check_generation(&mut self, head: &Head) -> Result<(), End> {
        match (&self.etag, head.field("etag")) {
            (Some(known), found) if found != Some(known) => Err(self.replaced()),
            (_, found) => {
                self.etag = found.map(str::to_owned);
                Ok(())
            }
        }
    }

    fn replaced(&self) -> End {
        let position = self.position;
        End::Remote(Error::Malformed(format!("the object was replaced after {position} bytes were read")))
    }

    fn show_length(&mut self, response: &Response) {
        let length = response.head.field("content-length").and_then(|text| text.parse::<u64>().ok());
        let whole = length.map(|length| self.position + length);
        let to_standard_output = self.output.is_standard;
        self.bar.get_or_insert_with(|| progress(whole, to_standard_output));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Sealed,
    Interrupted,
}

fn state_of(head: &Head) -> State {
    match head.field("tailwater-state") {
        Some("live") => State::Live,
        Some("interrupted") => State::Interrupted,
        // Any other server has only whole objects.
        _ => State::Sealed,
    }
}

fn extent_of(head: &Head) -> Result<Extent, Error> {
    if head.status != 206 {
        return Ok(Extent::ToTheEnd);
    }
    let field = head.field("content-range").unwrap_or_default();
    let range = || {
        let (range, total) = field.strip_prefix("bytes ")?.split_once('/')?;
        let (_, last) = range.split_once('-')?;
        let last: u64 = last.parse().ok()?;
        match total {
            "*" => Some(last >= TO_THE_END),
            total => Some(last.checked_add(1)? >= total.parse().ok()?),
        }
    };
    match range() {
        Some(true) => Ok(Extent::ToTheEnd),
        Some(false) => Ok(Extent::Part),
        None => Err(Error::Malformed(format!("its Content-Range is {field:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(range: &str) -> Result<Extent, Error> {
        let mut fields = http::HeaderMap::new();
        fields.insert("content-range", range.parse().unwrap());
        extent_of(&Head::new(206, fields))
    }

    #[test]
    fn a_part_of_an_object_is_not_taken_for_its_end() {
        for (range, expected) in [
            ("bytes 5-9/10", Extent::ToTheEnd),
            ("bytes 5-8/10", Extent::Part),
            // What a growing object had when it was asked.
            ("bytes 5-9/*", Extent::Part),
            // RFC 8673: followed to wherever it ends.
            ("bytes 5-9007199254740991/*", Extent::ToTheEnd),
        ] {
            assert_eq!(extent(range).unwrap(), expected, "{range}");
        }
        for range in ["", "bytes */10", "bytes 5-/10", "items 5-9/10"] {
            assert!(extent(range).is_err(), "{range}");
        }
        assert_eq!(extent_of(&Head::new(200, http::HeaderMap::new())).unwrap(), Extent::ToTheEnd);
    }

    #[test]
    fn only_a_state_that_is_told_is_believed() {
        let state = |state: &'static str| {
            let mut fields = http::HeaderMap::new();
            fields.insert("tailwater-state", http::HeaderValue::from_static(state));
            state_of(&Head::new(200, fields))
        };
        assert_eq!(state("live"), State::Live);
        assert_eq!(state("interrupted"), State::Interrupted);
        assert_eq!(state("sealed"), State::Sealed);
    }
}
