//! What a name leads to: replacement and deletion under readers, conditions, ranges, listings.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Connection, End, Response, Server, assert_same, content, eventually};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

// ---- Replacement ----

#[test]
fn readers_of_a_replaced_generation_keep_it_to_its_end() {
    let server = Server::start();
    // Old and complete, with a reader that has hardly begun.
    let old = content(1, 12 * MIB);
    server.put("/b/k", &old);
    let mut old_reader = {
        let mut connection = Connection::with_small_receive_buffer(server.data_address(), 64 << 10);
        connection.request("GET", "/b/k", &[]);
        connection.into_body("GET")
    };
    old_reader.expect(&old[..1000]);

    // Its replacement is served from its head on.
    let new = content(2, 100_000);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut new_reader = server.follow("/b/k");
    put.send(&new);
    new_reader.expect(&new);
    put.finish_created();
    new_reader.expect_rest(b"");
    server.assert_sealed("/b/k", &new);

    // What was replaced lies in segments that nothing else needs; they must not be written again under the reader.
    for seed in 10..16 {
        server.put("/b/other", &content(seed, 6 * MIB));
    }
    old_reader.expect_rest(&old[1000..]);
    server.assert_sealed("/b/k", &new);
}

#[test]
fn followers_of_a_live_generation_keep_it_when_another_one_begins() {
    let server = Server::start();
    let mut first = server.begin_put("/b/k", None, &[]);
    let mut first_follower = server.follow("/b/k");
    first.send(b"first, ");
    first_follower.expect(b"first, ");
    let mut second = server.begin_put("/b/k", None, &[]);
    let mut second_follower = server.follow("/b/k");
    second.send(b"second, ");
    second_follower.expect(b"second, ");
    first.send(b"to its end");
    first_follower.expect(b"to its end");
    // The older one ends later, and does not come back with that.
    let second = second.finish_created().json();
    let first = first.finish_created().json();
    assert!(first["generation"].as_u64() < second["generation"].as_u64());
    first_follower.expect_rest(b"");
    second_follower.expect_rest(b"");
    server.assert_sealed("/b/k", b"second, ");
}

#[test]
fn a_failed_replacement_leaves_what_it_was_to_replace() {
    let mut server = Server::start();
    let old = content(3, 50_000);
    let etag = server.put("/b/k", &old).json()["etag"].clone();
    for attempt in 0..3 {
        let mut put = server.begin_put("/b/k", None, &[]);
        let mut follower = server.follow("/b/k");
        put.send(b"not all of it");
        follower.expect(b"not all of it");
        put.close();
        assert_ne!(follower.rest().1, End::Clean, "attempt {attempt}");
        server.assert_sealed("/b/k", &old);
        assert_eq!(server.head("/b/k").get("etag"), etag.as_str());
        assert_eq!(list(&server, "/b/"), json!({"objects": ["k"], "prefixes": [], "next": null}));
    }
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", &old);
    assert_eq!(server.head("/b/k").get("etag"), etag.as_str());
}

// ---- Deletion ----

#[test]
fn a_reader_of_a_deleted_object_gets_all_of_it() {
    let mut server = Server::start();
    let all = content(4, 12 * MIB);
    server.put("/b/k", &all);
    let mut reader = {
        let mut connection = Connection::with_small_receive_buffer(server.data_address(), 64 << 10);
        connection.request("GET", "/b/k", &[]);
        connection.into_body("GET")
    };
    reader.expect(&all[..1000]);
    assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
    for method in ["GET", "HEAD", "DELETE"] {
        assert_eq!(server.request(method, "/b/k", &[]).head.status, 404, "{method}");
    }
    assert_eq!(list(&server, "/b/"), json!({"objects": [], "prefixes": [], "next": null}));
    // Enough to write every segment again that nobody holds.
    for seed in 10..16 {
        server.put("/b/other", &content(seed, 6 * MIB));
    }
    reader.expect_rest(&all[1000..]);

    server.kill();
    server.restart();
    assert_eq!(server.get("/b/k").head.status, 404);
    server.assert_sealed("/b/other", &content(15, 6 * MIB));
}

