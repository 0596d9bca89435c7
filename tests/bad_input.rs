//! What clients send by mistake or on purpose: a clear answer each, the connection closed where nobody can tell any
//! more where the next request begins and kept where one can, nothing stored that was not asked for, and a server
//! that is as well afterwards as before.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Connection, End, PATIENCE, Program, Response, Server, assert_same, content};

/// What becomes of the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Closed,
    Kept,
}
use Then::{Closed, Kept};

/// A request and what it must come to. `@` in it stands for a key that no other case has.
struct Case {
    request: Vec<u8>,
    status: u16,
    then: Then,
}

fn case(request: impl AsRef<[u8]>, status: u16, then: Then) -> Case {
    Case { request: request.as_ref().to_vec(), status, then }
}

/// A server with one object, `/t/witness`, by which is told that it is well.
struct Witnessed {
    server: Server,
    witness: Vec<u8>,
}

impl Witnessed {
    fn start(flags: &[&str]) -> Witnessed {
        let server = Server::start_with(flags);
        let witness = content(1, 70_000);
        server.put("/t/witness", &witness);
        Witnessed { server, witness }
    }

    #[track_caller]
    fn assert_well(&self) {
        assert_eq!(self.server.admin_status("/livez"), 200);
        self.server.assert_sealed("/t/witness", &self.witness);
    }

    #[track_caller]
    fn assert_goes_on(&self, connection: &mut Connection) {
        connection.request("GET", "/t/witness", &[]);
        let response = connection.response("GET");
        assert_eq!(response.head.status, 200, "{response:?}");
        assert_same("the next answer on the connection", &response.body, &self.witness);
    }

    /// Sends the request of a case, at once or byte by byte, and checks everything but what is stored.
    #[track_caller]
    fn check(&self, case: &Case, key: &str, bytewise: bool) {
        let request = filled_in(&case.request, key);
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        let what = format!("{shown:?}{}", if bytewise { ", byte by byte" } else { "" });
        let mut connection = self.server.connect();
        if bytewise {
            // The answer may come, and the connection end, before all of it was sent.
            request.chunks(1).all(|byte| connection.try_send(byte));
        } else {
            connection.try_send(&request);
        }
        let method = if request.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
        let response = connection.response(method);
        assert_problem(&what, &response, case.status, method != "HEAD");
        match case.then {
            Closed => {
                assert_eq!(response.head.get("connection"), Some("close"), "{what}: {response:?}");
                assert_eq!(connection.ended(), End::Closed, "{what}");
            }
            Kept => {
                assert_eq!(response.head.get("connection"), None, "{what}: {response:?}");
                self.assert_goes_on(&mut connection);
            }
        }
    }

    /// Checks cases of which nothing may be stored, each at once and byte by byte where it is not too long.
    #[track_caller]
    fn check_all(&self, cases: &[Case]) {
        let buckets = self.server.get("/").body;
        for (index, case) in cases.iter().enumerate() {
            let key = format!("case-{index}");
            self.check(case, &key, false);
            if case.request.len() < 3_000 {
                self.check(case, &key, true);
            }
            let stored = self.server.get(&format!("/t/{key}"));
            assert_eq!(
                stored.head.status,
                404,
                "{:?} left {stored:?}",
                String::from_utf8_lossy(&case.request)
            );
            self.assert_well();
        }
        let listing = self.server.get("/t/").json();
        assert_eq!(listing["objects"].as_array().unwrap().len(), 1, "{listing}");
        assert_eq!(self.server.get("/").body, buckets, "a bucket came into being");
    }
}

/// Asserts that an answer tells of a problem, whole and in the form that it should have.
#[track_caller]
fn assert_problem(what: &str, response: &Response, status: u16, with_body: bool) {
    assert_eq!(response.head.status, status, "{what}: {response:?}");
    assert_eq!(response.end, End::Clean, "{what}: {response:?}");
    assert_eq!(response.head.get("content-type"), Some("application/problem+json"), "{what}: {response:?}");
    if with_body {
        let problem = response.json();
        assert_eq!(problem["status"], status, "{what}: {problem}");
        for needed in ["title", "detail", "request"] {
            assert!(!problem[needed].as_str().unwrap().is_empty(), "{what}: {problem}");
        }
    }
}

