//! Answers that say what went wrong: RFC 9457, `application/problem+json`.
//!
//! A problem is made where the fault is seen and rendered once, by the connection, which adds the request id.
//! `close` says that the connection must not be used again: either the framing of what follows can no longer
//! be trusted, or what follows is a body that nobody will read.
//!
//! What the operator must act on (a failing device, damaged data) is told to the client in general words only;
//! the particulars are in the log, under the same request id.

use std::fmt;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_RANGE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};

use crate::error::{Actor, Error, Kind};

/// The media type of a problem's body.
pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// How long a client is asked to wait before it tries again.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// What went wrong with a request, as its answer will say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of the answer.
    pub status: StatusCode,
    /// A URI that stands for the kind of problem; `about:blank` where the status says all of it.
    pub uri: &'static str,
    /// What kind of problem this is; the same words for the same kind.
    pub title: &'static str,
    /// What happened this time, in one sentence.
    pub detail: String,
    /// Who can do something about it.
    pub actor: Actor,
    /// The connection ends with this answer.
    pub close: bool,
    /// Headers that belong to the answer, such as `Allow`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What the kind of problem says besides (RFC 9457, section 3.2).
    pub members: Vec<(&'static str, u64)>,
}

impl Problem {
    /// A problem of any status; the connection may go on.
    pub fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Problem {
        // What is wrong with a request its sender can change; of the rest the operator knows more.
        let is_callers = status.is_client_error()
            || status == StatusCode::NOT_IMPLEMENTED
            || status == StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        let actor = if is_callers { Actor::Caller } else { Actor::Operator };
        Problem {
            status,
            uri: "about:blank",
            title,
            detail: detail.into(),
            actor,
            close: false,
            headers: Vec::new(),
            members: Vec::new(),
        }
    }