#[test]
fn deleting_a_live_object_ends_its_writer_with_an_error_and_its_followers_without_a_clean_end() {
    let mut server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut follower = server.follow("/b/k");
    put.send(b"before");
    follower.expect(b"before");
    assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
    assert_eq!(server.get("/b/k").head.status, 404);
    // The name is free, also while the old writer is still there.
    server.put("/b/k", b"new");

    put.send(b"after");
    let response = put.response();
    assert_eq!(response.head.status, 409, "{response:?}");
    assert_eq!(response.head.get("content-type"), Some("application/problem+json"));
    let (rest, end) = follower.rest();
    assert_eq!(rest, b"");
    assert_ne!(end, End::Clean);
    server.assert_sealed("/b/k", b"new");
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", b"new");
}

#[test]
fn a_deleted_live_object_does_not_come_back_with_a_restart() {
    let mut server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut follower = server.follow("/b/k");
    put.send(b"before");
    follower.expect(b"before");
    assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
    put.finish();
    assert_ne!(follower.rest().1, End::Clean);
    assert_eq!(server.get("/b/k").head.status, 404);
    server.kill();
    server.restart();
    assert_eq!(server.get("/b/k").head.status, 404);
    assert_eq!(server.get("/").json(), json!({"buckets": []}));
}

/// What was replaced is deleted by the core that wrote it, in its own time. If that core is busy and the name is
/// deleted meanwhile, by another one, then the answer to that must not come before both are durable: the former
/// content would be back after a crash.
#[test]
fn what_was_replaced_and_then_deleted_does_not_come_back_with_a_restart() {
    let mut server = Server::start();
    for round in 0..ROUNDS {
        // Connections go to the core with the fewest: this one to the first core, and so on in turns.
        let busy = server.begin_put("/b/busy", None, &[]);
        let (mut idle_core, mut busy_core) = (server.connect(), server.connect());
        let put = |connection: &mut Connection, body: &str| {
            connection.request("PUT", "/b/k", &[("Content-Length", &body.len().to_string())]);
            connection.send(body);
            assert_eq!(connection.response("PUT").head.status, 201);
        };
        put(&mut busy_core, "the former content");
        let writing = std::thread::spawn(move || {
            let mut busy = busy;
            let piece = content(round, MIB);
            while busy.try_send(&piece) {}
        });
        server.await_state("/b/busy", "live");
        eventually("the core is busy", || {
            server.head("/b/busy").get("tailwater-committed").unwrap().len() >= 7
        });
        put(&mut idle_core, "the content");
        idle_core.request("DELETE", "/b/k", &[]);
        assert_eq!(idle_core.response("DELETE").head.status, 204);
        server.kill();
        writing.join().unwrap();
        server.restart();
        assert_eq!(server.get("/b/k").head.status, 404, "in round {round}");
        server.request("DELETE", "/b/busy", &[]);
    }
}

/// How often the above is tried: once is often enough where it goes wrong at all.
const ROUNDS: u64 = 5;

#[test]
fn an_object_is_deleted_only_if_it_is_what_the_condition_says() {
    let server = Server::start();
    server.put("/b/k", b"one");
    let former = server.head("/b/k").get("etag").unwrap().to_owned();
    server.put("/b/k", b"two");
    assert_eq!(server.request("DELETE", "/b/k", &[("If-Match", &former)]).head.status, 412);
    server.assert_sealed("/b/k", b"two");
    let etag = server.head("/b/k").get("etag").unwrap().to_owned();
    assert_eq!(server.request("DELETE", "/b/k", &[("If-Match", &etag)]).head.status, 204);
    assert_eq!(server.get("/b/k").head.status, 404);
}

#[test]
fn many_objects_come_and_go_without_the_disk_filling_up() {
    let server = Server::start();
    let mut largest = 0;
    for round in 0..24 {
        server.put("/b/k", &content(round, 4 * MIB));
        largest = largest.max(segments_length(&server));
    }
    server.assert_sealed("/b/k", &content(23, 4 * MIB));
    // 96 MiB were written, and 4 of them count.
    assert!(largest <= 56 << 20, "{largest} bytes of segments");
}

