//! `tailwater demo`: the main job, done once over real HTTP in front of one's eyes, and verified.
//!
//! A server in a temporary folder, one writer that sends a piece every 30 ms for three seconds, five followers who
//! each read in their own way while it is written. What each received is compared byte by byte. Then the server is
//! stopped and started again, and the object is read once more.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::failure::{ExitStatus, Failure};
use super::remote::failure;
use crate::client::{self, Client, Error, Length, Limits, Location, Request, sleep, sleep_until, spawn};
use crate::config::Config;
use crate::load::content::{Pieces, Verifier};
use crate::load::measure::Series;
use crate::load::report::Latency;
use crate::serve::Server;

/// Prints a line. With standard output gone, the exit code still tells.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// The pieces of the stream: about 3 s of 8 Mbit/s.
const PIECES: u64 = 100;
const PIECE_INTERVAL: Duration = Duration::from_millis(30);
const PIECE_BYTES: usize = 32 * 1024;
const LENGTH: u64 = PIECES * PIECE_BYTES as u64;
/// From the first follower's request to the first piece. In between the writer opens the object.
const LEAD: Duration = Duration::from_millis(150);
/// When the late follower and the one at the live edge come.
const LATE: Duration = Duration::from_millis(1_200);
/// How long the slow follower reads nothing, after its first bytes.
const PAUSE: Duration = Duration::from_millis(1_500);
/// How long anything may take to show a sign of life.
const PATIENCE: Duration = Duration::from_secs(10);

/// Do the main job once, here, and show that it holds
///
/// Starts a server in a temporary folder on free loopback ports, records a stream over real HTTP, follows it with
/// several readers while it is written, compares every byte, stops the server, starts it again and compares once
/// more. Ends with 0 only if all of it held. Takes about four seconds and leaves nothing behind.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// If anything did not hold; what did until then has been printed.
pub fn run(_arguments: Arguments) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("tailwater-demo-").tempdir().map_err(|error| {
        Failure::new(ExitStatus::DataFolder, format!("cannot make a temporary folder: {error}"))
    })?;
    let server = start(folder.path())?;
    say!("A server listens on http://{}, its data is in {}.", server.data_address(), folder.path().display());
    let object = location(&server, "cam/front-door.ts");
    let told = run_client(record(object));
    server.stop()?;
    told?;

    let server = start(folder.path())?;
    say!("The server was stopped, and started again on the same data.");
    let object = location(&server, "cam/front-door.ts");
    let told = run_client(verify_again(object));
    server.stop()?;
    told?;
    say!("All of it held.");
    Ok(())
}

fn start(folder: &std::path::Path) -> Result<Server, Failure> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = Config { data: folder.to_owned(), listen: any_port, admin: any_port, ..Config::default() };
    Server::start(config).map_err(Failure::from)
}

fn location(server: &Server, name: &str) -> Location {
    let address = server.data_address();
    let (bucket, key) = name.split_once('/').unwrap_or((name, ""));
    Location {
        host: address.ip().to_string(),
        port: address.port(),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    }
}

fn run_client(work: impl Future<Output = client::Result<()>>) -> Result<(), Failure> {
    match client::run(64, work) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(failure(&error)),
    }
}

/// How a follower reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    FromTheStart,
    Late,
    LiveEdge,
    Slow,
    BeforeTheWriter,
}

impl Manner {
    const ALL: [Manner; 5] =
        [Manner::BeforeTheWriter, Manner::FromTheStart, Manner::Late, Manner::LiveEdge, Manner::Slow];

    fn in_words(self) -> &'static str {
        match self {
            Manner::FromTheStart => "from the start",
            Manner::Late => "came late, and read from the start",
            Manner::LiveEdge => "came late, and joined live",
            Manner::Slow => "slow, read nothing for a while",
            Manner::BeforeTheWriter => "came before the writer, and waited",
        }
    }

    /// Whether it is at the live edge all the time, so that its latencies are those of the server.
    fn is_prompt(self) -> bool {
        matches!(self, Manner::FromTheStart | Manner::LiveEdge | Manner::BeforeTheWriter)
    }
}