    /// 400: the request is well framed, but asks for something that cannot be.
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "Bad request", detail)
    }

    /// 400 and the end of the connection: nobody can tell where the next request begins.
    pub fn bad_framing(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "Malformed message", detail).closing()
    }

    /// 404: no such object.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "Not found", detail)
    }

    /// 405: a known method that this target does not take; `allow` lists those that it does.
    pub fn method_not_allowed(method: &http::Method, allow: &'static str) -> Problem {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method not allowed",
            format!("{method} is not supported here; {allow} are"),
        )
        .with(ALLOW, HeaderValue::from_static(allow))
    }

    /// 408 and the end of the connection: the request did not arrive in time.
    pub fn request_timeout(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "Request timeout", detail).closing()
    }

    /// 409: the object is not in a state that allows this.
    pub fn conflict(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, "Conflict", detail)
    }

    /// 411 and the end of the connection: an upload must say how long it is, or be chunked.
    pub fn length_required() -> Problem {
        Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "Length required",
            "an upload needs a Content-Length or Transfer-Encoding: chunked",
        )
        .closing()
    }

    /// 412: a condition of the request does not hold.
    pub fn precondition_failed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::PRECONDITION_FAILED, "Precondition failed", detail)
    }

    /// 413 and the end of the connection: the body is larger than the node takes.
    pub fn content_too_large(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "Content too large", detail).closing()
    }

    /// 414 and the end of the connection: the target is too long.
    pub fn target_too_long(length_max: usize) -> Problem {
        Problem::new(
            StatusCode::URI_TOO_LONG,
            "URI too long",
            format!("a request target has at most {length_max} bytes"),
        )
        .closing()
    }

    /// 415: the body is of a kind that is not taken here.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail)
    }

    /// 416: no byte of the range exists; `content_range` tells the length (see
    /// [`unsatisfied_range`](super::range::unsatisfied_range)).
    pub fn range_not_satisfiable(content_range: HeaderValue) -> Problem {
        Problem::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "Range not satisfiable",
            "the object has no byte in the requested range",
        )
        .with(CONTENT_RANGE, content_range)
    }

    /// 417: an expectation other than 100-continue.
    pub fn expectation_failed() -> Problem {
        Problem::new(
            StatusCode::EXPECTATION_FAILED,
            "Expectation failed",
            "the only expectation that can be met is 100-continue",
        )
    }

    /// 431 and the end of the connection: the head, or the trailers, are too large.
    pub fn fields_too_large(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request header fields too large", detail)
            .closing()
    }

    /// 500: the node failed; the particulars are in its log.
    pub fn internal(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error", detail)
    }

    /// 501: a method or transfer coding that this server does not know.
    pub fn not_implemented(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_IMPLEMENTED, "Not implemented", detail)
    }

    /// 503: not now; `Retry-After` says when to ask again.
    pub fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", detail)
            .with(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))
    }

    /// 505 and the end of the connection: neither HTTP/1.1 nor HTTP/1.0.
    pub fn version_not_supported() -> Problem {
        Problem::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "HTTP version not supported",
            "this server speaks HTTP/1.1 and HTTP/1.0",
        )
        .closing()
    }

    /// 507: no room for the bytes.
    pub fn insufficient_storage(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INSUFFICIENT_STORAGE, "Insufficient storage", detail)
    }

    /// The same problem, ending the connection.
    #[must_use]
    pub fn closing(mut self) -> Problem {
        self.close = true;
        self
    }

    /// The same problem as one of a kind that a registered URI stands for.
    #[must_use]
    pub fn of_kind(mut self, uri: &'static str) -> Problem {
        self.uri = uri;
        self
    }

    /// The same problem with one more member of its body.
    #[must_use]
    pub fn with_member(mut self, name: &'static str, value: u64) -> Problem {
        self.members.push((name, value));
        self
    }

    /// The same problem with one more header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.headers.push((name, value));
        self
    }

    /// The body: one JSON object. `request` is the id under which the log knows the request.
    pub fn body(&self, request: &str) -> String {
        let mut body = serde_json::json!({
            "type": self.uri,
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "actor": self.actor.to_string(),
            "request": request,
        });
        for &(name, value) in &self.members {
            body[name] = value.into();
        }
        body.to_string()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let problem = match error.kind() {
            Kind::InvalidName | Kind::InvalidArgument => Problem::bad_request(error.to_string()),
            Kind::NotFound => Problem::not_found(error.to_string()),
            Kind::Exists => Problem::precondition_failed(error.to_string()),
            Kind::WrongState => Problem::conflict(error.to_string()),
            Kind::NoSpace => Problem::insufficient_storage("the store has no room for this"),
            Kind::ReadOnly => Problem::unavailable(
                "the store does not accept writes, because its device failed",
                RETRY_AFTER_DEFAULT,
            ),
            // With an errno its text names files of ours.
            Kind::Busy if error.errno().is_some() => {
                Problem::unavailable("the node is at one of its limits", RETRY_AFTER_DEFAULT)
            }
            Kind::Interrupted | Kind::Cancelled | Kind::DeadlineExceeded | Kind::Closed | Kind::Busy => {
                Problem::unavailable(error.to_string(), RETRY_AFTER_DEFAULT)
            }
            Kind::Device => Problem::internal("a storage device failed"),
            Kind::Damaged => Problem::internal("what is stored is damaged"),
            Kind::Startup | Kind::AddressInUse | Kind::DataFolder | Kind::Locked | Kind::NoRing => {
                Problem::internal("the engine did not start")
            }
        };
        Problem { actor: error.actor(), ..problem }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}", self.status.as_u16(), self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_json_whatever_the_detail_holds() {
        let problem = Problem::bad_request("a \"quote\", a \\ and a \u{1}\r\n");
        let body: serde_json::Value = serde_json::from_str(&problem.body("r-1")).unwrap();
        assert_eq!(body["status"], 400);
        assert_eq!(body["type"], "about:blank");
        assert_eq!(body["title"], "Bad request");
        assert_eq!(body["detail"], "a \"quote\", a \\ and a \u{1}\r\n");
        assert_eq!(body["actor"], "caller");
        assert_eq!(body["request"], "r-1");
    }

    #[test]
    fn a_problem_says_who_can_act() {
        use rustix::io::Errno;
        for (error, actor) in [
            (Error::new(Kind::InvalidName, "x"), Actor::Caller),
            (Error::new(Kind::Busy, "x"), Actor::Caller),
            (Error::device("x", Errno::MFILE), Actor::Operator),
            (Error::device("x", Errno::NOSPC), Actor::Operator),
            (Error::device("x", Errno::IO), Actor::Operator),
            (Error::device("x", Errno::ROFS), Actor::Operator),
            (Error::new(Kind::Interrupted, "x"), Actor::Nobody),
        ] {
            let named = format!("{error:?}");
            assert_eq!(Problem::from(error).actor, actor, "{named}");
        }
        assert_eq!(Problem::bad_framing("x").actor, Actor::Caller);
        assert_eq!(Problem::internal("x").actor, Actor::Operator);
    }

    #[test]
    fn kinds_map_to_statuses() {
        for (kind, status) in [
            (Kind::InvalidName, 400),
            (Kind::InvalidArgument, 400),
            (Kind::NotFound, 404),
            (Kind::Exists, 412),
            (Kind::WrongState, 409),
            (Kind::Interrupted, 503),
            (Kind::Cancelled, 503),
            (Kind::DeadlineExceeded, 503),
            (Kind::NoSpace, 507),
            (Kind::ReadOnly, 503),
            (Kind::Device, 500),
            (Kind::Damaged, 500),
            (Kind::Closed, 503),
            (Kind::Startup, 500),
            (Kind::Busy, 503),
        ] {
            let problem = Problem::from(Error::new(kind, "what happened"));
            assert_eq!(problem.status.as_u16(), status, "{kind:?}");
            let retries = problem.headers.iter().any(|(name, _)| name == RETRY_AFTER);
            assert_eq!(retries, status == 503, "{kind:?}");
        }
    }

    #[test]
    fn what_the_operator_must_act_on_is_not_told_to_clients() {
        for errno in [rustix::io::Errno::IO, rustix::io::Errno::MFILE, rustix::io::Errno::ROFS] {
            let error = Error::device("write to /data/segment-7", errno);
            assert!(!Problem::from(error).detail.contains("/data"), "{errno}");
        }
    }
}
