//! Conditional requests: RFC 9110, section 13.
//!
//! Conditions are evaluated in the order of section 13.2.2. A date that is malformed or stands twice is no
//! condition, as sections 13.1.3 and 13.1.4 say; a malformed entity tag matches nothing, which refuses an
//! `If-Match` and lets an `If-None-Match` pass. Dates have whole seconds, so the validators' are compared as
//! such.

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, Method};

/// What the conditions are evaluated against: the object as it would be served now.
#[derive(Clone, Copy, Debug)]
pub struct Validators<'a> {
    /// Its entity tag as it stands in `ETag`, quotes included; none for one that is still changing.
    pub etag: Option<&'a str>,
    /// When it was modified last.
    pub modified: Option<SystemTime>,
    /// Whether there is anything to serve at all.
    pub exists: bool,
}

/// What the conditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Do what the method says.
    Proceed,
    /// 304: what the client has is still right.
    NotModified,
    /// 412: do nothing.
    PreconditionFailed,
}

/// Whether there is a condition to evaluate.
pub(super) fn is_conditional(headers: &HeaderMap) -> bool {
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// Evaluates all conditions but `If-Range`, for which there is [`range_applies`].
pub fn evaluate(method: &Method, headers: &HeaderMap, validators: &Validators<'_>) -> Outcome {
    let safe = matches!(*method, Method::GET | Method::HEAD);

    if headers.contains_key(IF_MATCH) {
        if !any_tag_matches(headers, &IF_MATCH, validators, strong_match) {
            return Outcome::PreconditionFailed;
        }
    } else if let (Some(date), Some(modified)) = (date_of(headers, &IF_UNMODIFIED_SINCE), validators.modified)
        && seconds_of(modified) > seconds_of(date)
    {
        return Outcome::PreconditionFailed;
    }

    if headers.contains_key(IF_NONE_MATCH) {
        if any_tag_matches(headers, &IF_NONE_MATCH, validators, weak_match) {
            return if safe { Outcome::NotModified } else { Outcome::PreconditionFailed };
        }
    } else if safe
        && let (Some(date), Some(modified)) = (date_of(headers, &IF_MODIFIED_SINCE), validators.modified)
        && seconds_of(modified) <= seconds_of(date)
    {
        return Outcome::NotModified;
    }

    Outcome::Proceed
}

/// Whether a `Range` of this request counts (section 13.1.5): there is no `If-Range`, or it names what would be
/// served now. Tags are compared strongly; a date must be the very one that `Last-Modified` would say.
pub fn range_applies(headers: &HeaderMap, validators: &Validators<'_>) -> bool {
    let mut values = headers.get_all(IF_RANGE).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return true,
        (Some(value), None) => value.as_bytes(),
        (Some(_), Some(_)) => return false,
    };
    if let Some((tag, [])) = take_tag(value) {
        return validators.etag.is_some_and(|etag| strong_match(tag, etag));
    }
    match (parse_date(value), validators.modified) {
        (Some(date), Some(modified)) => seconds_of(modified) == seconds_of(date),
        _ => false,
    }
}

/// An entity tag without its weakness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag<'a> {
    weak: bool,
    /// With its quotes.
    opaque: &'a [u8],
}

/// Section 8.8.3.2: equal, and neither is weak.
fn strong_match(tag: Tag<'_>, etag: &str) -> bool {
    !tag.weak && tag.opaque == etag.as_bytes()
}

/// Section 8.8.3.2: equal, weak or not.
fn weak_match(tag: Tag<'_>, etag: &str) -> bool {
    tag.opaque == etag.strip_prefix("W/").unwrap_or(etag).as_bytes()
}

