//! Readers that follow an object while it is written: each gets exactly its bytes, and none costs the writer
//! anything.
//!
//! "Before" is shown by handshakes: a follower is waited for before the writer sends more.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Body, Connection, End, Program, Server, content, eventually};

const MIB: usize = 1 << 20;
/// What the harness gives each core for blocks.
const ARENA_BYTES: usize = 4 * MIB;

/// A client that follows from the first byte on.
enum Follower {
    Raw(Body),
    Curl(Program),
}

impl Follower {
    #[track_caller]
    fn expect(&mut self, bytes: &[u8]) {
        match self {
            Follower::Raw(body) => body.expect(bytes),
            Follower::Curl(program) => program.expect(bytes),
        }
    }

    #[track_caller]
    fn expect_clean_end(self) {
        match self {
            Follower::Raw(mut body) => body.expect_rest(b""),
            Follower::Curl(program) => program.expect_rest(b""),
        }
    }
}

#[test]
fn each_of_50_followers_on_both_cores_has_a_piece_before_the_next_one_is_sent() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut followers: Vec<Follower> = (0..40).map(|_| Follower::Raw(server.follow("/b/k"))).collect();
    for _ in 0..10 {
        let Some(curl) = Program::curl(&[server.url("/b/k")]) else { break };
        followers.push(Follower::Curl(curl));
    }
    let count = followers.len() as u64;
    eventually("all follow", || server.metric("tailwater_followers") == count);

    let mut all = Vec::new();
    for seed in 0..20 {
        // From pieces of a few bytes to some that no socket buffer and no block takes at once.
        let piece = content(seed, 7 << (seed % 18));
        put.send(&piece);
        for follower in &mut followers {
            follower.expect(&piece);
        }
        all.extend(piece);
    }
    assert_eq!(put.finish_created().json()["length"], all.len());
    for follower in followers {
        follower.expect_clean_end();
    }
    server.assert_sealed("/b/k", &all);
    eventually("nobody follows any more", || server.metric("tailwater_followers") == 0);

    // The followers were spread over both cores: there were messages from the writer's core to the other one. And
    // not one for each follower, only one for each block.
    let wakes = server.metric("tailwater_wake_messages_total");
    let blocks = server.metric("tailwater_block_size_bytes_count");
    assert!((1..=blocks).contains(&wakes), "{wakes} messages, {blocks} blocks");
}

#[test]
fn a_late_follower_gets_everything_from_the_first_byte_on() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut early = server.follow("/b/k");
    let mut all = content(1, 300_000);
    put.send(&all);
    early.expect(&all);

    let mut late = server.follow("/b/k");
    late.expect(&all);
    let more = content(2, 5_000);
    put.send(&more);
    late.expect(&more);
    early.expect(&more);
    all.extend(more);
    put.finish_created();
    late.expect_rest(b"");
    early.expect_rest(b"");
    server.assert_sealed("/b/k", &all);
}

/// The writer sends six times what the core holds in memory, while one follower reads nothing. Neither the writer
/// nor another follower waits for it, and afterwards it gets all of it, from the disk.
#[test]
fn a_follower_that_reads_nothing_delays_nobody_and_catches_up_from_the_disk() {
    let server = Server::start();
    let all = content(3, 6 * ARENA_BYTES);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut stopped = {
        let mut connection = Connection::with_small_receive_buffer(server.data_address(), 64 << 10);
        connection.request("GET", "/b/k", &[]);
        connection.into_body("GET")
    };
    let mut brisk = server.follow("/b/k");
    for piece in all.chunks(MIB) {
        put.send(piece);
        brisk.expect(piece);
    }
    put.finish_created();
    brisk.expect_rest(b"");
    assert_eq!(stopped.received(), 0);

    let files = "tailwater_sent_bytes_total{source=\"files\"}";
    let from_files_before = server.metric(files);
    let from_arena = server.metric("tailwater_sent_bytes_total{source=\"arena\"}");
    // What neither the arena still holds nor the socket was given before now must come from the files.
    let given = from_arena + from_files_before - all.len() as u64;
    let at_least = all.len() as u64 - given - ARENA_BYTES as u64;
    stopped.expect_rest(&all);
    let from_files = server.metric(files) - from_files_before;
    assert!(from_files >= at_least && at_least > 0, "{from_files} of at least {at_least} bytes");
}

