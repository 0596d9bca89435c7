//! What the engine counts and measures, kept per core and merged when somebody looks.
//!
//! Each core owns one [`CoreMetrics`] and records without a lock, an atomic or an allocation. A scrape asks every
//! core for a [`Snapshot`], merges them, and [`render`]s the sum in the Prometheus text format, version 0.0.4.
//! One table makes the fields, the snapshot, the merging and the rendering: a new metric is one row.
//!
//! Counters and sums run from the start of the process. The quantiles of a latency are those of the last one to
//! two minutes of scrapes, because quantiles since the start would no longer move after a day; they are within
//! 1 % of the exact value, from 1 us to 60 s.
//!
//! The text is written here and not by a crate: `prometheus-client` has no summaries, and writes OpenMetrics,
//! where what reads 0.0.4 does not find the types of counters. No label value comes from a user, so that none
//! needs escaping.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::marker::PhantomData;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

/// The media type of what [`render`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The shortest and the longest latency that is told apart from its neighbours.
const LATENCY_NANOSECONDS_MIN: u64 = 1_000;
const LATENCY_NANOSECONDS_MAX: u64 = 60_000_000_000;
/// Two digits keep a histogram at 20 KiB, which fits the caches of a core.
const LATENCY_SIGNIFICANT_DIGITS: u8 = 2;
/// How long a latency is in the current histogram before that becomes the previous one.
const LATENCY_WINDOW: Duration = Duration::from_secs(60);
/// The quantiles that are shown; 1 is the largest.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];

/// The smallest upper bound of the block size distribution; each further one is twice the one before.
const BLOCK_BYTES_FIRST_BOUND: u64 = 4096;
const BLOCK_BYTES_BOUNDS: usize = 9;

/// Makes [`CoreMetrics`], [`Snapshot`] and what goes through all of them from one row a metric: its help, which
/// is also the documentation of its field, the field, what it is, and its name when it is scraped.
macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $kind:ty = $name:literal;)+) => {
        /// What one core counts and measures. For one thread: it stays with its core.
        #[derive(Default)]
        pub struct CoreMetrics {
            $(#[doc = $help] pub $field: $kind,)+
        }

        /// The state of one core's metrics at one moment, or the sum of several.
        #[derive(Clone)]
        pub struct Snapshot {
            cores: u64,
            $($field: <$kind as Metric>::Reading,)+
        }

        impl CoreMetrics {
            fn snapshot_at(&self, now: Instant) -> Snapshot {
                Snapshot { cores: 1, $($field: self.$field.read(now),)+ }
            }
        }

        impl Snapshot {
            /// Adds what another core has counted and measured.
            pub fn merge(&mut self, other: &Snapshot) {
                self.cores += other.cores;
                $(self.$field.merge(&other.$field);)+
            }

            fn expose(&self, text: &mut String) {
                $(expose_family(text, $name, $help.trim(), &self.$field);)+
            }
        }
    };
}