/// Whether a list of tags (or `*`) names what exists.
fn any_tag_matches(
    headers: &HeaderMap,
    field: &HeaderName,
    validators: &Validators<'_>,
    matches: fn(Tag<'_>, &str) -> bool,
) -> bool {
    if !validators.exists {
        return false;
    }
    headers.get_all(field).iter().map(|value| value.as_bytes()).any(|value| {
        value == b"*" || validators.etag.is_some_and(|etag| tags(value).any(|tag| matches(tag, etag)))
    })
}

/// The tags of a list, up to the first fault in it.
fn tags(mut list: &[u8]) -> impl Iterator<Item = Tag<'_>> {
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', rest @ ..] = list {
            list = rest;
        }
        let (tag, rest) = take_tag(list)?;
        // Between two tags there is a comma.
        let gap = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(rest.len());
        list = match rest.split_at(gap).1 {
            behind @ ([] | [b',', ..]) => behind,
            _ => &[],
        };
        Some(tag)
    })
}

/// The tag at the beginning of a text, and what is behind it (section 8.8.3).
fn take_tag(text: &[u8]) -> Option<(Tag<'_>, &[u8])> {
    let (weak, text) = match text {
        [b'W', b'/', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let [b'"', content @ ..] = text else { return None };
    let content_length = content.iter().position(|byte| *byte == b'"')?;
    let is_tag_byte = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..);
    if !content.iter().take(content_length).all(is_tag_byte) {
        return None;
    }
    let (opaque, rest) = text.split_at(content_length + 2);
    Some((Tag { weak, opaque }, rest))
}

fn date_of(headers: &HeaderMap, field: &HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(field).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse_date(value.as_bytes()),
        _ => None,
    }
}

fn parse_date(text: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()
}

