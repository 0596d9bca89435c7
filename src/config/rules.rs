//! Rules for buckets in one line: `BUCKET key=value ...; BUCKET ...`, where `*` stands for each bucket.

use std::fmt;

use crate::store::name::check_bucket;

/// The rules in a text, each as its bucket and its words. `none` is no rule at all.
pub(super) fn rules(text: &str) -> impl Iterator<Item = (Result<String, String>, Vec<(&str, &str)>)> {
    let text = if text.trim() == "none" { "" } else { text };
    text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(|rule| {
        let mut words = rule.split_whitespace();
        let bucket = words.next().unwrap_or_default();
        let bucket = match bucket == "*" || check_bucket(bucket).is_ok() {
            true => Ok(bucket.to_owned()),
            false => Err(format!("{bucket:?} is no bucket, nor \"*\"")),
        };
        (bucket, words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect())
    })
}

/// Writes rules so that they can be read again.
pub(super) fn named(formatter: &mut fmt::Formatter<'_>, rules: &[impl ToString]) -> fmt::Result {
    if rules.is_empty() {
        return formatter.write_str("none");
    }
    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
    formatter.write_str(&rules.join("; "))
}
