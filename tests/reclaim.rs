//! Room comes back: of deleted objects, of segments in which little is alive, of what retention no longer keeps, and of
//! the rest of segments that a start goes on behind. What is alive stays as it is meanwhile.
//!
//! `full_disk.rs` has what is refused while there is no room.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Connection, Crowd, Disk, End, FileSystem, Random, Room, Server, assert_same, content, eventually, seed,
};

const MEBIBYTE: u64 = 1 << 20;

/// How much of the disk the segments of a store take, in bytes.
fn segments_take(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("segments")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// How much of a disk is taken, in bytes.
fn taken(disk: &Disk) -> u64 {
    let now = rustix::fs::statvfs(disk.path()).unwrap();
    (now.f_blocks - now.f_bfree) * now.f_frsize
}

fn delete(server: &Server, path: &str) {
    let response = server.request("DELETE", path, &[]);
    assert_eq!(response.head.status, 204, "{path}: {response:?}");
}

fn segments(server: &Server, state: &str) -> u64 {
    server.metric(&format!("tailwater_segments{{state=\"{state}\"}}"))
}

/// Requests on connections that are kept, from several threads: one for each of these numbers.
fn for_all(server: &Server, numbers: &[u64], request: impl Fn(&mut Connection, u64) + Sync) {
    const THREADS: usize = 4;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let request = &request;
            scope.spawn(move || {
                let mut connection = server.connect();
                numbers.iter().skip(thread).step_by(THREADS).for_each(|&number| {
                    request(&mut connection, number);
                });
            });
        }
    });
}

fn put_on(connection: &mut Connection, path: &str, bytes: &[u8]) -> u16 {
    connection.request("PUT", path, &[("Content-Length", &bytes.len().to_string())]);
    connection.try_send(bytes);
    connection.response("PUT").head.status
}

/// A reader that takes only what it is told to: little of the object is on its way.
fn slow_reader(server: &Server, path: &str) -> common::Body {
    let mut connection = Connection::with_small_receive_buffer(server.data_address(), 4096);
    connection.request("GET", path, &[]);
    connection.into_body("GET")
}

#[test]
fn a_deleted_object_gives_its_room_back_when_its_last_reader_has_all_of_it_on_ext4() {
    deleted_under_a_reader(FileSystem::Ext4, 256 * MEBIBYTE);
}

#[test]
fn a_deleted_object_gives_its_room_back_when_its_last_reader_has_all_of_it_on_xfs() {
    deleted_under_a_reader(FileSystem::Xfs, 320 * MEBIBYTE);
}

fn deleted_under_a_reader(file_system: FileSystem, disk_bytes: u64) {
    let Some(disk) = Disk::new(file_system, disk_bytes) else { return };
    let data = disk.path().join("data");
    let server = Server::start_small_at(&data, &[], &["--cores", "1"]);
    let (before, large, behind) = (content(1, 300_000), content(2, 40 << 20), content(3, 300_000));
    server.put("/b/before", &before);
    server.put("/b/large", &large);
    server.put("/b/behind", &behind);
    eventually("two segments are prepared", || {
        (segments(&server, "free"), segments(&server, "preparing")) == (2, 0)
    });
    let (disk_before, segments_before) = (taken(&disk), segments_take(&data));
    let mut reader = slow_reader(&server, "/b/large");
    reader.expect(&large[..100_000]);
    delete(&server, "/b/large");
    assert_eq!(server.head("/b/large").status, 404);
    assert_eq!(server.metric("tailwater_punched_bytes_total"), 0, "somebody reads it");
    assert_eq!(segments_take(&data), segments_before, "somebody reads it");

    reader.expect(&large[100_000..]);
    assert_eq!(reader.rest().1, End::Clean);
    // What lies beside others becomes holes. Two free segments of 4 MiB are kept as they are for what comes next.
    eventually("the holes are there", || server.metric("tailwater_punched_bytes_total") > MEBIBYTE);
    let (wanted, kept) = (large.len() as u64, 8 * MEBIBYTE + MEBIBYTE);
    eventually("the segments give their room back", || {
        segments_take(&data) + wanted <= segments_before + kept
    });
    eventually("the disk has its room back", || taken(&disk) + wanted <= disk_before + kept);
    server.assert_sealed("/b/before", &before);
    server.assert_sealed("/b/behind", &behind);
}

