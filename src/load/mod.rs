//! The load tester: an open-loop client of any tailwater, on tokio-uring.
//!
//! What is true of its figures:
//!
//! - Load comes when the schedule says, not when the server is ready for it. A latency counts from the moment at
//!   which a piece or a request was due: a server that stalls is charged for everything that waited meanwhile
//!   (otherwise the worst moments are the ones that nobody measures).
//! - What was due and never begun is counted, with the time it had waited.
//! - Every byte that is read is compared with what it should be, and a follower has to see the real end.
//! - A run ends: nothing begins later than [`GRACE`] after its time, and every wait has a limit.

pub mod content;
pub mod measure;
mod objects;
pub mod report;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{self, Client, Error, Limits, Location, Request};
use content::HEADER_BYTES;
use measure::Measurements;
use report::Report;

/// How long after its time a run may still begin what was due.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long the threads have to start before the first piece is due.
const LEAD: Duration = Duration::from_millis(50);
/// How long the tester waits for the next sign of life of anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Live streams, each appended to piece by piece; read back and verified when they are sealed.
    Ingest,
    /// The same with followers on each, which verify every byte while it is written.
    Follow,
    /// Uploads of whole objects; read back and verified afterwards.
    Put,
    /// Downloads of whole objects that the run uploaded before, each verified.
    Get,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Workload::Ingest => "ingest",
            Workload::Follow => "follow",
            Workload::Put => "put",
            Workload::Get => "get",
        }
    }

    fn is_live(self) -> bool {
        matches!(self, Workload::Ingest | Workload::Follow)
    }
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is done.
    pub workload: Workload,
    /// The server; bucket and key are not used.
    pub target: Location,
    /// The bucket to work in. The run's objects have a prefix of their own in it.
    pub bucket: String,
    /// For how long load is due.
    pub duration: Duration,
    /// How often something is due: pieces a second on each stream, or requests a second in all.
    pub rate_per_second: f64,
    /// The live streams (ingest, follow).
    pub streams: u64,
    /// The followers of each stream (follow).
    pub followers: u64,
    /// The size of a piece (ingest, follow), in bytes.
    pub piece_bytes: usize,
    /// The most requests at a time (put, get).
    pub connections: u64,
    /// The size of an object (put, get), in bytes.
    pub size_bytes: u64,
    /// How many objects are read (get).
    pub objects: u64,
    /// How many threads, each with a ring of its own.
    pub threads: u64,
    /// What the content is made from.
    pub seed: u64,
    /// Leaves the objects on the server.
    pub keep: bool,
}

impl Plan {
    /// Checks that it can be run.
    ///
    /// # Errors
    /// One sentence with what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let positive = |name: &str, value: u64| match value {
            0 => Err(format!("{name} has to be at least 1")),
            _ => Ok(()),
        };
        positive("--threads", self.threads)?;
        if !(self.rate_per_second.is_finite() && self.rate_per_second > 0.0) {
            return Err("--rate has to be more than 0".to_owned());
        }
        if self.duration.is_zero() {
            return Err("--seconds has to be more than 0".to_owned());
        }
        if self.workload.is_live() {
            positive("--streams", self.streams)?;
            if self.piece_bytes <= HEADER_BYTES {
                return Err(format!(
                    "--piece-bytes has to be more than {HEADER_BYTES}, the size of its header"
                ));
            }
        } else {
            positive("--connections", self.connections)?;
        }
        if self.workload == Workload::Get {
            positive("--objects", self.objects)?;
        }
        if self.workload == Workload::Follow {
            positive("--followers", self.followers)?;
        }
        Ok(())
    }

    /// How much is due in the whole run: on each stream, or in all.
    fn due(&self) -> u64 {
        (self.duration.as_secs_f64() * self.rate_per_second).ceil().max(1.0) as u64
    }

    fn title(&self) -> String {
        let (rate, seconds) = (self.rate_per_second, self.duration.as_secs_f64());
        let what = match self.workload {
            Workload::Ingest => {
                format!("{} streams, each {rate} pieces/s of {} bytes", self.streams, self.piece_bytes)
            }
            Workload::Follow => format!(
                "{} streams with {} followers each, {rate} pieces/s of {} bytes",
                self.streams, self.followers, self.piece_bytes
            ),
            Workload::Put => {
                format!("{rate} uploads/s of {} bytes on {} connections", self.size_bytes, self.connections)
            }
            Workload::Get => format!(
                "{rate} downloads/s of {} bytes on {} connections, out of {} objects",
                self.size_bytes, self.connections, self.objects
            ),
        };
        let (name, threads) = (self.workload.name(), self.threads);
        format!("{name}: {what}, {seconds} s on {threads} threads, http://{}", self.target.authority())
    }

    fn settings(&self) -> serde_json::Value {
        json!({
            "workload": self.workload.name(),
            "target": format!("http://{}", self.target.authority()),
            "seconds": self.duration.as_secs_f64(),
            "rate_per_second": self.rate_per_second,
            "streams": self.streams,
            "followers": self.followers,
            "piece_bytes": self.piece_bytes,
            "connections": self.connections,
            "size_bytes": self.size_bytes,
            "objects": self.objects,
            "threads": self.threads,
            "seed": self.seed,
        })
    }
}

/// Runs a plan, on threads of its own, and removes what it made (unless it is to be kept), whatever came out.
///
/// # Errors
/// If there was nothing to measure: no io_uring, no server, or the objects to be read could not be uploaded. What
/// goes wrong afterwards is in the report.
pub fn run(plan: Plan) -> client::Result<Report> {
    Run::new(plan).run()
}