fn segments_length(server: &Server) -> u64 {
    fn length_of(folder: &std::path::Path) -> u64 {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => length_of(&entry.path()),
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            })
            .sum()
    }
    length_of(&server.data_path())
}

// ---- Conditions ----

#[test]
fn only_one_of_many_writers_that_may_only_create_does() {
    let server = Server::start();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..16)
            .map(|seed| {
                let server = &server;
                scope.spawn(move || {
                    let response = server.try_put("/b/k", &content(seed, 1000), &[("If-None-Match", "*")]);
                    response.head.status
                })
            })
            .collect();
        attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    });
    let count = |wanted| statuses.iter().filter(|&&status| status == wanted).count();
    assert_eq!((count(201), count(412)), (1, 15), "{statuses:?}");
}

#[test]
fn a_writer_that_may_only_create_is_refused_before_it_sends_its_body() {
    let server = Server::start();
    let live = server.begin_put("/b/live", None, &[]);
    server.put("/b/sealed", b"there");
    for path in ["/b/live", "/b/sealed"] {
        let mut connection = server.connect();
        connection.request(
            "PUT",
            path,
            &[("Content-Length", "1000000"), ("Expect", "100-continue"), ("If-None-Match", "*")],
        );
        let response = connection.response("PUT");
        assert_eq!(response.head.status, 412, "{path}: {response:?}");
        assert_eq!(response.head.get("content-type"), Some("application/problem+json"));
    }
    live.finish_created();
    server.assert_sealed("/b/live", b"");
    server.assert_sealed("/b/sealed", b"there");
}

#[test]
fn an_object_is_replaced_only_if_it_is_what_the_condition_says() {
    let server = Server::start();
    assert_eq!(server.try_put("/b/k", b"x", &[("If-Match", "*")]).head.status, 412);
    server.put("/b/k", b"one");
    let former = server.head("/b/k").get("etag").unwrap().to_owned();
    let response = server.try_put("/b/k", b"two", &[("If-Match", &former)]);
    assert_eq!(response.head.status, 201, "{response:?}");
    assert_eq!(server.try_put("/b/k", b"three", &[("If-Match", &former)]).head.status, 412);
    server.assert_sealed("/b/k", b"two");
}

