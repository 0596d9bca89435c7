//! The result of a run, as a table for people and as JSON for machines.

use std::fmt;

use serde_json::{Value, json};

use super::measure::{Measurements, Series};

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// What came out of a run.
#[derive(Debug)]
pub struct Report {
    /// What was run, in words.
    pub title: String,
    /// The settings of the run, by name.
    pub settings: Value,
    /// What was measured.
    pub measurements: Measurements,
}

impl Report {
    /// The report as one JSON document. Latencies are in microseconds, since the intended send time.
    pub fn to_json(&self) -> Value {
        let errors = &self.measurements.errors;
        let series: Vec<Value> = self
            .measurements
            .series
            .iter()
            .map(|(name, series)| {
                let [p50, p90, p99, p99_9, max] = quantiles(series).map(|(_, microseconds)| microseconds);
                json!({
                    "name": name,
                    "count": series.count,
                    "bytes": series.bytes,
                    "elapsed_seconds": series.elapsed.as_secs_f64(),
                    "rate_per_second": per_second(series, series.count as f64),
                    "mebibytes_per_second": per_second(series, series.bytes as f64 / MEBIBYTE),
                    "latency_microseconds": {
                        "p50": p50, "p90": p90, "p99": p99, "p99_9": p99_9, "max": max,
                    },
                })
            })
            .collect();
        json!({
            "title": self.title,
            "settings": self.settings,
            "series": series,
            "verified_bytes": self.measurements.verified_bytes,
            "errors": {
                "verification": errors.verification,
                "failed": errors.failed,
                "missed": errors.missed,
                "examples": errors.examples,
            },
        })
    }
}

fn per_second(series: &Series, value: f64) -> f64 {
    value / series.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The quantiles that are reported, in microseconds.
fn quantiles(series: &Series) -> [(&'static str, f64); 5] {
    let at = |quantile: f64| series.latency.value_at_quantile(quantile) as f64 / 1e3;
    [
        ("p50", at(0.5)),
        ("p90", at(0.9)),
        ("p99", at(0.99)),
        ("p99.9", at(0.999)),
        ("max", series.latency.max() as f64 / 1e3),
    ]
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.title)?;
        write!(formatter, "{:<18}{:>10}{:>11}{:>10}", "", "count", "per s", "MiB/s")?;
        for name in ["p50", "p90", "p99", "p99.9", "max"] {
            write!(formatter, "{name:>10}")?;
        }
        writeln!(formatter)?;
        for (name, series) in &self.measurements.series {
            let count = series.count;
            let (rate, flow) =
                (per_second(series, count as f64), per_second(series, series.bytes as f64 / MEBIBYTE));
            write!(formatter, "{name:<18}{count:>10}{rate:>11.1}{flow:>10.1}")?;
            for (_, microseconds) in quantiles(series) {
                write!(formatter, "{:>10}", Latency(microseconds).to_string())?;
            }
            writeln!(formatter)?;
        }
        let (errors, verified) =
            (&self.measurements.errors, self.measurements.verified_bytes as f64 / MEBIBYTE);
        writeln!(
            formatter,
            "verified {verified:.1} MiB; errors: {} in what was verified, {} requests failed, {} missed their time",
            errors.verification, errors.failed, errors.missed
        )?;
        for example in &errors.examples {
            writeln!(formatter, "  {example}")?;
        }
        if errors.missed > 0 {
            writeln!(formatter, "  the rate is more than this server, or this tester, can do")?;
        }
        Ok(())
    }
}

/// A latency in microseconds, shown in a unit that keeps it short.
pub struct Latency(pub f64);

impl fmt::Display for Latency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            short if short < 1e3 => write!(formatter, "{short:.0} us"),
            medium if medium < 1e6 => write!(formatter, "{:.2} ms", medium / 1e3),
            long => write!(formatter, "{:.2} s", long / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let mut measurements = Measurements::default();
        for milliseconds in 1..=100 {
            measurements.record("pieces received", Duration::from_millis(milliseconds), 1 << 20);
        }
        measurements.mismatch("the byte at offset 5 is wrong");
        measurements.end_phase(Duration::from_secs(10));
        Report { title: "follow".to_owned(), settings: json!({"streams": 1}), measurements }
    }

    #[test]
    fn the_table_has_the_figures() {
        let table = report().to_string();
        let row = table.lines().find(|line| line.starts_with("pieces received")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[2..5], ["100", "10.0", "10.0"], "{table}");
        assert!(table.contains("1 in what was verified") && table.contains("offset 5"), "{table}");
    }

    #[test]
    fn the_document_has_the_figures() {
        let document = report().to_json();
        assert_eq!(document["series"][0]["count"], 100);
        let median = document["series"][0]["latency_microseconds"]["p50"].as_f64().unwrap();
        assert!((median - 50_000.0).abs() < 100.0, "{median}");
        assert_eq!(document["errors"]["verification"], 1);
    }

    #[test]
    fn latencies_are_short() {
        let shown = [1.0, 999.0, 1_500.0, 2_000_000.0].map(|value| Latency(value).to_string());
        assert_eq!(shown, ["1 us", "999 us", "1.50 ms", "2.00 s"]);
    }
}