/// Readers that stopped all along an object, each at another place, of what was in memory then: more places than
/// there are blocks in the arena. Nothing of it may be held for them, or the writer would have no block left.
#[test]
fn readers_that_stopped_at_many_places_hold_nothing_of_the_memory_that_the_writer_needs() {
    let server = Server::start();
    let pieces = 32;
    let all = content(12, pieces * MIB);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut brisk = server.follow("/b/k");
    let mut stopped = Vec::new();
    for piece in all.chunks(MIB) {
        let mut connection = Connection::with_small_receive_buffer(server.data_address(), 16 << 10);
        connection.request("GET", "/b/k?from=live", &[]);
        stopped.push(connection.into_body("GET"));
        put.send(piece);
        brisk.expect(piece);
    }
    put.finish_created();
    brisk.expect_rest(b"");
    for (index, mut body) in stopped.into_iter().enumerate() {
        assert_eq!(body.received(), 0);
        // Each can go on.
        body.expect(&all[index * MIB..][..MIB]);
    }
}

/// The same while the object is still live: the reader falls behind what is in memory, is served from the disk,
/// comes up to the live edge, and goes on there.
#[test]
fn a_follower_that_fell_behind_comes_up_to_the_live_edge_again() {
    let server = Server::start();
    let all = content(4, 3 * ARENA_BYTES);
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut behind = server.follow("/b/k");
    put.send(&all);
    server.await_committed("/b/k", all.len() as u64);
    assert_eq!(behind.received(), 0);
    behind.expect(&all);
    assert!(server.metric("tailwater_sent_bytes_total{source=\"files\"}") > 0);
    for seed in 5..8 {
        let piece = content(seed, 1_000);
        put.send(&piece);
        behind.expect(&piece);
    }
    put.finish_created();
    behind.expect_rest(b"");
}

/// Hundreds of small appends behind each other on the disk, with those of another object between them.
#[test]
fn a_reader_of_many_small_appends_that_lie_scattered_on_the_disk_gets_them_in_order() {
    let server = Server::start_with(&["--cores", "1"]);
    let mut puts = [server.begin_put("/b/0", None, &[]), server.begin_put("/b/1", None, &[])];
    let mut followers = [server.follow("/b/0"), server.follow("/b/1")];
    let mut all = [Vec::new(), Vec::new()];
    for seed in 0..200 {
        for one in 0..2 {
            let piece = content(seed * 2 + one as u64, 1 + (seed as usize * 997) % 9_000);
            puts[one].send(&piece);
            followers[one].expect(&piece);
            all[one].extend(piece);
        }
    }
    // Out of the arena with them.
    server.put("/b/large", &content(9, 2 * ARENA_BYTES));
    for (one, put) in puts.into_iter().enumerate() {
        put.finish_created();
        followers[one].expect_rest(b"");
        let files = "tailwater_sent_bytes_total{source=\"files\"}";
        let before = server.metric(files);
        server.assert_sealed(&format!("/b/{one}"), &all[one]);
        assert!(server.metric(files) > before, "nothing came from the files");
    }
}

#[test]
fn a_follower_that_stops_reading_for_ever_is_disconnected_without_a_clean_end() {
    let server = Server::start_with(&["--reader-stall-seconds", "1"]);
    let all = content(5, 3 * ARENA_BYTES);
    let mut connection = Connection::with_small_receive_buffer(server.data_address(), 64 << 10);
    server.put("/b/k", &all);
    connection.request("GET", "/b/k", &[]);
    let mut stalled = connection.into_body("GET");
    eventually("the stalled reader was given up", || server.metric("tailwater_connections_open") == 0);
    let (found, end) = stalled.rest();
    assert_ne!(end, End::Clean);
    assert!(all.starts_with(&found) && found.len() < all.len());
}

#[test]
fn a_follower_at_the_live_edge_gets_what_comes_from_then_on() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut witness = server.follow("/b/k");
    let (before, after) = (content(6, 70_000), content(7, 90_000));
    put.send(&before);
    witness.expect(&before);

    let mut edge = server.follow("/b/k?from=live");
    assert_eq!(edge.head.status, 200);
    assert_eq!(edge.head.get("tailwater-state"), Some("live"));
    assert_eq!(edge.head.get("tailwater-committed"), Some("70000"));
    put.send(&after);
    edge.expect(&after);
    put.finish_created();
    edge.expect_rest(b"");

    // What is complete has no live edge: it is served whole.
    assert_eq!(server.get("/b/k?from=live").body.len(), before.len() + after.len());
}

