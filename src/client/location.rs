//! Where something is: `http://host:port/bucket/key`, as a person types it and as it goes on the wire.
//!
//! What is typed is read like an address in a browser: an escape (`%20`) stays, everything else that may not stand
//! in a request target is escaped. So a `%` in a key is typed as `%25`, and `?` and `#` as `%3F` and `%23`.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Error, Result};

/// What is escaped in a path: all but RFC 3986's `pchar` and the slash.
const PATH_ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// What is escaped in the value of a query parameter: all but RFC 3986's `unreserved` and the slash.
const QUERY_ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A server, and a bucket, a prefix or an object on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The bucket, decoded; empty for the server itself.
    pub bucket: String,
    /// The key or the prefix of keys, decoded; may be empty.
    pub key: String,
}

impl Location {
    /// Reads what a person typed.
    ///
    /// # Errors
    /// [`Error::Location`] with what is wrong.
    pub fn parse(text: &str) -> Result<Location> {
        let Some(rest) = strip_scheme(text) else {
            return Err(wrong(text, "it has to start with http://"));
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if rest.contains(['?', '#']) {
            return Err(wrong(text, "in a name, '?' is written %3F and '#' is written %23"));
        }
        let (host, port) = split_authority(authority).map_err(|rule| wrong(text, rule))?;
        let decoded = percent_decode_str(path.trim_start_matches('/'))
            .decode_utf8()
            .map_err(|_| wrong(text, "its escapes do not decode to UTF-8"))?;
        let (bucket, key) = decoded.split_once('/').unwrap_or((&decoded, ""));
        Ok(Location { host, port, bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The same server, another object; `key` as it is, without escapes.
    pub fn object(&self, bucket: &str, key: &str) -> Location {
        Location { host: self.host.clone(), port: self.port, bucket: bucket.to_owned(), key: key.to_owned() }
    }

    /// `host:port`, as in the Host field.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The request target of the object.
    pub fn target(&self) -> String {
        format!("/{}/{}", escape_path(&self.bucket), escape_path(&self.key))
    }

    /// The request target of the object, with query parameters (`follow`, `0`); values are escaped.
    pub fn target_with(&self, parameters: &[(&str, &str)]) -> String {
        with_parameters(self.target(), parameters)
    }

    /// The request target of the bucket's listing, or of the list of buckets, with query parameters.
    pub fn listing_target(&self, parameters: &[(&str, &str)]) -> String {
        let target =
            if self.bucket.is_empty() { "/".to_owned() } else { format!("/{}/", escape_path(&self.bucket)) };
        with_parameters(target, parameters)
    }

    /// Whether it names an object.
    pub fn is_object(&self) -> bool {
        !self.bucket.is_empty() && !self.key.is_empty()
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "http://{}{}", self.authority(), self.target())
    }
}

fn strip_scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    scheme.eq_ignore_ascii_case("http").then_some(rest)
}

fn split_authority(authority: &str) -> std::result::Result<(String, u16), &'static str> {
    if authority.contains('@') {
        return Err("a user name before '@' is not supported");
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("what follows the bracket is not a port"),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    let port = match port {
        Some(port) => {
            port.parse().ok().filter(|port| *port > 0).ok_or("the port is not one of 1 to 65535")?
        }
        None => 80,
    };
    Ok((host.to_owned(), port))
}

fn escape_path(text: &str) -> String {
    utf8_percent_encode(text, PATH_ESCAPED).to_string()
}

fn with_parameters(mut target: String, parameters: &[(&str, &str)]) -> String {
    for (number, (name, value)) in parameters.iter().enumerate() {
        let separator = if number == 0 { '?' } else { '&' };
        // Writing to a String cannot fail.
        let _ = write!(target, "{separator}{name}={}", utf8_percent_encode(value, QUERY_ESCAPED));
    }
    target
}

fn wrong(text: &str, rule: &str) -> Error {
    Error::Location(format!("{text:?} is not a location such as http://host:port/bucket/key: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_goes_on_the_wire_escaped() {
        for (typed, target) in [
            ("http://h:1/b/k", "/b/k"),
            ("http://h:1/b/a b.mp4", "/b/a%20b.mp4"),
            ("http://h:1/b/a%20b.mp4", "/b/a%20b.mp4"),
            ("http://h:1/b/100%25", "/b/100%25"),
            ("http://h:1/b/100%", "/b/100%25"),
            ("http://h:1/b/caf\u{e9}/x", "/b/caf%C3%A9/x"),
            ("http://h:1/b/a//b", "/b/a//b"),
            ("http://h:1/b/why%3F", "/b/why%3F"),
            ("HTTP://h:1/b/a+b=c", "/b/a+b=c"),
        ] {
            assert_eq!(Location::parse(typed).unwrap().target(), target, "{typed}");
        }
    }

    #[test]
    fn hosts_and_ports_come_apart() {
        for (typed, host, port, authority) in [
            ("http://localhost:8420/b/k", "localhost", 8420, "localhost:8420"),
            ("http://localhost/b/k", "localhost", 80, "localhost:80"),
            ("http://[::1]:9/b/k", "::1", 9, "[::1]:9"),
            ("http://[::1]/b/k", "::1", 80, "[::1]:80"),
        ] {
            let location = Location::parse(typed).unwrap();
            assert_eq!((location.host.as_str(), location.port), (host, port), "{typed}");
            assert_eq!(location.authority(), authority);
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        for typed in [
            "h:1/b/k",
            "https://h/b/k",
            "http:///b/k",
            "http://h:0/b",
            "http://h:70000/b",
            "http://h:x/b",
            "http://[::1/b",
            "http://user@h/b/k",
            "http://h/b/k?x=1",
            "http://h/b/k#x",
            "http://h/b/%ff",
        ] {
            assert!(matches!(Location::parse(typed), Err(Error::Location(_))), "{typed}");
        }
    }

    #[test]
    fn listings_take_a_bucket_a_prefix_or_nothing() {
        let server = Location::parse("http://h:1").unwrap();
        assert_eq!(server.listing_target(&[]), "/");
        let prefix = Location::parse("http://h:1/b/2026/a b").unwrap();
        assert!(prefix.is_object());
        assert_eq!(
            prefix.listing_target(&[("prefix", &prefix.key), ("limit", "10")]),
            "/b/?prefix=2026/a%20b&limit=10"
        );
        assert!(!Location::parse("http://h:1/b/").unwrap().is_object());
    }
}