metrics! {
    /// Requests answered, by method and status code.
    requests: Requests = "tailwater_requests_total";
    /// Connections open on the data listener.
    connections_open: Gauge = "tailwater_connections_open";
    /// Connections accepted.
    connections_accepted: Counter = "tailwater_connections_accepted_total";
    /// Connections refused because of a limit.
    connections_refused: Counter = "tailwater_connections_refused_total";
    /// Clients that were cut because they were too slow, by what they were too slow with.
    stalls: By<Stall, Counter> = "tailwater_stalls_total";
    /// Bytes of objects received from writers.
    bytes_received: Counter = "tailwater_received_bytes_total";
    /// Bytes of objects sent to readers, by where they were taken from.
    bytes_sent: By<Source, Counter> = "tailwater_sent_bytes_total";
    /// Appends acknowledged to writers.
    appends: Counter = "tailwater_appends_total";
    /// Records written to the log, of appends and of namespace operations.
    records: Counter = "tailwater_records_total";
    /// Objects being written.
    objects_live: Gauge = "tailwater_objects_live";
    /// Objects sealed by their writers.
    objects_sealed: Counter = "tailwater_objects_sealed_total";
    /// Objects whose writer went away without sealing.
    objects_interrupted: Counter = "tailwater_objects_interrupted_total";
    /// Objects deleted.
    objects_deleted: Counter = "tailwater_objects_deleted_total";
    /// Writers that are gone and may still come back: their objects are live, and followers wait.
    writers_awaited: Gauge = "tailwater_writers_awaited";
    /// Writers that went on with an object that another one had left.
    writers_resumed: Counter = "tailwater_writers_resumed_total";
    /// Writers that were awaited and did not come back in time.
    writers_given_up: Counter = "tailwater_writers_given_up_total";
    /// Readers that follow a live object, those that wait for more of it included.
    followers: Gauge = "tailwater_followers";
    /// Followers that have everything up to the watermark and wait for more.
    followers_waiting: Gauge = "tailwater_followers_waiting";
    /// Blocks being written to the log.
    blocks_in_flight: Gauge = "tailwater_blocks_in_flight";
    /// Bytes of the blocks being written to the log.
    block_bytes_in_flight: Gauge = "tailwater_blocks_in_flight_bytes";
    /// Pieces of the arena that the log has let go of and blocks in flight or readers still hold.
    arena_pieces_lent: Gauge = "tailwater_arena_pieces_lent";
    /// Sizes of the blocks written to the log: their count is of writes, their sum of all bytes written.
    block_sizes: Sizes = "tailwater_block_size_bytes";
    /// Writes to the log that failed.
    block_write_failures: Counter = "tailwater_block_write_failures_total";
    /// Segments that were taken out of use because a write to them failed.
    segments_retired: Counter = "tailwater_segments_retired_total";
    /// Logs that can no longer be written, one for each core: the store is read-only.
    logs_failed: Gauge = "tailwater_logs_failed";
    /// The catalog cannot be written now: 1. What is acknowledged is durable, and no room is won back meanwhile.
    catalog_failing: Gauge = "tailwater_catalog_failing";
    /// Segments by state.
    segments: By<SegmentState, Gauge> = "tailwater_segments";
    /// Turns of the cores' loops.
    loop_turns: Counter = "tailwater_loop_turns_total";
    /// Unfinished tus uploads that were deleted because nobody has gone on with them.
    uploads_expired: Counter = "tailwater_uploads_expired_total";
    /// Objects that retention has deleted.
    objects_expired: Counter = "tailwater_objects_expired_total";
    /// Segments that were copied out because room was short.
    segments_copied: Counter = "tailwater_segments_copied_total";
    /// Bytes of deleted objects given back to the file system.
    punched_bytes: Counter = "tailwater_punched_bytes_total";
    /// Messages from core to core.
    core_messages: Counter = "tailwater_core_messages_total";
    /// Messages from core to core that say that an object has grown.
    wake_messages: Counter = "tailwater_wake_messages_total";
    /// From the submission of a block's write to its completion.
    block_write: Latency = "tailwater_block_write_seconds";
    /// From the arrival of an append to its acknowledgement.
    append_to_acknowledged: Latency = "tailwater_append_acknowledged_seconds";
    /// From the arrival of an append to its first byte going to the first follower.
    append_to_first_send: Latency = "tailwater_append_first_send_seconds";
}

impl CoreMetrics {
    /// Metrics with nothing recorded.
    pub fn new() -> CoreMetrics {
        CoreMetrics::default()
    }

    /// The state at this moment.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(Instant::now())
    }
}

/// Writes a snapshot, usually the sum over all cores, in the Prometheus text format; with the version of this
/// build, the number of cores and when the process started.
pub fn render(snapshot: &Snapshot, started: SystemTime) -> String {
    let mut text = String::with_capacity(16 << 10);
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    header(&mut text, "tailwater_build_info", "The version that runs, as a label.", "gauge");
    sample(&mut text, "tailwater_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    header(&mut text, "tailwater_start_time_seconds", "When the process started, since 1970.", "gauge");
    sample(&mut text, "tailwater_start_time_seconds", &[], started);
    header(&mut text, "tailwater_cores", "Cores that run, one thread each.", "gauge");
    sample(&mut text, "tailwater_cores", &[], snapshot.cores);
    snapshot.expose(&mut text);
    text
}

/// A number that only grows.
#[derive(Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.set(self.0.get().wrapping_add(amount));
    }

    /// What was counted so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A number that goes up and down. Cores may share the two halves of a change: only their sum is shown.