#[test]
fn a_client_that_has_an_object_already_is_told_so() {
    let server = Server::start();
    let created = server.put("/b/k", b"content");
    let head = server.head("/b/k");
    let (etag, modified) = (head.get("etag").unwrap(), head.get("last-modified").unwrap());
    assert_eq!(created.head.get("etag"), Some(etag));
    assert_eq!(created.json()["etag"], etag);
    let mut connection = server.connect();
    for (name, value, status) in [
        ("If-None-Match", etag, 304),
        ("If-None-Match", "\"other\"", 200),
        ("If-None-Match", "*", 304),
        ("If-Match", etag, 200),
        ("If-Match", "\"other\"", 412),
        ("If-Modified-Since", modified, 304),
        ("If-Modified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 200),
        ("If-Unmodified-Since", modified, 200),
        ("If-Unmodified-Since", "Sat, 01 Jan 2000 00:00:00 GMT", 412),
    ] {
        for method in ["GET", "HEAD"] {
            connection.request(method, "/b/k", &[(name, value)]);
            let response = connection.response(method);
            assert_eq!(response.head.status, status, "{method} {name}: {value}");
            if status == 304 {
                assert_eq!(response.head.get("etag"), Some(etag));
                assert!(response.head.get("content-length").is_none_or(|length| length == "7"));
            }
            if status == 200 && method == "GET" {
                assert_eq!(response.body, b"content");
            }
        }
    }
}

#[test]
fn the_tag_of_an_object_stays_the_same_from_its_first_byte_through_its_seal_and_a_restart() {
    let mut server = Server::start();
    let put = server.begin_put("/b/k", None, &[]);
    let live = server.follow("/b/k").head.get("etag").unwrap().to_owned();
    assert_eq!(put.finish_created().head.get("etag"), Some(live.as_str()));
    assert_eq!(server.head("/b/k").get("etag"), Some(live.as_str()));
    let modified = server.head("/b/k").get("last-modified").unwrap().to_owned();
    server.kill();
    server.restart();
    assert_eq!(server.head("/b/k").get("etag"), Some(live.as_str()));
    assert_eq!(server.head("/b/k").get("last-modified"), Some(modified.as_str()));
    server.put("/b/k", b"");
    assert_ne!(server.head("/b/k").get("etag"), Some(live.as_str()));
}

/// A client that has kept what was deleted must not be told that it is what is there now, nor be given a part of
/// the one to go with a part of the other.
#[test]
fn a_tag_never_comes_twice_whatever_was_deleted_and_however_often_the_server_started() {
    let mut server = Server::start();
    let mut former = Vec::new();
    for start in 0..5 {
        server.put("/b/k", format!("start {start}").as_bytes());
        let etag = server.head("/b/k").get("etag").unwrap().to_owned();
        assert!(!former.contains(&etag), "{etag} was there before: {former:?}");
        let response = server.request("GET", "/b/k", &[("If-None-Match", &former.join(", "))]);
        assert_eq!(response.body, format!("start {start}").as_bytes());
        former.push(etag);
        assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
        // Two starts with nothing to keep: the segments are made ready for use again.
        for _ in 0..2 {
            server.kill();
            server.restart();
        }
    }
}

// ---- Ranges ----

fn range(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    server.request("GET", path, headers)
}

#[test]
fn ranges_of_a_sealed_object() {
    let server = Server::start();
    let all = content(5, 3 * MIB + 17);
    let length = all.len();
    server.put("/b/k", &all);
    // Each position where something in the engine may begin or end.
    let last = length - 1;
    for (asked, first, end) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=0-".to_owned(), 0, length),
        ("bytes=1-".to_owned(), 1, length),
        (format!("bytes={last}-"), last, length),
        (format!("bytes={last}-{last}"), last, length),
        ("bytes=-1".to_owned(), last, length),
        ("bytes=-1000".to_owned(), length - 1000, length),
        ("bytes=-99999999999".to_owned(), 0, length),
        ("bytes=262143-262145".to_owned(), 262_143, 262_146),
        ("bytes=1048575-2097153".to_owned(), 1_048_575, 2_097_154),
        (format!("bytes=5-{}", u64::MAX), 5, length),
        ("bytes=7-99999999999999999999999".to_owned(), 7, length),
    ] {
        let response = range(&server, "/b/k", &[("Range", &asked)]);
        assert_eq!(response.head.status, 206, "{asked}");
        let content_range = format!("bytes {first}-{}/{length}", end - 1);
        assert_eq!(response.head.get("content-range"), Some(content_range.as_str()), "{asked}");
        assert_eq!(response.head.get("content-length"), Some((end - first).to_string().as_str()));
        assert_same(&asked, &response.body, &all[first..end]);
    }
    for asked in [format!("bytes={length}-"), format!("bytes={length}-{length}"), "bytes=-0".to_owned()] {
        let response = range(&server, "/b/k", &[("Range", &asked)]);
        assert_eq!(response.head.status, 416, "{asked}");
        assert_eq!(response.head.get("content-range"), Some(format!("bytes */{length}").as_str()), "{asked}");
    }
    // What is no range, or more than one, is the whole.
    for asked in ["bytes=2-1", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes"] {
        let response = range(&server, "/b/k", &[("Range", asked)]);
        assert_eq!((response.head.status, response.head.get("content-range")), (200, None), "{asked}");
        assert_same(asked, &response.body, &all);
    }
    // Only GET knows ranges.
    let head = server.request("HEAD", "/b/k", &[("Range", "bytes=0-1")]).head;
    assert_eq!((head.status, head.get("content-length")), (200, Some(length.to_string().as_str())));
    assert_eq!(head.get("accept-ranges"), Some("bytes"));
}

