//! Request heads: RFC 9112, sections 2 to 6, and what RFC 9110 says about their fields.
//!
//! [`parse`] looks at the bytes received so far and keeps nothing between calls: an incomplete head is simply
//! looked at again when there is more of it, and [`parse_more`] does so only where a line has ended. The fields
//! are parsed once, when the head is complete. What can be said about an incomplete head (that it is not
//! HTTP, or too long) is said at once, without waiting for the rest.
//!
//! It is stricter than the RFC requires where two readers of one connection could disagree on where a request
//! ends: lines end in CR LF only, there is one `Content-Length` or one `Transfer-Encoding` and never both, and
//! the only coding is `chunked`. All of those end the connection. A request that is well framed but cannot be
//! served comes back as [`Parsed::Refused`], and the connection may go on where no body follows it.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::chunked::is_token;
use super::problem::Problem;
use super::target::{self, Target};

/// The longest body, and the longest chunk: far more than any disk, and far from the end of 64 bits, so that
/// sums of lengths do not overflow.
pub const BODY_LENGTH_MAX: u64 = 1 << 62;
/// The most fields in a head.
pub const FIELD_COUNT_MAX: usize = 100;
/// The longest method that is looked at; all known ones are shorter.
const METHOD_LENGTH_MAX: usize = 32;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole head in bytes, with the empty line that ends it.
    pub head_length_max: usize,
    /// The request target in bytes.
    pub target_length_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { head_length_max: 32 * 1024, target_length_max: 8 * 1024 }
    }
}

/// The version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// By its length, at most [`BODY_LENGTH_MAX`].
    Length(u64),
    /// By its last chunk.
    Chunked,
}

impl Framing {
    /// Whether bytes follow the head. Some clients say of no body that its length is zero.
    pub fn has_body(self) -> bool {
        !matches!(self, Framing::None | Framing::Length(0))
    }
}

/// A request, all but its body.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method, one that the target takes.
    pub method: Method,
    /// The version.
    pub version: Version,
    /// What the request is for.
    pub target: Target,
    /// The path as it came, not decoded, without the query.
    pub path: String,
    /// The fields.
    pub headers: HeaderMap,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client wants to use the connection again.
    pub keep_alive: bool,
    /// The client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// What the bytes received so far hold.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// The beginning of a head.
    Incomplete,
    /// A request that can be served.
    Complete {
        /// The request.
        head: Head,
        /// The length of the head in bytes; what is behind it is the body, or the next request.
        length: usize,
    },
    /// A well framed request that cannot be served. Where the problem does not close the connection, no body
    /// follows, and the next request begins behind `length`.
    Refused {
        /// Why not.
        problem: Problem,
        /// The method: the answer to a HEAD has no body.
        method: Method,
        /// The version.
        version: Version,
        /// The length of the head in bytes.
        length: usize,
    },
}

/// Parses the head at the beginning of `bytes`.
///
/// # Errors
/// What is wrong with it, where that ends the connection.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Parsed, Problem> {
    parse_more(bytes, 0, limits)
}

/// [`parse`], where an earlier call has found the first `seen` of the bytes to be incomplete.
///
/// The outcome is the same. Of a head that comes byte by byte, only those bytes cost a look at the whole that
/// end a line.
///
/// # Errors
/// What is wrong with the head, where that ends the connection.
pub fn parse_more(bytes: &[u8], seen: usize, limits: &Limits) -> Result<Parsed, Problem> {
    // RFC 9112, section 2.2: an empty line before a request is tolerated.
    let blank_length = match bytes {
        [b'\r', b'\n', ..] => CRLF.len(),
        [b'\r'] => return Ok(Parsed::Incomplete),
        _ => 0,
    };
    let looked_at = &bytes[..bytes.len().min(limits.head_length_max)];
    let looked_at = looked_at.get(blank_length..).unwrap_or_default();
    let (before, fresh) = looked_at.split_at(seen.saturating_sub(blank_length).min(looked_at.len()));
    if before.contains(&b'\n') && !fresh.contains(&b'\n') {
        return incomplete(bytes, limits);
    }
    let lines = find_lines(looked_at)?;
    let (request_line, fields) = match lines {
        Lines::None(beginning) => {
            check_beginning(beginning, limits)?;
            return incomplete(bytes, limits);
        }
        Lines::Some { request_line } => {
            parse_request_line(request_line, limits)?;
            return incomplete(bytes, limits);
        }
        Lines::All { request_line, fields } => (request_line, fields),
    };
    let line = parse_request_line(request_line, limits)?;
    let headers = parse_fields(fields)?;
    check_host(&headers, line.version)?;
    let framing = framing_of(&headers, line.version)?;
    let length = blank_length + request_line.len() + CRLF.len() + fields.len();
    Ok(assess(line, headers, framing, length))
}

