//! What a request is for: the service, a bucket, or an object.
//!
//! RFC 9112, section 3.2 gives the forms (origin-form, and absolute-form, which every server must accept); RFC
//! 3986 the escapes. A path is percent-decoded once, strictly, and what comes out is checked as a [`Name`]:
//! escaped dots and slashes get no other treatment than plain ones. `+` is a plus in a path and a space in a
//! query, as every URL library writes them.
//!
//! A query's known parameters must be right, and may stand once; unknown ones are ignored, because players add
//! their own to get past caches.

use std::borrow::Cow;
use std::time::Duration;

use http::Method;

use super::problem::Problem;
use crate::store::listing::{LIMIT_MAX, ListingQuery};
use crate::store::name::{Name, check_bucket};

/// The longest `wait`; a longer one is cut to this.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a request is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// `/`: the list of buckets.
    Service,
    /// `/{bucket}` or `/{bucket}/`: the list of its objects.
    Bucket {
        /// The bucket.
        bucket: String,
        /// Which page of it.
        query: ListingQuery,
    },
    /// `/{bucket}/{key}`.
    Object {
        /// Its name.
        name: Name,
        /// How it is to be read.
        query: ObjectQuery,
    },
    /// `/_tus`, and what is below.
    Tus(TusTarget),
}

/// What is below `/_tus`: the names of objects are repeated there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TusTarget {
    /// `/_tus/{bucket}`.
    pub bucket: Option<String>,
    /// `/_tus/{bucket}/{key}`.
    pub name: Option<Name>,
    /// `?upload=GENERATION`, in hexadecimal.
    pub upload: Option<u64>,
}

/// What of a key is escaped in a path that we write.
pub const KEY_ESCAPES: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How an object is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectQuery {
    /// Follow a live object to its end (the default), or give what is committed now (`follow=0`).
    pub follow: bool,
    /// Begin at the watermark (`from=live`).
    pub from_live: bool,
    /// How long to wait for an object that is not there yet (`wait=SECONDS`).
    pub wait: Option<Duration>,
    /// The upload of this generation, and not the name (`upload=GENERATION`, in hexadecimal).
    pub upload: Option<u64>,
}

impl Default for ObjectQuery {
    fn default() -> ObjectQuery {
        ObjectQuery { follow: true, from_live: false, wait: None, upload: None }
    }
}

impl Target {
    /// The target of a path that begins with a slash, and its query, both as they came.
    ///
    /// # Errors
    /// 400 with what is wrong with it.
    pub fn parse(path: &str, query: &str) -> Result<Target, Problem> {
        let path = decode(path, "path")?;
        let names = path
            .strip_prefix('/')
            .ok_or_else(|| Problem::bad_request("the path of a target begins with a slash"))?;
        if names.is_empty() {
            return Ok(Target::Service);
        }
        if let Some(below) = names.strip_prefix("_tus")
            && (below.is_empty() || below.starts_with('/'))
        {
            return Target::tus(below.trim_start_matches('/'), query);
        }
        match names.split_once('/') {
            None => Target::bucket(names, query),
            Some((bucket, "")) => Target::bucket(bucket, query),
            Some((bucket, key)) => {
                Ok(Target::Object { name: Name::new(bucket, key)?, query: parse_object_query(query)? })
            }
        }
    }

    fn tus(names: &str, query: &str) -> Result<Target, Problem> {
        let (bucket, key) = names.split_once('/').unwrap_or((names, ""));
        let upload = parse_object_query(query)?.upload;
        if bucket.is_empty() {
            return Ok(Target::Tus(TusTarget { upload, ..TusTarget::default() }));
        }
        check_bucket(bucket)?;
        let name = if key.is_empty() { None } else { Some(Name::new(bucket, key)?) };
        Ok(Target::Tus(TusTarget { bucket: Some(bucket.to_owned()), name, upload }))
    }

    fn bucket(bucket: &str, query: &str) -> Result<Target, Problem> {
        check_bucket(bucket)?;
        Ok(Target::Bucket { bucket: bucket.to_owned(), query: parse_listing_query(query)? })
    }

