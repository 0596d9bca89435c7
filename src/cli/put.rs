//! `tailwater put`: sends a file, or standard input as it comes, to an object.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::Seek;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio_uring::BufResult;
use tokio_uring::fs::File;

use super::failure::{ExitStatus, Failure};
use super::remote::{failure, failure_of, local_failure, object, progress};
use crate::client::{self, Client, Length, Limits, Location, Request, Upload};

/// How much is read and sent at a time, in bytes.
const PART_BYTES: usize = 256 * 1024;
/// How much is kept of what cannot be read twice, in bytes: more than can be on its way to the disk.
const KEPT_BYTES: usize = 64 << 20;
/// How long to wait before the first attempt to go on, and at most before a later one.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(3);
/// From this length on, the server is asked before the body is sent.
const ASK_FIRST_BYTES: u64 = 1 << 20;

/// Send a file, or standard input as it comes, to an object
///
/// The object can be followed from the first byte on. It is there, whole and on stable storage, when this command
/// ends with 0; ended before, it leaves an interrupted object. Where the connection breaks it goes on by itself: with
/// a file from anywhere, with standard input as far back as 64 MiB. A '%', '?' or '#' in a key is written %25, %3F, %23.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tailwater put http://127.0.0.1:8420/docs/a.pdf a.pdf
  ffmpeg -i rtsp://camera/1 -c copy -f mpegts - | tailwater put http://127.0.0.1:8420/cam/1.ts")]
pub struct Arguments {
    /// Where to: http://host:port/bucket/key; a key that ends with '/' is continued with the name of the file
    #[arg(value_name = "URL")]
    url: String,
    /// What to send; standard input if it is '-' or missing
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The Content-Type that readers get
    #[arg(long, value_name = "TYPE", value_parser = field_value)]
    content_type: Option<String>,
    /// Fail if the object exists
    #[arg(long)]
    if_absent: bool,
    /// How long to try to go on when the connection breaks, or the server is restarted; 0 gives up at once
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    retry_seconds: u64,
}

/// Runs the command.
///
/// # Errors
/// If the object is not stored as a whole.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let file = arguments.file.filter(|path| path != Path::new("-"));
    let location = match &file {
        Some(path) => object(&continue_key(&arguments.url, path))?,
        None => object(&arguments.url)?,
    };
    let mut request = Request::new("PUT", location.target());
    if let Some(content_type) = arguments.content_type {
        request = request.field("Content-Type", content_type);
    }
    if arguments.if_absent {
        request = request.field("If-None-Match", "*");
    }
    let retry = Duration::from_secs(arguments.retry_seconds);
    client::run(16, async move { send(&location, request, Source::open(file)?, retry).await })
        .map_err(|error| failure(&error))?
}

/// A key that ends with a slash is a folder, to people.
fn continue_key(url: &str, file: &Path) -> String {
    match file.file_name().and_then(|name| name.to_str()) {
        Some(name) if url.ends_with('/') => {
            format!("{url}{}", name.replace('%', "%25").replace('?', "%3F").replace('#', "%23"))
        }
        _ => url.to_owned(),
    }
}

/// Where the bytes come from.
struct Source {
    file: Rc<File>,
    path: PathBuf,
    /// Where reading starts: a shell may have used some of its standard input.
    start: u64,
    length: Length,
    /// Of what cannot be read twice, what was read last.
    kept: VecDeque<u8>,
    /// How much was read of that, in bytes.
    read: u64,
    /// The read in flight of what cannot be read twice.
    reading: Option<Reading>,
}

type Reading = Pin<Box<dyn Future<Output = BufResult<usize, Vec<u8>>>>>;

impl Source {
    fn open(path: Option<PathBuf>) -> Result<Source, Failure> {
        let source = |file, path, start, length| Source {
            file: Rc::new(File::from_std(file)),
            path,
            start,
            length,
            kept: VecDeque::new(),
            read: 0,
            reading: None,
        };
        match path {
            Some(path) => {
                let open = || {
                    let file = std::fs::File::open(&path)?;
                    let metadata = file.metadata()?;
                    if metadata.is_dir() {
                        return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
                    }
                    let length =
                        if metadata.is_file() { Length::Known(metadata.len()) } else { Length::Unknown };
                    Ok((file, length))
                };
                let (file, length) = open().map_err(|error| local_failure("read", &path, &error))?;
                Ok(source(file, path, 0, length))
            }
            None => {
                let path = PathBuf::from("standard input");
                let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
                let mut file = descriptor
                    .map(std::fs::File::from)
                    .map_err(|error| local_failure("read", &path, &error))?;
                // A pipe or a terminal has no position, and reading ignores it.
                let start = file.stream_position().unwrap_or(0);
                Ok(source(file, path, start, Length::Unknown))
            }
        }
    }