const CRLF: &[u8] = b"\r\n";

fn incomplete(bytes: &[u8], limits: &Limits) -> Result<Parsed, Problem> {
    if bytes.len() < limits.head_length_max {
        return Ok(Parsed::Incomplete);
    }
    Err(Problem::fields_too_large(format!(
        "the head of a request has at most {} bytes",
        limits.head_length_max
    )))
}

/// How much of a head is there.
enum Lines<'b> {
    /// A part of the request line.
    None(&'b [u8]),
    /// The request line, without its end.
    Some { request_line: &'b [u8] },
    /// Everything: the fields include the empty line behind them.
    All { request_line: &'b [u8], fields: &'b [u8] },
}

/// Finds the end of the head. Every LF on the way must stand behind a CR; a CR without LF is found by those who
/// look into the lines.
fn find_lines(bytes: &[u8]) -> Result<Lines<'_>, Problem> {
    let mut request_line = None;
    let mut field_count = 0;
    let mut line_start = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let line_end = line_start + line.len();
        if line.last() != Some(&b'\n') {
            break;
        }
        let Some(content) = line.strip_suffix(CRLF) else {
            return Err(Problem::bad_framing("the lines of a head end in CR LF"));
        };
        match request_line {
            None => request_line = Some(content),
            Some(request_line) if content.is_empty() => {
                let fields = &bytes[request_line.len() + CRLF.len()..line_end];
                return Ok(Lines::All { request_line, fields });
            }
            Some(_) if field_count == FIELD_COUNT_MAX => return Err(too_many_fields()),
            Some(_) => field_count += 1,
        }
        line_start = line_end;
    }
    Ok(match request_line {
        None => Lines::None(bytes),
        Some(request_line) => Lines::Some { request_line },
    })
}

/// Checks the beginning of a request line, so that what is not HTTP does not wait for the end of a line.
fn check_beginning(beginning: &[u8], limits: &Limits) -> Result<(), Problem> {
    let mut words = beginning.split(|byte| *byte == b' ');
    if let Some(method) = words.next() {
        check_method(method)?;
    }
    match words.next() {
        Some(target) if target.len() > limits.target_length_max => {
            Err(Problem::target_too_long(limits.target_length_max))
        }
        _ => Ok(()),
    }
}

fn check_method(method: &[u8]) -> Result<(), Problem> {
    if !method.iter().take(METHOD_LENGTH_MAX).all(|byte| is_token(*byte)) {
        return Err(malformed_request_line());
    }
    if method.len() > METHOD_LENGTH_MAX {
        return Err(unknown_method().closing());
    }
    Ok(())
}

fn malformed_request_line() -> Problem {
    Problem::bad_framing(
        "a request begins with a method, a target and a version, with one space between them",
    )
}

fn unknown_method() -> Problem {
    Problem::not_implemented("the method is not known")
}

/// The request line, its words checked but not yet understood.
struct RequestLine<'b> {
    method: Method,
    target: &'b str,
    version: Version,
}

fn parse_request_line<'b>(line: &'b [u8], limits: &Limits) -> Result<RequestLine<'b>, Problem> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        check_beginning(line, limits)?;
        return Err(malformed_request_line());
    };
    check_method(method)?;
    let method = Method::from_bytes(method).map_err(|_| malformed_request_line())?;
    if target.len() > limits.target_length_max {
        return Err(Problem::target_too_long(limits.target_length_max));
    }
    // Bytes beyond ASCII should be escaped; people who type a URL do not, and their meaning is clear.
    if target.is_empty() || !target.iter().all(|byte| matches!(byte, b'!'..=b'~' | 0x80..)) {
        return Err(Problem::bad_framing("a request target has no control characters"));
    }
    let target =
        std::str::from_utf8(target).map_err(|_| Problem::bad_framing("a request target is UTF-8"))?;
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(Problem::version_not_supported());
        }
        _ => return Err(malformed_request_line()),
    };
    Ok(RequestLine { method, target, version })
}

