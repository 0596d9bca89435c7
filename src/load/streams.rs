//! The workloads ingest and follow: live streams, appended to piece by piece on a schedule, and their followers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::client::{self, Error, Length, Request, sleep_until, spawn};

use super::content::{Pieces, Verifier};
use super::measure::Measurements;
use super::{GRACE, PATIENCE, Thread, Workload, due_at, is_mismatch, since};

/// From the moment a piece was due to the moment the kernel had all of it.
const PIECES_SENT: &str = "pieces sent";
/// From the moment a piece was due to the moment a follower had all of it.
const PIECES_RECEIVED: &str = "pieces received";
/// From the last piece, sent, to the answer that everything is stored.
const SEALED: &str = "streams sealed";
/// From the end of a stream to its last byte read back.
const READ_BACK: &str = "streams read back";

/// What the tasks of one stream share.
struct Stream {
    thread: Thread,
    number: u64,
    start: Instant,
    /// How many bytes were sealed; none if the stream failed.
    sealed_bytes: Cell<Option<u64>>,
    measurements: Rc<RefCell<Measurements>>,
}

/// Runs this thread's streams, and their followers, to the end.
pub(super) async fn run(thread: Thread, start: Instant) -> client::Result<Measurements> {
    let measurements = Rc::new(RefCell::new(Measurements::default()));
    let mut tasks = Vec::new();
    for number in thread.share(thread.plan().streams) {
        tasks.push(spawn(run_stream(Rc::new(Stream {
            thread: thread.clone(),
            number,
            start,
            sealed_bytes: Cell::new(None),
            measurements: Rc::clone(&measurements),
        }))));
    }
    for task in tasks {
        task.await;
    }
    Ok(measurements.take())
}

/// Reads back those of this thread's streams that the server has sealed, and verifies them.
pub(super) async fn read_back(thread: Thread) -> client::Result<Measurements> {
    let mut measurements = Measurements::default();
    for number in thread.share(thread.plan().streams) {
        let Some(sealed) = thread.stored(number) else { continue };
        let mut verifier = Verifier::from_start(pieces(&thread, number));
        let started = Instant::now();
        match read_whole(&thread, number, &mut verifier).await {
            Ok(()) if verifier.position() != sealed => measurements.mismatch(format!(
                "stream {number}: {sealed} bytes were sealed, and {} read back",
                verifier.position()
            )),
            Ok(()) => measurements.record(READ_BACK, started.elapsed(), verifier.verified()),
            Err(error) if is_mismatch(&error) || error.status() == Some(404) => {
                measurements.mismatch(format!("reading back stream {number}: {error}"));
            }
            Err(error) => measurements.failed(format!("reading back stream {number}: {error}")),
        }
        measurements.verified_bytes += verifier.verified();
    }
    Ok(measurements)
}

async fn read_whole(thread: &Thread, number: u64, verifier: &mut Verifier) -> client::Result<()> {
    let mut response =
        thread.client.request(&Request::new("GET", thread.target(number))).await?.accepted().await?;
    while let Some(bytes) = response.chunk().await? {
        verifier.feed(bytes, |_| ()).map_err(Error::Malformed)?;
    }
    Ok(())
}

async fn run_stream(stream: Rc<Stream>) {
    let followers = RefCell::new(Vec::new());
    let written = write(&stream, || {
        for _ in 0..stream.thread.plan().followers {
            followers.borrow_mut().push(spawn(follow(Rc::clone(&stream))));
        }
    });
    match written.await {
        Ok(bytes) => {
            stream.sealed_bytes.set(Some(bytes));
            stream.thread.note_stored(stream.number, bytes);
        }
        Err(error) => stream.measurements.borrow_mut().failed(format!("stream {}: {error}", stream.number)),
    }
    for follower in followers.take() {
        let ended_at = follower.await;
        let (sealed, mut measurements) = (stream.sealed_bytes.get(), stream.measurements.borrow_mut());
        match (ended_at, sealed) {
            (Some(end), Some(sealed)) if end != sealed => measurements
                .mismatch(format!("stream {}: it ended at {sealed}, for a follower at {end}", stream.number)),
            (Some(end), None) => measurements.mismatch(format!(
                "stream {}: it was never sealed, and a follower saw its end at {end}",
                stream.number
            )),
            _ => {}
        }
    }
}