/// What the writer and the followers share.
struct Recording {
    client: Client,
    object: Location,
    /// When the first piece is due.
    start: Instant,
    /// Whether the writer has sent the end: before that nobody may see one.
    sealed: Cell<bool>,
    /// From the moment a piece was due to the moment a prompt follower had all of it.
    latency: RefCell<Series>,
}

async fn record(object: Location) -> client::Result<()> {
    let limits = Limits { connect: PATIENCE, send: PATIENCE, answer: PATIENCE, idle: Some(PATIENCE) };
    let recording = Rc::new(Recording {
        client: Client::new(&object, limits)?,
        object,
        start: Instant::now() + LEAD,
        sealed: Cell::new(false),
        latency: RefCell::default(),
    });
    say!(
        "A writer sends {PIECES} pieces of {} KiB, one every {} ms, by chunked PUT to {}.",
        PIECE_BYTES / 1024,
        PIECE_INTERVAL.as_millis(),
        recording.object
    );
    let followers: Vec<_> =
        Manner::ALL.map(|manner| (manner, spawn(follow(Rc::clone(&recording), manner)))).into();
    let answer = write(&recording).await?;
    say!("Sealed: the server answered {answer}.");
    for (manner, follower) in followers {
        let followed = follower.await.inspect_err(|_| say!("  follower ({}): failed.", manner.in_words()))?;
        say!(
            "  follower ({}): {} pieces, bytes {} to {}, each as it was sent, and then the end.",
            manner.in_words(),
            followed.pieces,
            followed.start,
            followed.end
        );
    }
    let latency = recording.latency.take().latency;
    let at = |quantile| Latency(latency.value_at_quantile(quantile) as f64 / 1e3);
    say!(
        "From a piece's due time until a prompt follower had all of it, on stable storage: p50 {}, p99 {}, max {} \
         ({} pieces).",
        at(0.5),
        at(0.99),
        Latency(latency.max() as f64 / 1e3),
        latency.len()
    );
    read_range(&recording.client, &recording.object).await
}

/// Sends the stream on its schedule and seals it: what the server answered.
async fn write(recording: &Recording) -> client::Result<String> {
    let request = Request::new("PUT", recording.object.target()).field("Content-Type", "video/mp2t");
    sleep_until(recording.start - LEAD / 2).await;
    let mut upload = recording.client.upload(request, Length::Unknown, true).await?;
    let mut piece = Vec::new();
    for sequence in 0..PIECES {
        let due = recording.start + PIECE_INTERVAL * sequence as u32;
        sleep_until(due).await;
        pieces().make(sequence, due.duration_since(recording.start).as_nanos() as u64, &mut piece);
        upload.send(&piece).await?;
    }
    // Only now may a follower see an end.
    recording.sealed.set(true);
    let ending = Instant::now();
    let response = upload.finish().await?.accepted().await?;
    let status = response.status();
    let stored: Stored = response.json().await?;
    if (status, stored.length, stored.state.as_str()) != (201, LENGTH, "sealed") {
        return Err(Error::Malformed(format!(
            "{LENGTH} bytes were sent; it answered {status}, {} bytes, {}",
            stored.length, stored.state
        )));
    }
    let took = Latency(ending.elapsed().as_secs_f64() * 1e6);
    Ok(format!("201, all {} bytes are on stable storage, {took} after the last piece", stored.length))
}

/// What the server says of an object that it stored.
#[derive(serde::Deserialize)]
struct Stored {
    length: u64,
    state: String,
}

/// What a follower saw, all of it verified.
struct Followed {
    pieces: u64,
    start: u64,
    end: u64,
}

