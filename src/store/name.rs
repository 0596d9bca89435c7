//! Names of objects: `bucket/key`, checked once, when they enter.
//!
//! A bucket is 1-63 of `a-z 0-9 . -`; a key is 1-1024 bytes of UTF-8 without control characters and without a
//! `.` or `..` part (what stands between slashes). Buckets need no creation.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// The longest bucket, in bytes.
pub const BUCKET_LENGTH_MAX: usize = 63;
/// The longest key, in bytes.
pub const KEY_LENGTH_MAX: usize = 1024;

/// The name of an object. Clones share one allocation; the order is by bucket, then by the bytes of the key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name {
    text: Arc<str>,
    bucket_length: u8,
}

impl Name {
    /// A name from its two parts, already percent-decoded.
    ///
    /// # Errors
    /// [`Kind::InvalidName`] with the rule that was broken.
    pub fn new(bucket: &str, key: &str) -> Result<Name> {
        check_bucket(bucket)?;
        check_key(key)?;
        Ok(Name { text: format!("{bucket}/{key}").into(), bucket_length: bucket.len() as u8 })
    }

    /// A name from `bucket/key`.
    ///
    /// # Errors
    /// [`Kind::InvalidName`] with the rule that was broken.
    pub fn parse(text: &str) -> Result<Name> {
        match text.split_once('/') {
            Some((bucket, key)) => Name::new(bucket, key),
            None => Err(invalid("a name is bucket/key")),
        }
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.text[..usize::from(self.bucket_length)]
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.text[usize::from(self.bucket_length) + 1..]
    }

    /// `bucket/key`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Checks that `bucket` can be a bucket.
///
/// # Errors
/// [`Kind::InvalidName`] with the rule that was broken.
pub fn check_bucket(bucket: &str) -> Result<()> {
    if bucket.is_empty() || bucket.len() > BUCKET_LENGTH_MAX {
        return Err(invalid("a bucket has 1 to 63 characters"));
    }
    if !bucket.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-')) {
        return Err(invalid("a bucket consists of a-z, 0-9, '.' and '-'"));
    }
    if bucket == "." || bucket == ".." {
        return Err(invalid("a bucket is not '.' or '..'"));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_LENGTH_MAX {
        return Err(invalid("a key has 1 to 1024 bytes"));
    }
    if key.chars().any(char::is_control) {
        return Err(invalid("a key has no control characters"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(invalid("a key has no '.' or '..' part"));
    }
    Ok(())
}

fn invalid(rule: &str) -> Error {
    Error::new(Kind::InvalidName, rule)
}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        self.bucket().cmp(other.bucket()).then_with(|| self.key().cmp(other.key()))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, formatter)
    }
}

/// A place in the order of names, which need not be a name: a map is searched by places, so that a search neither
/// allocates a name nor has to find a valid one.
pub(super) trait Place {
    /// The bucket and the bytes of the key, the order of [`Name`].
    fn parts(&self) -> (&str, &[u8]);
}

impl Place for Name {
    fn parts(&self) -> (&str, &[u8]) {
        (self.bucket(), self.key().as_bytes())
    }
}

impl Place for (&str, &[u8]) {
    fn parts(&self) -> (&str, &[u8]) {
        *self
    }
}

impl<'p> Borrow<dyn Place + 'p> for Name {
    fn borrow(&self) -> &(dyn Place + 'p) {
        self
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Place + '_ {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let name = Name::parse("cam-1/2026/11/a b.mp4").unwrap();
        assert_eq!((name.bucket(), name.key()), ("cam-1", "2026/11/a b.mp4"));
        assert_eq!(name.as_str(), "cam-1/2026/11/a b.mp4");
    }

    #[test]
    fn limits_are_inclusive() {
        assert!(Name::new(&"b".repeat(63), &"k".repeat(1024)).is_ok());
        assert!(Name::new(&"b".repeat(64), "k").is_err());
        assert!(Name::new("b", &"k".repeat(1025)).is_err());
        assert!(Name::new("", "k").is_err());
        assert!(Name::new("b", "").is_err());
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for text in
            ["B/k", "b_c/k", "./k", "../k", "b/..", "b/a/../c", "b/.", "b/a\0c", "b/a\nc", "b/\u{85}", "b"]
        {
            assert!(Name::parse(text).is_err(), "{text:?} was taken");
        }
        for text in ["b/...", "b/.a", "b//", "b/a//c", "a.b-c/é"] {
            assert!(Name::parse(text).is_ok(), "{text:?} was refused");
        }
    }

    #[test]
    fn order_is_by_bucket_then_key() {
        let (first, second) = (Name::parse("a/z").unwrap(), Name::parse("a-b/a").unwrap());
        assert!(first < second, "the slash must not take part in the order");
    }
}