#[derive(Default)]
pub struct Gauge(Cell<i64>);

impl Gauge {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn decrement(&self) {
        self.add(-1);
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.0.set(self.0.get().wrapping_add(amount));
    }

    /// Replaces the number.
    pub fn set(&self, number: i64) {
        self.0.set(number);
    }

    /// The number as it stands.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// How long something takes.
pub struct Latency {
    windows: RefCell<Windows>,
    count: Cell<u64>,
    sum_nanoseconds: Cell<u64>,
}

struct Windows {
    current: Histogram<u64>,
    previous: Histogram<u64>,
    current_since: Instant,
}

impl Latency {
    /// Records that it took `elapsed`.
    pub fn record(&self, elapsed: Duration) {
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.windows.borrow_mut().current.saturating_record(nanoseconds);
        self.count.set(self.count.get() + 1);
        self.sum_nanoseconds.set(self.sum_nanoseconds.get().saturating_add(nanoseconds));
    }
}

impl Default for Latency {
    fn default() -> Latency {
        let (current, previous, current_since) = (latency_histogram(), latency_histogram(), Instant::now());
        Latency {
            windows: RefCell::new(Windows { current, previous, current_since }),
            count: Cell::default(),
            sum_nanoseconds: Cell::default(),
        }
    }
}

impl Windows {
    /// Everything in the two windows, after moving on to a new one if the current one is old enough.
    fn recent(&mut self, now: Instant) -> Histogram<u64> {
        let mut recent = self.current.clone();
        recent.add(&self.previous).expect("histograms with the same bounds can be added");
        if now.duration_since(self.current_since) >= LATENCY_WINDOW {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
            self.current_since = now;
        }
        recent
    }
}

fn latency_histogram() -> Histogram<u64> {
    let (low, high) = (LATENCY_NANOSECONDS_MIN, LATENCY_NANOSECONDS_MAX);
    Histogram::new_with_bounds(low, high, LATENCY_SIGNIFICANT_DIGITS).expect("the bounds are in order")
}

/// How many bytes blocks have.
#[derive(Default)]
pub struct Sizes {
    /// One count for each bound, not cumulative, and one for what is larger than all of them.
    counts: [Cell<u64>; BLOCK_BYTES_BOUNDS + 1],
    sum: Cell<u64>,
}

impl Sizes {
    /// Records a block of `bytes`.
    pub fn record(&self, bytes: u64) {
        let doublings = bytes.div_ceil(BLOCK_BYTES_FIRST_BOUND).max(1).next_power_of_two().trailing_zeros();
        let count = &self.counts[(doublings as usize).min(BLOCK_BYTES_BOUNDS)];
        count.set(count.get() + 1);
        self.sum.set(self.sum.get().wrapping_add(bytes));
    }
}

/// One metric for each value of a label.
pub struct By<L, M> {
    each: Box<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    /// The metric of one value of the label.
    pub fn of(&self, value: L) -> &M {
        &self.each[value.index()]
    }
}

impl<L: Label, M: Default> Default for By<L, M> {
    fn default() -> By<L, M> {
        By { each: L::VALUES.iter().map(|_| M::default()).collect(), label: PhantomData }
    }
}

/// A label with few values, all known.
pub trait Label: Copy + 'static {
    /// Its name when it is scraped.
    const NAME: &'static str;
    /// Its values when they are scraped, by their index.
    const VALUES: &'static [&'static str];
    /// Where this value stands in [`Label::VALUES`].
    fn index(self) -> usize;
}

/// Where bytes for a reader are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the blocks still in memory.
    Arena,
    /// From the segment files.
    Files,
}

impl Label for Source {
    const NAME: &'static str = "source";
    const VALUES: &'static [&'static str] = &["arena", "files"];

    fn index(self) -> usize {
        self as usize
    }
}

