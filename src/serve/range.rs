//! Byte ranges: RFC 9110, section 14.
//!
//! A `Range` field that is malformed, is not in bytes or stands more than once is ignored, as section 14.2
//! allows: the request is then for the whole. So is a set of several ranges, which would need a multipart
//! answer that no player asks for. Positions too large for 64 bits saturate; the last position's text is kept
//! as the client wrote it, because RFC 8673 has it echoed.
//!
//! Only GET gives `Range` a meaning (section 14.2): for other methods the caller does not look at it.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};

/// The part of an object that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requested {
    /// All of it.
    Whole,
    /// From a position to the end: `bytes=N-`.
    From(u64),
    /// From a position to another, both included: `bytes=N-M`.
    Span {
        /// The first position.
        first: u64,
        /// The last position; never less than `first`.
        last: u64,
        /// The last position as the client wrote it.
        last_text: Box<str>,
    },
    /// The last so many bytes: `bytes=-N`.
    Suffix(u64),
    /// More than one range: served as the whole.
    Several,
}

/// What a request for a part comes to for a known length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Everything: 200.
    Whole,
    /// The bytes from `first` to `last`, both included and both within the length: 206.
    Satisfiable {
        /// The first position.
        first: u64,
        /// The last position.
        last: u64,
    },
    /// None of the bytes exist: 416.
    Unsatisfiable,
}

impl Requested {
    /// The part that the `Range` field among these headers asks for.
    pub fn from_headers(headers: &HeaderMap) -> Requested {
        let mut values = headers.get_all(RANGE).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().map_or(Requested::Whole, Requested::parse),
            _ => Requested::Whole,
        }
    }

    /// The part that the value of a `Range` field asks for.
    pub fn parse(value: &str) -> Requested {
        parse_set(value).unwrap_or(Requested::Whole)
    }

    /// What this comes to for an object of `length` bytes.
    ///
    /// An empty object has no position to name in a `Content-Range`. Players that always send `bytes=0-` get
    /// it as the whole (200 without a byte) rather than as an error; so does a suffix of it.
    pub fn resolve(&self, length: u64) -> Resolved {
        let (first, last) = match *self {
            Requested::Whole | Requested::Several => return Resolved::Whole,
            Requested::Suffix(0) => return Resolved::Unsatisfiable,
            Requested::From(0) | Requested::Suffix(_) if length == 0 => return Resolved::Whole,
            Requested::From(first) => (first, u64::MAX),
            Requested::Span { first, last, .. } => (first, last),
            Requested::Suffix(count) => (length.saturating_sub(count), u64::MAX),
        };
        if first >= length {
            return Resolved::Unsatisfiable;
        }
        Resolved::Satisfiable { first, last: last.min(length - 1) }
    }
}

/// `None` for whatever is not `bytes=` and a list of ranges.
fn parse_set(value: &str) -> Option<Requested> {
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let is_space = |character| matches!(character, ' ' | '\t');
    // Empty elements of a list are skipped (section 5.6.1.2).
    let mut ranges =
        set.split(',').map(|range| range.trim_matches(is_space)).filter(|range| !range.is_empty());
    let first = parse_range(ranges.next()?)?;
    let mut several = false;
    for range in ranges {
        parse_range(range)?;
        several = true;
    }
    Some(if several { Requested::Several } else { first })
}

fn parse_range(range: &str) -> Option<Requested> {
    let (first, last) = range.split_once('-')?;
    match (first, last) {
        ("", count) => Some(Requested::Suffix(position(count)?)),
        (first, "") => Some(Requested::From(position(first)?)),
        (first, last_text) => {
            let (first, last) = (position(first)?, position(last_text)?);
            (first <= last).then(|| Requested::Span { first, last, last_text: last_text.into() })
        }
    }
}

/// One or more digits, saturating.
fn position(digits: &str) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.bytes().try_fold(0u64, |value, byte| {
        byte.is_ascii_digit().then(|| value.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
    })
}

/// `Content-Range: bytes first-last/length`, or `/*` while the length is not known.
pub fn content_range(first: u64, last: u64, length: Option<u64>) -> HeaderValue {
    content_range_as_written(first, &last.to_string(), length)
}

/// [`content_range`] with the last position as the client wrote it (`last_text` of a [`Requested::Span`]).
pub fn content_range_as_written(first: u64, last_text: &str, length: Option<u64>) -> HeaderValue {
    header_value(match length {
        Some(length) => format!("bytes {first}-{last_text}/{length}"),
        None => format!("bytes {first}-{last_text}/*"),
    })
}

