//! Heads of answers: RFC 9112, section 4 and RFC 9110, section 6.6.1.
//!
//! [`ReplyHead::write`] puts a whole head into a buffer and tells how the body behind it is to be delimited:
//! that depends on the version of the client, and with it whether the connection can be used again. A header
//! value is a [`HeaderValue`] everywhere, which cannot hold a line break; what was stored with an object
//! becomes one through [`stored_header`] or is left out.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, StatusCode};

use super::head::Version;
use super::problem::{self, Problem};

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is known about the body of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none and nothing is said about one: 204, 304, and HEAD where the length is not known.
    Absent,
    /// It has this many bytes. Also for the answer to a HEAD, which says so and does not send them.
    Length(u64),
    /// Its length is not known.
    Unknown,
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delimited {
    /// By its length, or there is none.
    Length,
    /// By its last chunk.
    Chunked,
    /// By the end of the connection (HTTP/1.0). A body that was cut short must end in a reset.
    Close,
}

/// What the head of an answer committed the connection to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// How the body is to be sent.
    pub delimited: Delimited,
    /// Whether another request may follow.
    pub keep_alive: bool,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// Its headers, without those that delimit the body, `Connection` and `Date`.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// The body.
    pub body: Body,
    /// The version of the request.
    pub version: Version,
    /// Whether client and server both want to go on with the connection.
    pub keep_alive: bool,
}

impl ReplyHead<'_> {
    /// Appends the head to `out`. The version of an answer is always the server's own (RFC 9110, section 2.5).
    pub fn write(&self, out: &mut Vec<u8>, date: &str) -> Committed {
        let delimited = match (self.body, self.version) {
            (Body::Absent | Body::Length(_), _) => Delimited::Length,
            (Body::Unknown, Version::Http11) => Delimited::Chunked,
            (Body::Unknown, Version::Http10) => Delimited::Close,
        };
        let keep_alive = self.keep_alive && delimited != Delimited::Close;

        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.status.canonical_reason().unwrap_or_default().as_bytes());
        write_line(out, b"\r\ndate", date.as_bytes());
        for (name, value) in self.headers {
            write_line(out, name.as_str().as_bytes(), value.as_bytes());
        }
        match (self.body, delimited) {
            (Body::Length(length), _) => write_length(out, length),
            (_, Delimited::Chunked) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            _ => {}
        }
        match (self.version, keep_alive) {
            (_, false) => out.extend_from_slice(b"connection: close\r\n"),
            (Version::Http10, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (Version::Http11, true) => {}
        }
        out.extend_from_slice(b"\r\n");
        Committed { delimited, keep_alive }
    }
}

/// Appends the whole answer that tells of a problem; `with_body` is false for HEAD. `request` is the id under
/// which the log knows the request.
pub fn write_problem(
    out: &mut Vec<u8>,
    problem: &Problem,
    request: &str,
    version: Version,
    keep_alive: bool,
    with_body: bool,
    date: &str,
) -> Committed {
    let body = problem.body(request);
    let mut headers = Vec::with_capacity(problem.headers.len() + 1);
    headers.push((http::header::CONTENT_TYPE, problem::CONTENT_TYPE));
    headers.extend_from_slice(&problem.headers);
    let committed = ReplyHead {
        status: problem.status,
        headers: &headers,
        body: Body::Length(body.len() as u64),
        version,
        keep_alive: keep_alive && !problem.close,
    }
    .write(out, date);
    if with_body {
        out.extend_from_slice(body.as_bytes());
    }
    committed
}

/// A header that was stored with an object, if it can stand in a head.
pub fn stored_header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
}

fn write_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_length(out: &mut Vec<u8>, length: u64) {
    // Writing to a vector does not fail.
    let _ = write!(out, "content-length: {length}\r\n");
}

/// The text of `Date`, made anew only when the second changes.
#[derive(Clone, Debug)]
pub struct DateText {
    second: Option<u64>,
    text: String,
}

impl Default for DateText {
    fn default() -> DateText {
        DateText::new()
    }
}

impl DateText {
    /// Nothing made yet.
    pub fn new() -> DateText {
        DateText { second: None, text: String::new() }
    }

    /// The date of `now`, as RFC 9110, section 5.6.7 writes it.
    pub fn at(&mut self, now: SystemTime) -> &str {
        let second = whole_seconds(now);
        if self.second != Some(second) {
            self.text = date_of(second);
            self.second = Some(second);
        }
        &self.text
    }
}

