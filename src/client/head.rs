//! Heads of requests and answers, and what they say about the body that follows. No I/O.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

use super::body::Framing;

/// The longest head of an answer, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most fields that the head of an answer may have.
const FIELDS_MAX: usize = 128;

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// The fields, by name.
    pub fields: HeaderMap,
    /// Whether the status line said HTTP/1.1 and not 1.0.
    version_1_1: bool,
}

impl Head {
    /// A head of HTTP/1.1 with these fields.
    pub fn new(status: u16, fields: HeaderMap) -> Head {
        Head { status, fields, version_1_1: true }
    }

    /// Reads a head from the front of `input`: the head and its length in bytes, or `None` if `input` is only a
    /// part of one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(input: &[u8]) -> Result<Option<(Head, usize)>, String> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(input).map_err(|error| format!("its head: {error}"))? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if input.len() >= HEAD_BYTES_MAX => {
                return Err(format!("its head is longer than {HEAD_BYTES_MAX} bytes"));
            }
            httparse::Status::Partial => return Ok(None),
        };
        let mut map = HeaderMap::with_capacity(parsed.headers.len());
        for field in parsed.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes())
                .map_err(|_| format!("{:?} is no field name", field.name))?;
            let value = HeaderValue::from_bytes(field.value)
                .map_err(|_| format!("the value of {name} has characters that no value may have"))?;
            map.append(name, value);
        }
        let head = Head {
            status: parsed.code.unwrap_or_default(),
            fields: map,
            version_1_1: parsed.version == Some(1),
        };
        Ok(Some((head, length)))
    }

    /// The value of a field, if it is there and is text.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }

    /// Whether another answer follows this one (1xx).
    pub(super) fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Whether the server keeps the connection open after the answer.
    pub(super) fn keeps_alive(&self) -> bool {
        let has = |option: &str| {
            self.fields
                .get_all(CONNECTION)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(|token| token.trim().eq_ignore_ascii_case(option))
        };
        !has("close") && (self.version_1_1 || has("keep-alive"))
    }

    /// How the body ends that follows this head (RFC 9112, section 6.3).
    ///
    /// # Errors
    /// What is wrong with its lengths. Where a server could mean two things, this client believes neither.
    pub(super) fn framing(&self, to_head_request: bool) -> Result<Framing, String> {
        if to_head_request || self.is_informational() || matches!(self.status, 204 | 304) {
            return Ok(Framing::Length(0));
        }
        let length = self.content_length()?;
        let mut codings = self.fields.get_all(TRANSFER_ENCODING).iter();
        match (codings.next(), length) {
            (Some(_), Some(_)) => Err("it has both Transfer-Encoding and Content-Length".to_owned()),
            (Some(coding), None) => {
                let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
                if !chunked || codings.next().is_some() || !self.version_1_1 {
                    return Err("its Transfer-Encoding is not exactly chunked".to_owned());
                }
                Ok(Framing::Chunked)
            }
            (None, Some(length)) => Ok(Framing::Length(length)),
            (None, None) => Ok(Framing::UntilClose),
        }
    }

    fn content_length(&self) -> Result<Option<u64>, String> {
        let mut length = None;
        for value in self.fields.get_all(CONTENT_LENGTH) {
            let digits = value.as_bytes();
            let parsed = std::str::from_utf8(digits)
                .ok()
                .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| format!("its Content-Length is {value:?}"))?;
            if length.is_some_and(|earlier| earlier != parsed) {
                return Err("it has several Content-Lengths that differ".to_owned());
            }
            length = Some(parsed);
        }
        Ok(length)
    }
}

/// Appends the head of a request to `output`.
pub(super) fn write_request(
    output: &mut Vec<u8>,
    method: &str,
    target: &str,
    authority: &str,
    fields: &[(String, String)],
) {
    let mut line = |parts: &[&str]| {
        for part in parts {
            output.extend_from_slice(part.as_bytes());
        }
        output.extend_from_slice(b"\r\n");
    };
    line(&[method, " ", target, " HTTP/1.1"]);
    line(&["Host: ", authority]);
    line(&["User-Agent: tailwater/", env!("CARGO_PKG_VERSION")]);
    for (name, value) in fields {
        line(&[name, ": ", value]);
    }
    line(&[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        let (head, length) = Head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_head_is_whole_only_with_its_empty_line() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n";
        for cut in 0..text.len() {
            assert!(
                Head::parse(&text.as_bytes()[..cut]).unwrap().is_none(),
                "{cut} bytes were taken for whole"
            );
        }
        let (head, length) = Head::parse(format!("{text}hello").as_bytes()).unwrap().unwrap();
        assert_eq!((head.status, length), (200, text.len()));
        assert_eq!(head.field("etag"), Some("\"x\""));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "HELLO\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        ] {
            assert!(Head::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert!(Head::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn the_framing_follows_rfc_9112() {
        let of = |text: &str| head(text).framing(false);
        assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"), Ok(Framing::Length(7)));
        assert_eq!(
            of("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n"),
            Ok(Framing::Length(7))
        );
        assert_eq!(of("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"), Ok(Framing::Chunked));
        assert_eq!(of("HTTP/1.0 200 OK\r\n\r\n"), Ok(Framing::UntilClose));
        assert_eq!(of("HTTP/1.1 204 No Content\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(of("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"), Ok(Framing::Length(0)));
        assert_eq!(
            head("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").framing(true),
            Ok(Framing::Length(0))
        );
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(of(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn who_keeps_the_connection() {
        assert!(head("HTTP/1.1 200 OK\r\n\r\n").keeps_alive());
        assert!(!head("HTTP/1.1 200 OK\r\nConnection: foo, Close\r\n\r\n").keeps_alive());
        assert!(!head("HTTP/1.0 200 OK\r\n\r\n").keeps_alive());
        assert!(head("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").keeps_alive());
    }
}