/// What a client was too slow with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It sent nothing of a body.
    Writer,
    /// It sent less of a body than the floor.
    Body,
    /// It took nothing of an answer.
    Reader,
    /// The head of a request did not come to its end.
    Head,
}

impl Label for Stall {
    const NAME: &'static str = "of";
    const VALUES: &'static [&'static str] = &["writer", "body", "reader", "head"];

    fn index(self) -> usize {
        self as usize
    }
}

/// What a segment is there for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Prepared, and empty.
    Free,
    /// Being preallocated and initialised.
    Preparing,
    /// Being written.
    Active,
    /// Full, and holding something alive.
    Filled,
}

impl Label for SegmentState {
    const NAME: &'static str = "state";
    const VALUES: &'static [&'static str] = &["free", "preparing", "active", "filled"];

    fn index(self) -> usize {
        self as usize
    }
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Method {
    Get,
    Head,
    Put,
    Post,
    Delete,
    /// Any other one, or a request whose method could not be read.
    Other,
}

const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "other"];

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Method {
        match *method {
            http::Method::GET => Method::Get,
            http::Method::HEAD => Method::Head,
            http::Method::PUT => Method::Put,
            http::Method::POST => Method::Post,
            http::Method::DELETE => Method::Delete,
            _ => Method::Other,
        }
    }
}

/// The status codes that there can be.
const STATUS_FIRST: u16 = 100;
const STATUS_LAST: u16 = 599;
const STATUSES: usize = (STATUS_LAST - STATUS_FIRST) as usize + 1;

/// Requests by method and status code.
pub struct Requests {
    /// A row of all status codes for each method: 24 KiB, of which a few lines are ever touched.
    counts: Box<[Cell<u64>]>,
}

impl Requests {
    /// Records that a request was answered with `status`.
    pub fn record(&self, method: Method, status: u16) {
        debug_assert!((STATUS_FIRST..=STATUS_LAST).contains(&status), "{status} is no status code");
        let column = usize::from(status.clamp(STATUS_FIRST, STATUS_LAST) - STATUS_FIRST);
        let count = &self.counts[method as usize * STATUSES + column];
        count.set(count.get() + 1);
    }
}

impl Default for Requests {
    fn default() -> Requests {
        Requests { counts: (0..METHODS.len() * STATUSES).map(|_| Cell::default()).collect() }
    }
}

/// Something that one core records into.
trait Metric {
    type Reading: Reading;
    fn read(&self, now: Instant) -> Self::Reading;
}

/// What was read from a metric: it can go to another thread, be added to others, and be shown.
trait Reading: Clone + Send {
    /// The type of the family in the text format.
    const TYPE: &'static str;
    fn merge(&mut self, other: &Self);
    /// Writes the samples of the family `name`, each with `labels` before its own ones.
    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]);
}

#[derive(Clone)]
struct Count(u64);

impl Metric for Counter {
    type Reading = Count;

    fn read(&self, _now: Instant) -> Count {
        Count(self.0.get())
    }
}

impl Reading for Count {
    const TYPE: &'static str = "counter";

    fn merge(&mut self, other: &Count) {
        self.0 = self.0.wrapping_add(other.0);
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        sample(text, name, labels, self.0);
    }
}

#[derive(Clone)]
struct Level(i64);

impl Metric for Gauge {
    type Reading = Level;

    fn read(&self, _now: Instant) -> Level {
        Level(self.0.get())
    }
}

impl Reading for Level {
    const TYPE: &'static str = "gauge";

    fn merge(&mut self, other: &Level) {
        self.0 = self.0.wrapping_add(other.0);
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        sample(text, name, labels, self.0);
    }
}

#[derive(Clone)]
struct LatencyReading {
    recent: Histogram<u64>,
    count: u64,
    sum_nanoseconds: u64,
}

impl Metric for Latency {
    type Reading = LatencyReading;

    fn read(&self, now: Instant) -> LatencyReading {
        LatencyReading {
            recent: self.windows.borrow_mut().recent(now),
            count: self.count.get(),
            sum_nanoseconds: self.sum_nanoseconds.get(),
        }
    }
}

impl Reading for LatencyReading {
    const TYPE: &'static str = "summary";