/// A time as a `Last-Modified` says it.
pub fn last_modified(time: SystemTime) -> HeaderValue {
    HeaderValue::try_from(date_of(whole_seconds(time)))
        .unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// Seconds since 1970, within what an HTTP date can say.
fn whole_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(DATE_MAX_SECONDS)
}

/// The last second of the year 9999: HTTP dates have four digits for the year.
const DATE_MAX_SECONDS: u64 = 253_402_300_799;

fn date_of(second: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second))
}

#[cfg(test)]
mod tests {
    use http::header::{ALLOW, CONTENT_TYPE, ETAG};

    use super::*;

    const DATE: &str = "Sat, 14 Nov 2026 10:00:00 GMT";

    fn head(body: Body, version: Version, keep_alive: bool) -> (String, Committed) {
        let headers = [(ETAG, HeaderValue::from_static("\"a\""))];
        let mut out = Vec::new();
        let committed = ReplyHead { status: StatusCode::OK, headers: &headers, body, version, keep_alive }
            .write(&mut out, DATE);
        (String::from_utf8(out).unwrap(), committed)
    }

    #[test]
    fn heads() {
        let begin = format!("HTTP/1.1 200 OK\r\ndate: {DATE}\r\netag: \"a\"\r\n");
        for (body, version, keep_alive, end, committed) in [
            (Body::Length(7), Version::Http11, true, "content-length: 7\r\n", (Delimited::Length, true)),
            (
                Body::Length(0),
                Version::Http11,
                false,
                "content-length: 0\r\nconnection: close\r\n",
                (Delimited::Length, false),
            ),
            (
                Body::Length(7),
                Version::Http10,
                true,
                "content-length: 7\r\nconnection: keep-alive\r\n",
                (Delimited::Length, true),
            ),
            (Body::Absent, Version::Http11, true, "", (Delimited::Length, true)),
            (Body::Absent, Version::Http10, false, "connection: close\r\n", (Delimited::Length, false)),
            (
                Body::Unknown,
                Version::Http11,
                true,
                "transfer-encoding: chunked\r\n",
                (Delimited::Chunked, true),
            ),
            (
                Body::Unknown,
                Version::Http11,
                false,
                "transfer-encoding: chunked\r\nconnection: close\r\n",
                (Delimited::Chunked, false),
            ),
            (Body::Unknown, Version::Http10, true, "connection: close\r\n", (Delimited::Close, false)),
        ] {
            let expected = Committed { delimited: committed.0, keep_alive: committed.1 };
            assert_eq!(
                head(body, version, keep_alive),
                (format!("{begin}{end}\r\n"), expected),
                "{body:?} {version:?} {keep_alive}"
            );
        }
    }

    #[test]
    fn a_problem_is_a_whole_answer() {
        let problem = Problem::method_not_allowed(&http::Method::PATCH, "GET, HEAD");
        for with_body in [true, false] {
            let mut out = Vec::new();
            let committed = write_problem(&mut out, &problem, "r-7", Version::Http11, true, with_body, DATE);
            assert_eq!(committed, Committed { delimited: Delimited::Length, keep_alive: true });
            let text = String::from_utf8(out).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
            assert!(head.contains(&format!("\r\n{CONTENT_TYPE}: application/problem+json\r\n")));
            assert!(head.contains(&format!("\r\n{ALLOW}: GET, HEAD\r\n")));
            assert!(head.ends_with(&format!("\r\ncontent-length: {}", problem.body("r-7").len())));
            assert_eq!(body, if with_body { problem.body("r-7") } else { String::new() });
        }
    }

    #[test]
    fn a_problem_that_closes_says_so() {
        let mut out = Vec::new();
        let problem = Problem::bad_framing("x");
        let committed = write_problem(&mut out, &problem, "r", Version::Http11, true, true, DATE);
        assert!(!committed.keep_alive);
        assert!(String::from_utf8(out).unwrap().contains("\r\nconnection: close\r\n"));
    }

    #[test]
    fn stored_headers_cannot_split_a_head() {
        assert!(stored_header("x-amz-meta-title", "a b\tc é").is_some());
        for (name, value) in
            [("a", "b\r\nc: d"), ("a", "b\n"), ("a", "\0"), ("a b", "c"), ("a\r\nb", "c"), ("", "c")]
        {
            assert!(stored_header(name, value).is_none(), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn dates() {
        let mut date = DateText::new();
        assert_eq!(date.at(UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date.at(UNIX_EPOCH + Duration::from_millis(1_999)), "Thu, 01 Jan 1970 00:00:01 GMT");
        assert_eq!(date.at(UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(last_modified(UNIX_EPOCH - Duration::from_secs(5)), "Thu, 01 Jan 1970 00:00:00 GMT");
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(last_modified(far), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
