//! The writer goes away before it has finished: nobody who followed may take what came for the whole.
//!
//! The end of a body is told in one of three ways, and each has its own way of not being told: without the last
//! chunk, with fewer bytes than were promised, and (HTTP/1.0) with a reset where the regular end of the connection
//! would be the end of the body. Afterwards the object is there, as what it is: interrupted.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Body, Connection, End, Program, Put, Server, assert_same, content, eventually};

/// curl: "a file was only partially transferred".
const CURL_PARTIAL: i32 = 18;
/// curl: "failure with receiving network data".
const CURL_RECEIVE: i32 = 56;

/// Clients of each kind that follow an object.
struct Followers {
    body: Body,
    old_body: Body,
    curl: Option<Program>,
    old_curl: Option<Program>,
    seen: usize,
}

impl Followers {
    fn of(server: &Server, path: &str) -> Followers {
        let mut connection = server.connect();
        connection.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
        Followers {
            body: server.follow(path),
            old_body: connection.into_body("GET"),
            curl: Program::curl(&[server.url(path)]),
            old_curl: Program::curl(&["--http1.0".to_owned(), server.url(path)]),
            seen: 0,
        }
    }

    #[track_caller]
    fn expect(&mut self, bytes: &[u8]) {
        self.body.expect(bytes);
        self.old_body.expect(bytes);
        for curl in [&mut self.curl, &mut self.old_curl].into_iter().flatten() {
            curl.expect(bytes);
        }
        self.seen += bytes.len();
    }

    /// Waits for the end of each, which must not be a clean one; answers what the object has come to, as those
    /// know it who were sent everything before the end.
    #[track_caller]
    fn expect_no_clean_end(mut self, case: &str, sent: &[u8]) -> Vec<u8> {
        let seen = self.seen;
        let check = |what: &str, rest: &[u8]| {
            assert!(sent[seen..].starts_with(rest), "{case}: {what} got bytes that were never sent");
        };
        let declared = self.old_body.head.get("content-length").is_some();
        let (rest, end) = self.body.rest();
        assert_ne!(end, End::Clean, "{case}: HTTP/1.1");
        check("HTTP/1.1", &rest);
        let (old_rest, end) = self.old_body.rest();
        // Without a length nothing but a reset tells.
        assert!(end == End::Reset || (declared && end == End::Closed), "{case}: HTTP/1.0 ended {end:?}");
        check("HTTP/1.0", &old_rest);
        for (curl, code) in [
            (self.curl.take(), CURL_PARTIAL),
            (self.old_curl.take(), if declared { CURL_PARTIAL } else { CURL_RECEIVE }),
        ] {
            let Some(curl) = curl else { continue };
            let (rest, status, complaints) = curl.finish();
            assert_eq!(status.code(), Some(code), "{case}: {complaints}");
            check("curl", &rest);
        }
        [&sent[..seen], &rest].concat()
    }
}

/// Asserts that a name serves these bytes as what its writer has left.
#[track_caller]
fn assert_interrupted(server: &Server, path: &str, bytes: &[u8]) {
    let length = bytes.len().to_string();
    for method in ["GET", "HEAD"] {
        let response = server.request(method, path, &[]);
        let head = &response.head;
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.get("tailwater-state"), Some("interrupted"));
        assert_eq!(head.get("tailwater-committed"), Some(length.as_str()));
        assert_eq!(head.get("content-length"), Some(length.as_str()));
        // It may still be continued, or replaced: nobody may keep it, or know it again by a tag.
        assert_eq!(head.get("cache-control"), Some("no-store"));
        assert_eq!(head.get("etag"), None);
        assert_eq!(response.end, End::Clean);
        if method == "GET" {
            assert_same(path, &response.body, bytes);
        }
    }
    if bytes.len() > 1 {
        let response = server.request("GET", path, &[("Range", "bytes=1-")]);
        assert_eq!(response.head.status, 206);
        assert_same(path, &response.body, &bytes[1..]);
    }
    let (bucket, key) = path[1..].split_once('/').unwrap();
    let listing = server.get(&format!("/{bucket}/?prefix={key}&limit=1")).json();
    assert_eq!(listing["objects"][0]["state"], "interrupted", "{listing}");
    assert_eq!(listing["objects"][0]["length"], bytes.len(), "{listing}");
}

