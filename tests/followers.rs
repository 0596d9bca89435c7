//! Readers that follow an object while it is written: each gets exactly its bytes, none costs the writer anything.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Server, content};

#[test]
fn a_follower_gets_a_piece_before_the_writer_sends_the_next_one() {
    let server = Server::start();
    let mut put = server.begin_put("/b/k", None, &[]);
    let mut follower = server.follow("/b/k");
    let mut all = Vec::new();
    for seed in 0..10 {
        let piece = content(seed, 10_000);
        put.send(&piece);
        follower.expect(&piece);
        all.extend(piece);
    }
    put.finish_created();
    follower.expect_rest(b"");
    server.assert_sealed("/b/k", &all);
}