#[test]
fn a_follower_with_http_1_0_gets_every_byte_and_a_regular_end_of_the_connection() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut connection = server.connect();
    connection.send("GET /b/k HTTP/1.0\r\n\r\n");
    let mut follower = connection.into_body("GET");
    assert_eq!((follower.head.status, follower.head.get("transfer-encoding")), (200, None));
    assert_eq!(follower.head.get("content-length"), None);
    assert_eq!(follower.head.get("connection"), Some("close"));
    for seed in 0..5 {
        let piece = content(seed, 20_000);
        put.send(&piece);
        follower.expect(&piece);
    }
    put.finish_created();
    // Here the end of the connection is the end of the body; a reset would be an error.
    follower.expect_rest(b"");
}

#[test]
fn the_head_of_an_answer_comes_before_the_first_byte_of_the_object() {
    let server = Server::start();
    let put = server.begin_put("/b/k", None, &[("Content-Type", "video/mp2t")]);
    let mut follower = server.follow("/b/k");
    assert_eq!(follower.head.status, 200);
    assert_eq!(follower.head.get("content-type"), Some("video/mp2t"));
    assert_eq!(follower.head.get("tailwater-state"), Some("live"));
    assert_eq!(follower.head.get("tailwater-committed"), Some("0"));
    assert_eq!(follower.head.get("cache-control"), Some("no-cache"));
    put.finish_created();
    follower.expect_rest(b"");
}

#[test]
fn a_get_that_came_before_its_put_is_answered_when_the_object_begins() {
    let server = Server::start();
    let mut waiting: Vec<Connection> = (0..6).map(|_| server.connect()).collect();
    for connection in &mut waiting {
        connection.request("GET", "/b/k?wait=30", &[]);
    }
    // Both cores have answered something that came after, so those requests wait by now.
    for _ in 0..4 {
        assert_eq!(server.get("/b/k").head.status, 404);
    }
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut followers: Vec<Body> =
        waiting.into_iter().map(|connection| connection.into_body("GET")).collect();
    let piece = content(8, 1_000);
    put.send(&piece);
    for follower in &mut followers {
        assert_eq!(follower.head.status, 200);
        follower.expect(&piece);
    }
    put.finish_created();
    for follower in &mut followers {
        follower.expect_rest(b"");
    }
}

#[test]
fn a_get_that_waited_in_vain_gets_404_and_the_connection_goes_on() {
    let server = Server::start();
    let mut connection = server.connect();
    connection.request("GET", "/b/k?wait=0.05", &[]);
    assert_eq!(connection.response("GET").head.status, 404);
    server.put("/b/k", b"now");
    connection.request("GET", "/b/k?wait=0.05", &[]);
    assert_eq!(connection.response("GET").body, b"now");
}

#[test]
fn a_client_that_leaves_while_it_waits_is_let_go_of() {
    let server = Server::start();
    let mut leaves = server.connect();
    leaves.request("GET", "/b/never?wait=3600", &[]);
    assert_eq!(server.get("/b/k").head.status, 404);
    leaves.reset();
    let mut put = server.begin_put("/b/k", None, &[]);
    let follower = server.follow("/b/k");
    eventually("one follows", || server.metric("tailwater_followers") == 1);
    drop(follower);
    // A client that has closed looks like one that has only finished sending, until something is sent to it.
    eventually("nobody follows", || {
        put.send(b"more");
        server.metric("tailwater_followers") == 0
    });
    eventually("only the writer is connected", || server.metric("tailwater_connections_open") == 1);
    put.finish_created();
}

#[test]
fn follow_0_gives_what_is_committed_now_and_ends_there() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[("Cache-Control", "max-age=60")]);
    let mut witness = server.follow("/b/k");
    let mut connection = server.connect();
    let mut all = Vec::new();
    for seed in 0..3 {
        connection.request("GET", "/b/k?follow=0", &[]);
        let response = connection.response("GET");
        assert_eq!(response.head.status, 200);
        assert_eq!(response.end, End::Clean);
        assert_eq!(response.head.get("content-length"), Some(all.len().to_string().as_str()));
        assert_eq!(response.head.get("tailwater-state"), Some("live"));
        // It is not the object, and must not be kept as if it were.
        assert_eq!(response.head.get("cache-control"), Some("no-store"));
        assert_eq!(response.head.get("etag"), None);
        common::assert_same("what is committed", &response.body, &all);

        let piece = content(seed, 30_000);
        put.send(&piece);
        witness.expect(&piece);
        all.extend(piece);
    }
    put.finish_created();
    connection.request("GET", "/b/k?follow=0", &[]);
    let response = connection.response("GET");
    assert_eq!(response.head.get("tailwater-state"), Some("sealed"));
    assert_eq!(response.head.get("cache-control"), Some("max-age=60"));
    assert_eq!(response.body, all);
}

