//! How long sealed objects are kept: rules for buckets, written in a line.

use std::fmt;
use std::time::Duration;

use super::read_bytes;
use crate::store::name::check_bucket;

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
    if text.trim() == "none" {
        return Ok(Retention::default());
    }
    let rules = text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(read_rule);
    Ok(Retention { rules: rules.collect::<Result<_, _>>()? })
}

fn read_rule(text: &str) -> Result<RetentionRule, String> {
    let mut words = text.split_whitespace();
    let bucket = words.next().unwrap_or_default().to_owned();
    if bucket != "*" {
        check_bucket(&bucket).map_err(|error| format!("{bucket:?} is no bucket ({error}), nor \"*\""))?;
    }
    let mut rule = RetentionRule { bucket, age: None, bytes: None };
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "age" => {
                let age = humantime::parse_duration(value)
                    .map_err(|error| format!("age={value} is no time such as 7d or 12h: {error}"))?;
                rule.age = Some(age);
            }
            "size" => rule.bytes = Some(read_bytes(value).map_err(|why| format!("size={value}: {why}"))?),
            _ => return Err(format!("{word:?} is neither age=TIME nor size=SIZE")),
        }
    }
    if rule.age.is_none() && rule.bytes.is_none() {
        return Err(format!("the rule of {} has neither age=TIME nor size=SIZE", rule.bucket));
    }
    Ok(rule)
}

impl fmt::Display for Retention {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            return formatter.write_str("none");
        }
        let rules: Vec<String> = self.rules.iter().map(ToString::to_string).collect();
        formatter.write_str(&rules.join("; "))
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