/// Writes the stream on its schedule, and seals it; `on_open` is called once it can be followed. Gives its length.
async fn write(stream: &Stream, on_open: impl FnOnce()) -> client::Result<u64> {
    let plan = stream.thread.plan();
    let pieces = pieces(&stream.thread, stream.number);
    let request = Request::new("PUT", stream.thread.target(stream.number));
    let mut upload = stream.thread.client.upload(request, Length::Unknown, true).await?;
    if plan.workload == Workload::Follow {
        on_open();
    }
    // The streams take turns, so that they do not all send at once.
    let turn = stream.number as f64 / plan.streams as f64;
    let give_up = stream.start + plan.duration + GRACE;
    let mut piece = Vec::new();
    for sequence in 0..plan.due() {
        let due = due_at(stream.start, plan.rate_per_second, sequence as f64 + turn);
        if Instant::now() > give_up {
            stream.measurements.borrow_mut().missed(PIECES_SENT, since(due));
            continue;
        }
        sleep_until(due).await;
        let due_nanoseconds = due.duration_since(stream.start).as_nanos();
        pieces.make(sequence, u64::try_from(due_nanoseconds).unwrap_or(u64::MAX), &mut piece);
        upload.send(&piece).await?;
        stream.measurements.borrow_mut().record(PIECES_SENT, since(due), piece.len() as u64);
    }
    let (ending, sent) = (Instant::now(), upload.sent());
    let response = upload.finish().await?.accepted().await?;
    let answer: Stored = response.json().await?;
    let mut measurements = stream.measurements.borrow_mut();
    measurements.record(SEALED, since(ending), sent);
    if answer.length != sent {
        measurements
            .mismatch(format!("{sent} bytes were sent, and the server says that it has {}", answer.length));
    }
    Ok(sent)
}

/// What the server says of an object that it stored.
#[derive(serde::Deserialize)]
pub(super) struct Stored {
    pub(super) length: u64,
}

/// Follows the stream to its end, verifying every byte: the offset of the end, if there was a clean one.
async fn follow(stream: Rc<Stream>) -> Option<u64> {
    let mut verifier = Verifier::from_start(pieces(&stream.thread, stream.number));
    let followed = follow_with(&stream, &mut verifier).await;
    let mut measurements = stream.measurements.borrow_mut();
    measurements.verified_bytes += verifier.verified();
    match followed {
        Ok(()) => Some(verifier.position()),
        Err(error) => {
            let what = format!("a follower of stream {}: {error}", stream.number);
            if is_mismatch(&error) {
                measurements.mismatch(what)
            } else {
                measurements.failed(what)
            }
            None
        }
    }
}

async fn follow_with(stream: &Stream, verifier: &mut Verifier) -> client::Result<()> {
    let plan = stream.thread.plan();
    let wait = PATIENCE.as_secs().to_string();
    let target = stream.thread.location(stream.number).target_with(&[("wait", &wait)]);
    // A stream of few pieces is silent for long.
    let interval = Duration::from_secs_f64(1.0 / plan.rate_per_second);
    let mut limits = stream.thread.client.limits();
    limits.idle = Some(PATIENCE + interval);
    let client = stream.thread.client.with_limits(limits);
    let mut response = client.request(&Request::new("GET", target)).await?.accepted().await?;
    while let Some(bytes) = response.chunk().await? {
        let now = stream.start.elapsed();
        verifier
            .feed(bytes, |piece| {
                let latency = now.saturating_sub(Duration::from_nanos(piece.sent_nanoseconds));
                stream.measurements.borrow_mut().record(PIECES_RECEIVED, latency, plan.piece_bytes as u64);
            })
            .map_err(Error::Malformed)?;
    }
    Ok(())
}

fn pieces(thread: &Thread, number: u64) -> Pieces {
    Pieces::new(thread.plan().seed, number, thread.plan().piece_bytes)
}
