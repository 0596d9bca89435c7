//! `tailwater put`: sends a file, or standard input as it comes, to an object.

use std::future::{Future, poll_fn};
use std::io::Seek;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;

use tokio_uring::fs::File;

use super::failure::{ExitStatus, Failure};
use super::remote::{failure, failure_of, local_failure, object, progress};
use crate::client::{self, Client, Length, Limits, Location, Request, Upload};

/// How much is read and sent at a time, in bytes.
const PART_BYTES: usize = 256 * 1024;
/// From this length on, the server is asked before the body is sent.
const ASK_FIRST_BYTES: u64 = 1 << 20;

/// Send a file, or standard input as it comes, to an object
///
/// The object can be followed from the first byte on. It is there, whole and on stable storage, when this command
/// ends with 0; ended before, it leaves an interrupted object. A '%', '?' or '#' in a key is written %25, %3F, %23.
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
    let source = Source::open(file)?;
    client::run(16, send(&location, request, source)).map_err(|error| failure(&error))?
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
    file: std::fs::File,
    path: PathBuf,
    /// Where reading starts: a shell may have used some of its standard input.
    position: u64,
    length: Length,
}

impl Source {
    fn open(path: Option<PathBuf>) -> Result<Source, Failure> {
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
                Ok(Source { file, path, position: 0, length })
            }
            None => {
                let path = PathBuf::from("standard input");
                let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
                let mut file = descriptor
                    .map(std::fs::File::from)
                    .map_err(|error| local_failure("read", &path, &error))?;
                // A pipe or a terminal has no position, and reading ignores it.
                let position = file.stream_position().unwrap_or(0);
                Ok(Source { file, path, position, length: Length::Unknown })
            }
        }
    }
}

async fn send(location: &Location, request: Request, source: Source) -> Result<(), Failure> {
    let told = |error: &client::Error| failure_of(location, error);
    let client = Client::new(location, Limits::default()).map_err(|error| told(&error))?;
    let ask_first = !matches!(source.length, Length::Known(..ASK_FIRST_BYTES));
    let mut upload = client.upload(request, source.length, ask_first).await.map_err(|error| told(&error))?;
    let bar = progress(
        match source.length {
            Length::Known(bytes) => Some(bytes),
            Length::Unknown => None,
        },
        false,
    );
    let Source { file, path, mut position, length } = source;
    let file = File::from_std(file);
    let mut buffer = Vec::with_capacity(PART_BYTES);
    loop {
        buffer.clear();
        let read = file.read_at(buffer, position);
        let (result, filled) = unless_refused(read, &mut upload).await.map_err(|error| told(&error))?;
        buffer = filled;
        let count = result.map_err(|error| local_failure("read", &path, &error))?;
        if count == 0 {
            break;
        }
        position += count as u64;
        // A file that grows meanwhile is sent as it was.
        let wanted = match length {
            Length::Known(bytes) => usize::try_from(bytes - upload.sent()).unwrap_or(usize::MAX).min(count),
            Length::Unknown => count,
        };
        upload.send(&buffer[..wanted]).await.map_err(|error| told(&error))?;
        bar.inc(wanted as u64);
        if length == Length::Known(upload.sent()) {
            break;
        }
    }
    if let Length::Known(bytes) = length
        && upload.sent() < bytes
    {
        let sent = upload.sent();
        return Err(Failure::new(
            ExitStatus::Failed,
            format!("{} became shorter while it was sent: {sent} of {bytes} bytes", path.display()),
        ));
    }
    let sent = upload.sent();
    let stored = async { upload.finish().await?.accepted().await?.json::<Stored>().await };
    let stored = stored.await.map_err(|error| told(&error))?;
    bar.finish_and_clear();
    if stored.length != sent {
        return Err(Failure::new(
            ExitStatus::Damaged,
            format!("{location}: {sent} bytes were sent, and the server has {}", stored.length),
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
