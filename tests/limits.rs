//! The limits that a system sets to a process: how long a file may be (EFBIG), and how many descriptors it may have
//! (EMFILE). At a limit the server answers, or lets clients wait; when the limit is gone it goes on by itself.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{Connection, End, Response, Server, content, eventually, is_root};

/// Sets a limit of a process that runs.
fn set_limit(server: &Server, limit: &str) {
    let process = server.process_id().to_string();
    let output = Command::new("prlimit").args(["--pid", &process, limit]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[track_caller]
fn assert_full(response: &Response) {
    assert_eq!(response.head.status, 507, "{response:?}");
    assert_eq!(response.head.get("content-type"), Some("application/problem+json"), "{response:?}");
    assert_eq!(response.json()["actor"], "operator", "{response:?}");
}

/// The signal that comes with EFBIG ended the server.
#[test]
fn a_limit_of_file_sizes_is_a_full_disk_and_not_the_end() {
    if !is_root() {
        return; // who may raise a limit again
    }
    let place = folder();
    let command = ["prlimit", "--fsize=3145728:unlimited"];
    let mut server = Server::start_small_at(&place.path().join("data"), &command, &[]);
    for number in 0..4 {
        assert_full(&server.try_put(&format!("/b/{number}"), b"hello", &[]));
        server.assert_alive();
    }
    assert!(server.log().contains("File too large"), "{}", server.log());
    set_limit(&server, "--fsize=unlimited:unlimited");
    eventually("there is room", || server.try_put("/b/k", b"hello", &[]).head.status == 201);
    server.assert_sealed("/b/k", b"hello");

    let bytes = content(1, 1 << 20);
    server.put("/b/long", &bytes);

    // A start below the limit: what is there is served.
    assert!(server.terminate().success());
    server.restart();
    server.assert_sealed("/b/long", &bytes);
    assert_eq!(server.admin_status("/livez"), 200);
}

#[test]
fn a_limit_of_file_sizes_that_comes_later_loses_nothing() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    let mut put = server.begin_put("/b/live", None, &[]);
    let mut follower = server.follow("/b/live");
    put.send(b"hello");
    follower.expect(b"hello");
    set_limit(&server, "--fsize=8192:unlimited");
    let mut there = Vec::new();
    // Not even what is reserved can be written.
    let refused = (0..1000).find_map(|number| {
        let response = server.try_put(&format!("/c/{number}"), &content(number, 300_000), &[]);
        if response.head.status == 201 {
            there.push(number);
            return None;
        }
        Some(response)
    });
    let refused = refused.expect("a limit that limits");
    assert_full(&refused);
    server.assert_alive();
    assert_eq!(server.admin_status("/readyz"), 200, "a full disk can be read");
    assert_eq!(server.metric("tailwater_logs_failed"), 0);
    assert!(server.metric("tailwater_block_write_failures_total") > 0, "blocks met the limit");
    let check = |server: &Server, there: &[u64]| {
        for &number in there {
            server.assert_sealed(&format!("/c/{number}"), &content(number, 300_000));
        }
    };
    check(&server, &there);
    assert_eq!(server.admin_status("/livez"), 200);

    // With the limit gone it goes on by itself.
    set_limit(&server, "--fsize=unlimited:unlimited");
    for number in 2000..2010 {
        let bytes = content(number, 300_000);
        eventually("there is room", || {
            server.try_put(&format!("/c/{number}"), &bytes, &[]).head.status == 201
        });
        there.push(number);
    }
    check(&server, &there);
    server.kill();
    server.restart();
    check(&server, &there);
    server.assert_undamaged();
    let live = server.get("/b/live");
    assert!(live.body.starts_with(b"hello"), "{live:?}");
    server.put("/c/more", b"hello");
}

/// Whether a server starts with so many descriptors. If not, it says so in one sentence.
fn starts_with(descriptors: u64) -> bool {
    let place = folder();
    let mut process = Command::new("prlimit")
        .arg(format!("--nofile={descriptors}:{descriptors}"))
        .args([env!("CARGO_BIN_EXE_tailwater"), "serve", "--cores", "2"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
        .arg(place.path().join("data"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut introduction = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut introduction).unwrap();
    if !introduction.is_empty() {
        process.kill().unwrap();
        process.wait().unwrap();
        return true;
    }
    let output = process.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{descriptors}: {}: {error}", output.status);
    assert!(!error.contains("panicked"), "{descriptors}: {error}");
    let ours: Vec<&str> = error.lines().filter(|line| line.starts_with("tailwater: ")).collect();
    assert_eq!(ours.len(), 1, "one sentence with {descriptors}: {error}");
    assert!(ours[0].contains("Too many open files"), "{descriptors}: {error}");
    false
}

#[test]
fn with_too_few_descriptors_it_does_not_start_and_says_why() {
    if !is_root() {
        return;
    }
    // Fewer are not enough for prlimit itself to start a program.
    let starts: Vec<bool> = (5..40).map(starts_with).collect();
    eprintln!("{starts:?}");
    assert!(!starts[0] && starts[34], "{starts:?}");
}

#[test]
fn at_the_limit_of_descriptors_clients_wait_or_are_answered_and_then_it_goes_on() {
    if !is_root() {
        return;
    }
    let place = folder();
    let command = ["prlimit", "--nofile=60:4096"];
    let mut server = Server::start_small_at(&place.path().join("data"), &command, &[]);
    // It takes what it may have; for this test it has less.
    set_limit(&server, "--nofile=60:4096");
    let bytes = content(1, 100_000);
    server.put("/b/k", &bytes);
    let mut put = server.begin_put("/b/live", None, &[]);
    let mut follower = server.follow("/b/live");
    // More than there are descriptors: those that find none wait until somebody goes.
    let mut idle: Vec<Connection> = (0..100).map(|_| server.connect()).collect();
    for connection in &mut idle {
        connection.request("GET", "/b/k", &[]);
    }
    eventually("it is at its limit", || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.process_id())).unwrap().count();
        descriptors >= 60 && server.log().contains("connections cannot be accepted for now")
    });
    // Who is there already goes on.
    for _ in 0..20 {
        put.send(&bytes);
        follower.expect(&bytes);
    }
    server.assert_alive();
    // Each gets its turn, and an answer that is whole or says that it is not to be had now.
    let (mut whole, mut refused) = (0, 0);
    for mut connection in idle {
        match connection.try_response("GET") {
            Ok(response) if response.head.status == 200 && response.end == End::Clean => {
                assert!(response.body == bytes, "{response:?}");
                whole += 1;
            }
            // There was no descriptor for a pipe.
            _ => refused += 1,
        }
    }
    eprintln!("{whole} whole, {refused} refused");
    assert!(whole >= 50, "{whole} whole, {refused} refused");
    // Segments need descriptors too.
    for number in 0..8 {
        server.put(&format!("/c/{number}"), &content(number, 1 << 20));
    }
    put.finish_created();
    follower.expect_rest(b"");
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", &bytes);
}
