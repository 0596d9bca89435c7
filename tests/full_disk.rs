//! The disk is full, really: uploads are refused, everything else goes on, and what clients were told holds, also
//! through kills and starts while it is full.
//!
//! `start_failures.rs` has the disk that is full before the first start, and the smallest one that the defaults work
//! on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    Crowd, Disk, End, FileSystem, Random, Response, Room, Server, assert_same, content, eventually, rounds,
    seed,
};

/// Objects that are there to fill the disk.
struct Filling {
    there: Vec<u64>,
    next: u64,
    length: usize,
}

impl Filling {
    fn new(length: usize) -> Filling {
        Filling { there: Vec::new(), next: 0, length }
    }

    fn path(number: u64) -> String {
        format!("/filling/{number}")
    }

    /// Puts one object if there is room.
    fn put(&mut self, server: &Server) -> bool {
        let (number, path) = (self.next, Filling::path(self.next));
        self.next += 1;
        let response = server.try_put(&path, &content(number, self.length), &[]);
        match response.head.status {
            201 => self.there.push(number),
            _ => assert_full(&response),
        }
        response.head.status == 201
    }

    /// Puts objects until no core has room.
    fn fill(&mut self, server: &Server) {
        let mut refused = 0;
        while refused < 4 {
            refused = if self.put(server) { 0 } else { refused + 1 };
        }
    }

    /// Deletes some of them: the first of so many.
    #[track_caller]
    fn delete(&mut self, server: &Server, count: usize) {
        for number in self.there.drain(..count.min(self.there.len())) {
            let response = server.request("DELETE", &Filling::path(number), &[]);
            assert_eq!(response.head.status, 204, "a full disk can be emptied: {response:?}");
        }
    }

    #[track_caller]
    fn check(&self, server: &Server) {
        for &number in &self.there {
            server.assert_sealed(&Filling::path(number), &content(number, self.length));
        }
    }

    /// Deletes all of them and what refused ones have left; nothing of them is there any more.
    #[track_caller]
    fn delete_all(&mut self, server: &Server) {
        self.there.clear();
        loop {
            let listing = server.get("/filling/").json();
            let objects = listing["objects"].as_array().unwrap();
            if objects.is_empty() {
                return;
            }
            for object in objects {
                let path = format!("/filling/{}", object["key"].as_str().unwrap());
                let response = server.request("DELETE", &path, &[]);
                assert_eq!(response.head.status, 204, "a full disk can be emptied: {response:?}");
            }
        }
    }
}

#[track_caller]
fn assert_full(response: &Response) {
    assert_eq!(response.head.status, 507, "{response:?}");
    assert_eq!(response.head.get("content-type"), Some("application/problem+json"), "{response:?}");
    let problem = response.json();
    assert_eq!(problem["status"], 507, "{problem}");
    assert_eq!(problem["actor"], "operator", "{problem}");
}

#[test]
fn what_was_acknowledged_or_read_survives_a_kill_on_a_full_ext4() {
    fill_and_kill(FileSystem::Ext4, 96 << 20, 1 << 20, rounds(3));
}

#[test]
fn what_was_acknowledged_or_read_survives_a_kill_on_a_full_xfs() {
    fill_and_kill(FileSystem::Xfs, 320 << 20, 4 << 20, rounds(2));
}

/// Killed and started while there is no room; each time on a disk that was empty.
fn fill_and_kill(file_system: FileSystem, disk_bytes: u64, filling_length: usize, rounds: u64) {
    let seed = seed();
    let (mut answered, mut given, mut refused) = (0, 0, 0);
    for round in 0..rounds {
        let Some(disk) = Disk::new(file_system, disk_bytes) else { return };
        let mut random = Random::new(seed + round);
        let mut crowd = Crowd::new(seed + round);
        let mut server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
        let mut filling = Filling::new(filling_length);
        crowd.load(server.data_address(), Room::None, |load| {
            load.await_more(random.below(100), 0);
            filling.fill(&server);
            load.await_refused(1 + random.below(40));
            load.ending();
            server.kill();
            (answered, given) = (answered + load.answered(), given + load.given());
            refused += load.refused();
        });
        for _ in 0..2 {
            server.restart();
            let found = crowd.check(&server);
            filling.check(&server);
            server.assert_undamaged();
            assert_eq!(server.admin_status("/livez"), 200);
            assert_eq!(server.admin_status("/readyz"), 200, "a full disk can be read");
            eprintln!("{file_system:?}, round {round}: {found:?}");
            server.kill();
        }
    }
    eprintln!(
        "{file_system:?}: full {rounds} times, {answered} requests done, {refused} refused, {given} bytes followed"
    );
}

#[test]
fn a_full_ext4_can_always_be_emptied() {
    fill_and_empty(FileSystem::Ext4, 256 << 20, 4 << 20, rounds(4), false);
}

#[test]
fn a_full_xfs_can_always_be_emptied() {
    fill_and_empty(FileSystem::Xfs, 320 << 20, 4 << 20, rounds(4), false);
}