#[test]
fn a_segment_with_nothing_alive_is_used_again_and_nothing_of_it_is_seen_again() {
    let mut server = Server::start_with(&["--cores", "1"]);
    let files = |server: &Server| std::fs::read_dir(server.data_path().join("segments")).unwrap().count();
    let mut most = 0;
    for round in 0..6 {
        // Twelve segments in each round.
        let objects: BTreeMap<String, Vec<u8>> = (0..24)
            .map(|number| (format!("/b/{round}-{number}"), content(100 * round + number, 2 << 20)))
            .collect();
        for (path, bytes) in &objects {
            server.put(path, bytes);
            server.assert_sealed(path, bytes);
        }
        if round == 0 {
            most = files(&server) + 4;
        }
        assert!(files(&server) <= most, "{} segments where {most} are enough", files(&server));
        if round % 2 == 1 {
            server.kill();
            if round == 3 {
                server.add_flag("--rebuild-catalog");
            }
            server.restart();
            server.remove_flag("--rebuild-catalog");
            server.assert_undamaged();
            let listing = server.get("/b/").json();
            let listed: BTreeSet<String> = listing["objects"]
                .as_array()
                .unwrap()
                .iter()
                .map(|object| format!("/b/{}", object["key"].as_str().unwrap()))
                .collect();
            assert_eq!(listed, objects.keys().cloned().collect(), "what was in the segments before is gone");
        }
        for (path, bytes) in &objects {
            server.assert_sealed(path, bytes);
            delete(&server, path);
        }
        eventually("the segments are free", || segments(&server, "filled") <= 2);
    }
}

/// A store in which every segment is full of small objects, nine of ten of them deleted: no hole can be made, and the
/// disk has no room. One object that is alive has a part in each of the first segments.
struct MostlyDead {
    server: Server,
    stream: Vec<u8>,
    alive: Vec<u64>,
    dead: Vec<u64>,
}

const STREAM: &str = "/kept/stream";

impl MostlyDead {
    fn path(number: u64) -> String {
        format!("/small/{number}")
    }

    fn bytes(number: u64) -> Vec<u8> {
        content(number, 1000 + (number % 7) as usize * 300)
    }

    fn make(disk: &Disk, cores: &str) -> MostlyDead {
        // Segments so short that there are many of them.
        let flags = ["--cores", cores, "--segment-bytes", "2MiB", "--writer-stall-seconds", "3600"];
        let server = Server::start_small_at(&disk.path().join("data"), &[], &flags);
        let free = || {
            let now = rustix::fs::statvfs(disk.path()).unwrap();
            now.f_bavail * now.f_frsize
        };
        // Large objects that stay, so that there is not room for too many small ones.
        let mut ballast = 0;
        while free() > 60 * MEBIBYTE {
            server.put(&format!("/kept/{ballast}"), &content(ballast, 4 << 20));
            ballast += 1;
        }
        let mut put = server.begin_put(STREAM, None, &[]);
        let (mut stream, mut there) = (Vec::new(), Vec::<u64>::new());
        for round in 0u64.. {
            if round < 10 {
                let piece = content(round, 40_000);
                put.send(&piece);
                stream.extend_from_slice(&piece);
                server.await_committed(STREAM, stream.len() as u64);
            }
            let numbers: Vec<u64> = (round * 100..(round + 1) * 100).collect();
            let done = std::sync::Mutex::new(Vec::new());
            for_all(&server, &numbers, |connection, number| {
                // Where it is refused the connection may end.
                let status = if connection.try_send("") {
                    put_on(connection, &MostlyDead::path(number), &MostlyDead::bytes(number))
                } else {
                    507
                };
                match status {
                    201 => done.lock().unwrap().push(number),
                    507 => *connection = server.connect(),
                    other => panic!("{other}"),
                }
            });
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            there.extend(&done);
            if done.len() < numbers.len() {
                break;
            }
        }
        put.finish_created();
        let (alive, dead) = there.into_iter().partition(|number| number % 10 == 0);
        MostlyDead { server, stream, alive, dead }
    }