#[test]
fn a_range_counts_only_where_if_range_names_what_is_served() {
    let server = Server::start();
    server.put("/b/k", b"former");
    let former = server.head("/b/k").get("etag").unwrap().to_owned();
    server.put("/b/k", b"0123456789");
    let head = server.head("/b/k");
    let (etag, modified) = (head.get("etag").unwrap(), head.get("last-modified").unwrap());
    for (condition, status, body) in [
        (etag, 206, "23"),
        (modified, 206, "23"),
        (former.as_str(), 200, "0123456789"),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 200, "0123456789"),
        ("nonsense", 200, "0123456789"),
    ] {
        let response = range(&server, "/b/k", &[("Range", "bytes=2-3"), ("If-Range", condition)]);
        assert_eq!(response.head.status, status, "{condition}");
        assert_eq!(response.body, body.as_bytes(), "{condition}");
    }
}

#[test]
fn ranges_of_what_is_committed_of_a_live_object() {
    let server = Server::start();
    let all = content(6, 100_000);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut follower = server.follow("/b/k");
    let etag = follower.head.get("etag").unwrap().to_owned();
    put.send(&all);
    follower.expect(&all);
    for (asked, first, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99999", 0, 100_000),
        ("bytes=10-19", 10, 20),
        ("bytes=99999-", 99_999, 100_000),
        ("bytes=50000-", 50_000, 100_000),
        ("bytes=99990-200000", 99_990, 100_000),
    ] {
        for headers in [&[("Range", asked)][..], &[("Range", asked), ("If-Range", &etag)]] {
            let response = range(&server, "/b/k", headers);
            assert_eq!(response.head.status, 206, "{asked}: {response:?}");
            // It will be longer than that, and nobody knows how long.
            let content_range = format!("bytes {first}-{}/*", end - 1);
            assert_eq!(response.head.get("content-range"), Some(content_range.as_str()), "{asked}");
            assert_eq!(response.end, End::Clean);
            assert_same(asked, &response.body, &all[first..end]);
        }
    }
    for asked in ["bytes=100000-", "bytes=100000-100001"] {
        let response = range(&server, "/b/k", &[("Range", asked)]);
        assert_eq!(response.head.status, 416, "{asked}");
    }
    let response = range(&server, "/b/k?follow=0", &[("Range", "bytes=-10")]);
    assert_eq!(response.head.status, 206);
    assert_eq!(response.body, &all[99_990..]);
    put.finish_created();
    follower.expect_rest(b"");
}

/// RFC 8673: a last position of 2^53-1 or more asks for all that will ever be there, and is echoed.
#[test]
fn a_very_large_last_position_follows_a_live_object_from_its_first_position_on() {
    let server = Server::start();
    let all = content(7, 60_000);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut witness = server.follow("/b/k");
    put.send(&all[..20_000]);
    witness.expect(&all[..20_000]);
    for last in ["9007199254740991", "9223372036854775807"] {
        let mut connection = server.connect();
        connection.request("GET", "/b/k", &[("Range", &format!("bytes=5000-{last}"))]);
        let mut follower = connection.into_body("GET");
        assert_eq!(follower.head.status, 206);
        assert_eq!(follower.head.get("content-range"), Some(format!("bytes 5000-{last}/*").as_str()));
        follower.expect(&all[5_000..20_000]);
        if last.starts_with("92") {
            put.send(&all[20_000..]);
            follower.expect(&all[20_000..]);
        }
    }
    put.finish_created();
}

#[test]
fn a_follow_that_begins_beyond_the_watermark_gets_its_bytes_when_they_come() {
    let server = Server::start();
    let all = content(8, 60_000);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut connection = server.connect();
    connection.request("GET", "/b/k", &[("Range", "bytes=30000-9007199254740991")]);
    let mut follower = connection.into_body("GET");
    assert_eq!(follower.head.status, 206);
    for piece in all.chunks(7_000) {
        put.send(piece);
    }
    put.finish_created();
    follower.expect_rest(&all[30_000..]);
}

// ---- Metadata ----