fn parse_fields(bytes: &[u8]) -> Result<HeaderMap, Problem> {
    let mut fields = [httparse::EMPTY_HEADER; FIELD_COUNT_MAX];
    let fields = match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length == bytes.len() => fields,
        Ok(_) => return Err(malformed_field()),
        Err(httparse::Error::TooManyHeaders) => return Err(too_many_fields()),
        Err(_) => return Err(malformed_field()),
    };
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| malformed_field())?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| malformed_field())?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn too_many_fields() -> Problem {
    Problem::fields_too_large(format!("a head has at most {FIELD_COUNT_MAX} fields"))
}

fn malformed_field() -> Problem {
    Problem::bad_framing("a header field is a name, a colon and a value on one line")
}

/// RFC 9112, section 3.2: one `Host` in HTTP/1.1, at most one before, and it is one.
fn check_host(headers: &HeaderMap, version: Version) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host.to_str().map_err(|_| Problem::bad_framing("the Host field is not ASCII"))?;
            target::check_authority(host).map_err(Problem::closing)
        }
        (None, _) if version == Version::Http10 => Ok(()),
        (None, _) => Err(Problem::bad_framing("an HTTP/1.1 request has a Host field")),
        (Some(_), Some(_)) => Err(Problem::bad_framing("the Host field stands more than once")),
    }
}

/// RFC 9112, section 6.
fn framing_of(headers: &HeaderMap, version: Version) -> Result<Framing, Problem> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => {
            Err(Problem::bad_framing("a request has Content-Length or Transfer-Encoding, not both"))
        }
        (Some(_), None) if version == Version::Http10 => {
            Err(Problem::bad_framing("HTTP/1.0 has no Transfer-Encoding"))
        }
        (Some(coding), None) => {
            if codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                Ok(Framing::Chunked)
            } else {
                Err(Problem::not_implemented("the only transfer coding is chunked").closing())
            }
        }
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err(Problem::bad_framing("the Content-Length field stands more than once"));
            }
            parse_length(length.as_bytes()).map(Framing::Length)
        }
        (None, None) => Ok(Framing::None),
    }
}

/// Digits only: no sign, no list, no space.
fn parse_length(digits: &[u8]) -> Result<u64, Problem> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Problem::bad_framing("a Content-Length is one number in decimal digits"));
    }
    digits
        .iter()
        .try_fold(0u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .filter(|length| *length <= BODY_LENGTH_MAX)
        .ok_or_else(|| Problem::bad_framing("the Content-Length is too large"))
}

/// What a well framed request asks for, or why it cannot have it.
fn assess(line: RequestLine<'_>, headers: HeaderMap, framing: Framing, length: usize) -> Parsed {
    let RequestLine { method, target, version } = line;
    let keep_alive = keep_alive_of(&headers, version);
    match understand(&method, target, version, &headers, framing) {
        Ok((target, path, expects_continue)) => Parsed::Complete {
            head: Head { method, version, target, path, headers, framing, keep_alive, expects_continue },
            length,
        },
        Err(mut problem) => {
            // Nobody reads the body of what is refused here.
            problem.close |= !keep_alive || framing.has_body();
            Parsed::Refused { problem, method, version, length }
        }
    }
}