    fn delete_most(&self) {
        for_all(&self.server, &self.dead, |connection, number| {
            connection.request("DELETE", &MostlyDead::path(number), &[]);
            let status = connection.response("DELETE").head.status;
            assert_eq!(status, 204, "a full disk can be emptied");
        });
    }

    #[track_caller]
    fn check(&self) {
        self.server.assert_sealed(STREAM, &self.stream);
        for_all(&self.server, &self.alive, |connection, number| {
            connection.request("GET", &MostlyDead::path(number), &[]);
            let response = connection.response("GET");
            assert_eq!(response.head.status, 200, "{number}: {response:?}");
            assert_same(&MostlyDead::path(number), &response.body, &MostlyDead::bytes(number));
        });
        for_all(&self.server, &self.dead, |connection, number| {
            connection.request("HEAD", &MostlyDead::path(number), &[]);
            assert_eq!(connection.response("HEAD").head.status, 404, "{number} is deleted");
        });
    }

    fn copied(&self) -> u64 {
        self.server.metric("tailwater_segments_copied_total")
    }

    /// There is room for an object of this many bytes.
    fn await_room(&self, bytes: usize) {
        let bytes = content(77, bytes);
        eventually("room is made", || {
            // Requests that are refused fill the log of the server.
            std::thread::sleep(Duration::from_millis(200));
            self.server.try_put("/kept/new", &bytes, &[]).head.status == 201
        });
        self.server.assert_sealed("/kept/new", &bytes);
    }
}

#[test]
fn what_is_alive_in_mostly_dead_segments_of_a_full_ext4_is_copied_out() {
    let Some(disk) = Disk::new(FileSystem::Ext4, 96 * MEBIBYTE) else { return };
    copied_out(&disk, "2");
}

#[test]
fn what_is_alive_in_mostly_dead_segments_of_a_full_xfs_is_copied_out() {
    let Some(disk) = Disk::new(FileSystem::Xfs, 320 * MEBIBYTE) else { return };
    copied_out(&disk, "1");
}

fn copied_out(disk: &Disk, cores: &str) {
    let mut store = MostlyDead::make(disk, cores);
    let refused = store.server.try_put("/kept/new", &content(77, 8 << 20), &[]);
    assert_eq!(refused.head.status, 507, "the disk is full: {refused:?}");
    let mut reader = slow_reader(&store.server, STREAM);
    reader.expect(&store.stream[..1_000]);
    store.delete_most();
    // It is read while it moves, and all that is alive is served.
    eventually("segments are copied out", || store.copied() >= 2);
    store.check();
    reader.expect_rest(&store.stream[1_000..]);
    drop(reader);
    store.await_room(8 << 20);
    store.check();
    assert!(store.server.terminate().success());
    store.server.assert_verified();
    store.server.restart();
    store.check();
    store.server.kill();
    store.server.add_flag("--rebuild-catalog");
    store.server.restart();
    store.server.assert_undamaged();
    store.check();
}

