//! What a node takes on is bounded: it slows its writers down rather than take more memory than it was given.
//!
//! The disk that stands still is a frozen file system: nothing fails, and nothing comes to its end until it is thawed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Connection, Disk, End, FileSystem, Server, content, eventually};

const ARENA_BYTES: u64 = 4 << 20;
const CORES: u64 = 2;
/// What a connection may hold beside the arena, in bytes, and what all of them together cost the allocator.
const CONNECTION_BYTES: u64 = 64 << 10;
const SLACK_BYTES: u64 = 16 << 20;
/// How long nobody can send anything before they count as held up.
const QUIET: Duration = Duration::from_millis(300);

/// A writer that sends as fast as it is let, and never waits.
struct Pusher {
    stream: TcpStream,
    path: String,
    bytes: Vec<u8>,
    sent: usize,
}

impl Pusher {
    fn begin(server: &Server, number: u64, length: usize) -> Pusher {
        let path = format!("/b/{number}");
        let mut stream = TcpStream::connect(server.data_address()).unwrap();
        write!(stream, "PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").unwrap();
        stream.set_nonblocking(true).unwrap();
        Pusher { stream, path, bytes: content(number, length), sent: 0 }
    }

    /// Whether anything could be sent.
    fn push(&mut self) -> bool {
        let mut any = false;
        while self.sent < self.bytes.len() {
            match self.stream.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                Err(error) => panic!("{}: {error}", self.path),
            }
            any = true;
        }
        any
    }

    fn is_done(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn finish(mut self, server: &Server) {
        self.stream.set_nonblocking(false).unwrap();
        self.stream.write_all(&self.bytes[self.sent..]).unwrap();
        let response = Connection::of(self.stream).response("PUT");
        assert_eq!(response.head.status, 201, "{response:?}");
        server.assert_sealed(&self.path, &self.bytes);
    }
}

/// Sends with all of them until none has got anything through for a while.
fn push_until_held_up(pushers: &mut [Pusher]) {
    let mut last = Instant::now();
    while last.elapsed() < QUIET {
        for pusher in pushers.iter_mut() {
            if pusher.push() {
                last = Instant::now();
            }
        }
        assert!(!pushers.iter().all(Pusher::is_done), "nobody was held up");
        std::thread::yield_now();
    }
}

fn resident_bytes(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process_id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_disk_that_stands_still_holds_up_writers_and_nobody_else() {
    for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
        let Some(disk) = Disk::new(file_system, 512 << 20) else { return };
        let data = disk.path().join("data");
        let mut server = Server::start_small_at(&data, &[], &["--segment-bytes", "16MiB"]);
        let first = content(1000, 100_000);
        server.put("/b/stored", &first);
        let mut put = server.begin_put("/b/live", None, &[]);
        put.send(&first);
        let mut follower = server.follow("/b/live");
        follower.expect(&first);
        let received = || server.metric("tailwater_received_bytes_total");
        let (resident_before, received_before) = (resident_bytes(&server), received());

        let frozen = disk.freeze();
        let mut pushers: Vec<Pusher> =
            (0..24).map(|number| Pusher::begin(&server, number, 12 << 20)).collect();
        put.send(b"not durable");
        push_until_held_up(&mut pushers);
        let (taken, grown) = (received() - received_before, resident_bytes(&server) - resident_before);
        assert!(taken <= CORES * ARENA_BYTES + 24 * CONNECTION_BYTES, "{taken} bytes were taken");
        assert!(grown <= CORES * ARENA_BYTES + SLACK_BYTES, "{grown} bytes more are resident");
        // Who wants nothing of the disk's writes goes on, and sees nothing that is not durable.
        for _ in 0..10 {
            server.assert_sealed("/b/stored", &first);
            assert_eq!(server.head("/b/live").get("tailwater-committed"), Some("100000"));
            assert_eq!(server.admin_status("/readyz"), 200);
        }
        drop(frozen);

        follower.expect(b"not durable");
        put.finish_created();
        follower.expect_rest(b"");
        for pusher in pushers {
            pusher.finish(&server);
        }
        assert!(server.terminate().success());
        server.assert_verified();
    }
}

#[test]
fn fast_writers_and_readers_that_take_nothing_stay_within_the_memory_of_the_node() {
    let server = Server::start_with(&["--segment-bytes", "16MiB", "--connections-max", "200"]);
    let warm = content(1, 1 << 20);
    for number in 0..8 {
        server.put(&format!("/warm/{number}"), &warm);
    }
    let before = resident_bytes(&server);
    let lengths = [8 << 20; 20];
    let mut pushers: Vec<Pusher> =
        (0..).zip(lengths).map(|(number, length)| Pusher::begin(&server, number, length)).collect();
    eventually("all of them write", || server.metric("tailwater_objects_live") == 20);
    let mut idle: Vec<Connection> = Vec::new();
    for number in 0..100 {
        let mut reader = Connection::with_small_receive_buffer(server.data_address(), 4096);
        reader.request("GET", &format!("/b/{}", number % 20), &[]);
        idle.push(reader);
    }
    eventually("all of them read", || server.metric("tailwater_followers") == 100);
    let mut most = 0;
    while !pushers.iter().all(Pusher::is_done) {
        for pusher in &mut pushers {
            pusher.push();
        }
        most = most.max(resident_bytes(&server));
    }
    for pusher in pushers {
        pusher.finish(&server);
    }
    let bound = before + CORES * ARENA_BYTES + 120 * CONNECTION_BYTES + SLACK_BYTES;
    assert!(most <= bound, "{most} bytes were resident, {before} of them before");
    // Whoever took nothing has lost nothing by that.
    for (number, reader) in idle.into_iter().enumerate().take(20) {
        let mut body = reader.into_body("GET");
        let (bytes, end) = body.rest();
        assert_eq!(end, End::Clean);
        common::assert_same("a late reader", &bytes, &content(number as u64, 8 << 20));
    }
}