/// `Content-Range: bytes */length`, which a 416 carries.
pub fn unsatisfied_range(length: u64) -> HeaderValue {
    header_value(format!("bytes */{length}"))
}

/// Texts made of digits and ASCII punctuation only; anything else would be a fault of the caller, and the
/// answer then says no more than the unit.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("bytes */*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64, last_text: &str) -> Requested {
        Requested::Span { first, last, last_text: last_text.into() }
    }

    #[test]
    fn good_ranges() {
        for (value, requested) in [
            ("bytes=0-", Requested::From(0)),
            ("Bytes=7-", Requested::From(7)),
            ("bytes=0-0", span(0, 0, "0")),
            ("bytes=5-9", span(5, 9, "9")),
            ("bytes= 5-9\t", span(5, 9, "9")),
            ("bytes=,5-9,", span(5, 9, "9")),
            ("bytes=5-0009", span(5, 9, "0009")),
            ("bytes=-5", Requested::Suffix(5)),
            ("bytes=-0", Requested::Suffix(0)),
            ("bytes=0-1,2-3", Requested::Several),
            ("bytes=0-1, -3", Requested::Several),
            ("bytes=0-9007199254740991", span(0, 9_007_199_254_740_991, "9007199254740991")),
            ("bytes=0-99999999999999999999999", span(0, u64::MAX, "99999999999999999999999")),
            ("bytes=99999999999999999999999-", Requested::From(u64::MAX)),
        ] {
            assert_eq!(Requested::parse(value), requested, "{value:?}");
        }
    }

    #[test]
    fn a_malformed_range_is_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=9-5",
            "bytes=a-",
            "bytes=0-b",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=1 - 2",
            "bytes =1-2",
            "items=0-1",
            "bytes=0-1,x",
            "bytes=--1",
            "bytes=1-2-3",
            "bytes=\u{661}-",
        ] {
            assert_eq!(Requested::parse(value), Requested::Whole, "{value:?}");
        }
    }

    #[test]
    fn two_fields_are_ignored() {
        let mut headers = HeaderMap::new();
        assert_eq!(Requested::from_headers(&headers), Requested::Whole);
        headers.append(RANGE, HeaderValue::from_static("bytes=1-2"));
        assert_eq!(Requested::from_headers(&headers), span(1, 2, "2"));
        headers.append(RANGE, HeaderValue::from_static("bytes=1-2"));
        assert_eq!(Requested::from_headers(&headers), Requested::Whole);
    }

    #[test]
    fn resolution_against_a_length() {
        let satisfiable = |first, last| Resolved::Satisfiable { first, last };
        for (value, length, resolved) in [
            ("bytes=0-", 10, satisfiable(0, 9)),
            ("bytes=9-", 10, satisfiable(9, 9)),
            ("bytes=10-", 10, Resolved::Unsatisfiable),
            ("bytes=3-5", 10, satisfiable(3, 5)),
            ("bytes=3-50", 10, satisfiable(3, 9)),
            ("bytes=10-50", 10, Resolved::Unsatisfiable),
            ("bytes=-3", 10, satisfiable(7, 9)),
            ("bytes=-10", 10, satisfiable(0, 9)),
            ("bytes=-50", 10, satisfiable(0, 9)),
            ("bytes=-0", 10, Resolved::Unsatisfiable),
            ("bytes=0-1,3-4", 10, Resolved::Whole),
            ("nonsense", 10, Resolved::Whole),
            ("bytes=0-", 0, Resolved::Whole),
            ("bytes=-1", 0, Resolved::Whole),
            ("bytes=0-0", 0, Resolved::Unsatisfiable),
            ("bytes=1-", 0, Resolved::Unsatisfiable),
            ("bytes=-0", 0, Resolved::Unsatisfiable),
            ("bytes=0-", u64::MAX, satisfiable(0, u64::MAX - 1)),
        ] {
            assert_eq!(Requested::parse(value).resolve(length), resolved, "{value:?} of {length}");
        }
    }

    #[test]
    fn content_ranges_as_text() {
        assert_eq!(content_range(0, 9, Some(10)), "bytes 0-9/10");
        assert_eq!(content_range(5, 9, None), "bytes 5-9/*");
        assert_eq!(
            content_range_as_written(0, "99999999999999999999999", None),
            "bytes 0-99999999999999999999999/*"
        );
        assert_eq!(unsatisfied_range(10), "bytes */10");
    }
}