#[test]
fn what_is_copied_out_survives_kills_in_the_midst_of_it() {
    let Some(disk) = Disk::new(FileSystem::Ext4, 96 * MEBIBYTE) else { return };
    let mut store = MostlyDead::make(&disk, "1");
    let mut random = Random::new(seed());
    store.delete_most();
    for round in 0..6 {
        let copied = store.copied();
        let wanted = copied + random.below(3);
        // There is an end of what can be copied.
        let limit = Instant::now() + Duration::from_secs(8);
        while store.copied() < wanted && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(random.below(100)));
        eprintln!("round {round}: killed after {} segments", store.copied() - copied);
        store.server.kill();
        store.server.assert_verified();
        if round == 4 {
            store.server.add_flag("--rebuild-catalog");
        }
        store.server.restart();
        store.server.remove_flag("--rebuild-catalog");
        store.server.assert_undamaged();
        store.check();
    }
    store.await_room(8 << 20);
    store.check();
}

#[test]
fn deletions_do_not_keep_segments_for_ever_and_what_is_deleted_stays_deleted() {
    let mut server = Server::start_with(&["--cores", "1", "--segment-bytes", "2MiB"]);
    let kept: Vec<u64> = (0..10).map(|number| number * 200).collect();
    let all: Vec<u64> = (0..2000).collect();
    // What stays keeps the segments with the creations.
    for_all(&server, &all, |connection, number| {
        assert_eq!(put_on(connection, &format!("/b/{number}"), b"hello"), 201);
    });
    let dead: Vec<u64> = all.into_iter().filter(|number| !kept.contains(number)).collect();
    let before = segments(&server, "filled");
    let written = || server.metric("tailwater_block_size_bytes_sum");
    let written_before = written();
    // One after the other, so that each takes a block of its own.
    let mut connection = server.connect();
    for number in &dead {
        connection.request("DELETE", &format!("/b/{number}"), &[]);
        assert_eq!(connection.response("DELETE").head.status, 204);
    }
    assert!(written() - written_before > 3 * 2 * MEBIBYTE, "there are segments with nothing but deletions");
    // Whatever is alive stays where it is, so these are what goes.
    eventually("segments with nothing but deletions are free", || segments(&server, "filled") <= before + 1);
    let check = |server: &Server| {
        let listing = server.get("/b/").json();
        let mut listed: Vec<u64> = listing["objects"]
            .as_array()
            .unwrap()
            .iter()
            .map(|object| object["key"].as_str().unwrap().parse().unwrap())
            .collect();
        listed.sort_unstable();
        assert_eq!(listed, kept);
    };
    check(&server);
    server.kill();
    server.restart();
    check(&server);
    assert!(server.terminate().success());
    server.assert_verified();
    server.add_flag("--rebuild-catalog");
    server.restart();
    server.assert_undamaged();
    check(&server);
}

#[test]
fn the_rest_of_segments_that_a_start_goes_on_behind_takes_no_room() {
    let mut server = Server::start_with(&["--cores", "2", "--segment-bytes", "16MiB"]);
    for round in 0..20u64 {
        for number in 0..4 {
            server.put(&format!("/b/{round}-{number}"), &content(round, 5_000));
        }
        match round % 2 {
            0 => server.kill(),
            _ => assert!(server.terminate().success()),
        }
        server.restart();
    }
    // On each core one that is written, two that are prepared, two that are free; of the others what was written.
    let most = 2 * 5 * 16 * MEBIBYTE + 8 * MEBIBYTE;
    eventually("the rest is given back", || segments_take(&server.data_path()) <= most);
    for round in 0..20 {
        for number in 0..4 {
            server.assert_sealed(&format!("/b/{round}-{number}"), &content(round, 5_000));
        }
    }
    server.kill();
    server.assert_verified();
    server.assert_verified_without_catalog();
}

/// What a process holds.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    /// Without those of the kernel's that work for the rings.
    threads: usize,
    resident_bytes: u64,
    segments_bytes: u64,
    disk_bytes: u64,
}

impl Held {
    fn by(server: &Server, disk: &Disk) -> Held {
        let process = format!("/proc/{}", server.process_id());
        let count = |folder: &str| std::fs::read_dir(format!("{process}/{folder}")).unwrap();
        let threads = count("task").filter(|task| {
            let name =
                std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
            !name.is_empty() && !name.starts_with("iou-")
        });
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes: u64 = resident.trim().trim_end_matches(" kB").trim().parse().unwrap();
        Held {
            threads: threads.count(),
            descriptors: count("fd").count(),
            resident_bytes: kibibytes * 1024,
            segments_bytes: segments_take(&server.data_path()),
            disk_bytes: taken(disk),
        }
    }
}