#[test]
fn a_head_of_a_live_object_tells_its_state_and_watermark_and_ends_at_once() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut witness = server.follow("/b/k");
    let mut connection = server.connect();
    let mut committed = 0;
    for seed in 0..3 {
        connection.request("HEAD", "/b/k", &[]);
        let head = connection.head();
        assert_eq!(head.status, 200);
        assert_eq!(head.get("tailwater-state"), Some("live"));
        assert_eq!(head.get("tailwater-committed"), Some(committed.to_string().as_str()));
        assert_eq!(head.get("content-length"), None, "nobody knows how long it will be");
        let piece = content(seed, 12_345);
        put.send(&piece);
        witness.expect(&piece);
        committed += piece.len();
    }
    put.finish_created();
    connection.request("HEAD", "/b/k", &[]);
    let head = connection.head();
    assert_eq!(head.get("tailwater-state"), Some("sealed"));
    assert_eq!(head.get("content-length"), Some(committed.to_string().as_str()));
}

#[test]
fn a_declared_length_is_told_to_followers_from_the_beginning() {
    let server = Server::start();
    let all = content(10, 200_000);
    let mut put = server.begin_put("/b/k", Some(all.len() as u64), &[]);
    let mut follower = server.follow("/b/k");
    assert_eq!(follower.head.get("content-length"), Some("200000"));
    assert_eq!(follower.head.get("transfer-encoding"), None);
    let head = server.head("/b/k");
    assert_eq!(head.get("content-length"), Some("200000"));
    assert_eq!(head.get("tailwater-state"), Some("live"));
    let mut old = server.connect();
    old.send("GET /b/k HTTP/1.0\r\n\r\n");
    let mut old = old.into_body("GET");
    assert_eq!(old.head.get("content-length"), Some("200000"));
    let mut edge = None;
    for (index, piece) in all.chunks(50_000).enumerate() {
        if index == 2 {
            let body = server.follow("/b/k?from=live");
            assert_eq!(body.head.get("content-length"), Some("100000"));
            edge = Some(body);
        }
        put.send(piece);
        follower.expect(piece);
        old.expect(piece);
    }
    assert_eq!(put.response().head.status, 201);
    follower.expect_rest(b"");
    old.expect_rest(b"");
    edge.unwrap().expect_rest(&all[100_000..]);
    // With a length the connection can be used again.
    let mut connection = follower.into_connection();
    connection.request("GET", "/b/k", &[]);
    assert_eq!(connection.response("GET").body, all);
}

#[test]
fn a_range_within_a_declared_length_is_sent_as_it_arrives() {
    let server = Server::start();
    let all = content(11, 100_000);
    let mut put = server.begin_put("/b/k", Some(100_000), &[]);
    let follow = |range: &str| {
        let mut connection = server.connect();
        connection.request("GET", "/b/k", &[("Range", range)]);
        connection.into_body("GET")
    };
    let mut middle = follow("bytes=40000-59999");
    let mut tail = follow("bytes=-10000");
    let mut open = follow("bytes=60000-");
    for (body, content_range) in [
        (&middle, "bytes 40000-59999/100000"),
        (&tail, "bytes 90000-99999/100000"),
        (&open, "bytes 60000-99999/100000"),
    ] {
        assert_eq!((body.head.status, body.head.get("content-range")), (206, Some(content_range)));
    }
    put.send(&all[..50_000]);
    middle.expect(&all[40_000..50_000]);
    put.send(&all[50_000..]);
    middle.expect_rest(&all[50_000..60_000]);
    assert_eq!(put.response().head.status, 201);
    tail.expect_rest(&all[90_000..]);
    open.expect_rest(&all[60_000..]);
}

#[test]
fn an_empty_object_ends_its_followers_cleanly_and_without_a_byte() {
    let server = Server::start();
    let put = server.begin_put("/b/chunked", None, &[]);
    let mut follower = server.follow("/b/chunked");
    put.finish_created();
    follower.expect_rest(b"");
    server.assert_sealed("/b/chunked", b"");
    server.put("/b/declared", b"");
    server.assert_sealed("/b/declared", b"");
}

#[test]
fn requests_that_were_sent_behind_a_follow_are_answered_after_its_end() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut connection = server.connect();
    for path in ["/b/k", "/b/nothing", "/b/k"] {
        connection.request("GET", path, &[]);
    }
    let mut follower = connection.into_body("GET");
    put.send(b"one");
    follower.expect(b"one");
    put.finish_created();
    follower.expect_rest(b"");
    let mut connection = follower.into_connection();
    assert_eq!(connection.response("GET").head.status, 404);
    assert_eq!(connection.response("GET").body, b"one");
}