/// The target, the path, and whether the client expects a `100 Continue`.
fn understand(
    method: &Method,
    target: &str,
    version: Version,
    headers: &HeaderMap,
    framing: Framing,
) -> Result<(Target, String, bool), Problem> {
    match *method {
        Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE | Method::PATCH => {}
        Method::OPTIONS if target != "*" => {}
        // These may come with targets of their own forms, `*` or `host:port`.
        Method::OPTIONS | Method::TRACE | Method::CONNECT => {
            return Err(Problem::method_not_allowed(method, "GET, HEAD, PUT, POST, PATCH, DELETE"));
        }
        _ => return Err(unknown_method()),
    }
    let (path, query) = target::split(target)?;
    let target = Target::parse(path, query)?;
    if !target.allows(method) {
        return Err(Problem::method_not_allowed(method, target.allow()));
    }
    // Also in HTTP/1.0, where nothing would mean an empty body (RFC 1945, section 8.3): an upload whose body is
    // delimited by the end of the connection could not be told from one that was cut short.
    let is_plain = matches!(target, Target::Object { .. });
    if matches!(*method, Method::PUT | Method::POST) && framing == Framing::None && is_plain {
        return Err(Problem::length_required());
    }
    let expects_continue = expects_continue(headers, version)?;
    Ok((target, path.to_owned(), expects_continue && framing.has_body()))
}

/// RFC 9110, section 10.1.1: the only expectation there is; HTTP/1.0 has none.
fn expects_continue(headers: &HeaderMap, version: Version) -> Result<bool, Problem> {
    if version == Version::Http10 {
        return Ok(false);
    }
    let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().all(is_continue) {
        Ok(headers.contains_key(EXPECT))
    } else {
        Err(Problem::expectation_failed())
    }
}