#[test]
fn what_a_writer_says_about_its_object_is_said_to_readers_also_after_a_restart() {
    let mut server = Server::start();
    let said = [
        ("Content-Type", "video/mp2t; codecs=\"mp2v\""),
        ("Cache-Control", "public, max-age=31536000, immutable"),
        ("x-amz-meta-camera", "north gate"),
        ("X-Amz-Meta-Operator", "Zo\u{eb}"),
        ("X-Other", "is not kept"),
    ];
    let response = server.try_put("/b/k", b"content", &said);
    assert_eq!(response.head.status, 201, "{response:?}");
    for restarts in 0..2 {
        let head = server.head("/b/k");
        for (name, value) in &said[..4] {
            assert_eq!(head.get(&name.to_lowercase()), Some(*value), "after {restarts} restarts");
        }
        assert_eq!(head.get("x-other"), None);
        // Of another name there is nothing of it.
        server.put("/b/plain", b"");
        let plain = server.head("/b/plain");
        assert_eq!(plain.get("content-type"), Some("application/octet-stream"));
        assert_eq!((plain.get("cache-control"), plain.get("x-amz-meta-camera")), (None, None));
        server.kill();
        server.restart();
    }
}

#[test]
fn the_answer_to_a_put_describes_the_object() {
    let server = Server::start();
    let first = server.put("/b/some/key%20with%20%C3%BC", b"content").json();
    assert_eq!(first["bucket"], "b");
    assert_eq!(first["key"], "some/key with \u{fc}");
    assert_eq!((&first["state"], &first["length"]), (&json!("sealed"), &json!(7)));
    let second = server.put("/b/some/key%20with%20%C3%BC", b"").json();
    assert!(second["generation"].as_u64() > first["generation"].as_u64());
    assert_ne!(second["etag"], first["etag"]);
    server.assert_sealed("/b/some/key%20with%20%c3%bc", b"");
    // POST is PUT.
    let mut connection = server.connect();
    connection.request("POST", "/b/posted", &[("Content-Length", "4")]);
    connection.send("body");
    assert_eq!(connection.response("POST").head.status, 201);
    server.assert_sealed("/b/posted", b"body");
}

// ---- Listings ----

/// The keys, folded prefixes and `next` of a listing.
#[track_caller]
fn list(server: &Server, path: &str) -> Value {
    let response = server.get(path);
    assert_eq!(response.head.status, 200, "{response:?}");
    assert_eq!(response.head.get("content-type"), Some("application/json"));
    let listing = response.json();
    let keys: Vec<&Value> =
        listing["objects"].as_array().unwrap().iter().map(|object| &object["key"]).collect();
    json!({"objects": keys, "prefixes": listing["prefixes"], "next": listing["next"]})
}

#[test]
fn a_listing_tells_what_each_object_is() {
    let server = Server::start();
    let put = server.put("/b/sealed", b"12345").json();
    let mut live = server.begin_put("/b/live", None, &[]);
    live.send(b"123");
    server.await_committed("/b/live", 3);
    let gone = server.begin_put("/b/gone", None, &[]);
    gone.close();
    server.await_state("/b/gone", "interrupted");

    let listing = server.get("/b/").json();
    assert_eq!(listing["bucket"], "b");
    let objects = listing["objects"].as_array().unwrap();
    let found: Vec<_> =
        objects.iter().map(|object| (&object["key"], &object["state"], &object["length"])).collect();
    let expected = [("gone", "interrupted", 0), ("live", "live", 3), ("sealed", "sealed", 5)]
        .map(|(key, state, length)| (json!(key), json!(state), json!(length)));
    assert_eq!(found, expected.iter().map(|(key, state, length)| (key, state, length)).collect::<Vec<_>>());
    assert_eq!(objects[2]["etag"], put["etag"]);
    assert_eq!(objects[2]["generation"], put["generation"]);
    assert_eq!(objects[0]["etag"], Value::Null, "what may be continued has no tag");
    assert!(objects[2]["modified"].as_str().unwrap().ends_with('Z'));
    live.finish_created();
}

