//! The workloads put and get: whole objects, uploaded and downloaded on a schedule.
//!
//! Requests are due one after the other, whatever the server does; whichever connection is free takes the next one
//! that is due. If none is free it waits, and its latency with it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use crate::client::{self, Error, Request, sleep_until, spawn};

use super::content::Content;
use super::measure::Measurements;
use super::streams::Stored;
use super::{GRACE, Thread, Workload, due_at, is_mismatch, since};

/// From the moment an upload was due to the answer that it is stored.
const OBJECTS_PUT: &str = "objects put";
/// From the moment a download was due to its last byte, verified.
const OBJECTS_GOT: &str = "objects got";
/// From a request to its last byte, verified.
const READ_BACK: &str = "objects read back";

/// What the lanes of one phase share.
struct Job {
    thread: Thread,
    measurements: RefCell<Measurements>,
}

impl Job {
    fn new(thread: Thread) -> Rc<Job> {
        Rc::new(Job { thread, measurements: RefCell::default() })
    }

    /// Runs `task` for each of this thread's numbers below `count`, in their order, `width` at a time in the whole
    /// run, and gives what was measured.
    async fn each<F>(
        self: &Rc<Job>,
        count: u64,
        width: u64,
        task: impl Fn(Rc<Job>, u64) -> F + Clone + 'static,
    ) -> Measurements
    where
        F: Future<Output = ()> + 'static,
    {
        let numbers = Rc::new(RefCell::new(self.thread.share(count)));
        let lanes: Vec<_> = (0..self.thread.width(width))
            .map(|_| {
                let (job, numbers, task) = (Rc::clone(self), Rc::clone(&numbers), task.clone());
                spawn(async move {
                    loop {
                        let Some(number) = numbers.borrow_mut().next() else { break };
                        task(Rc::clone(&job), number).await;
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
        self.measurements.take()
    }
}

/// Runs this thread's part of the schedule.
pub(super) async fn run(thread: Thread, start: Instant) -> client::Result<Measurements> {
    let (due, connections) = (thread.plan().due(), thread.plan().connections);
    let job = Job::new(thread);
    Ok(job.each(due, connections, move |job, number| async move { run_one(&job, start, number).await }).await)
}

async fn run_one(job: &Job, start: Instant, number: u64) {
    let plan = job.thread.plan();
    let gets = plan.workload == Workload::Get;
    let series = if gets { OBJECTS_GOT } else { OBJECTS_PUT };
    let due = due_at(start, plan.rate_per_second, number as f64);
    if Instant::now() > start + plan.duration + GRACE {
        job.measurements.borrow_mut().missed(series, since(due));
        return;
    }
    sleep_until(due).await;
    let done = if gets {
        // In an order that no cache can guess.
        get(&job.thread, number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % plan.objects).await
    } else {
        put(&job.thread, number).await
    };
    let mut measurements = job.measurements.borrow_mut();
    match done {
        Ok(()) => {
            measurements.record(series, since(due), plan.size_bytes);
            measurements.verified_bytes += if gets { plan.size_bytes } else { 0 };
        }
        Err(error) => note(&mut measurements, &error),
    }
}

/// Uploads what is to be read.
///
/// # Errors
/// The first one: there would be nothing to measure.
pub(super) async fn upload_set(thread: Thread) -> client::Result<Measurements> {
    let (objects, connections) = (thread.plan().objects, thread.plan().connections);
    let failed = Rc::new(RefCell::new(None));
    let failure = Rc::clone(&failed);
    let upload = move |job: Rc<Job>, number| {
        let failure = Rc::clone(&failure);
        async move {
            if failure.borrow().is_none()
                && let Err(error) = put(&job.thread, number).await
            {
                failure.borrow_mut().get_or_insert(error);
            }
        }
    };
    let measurements = Job::new(thread).each(objects, connections, upload).await;
    match failed.take() {
        Some(error) => Err(error),
        None => Ok(measurements),
    }
}

/// Reads what was uploaded, and verifies it, for about as long as the uploads took.
pub(super) async fn read_back(thread: Thread) -> client::Result<Measurements> {
    let (due, connections) = (thread.plan().due(), thread.plan().connections);
    let give_up = Instant::now() + thread.plan().duration + GRACE;
    let read = move |job: Rc<Job>, number| async move {
        let started = Instant::now();
        if started > give_up || job.thread.stored(number).is_none() {
            return;
        }
        let read = get(&job.thread, number).await;
        let (mut measurements, size_bytes) = (job.measurements.borrow_mut(), job.thread.plan().size_bytes);
        match read {
            Ok(()) => {
                measurements.record(READ_BACK, started.elapsed(), size_bytes);
                measurements.verified_bytes += size_bytes;
            }
            Err(error) if error.status() == Some(404) => {
                measurements.mismatch(format!("object {number} was stored, and is not there"));
            }
            Err(error) => note(&mut measurements, &error),
        }
    };
    Ok(Job::new(thread).each(due, connections, read).await)
}

/// Removes what the run made.
pub(super) async fn remove_all(thread: Thread) -> client::Result<Measurements> {
    let plan = thread.plan();
    let (count, width) = match plan.workload {
        Workload::Ingest | Workload::Follow => (plan.streams, 8),
        Workload::Put => (plan.due(), plan.connections),
        Workload::Get => (plan.objects, plan.connections),
    };
    let remove = |job: Rc<Job>, number| async move {
        if let Err(error) = remove(&job.thread, number).await {
            job.measurements.borrow_mut().failed(format!("removing object {number}: {error}"));
        }
    };
    Ok(Job::new(thread).each(count, width, remove).await)
}

async fn put(thread: &Thread, number: u64) -> client::Result<()> {
    let mut body = vec![0; usize::try_from(thread.plan().size_bytes).unwrap_or(usize::MAX)];
    Content::new(thread.plan().seed, number).fill(0, &mut body);
    let request = Request::new("PUT", thread.target(number)).body(body);
    let stored: Stored = thread.client.request(&request).await?.accepted().await?.json().await?;
    if stored.length != thread.plan().size_bytes {
        return Err(Error::Malformed(format!(
            "object {number}: the server says that it has {} bytes",
            stored.length
        )));
    }
    thread.note_stored(number, stored.length);
    Ok(())
}

async fn get(thread: &Thread, number: u64) -> client::Result<()> {
    let content = Content::new(thread.plan().seed, number);
    let mut response =
        thread.client.request(&Request::new("GET", thread.target(number))).await?.accepted().await?;
    let mut offset = 0;
    while let Some(bytes) = response.chunk().await? {
        if let Some(wrong) = content.first_difference(offset, bytes) {
            return Err(Error::Malformed(format!("object {number}: the byte at offset {wrong} is wrong")));
        }
        offset += bytes.len() as u64;
    }
    if offset != thread.plan().size_bytes {
        return Err(Error::Malformed(format!("object {number}: it ends at {offset}")));
    }
    Ok(())
}

async fn remove(thread: &Thread, number: u64) -> client::Result<()> {
    let response = thread.client.request(&Request::new("DELETE", thread.target(number))).await?;
    match response.status() {
        // What was never made, or was interrupted, need not be there.
        404 => response.bytes().await.map(drop),
        _ => response.accepted().await?.bytes().await.map(drop),
    }
}

fn note(measurements: &mut Measurements, error: &Error) {
    if is_mismatch(error) {
        measurements.mismatch(error.to_string());
    } else {
        measurements.failed(error.to_string());
    }
}