/// How long the soak goes on; `scripts/soak` sets it.
fn soak_seconds() -> u64 {
    std::env::var("TAILWATER_SOAK_SECONDS").map_or(40, |seconds| seconds.parse().unwrap())
}

#[test]
fn a_soaked_node_holds_no_more_than_at_its_start_when_everything_is_deleted() {
    let Some(disk) = Disk::new(FileSystem::Ext4, 256 * MEBIBYTE) else { return };
    let seed = seed();
    let (mut random, mut crowd) = (Random::new(seed), Crowd::new(seed));
    let rules = "expiring size=3MiB; aging age=2s";
    let mut server = Server::start_small_at(&disk.path().join("data"), &[], &["--retention", rules]);
    // The first load makes what is made once.
    let warm_up = |crowd: &mut Crowd, server: &Server| {
        crowd.load(server.data_address(), Room::Little, |load| {
            load.await_more(50, 0);
            load.stop();
        });
    };
    warm_up(&mut crowd, &server);
    let start = Held::by(&server, &disk);
    let limit = Instant::now() + Duration::from_secs(soak_seconds());
    let (mut rounds, mut answered, mut expiring) = (0, 0, 0);
    while Instant::now() < limit || rounds < 3 {
        let ending = random.below(4);
        crowd.load(server.data_address(), Room::Little, |load| {
            load.await_more(random.below(400), random.below(8 << 20));
            for _ in 0..random.below(20) {
                let bytes = content(expiring, random.below(600_000) as usize);
                let bucket = ["expiring", "aging"][random.below(2) as usize];
                let status = server.try_put(&format!("/{bucket}/{expiring}"), &bytes, &[]).head.status;
                assert!([201, 507].contains(&status), "{status}");
                expiring += 1;
            }
            match ending {
                0 => {
                    load.ending();
                    server.kill();
                }
                _ => load.stop(),
            }
            answered += load.answered();
        });
        if ending == 1 {
            assert!(server.terminate().success());
        }
        // Uploads that find no room are errors in the log too.
        if ending < 2 {
            server.restart();
            server.assert_undamaged();
        }
        crowd.check(&server);
        rounds += 1;
    }
    eprintln!(
        "{rounds} rounds, {answered} requests done, {expiring} objects that expire; {start:?} at the start"
    );

    // Once more without an end, then all of it goes.
    warm_up(&mut crowd, &server);
    let buckets = server.get("/").json();
    for bucket in buckets["buckets"].as_array().unwrap() {
        let bucket = bucket.as_str().unwrap();
        for key in keys(&server, bucket) {
            // Retention may have been faster.
            let status = server.request("DELETE", &format!("/{bucket}/{key}"), &[]).head.status;
            assert!([204, 404].contains(&status), "{bucket}/{key}: {status}");
        }
    }
    assert_holds_nothing(&server, &disk, &start);
    assert!(server.terminate().success());
    server.assert_verified();
    server.restart();
    assert_holds_nothing(&server, &disk, &start);
}

