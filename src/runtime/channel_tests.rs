//! Channels on real threads; every interleaving of small cases is tried in `tests/models.rs`.

use std::sync::{Barrier, Mutex};
use std::thread;

use pollster::block_on;

use super::channel::*;

/// Runs both at the same moment on two threads, again and again.
fn race<T: Send + 'static>(rounds: usize, one: impl Fn(Sender<T>) + Sync, other: impl Fn(Receiver<T>)) {
    let barrier = Barrier::new(2);
    let (senders, queue) = std::sync::mpsc::channel::<Sender<T>>();
    thread::scope(|scope| {
        scope.spawn(|| {
            for sender in queue {
                barrier.wait();
                one(sender);
                barrier.wait();
            }
        });
        for _ in 0..rounds {
            let (sender, receiver) = channel();
            senders.send(sender).unwrap();
            barrier.wait();
            other(receiver);
            barrier.wait();
        }
        drop(senders);
    });
}

#[test]
fn what_the_last_sender_sends_before_it_goes_is_received() {
    race(
        20_000,
        |sender| sender.send(7),
        |mut receiver| {
            assert_eq!(block_on(receiver.receive()), Some(7));
            assert_eq!(block_on(receiver.receive()), None);
        },
    );
}

#[test]
fn a_message_that_nobody_receives_any_more_is_dropped_though_senders_are_left() {
    let (done, mut dropped) = channel::<()>();
    let kept = Mutex::new(Vec::new());
    race(
        20_000,
        |sender| {
            sender.send(done.clone());
            kept.lock().unwrap().push(sender);
        },
        drop,
    );
    drop(done);
    // Were one of the clones still in a queue, this would wait for ever.
    assert_eq!(block_on(dropped.receive()), None);
}