    fn merge(&mut self, other: &LatencyReading) {
        self.recent.add(&other.recent).expect("histograms with the same bounds can be added");
        self.count += other.count;
        self.sum_nanoseconds = self.sum_nanoseconds.saturating_add(other.sum_nanoseconds);
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        for quantile in QUANTILES {
            let seconds = match self.recent.is_empty() {
                true => f64::NAN, // what the format has for "nothing was observed"
                false => in_seconds(self.recent.value_at_quantile(quantile)),
            };
            let quantile = quantile.to_string();
            sample(text, name, &[labels, &[("quantile", &quantile)]].concat(), seconds);
        }
        sample(text, &format!("{name}_sum"), labels, in_seconds(self.sum_nanoseconds));
        sample(text, &format!("{name}_count"), labels, self.count);
    }
}

fn in_seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[derive(Clone)]
struct SizesReading {
    counts: [u64; BLOCK_BYTES_BOUNDS + 1],
    sum: u64,
}

impl Metric for Sizes {
    type Reading = SizesReading;

    fn read(&self, _now: Instant) -> SizesReading {
        SizesReading { counts: self.counts.each_ref().map(Cell::get), sum: self.sum.get() }
    }
}

impl Reading for SizesReading {
    const TYPE: &'static str = "histogram";

    fn merge(&mut self, other: &SizesReading) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum = self.sum.wrapping_add(other.sum);
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        let bucket = format!("{name}_bucket");
        let mut cumulative = 0;
        for (doublings, count) in self.counts.iter().enumerate() {
            cumulative += count;
            let bound = match doublings {
                BLOCK_BYTES_BOUNDS => "+Inf".to_owned(),
                _ => (BLOCK_BYTES_FIRST_BOUND << doublings).to_string(),
            };
            sample(text, &bucket, &[labels, &[("le", &bound)]].concat(), cumulative);
        }
        sample(text, &format!("{name}_sum"), labels, self.sum);
        sample(text, &format!("{name}_count"), labels, cumulative);
    }
}

#[derive(Clone)]
struct ByReading<L, R> {
    each: Vec<R>,
    label: PhantomData<L>,
}

impl<L: Label + Send, M: Metric> Metric for By<L, M> {
    type Reading = ByReading<L, M::Reading>;

    fn read(&self, now: Instant) -> Self::Reading {
        ByReading { each: self.each.iter().map(|metric| metric.read(now)).collect(), label: PhantomData }
    }
}

impl<L: Label + Send, R: Reading> Reading for ByReading<L, R> {
    const TYPE: &'static str = R::TYPE;

    fn merge(&mut self, other: &Self) {
        self.each.iter_mut().zip(&other.each).for_each(|(reading, more)| reading.merge(more));
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        for (reading, value) in self.each.iter().zip(L::VALUES) {
            reading.expose(text, name, &[labels, &[(L::NAME, value)]].concat());
        }
    }
}

/// Only the pairs of method and status code that happened.
#[derive(Clone)]
struct RequestsReading(BTreeMap<(usize, u16), u64>);

impl Metric for Requests {
    type Reading = RequestsReading;

    fn read(&self, _now: Instant) -> RequestsReading {
        let happened = self.counts.iter().map(Cell::get).enumerate().filter(|(_, count)| *count > 0);
        let status = |index: usize| STATUS_FIRST + (index % STATUSES) as u16;
        RequestsReading(happened.map(|(index, count)| ((index / STATUSES, status(index)), count)).collect())
    }
}

impl Reading for RequestsReading {
    const TYPE: &'static str = "counter";

    fn merge(&mut self, other: &RequestsReading) {
        for (pair, more) in &other.0 {
            *self.0.entry(*pair).or_default() += more;
        }
    }

    fn expose(&self, text: &mut String, name: &str, labels: &[(&str, &str)]) {
        for ((method, status), count) in &self.0 {
            let status = status.to_string();
            let own: [(&str, &str); 2] = [("method", METHODS[*method]), ("status", &status)];
            sample(text, name, &[labels, &own].concat(), count);
        }
    }
}