/// A way for a writer to go away.
struct Cut {
    name: &'static str,
    /// None is chunked.
    declared_length: Option<u64>,
    go: fn(Put),
}

/// The payload of what goes out in the ways below before the writer is gone.
const PARTIAL: &[u8] = b"half of a chunk";

const CUTS: &[Cut] = &[
    Cut { name: "between chunks, closed", declared_length: None, go: Put::close },
    Cut { name: "between chunks, reset", declared_length: None, go: Put::reset },
    Cut { name: "in mid-chunk, closed", declared_length: None, go: |put| mid_chunk(put).close() },
    Cut { name: "in mid-chunk, reset", declared_length: None, go: |put| mid_chunk(put).reset() },
    Cut {
        name: "behind the bytes of a chunk, before its end",
        declared_length: None,
        go: |mut put| {
            put.send_raw([b"f\r\n", PARTIAL].concat());
            put.close();
        },
    },
    Cut {
        name: "in the line of a chunk",
        declared_length: None,
        go: |mut put| {
            put.send_raw("3e");
            put.close();
        },
    },
    Cut {
        name: "behind the line of the last chunk, before its end",
        declared_length: None,
        go: |mut put| {
            put.send_raw("0\r\n");
            put.close();
        },
    },
    Cut {
        name: "in the trailer",
        declared_length: None,
        go: |mut put| {
            put.send_raw("0\r\nChecksum: 12\r\n");
            put.close();
        },
    },
    Cut {
        name: "with a line that is none",
        declared_length: None,
        go: |mut put| {
            put.send_raw("many\r\n");
            assert_eq!(put.response().head.status, 400);
        },
    },
    Cut {
        name: "between chunks, its sending side only",
        declared_length: None,
        go: |put| {
            // It may be told something, or nothing, but not that the object was created.
            if let Ok(head) = put.finish_sending().try_head() {
                assert!(head.status >= 400, "{head:?}");
            }
        },
    },
    Cut { name: "short of its length, closed", declared_length: Some(1 << 20), go: Put::close },
    Cut { name: "short of its length, reset", declared_length: Some(1 << 20), go: Put::reset },
    Cut {
        name: "a byte short of its length",
        declared_length: Some(50_000 + PARTIAL.len() as u64 + 1),
        go: |mut put| {
            put.send_raw(PARTIAL);
            put.close();
        },
    },
];

fn mid_chunk(mut put: Put) -> Put {
    put.send_raw([b"ffff\r\n", PARTIAL].concat());
    put
}

#[test]
fn however_a_writer_vanishes_no_follower_sees_a_clean_end_and_what_arrived_is_kept() {
    let mut server = Server::start();
    let piece = content(1, 50_000);
    let mut left = Vec::new();
    for (index, cut) in CUTS.iter().enumerate() {
        let path = format!("/b/{index:02}");
        let mut put = server.begin_put(&path, cut.declared_length, &[]);
        let mut followers = Followers::of(&server, &path);
        put.send(&piece);
        followers.expect(&piece);
        (cut.go)(put);
        let sent = [&piece, PARTIAL].concat();
        let kept = followers.expect_no_clean_end(cut.name, &sent);
        assert!(sent.starts_with(&kept) && kept.len() >= piece.len(), "{}", cut.name);
        assert_interrupted(&server, &path, &kept);
        left.push((path, kept));
    }
    assert_eq!(server.metric("tailwater_objects_interrupted_total"), CUTS.len() as u64);
    assert_eq!(server.metric("tailwater_objects_live"), 0);
    eventually("nobody is connected", || server.metric("tailwater_connections_open") == 0);

    // What came before a regular end of the connection was received, part of a chunk or not.
    for (cut, (_, kept)) in CUTS.iter().zip(&left) {
        if cut.name == "in mid-chunk, closed" || cut.name == "a byte short of its length" {
            assert_eq!(kept.len(), piece.len() + PARTIAL.len(), "{}", cut.name);
        }
    }
    server.kill();
    server.restart();
    for (path, kept) in &left {
        assert_interrupted(&server, path, kept);
    }
}