    /// The bytes from an offset on; none at the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// What the system says; and where the offset lies before all that is kept.
    async fn read(&mut self, offset: u64) -> std::io::Result<Vec<u8>> {
        if let Length::Known(length) = self.length {
            let buffer = Vec::with_capacity(PART_BYTES);
            let (result, mut buffer) = self.file.read_at(buffer, self.start + offset).await;
            result?;
            // A file that grows meanwhile is sent as it was.
            buffer.truncate(usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX));
            return Ok(buffer);
        }
        let behind = self.read.checked_sub(offset).and_then(|behind| usize::try_from(behind).ok());
        let Some(behind) = behind.filter(|&behind| behind <= self.kept.len()) else {
            return Err(std::io::Error::other(
                "the server goes on further back than what is kept of the stream",
            ));
        };
        if behind > 0 {
            let start = self.kept.len() - behind;
            return Ok(self.kept.range(start..).take(PART_BYTES).copied().collect());
        }
        let reading = self.reading.get_or_insert_with(|| {
            let (file, position) = (self.file.clone(), self.start + self.read);
            Box::pin(async move { file.read_at(Vec::with_capacity(PART_BYTES), position).await })
        });
        let (result, buffer) = reading.await;
        self.reading = None;
        self.read += result? as u64;
        self.kept.extend(&buffer);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..surplus);
        Ok(buffer)
    }
}

/// An upload that goes on by itself where the connection breaks.
struct Sending<'a> {
    location: &'a Location,
    client: Client,
    source: Source,
    bar: ProgressBar,
    /// Where the server has said that it can be gone on with.
    resource: Option<String>,
    /// How much is in the object, or on its way, in bytes.
    offset: u64,
}

/// Why an attempt has ended.
enum Broken {
    /// Another one may do better.
    Connection(client::Error),
    Failure(Failure),
}

impl Sending<'_> {
    fn broken(&self, error: client::Error) -> Broken {
        let is_servers = error.status().is_some_and(|status| status >= 500 && status != 507);
        match error.is_connection() || is_servers {
            true => Broken::Connection(error),
            false => Broken::Failure(failure_of(self.location, &error)),
        }
    }

    /// Sends what is left of the source as the body of a request, and answers how long the object is then.
    async fn send(&mut self, request: Request) -> Result<u64, Broken> {
        let length = match self.source.length {
            Length::Known(length) => Length::Known(length.saturating_sub(self.offset)),
            Length::Unknown => Length::Unknown,
        };
        let ask_first = !matches!(length, Length::Known(..ASK_FIRST_BYTES));
        let upload = self.client.upload(request, length, ask_first).await;
        let mut upload = upload.map_err(|error| self.broken(error))?;
        loop {
            if let Some(resource) = upload.resource() {
                self.resource = Some(resource.to_owned());
            }
            if length == Length::Known(upload.sent()) {
                break;
            }
            let read = unless_refused(self.source.read(self.offset), &mut upload).await;
            let failed = |error| Broken::Failure(local_failure("read", &self.source.path, &error));
            let bytes = read.map_err(|error| self.broken(error))?.map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            self.offset += bytes.len() as u64;
            upload.send(&bytes).await.map_err(|error| self.broken(error))?;
            self.bar.set_position(self.offset);
        }
        if let Length::Known(bytes) = self.source.length
            && self.offset < bytes
        {
            return Err(Broken::Failure(Failure::new(
                ExitStatus::Failed,
                format!(
                    "{} became shorter while it was sent: {} of {bytes} bytes",
                    self.source.path.display(),
                    self.offset
                ),
            )));
        }
        let stored = async { upload.finish().await?.accepted().await?.json::<Stored>().await };
        stored.await.map(|stored| stored.length).map_err(|error| self.broken(error))
    }

    /// Asks where to go on, and goes on there.
    async fn go_on(&mut self, resource: &str) -> Result<u64, Broken> {
        let asked = async { self.client.request(&Request::new("HEAD", resource)).await?.accepted().await };
        let answer = match asked.await {
            Err(client::Error::Refused { status: 404, .. }) => {
                let text = "the server no longer has the upload: it was deleted, or replaced by another one";
                return Err(Broken::Failure(Failure::new(
                    ExitStatus::Failed,
                    format!("{}: {text}", self.location),
                )));
            }
            answer => answer.map_err(|error| self.broken(error))?,
        };
        let offset = answer.head.field("upload-offset").and_then(|offset| offset.parse().ok());
        let Some(offset) = offset else {
            let malformed = client::Error::Malformed("it does not say where the upload goes on".to_owned());
            return Err(self.broken(malformed));
        };
        if answer.head.field("upload-complete") == Some("?1") {
            return Ok(offset);
        }
        self.offset = offset;
        self.bar.set_position(offset);
        let request = Request::new("PATCH", resource)
            .field("Content-Type", "application/partial-upload")
            .field("Upload-Offset", offset.to_string())
            .field("Upload-Complete", "?1");
        self.send(request).await
    }
}