async fn follow(recording: Rc<Recording>, manner: Manner) -> client::Result<Followed> {
    let (comes, parameters, mut verifier) = match manner {
        Manner::BeforeTheWriter => {
            (recording.start - LEAD, vec![("wait", "10")], Verifier::from_start(pieces()))
        }
        Manner::FromTheStart | Manner::Slow => {
            (recording.start - LEAD / 8, vec![], Verifier::from_start(pieces()))
        }
        Manner::Late => (recording.start + LATE, vec![], Verifier::from_start(pieces())),
        Manner::LiveEdge => {
            (recording.start + LATE, vec![("from", "live")], Verifier::from_anywhere(pieces()))
        }
    };
    sleep_until(comes).await;
    let request = Request::new("GET", recording.object.target_with(&parameters));
    let mut response = recording.client.request(&request).await?.accepted().await?;
    let (mut count, mut is_first) = (0, true);
    while let Some(bytes) = response.chunk().await? {
        let now = recording.start.elapsed();
        let take = |piece: crate::load::content::Received| {
            count += 1;
            if manner.is_prompt() {
                let latency = now.saturating_sub(Duration::from_nanos(piece.sent_nanoseconds));
                recording.latency.borrow_mut().latency.saturating_record(latency.as_nanos() as u64);
            }
        };
        verifier.feed(bytes, take).map_err(Error::Malformed)?;
        if manner == Manner::Slow && std::mem::take(&mut is_first) {
            sleep(PAUSE).await;
        }
    }
    let (start, end) = (verifier.start().unwrap_or_default(), verifier.position());
    if !recording.sealed.get() {
        return Err(Error::Malformed(format!("it saw an end at {end}, before the writer had sealed")));
    }
    if end != LENGTH {
        return Err(Error::Malformed(format!("it saw the end at {end}, and the writer sealed at {LENGTH}")));
    }
    if manner == Manner::LiveEdge && start == 0 {
        return Err(Error::Malformed("it asked for the live edge, and got everything".to_owned()));
    }
    Ok(Followed { pieces: count, start, end })
}

/// Reads the middle of the sealed object, from within one piece to within another.
async fn read_range(client: &Client, object: &Location) -> client::Result<()> {
    let (first, last) = (LENGTH / 2 - 1_000, LENGTH / 2 + PIECE_BYTES as u64 + 1_000);
    let request = Request::new("GET", object.target()).field("Range", format!("bytes={first}-{last}"));
    let response = client.request(&request).await?.accepted().await?;
    let (status, range) = (response.status(), response.head.field("content-range").map(str::to_owned));
    let mut verifier = Verifier::from_anywhere(pieces());
    verifier.feed(&response.bytes().await?, |_| ()).map_err(Error::Malformed)?;
    let expected = format!("bytes {first}-{last}/{LENGTH}");
    let is_right = status == 206
        && range.as_deref() == Some(&expected)
        && (verifier.start(), verifier.position()) == (Some(first), last + 1);
    if !is_right {
        return Err(Error::Malformed(format!(
            "bytes {first} to {last} were asked for; it answered {status} with {range:?}, bytes {:?} to {}",
            verifier.start(),
            verifier.position()
        )));
    }
    say!("A range of it, bytes {first} to {last}, is what it should be (206).");
    Ok(())
}

/// Reads the whole object from a server that was started after it was written.
async fn verify_again(object: Location) -> client::Result<()> {
    let client = Client::new(&object, Limits::default())?;
    let mut response = client.request(&Request::new("GET", object.target())).await?.accepted().await?;
    let state = response.head.field("tailwater-state").map(str::to_owned);
    let mut verifier = Verifier::from_start(pieces());
    while let Some(bytes) = response.chunk().await? {
        verifier.feed(bytes, |_| ()).map_err(Error::Malformed)?;
    }
    if verifier.position() != LENGTH || state.as_deref() != Some("sealed") {
        return Err(Error::Malformed(format!(
            "after the restart the object is {state:?} and has {} bytes of {LENGTH}",
            verifier.position()
        )));
    }
    say!("The object is there: all {LENGTH} bytes are what was sent, and it is sealed.");
    Ok(())
}

fn pieces() -> Pieces {
    Pieces::new(8_420, 1, PIECE_BYTES)
}
