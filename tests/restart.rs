//! Ends and starts: told to end, killed, and started again on what is there. `killed.rs` kills under load.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use common::{Connection, End, Put, Response, Server, assert_same, content, eventually};

fn generation(response: &Response) -> u64 {
    response.json()["generation"].as_u64().unwrap()
}

#[test]
fn a_server_that_is_told_to_end_lets_what_is_under_way_come_to_its_end() {
    // Whichever core the upload is on, and whether the other one has something to do or not.
    for held in 0..2 {
        let mut server = Server::start_with(&["--drain-seconds", "60", "--log-level", "debug"]);
        let (first, second) = (content(1, 100_000), content(2, 300_000));
        let mut idle: Vec<Connection> = (0..held).map(|_| server.connect()).collect();
        for connection in &mut idle {
            connection.request("GET", "/", &[]);
            assert_eq!(connection.response("GET").head.status, 200);
        }
        let mut put = server.begin_put("/d/chunked", None, &[]);
        put.send(&first);
        let mut follower = server.follow("/d/chunked");
        follower.expect(&first);
        let mut declared = server.begin_put("/d/declared", Some(300_000), &[]);
        let mut waiting = server.connect();
        waiting.request("GET", "/d/never?wait=600", &[]);
        // What nobody has taken from a connection when the node begins to drain gets no answer.
        eventually("the wait has begun", || server.log().contains("/d/never"));

        server.begin_to_terminate();
        eventually("the node says that it drains", || server.admin_status("/readyz") == 503);
        for connection in &mut idle {
            assert_eq!(connection.ended(), End::Closed);
        }
        assert_eq!(waiting.response("GET").head.status, 404, "nobody waits for what will not come");
        let address = server.data_address();
        eventually("no more connections are taken", || Connection::try_to(address).is_none());

        // One comes to its end, and it is still there for the other.
        declared.send(&second);
        let response = declared.response();
        assert_eq!(response.head.status, 201, "{response:?}");
        assert_eq!(response.head.get("connection"), Some("close"));
        drop(declared);
        put.send(&second);
        follower.expect(&second);
        for _ in 0..20 {
            assert_eq!(server.admin_status("/readyz"), 503);
            assert_eq!(server.admin_status("/livez"), 200);
        }
        put.finish_created();
        follower.expect_rest(b"");
        assert_eq!(server.wait().code(), Some(0));

        server.restart();
        server.assert_sealed("/d/chunked", &[first, second.clone()].concat());
        server.assert_sealed("/d/declared", &second);
    }
}

#[test]
fn the_admin_listener_answers_until_the_last_upload_on_any_core_has_ended() {
    // Connections go to the core that has the fewest: one upload on each, then only one of them is left.
    for left in 0..2 {
        let mut server = Server::start_with(&["--drain-seconds", "60"]);
        let mut puts: Vec<Put> =
            (0..2).map(|number| server.begin_put(&format!("/d/{number}"), None, &[])).collect();
        let mut last = puts.remove(left);
        server.begin_to_terminate();
        eventually("the node says that it drains", || server.admin_status("/readyz") == 503);
        puts.remove(0).finish_created();
        last.send(b"hello");
        server_stays(&server);
        last.finish_created();
        assert_eq!(server.wait().code(), Some(0));
        server.restart();
        server.assert_sealed(&format!("/d/{left}"), b"hello");
    }
}

#[track_caller]
fn server_stays(server: &Server) {
    for _ in 0..50 {
        assert_eq!(server.admin_status("/readyz"), 503);
    }
}

#[test]
fn what_is_under_way_at_the_drain_limit_is_cut_and_is_interrupted_afterwards() {
    for seconds in ["0", "1"] {
        let mut server = Server::start_with(&["--drain-seconds", seconds]);
        let first = content(1, 100_000);
        server.put("/d/there", &first);
        let mut put = server.begin_put("/d/cut", None, &[]);
        put.send(&first);
        let mut follower = server.follow("/d/cut");
        follower.expect(&first);
        assert_eq!(server.terminate().code(), Some(0));
        let (rest, end) = follower.rest();
        assert!(rest.is_empty() && end != End::Clean, "{end:?}");
        server.restart();
        server.assert_sealed("/d/there", &first);
        assert_interrupted(&server, "/d/cut", &first);
    }
}