/// Whole seconds, as HTTP dates have them.
fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;

    const BEFORE: &str = "Sat, 14 Nov 2026 09:59:59 GMT";
    const SAME: &str = "Sat, 14 Nov 2026 10:00:00 GMT";
    const AFTER: &str = "Sat, 14 Nov 2026 10:00:01 GMT";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// An object modified at SAME and half a second.
    fn object(etag: &str) -> Validators<'_> {
        let modified = httpdate::parse_http_date(SAME).unwrap() + Duration::from_millis(500);
        Validators { etag: Some(etag), modified: Some(modified), exists: true }
    }

    const NOTHING: Validators<'static> = Validators { etag: None, modified: None, exists: false };
    const LIVE: Validators<'static> = Validators { etag: None, modified: None, exists: true };

    #[test]
    fn conditions_on_an_object() {
        use Outcome::{NotModified, PreconditionFailed, Proceed};
        // The outcome for GET, and for PUT.
        for (fields, get, put) in [
            (&[][..], Proceed, Proceed),
            (&[("if-match", "*")], Proceed, Proceed),
            (&[("if-match", "\"a\"")], Proceed, Proceed),
            (&[("if-match", "\"x\" , W/\"y\",\t\"a\"")], Proceed, Proceed),
            (&[("if-match", "\"x\""), ("if-match", "\"a\"")], Proceed, Proceed),
            (&[("if-match", "W/\"a\"")], PreconditionFailed, PreconditionFailed),
            (&[("if-match", "\"x\"")], PreconditionFailed, PreconditionFailed),
            (&[("if-match", "a")], PreconditionFailed, PreconditionFailed),
            (&[("if-match", "\"x\"\"a\"")], PreconditionFailed, PreconditionFailed),
            (&[("if-match", "")], PreconditionFailed, PreconditionFailed),
            (&[("if-none-match", "*")], NotModified, PreconditionFailed),
            (&[("if-none-match", "\"a\"")], NotModified, PreconditionFailed),
            (&[("if-none-match", "W/\"a\"")], NotModified, PreconditionFailed),
            (&[("if-none-match", ",, \"x\",\"a\"")], NotModified, PreconditionFailed),
            (&[("if-none-match", "\"x,a\", \"y\"")], Proceed, Proceed),
            (&[("if-none-match", "\"A\"")], Proceed, Proceed),
            (&[("if-none-match", "\"a")], Proceed, Proceed),
            (&[("if-modified-since", BEFORE)], Proceed, Proceed),
            (&[("if-modified-since", SAME)], NotModified, Proceed),
            (&[("if-modified-since", AFTER)], NotModified, Proceed),
            (&[("if-modified-since", "yesterday")], Proceed, Proceed),
            (&[("if-modified-since", SAME), ("if-modified-since", SAME)], Proceed, Proceed),
            (&[("if-unmodified-since", BEFORE)], PreconditionFailed, PreconditionFailed),
            (&[("if-unmodified-since", SAME)], Proceed, Proceed),
            (&[("if-unmodified-since", "never")], Proceed, Proceed),
            // The order: tags go before dates, If-Match before If-None-Match.
            (&[("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Proceed, Proceed),
            (&[("if-none-match", "\"x\""), ("if-modified-since", AFTER)], Proceed, Proceed),
            (&[("if-none-match", "\"a\""), ("if-modified-since", BEFORE)], NotModified, PreconditionFailed),
            (&[("if-match", "\"x\""), ("if-none-match", "\"a\"")], PreconditionFailed, PreconditionFailed),
            (&[("if-match", "\"a\""), ("if-none-match", "\"a\"")], NotModified, PreconditionFailed),
            (&[("if-unmodified-since", SAME), ("if-modified-since", SAME)], NotModified, Proceed),
        ] {
            let headers = headers(fields);
            assert_eq!(evaluate(&Method::GET, &headers, &object("\"a\"")), get, "GET {fields:?}");
            assert_eq!(evaluate(&Method::HEAD, &headers, &object("\"a\"")), get, "HEAD {fields:?}");
            assert_eq!(evaluate(&Method::PUT, &headers, &object("\"a\"")), put, "PUT {fields:?}");
            assert_eq!(evaluate(&Method::DELETE, &headers, &object("\"a\"")), put, "DELETE {fields:?}");
        }
    }

    #[test]
    fn a_weak_validator_matches_weakly_only() {
        let weak = object("W/\"a\"");
        let headers_match = headers(&[("if-match", "W/\"a\"")]);
        assert_eq!(evaluate(&Method::PUT, &headers_match, &weak), Outcome::PreconditionFailed);
        let headers_none = headers(&[("if-none-match", "\"a\"")]);
        assert_eq!(evaluate(&Method::GET, &headers_none, &weak), Outcome::NotModified);
        assert!(!range_applies(&headers(&[("if-range", "W/\"a\"")]), &weak));
    }

    #[test]
    fn conditions_on_nothing_and_on_what_still_changes() {
        for (fields, nothing, live) in [
            (("if-match", "*"), Outcome::PreconditionFailed, Outcome::Proceed),
            (("if-match", "\"a\""), Outcome::PreconditionFailed, Outcome::PreconditionFailed),
            (("if-none-match", "*"), Outcome::Proceed, Outcome::PreconditionFailed),
            (("if-none-match", "\"a\""), Outcome::Proceed, Outcome::Proceed),
            (("if-unmodified-since", BEFORE), Outcome::Proceed, Outcome::Proceed),
        ] {
            let headers = headers(&[fields]);
            assert_eq!(evaluate(&Method::PUT, &headers, &NOTHING), nothing, "{fields:?}");
            assert_eq!(evaluate(&Method::PUT, &headers, &LIVE), live, "{fields:?}");
        }
    }

    #[test]
    fn if_range() {
        for (fields, applies) in [
            (&[][..], true),
            (&[("if-range", "\"a\"")], true),
            (&[("if-range", "\"x\"")], false),
            (&[("if-range", "W/\"a\"")], false),
            (&[("if-range", "\"a\", \"b\"")], false),
            (&[("if-range", "*")], false),
            (&[("if-range", "a")], false),
            (&[("if-range", SAME)], true),
            (&[("if-range", BEFORE)], false),
            (&[("if-range", AFTER)], false),
            (&[("if-range", "\"a\""), ("if-range", "\"a\"")], false),
        ] {
            assert_eq!(range_applies(&headers(fields), &object("\"a\"")), applies, "{fields:?}");
        }
        assert!(!range_applies(&headers(&[("if-range", "\"a\"")]), &LIVE));
        assert!(!range_applies(&headers(&[("if-range", SAME)]), &LIVE));
    }
}