/// A prefix that no other run uses.
fn run_prefix() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("load-{:x}-{:x}", now.as_millis(), std::process::id())
}

/// One run of a plan.
struct Run {
    plan: Plan,
    prefix: String,
    /// The objects that the server said it has stored, by number, with their lengths in bytes. They have to be there.
    stored: Mutex<BTreeMap<u64, u64>>,
}

/// One of a run's threads, in one of its phases.
#[derive(Clone)]
struct Thread {
    run: Arc<Run>,
    index: u64,
    client: Client,
}

impl Run {
    fn new(plan: Plan) -> Arc<Run> {
        Arc::new(Run { prefix: run_prefix(), plan, stored: Mutex::default() })
    }

    fn run(self: &Arc<Run>) -> client::Result<Report> {
        self.on_threads(|thread| async move { thread.reach().await })?;
        let measured = self.measure();
        let removed = if self.plan.keep { Ok(Measurements::default()) } else { self.remove() };
        let mut report = measured?;
        report.measurements.merge(removed?);
        Ok(report)
    }

    fn measure(self: &Arc<Run>) -> client::Result<Report> {
        if self.plan.workload == Workload::Get {
            self.on_threads(objects::upload_set)?;
        }
        let start = Instant::now() + LEAD;
        let mut measurements = match self.plan.workload {
            Workload::Ingest | Workload::Follow => self.on_threads(|thread| streams::run(thread, start))?,
            Workload::Put | Workload::Get => self.on_threads(|thread| objects::run(thread, start))?,
        };
        measurements.end_phase(start.elapsed());
        let reading = Instant::now();
        let mut read_back = match self.plan.workload {
            Workload::Ingest => self.on_threads(streams::read_back)?,
            Workload::Put => self.on_threads(objects::read_back)?,
            Workload::Follow | Workload::Get => Measurements::default(),
        };
        read_back.end_phase(reading.elapsed());
        measurements.merge(read_back);
        Ok(Report { title: self.plan.title(), settings: self.plan.settings(), measurements })
    }

    fn remove(self: &Arc<Run>) -> client::Result<Measurements> {
        self.on_threads(objects::remove_all)
    }

    /// Runs one phase on all threads, and merges what they measured.
    fn on_threads<F>(self: &Arc<Run>, phase: impl Fn(Thread) -> F + Sync) -> client::Result<Measurements>
    where
        F: Future<Output = client::Result<Measurements>>,
    {
        let one = |index| {
            client::run(self.operations_max(), async {
                let limits =
                    Limits { connect: PATIENCE, send: PATIENCE, answer: PATIENCE, idle: Some(PATIENCE) };
                let client = Client::new(&self.plan.target, limits)?;
                phase(Thread { run: Arc::clone(self), index, client }).await
            })?
        };
        let results: Vec<client::Result<Measurements>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.plan.threads).map(|index| scope.spawn(move || one(index))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        });
        let mut sum = Measurements::default();
        for result in results {
            sum.merge(result?);
        }
        Ok(sum)
    }

    /// How many operations a thread may have in flight: a read and a write for each of its connections.
    fn operations_max(&self) -> usize {
        let connections = match self.plan.workload {
            Workload::Ingest | Workload::Follow => self.plan.streams * (1 + self.plan.followers),
            Workload::Put | Workload::Get => self.plan.connections,
        };
        usize::try_from(2 * connections.div_ceil(self.plan.threads) + 64).unwrap_or(usize::MAX)
    }
}

impl Thread {
    fn plan(&self) -> &Plan {
        &self.run.plan
    }

    /// The numbers of the things that this thread does, of `count` things in all.
    fn share(&self, count: u64) -> impl Iterator<Item = u64> + use<> {
        (self.index..count).step_by(self.run.plan.threads as usize)
    }

    /// How many things this thread does at a time, of `count` in all; at least one.
    fn width(&self, count: u64) -> u64 {
        (self.share(count).count() as u64).max(1)
    }

    /// The target of an object of this run.
    fn target(&self, number: u64) -> String {
        self.location(number).target()
    }

    fn location(&self, number: u64) -> Location {
        self.plan().target.object(&self.plan().bucket, &format!("{}/{number:08}", self.run.prefix))
    }

    /// Notes that the server said it has stored this object.
    fn note_stored(&self, number: u64, length: u64) {
        self.run.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(number, length);
    }

    /// The length of an object, in bytes, if the server said that it has stored it.
    fn stored(&self, number: u64) -> Option<u64> {
        self.run.stored.lock().unwrap_or_else(PoisonError::into_inner).get(&number).copied()
    }

    /// Finds out whether there is a server at all.
    async fn reach(&self) -> client::Result<Measurements> {
        if self.index == 0 {
            self.client.request(&Request::new("HEAD", self.target(0))).await?;
        }
        Ok(Measurements::default())
    }
}

/// When what has this number is due, at a rate.
fn due_at(start: Instant, rate_per_second: f64, number: f64) -> Instant {
    start + Duration::from_secs_f64(number / rate_per_second)
}

/// How long ago that was; nothing if it is still to come.
fn since(moment: Instant) -> Duration {
    Instant::now().saturating_duration_since(moment)
}

/// Whether an error tells of what arrived, and not of a connection or a refusal.
fn is_mismatch(error: &Error) -> bool {
    matches!(error, Error::Malformed(_))
}