#[test]
fn a_second_signal_ends_the_server_at_once_and_loses_nothing_that_was_acknowledged() {
    let mut server = Server::start_with(&["--drain-seconds", "600"]);
    let first = content(1, 100_000);
    server.put("/d/there", &first);
    let mut put = server.begin_put("/d/cut", None, &[]);
    put.send(&first);
    server.await_committed("/d/cut", 100_000);
    server.begin_to_terminate();
    eventually("the node says that it drains", || server.admin_status("/readyz") == 503);
    server.begin_to_terminate();
    assert_eq!(server.wait().signal(), Some(15));
    server.restart();
    server.assert_sealed("/d/there", &first);
    assert_interrupted(&server, "/d/cut", &first);
}

#[track_caller]
fn assert_interrupted(server: &Server, path: &str, expected: &[u8]) {
    let response = server.get(path);
    assert_eq!(response.head.status, 200, "{response:?}");
    assert_eq!(response.head.get("tailwater-state"), Some("interrupted"));
    assert_same(path, &response.body, expected);
}

#[test]
fn generations_never_repeat_though_everything_was_deleted() {
    for cores in ["1", "2"] {
        let mut server = Server::start_with(&["--cores", cores]);
        let mut last = 0;
        for round in 0..5 {
            for number in 0..3 {
                let path = format!("/g/{number}");
                let now = generation(&server.put(&path, &content(round, 1000)));
                assert!(now > last, "generation {now} after {last}, in round {round}");
                last = now;
                assert_eq!(server.request("DELETE", &path, &[]).head.status, 204);
            }
            // Twice: the first start finds what it may forget, and the second one finds it forgotten.
            for _ in 0..2 {
                if round % 2 == 0 {
                    server.kill()
                } else {
                    assert!(server.terminate().success())
                }
                server.restart();
                assert_eq!(server.get("/").json()["buckets"].as_array().unwrap().len(), 0);
            }
        }
    }
}

#[test]
fn what_was_deleted_and_replaced_stays_so_when_its_room_is_used_again() {
    let mut server = Server::start_with(&["--cores", "1"]);
    let kept = content(7, 50_000);
    server.put("/r/kept", &kept);
    // Several times the room of a segment, of which hardly anything stays alive.
    for round in 0..8 {
        for number in 0..6 {
            server.put(&format!("/r/replaced-{number}"), &content(100 * round + number, 300_000));
            server.put(&format!("/r/deleted-{round}-{number}"), &content(1, 100_000));
            let path = format!("/r/deleted-{round}-{number}");
            assert_eq!(server.request("DELETE", &path, &[]).head.status, 204);
        }
        if round % 2 == 0 {
            server.kill()
        } else {
            assert!(server.terminate().success())
        }
        server.assert_verified();
        server.assert_verified_without_catalog();
        server.restart();
        server.assert_sealed("/r/kept", &kept);
        for number in 0..6 {
            server.assert_sealed(&format!("/r/replaced-{number}"), &content(100 * round + number, 300_000));
        }
        let listing = server.get("/r/").json();
        assert_eq!(listing["objects"].as_array().unwrap().len(), 7, "{listing}");
    }
    let segments = std::fs::read_dir(server.data_path().join("segments")).unwrap().count();
    assert!(segments <= 10, "{segments} segments of 4 MiB for 2 MiB that are alive");
}

/// A block on disk.
#[derive(Debug)]
struct Block {
    segment: PathBuf,
    position: u64,
    length: u64,
    sequence: u64,
}

/// The blocks of a data folder, oldest first, by what the format says of their headers.
fn blocks(data: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    for entry in std::fs::read_dir(data.join("segments")).unwrap() {
        let segment = entry.unwrap().path();
        let bytes = std::fs::read(&segment).unwrap();
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        if bytes.len() < 4096 || !bytes.starts_with(b"tailwtr\x01") {
            continue;
        }
        for at in (4096..bytes.len()).step_by(4096) {
            if bytes[at..].starts_with(b"twb\x01") && u64_at(at + 8) == u64_at(32) {
                blocks.push(Block {
                    segment: segment.clone(),
                    position: at as u64,
                    length: u64::from(u32_at(at + 44)),
                    sequence: u64_at(at + 16),
                });
            }
        }
    }
    blocks.sort_by_key(|block| block.sequence);
    blocks
}