/// Nothing is served, and the process and the disk have no more than at the start, but for what is said here.
fn assert_holds_nothing(server: &Server, disk: &Disk, start: &Held) {
    assert_eq!(server.get("/").json()["buckets"].as_array().unwrap().len(), 0);
    for gauge in ["objects_live", "followers", "followers_waiting", "blocks_in_flight", "logs_failed"] {
        eventually(gauge, || server.metric(&format!("tailwater_{gauge}")) == 0);
    }
    assert_eq!(server.metric("tailwater_blocks_in_flight_bytes"), 0);
    eventually("the connections are closed", || server.metric("tailwater_connections_open") == 0);
    eventually("segments are free", || segments(server, "filled") <= 2 && segments(server, "preparing") == 0);
    assert!(segments(server, "active") <= 2);
    // On each of two cores one segment that is written, two that are prepared, two that are free; one or two more that
    // hold the last deletions. And the catalog.
    let most = 2 * 6 * 4 * MEBIBYTE;
    eventually("the segments take no more room than is kept", || segments_take(&server.data_path()) <= most);
    eventually("the disk has its room back", || {
        taken(disk) <= start.disk_bytes.saturating_sub(start.segments_bytes) + most + 8 * MEBIBYTE
    });
    let files = std::fs::read_dir(server.data_path().join("segments")).unwrap().count();
    let now = Held::by(server, disk);
    eprintln!("{now:?} in the end, {files} files of segments");
    assert_eq!(now.threads, start.threads);
    // Each core keeps segments open that were read.
    assert!(now.descriptors <= start.descriptors + 2 * files, "{now:?}, {start:?}");
    assert!(now.resident_bytes <= start.resident_bytes + 32 * MEBIBYTE, "{now:?}, {start:?}");
}

fn keys(server: &Server, bucket: &str) -> Vec<String> {
    let listing = server.get(&format!("/{bucket}/")).json();
    let objects = listing["objects"].as_array().unwrap();
    objects.iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn retention_deletes_what_was_sealed_first_and_leaves_alone_what_is_live_or_has_no_rule() {
    let rules = "sized size=1MiB; aged age=1s";
    let mut server = Server::start_with(&["--retention", rules, "--writer-stall-seconds", "3600"]);
    let bytes = content(1, 400_000);
    // Begun first, sealed last.
    let mut last = server.begin_put("/sized/last", None, &[]);
    last.send(&bytes);
    for number in 0..5 {
        server.put(&format!("/sized/{number}"), &bytes);
        server.put(&format!("/other/{number}"), &bytes);
    }
    server.put("/aged/sealed", &bytes);
    let mut live = server.begin_put("/aged/live", None, &[]);
    live.send(&bytes);
    server.await_committed("/aged/live", bytes.len() as u64);
    // Two of 400,000 bytes are less than a mebibyte.
    eventually("what is too much is deleted", || keys(&server, "sized") == ["3", "4", "last"]);
    eventually("what is too old is deleted", || keys(&server, "aged") == ["live"]);
    last.finish_created();
    eventually("what was sealed first is deleted", || keys(&server, "sized") == ["4", "last"]);
    assert_eq!(keys(&server, "other").len(), 5, "it has no rule");
    assert_eq!(server.metric("tailwater_objects_expired_total"), 5);
    live.finish_created();
    eventually("what was live is kept as long as others", || keys(&server, "aged").is_empty());
    server.assert_sealed("/sized/last", &bytes);

    // What was there before a start is kept as long; rules may be other ones then.
    server.kill();
    server.set_flag("--retention", "sized size=500kB; * size=900kB");
    server.restart();
    eventually("the new rules hold", || {
        keys(&server, "sized") == ["last"] && keys(&server, "other") == ["3", "4"]
    });
    server.assert_sealed("/other/4", &bytes);
    server.kill();
    server.add_flag("--rebuild-catalog");
    server.restart();
    assert_eq!(keys(&server, "sized"), ["last"]);
    assert_eq!(keys(&server, "other"), ["3", "4"]);
    server.assert_sealed("/sized/last", &bytes);
}

#[test]
fn retention_that_is_no_rule_is_refused_with_what_is_wrong() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (rules, told) in [
        ("cameras", "neither age=TIME nor size=SIZE"),
        ("Cameras age=7d", "no bucket"),
        ("cameras age=seven", "no time such as 7d"),
        ("cameras size=lots", "size=lots"),
        ("* age=7d colour=red", "colour=red"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["serve", "--retention", rules, "--data"])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(told) && text.contains("retention"), "{rules}: {text}");
    }
}
