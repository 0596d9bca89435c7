//! How long sealed objects are kept: rules for buckets, written in a line.

use std::fmt;
use std::time::Duration;

use super::read_bytes;
use super::rules::{named, rules};

/// The rules of all buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The rules, in the order they were written.
    pub rules: Vec<RetentionRule>,
}

/// What is kept of one bucket, or of each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    /// The bucket, or `*` for each.
    pub bucket: String,
    /// Objects are deleted when they were sealed this long ago.
    pub age: Option<Duration>,
    /// The objects that were sealed first are deleted until no more bytes than this are left.
    pub bytes: Option<u64>,
}

/// Reads `cameras age=7d size=100GB; * age=30d`.
pub(super) fn read_retention(text: &str) -> Result<Retention, String> {
    let rules = rules(text).map(|(bucket, words)| {
        let mut rule = RetentionRule { bucket: bucket?, age: None, bytes: None };
        for (key, value) in words {
            match key {
                "age" => {
                    let age = humantime::parse_duration(value)
                        .map_err(|error| format!("age={value} is no time such as 7d or 12h: {error}"))?;
                    rule.age = Some(age);
                }
                "size" => {
                    rule.bytes = Some(read_bytes(value).map_err(|why| format!("size={value}: {why}"))?);
                }
                _ => return Err(format!("\"{key}={value}\" is neither age=TIME nor size=SIZE")),
            }
        }
        match (rule.age, rule.bytes) {
            (None, None) => Err(format!("the rule of {} has neither age=TIME nor size=SIZE", rule.bucket)),
            _ => Ok(rule),
        }
    });
    Ok(Retention { rules: rules.collect::<Result<_, _>>()? })
}

impl fmt::Display for Retention {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        named(formatter, &self.rules)
    }
}

impl fmt::Display for RetentionRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.bucket)?;
        if let Some(age) = self.age {
            write!(formatter, " age={}", humantime::format_duration(age).to_string().replace(' ', ""))?;
        }
        self.bytes.map_or(Ok(()), |bytes| write!(formatter, " size={bytes}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_come_back() {
        let retention = read_retention(" cameras age=7d size=2MiB ;* age=90s;").unwrap();
        let expected = [("cameras", Some(7 * 86_400), Some(2 << 20)), ("*", Some(90), None)];
        let rules: Vec<_> = retention
            .rules
            .iter()
            .map(|rule| (rule.bucket.as_str(), rule.age.map(|age| age.as_secs()), rule.bytes))
            .collect();
        assert_eq!(rules, expected);
        assert_eq!(read_retention(&retention.to_string()).unwrap(), retention);
        for nothing in ["", "none", &Retention::default().to_string()] {
            assert_eq!(read_retention(nothing).unwrap(), Retention::default());
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is_wrong() {
        for (text, told) in [
            ("cameras", "neither"),
            ("Cameras age=7d", "no bucket"),
            ("cameras age=7", "no time"),
            ("cameras size=lots", "size=lots"),
            ("cameras keep=7d", "keep=7d"),
            ("age=7d", "no bucket"),
        ] {
            let error = read_retention(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