/// Where of a block's write nothing arrived: start and length.
type Tear = fn(&Block) -> (u64, u64);

/// Ways for the last write to be there only in part.
const TEARS: [(&str, Tear); 4] = [
    ("all of it", |block| (0, block.length)),
    ("its header", |_| (0, 72)),
    ("its second half", |block| (block.length / 2, block.length - block.length / 2)),
    ("its last bytes", |block| (block.length - 8, 8)),
];

#[test]
fn a_torn_last_block_costs_nothing_that_was_written_before_it() {
    for (what, part) in TEARS {
        let mut server = Server::start_with(&["--cores", "1"]);
        for number in 0..20 {
            server.put(&format!("/t/{number}"), &content(number, 30_000));
        }
        let mut put = server.begin_put("/t/last", None, &[]);
        for number in 0..10 {
            put.send(&content(number, 10_000));
            server.await_committed("/t/last", 10_000 * (number + 1));
        }
        server.kill();
        let blocks = blocks(&server.data_path());
        assert!(blocks.len() > 20, "{blocks:?}");
        let last = blocks.last().unwrap();
        let (start, length) = part(last);
        let file = std::fs::OpenOptions::new().write(true).open(&last.segment).unwrap();
        file.write_all_at(&vec![0xA5; length as usize], last.position + start).unwrap();
        file.sync_all().unwrap();

        for _ in 0..2 {
            server.restart();
            for number in 0..20 {
                server.assert_sealed(&format!("/t/{number}"), &content(number, 30_000));
            }
            let whole: Vec<u8> = (0..10).flat_map(|number| content(number, 10_000)).collect();
            let response = server.get("/t/last");
            assert_eq!(response.head.get("tailwater-state"), Some("interrupted"), "{what}: {response:?}");
            assert_same(what, &response.body, &whole[..90_000]);
            server.assert_undamaged();
            server.put("/t/0", &content(0, 30_000));
            server.kill();
        }
    }
}

#[test]
fn a_block_that_is_damaged_in_the_midst_is_named_and_the_others_are_served() {
    let mut server = Server::start_with(&["--cores", "1"]);
    for number in 0..20 {
        server.put(&format!("/t/{number}"), &content(number, 30_000));
    }
    server.kill();
    let blocks = blocks(&server.data_path());
    let damaged = &blocks[blocks.len() / 2];
    let file = std::fs::OpenOptions::new().write(true).open(&damaged.segment).unwrap();
    file.write_all_at(&[0xA5; 64], damaged.position + damaged.length / 2).unwrap();

    server.restart();
    let log = server.log();
    assert!(log.contains("ERROR") && log.contains("is damaged"), "nobody was told:\n{log}");
    let (mut lost, mut whole) = (0, 0);
    for number in 0..20 {
        let response = server.get(&format!("/t/{number}"));
        let expected = content(number, 30_000);
        match response.head.get("tailwater-state") {
            Some("sealed") => {
                assert_same("a sealed object", &response.body, &expected);
                whole += 1;
            }
            Some("interrupted") => {
                assert_same("an interrupted object", &response.body, &expected[..response.body.len()]);
                lost += 1;
            }
            _ => {
                assert_eq!(response.head.status, 404, "{response:?}");
                lost += 1;
            }
        }
    }
    assert!(lost <= 2 && whole >= 18, "one block was damaged, and {lost} objects are lost");
}

#[test]
fn a_start_right_after_a_kill_waits_for_the_last_writes_of_the_killed() {
    let mut server = Server::start();
    for round in 0..10 {
        let path = format!("/q/{round}");
        let mut put = server.begin_put(&path, None, &[]);
        let bytes = content(round, 3 << 20);
        put.try_send(&bytes);
        server.kill();
        server.restart();
        let response = server.get(&path);
        if response.head.status == 200 {
            assert_same("a prefix", &response.body, &bytes[..response.body.len()]);
        }
        server.put(&path, b"hello");
        server.assert_sealed(&path, b"hello");
    }
}