async fn send(location: &Location, request: Request, source: Source, retry: Duration) -> Result<(), Failure> {
    let client = Client::new(location, Limits::default()).map_err(|error| failure_of(location, &error))?;
    let length = match source.length {
        Length::Known(bytes) => Some(bytes),
        Length::Unknown => None,
    };
    let bar = progress(length, false);
    let mut sending = Sending { location, client, source, bar, resource: None, offset: 0 };
    let request = request.field("Upload-Complete", "?1").field("Upload-Draft-Interop-Version", "8");
    let mut outcome = sending.send(request).await;
    let (mut limit, mut pause, mut reached) = (Instant::now() + retry, RETRY_PAUSE, 0);
    let stored = loop {
        let error = match outcome {
            Ok(stored) => break stored,
            Err(Broken::Failure(failure)) => return Err(failure),
            Err(Broken::Connection(error)) => error,
        };
        if sending.offset > reached {
            // It has come further than ever: from here on the time runs anew.
            (limit, pause, reached) = (Instant::now() + retry, RETRY_PAUSE, sending.offset);
        }
        let Some(resource) = sending.resource.clone().filter(|_| Instant::now() < limit) else {
            return Err(failure_of(location, &error));
        };
        sending.bar.println(format!("{location}: {error}; going on"));
        client::sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
        outcome = sending.go_on(&resource).await;
    };
    sending.bar.finish_and_clear();
    if stored != sending.offset {
        return Err(Failure::new(
            ExitStatus::Damaged,
            format!("{location}: {} bytes were sent, and the server has {stored}", sending.offset),
        ));
    }
    Ok(())
}

/// What the server says of an object that it stored.
#[derive(serde::Deserialize)]
struct Stored {
    length: u64,
}

/// Waits for `reading`, unless the server ends the upload meanwhile.
async fn unless_refused<F: Future>(reading: F, upload: &mut Upload) -> client::Result<F::Output> {
    let (mut reading, mut refused) = (pin!(reading), pin!(upload.refused()));
    poll_fn(|context| match reading.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => refused.as_mut().poll(context).map(Err),
    })
    .await
}

fn field_value(text: &str) -> Result<String, String> {
    match http::HeaderValue::from_str(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("it has characters that no header field may have".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_ends_with_a_slash_takes_the_name_of_the_file() {
        let key = |url, file| continue_key(url, Path::new(file));
        assert_eq!(key("http://h/b/", "dir/a.pdf"), "http://h/b/a.pdf");
        assert_eq!(key("http://h/b/x/", "50%?.txt"), "http://h/b/x/50%25%3F.txt");
        assert_eq!(key("http://h/b/k", "dir/a.pdf"), "http://h/b/k");
    }

    #[test]
    fn a_header_field_is_one_line() {
        assert!(field_value("video/mp2t").is_ok());
        assert!(field_value("video/mp2t\r\nX: y").is_err());
    }
}
