//! The disk fails, really: the end of it is gone, and what is read or written there answers EIO.
//!
//! A file system whose own data is at the beginning of the disk goes on without its end. Blocks that were acknowledged
//! lie before it, so all of them are to be served, before and after the disk is whole again. Whatever is written
//! behind it fails, in one segment after the other, until the store is read-only and says so to everybody.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    Crowd, Disk, End, FileSystem, Random, Room, Server, assert_same, content, eventually, rounds, seed,
};

const DISK_BYTES: u64 = 256 << 20;

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("segments")).unwrap();
    let mut segments: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    segments
}

/// How long what was written to a segment is, with its header. The rest of it is initialised, and zero.
/// Who looks must not leave old pages in the cache for the server to find.
fn written_length(segment: &Path) -> u64 {
    let forget = || {
        let file = std::fs::File::open(segment).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    forget();
    let bytes = std::fs::read(segment).unwrap();
    forget();
    let last = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    last.next_multiple_of(4096) as u64
}

/// Where on its disk the first so many bytes of a file end, in bytes: the last place of each of their pieces.
fn ends_on_disk(file: &Path, length: u64) -> Vec<u64> {
    let output = Command::new("filefrag").args(["-v", "-b4096"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // "   0:        0..    1023:      34816..     35839:   1024:             last,eof"
    let text = String::from_utf8(output.stdout).unwrap();
    let end_of = |line: &str| {
        let mut fields = line.split(':');
        let _number: u64 = fields.next()?.trim().parse().ok()?;
        let first: u64 = fields.next()?.split_once("..")?.0.trim().parse().ok()?;
        let (start, last) = fields.next()?.split_once("..")?;
        let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
        let blocks = (length / 4096).checked_sub(first)?.min(last + 1 - start);
        (blocks > 0).then_some((start + blocks) * 4096)
    };
    text.lines().filter_map(end_of).collect()
}

/// Where on the disk everything that was written ends, and how long the rest of that last segment is.
fn end_of_what_is_written(data: &Path) -> (u64, u64) {
    let look = || {
        let ends = segments(data).into_iter().filter_map(|segment| {
            let (written, whole) = (written_length(&segment), segment.metadata().unwrap().len());
            let end = ends_on_disk(&segment, written).into_iter().max()?;
            (written > 4096).then_some((end, whole - written))
        });
        ends.max().unwrap()
    };
    let mut found = look();
    // The last writes of the server may still be under way.
    loop {
        let again = look();
        if again == found {
            return found;
        }
        found = again;
    }
}

#[test]
fn what_was_acknowledged_or_read_survives_a_disk_that_fails() {
    let seed = seed();
    let rounds = rounds(2);
    for round in 0..rounds {
        let Some(mut disk) = Disk::new(FileSystem::Ext4, DISK_BYTES) else { return };
        let mut random = Random::new(seed + round);
        let mut crowd = Crowd::new(seed + round);
        let data = disk.path().join("data");
        // A writer that waits for the test is not one that has stalled.
        let mut server = Server::start_small_at(&data, &[], &["--writer-stall-seconds", "3600"]);
        let kept: Vec<Vec<u8>> = (0..10).map(|number| content(number, 500_000)).collect();
        let check_kept = |server: &Server| {
            for (number, bytes) in kept.iter().enumerate() {
                server.assert_sealed(&format!("/kept/{number}"), bytes);
            }
        };
        for (number, bytes) in kept.iter().enumerate() {
            server.put(&format!("/kept/{number}"), bytes);
        }
        crowd.load(server.data_address(), Room::Enough, |load| {
            load.await_more(random.below(100), random.below(8 << 20));
            load.stop();
        });
        let mut following = server.begin_put("/kept/live", None, &[]);
        let mut follower = server.follow("/kept/live");
        following.send(b"what is given is kept");
        follower.expect(b"what is given is kept");

        // Everything written so far stays, and what lies behind that on the disk is gone.
        let mut filled = 0;
        let mut fill = |server: &Server| {
            let response = server.try_put(&format!("/filling/{filled}"), &content(filled, 300_000), &[]);
            if response.head.status == 201 {
                filled += 1;
            }
        };
        // Such that the last segment on the disk is one that is being written.
        loop {
            server.pause();
            let (end, rest) = end_of_what_is_written(&data);
            if rest > 1 << 20 {
                disk.set_length(end);
                break;
            }
            server.resume();
            fill(&server);
        }
        server.resume();
        crowd.load(server.data_address(), Room::Little, |load| {
            load.ending();
            eventually("the store is read-only", || {
                fill(&server);
                server.metric("tailwater_logs_failed") == 2
            });
            load.await_refused(20);
            load.stop();
        });
        server.assert_alive();

        // Each is told what it needs to know.
        let (status, why) = server.admin("/readyz");
        assert!(status == 503 && why.starts_with("read-only: "), "{status} {why}");
        assert_eq!(server.admin_status("/livez"), 200);
        let log = server.log();
        for (what, sample) in [
            ("a block could not be written segment=", "tailwater_block_write_failures_total"),
            ("the segment is retired segment=", "tailwater_segments_retired_total"),
        ] {
            let (logged, counted) = (log.matches(what).count() as u64, server.metric(sample));
            eprintln!("round {round}: {counted} in {sample}");
            assert!(logged == counted, "{what} and {sample}:\n{log}");
        }
        let refused = server.try_put("/kept/0", &kept[1], &[]);
        assert_eq!(refused.head.status, 503, "{refused:?}");
        assert_eq!(refused.head.get("content-type"), Some("application/problem+json"), "{refused:?}");
        assert_eq!(refused.json()["actor"], "operator", "{refused:?}");
        following.try_send(b"and what is not");
        assert_eq!(following.response().head.status, 503);
        let (rest, end) = follower.rest();
        assert!(rest.is_empty() && end != End::Clean, "{} bytes, {end:?}", rest.len());
        check_kept(&server);

        // The disk is whole again; what was written behind its end is not.
        server.kill();
        disk.unmount();
        disk.set_length(DISK_BYTES);
        disk.mount();
        server.restart();
        let found = crowd.check(&server);
        check_kept(&server);
        for number in 0..filled {
            server.assert_sealed(&format!("/filling/{number}"), &content(number, 300_000));
        }
        let live = server.get("/kept/live");
        assert_eq!(live.head.get("tailwater-state"), Some("interrupted"));
        assert_eq!(live.body, b"what is given is kept");
        assert_eq!(server.admin_status("/readyz"), 200);
        server.put("/kept/new", b"hello");
        server.assert_sealed("/kept/new", b"hello");
        eprintln!("round {round}: {found:?}");
    }
    eprintln!("{rounds} failures of the disk survived");
}

/// Where no block failed nothing was retired: this one has one that does.
#[test]
fn a_block_that_cannot_be_written_anywhere_is_named_in_log_metrics_and_readiness() {
    let Some(disk) = Disk::new(FileSystem::Ext4, DISK_BYTES) else { return };
    let mut server = Server::start_small_at(&disk.path().join("data"), &[], &["--cores", "1"]);
    let bytes = content(1, 300_000);
    server.put("/b/k", &bytes);
    assert_eq!(server.admin("/readyz"), (200, "ready\n".to_owned()));
    disk.switch().cut();
    // Not "deleted while it was written", and for the caller to mend: that is what it was told.
    let mut begun = server.begin_put("/b/begun", None, &[]);
    eventually("the log has failed", || server.metric("tailwater_logs_failed") == 1);
    begun.try_send(&bytes);
    for refused in [begun.response(), server.try_put("/b/more", &bytes, &[])] {
        assert_eq!(refused.head.status, 503, "{refused:?}");
        assert_eq!(refused.json()["actor"], "operator", "{refused:?}");
    }
    assert_eq!(server.metric("tailwater_block_write_failures_total"), 1);
    assert!(server.metric("tailwater_segments_retired_total") >= 1);
    let (status, why) = server.admin("/readyz");
    assert!(status == 503 && why.starts_with("read-only: "), "{status} {why}");
    assert!(why.contains("Input/output error"), "{why}");
    let log = server.log();
    assert!(log.contains("a block could not be written segment=1"), "{log}");
    assert!(log.contains("the segment is retired segment=1"), "{log}");
    // What is in memory or in the page cache is served; nothing that is refused is.
    server.assert_sealed("/b/k", &bytes);
    assert_ne!(server.head("/b/more").get("tailwater-state"), Some("sealed"));
    server.assert_alive();
    assert_eq!(server.admin_status("/livez"), 200);
}

#[test]
fn a_deletion_that_is_refused_has_not_happened() {
    let Some(disk) = Disk::new(FileSystem::Ext4, DISK_BYTES) else { return };
    let server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
    server.put("/b/k", b"hello");
    let switch = disk.switch();
    switch.cut();
    for _ in 0..2 {
        let response = server.request("DELETE", "/b/k", &[]);
        assert!(response.head.status >= 500, "{response:?}");
        server.assert_sealed("/b/k", b"hello");
    }
}

/// What ddrescue(1) makes of a file: what cannot be read is zero.
fn rescue(file: &Path, copy: &Path) {
    let length = file.metadata().unwrap().len();
    let file = std::fs::File::open(file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut bytes = vec![0; length as usize];
    for (page, bytes) in bytes.chunks_mut(4096).enumerate() {
        if file.read_exact_at(bytes, page as u64 * 4096).is_err() {
            bytes.fill(0);
        }
    }
    std::fs::write(copy, bytes).unwrap();
}

#[test]
fn a_start_that_cannot_read_a_segment_gives_nothing_up_and_says_what_helps() {
    let Some(mut disk) = Disk::new(FileSystem::Ext4, DISK_BYTES) else { return };
    let data = disk.path().join("data");
    let mut server = Server::start_small_at(&data, &[], &["--cores", "1"]);
    let count = 30;
    let path = |number: u64| format!("/b/{number}");
    for number in 0..count {
        server.put(&path(number), &content(number, 300_000));
    }
    server.kill();
    // The last of what was written, and all that lies behind it.
    let (end, _) = end_of_what_is_written(&data);
    disk.set_length(end - (1 << 20));
    for _ in 0..2 {
        let output = Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cores", "1", "--data"])
            .arg(&data)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        for word in
            [data.join("segments").to_str().unwrap(), "Input/output error", "ddrescue", "tailwater verify"]
        {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    let copies = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let segments = segments(&data);
    let copy = |segment: &PathBuf| copies.path().join(segment.file_name().unwrap());
    segments.iter().for_each(|segment| rescue(segment, &copy(segment)));
    disk.unmount();
    disk.set_length(DISK_BYTES);
    disk.mount();
    for segment in &segments {
        std::fs::copy(copy(segment), segment).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_tailwater")).arg("verify").arg(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let findings = String::from_utf8(output.stdout).unwrap();
    server.restart();
    let (mut whole, mut gone) = (0, 0);
    for number in (0..count).filter(|number| !findings.contains(&format!("b/{number} "))) {
        let head = server.head(&path(number));
        if head.status == 404 {
            // Of what was written last nothing else may tell.
            gone += 1;
        } else {
            assert_eq!(gone, 0, "b/{number} is there, and what was written before it is not");
            server.assert_sealed(&path(number), &content(number, 300_000));
            whole += 1;
        }
    }
    assert!((15..count).contains(&whole), "{whole} of {count} are whole: {findings}");
    server.put("/b/new", b"hello");
    server.assert_sealed("/b/new", b"hello");
}

#[test]
fn an_object_whose_blocks_are_gone_is_no_whole_answer_and_the_others_are_served() {
    let Some(disk) = Disk::new(FileSystem::Ext4, DISK_BYTES) else { return };
    let data = disk.path().join("data");
    let mut server = Server::start_small_at(&data, &[], &["--cores", "1"]);
    let path = |number: u64| format!("/b/{number}");
    let count = 80;
    for number in 0..count {
        server.put(&path(number), &content(number, 300_000));
    }
    server.pause();
    let (end, _) = end_of_what_is_written(&data);
    disk.set_length(end - (6 << 20));
    server.resume();
    let (mut whole, mut broken) = (0, 0);
    for number in 0..count {
        let mut connection = server.connect();
        connection.request("GET", &path(number), &[]);
        let expected = content(number, 300_000);
        match connection.try_response("GET") {
            Ok(response) if response.end == End::Clean && response.head.status == 200 => {
                assert_same(&path(number), &response.body, &expected);
                whole += 1;
            }
            Ok(response) if response.head.status == 200 => {
                assert!(expected.starts_with(&response.body), "{}: wrong bytes", path(number));
                broken += 1;
            }
            Ok(response) => {
                assert!(response.head.status >= 500, "{response:?}");
                broken += 1;
            }
            Err(_) => broken += 1,
        }
    }
    eprintln!("{whole} whole, {broken} broken");
    assert!(whole >= 40 && broken >= 5, "{whole} whole, {broken} broken");
    assert!(server.log().contains("Input/output error"), "nobody was told:\n{}", server.log());
    server.assert_alive();
    assert_eq!(server.admin_status("/livez"), 200);
}
