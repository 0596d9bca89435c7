//! What the black-box tests share: a server of their own, raw HTTP, and the programs that real clients are.
//!
//! Nothing here sleeps for a while and hopes. A test goes on when something has happened: an interim answer came, a
//! follower was sent these bytes, a connection ended. Every such wait panics after [`PATIENCE`], which is not a
//! statement about speed but what keeps a broken engine from stopping the tests for ever.

#![allow(dead_code, unused_imports, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod disk;
mod http;
mod programs;
mod server;
mod workload;

pub use disk::{Disk, FileSystem, Frozen, Switch, is_root};
pub use http::{Body, Connection, End, Head, Put, Response};
pub use pollster::block_on;
pub use programs::{Program, tool};
pub use server::Server;
pub use workload::{Crowd, Load, Random, Room, Tally, now, rounds, seed};

use std::time::{Duration, Instant};

/// How long anything may take before the test that waits for it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that tell where they are: the same for the same seed, and nowhere alike over a distance.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Asserts that bytes are these; tells the first difference and does not print megabytes.
#[track_caller]
pub fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    if found == expected {
        return;
    }
    let shared = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    panic!(
        "{what}: {} bytes where {} were expected, the same up to offset {shared}",
        found.len(),
        expected.len()
    );
}

/// Waits for what nothing announces, such as a number in the metrics: looks until it holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "it never came to pass: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
