//! How long a writer that went away is awaited: rules for buckets, written in a line.

use std::fmt;
use std::time::Duration;

use super::SECONDS_MAX;
use super::rules::{named, rules};

/// The rules of all buckets, in the order they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResumeWindows {
    /// Of what no rule says, the default holds.
    pub rules: Vec<ResumeRule>,
}

/// How long writers of one bucket are awaited, or of each that has no rule of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeRule {
    /// The bucket, or `*` for each.
    pub bucket: String,
    /// After an upload that was begun so that it can be resumed.
    pub resumable: Option<Duration>,
    /// After a plain PUT or POST.
    pub plain: Option<Duration>,
}

/// Where no rule says anything: uploads that were begun so that they can be resumed are awaited for a minute.
const RESUMABLE_DEFAULT: Duration = Duration::from_secs(60);

impl ResumeWindows {
    /// How long the writer of an upload to this bucket is awaited that was begun so that it can be resumed.
    pub fn resumable(&self, bucket: &str) -> Duration {
        self.of(bucket, |rule| rule.resumable).unwrap_or(RESUMABLE_DEFAULT)
    }

    /// How long the writer of a plain PUT or POST to this bucket is awaited.
    pub fn plain(&self, bucket: &str) -> Duration {
        self.of(bucket, |rule| rule.plain).unwrap_or(Duration::ZERO)
    }

    fn of(&self, bucket: &str, part: impl Fn(&ResumeRule) -> Option<Duration>) -> Option<Duration> {
        let of = |name: &str| self.rules.iter().filter(|rule| rule.bucket == name).find_map(&part);
        of(bucket).or_else(|| of("*"))
    }
}

/// Reads `cameras plain=30s; * resumable=2m`.
pub(super) fn read_resume_windows(text: &str) -> Result<ResumeWindows, String> {
    let rules = rules(text).map(|(bucket, words)| {
        let mut rule = ResumeRule { bucket: bucket?, resumable: None, plain: None };
        for (key, value) in words {
            let place = match key {
                "resumable" => &mut rule.resumable,
                "plain" => &mut rule.plain,
                _ => return Err(format!("{key:?} is neither resumable=TIME nor plain=TIME")),
            };
            let window = humantime::parse_duration(value)
                .map_err(|error| format!("{key}={value} is no time such as 30s or 2m: {error}"))?;
            if window.as_secs() > SECONDS_MAX {
                return Err(format!("{key}={value} is more than a year"));
            }
            *place = Some(window);
        }
        match (rule.resumable, rule.plain) {
            (None, None) => {
                Err(format!("the rule of {} has neither resumable=TIME nor plain=TIME", rule.bucket))
            }
            _ => Ok(rule),
        }
    });
    Ok(ResumeWindows { rules: rules.collect::<Result<_, _>>()? })
}

impl fmt::Display for ResumeWindows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        named(formatter, &self.rules)
    }
}

impl fmt::Display for ResumeRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.bucket)?;
        for (key, window) in [("resumable", self.resumable), ("plain", self.plain)] {
            if let Some(window) = window {
                let window = humantime::format_duration(window).to_string().replace(' ', "");
                write!(formatter, " {key}={window}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_come_back() {
        let windows = read_resume_windows("cameras plain=30s ;* resumable=2m plain=0s").unwrap();
        for (bucket, resumable, plain) in [("cameras", 120, 30), ("other", 120, 0)] {
            assert_eq!(windows.resumable(bucket).as_secs(), resumable, "{bucket}");
            assert_eq!(windows.plain(bucket).as_secs(), plain, "{bucket}");
        }
        assert_eq!(read_resume_windows(&windows.to_string()).unwrap(), windows);
        for nothing in ["", "none", &ResumeWindows::default().to_string()] {
            let windows = read_resume_windows(nothing).unwrap();
            assert_eq!((windows.resumable("x").as_secs(), windows.plain("x").as_secs()), (60, 0));
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is_wrong() {
        for (text, told) in [
            ("cameras", "neither"),
            ("Cameras plain=1s", "no bucket"),
            ("cameras plain=7", "no time"),
            ("cameras plain=2y", "more than a year"),
            ("cameras keep=7d", "keep"),
        ] {
            let error = read_resume_windows(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