fn filled_in(request: &[u8], key: &str) -> Vec<u8> {
    let mut filled = Vec::with_capacity(request.len() + key.len());
    for &byte in request {
        match byte {
            b'@' => filled.extend_from_slice(key.as_bytes()),
            byte => filled.push(byte),
        }
    }
    filled
}

/// A PUT of the case's key with these fields, a body behind the head that fits none of them.
fn put(fields: &str) -> String {
    format!("PUT /t/@ HTTP/1.1\r\nHost: h\r\n{fields}\r\nhello")
}

/// A GET with these fields.
fn get(fields: &str) -> String {
    format!("GET /t/witness HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

#[test]
fn a_request_whose_framing_is_in_doubt_is_refused_and_ends_the_connection() {
    let witnessed = Witnessed::start(&[]);
    let cases = [
        // Lengths.
        case(put("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400, Closed),
        case(put("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400, Closed),
        case(put("Content-Length: 5\r\nContent-Length: 6\r\n"), 400, Closed),
        case(put("Content-Length: 5\r\nContent-Length: 5\r\n"), 400, Closed),
        case(put("Content-Length: 5, 6\r\n"), 400, Closed),
        case(put("Content-Length: -5\r\n"), 400, Closed),
        case(put("Content-Length: +5\r\n"), 400, Closed),
        case(put("Content-Length: 5.0\r\n"), 400, Closed),
        case(put("Content-Length: 0x5\r\n"), 400, Closed),
        case(put("Content-Length: 5 5\r\n"), 400, Closed),
        case(put("Content-Length:\r\n"), 400, Closed),
        case(put("Content-Length: five\r\n"), 400, Closed),
        case(put("Content-Length: 4611686018427387905\r\n"), 400, Closed),
        case(put("Content-Length: 18446744073709551615\r\n"), 400, Closed),
        case(put("Content-Length: 18446744073709551621\r\n"), 400, Closed),
        case(put("Content-Length: 99999999999999999999999999\r\n"), 400, Closed),
        case(put(""), 411, Closed),
        // Codings.
        case(put("Transfer-Encoding: gzip\r\n"), 501, Closed),
        case(put("Transfer-Encoding: identity\r\n"), 501, Closed),
        case(put("Transfer-Encoding: gzip, chunked\r\n"), 501, Closed),
        case(put("Transfer-Encoding: chunked, chunked\r\n"), 501, Closed),
        case(put("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 501, Closed),
        case(put("Transfer-Encoding: xchunked\r\n"), 501, Closed),
        case("PUT /t/@ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400, Closed),
        case("PUT /t/@ HTTP/1.0\r\n\r\nhello", 411, Closed),
        // Lines and fields.
        case("GET /t/witness HTTP/1.1\nHost: h\n\n", 400, Closed),
        case("GET /t/witness HTTP/1.1\rHost: h\r\r\n\r\n", 400, Closed),
        case(get("A: b\rc\r\n"), 400, Closed),
        case(get("A: b\r\r\n"), 400, Closed),
        case(get("A: b\n"), 400, Closed),
        case(get("A: b\0c\r\n"), 400, Closed),
        case(get("A\0: b\r\n"), 400, Closed),
        case(get("A: b\r\n folded\r\n"), 400, Closed),
        case(get("Content-Length : 0\r\n"), 400, Closed),
        case(get("no colon\r\n"), 400, Closed),
        case(get(": no name\r\n"), 400, Closed),
        case("GET /t/witness HTTP/1.1\r\n\r\n", 400, Closed),
        case(get("Host: other\r\n"), 400, Closed),
        case("GET /t/witness HTTP/1.1\r\nHost: a b\r\n\r\n", 400, Closed),
        // Request lines.
        case("GET /t/wit\0ness HTTP/1.1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET /t/wit\tness HTTP/1.1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET /t/a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET  /t/witness HTTP/1.1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET /t/witness\r\n\r\n", 400, Closed),
        case("GET /t/witness HTTP/1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET /t/witness http/1.1\r\nHost: h\r\n\r\n", 400, Closed),
        case("GET /t/witness HTTP/1.2\r\nHost: h\r\n\r\n", 505, Closed),
        case("GET /t/witness HTTP/2.0\r\nHost: h\r\n\r\n", 505, Closed),
        case("GET /t/witness HTTP/0.9\r\nHost: h\r\n\r\n", 505, Closed),
        case("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, Closed),
        case(format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(40)), 501, Closed),
        case(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03, a TLS hello", 400, Closed),
        case("SSH-2.0-OpenSSH_9.2\r\n", 400, Closed),
        case("(\0\r\n\r\n", 400, Closed),
        // Sizes.
        case(get(&format!("Long: {}\r\n", "x".repeat(64 << 10))), 431, Closed),
        case(get(&"Some: field\r\n".repeat(5_000)), 431, Closed),
        case(get(&"A: b\r\n".repeat(101)), 431, Closed),
        case(format!("GET /t/{} HTTP/1.1\r\nHost: h\r\n\r\n", "k".repeat(64 << 10)), 414, Closed),
        case(format!("GET /t/{}", "k".repeat(20 << 10)), 414, Closed),
        // Metadata that would not fit a record.
        case(put(&format!("Content-Length: 5\r\nx-amz-meta-a: {}\r\n", "x".repeat(17 << 10))), 431, Closed),
    ];
    witnessed.check_all(&cases);
    // The table is not simply refusing everything.
    let mut connection = witnessed.server.connect();
    connection.send(filled_in(put("Content-Length: 5\r\n").as_bytes(), "good"));
    assert_eq!(connection.response("PUT").head.status, 201);
    witnessed.assert_goes_on(&mut connection);
}

#[test]
fn a_request_that_cannot_be_served_is_refused_and_the_connection_goes_on() {
    let witnessed = Witnessed::start(&[]);
    let request = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut cases = vec![
        case(request("BREW", "/t/@"), 501, Kept),
        case(request("get", "/t/@"), 501, Kept),
        case(request("PATCH", "/t/@"), 405, Kept),
        case(request("OPTIONS", "*"), 405, Kept),
        case(request("TRACE", "/t/@"), 405, Kept),
        case(request("CONNECT", "h:80"), 405, Kept),
        case(request("DELETE", "/t/"), 405, Kept),
        case(request("DELETE", "/"), 405, Kept),
        case(request("GET", "/t/@"), 404, Kept),
        case(request("HEAD", "/t/@"), 404, Kept),
        case(request("DELETE", "/t/@"), 404, Kept),
        case(request("GET", "*"), 400, Kept),
        case(request("GET", "t/@"), 400, Kept),
        case(request("GET", "ftp://h/t/@"), 400, Kept),
        case(request("GET", "http:///t/@"), 400, Kept),
        case("GET /t/@ HTTP/1.1\r\nHost: h\r\nExpect: cake\r\n\r\n", 417, Kept),
        // Bytes that are no body, and yet a length: nothing is in doubt.
        case("GET /t/@ HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 404, Kept),
        case("DELETE /t/@ HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 404, Kept),
    ];
    let long_key = format!("/t/{}", "k".repeat(1025));
    let long_bucket = format!("/{}/@", "b".repeat(64));
    for target in [
        // Escapes and what comes out of them.
        "/t/@%",
        "/t/@%2",
        "/t/@%zz",
        "/t/@%+1",
        "/t/@%ff",
        "/t/@%c0%af",
        "/t/@%ed%a0%80",
        "/t/@%00",
        "/t/@%0a",
        "/t/@%0d%0aX:%20y",
        "/t/@%7f",
        "/t/@%c2%85",
        // Parts that go up.
        "/t/..",
        "/t/.",
        "/t/../@",
        "/t/@/..",
        "/t/@/../../etc/passwd",
        "/t/%2e%2e/@",
        "/t/@/%2e",
        "/t/..%2f@",
        "/../@",
        "/./@",
        "/%2e%2e/@",
        // Names that none can be.
        "//@",
        "/T/@",
        "/b_c/@",
        "/-%20/@",
        &long_key,
        &long_bucket,
        // Queries that mean something, and nothing that there is.
        "/t/witness?follow=2",
        "/t/witness?from=end",
        "/t/witness?wait=-1",
        "/t/witness?wait=1e9",
        "/t/witness?wait=",
        "/t/witness?wait=1&wait=2",
        "/t/witness?follow=%zz",
        "/t/?limit=0",
        "/t/?limit=-1",
        "/t/?limit=ten",
        "/t/?prefix=%ff",
        "/t/?after=a&after=b",
        "/t/witness#part",
    ] {
        cases.push(case(request("GET", target), 400, Kept));
        // With a body behind it that nobody has asked for, the connection cannot go on.
        let upload = format!("PUT {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
        if !target.contains('?') {
            cases.push(case(upload, 400, Closed));
        }
    }
    for target in ["/", "/t", "/t/"] {
        let upload =
            format!("PUT {target} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        cases.push(case(upload, 405, Closed));
    }
    cases.push(case(put("Content-Length: 5\r\nExpect: cake\r\n"), 417, Closed));
    cases.push(case("BREW /t/@ HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", 501, Closed));
    witnessed.check_all(&cases);
}

#[test]
fn a_body_where_none_belongs_is_refused_and_changes_nothing() {
    let witnessed = Witnessed::start(&[]);
    let mut cases = Vec::new();
    for target in ["/t/witness", "/t/", "/"] {
        for method in ["GET", "HEAD", "DELETE"] {
            let status = if method == "DELETE" && target != "/t/witness" { 405 } else { 400 };
            for body in [
                "Content-Length: 5\r\n\r\nhello",
                "Content-Length: 35\r\n\r\nDELETE /t/witness HTTP/1.1\r\nHost: h",
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ] {
                cases.push(case(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{body}"), status, Closed));
            }
        }
    }
    witnessed.check_all(&cases);
    // No body at all, in many words.
    for target in ["/t/witness", "/t/", "/"] {
        let mut connection = witnessed.server.connect();
        connection.request("GET", target, &[("Content-Length", "0")]);
        assert_eq!(connection.response("GET").head.status, 200, "{target}");
        witnessed.assert_goes_on(&mut connection);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let mut connection = Connection::to(witnessed.server.admin_address());
        connection.request("GET", path, &[("Content-Length", "0")]);
        assert_eq!(connection.response("GET").head.status, 200, "{path}");
    }
    let mut connection = witnessed.server.connect();
    connection.request("DELETE", "/t/witness", &[("Content-Length", "0")]);
    assert_eq!(connection.response("DELETE").head.status, 204);
}

#[test]
fn a_broken_chunk_line_ends_the_upload_as_interrupted_with_what_came_before_it() {
    let witnessed = Witnessed::start(&[]);
    let long_extension = format!("5;{}\r\nworld\r\n", "e".repeat(5_000));
    let long_trailer = format!("0\r\nT: {}\r\n\r\n", "t".repeat(9_000));
    let many_trailers = format!("0\r\n{}\r\n", "T: t\r\n".repeat(2_000));
    for (index, (rest, status)) in [
        ("xyz\r\nworld\r\n", 400),
        ("\r\nworld\r\n", 400),
        ("-5\r\nworld\r\n", 400),
        ("+5\r\nworld\r\n", 400),
        ("0x5\r\nworld\r\n", 400),
        (" 5\r\nworld\r\n", 400),
        ("5 \r\nworld\r\n", 400),
        ("5\nworld\r\n", 400),
        ("5\r\r\nworld\r\n", 400),
        ("5\rworld\r\n", 400),
        ("5;a\rb\r\nworld\r\n", 400),
        ("5;a\0b\r\nworld\r\n", 400),
        ("5;a\nworld\r\n", 400),
        ("10000000000000000\r\nworld\r\n", 400),
        ("ffffffffffffffff\r\nworld\r\n", 400),
        ("8000000000000000\r\nworld\r\n", 400),
        ("00000000000000005\r\nworld\r\n", 400),
        (&long_extension, 400),
        ("0\n\r\n", 400),
        ("0\r\n\n", 400),
        ("0\r\nno colon\r\n\r\n", 400),
        ("0\r\nT: a\rb\r\n\r\n", 400),
        ("0\r\nT: a\0b\r\n\r\n", 400),
        ("0\r\n folded: a\r\n\r\n", 400),
        (&long_trailer, 431),
        (&many_trailers, 431),
    ]
    .into_iter()
    .enumerate()
    {
        for bytewise in [false, true] {
            if bytewise && rest.len() > 1_000 {
                continue;
            }
            let path = format!("/t/broken-{index}-{bytewise}");
            let request = format!(
                "PUT {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n{rest}"
            );
            let mut connection = witnessed.server.connect();
            if bytewise {
                request.as_bytes().chunks(1).all(|byte| connection.try_send(byte));
            } else {
                connection.send(&request);
            }
            let response = connection.response("PUT");
            let shown = format!("{:?}", &rest[..rest.len().min(40)]);
            assert_problem(&shown, &response, status, true);
            assert_eq!(response.head.get("connection"), Some("close"), "{shown}");
            assert_eq!(connection.ended(), End::Closed, "{shown}");
            assert_interrupted(&witnessed.server, &path, b"hello");
        }
        witnessed.assert_well();
    }
}

#[test]
fn a_chunk_longer_than_its_size_says_ends_the_upload_as_interrupted() {
    let witnessed = Witnessed::start(&[]);
    for (index, rest) in
        ["5\r\nworldX\r\n0\r\n\r\n", "5\r\nworld\n0\r\n\r\n", "5\r\nworld\rX0\r\n\r\n"].iter().enumerate()
    {
        let path = format!("/t/long-{index}");
        let mut put = witnessed.server.begin_put(&path, None, &[]);
        put.send(b"hello");
        put.send_raw(rest);
        let response = put.response();
        assert_problem(rest, &response, 400, true);
        assert_eq!(response.head.get("connection"), Some("close"));
        // What the chunk's size has promised is payload, whatever follows it.
        assert_interrupted(&witnessed.server, &path, b"helloworld");
    }
    witnessed.assert_well();
}

#[track_caller]
fn assert_interrupted(server: &Server, path: &str, expected: &[u8]) {
    server.await_state(path, "interrupted");
    let response = server.get(path);
    assert_eq!((response.head.status, response.end), (200, End::Clean), "{response:?}");
    assert_eq!(response.head.get("tailwater-state"), Some("interrupted"));
    assert_eq!(response.head.get("cache-control"), Some("no-store"));
    assert_same(path, &response.body, expected);
}

#[test]
fn garbage_behind_a_good_request_is_refused_after_its_answer() {
    let witnessed = Witnessed::start(&[]);
    let upload = "PUT /t/first HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    let chunked =
        "PUT /t/second HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for (name, good, status) in
        [("first", upload, 201), ("second", chunked, 201), ("witness", &get("")[..], 200)]
    {
        for garbage in ["\0\0\0\0", "garbage\r\n\r\n", "hello again", "GET /t/witness HTTP/9.9\r\n\r\n", "\n"]
        {
            let mut connection = witnessed.server.connect();
            connection.send(format!("{good}{garbage}"));
            let response = connection.response("PUT");
            assert_eq!(response.head.status, status, "{response:?}");
            if garbage == "hello again" {
                // So far it could become a method: the client is waited for, and goes away.
                connection.finish_sending();
            } else {
                let refusal = connection.response("GET");
                let expected = if garbage.contains("9.9") { 505 } else { 400 };
                assert_problem(garbage, &refusal, expected, true);
                assert_eq!(refusal.head.get("connection"), Some("close"));
            }
            assert_eq!(connection.ended(), End::Closed);
            if status == 201 {
                witnessed.server.assert_sealed(&format!("/t/{name}"), b"hello");
            }
            witnessed.assert_well();
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let witnessed = Witnessed::start(&[]);
    let large = content(2, 300_000);
    let mut requests = Vec::new();
    let mut expected: Vec<(&str, u16, Option<&[u8]>)> = Vec::new();
    let mut ask = |method: &'static str, rest: &[u8], status: u16, body: Option<&'static [u8]>| {
        requests.extend_from_slice(method.as_bytes());
        requests.extend_from_slice(rest);
        expected.push((method, status, body));
    };
    let chunked = b" /t/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: t\r\n\r\n";
    for _ in 0..50 {
        ask("PUT", b" /t/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", 201, None);
        ask("GET", b" /t/a HTTP/1.1\r\nHost: h\r\n\r\n", 200, Some(b"hello"));
        ask("POST", chunked, 201, None);
        ask("GET", b" /t/b HTTP/1.1\r\nHost: h\r\n\r\n", 200, Some(b"hello world"));
        ask("HEAD", b" /t/b HTTP/1.1\r\nHost: h\r\n\r\n", 200, Some(b""));
        ask("GET", b" /t/b HTTP/1.1\r\nHost: h\r\nRange: bytes=6-\r\n\r\n", 206, Some(b"world"));
        ask("DELETE", b" /t/a HTTP/1.1\r\nHost: h\r\n\r\n", 204, Some(b""));
        ask("GET", b" /t/a HTTP/1.1\r\nHost: h\r\n\r\n", 404, None);
        ask("PUT", b" /t/e HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 201, None);
        ask("GET", b" /t/e HTTP/1.1\r\nHost: h\r\n\r\n", 200, Some(b""));
        ask("BREW", b" /t/a HTTP/1.1\r\nHost: h\r\n\r\n", 501, None);
        ask("GET", b" /t/../a HTTP/1.1\r\nHost: h\r\n\r\n\r\n", 400, None);
    }
    let mut connection = witnessed.server.connect();
    connection.send(&requests);
    for (index, (method, status, body)) in expected.iter().enumerate() {
        let response = connection.response(method);
        assert_eq!(
            (response.head.status, response.end),
            (*status, End::Clean),
            "{index}: {method}: {response:?}"
        );
        if let Some(body) = body {
            assert_same(&format!("answer {index}, to {method}"), &response.body, body);
        }
    }
    // And with a body that does not fit the memory for heads, between two others.
    let mut requests = get("").into_bytes();
    requests.extend_from_slice(b"PUT /t/large HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n");
    requests.extend_from_slice(&large);
    requests.extend_from_slice(get("Connection: close\r\n").as_bytes());
    connection.send(&requests);
    for status in [200, 201, 200] {
        assert_eq!(connection.response("GET").head.status, status);
    }
    assert_eq!(connection.ended(), End::Closed);
    witnessed.server.assert_sealed("/t/large", &large);
}

#[test]
fn a_request_that_comes_one_byte_at_a_time_is_a_request() {
    let witnessed = Witnessed::start(&[]);
    let mut connection = witnessed.server.connect();
    for (path, request) in [
        ("/t/a", "PUT /t/a HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"),
        (
            "/t/b",
            "PUT /t/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
             5;name=\"value\"\r\nhello\r\n6 ;x\r\n world\r\n0000\r\nTrailer: yes\r\n\r\n",
        ),
        ("/t/c", "\r\nPUT /t/c HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"),
    ] {
        connection.send_bytewise(request);
        assert_eq!(connection.response("PUT").head.status, 201);
        witnessed.server.assert_sealed(path, b"hello world");
        connection.send_bytewise(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(connection.response("GET").body, b"hello world");
    }
    witnessed.assert_goes_on(&mut connection);
}

#[test]
fn a_client_that_expects_100_continue_gets_it_after_all_checks_and_not_before() {
    let witnessed = Witnessed::start(&[]);
    let server = &witnessed.server;
    // `begin_put` waits for the 100.
    for length in [None, Some(11)] {
        let mut put = server.begin_put("/t/expected", length, &[]);
        assert_eq!(server.head("/t/expected").get("tailwater-state"), Some("live"));
        put.send(b"hello world");
        if length.is_none() {
            put.finish_created();
        } else {
            assert_eq!(put.response().head.status, 201);
        }
        server.assert_sealed("/t/expected", b"hello world");
        server.request("DELETE", "/t/expected", &[]);
    }
    // Refused before the body: the first answer that comes is the refusal.
    for (path, extra, status) in [
        ("/t/witness", ("If-None-Match", "*"), 412),
        ("/t/witness", ("If-Match", "\"another\""), 412),
        ("/t/absent", ("If-Match", "*"), 412),
        ("/t/..", ("X", "y"), 400),
        ("/T/absent", ("X", "y"), 400),
        ("/t/", ("X", "y"), 405),
        ("/t/absent", ("Expect", "cake"), 417),
    ] {
        for framing in [("Content-Length", "5"), ("Transfer-Encoding", "chunked")] {
            let mut connection = server.connect();
            connection.request("PUT", path, &[framing, ("Expect", "100-continue"), extra]);
            let response = connection.response("PUT");
            assert_problem(path, &response, status, true);
            // Whether the client sends the body now is not known.
            assert_eq!(response.head.get("connection"), Some("close"));
            assert_eq!(connection.ended(), End::Closed);
            assert_eq!(server.get("/t/absent").head.status, 404);
        }
    }
    // Nothing to continue with, and a version that has no interim answers.
    for request in [
        "PUT /t/empty HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
        "PUT /t/old HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    ] {
        let mut connection = server.connect();
        connection.send(request);
        assert_eq!(connection.response("PUT").head.status, 201);
    }
    witnessed.assert_well();
}

#[test]
fn a_client_that_is_refused_while_it_still_sends_reads_the_answer() {
    let witnessed = Witnessed::start(&[]);
    let body = content(3, 16 << 20);
    let length = body.len().to_string();
    for (framing, path, condition, status) in [
        (("Content-Length", length.as_str()), "/t/witness", ("If-None-Match", "*"), 412),
        (("Content-Length", length.as_str()), "/t/../x", ("X", "y"), 400),
        (("Transfer-Encoding", "chunked"), "/t/witness", ("If-None-Match", "*"), 412),
        (("Content-Length", length.as_str()), "/t/", ("X", "y"), 405),
    ] {
        // A client that looks at nothing before it has sent all, or cannot send any more.
        let mut connection = witnessed.server.connect();
        connection.request("PUT", path, &[framing, condition]);
        if framing.0 == "Transfer-Encoding" {
            connection.try_send(format!("{:x}\r\n", body.len()));
        }
        connection.try_send(&body);
        let response = connection.response("PUT");
        assert_problem(path, &response, status, true);
    }
    // One that ends in time is taken to its end, so that nothing is reset and no client anywhere loses the answer.
    let small = content(3, 2 << 20);
    let mut connection = witnessed.server.connect();
    let small_length = small.len().to_string();
    connection.request("PUT", "/t/witness", &[("Content-Length", &small_length), ("If-None-Match", "*")]);
    connection.send(&small);
    assert_problem("all of it", &connection.response("PUT"), 412, true);
    assert_eq!(connection.ended(), End::Closed);
    // A broken chunk line in the midst of it.
    let mut connection = witnessed.server.connect();
    connection.request("PUT", "/t/broken", &[("Transfer-Encoding", "chunked")]);
    connection.send("5\r\nhello\r\nzzz\r\n");
    connection.try_send(&body);
    assert_problem("a broken chunk line", &connection.response("PUT"), 400, true);

    // And one that everybody uses.
    let file = witnessed.server.file_path("large");
    std::fs::write(&file, &body).unwrap();
    for framing in [&[][..], &["-H", "Transfer-Encoding: chunked"]] {
        let (file, url) = (file.to_str().unwrap(), witnessed.server.url("/t/witness"));
        let fixed = ["-w", "%{http_code}", "-H", "Expect:", "-H", "If-None-Match: *", "-T", file, &url];
        let Some(curl) = Program::curl(&[framing, &fixed[..]].concat()) else { return };
        let (output, status, complaints) = curl.finish();
        assert!(status.success(), "{status}: {complaints}");
        let output = String::from_utf8(output).unwrap();
        assert!(output.ends_with("}412") && output.contains("\"status\":412"), "{output}");
    }
    witnessed.assert_well();
}

#[test]
fn a_head_that_does_not_come_to_its_end_in_time_is_answered_408() {
    let witnessed = Witnessed::start(&["--head-seconds", "1"]);
    for beginning in ["G", "GET /t/witness HT", "GET /t/witness HTTP/1.1\r\nHost: h\r\n", "\r\n", "\r"] {
        let mut connection = witnessed.server.connect();
        connection.send(beginning);
        let response = connection.response("GET");
        assert_problem(beginning, &response, 408, true);
        assert_eq!(response.head.get("connection"), Some("close"));
        assert_eq!(connection.ended(), End::Closed);
    }
    // Sending a byte now and then does not put it off.
    let mut stream = TcpStream::connect(witnessed.server.data_address()).unwrap();
    stream.write_all(b"GET /t/witness HTTP/1.1\r\nHost: h\r\nSlow: ").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let limit = Instant::now() + PATIENCE;
    let mut first = [0; 12];
    while stream.read_exact(&mut first).is_err() {
        assert!(Instant::now() < limit, "the server waits for ever");
        let _ = stream.write_all(b"x");
    }
    assert_eq!(&first, b"HTTP/1.1 408");

    // The second request of a connection is given as much time as the first.
    let mut connection = witnessed.server.connect();
    witnessed.assert_goes_on(&mut connection);
    connection.send("GET /t/wit");
    assert_problem("the second head", &connection.response("GET"), 408, true);
    witnessed.assert_well();
}

#[test]
fn a_connection_without_a_request_is_closed_without_an_answer() {
    let witnessed = Witnessed::start(&["--idle-seconds", "1"]);
    let mut connection = witnessed.server.connect();
    assert_eq!(connection.ended(), End::Closed);
    let mut connection = witnessed.server.connect();
    witnessed.assert_goes_on(&mut connection);
    assert_eq!(connection.ended(), End::Closed);
    witnessed.assert_well();
}

#[test]
fn a_connection_too_many_is_told_to_come_back_later() {
    let witnessed = Witnessed::start(&["--connections-max", "4"]);
    common::eventually("earlier connections are gone", || {
        witnessed.server.metric("tailwater_connections_open") == 0
    });
    let mut held: Vec<Connection> = (0..4).map(|_| witnessed.server.connect()).collect();
    for connection in &mut held {
        witnessed.assert_goes_on(connection);
    }
    let mut refused = witnessed.server.connect();
    let response = refused.response("GET");
    assert_problem("one connection too many", &response, 503, true);
    assert!(response.head.get("retry-after").is_some(), "{response:?}");
    assert_eq!(refused.ended(), End::Closed);
    // The others go on, the operator can look, and there is room again when one has left.
    for connection in &mut held {
        witnessed.assert_goes_on(connection);
    }
    held.pop();
    common::eventually("there is room again", || {
        let mut connection = witnessed.server.connect();
        connection.try_send(get(""));
        connection.try_head().is_ok_and(|head| head.status == 200)
    });
    drop(held);
    witnessed.assert_well();
}

#[test]
fn a_method_that_is_not_allowed_comes_with_those_that_are() {
    let server = Server::start();
    for (method, path, allow) in [
        ("PATCH", "/t/a", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
        ("DELETE", "/t/", "GET, HEAD, OPTIONS"),
        ("PUT", "/", "GET, HEAD, OPTIONS"),
        ("GET", "/_tus/t/a", "HEAD, POST, PATCH, DELETE, OPTIONS"),
    ] {
        let response = server.request(method, path, &[("Content-Length", "0")]);
        assert_problem(path, &response, 405, true);
        assert_eq!(response.head.get("allow"), Some(allow));
    }
    let mut connection = Connection::to(server.admin_address());
    connection.request("PUT", "/metrics", &[("Content-Length", "0")]);
    assert_eq!(connection.response("PUT").head.status, 405);
    connection.request("GET", "/metrics", &[("Content-Length", "5")]);
    assert_eq!(connection.response("GET").head.status, 400);
}