/// RFC 9112, section 9.3.
fn keep_alive_of(headers: &HeaderMap, version: Version) -> bool {
    let has_option = |option: &[u8]| {
        headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option))
    };
    match version {
        _ if has_option(b"close") => false,
        Version::Http11 => true,
        Version::Http10 => has_option(b"keep-alive"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The status of a refusal or an error and whether it closes; `None` while incomplete.
    type Verdict = Option<Result<usize, (u16, bool)>>;

    fn verdict(bytes: &[u8], limits: &Limits) -> Verdict {
        verdict_after(bytes, 0, limits)
    }

    fn verdict_after(bytes: &[u8], seen: usize, limits: &Limits) -> Verdict {
        match parse_more(bytes, seen, limits) {
            Ok(Parsed::Incomplete) => None,
            Ok(Parsed::Complete { length, .. }) => Some(Ok(length)),
            Ok(Parsed::Refused { problem, .. }) => Some(Err((problem.status.as_u16(), problem.close))),
            Err(problem) => {
                assert!(problem.close, "{problem}");
                Some(Err((problem.status.as_u16(), problem.close)))
            }
        }
    }

    /// The verdict on the whole, after every prefix has been looked at: none may be taken for complete, and
    /// none may be an error that the whole is not.
    fn verdict_byte_by_byte(bytes: &[u8]) -> Verdict {
        let limits = Limits::default();
        let whole = verdict(bytes, &limits);
        for length in 0..bytes.len() {
            let beginning = &bytes[..length];
            match verdict(beginning, &limits) {
                None => assert_eq!(verdict_after(bytes, length, &limits), whole, "after {length} bytes"),
                early => assert_eq!(early, whole, "{:?}", String::from_utf8_lossy(beginning)),
            }
        }
        whole
    }

    fn head(text: &str) -> Head {
        assert_eq!(verdict_byte_by_byte(text.as_bytes()), Some(Ok(text.len())), "{text:?}");
        let followed = format!("{text}GET / HTTP/1.1\r\n\r\n");
        match parse(followed.as_bytes(), &Limits::default()) {
            Ok(Parsed::Complete { head, length }) if length == text.len() => head,
            other => panic!("{text:?} is {other:?}"),
        }
    }

    #[test]
    fn a_whole_head() {
        let head = head(
            "PUT /cam-1/a%20b?x=1 HTTP/1.1\r\nHost: h:8420\r\nContent-Type:video/mp4\r\n\
             X-Amz-Meta-A: \t1 \t\r\nx-amz-meta-a: 2\r\nContent-Length: 12\r\nexpect: 100-Continue\r\n\r\n",
        );
        assert_eq!(head.method, Method::PUT);
        assert_eq!(head.version, Version::Http11);
        assert!(matches!(&head.target, Target::Object { name, .. } if name.as_str() == "cam-1/a b"));
        assert_eq!(head.path, "/cam-1/a%20b");
        assert_eq!(head.framing, Framing::Length(12));
        assert!(head.keep_alive && head.expects_continue);
        assert_eq!(head.headers["content-type"], "video/mp4");
        assert_eq!(head.headers.get_all("x-amz-meta-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn good_heads() {
        for (text, framing) in [
            ("GET / HTTP/1.0\r\n\r\n", Framing::None),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Framing::None),
            ("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Framing::None),
            ("GET http://h/b/k HTTP/1.1\r\nHost: h\r\n\r\n", Framing::None),
            ("GET /b/\u{e9} HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Framing::None),
            ("HEAD /b HTTP/1.1\r\nHost: h\r\nX: \u{e9}\r\nEmpty:\r\n\r\n", Framing::None),
            ("DELETE /b/k HTTP/1.1\r\nHost: h\r\n\r\n", Framing::None),
            ("GET /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", Framing::Length(3)),
            ("PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", Framing::Length(0)),
            ("PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 007\r\n\r\n", Framing::Length(7)),
            ("PUT /b/k HTTP/1.0\r\nContent-Length: 7\r\n\r\n", Framing::Length(7)),
            ("PUT /b/k HTTP/1.0\r\nContent-Length: 7\r\nExpect: cake\r\n\r\n", Framing::Length(7)),
            (
                "PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 4611686018427387904\r\n\r\n",
                Framing::Length(1 << 62),
            ),
            ("POST /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked \r\n\r\n", Framing::Chunked),
        ] {
            assert_eq!(head(text).framing, framing, "{text:?}");
        }
    }

    #[test]
    fn heads_that_end_the_connection() {
        let put = "PUT /b/k HTTP/1.1\r\nHost: h\r\n";
        let get = "GET / HTTP/1.1\r\nHost: h\r\n";
        // With the Host field, one too many.
        let many_fields = "A: b\r\n".repeat(FIELD_COUNT_MAX);
        let long_target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "t".repeat(8 * 1024));
        let long_method = format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(33));
        for (text, status) in [
            // Lengths and codings.
            (format!("{put}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
            (format!("{put}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5\r\nContent-Length: 6\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5\r\ncontent-length: 5\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5, 5\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5,\r\n\r\n"), 400),
            (format!("{put}Content-Length:\r\n\r\n"), 400),
            (format!("{put}Content-Length: -5\r\n\r\n"), 400),
            (format!("{put}Content-Length: +5\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5 5\r\n\r\n"), 400),
            (format!("{put}Content-Length: 5.0\r\n\r\n"), 400),
            (format!("{put}Content-Length: 0x5\r\n\r\n"), 400),
            (format!("{put}Content-Length: \u{665}\r\n\r\n"), 400),
            (format!("{put}Content-Length: 4611686018427387905\r\n\r\n"), 400),
            (format!("{put}Content-Length: 18446744073709551616\r\n\r\n"), 400),
            (format!("{put}Content-Length: {}\r\n\r\n", "9".repeat(99)), 400),
            (format!("{put}Transfer-Encoding: gzip\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: identity\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: gzip, chunked\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: chunked, chunked\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: xchunked\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: \"chunked\"\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding: chunked;x\r\n\r\n"), 501),
            (format!("{put}Transfer-Encoding:\r\n\r\n"), 501),
            ("PUT /b/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400),
            // Fields.
            (format!("{get} folded\r\n\r\n"), 400),
            (format!("{get}A: b\r\n\tfolded\r\n\r\n"), 400),
            (format!("{get}Content-Length : 5\r\n\r\n"), 400),
            (format!("{get}A\t: 5\r\n\r\n"), 400),
            (format!("{get}A\r\n\r\n"), 400),
            (format!("{get}: b\r\n\r\n"), 400),
            (format!("{get}A b: c\r\n\r\n"), 400),
            (format!("{get}\u{e9}: c\r\n\r\n"), 400),
            (format!("{get}A: b\0c\r\n\r\n"), 400),
            (format!("{get}A\0: c\r\n\r\n"), 400),
            (format!("{get}A: b\x7fc\r\n\r\n"), 400),
            (format!("{get}A: b\rc\r\n\r\n"), 400),
            (format!("{get}A: b\r\r\n\r\n"), 400),
            (format!("{get}\rA: b\r\n\r\n"), 400),
            (format!("{get}A: b\n\r\n"), 400),
            (format!("{get}A: b\r\n\n"), 400),
            (format!("{get}{many_fields}\r\n"), 431),
            // Host.
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            (format!("{get}Host: h\r\n\r\n"), 400),
            ("GET / HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: h, i\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: h/b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n".into(), 400),
            // The request line.
            ("GET / HTTP/1.1\nHost: h\n\n".into(), 400),
            ("GET /\r\n".into(), 400),
            ("GET\r\n".into(), 400),
            ("garbage\r\n".into(), 400),
            ("\n\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("\rGET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            (" GET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET /  HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n".into(), 400),
            ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET /\r HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\rHost: h\r\n\r\n".into(), 400),
            ("GET / HTTP/11\r\nHost: h\r\n\r\n".into(), 400),
            ("GET / http/1.1\r\nHost: h\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1x\r\nHost: h\r\n\r\n".into(), 400),
            ("\u{16}\u{3}\u{1}\u{2}".into(), 400),
            ("GET / HTTP/0.9\r\nHost: h\r\n\r\n".into(), 505),
            ("GET / HTTP/1.2\r\nHost: h\r\n\r\n".into(), 505),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
            (long_target, 414),
            (long_method, 501),
        ] {
            assert_eq!(verdict_byte_by_byte(text.as_bytes()), Some(Err((status, true))), "{text:?}");
        }
        assert_eq!(
            verdict(b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n", &Limits::default()),
            Some(Err((400, true)))
        );
    }

    #[test]
    fn refused_but_well_framed() {
        let host = "HTTP/1.1\r\nHost: h\r\n";
        for (text, status, close) in [
            (format!("GET /b/%zz {host}\r\n"), 400, false),
            (format!("GET /b/../k {host}\r\n"), 400, false),
            (format!("GET /b/%2e%2e/k {host}\r\n"), 400, false),
            (format!("GET /b/%00 {host}\r\n"), 400, false),
            (format!("GET /b/?limit=0 {host}\r\n"), 400, false),
            (format!("GET /b/k {host}Expect: cake\r\n\r\n"), 417, false),
            (format!("GET * {host}\r\n"), 400, false),
            (format!("GET /B_/k {host}Connection: close\r\n\r\n"), 400, true),
            (format!("PUT /b/.. {host}Content-Length: 5\r\n\r\n"), 400, true),
            (format!("PUT /b/.. {host}Content-Length: 0\r\n\r\n"), 400, false),
            (format!("PUT /b/.. {host}Transfer-Encoding: chunked\r\n\r\n"), 400, true),
            (format!("PUT /b/k {host}Content-Length: 5\r\nExpect: cake\r\n\r\n"), 417, true),
            (format!("PUT /b/k {host}\r\n"), 411, true),
            (format!("POST /b/k {host}\r\n"), 411, true),
            ("PUT /b/k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), 411, true),
            (format!("PUT /b/ {host}Content-Length: 0\r\n\r\n"), 405, false),
            (format!("DELETE / {host}\r\n"), 405, false),
            (format!("OPTIONS * {host}\r\n"), 405, false),
            (format!("CONNECT h:80 {host}\r\n"), 405, false),
            (format!("PATCH /b/k {host}Content-Length: 5\r\n\r\n"), 405, true),
            (format!("TRACE /b/k {host}\r\n"), 405, false),
            (format!("BREW /b/k {host}\r\n"), 501, false),
            (format!("get /b/k {host}\r\n"), 501, false),
            ("BREW /b/k HTTP/1.0\r\n\r\n".into(), 501, true),
        ] {
            assert_eq!(verdict_byte_by_byte(text.as_bytes()), Some(Err((status, close))), "{text:?}");
        }
    }

    #[test]
    fn allow_names_the_methods_of_the_target() {
        for (line, allow) in [
            ("PATCH /b/k", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
            ("PUT /b/k?upload=1", "HEAD, PATCH, DELETE, OPTIONS"),
            ("DELETE /b/", "GET, HEAD, OPTIONS"),
            ("POST /", "GET, HEAD, OPTIONS"),
        ] {
            match parse(format!("{line} HTTP/1.0\r\n\r\n").as_bytes(), &Limits::default()) {
                Ok(Parsed::Refused { problem, .. }) => assert_eq!(problem.headers[0].1, allow, "{line}"),
                other => panic!("{line} is {other:?}"),
            }
        }
    }

    #[test]
    fn connections_go_on_as_the_version_says() {
        for (version, connection, keep_alive) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, CLOSE ,y\r\n", false),
            ("1.1", "Connection: x\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let head = head(&format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n"));
            assert_eq!(head.keep_alive, keep_alive, "{version} {connection:?}");
        }
    }

    #[test]
    fn a_continue_is_expected_only_for_a_body_to_come() {
        let expecting = |line: &str, length: &str| {
            head(&format!("{line}\r\nHost: h\r\n{length}Expect: 100-continue\r\n\r\n")).expects_continue
        };
        assert!(expecting("PUT /b/k HTTP/1.1", "Content-Length: 1\r\n"));
        assert!(expecting("PUT /b/k HTTP/1.1", "Transfer-Encoding: chunked\r\n"));
        assert!(!expecting("PUT /b/k HTTP/1.1", "Content-Length: 0\r\n"));
        assert!(!expecting("PUT /b/k HTTP/1.0", "Content-Length: 1\r\n"));
        assert!(!expecting("GET /b/k HTTP/1.1", ""));
    }

    #[test]
    fn limits_are_inclusive() {
        let text = "GET /1234 HTTP/1.1\r\nHost: h\r\n\r\n";
        let limits = |head_length_max, target_length_max| Limits { head_length_max, target_length_max };
        let length = text.len();
        assert_eq!(verdict(text.as_bytes(), &limits(length, 5)), Some(Ok(length)));
        assert_eq!(verdict(text.as_bytes(), &limits(length - 1, 5)), Some(Err((431, true))));
        assert_eq!(verdict(text.as_bytes(), &limits(length, 4)), Some(Err((414, true))));
        assert_eq!(verdict(&text.as_bytes()[..length - 1], &limits(length - 1, 5)), Some(Err((431, true))));
        for prefix in 0..length - 1 {
            assert_eq!(verdict(&text.as_bytes()[..prefix], &limits(length - 1, 5)), None, "{prefix}");
        }
        let fields = "A: b\r\n".repeat(FIELD_COUNT_MAX - 1);
        let text_with_fields = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let complete = Some(Ok(text_with_fields.len()));
        assert_eq!(verdict(text_with_fields.as_bytes(), &Limits::default()), complete);
        // What is behind the head does not count.
        let body = format!("{text}{}", "x".repeat(64 * 1024));
        assert_eq!(verdict(body.as_bytes(), &Limits::default()), Some(Ok(length)));
        // Neither a head without an end nor a line without one is waited for.
        let endless = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(64 * 1024));
        assert_eq!(verdict(endless.as_bytes(), &Limits::default()), Some(Err((431, true))));
        let endless = format!("GET /{}", "x".repeat(64 * 1024));
        assert_eq!(verdict(endless.as_bytes(), &Limits::default()), Some(Err((414, true))));
        for tiny in 0..4 {
            assert!(verdict(b"\r\nGET / HTTP/1.1\r\n\r\n", &limits(tiny, tiny)).is_some());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            verdict(&bytes, &Limits::default());
        }

        #[test]
        fn splits_never_change_a_verdict(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "GET ", "PUT ", "/b/k", " HTTP/1.1", " HTTP/1.0", "\r\n", "\r\n", "\r\n\r\n", "\r", "\n",
                    "Host: h\r\n", "Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n", ":", " ", "\0",
                ]),
                0..14,
            ),
        ) {
            let text = parts.concat();
            let limits = Limits::default();
            // Once there is a verdict, more bytes do not change it.
            let mut earlier: Verdict = None;
            for length in 0..=text.len() {
                let now = verdict(&text.as_bytes()[..length], &limits);
                if earlier.is_none() && length > 0 {
                    prop_assert_eq!(verdict_after(&text.as_bytes()[..length], length - 1, &limits), now);
                }
                prop_assert!(earlier.is_none() || now == earlier, "{:?} then {:?}", earlier, now);
                earlier = now;
            }
        }
    }
}
