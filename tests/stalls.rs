//! Clients that are too slow are cut, each kind after its limit, counted and named in the log; nobody else notices.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Connection, End, Server, content, eventually};

fn stalls(server: &Server, of: &str) -> u64 {
    server.metric(&format!("tailwater_stalls_total{{of=\"{of}\"}}"))
}

#[test]
fn each_kind_of_stall_is_cut_counted_and_named() {
    let flags = ["--writer-stall-seconds", "1", "--reader-stall-seconds", "1", "--head-seconds", "1"];
    let server = Server::start_with(&flags);
    let bytes = content(1, 30_000_000);
    server.put("/b/large", &bytes);

    let mut silent = server.begin_put("/b/silent", None, &[]);
    silent.send(b"some");
    let mut follower = server.follow("/b/silent");
    follower.expect(b"some");
    assert_ne!(follower.rest().1, End::Clean);
    assert_eq!(stalls(&server, "writer"), 1);

    let mut head = server.connect();
    head.send("GET /b/large HTTP/1.1\r\nHost: h\r\n");
    assert_eq!(head.response("GET").head.status, 408);
    assert_eq!(stalls(&server, "head"), 1);

    let mut reader = Connection::with_small_receive_buffer(server.data_address(), 4096);
    reader.request("GET", "/b/large", &[]);
    eventually("a reader that takes nothing is cut", || stalls(&server, "reader") == 1);

    let log = server.log();
    for kind in ["Writer", "Head", "Reader"] {
        assert!(log.lines().any(|line| line.contains("too slow") && line.contains(kind)), "{kind}: {log}");
    }
    server.assert_sealed("/b/large", &bytes);
}

#[test]
fn a_body_slower_than_the_floor_is_cut_and_one_that_keeps_up_is_not() {
    let server =
        Server::start_with(&["--writer-stall-seconds", "1", "--body-floor-bytes", "30000", "--cores", "1"]);
    let mut steady = server.begin_put("/b/steady", None, &[]);
    let mut trickle = server.begin_put("/b/trickle", None, &[]);
    let mut sent = 0;
    // Both send all the time; what tells them apart is how much. On the fastest machine a round is longer than
    // 1/30,000 s, or the trickle would keep up; on the slowest, shorter than 1/3 s, or the other would not.
    while trickle.try_send(b"x") && stalls(&server, "body") == 0 {
        steady.send(&[b'y'; 10_000]);
        sent += 10_000;
    }
    eventually("the trickle is cut", || stalls(&server, "body") == 1);
    server.await_state("/b/trickle", "interrupted");
    steady.finish_created();
    server.assert_sealed("/b/steady", &vec![b'y'; sent]);
    assert_eq!(stalls(&server, "writer"), 0);
}
