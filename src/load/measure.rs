//! What a run measured: latencies, bytes and errors, kept by each thread for itself and merged at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The shortest and the longest latency that are told apart, in nanoseconds.
const LATENCY_NANOSECONDS: (u64, u64) = (1_000, 3_600_000_000_000);
/// How many errors are told in full.
const EXAMPLES_MAX: usize = 5;

/// One thing that was done many times: how often, with how many bytes, and how long each took.
#[derive(Clone, Debug)]
pub struct Series {
    /// The latencies, in nanoseconds; those that were missed are among them.
    pub latency: Histogram<u64>,
    /// How often it was done.
    pub count: u64,
    /// The bytes moved.
    pub bytes: u64,
    /// How long the phase took in which it was done.
    pub elapsed: Duration,
}

impl Default for Series {
    fn default() -> Series {
        let (low, high) = LATENCY_NANOSECONDS;
        let latency = Histogram::new_with_bounds(low, high, 3).expect("the bounds are those of a histogram");
        Series { latency, count: 0, bytes: 0, elapsed: Duration::ZERO }
    }
}

/// What a thread, or the whole run, measured.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// What was done, by name.
    pub series: BTreeMap<&'static str, Series>,
    /// How many bytes were compared with what they should be.
    pub verified_bytes: u64,
    /// What went wrong.
    pub errors: Errors,
}

/// What went wrong in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Bytes were wrong, missing or too many, or an end was taken for the real one.
    pub verification: u64,
    /// Requests that were refused or broke.
    pub failed: u64,
    /// What was due and had not begun when the time was over: more was asked for than the server or this tester
    /// can do. Each counts in the latencies with the time that it had waited.
    pub missed: u64,
    /// The first errors, in words.
    pub examples: Vec<String>,
}

impl Measurements {
    /// Something was done: in so much time since it was due, with so many bytes.
    pub fn record(&mut self, series: &'static str, latency: Duration, bytes: u64) {
        let series = self.series.entry(series).or_default();
        series.latency.saturating_record(nanoseconds(latency));
        series.count += 1;
        series.bytes += bytes;
    }

    /// Something was due, and had not begun after so much time.
    pub fn missed(&mut self, series: &'static str, waited: Duration) {
        self.series.entry(series).or_default().latency.saturating_record(nanoseconds(waited));
        self.errors.missed += 1;
    }

    /// A request was refused or broke.
    pub fn failed(&mut self, what: impl Into<String>) {
        self.errors.failed += 1;
        self.example(what.into());
    }

    /// Something was not what it should be.
    pub fn mismatch(&mut self, what: impl Into<String>) {
        self.errors.verification += 1;
        self.example(what.into());
    }

    /// Ends the phase in which all of this was measured.
    pub fn end_phase(&mut self, elapsed: Duration) {
        for series in self.series.values_mut() {
            series.elapsed = elapsed;
        }
    }

    /// Adds what another thread, or another phase, measured.
    pub fn merge(&mut self, other: Measurements) {
        for (name, series) in other.series {
            let sum = self.series.entry(name).or_default();
            sum.latency.add(&series.latency).expect("all histograms have the same bounds");
            sum.count += series.count;
            sum.bytes += series.bytes;
            sum.elapsed = sum.elapsed.max(series.elapsed);
        }
        self.verified_bytes += other.verified_bytes;
        self.errors.verification += other.errors.verification;
        self.errors.failed += other.errors.failed;
        self.errors.missed += other.errors.missed;
        for example in other.errors.examples {
            self.example(example);
        }
    }

    fn example(&mut self, what: String) {
        if self.errors.examples.len() < EXAMPLES_MAX && !self.errors.examples.contains(&what) {
            self.errors.examples.push(what);
        }
    }
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_everything_up() {
        let (mut left, mut right) = (Measurements::default(), Measurements::default());
        left.record("piece", Duration::from_millis(1), 10);
        right.record("piece", Duration::from_millis(9), 20);
        right.missed("piece", Duration::from_secs(2));
        right.mismatch("offset 5");
        left.failed("refused");
        left.merge(right);
        let series = &left.series["piece"];
        assert_eq!((series.latency.len(), series.count, series.bytes), (3, 2, 30));
        assert!(series.latency.max() >= 2_000_000_000, "what was missed counts with its wait");
        let errors = Errors {
            verification: 1,
            failed: 1,
            missed: 1,
            examples: vec!["refused".to_owned(), "offset 5".to_owned()],
        };
        assert_eq!(left.errors, errors);
    }

    #[test]
    fn a_latency_beyond_the_bounds_is_kept_at_the_bound() {
        let mut measurements = Measurements::default();
        measurements.record("x", Duration::ZERO, 0);
        measurements.record("x", Duration::from_secs(1 << 40), 0);
        assert_eq!(measurements.series["x"].latency.len(), 2);
    }
}