fn expose_family<R: Reading>(text: &mut String, name: &str, help: &str, reading: &R) {
    header(text, name, help, R::TYPE);
    reading.expose(text, name, &[]);
}

fn header(text: &mut String, name: &str, help: &str, kind: &str) {
    write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a string takes any text");
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    text.push_str(name);
    for (position, (label, value)) in labels.iter().enumerate() {
        let opening = if position == 0 { '{' } else { ',' };
        write!(text, "{opening}{label}=\"{value}\"").expect("a string takes any text");
    }
    let closing = if labels.is_empty() { "" } else { "}" };
    writeln!(text, "{closing} {value}").expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The samples of a text, by name and labels as written. Panics where the text breaks the format's rules.
    fn parse(text: &str) -> HashMap<String, f64> {
        let mut samples = HashMap::new();
        let mut families = HashMap::new();
        let mut family = String::new();
        assert!(text.ends_with('\n'), "the last line must end like every other");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                assert!(!families.contains_key(name), "{name} comes twice");
                name.clone_into(&mut family);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family, "HELP and TYPE must stand together");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                families.insert(name.to_owned(), kind.to_owned());
            } else {
                let (name_and_labels, value) = line.rsplit_once(' ').unwrap();
                let name = name_and_labels.split('{').next().unwrap();
                let suffix = name.strip_prefix(family.as_str()).expect("a sample must stand in its family");
                let allowed: &[&str] = match families[&family].as_str() {
                    "summary" => &["", "_sum", "_count"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(allowed.contains(&suffix), "{line}");
                assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
                assert!(name.starts_with("tailwater_"), "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(samples.insert(name_and_labels.to_owned(), value).is_none(), "{line} comes twice");
            }
        }
        samples
    }

    fn scrape(cores: &[&CoreMetrics]) -> HashMap<String, f64> {
        let mut merged = cores[0].snapshot();
        cores[1..].iter().for_each(|core| merged.merge(&core.snapshot()));
        parse(&render(&merged, UNIX_EPOCH + Duration::from_millis(1_500)))
    }

    #[test]
    fn what_cores_counted_is_added() {
        let (one, other) = (CoreMetrics::new(), CoreMetrics::new());
        one.bytes_received.add(1000);
        other.bytes_received.add(24);
        one.bytes_sent.of(Source::Arena).add(5);
        other.bytes_sent.of(Source::Files).add(7);
        one.segments.of(SegmentState::Filled).set(3);
        other.segments.of(SegmentState::Filled).set(4);
        other.segments.of(SegmentState::Free).set(1);
        one.requests.record(Method::Get, 200);
        other.requests.record(Method::Get, 200);
        other.requests.record(Method::from(&http::Method::PUT), 201);
        other.requests.record(Method::from(&http::Method::PATCH), 405);

        let samples = scrape(&[&one, &other]);
        assert_eq!(samples["tailwater_cores"], 2.0);
        assert_eq!(samples["tailwater_start_time_seconds"], 1.5);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(samples[&format!("tailwater_build_info{{version=\"{version}\"}}")], 1.0);
        assert_eq!(samples["tailwater_received_bytes_total"], 1024.0);
        assert_eq!(samples["tailwater_sent_bytes_total{source=\"arena\"}"], 5.0);
        assert_eq!(samples["tailwater_sent_bytes_total{source=\"files\"}"], 7.0);
        assert_eq!(samples["tailwater_segments{state=\"filled\"}"], 7.0);
        assert_eq!(samples["tailwater_segments{state=\"free\"}"], 1.0);
        assert_eq!(samples["tailwater_segments{state=\"preparing\"}"], 0.0);
        assert_eq!(samples["tailwater_requests_total{method=\"GET\",status=\"200\"}"], 2.0);
        assert_eq!(samples["tailwater_requests_total{method=\"PUT\",status=\"201\"}"], 1.0);
        assert_eq!(samples["tailwater_requests_total{method=\"other\",status=\"405\"}"], 1.0);
        assert_eq!(samples.keys().filter(|name| name.starts_with("tailwater_requests")).count(), 3);
    }

    #[test]
    fn a_gauge_may_go_up_on_one_core_and_down_on_another() {
        let (one, other) = (CoreMetrics::new(), CoreMetrics::new());
        one.objects_live.add(3);
        other.objects_live.decrement();
        assert_eq!(scrape(&[&one, &other])["tailwater_objects_live"], 2.0);
    }

    #[test]
    fn quantiles_are_those_of_all_cores() {
        let (one, other) = (CoreMetrics::new(), CoreMetrics::new());
        for milliseconds in 1..=50 {
            one.block_write.record(Duration::from_millis(milliseconds));
            other.block_write.record(Duration::from_millis(50 + milliseconds));
        }
        let samples = scrape(&[&one, &other]);
        let close = |name: &str, seconds: f64| {
            let found = samples[name];
            assert!((found / seconds - 1.0).abs() < 0.01, "{name} is {found}, not {seconds}");
        };
        close("tailwater_block_write_seconds{quantile=\"0.5\"}", 0.050);
        close("tailwater_block_write_seconds{quantile=\"0.9\"}", 0.090);
        close("tailwater_block_write_seconds{quantile=\"0.99\"}", 0.099);
        close("tailwater_block_write_seconds{quantile=\"1\"}", 0.100);
        close("tailwater_block_write_seconds_sum", 5.050);
        assert_eq!(samples["tailwater_block_write_seconds_count"], 100.0);
        assert!(samples["tailwater_append_acknowledged_seconds{quantile=\"0.5\"}"].is_nan());
    }

    #[test]
    fn latencies_out_of_bounds_are_recorded_at_the_bound() {
        let metrics = CoreMetrics::new();
        metrics.block_write.record(Duration::ZERO);
        metrics.block_write.record(Duration::from_secs(3600));
        metrics.block_write.record(Duration::MAX);
        let samples = scrape(&[&metrics]);
        assert_eq!(samples["tailwater_block_write_seconds_count"], 3.0);
        let largest = samples["tailwater_block_write_seconds{quantile=\"1\"}"];
        assert!((60.0..70.0).contains(&largest), "{largest}");
    }

    #[test]
    fn quantiles_forget_and_sums_do_not() {
        let metrics = CoreMetrics::new();
        let start = Instant::now();
        let median_at = |seconds: u64| {
            let snapshot = metrics.snapshot_at(start + Duration::from_secs(seconds));
            parse(&render(&snapshot, UNIX_EPOCH))["tailwater_block_write_seconds{quantile=\"0.5\"}"]
        };
        metrics.block_write.record(Duration::from_secs(9));
        assert!(median_at(30) > 8.9);
        assert!(median_at(61) > 8.9, "the window that ends must still be shown");
        assert!(median_at(100) > 8.9, "the previous window must still be shown");
        assert!(median_at(125) > 8.9, "and is shown a last time when the next one ends");
        assert!(median_at(126).is_nan(), "after two windows it must be gone");
        let samples = scrape(&[&metrics]);
        assert_eq!(samples["tailwater_block_write_seconds_count"], 1.0);
        assert_eq!(samples["tailwater_block_write_seconds_sum"], 9.0);
    }

    #[test]
    fn block_sizes_are_cumulative_and_bounds_are_inclusive() {
        let metrics = CoreMetrics::new();
        for bytes in [0, 1, 4096, 4097, 8192, 1 << 20, (1 << 20) + 1, u64::MAX >> 1] {
            metrics.block_sizes.record(bytes);
        }
        let samples = scrape(&[&metrics]);
        let up_to = |bound: &str| samples[&format!("tailwater_block_size_bytes_bucket{{le=\"{bound}\"}}")];
        assert_eq!((up_to("4096"), up_to("8192"), up_to("16384")), (3.0, 5.0, 5.0));
        assert_eq!((up_to("524288"), up_to("1048576"), up_to("+Inf")), (5.0, 6.0, 8.0));
        assert_eq!(samples["tailwater_block_size_bytes_count"], 8.0);
    }

    #[test]
    fn a_snapshot_goes_to_another_thread() {
        fn assert_send_and_clone<T: Send + Clone>() {}
        assert_send_and_clone::<Snapshot>();
    }
}
