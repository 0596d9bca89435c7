//! The server is killed under load, again and again on the same data: what clients were told holds afterwards.
//!
//! A kill leaves to the kernel what the process has begun, so this is about what counts of a log that ends somewhere,
//! and about logs of cores that are there no longer. `power_cut.rs` takes away what was not durable too.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Crowd, Random, Room, Server, rounds, seed};

#[test]
fn what_was_acknowledged_or_read_survives_kills_under_load() {
    let seed = seed();
    let rounds = rounds(10);
    let mut crowd = Crowd::new(seed);
    let mut random = Random::new(seed);
    let mut server = Server::start();
    let (mut answered, mut given) = (0, 0);
    for round in 0..rounds {
        let (answers, bytes) = if random.below(4) == 0 {
            (random.below(10), 0)
        } else {
            (random.below(400), random.below(20 << 20))
        };
        crowd.load(server.data_address(), Room::Enough, |load| {
            load.await_more(answers, bytes);
            load.ending();
            server.kill();
            (answered, given) = (answered + load.answered(), given + load.given());
        });
        server.assert_verified();
        server.assert_verified_without_catalog();
        server.set_flag("--cores", ["1", "2", "3"][random.below(3) as usize]);
        server.restart();
        let found = crowd.check(&server);
        server.assert_undamaged();
        // Once more, without anything between, or in the midst of what a start leaves to be done.
        if random.below(2) == 0 {
            server.kill();
            server.restart();
            crowd.check(&server);
            server.assert_undamaged();
        }
        eprintln!("round {round}: killed after {answers} answers and {bytes} bytes, {found:?}");
    }
    eprintln!("{rounds} kills survived, {answered} requests done, {given} bytes followed");
}