#[test]
fn a_full_ext4_can_be_emptied_after_a_kill_and_a_start() {
    fill_and_empty(FileSystem::Ext4, 256 << 20, 4 << 20, rounds(4), true);
}

#[test]
fn a_full_xfs_can_be_emptied_after_a_kill_and_a_start() {
    fill_and_empty(FileSystem::Xfs, 320 << 20, 4 << 20, rounds(4), true);
}

/// Full again and again on the same disk, and emptied by deletions, which are never refused. `starts_while_full`: it
/// is killed, or ended, and started while there is no room.
fn fill_and_empty(
    file_system: FileSystem,
    disk_bytes: u64,
    filling_length: usize,
    rounds: u64,
    starts_while_full: bool,
) {
    let Some(disk) = Disk::new(file_system, disk_bytes) else { return };
    let seed = seed();
    let mut random = Random::new(seed);
    let mut crowd = Crowd::new(seed);
    let mut server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
    let mut filling = Filling::new(filling_length);
    for round in 0..rounds {
        let is_killed = random.below(2) == 0;
        crowd.load(server.data_address(), Room::Little, |load| {
            load.await_more(random.below(100), 0);
            filling.fill(&server);
            // While it is full: gets, deletions and refusals, and now and then an object that finds room.
            load.await_refused(1 + random.below(100));
            if !starts_while_full {
                // Room comes back without a start.
                filling.delete(&server, filling.there.len() / 2);
                eventually("there is room again", || filling.put(&server));
                load.await_more(40, 1 << 20);
            }
            if is_killed {
                load.ending();
                server.kill();
            } else {
                load.stop();
            }
        });
        if !is_killed {
            crowd.check(&server);
            filling.check(&server);
            assert!(server.terminate().success());
        }
        server.restart();
        let found = crowd.check(&server);
        filling.check(&server);
        server.assert_undamaged();
        assert_eq!(server.admin_status("/readyz"), 200, "a full disk can be read and emptied");
        filling.delete_all(&server);
        eventually("there is room again", || filling.put(&server));
        crowd.check(&server);
        eprintln!("{file_system:?}, round {round}: killed {is_killed}, {found:?}");
    }
}

#[test]
fn followers_have_what_is_committed_and_get_no_clean_end_when_the_disk_fills_up() {
    let Some(disk) = Disk::new(FileSystem::Ext4, 96 << 20) else { return };
    let mut server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
    let mut filling = Filling::new(1 << 20);
    let bytes = content(1, 96 << 20);
    let mut put = server.begin_put("/live/stream", None, &[]);
    let mut followers = [server.follow("/live/stream"), server.follow("/live/stream")];
    put.send(&bytes[..100_000]);
    followers.iter_mut().for_each(|follower| follower.expect(&bytes[..100_000]));
    filling.fill(&server);
    // Whatever still finds room.
    std::thread::scope(|scope| {
        let following: Vec<_> =
            followers.iter_mut().map(|follower| scope.spawn(|| follower.rest())).collect();
        let _ = bytes[100_000..].chunks(50_000).all(|piece| put.try_send(piece));
        assert_full(&put.response());
        for rest in following {
            let (rest, end) = rest.join().unwrap();
            assert_ne!(end, End::Clean, "a clean end after {} bytes", rest.len());
            assert_same("a follower", &rest, &bytes[100_000..][..rest.len()]);
        }
    });
    let given = followers.iter().map(|follower| follower.received()).max().unwrap();
    let check = |server: &Server, filling: &Filling| {
        let response = server.get("/live/stream");
        assert_eq!(response.head.get("tailwater-state"), Some("interrupted"), "{response:?}");
        assert!(response.body.len() as u64 >= given, "{} bytes, and {given} were given", response.body.len());
        assert_same("what is kept", &response.body, &bytes[..response.body.len()]);
        filling.check(server);
    };
    check(&server, &filling);
    filling.delete(&server, filling.there.len() / 2);
    eventually("there is room again", || filling.put(&server));
    check(&server, &filling);
    server.kill();
    server.restart();
    check(&server, &filling);
    assert_eq!(server.request("DELETE", "/live/stream", &[]).head.status, 204);
    server.put("/live/stream", b"hello");
    server.assert_sealed("/live/stream", b"hello");
}

#[test]
fn a_full_disk_refuses_an_upload_before_its_body_is_taken() {
    let Some(disk) = Disk::new(FileSystem::Ext4, 96 << 20) else { return };
    let server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
    let mut filling = Filling::new(1 << 20);
    filling.fill(&server);
    // The smaller ones fill what the larger ones have left.
    filling.length = 10_000;
    filling.fill(&server);
    for _ in 0..4 {
        let mut connection = server.connect();
        connection.request("PUT", "/b/k", &[("Content-Length", "1000000"), ("Expect", "100-continue")]);
        assert_full(&connection.response("PUT"));
    }
    assert_eq!(server.head("/b/k").status, 404);
}