#[test]
fn a_writer_that_vanishes_before_its_first_byte_leaves_an_empty_interrupted_object() {
    let server = Server::start();
    let put = server.begin_put("/b/k", None, &[]);
    let followers = Followers::of(&server, "/b/k");
    // curl connects when it likes; it must not come after the end.
    let curls = [&followers.curl, &followers.old_curl].into_iter().flatten().count() as u64;
    eventually("all follow", || server.metric("tailwater_followers") == 2 + curls);
    put.close();
    followers.expect_no_clean_end("before the first byte", b"");
    assert_interrupted(&server, "/b/k", b"");
}

#[test]
fn a_writer_that_stalls_past_its_limit_is_treated_as_gone() {
    let server = Server::start_with(&["--writer-stall-seconds", "1"]);
    for (path, declared_length) in [("/b/chunked", None), ("/b/declared", Some(1 << 20))] {
        let mut put = server.begin_put(path, declared_length, &[]);
        let mut followers = Followers::of(&server, path);
        let piece = content(2, 10_000);
        put.send(&piece);
        followers.expect(&piece);
        // The writer stays connected, and says nothing.
        let kept = followers.expect_no_clean_end("stalled", &piece);
        assert_interrupted(&server, path, &kept);
        drop(put);
    }
}

#[test]
fn followers_on_the_way_when_the_writer_vanishes_get_all_that_is_kept_and_no_clean_end() {
    let server = Server::start();
    let all = content(3, 12 << 20);
    let mut put = server.begin_put("/b/k", None, &[]);
    let behind = |request: &str| {
        let mut connection = Connection::with_small_receive_buffer(server.data_address(), 64 << 10);
        connection.send(request);
        connection.into_body("GET")
    };
    let mut body = behind("GET /b/k HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut old_body = behind("GET /b/k HTTP/1.0\r\n\r\n");
    put.send(&all);
    server.await_committed("/b/k", all.len() as u64);
    put.close();
    server.await_state("/b/k", "interrupted");
    assert_eq!((body.received(), old_body.received()), (0, 0));
    let (found, end) = body.rest();
    assert_same("HTTP/1.1", &found, &all);
    assert_ne!(end, End::Clean);
    // A reset throws away what the server's side has not sent yet: no more than a prefix can be asked for.
    let (found, end) = old_body.rest();
    assert!(all.starts_with(&found));
    assert_eq!(end, End::Reset);
    assert_interrupted(&server, "/b/k", &all);
}

#[test]
fn an_upload_by_curl_that_is_killed_leaves_an_interrupted_object() {
    let server = Server::start();
    for (path, arguments) in [
        ("/b/chunked", vec![]),
        ("/b/declared", vec!["-H", "Transfer-Encoding:", "-H", "Content-Length: 1000000"]),
    ] {
        let url = server.url(path);
        let Some(mut upload) = Program::curl(&[&arguments[..], &["-T", "-", url.as_str()]].concat()) else {
            return;
        };
        let piece = content(4, 40_000);
        upload.send(&piece);
        // The object begins when curl likes.
        let mut followers = Followers::of(&server, &format!("{path}?wait=30"));
        followers.expect(&piece);
        upload.kill();
        let kept = followers.expect_no_clean_end("killed", &piece);
        assert_interrupted(&server, path, &kept);
    }
}

#[test]
fn what_an_interrupted_upload_left_can_be_replaced_by_one_that_may_only_create() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut follower = server.follow("/b/k");
    put.send(b"first attempt");
    follower.expect(b"first attempt");
    put.close();
    assert_ne!(follower.rest().1, End::Clean);
    assert_interrupted(&server, "/b/k", b"first attempt");
    let response = server.try_put("/b/k", b"second attempt", &[("If-None-Match", "*")]);
    assert_eq!(response.head.status, 201, "{response:?}");
    server.assert_sealed("/b/k", b"second attempt");
}

#[test]
fn a_server_that_is_killed_or_ends_at_its_drain_limit_gives_no_follower_a_clean_end() {
    for signal in ["KILL", "TERM"] {
        let mut server = Server::start_with(&["--drain-seconds", "1"]);
        let mut put = server.begin_put("/b/k", None, &[]);
        let mut followers = Followers::of(&server, "/b/k");
        let piece = content(5, 30_000);
        put.send(&piece);
        followers.expect(&piece);
        match signal {
            "KILL" => server.kill(),
            _ => assert_eq!(server.terminate().code(), Some(0)),
        }
        followers.expect_no_clean_end(signal, &piece);
        server.restart();
        assert_interrupted(&server, "/b/k", &piece);
    }
}
