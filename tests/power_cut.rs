//! The power fails under load, again and again on the same disk: what clients were told holds afterwards.
//!
//! On ext4 and on XFS in a file of their own. The cut is the file system's own shutdown (without a flush of its
//! journal): what it holds in memory is lost, and everything asked of it from then on fails. The server lives on for a
//! moment on a disk that refuses everything, as it would on one that was pulled out; then it is killed, and the disk is
//! mounted again.
//!
//! What that can show: what was acknowledged without being written, or written without a sync through the page cache
//! or to blocks that were only reserved (their metadata is lost), deletions and ends that left no record, and whatever
//! a start makes of a log that ends somewhere. What it cannot show: a direct write to initialised blocks that lacks its
//! `RWF_DSYNC`, because it has passed the page cache by and is on the disk; a folder that was not synced, because on
//! both file systems the sync of a new file brings its entry along; the cache of a real disk, torn sectors, and sectors
//! that come in another order.
//!
//! While XFS is being shut down it answers some writes that were to be synced with success, and loses them (Linux 6.18:
//! of 15,299 `O_DSYNC` writes by a program that does nothing else, in 60 rounds, 17; all of them were answered after the
//! shutdown had begun). When the power is cut nobody hears such an answer, so there nothing counts that is heard after
//! the cut has begun.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Crowd, Disk, FileSystem, Random, Room, Server, now, rounds, seed};

/// Sparse: it takes what is written to it.
const DISK_BYTES: u64 = 512 << 20;

#[test]
fn what_was_acknowledged_or_read_survives_power_cuts_on_ext4() {
    cut_again_and_again(FileSystem::Ext4, rounds(8));
}

#[test]
fn what_was_acknowledged_or_read_survives_power_cuts_on_xfs() {
    cut_again_and_again(FileSystem::Xfs, rounds(8));
}

fn cut_again_and_again(file_system: FileSystem, rounds: u64) {
    let Some(mut disk) = Disk::new(file_system, DISK_BYTES) else { return };
    let seed = seed();
    let mut random = Random::new(seed);
    let mut crowd = Crowd::new(seed);
    let mut server = Server::start_small_at(&disk.path().join("data"), &[], &[]);
    let (mut answered, mut given) = (0, 0);
    for round in 0..rounds {
        let switch = disk.switch();
        // Now and then hardly anything has happened since the start.
        let (answers, bytes) = if random.below(4) == 0 {
            (random.below(10), 0)
        } else {
            (random.below(400), random.below(20 << 20))
        };
        let lives_on = random.below(2) == 0;
        crowd.load(server.data_address(), Room::Enough, |load| {
            load.await_more(answers, bytes);
            match file_system {
                FileSystem::Ext4 => load.ending(),
                FileSystem::Xfs => load.cut_off(),
            }
            let began = now();
            switch.cut();
            eprintln!("the power was cut between {began} and {}", now());
            (answered, given) = (answered + load.answered(), given + load.given());
            if lives_on {
                load.await_refused(1);
            }
            server.assert_alive();
            server.kill();
        });
        disk.unmount();
        disk.mount();
        server.restart();
        let found = crowd.check(&server);
        server.assert_undamaged();
        eprintln!("{file_system:?}, round {round}: cut after {answers} answers and {bytes} bytes, {found:?}");
    }
    eprintln!("{file_system:?}: {rounds} cuts survived, {answered} requests done, {given} bytes followed");
}
