//! `tailwater put` goes on by itself when the connection breaks and when the server is killed or restarted; curl's
//! `-C` goes on with a download.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::process::Command;

use common::{Program, Random, Server, assert_same, content, eventually, seed, tool};

/// A server that has the same address after a restart.
fn server() -> Server {
    let mut server = Server::start_with(&["--drain-seconds", "0"]);
    server.keep_address();
    server
}

fn put(server: &Server, path: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.arg("put").arg(server.url(path)).args(arguments);
    Program::start(&mut command)
}

#[test]
fn a_stream_goes_on_over_kills_and_restarts() {
    let mut server = server();
    let bytes = content(1, 8_000_000);
    let mut put = put(&server, "/b/stream", &[]);
    let mut random = Random::new(seed());
    let mut sent = 0;
    for round in 0..6 {
        let end = sent + 1_000_000 + random.below(200_000) as usize;
        put.send(&bytes[sent..end]);
        sent = end;
        server.await_committed_at_least("/b/stream", sent as u64 - random.below(900_000));
        match round % 2 {
            0 => server.kill(),
            _ => assert!(server.terminate().success()),
        }
        server.restart();
    }
    put.send(&bytes[sent..]);
    put.finish_sending();
    put.expect_rest(b"");
    server.assert_sealed("/b/stream", &bytes);
    server.assert_verified_when_stopped();
}

#[test]
fn a_file_goes_on_where_the_server_was_killed_and_a_download_by_curl_too() {
    let mut server = server();
    let bytes = content(2, 200_000_000);
    let file = server.file_path("file");
    std::fs::write(&file, &bytes).unwrap();
    let put = put(&server, "/b/file", &[file.to_str().unwrap()]);
    for part in 1..4 {
        server.await_committed_at_least("/b/file", part * 10_000_000);
        server.kill();
        server.restart();
    }
    put.expect_rest(b"");
    let Some(_) = tool("curl") else { return };
    let copy = server.file_path("copy");
    let arguments = ["-C", "-", "-o", copy.to_str().unwrap(), "--limit-rate", "50M"].map(str::to_owned);
    let arguments = [&arguments[..], &[server.url("/b/file")]].concat();
    let first = Program::curl(&arguments).unwrap();
    eventually("some of it is there", || copy.metadata().is_ok_and(|metadata| metadata.len() > 1_000_000));
    server.kill();
    assert!(!first.finish().1.success());
    server.restart();
    assert!(copy.metadata().unwrap().len() < bytes.len() as u64);
    Program::curl(&arguments).unwrap().expect_rest(b"");
    assert_same("what curl has", &std::fs::read(&copy).unwrap(), &bytes);
}

#[test]
fn it_gives_up_where_it_is_told_to_and_where_the_upload_is_gone() {
    let mut server = server();
    let mut at_once = put(&server, "/b/at-once", &["-", "--retry-seconds", "0"]);
    let mut deleted = put(&server, "/b/deleted", &["-"]);
    for (program, path) in [(&mut at_once, "/b/at-once"), (&mut deleted, "/b/deleted")] {
        program.send(b"some");
        server.await_committed(path, 4);
    }
    server.kill();
    let (_, status, complaints) = at_once.finish();
    assert_eq!(status.code(), Some(10), "{complaints}");
    server.restart();
    // Whoever deletes it may come before or after it goes on.
    assert_eq!(server.request("DELETE", "/b/deleted", &[]).head.status, 204);
    deleted.send(b"more");
    let (_, status, complaints) = deleted.finish();
    assert_eq!(status.code(), Some(1), "{complaints}");
}