    /// The methods that this target takes, as an `Allow` field lists them.
    pub fn allow(&self) -> &'static str {
        match self {
            Target::Service | Target::Bucket { .. } => "GET, HEAD, OPTIONS",
            Target::Object { query: ObjectQuery { upload: Some(_), .. }, .. } => {
                "HEAD, PATCH, DELETE, OPTIONS"
            }
            Target::Object { .. } => "GET, HEAD, PUT, POST, DELETE, OPTIONS",
            Target::Tus(_) => "HEAD, POST, PATCH, DELETE, OPTIONS",
        }
    }

    /// Whether this target takes the method.
    pub fn allows(&self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// A target split into its path and its query, neither decoded. The query is empty where there is none.
///
/// # Errors
/// 400 for what is neither in origin-form nor in absolute-form.
pub fn split(target: &str) -> Result<(&str, &str), Problem> {
    let (resource, query) = target.split_once('?').unwrap_or((target, ""));
    if target.contains('#') {
        return Err(Problem::bad_request("a request target has no fragment"));
    }
    if resource.starts_with('/') {
        return Ok((resource, query));
    }
    match resource.split_once("://") {
        Some((scheme, rest)) if is_http(scheme) => {
            let (authority, path) = match rest.find('/') {
                Some(position) => rest.split_at(position),
                None => (rest, "/"),
            };
            check_authority(authority)?;
            if authority.is_empty() {
                return Err(Problem::bad_request("an absolute target names its host"));
            }
            Ok((path, query))
        }
        Some(_) => Err(Problem::bad_request("the scheme of an absolute target is http")),
        None => Err(Problem::bad_request("a request target is a path that begins with a slash, or a URL")),
    }
}

/// Checks the characters of a host with an optional port (RFC 3986, section 3.2.2). User information does not
/// belong there (RFC 9110, section 4.2.4). It may be empty.
///
/// # Errors
/// 400 with the rule.
pub fn check_authority(authority: &str) -> Result<(), Problem> {
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte);
    if authority.bytes().all(is_host) {
        Ok(())
    } else {
        Err(Problem::bad_request("a host is a name or an address, with or without a port"))
    }
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

fn parse_object_query(query: &str) -> Result<ObjectQuery, Problem> {
    let mut parsed = ObjectQuery::default();
    let mut parameters = Parameters::default();
    for (name, raw) in pairs(query) {
        match name {
            "follow" => {
                parsed.follow = match &*parameters.value(Parameter::Follow, raw)? {
                    "" | "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err(Problem::bad_request("follow is 0 or 1")),
                }
            }
            "from" => {
                parsed.from_live = match &*parameters.value(Parameter::From, raw)? {
                    "live" => true,
                    "start" => false,
                    _ => return Err(Problem::bad_request("from is live or start")),
                }
            }
            "wait" => parsed.wait = Some(parse_seconds(&parameters.value(Parameter::Wait, raw)?)?),
            "upload" => {
                let text = parameters.value(Parameter::Upload, raw)?;
                let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(&*text);
                let generation = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                parsed.upload = Some(generation.ok_or_else(|| {
                    Problem::bad_request("upload is what the answer to the creation of an upload has there")
                })?);
            }
            _ => {}
        }
    }
    Ok(parsed)
}

fn parse_listing_query(query: &str) -> Result<ListingQuery, Problem> {
    let mut parsed = ListingQuery::default();
    let mut parameters = Parameters::default();
    for (name, raw) in pairs(query) {
        match name {
            "prefix" => parsed.prefix = parameters.value(Parameter::Prefix, raw)?.into_owned(),
            "after" => parsed.after = parameters.value(Parameter::After, raw)?.into_owned(),
            "limit" => parsed.limit = parse_limit(&parameters.value(Parameter::Limit, raw)?)?,
            "delimiter" => {
                let delimiter = parameters.value(Parameter::Delimiter, raw)?.into_owned();
                parsed.delimiter = (!delimiter.is_empty()).then_some(delimiter);
            }
            _ => {}
        }
    }
    Ok(parsed)
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The parameters that have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Follow,
    From,
    Wait,
    Upload,
    Prefix,
    After,
    Limit,
    Delimiter,
}

/// Decodes the values of known parameters, each of which may stand once: of two, nobody could say which counts.
#[derive(Default)]
struct Parameters {
    seen: Vec<Parameter>,
}

impl Parameters {
    fn value<'q>(&mut self, parameter: Parameter, raw: &'q str) -> Result<Cow<'q, str>, Problem> {
        let name = match parameter {
            Parameter::Follow => "follow",
            Parameter::From => "from",
            Parameter::Wait => "wait",
            Parameter::Upload => "upload",
            Parameter::Prefix => "prefix",
            Parameter::After => "after",
            Parameter::Limit => "limit",
            Parameter::Delimiter => "delimiter",
        };
        if self.seen.contains(&parameter) {
            return Err(Problem::bad_request(format!("{name} stands more than once in the query")));
        }
        self.seen.push(parameter);
        if !raw.contains('+') {
            return decode(raw, name);
        }
        Ok(decode(&raw.replace('+', " "), name)?.into_owned().into())
    }
}