#[test]
fn listings_with_prefix_delimiter_and_pages() {
    let mut server = Server::start();
    for key in ["a", "b/1", "b/2", "b/c/3", "b0", "c/x", "d%20e", "%C3%BC/1", "z"] {
        server.put(&format!("/bucket/{key}"), key.as_bytes());
    }
    server.put("/bucket-2/other", b"");
    for restarts in 0..2 {
        for (query, objects, prefixes, next) in [
            ("", &["a", "b/1", "b/2", "b/c/3", "b0", "c/x", "d e", "z", "\u{fc}/1"][..], &[][..], None),
            ("?prefix=b", &["b/1", "b/2", "b/c/3", "b0"], &[], None),
            ("?prefix=b/", &["b/1", "b/2", "b/c/3"], &[], None),
            ("?prefix=nothing", &[], &[], None),
            ("?delimiter=/", &["a", "b0", "d e", "z"], &["b/", "c/", "\u{fc}/"], None),
            ("?prefix=b/&delimiter=/", &["b/1", "b/2"], &["b/c/"], None),
            ("?prefix=b&delimiter=/", &["b0"], &["b/"], None),
            ("?limit=2", &["a", "b/1"], &[], Some("b/1")),
            ("?limit=2&after=b/1", &["b/2", "b/c/3"], &[], Some("b/c/3")),
            ("?after=d%20e", &["z", "\u{fc}/1"], &[], None),
            ("?after=d+e&limit=2", &["z", "\u{fc}/1"], &[], None),
            ("?after=bzzz&limit=1", &["c/x"], &[], Some("c/x")),
            ("?delimiter=/&limit=2", &["a"], &["b/"], Some("b/")),
            // Behind a folded prefix it goes on behind all of it.
            ("?delimiter=/&limit=2&after=b/", &["b0"], &["c/"], Some("c/")),
            ("?delimiter=/&after=c/", &["d e", "z"], &["\u{fc}/"], None),
            ("?delimiter=/&prefix=b/&after=b/2", &[], &["b/c/"], None),
            ("?limit=9", &["a", "b/1", "b/2", "b/c/3", "b0", "c/x", "d e", "z", "\u{fc}/1"], &[], None),
        ] {
            let expected = json!({"objects": objects, "prefixes": prefixes, "next": next});
            assert_eq!(list(&server, &format!("/bucket/{query}")), expected, "{query}, {restarts} restarts");
        }
        server.kill();
        server.restart();
    }
}

#[test]
fn pages_give_every_object_once_whatever_their_size_while_others_come_and_go() {
    let server = Server::start();
    let mut connection = server.connect();
    let keys: Vec<String> = (0..120).map(|index| format!("{:03}", index * 7 % 120)).collect();
    for key in &keys {
        connection.request("PUT", &format!("/b/{key}"), &[("Content-Length", "0")]);
        assert_eq!(connection.response("PUT").head.status, 201);
    }
    for limit in [1, 7, 40, 119, 120, 121] {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = list(&server, &format!("/b/?limit={limit}&after={after}"));
            let objects = page["objects"].as_array().unwrap();
            assert!(objects.len() <= limit);
            found.extend(objects.iter().map(|key| key.as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
            // Behind the page that was given, and before the next one: neither is seen.
            if limit == 40 {
                server.put("/b/000-new", b"");
                server.request("DELETE", "/b/000-new", &[]);
            }
        }
        let expected: Vec<String> = (0..120).map(|index| format!("{index:03}")).collect();
        assert_eq!(found, expected, "limit {limit}");
    }
}

#[test]
fn buckets_are_there_as_long_as_they_hold_something() {
    let server = Server::start();
    assert_eq!(server.get("/").json(), json!({"buckets": []}));
    for path in ["/b/k", "/a-bucket/k", "/c.d/k", "/b/l"] {
        server.put(path, b"");
    }
    assert_eq!(server.get("/").json(), json!({"buckets": ["a-bucket", "b", "c.d"]}));
    server.request("DELETE", "/b/k", &[]);
    assert_eq!(server.get("/").json(), json!({"buckets": ["a-bucket", "b", "c.d"]}));
    server.request("DELETE", "/b/l", &[]);
    assert_eq!(server.get("/").json(), json!({"buckets": ["a-bucket", "c.d"]}));
    // A bucket that holds nothing is no error: none needs to be made.
    assert_eq!(list(&server, "/b/"), json!({"objects": [], "prefixes": [], "next": null}));
}

#[test]
fn deleted_objects_are_counted() {
    let server = Server::start();
    for round in 1..=3 {
        server.put("/b/k", b"");
        assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
        assert_eq!(server.metric("tailwater_objects_deleted_total"), round);
    }
    eventually("nobody is connected", || server.metric("tailwater_connections_open") == 0);
}