/// Seconds in decimal, with or without a fraction.
fn parse_seconds(text: &str) -> Result<Duration, Problem> {
    let malformed = || Problem::bad_request("wait is a number of seconds, such as 10 or 0.5");
    // `f64` would also take signs, exponents, infinities.
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(malformed());
    }
    let seconds: f64 = text.parse().map_err(|_| malformed())?;
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX).min(WAIT_MAX))
}

/// A count of items from 1; one above the largest is cut to it, as `next` leads on from there.
fn parse_limit(text: &str) -> Result<usize, Problem> {
    let malformed = || Problem::bad_request("limit is a number from 1");
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    // Digits that do not fit are a number above the largest.
    match text.parse::<usize>().unwrap_or(LIMIT_MAX) {
        0 => Err(malformed()),
        limit => Ok(limit.min(LIMIT_MAX)),
    }
}

/// Percent-decodes a text that may hold no control character afterwards.
fn decode<'t>(text: &'t str, what: &str) -> Result<Cow<'t, str>, Problem> {
    let mut escapes = text.split('%');
    // What stands before the first percent sign is no escape.
    escapes.next();
    if !escapes.all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())) {
        return Err(Problem::bad_request(format!("the {what} has a percent sign without two hex digits")));
    }
    let decoded = percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Problem::bad_request(format!("the {what} is not UTF-8 after percent-decoding")))?;
    if decoded.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!("the {what} has a control character")));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(target: &str) -> Result<Target, Problem> {
        let (path, query) = split(target)?;
        Target::parse(path, query)
    }

    fn key_of(target: &str) -> String {
        match parse(target) {
            Ok(Target::Object { name, .. }) => name.as_str().to_owned(),
            other => panic!("{target:?} is {other:?}"),
        }
    }

    fn object_query(query: &str) -> Result<ObjectQuery, Problem> {
        parse(&format!("/b/k?{query}")).map(|target| match target {
            Target::Object { query, .. } => query,
            other => panic!("{query:?} is {other:?}"),
        })
    }

    fn listing_query(query: &str) -> Result<ListingQuery, Problem> {
        parse(&format!("/b/?{query}")).map(|target| match target {
            Target::Bucket { query, .. } => query,
            other => panic!("{query:?} is {other:?}"),
        })
    }

    #[test]
    fn objects() {
        for (target, name) in [
            ("/b/k", "b/k"),
            ("/b/k?", "b/k"),
            ("/b/k?x=%zz&%", "b/k"),
            ("/b/a/b/c.ts", "b/a/b/c.ts"),
            ("/b/a%2Fb", "b/a/b"),
            ("/b%2fa", "b/a"),
            ("/%62/%6B", "b/k"),
            ("/b/a%20b+c", "b/a b+c"),
            ("/b/%C3%A9", "b/é"),
            ("/b/é", "b/é"),
            ("/b/100%25", "b/100%"),
            ("/b/%2541", "b/%41"),
            ("/b/k/", "b/k/"),
            ("/b//k", "b//k"),
            ("/b/...", "b/..."),
            ("/b/a:b@c", "b/a:b@c"),
            ("/b/x?y?z=/..", "b/x"),
            ("http://host/b/k", "b/k"),
            ("HTTP://host:8420/b/k?follow=0", "b/k"),
            ("https://[::1]:80/b/k", "b/k"),
        ] {
            assert_eq!(key_of(target), name, "{target:?}");
        }
    }

    #[test]
    fn services_and_buckets() {
        for target in ["/", "/?x", "http://host", "http://host/", "http://host?x=1"] {
            assert_eq!(parse(target), Ok(Target::Service), "{target:?}");
        }
        for target in ["/b", "/b/", "/b?prefix=", "/b/?x", "/b%2F", "http://host/b"] {
            let bucket = Target::Bucket { bucket: "b".into(), query: ListingQuery::default() };
            assert_eq!(parse(target), Ok(bucket), "{target:?}");
        }
    }

    #[test]
    fn bad_targets() {
        for target in [
            "",
            "*",
            "b/k",
            "host:80",
            "ftp://host/b/k",
            "http:///b/k",
            "http://user@host/b/k",
            "http://ho st/",
            "/b/%",
            "/b/%4",
            "/b/%4g",
            "/b/%g4",
            "/b/k%",
            "/b/%%41",
            "/b/% 41",
            "/b/%+1",
            "/b/%C3",
            "/b/%ff",
            "/b/%C0%AF",
            "/b/%ED%A0%80",
            "/b/%00",
            "/b/a%0Db",
            "/b/a%0Ab",
            "/b/%7f",
            "/b/%C2%85",
            "/b/.",
            "/b/..",
            "/b/../k",
            "/b/a/./k",
            "/b/%2e%2E/k",
            "/b/a%2F..",
            "/b/..%2Fk",
            "/../k",
            "/./k",
            "/..",
            "/B/k",
            "/b_/k",
            "//k",
            "//",
            "/b c/k",
            "/b/k#fragment",
            "/b/?x#fragment",
            "/%",
            "/b/%\u{e9}\u{e9}",
            "%2F",
            "/http://host/k",
        ] {
            let refused = parse(target);
            assert_eq!(refused.map_err(|problem| problem.status.as_u16()), Err(400), "{target:?}");
        }
        assert!(parse(&format!("/{}/k", "b".repeat(64))).is_err());
        assert!(parse(&format!("/b/{}", "%6b".repeat(1024))).is_ok());
        assert!(parse(&format!("/b/{}", "%6b".repeat(1025))).is_err());
    }

    #[test]
    fn object_queries() {
        let default = ObjectQuery::default();
        for (query, parsed) in [
            ("", default),
            ("&&=&", default),
            ("cache=17&Follow=0", default),
            ("follow=1", default),
            ("follow", default),
            ("follow=0", ObjectQuery { follow: false, ..default }),
            ("x&follow=%30&y", ObjectQuery { follow: false, ..default }),
            ("from=live", ObjectQuery { from_live: true, ..default }),
            ("wait=10", ObjectQuery { wait: Some(Duration::from_secs(10)), ..default }),
            ("wait=0.25", ObjectQuery { wait: Some(Duration::from_millis(250)), ..default }),
            ("wait=0", ObjectQuery { wait: Some(Duration::ZERO), ..default }),
            ("wait=999999999", ObjectQuery { wait: Some(WAIT_MAX), ..default }),
        ] {
            assert_eq!(object_query(query), Ok(parsed), "{query:?}");
        }
        let digits = format!("wait={}", "9".repeat(400));
        assert_eq!(object_query(&digits).map(|query| query.wait), Ok(Some(WAIT_MAX)));
        for query in [
            "follow=2",
            "follow=no",
            "follow=0&follow=0",
            "from=",
            "from=5",
            "wait=",
            "wait=-1",
            "wait=+1",
            "wait=1e3",
            "wait=inf",
            "wait=NaN",
            "wait=.",
            "wait=1.2.3",
            "wait=10s",
            "follow=%",
            "follow=%00",
        ] {
            assert_eq!(object_query(query).map_err(|problem| problem.status.as_u16()), Err(400), "{query:?}");
        }
    }

    #[test]
    fn listing_queries() {
        let parsed = listing_query("prefix=a%2Fb+c%2B&after=%C3%A9&limit=5&delimiter=/&x=%").unwrap();
        assert_eq!(
            parsed,
            ListingQuery {
                prefix: "a/b c+".into(),
                after: "é".into(),
                limit: 5,
                delimiter: Some("/".into())
            }
        );
        assert_eq!(listing_query("delimiter=").unwrap(), ListingQuery::default());
        assert_eq!(listing_query("limit=10000").unwrap().limit, 10_000);
        assert_eq!(listing_query("limit=10001").unwrap().limit, 10_000);
        assert_eq!(listing_query(&format!("limit={}", "9".repeat(99))).unwrap().limit, 10_000);
        for query in [
            "limit=0",
            "limit=",
            "limit=-1",
            "limit=+1",
            "limit=1&limit=1",
            "limit=0x10",
            "prefix=%F",
            "after=%00",
        ] {
            assert_eq!(
                listing_query(query).map_err(|problem| problem.status.as_u16()),
                Err(400),
                "{query:?}"
            );
        }
    }

    #[test]
    fn allowed_methods() {
        let object = parse("/b/k").unwrap();
        let bucket = parse("/b/").unwrap();
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE, Method::OPTIONS]
        {
            assert!(object.allows(&method));
        }
        assert!(!object.allows(&Method::PATCH));
        let upload = parse("/b/k?upload=1f").unwrap();
        assert!(
            upload.allows(&Method::PATCH) && upload.allows(&Method::HEAD) && !upload.allows(&Method::PUT)
        );
        assert!(bucket.allows(&Method::GET) && !bucket.allows(&Method::PUT));
        assert!(!Target::Service.allows(&Method::DELETE));
    }

    proptest! {
        #[test]
        fn no_target_panics(target in "\\PC*") {
            let _ = parse(&target);
        }

        #[test]
        fn an_encoded_name_comes_back(key in "[ -~é-ü]{1,40}") {
            prop_assume!(Name::new("b", &key).is_ok());
            let encoded: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(key_of(&format!("/b/{encoded}")), format!("b/{key}"));
        }
    }
}
