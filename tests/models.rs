//! Every interleaving of the few places where threads meet: the hand-over to a core that may sleep, the channel
//! between cores, the watermark of an object with the interest of its readers, and the tree of contexts.
//!
//! The files below are those of the library, compiled with the primitives of `shuttle`, which schedules the threads
//! one step at a time and reports a wake-up that is lost as a deadlock. It is shuttle and not loom because these
//! protocols rest on sequential consistency (each side says something, then looks for what the other says), which
//! loom takes for less and then reports losses that cannot be. What shuttle cannot see, an ordering that is weaker
//! than that, does not compile here: [`sync::Ordering`] has no other.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, reason = "the library uses all of it")]

#[path = "../src/runtime/channel.rs"]
mod channel;
#[path = "../src/runtime/handover.rs"]
mod handover;
#[path = "../src/context/node.rs"]
mod node;
#[path = "../src/store/progress.rs"]
mod progress;

mod error {
    pub use tailwater::{Error, Kind};
}

mod sync {
    use std::collections::VecDeque;

    pub use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence};
    pub use shuttle::sync::{Arc, Mutex, MutexGuard, Weak};
    pub use std::sync::PoisonError;

    pub struct Ordering;

    #[allow(non_upper_case_globals, reason = "it stands for the library's")]
    impl Ordering {
        pub const SeqCst: std::sync::atomic::Ordering = std::sync::atomic::Ordering::SeqCst;
    }

    /// A queue whose calls each happen at once, as those of the real one do: one step of a schedule, and then a lock
    /// that nobody else can hold, because only one thread runs at a time.
    pub struct SegQueue<T> {
        step: AtomicBool,
        things: std::sync::Mutex<VecDeque<T>>,
    }

    impl<T> SegQueue<T> {
        pub fn new() -> SegQueue<T> {
            SegQueue { step: AtomicBool::new(false), things: std::sync::Mutex::default() }
        }

        pub fn push(&self, thing: T) {
            self.step.store(true, Ordering::SeqCst);
            self.things.lock().unwrap().push_back(thing);
        }

        pub fn pop(&self) -> Option<T> {
            self.step.store(true, Ordering::SeqCst);
            self.things.lock().unwrap().pop_front()
        }

        pub fn is_empty(&self) -> bool {
            self.step.load(Ordering::SeqCst);
            self.things.lock().unwrap().is_empty()
        }
    }
}

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

use shuttle::future::block_on;
use shuttle::sync::Arc;
use shuttle::sync::atomic::AtomicBool;
use shuttle::{check_dfs, check_random, thread};

use self::channel::channel;
use self::error::{Error, Kind};
use self::handover::HandOver;
use self::node::{Cancelled, Ended, Node};
use self::progress::Progress;

/// How many schedules of a model are tried that has too many for all.
const SCHEDULES: usize = 30_000;

/// What wakes a sleeping core: an event descriptor, or a message to its registry. One step of a schedule each.
#[derive(Default)]
struct Bell {
    step: AtomicBool,
    state: std::sync::Mutex<(bool, Option<Waker>)>,
}

impl Bell {
    fn ring(&self) {
        self.step.store(true, sync::Ordering::SeqCst);
        let waker = {
            let mut state = self.state.lock().unwrap();
            state.0 = true;
            state.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn wait(&self) {
        block_on(poll_fn(|context| {
            let mut state = self.state.lock().unwrap();
            if std::mem::take(&mut state.0) {
                return Poll::Ready(());
            }
            state.1 = Some(context.waker().clone());
            Poll::Pending
        }));
    }
}

/// A core's loop: takes what was handed over, and sleeps where nothing was, until it has `things` of them, and its
/// main future was woken if `awaits_main`.
fn loop_of_a_core(hand_over: &HandOver<u32>, bell: &Bell, things: usize, awaits_main: bool) -> Vec<u32> {
    let (mut taken, mut is_woken) = (Vec::new(), !awaits_main);
    loop {
        while let Some(thing) = hand_over.pop() {
            taken.push(thing);
        }
        is_woken |= hand_over.take_main_woken();
        if taken.len() == things && is_woken {
            return taken;
        }
        if hand_over.may_sleep() {
            bell.wait();
        }
        hand_over.awake();
    }
}

#[test]
fn what_is_handed_over_wakes_a_core() {
    check_dfs(
        || {
            let shared = Arc::new((HandOver::new(), Bell::default()));
            let other = shared.clone();
            let pushing = thread::spawn(move || {
                if other.0.push(1) {
                    other.1.ring();
                }
            });
            assert_eq!(loop_of_a_core(&shared.0, &shared.1, 1, false), [1]);
            pushing.join().unwrap();
        },
        None,
    );
}

#[test]
fn a_wake_of_the_main_future_wakes_a_core() {
    check_dfs(
        || {
            let shared = Arc::new((HandOver::new(), Bell::default()));
            let other = shared.clone();
            let waking = thread::spawn(move || {
                if other.0.wake_main() {
                    other.1.ring();
                }
            });
            assert!(loop_of_a_core(&shared.0, &shared.1, 0, true).is_empty());
            waking.join().unwrap();
        },
        None,
    );
}

#[test]
fn what_several_hand_over_wakes_a_core() {
    check_random(
        || {
            let shared = Arc::new((HandOver::new(), Bell::default()));
            let others: Vec<_> = (0..3)
                .map(|number| {
                    let other = shared.clone();
                    thread::spawn(move || {
                        for thing in [10 * number, 10 * number + 1] {
                            if other.0.push(thing) {
                                other.1.ring();
                            }
                        }
                        if number == 2 && other.0.wake_main() {
                            other.1.ring();
                        }
                    })
                })
                .collect();
            let mut taken = loop_of_a_core(&shared.0, &shared.1, 6, true);
            taken.sort_unstable();
            assert_eq!(taken, [0, 1, 10, 11, 20, 21]);
            others.into_iter().for_each(|other| other.join().unwrap());
        },
        SCHEDULES,
    );
}

#[test]
fn a_message_wakes_who_waits_for_it() {
    check_dfs(
        || {
            let (sender, mut receiver) = channel();
            let other = sender.clone();
            let sending = thread::spawn(move || {
                other.send(7);
                other
            });
            assert_eq!(block_on(receiver.receive()), Some(7));
            drop((sender, sending.join().unwrap()));
        },
        None,
    );
}

#[test]
fn the_last_sender_to_go_wakes_who_waits() {
    check_dfs(
        || {
            let (sender, mut receiver) = channel::<()>();
            let going = thread::spawn(move || drop(sender));
            assert_eq!(block_on(receiver.receive()), None);
            going.join().unwrap();
        },
        None,
    );
}

#[test]
fn what_the_last_sender_sends_before_it_goes_is_received() {
    check_random(
        || {
            let (sender, mut receiver) = channel();
            let sending = thread::spawn(move || sender.send(7));
            assert_eq!(block_on(receiver.receive()), Some(7));
            assert_eq!(block_on(receiver.receive()), None);
            sending.join().unwrap();
        },
        SCHEDULES,
    );
}

#[test]
fn what_several_senders_send_is_received_in_the_order_of_each() {
    check_random(
        || {
            let (sender, mut receiver) = channel();
            let senders: Vec<_> = (0..3)
                .map(|number| {
                    let sender = sender.clone();
                    thread::spawn(move || (0..2).for_each(|turn| sender.send((number, turn))))
                })
                .collect();
            drop(sender);
            let mut received = Vec::new();
            while let Some(message) = block_on(receiver.receive()) {
                received.push(message);
            }
            assert_eq!(received.len(), 6);
            for number in 0..3 {
                let turns = received.iter().filter(|(sender, _)| *sender == number).map(|(_, turn)| *turn);
                assert!(turns.eq([0, 1]));
            }
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        },
        SCHEDULES,
    );
}

/// Who waits for an answer waits for a sender that is in the message: in a queue that nobody reads it would stay.
#[test]
fn a_message_that_nobody_receives_any_more_is_dropped_though_senders_are_left() {
    check_dfs(
        || {
            let (sender, receiver) = channel();
            let message = Arc::new(());
            let (sent, kept) = (message.clone(), sender.clone());
            let sending = thread::spawn(move || sender.send(sent));
            drop(receiver);
            sending.join().unwrap();
            assert_eq!(Arc::strong_count(&message), 1);
            drop(kept);
        },
        None,
    );
}

/// A wait that is given up leaves no waker with the senders, and takes no message from the next one.
#[test]
fn a_wait_for_a_message_that_is_dropped_leaves_nothing_and_loses_nothing() {
    check_dfs(
        || {
            let (sender, mut receiver) = channel();
            let other = sender.clone();
            let sending = thread::spawn(move || other.send(7));
            let woken = std::sync::Arc::new(Noticed);
            let waker = std::task::Waker::from(woken.clone());
            let polled = {
                let mut waiting = pin!(receiver.receive());
                waiting.as_mut().poll(&mut std::task::Context::from_waker(&waker))
            };
            if polled.is_pending() {
                assert_eq!(block_on(receiver.receive()), Some(7));
            }
            sending.join().unwrap();
            drop(waker);
            assert_eq!(std::sync::Arc::strong_count(&woken), 1);
            drop(sender);
        },
        None,
    );
}

/// Is woken, and does nothing.
struct Noticed;

impl std::task::Wake for Noticed {
    fn wake(self: std::sync::Arc<Self>) {}
}

const LIVE: u8 = 0;
const SEALED: u8 = 1;

/// A reader: waits until it has `enough`, or all up to the seal, and answers how much that was.
fn follow(progress: &Progress, core: usize, bell: &Bell, enough: u64) -> u64 {
    let look = |seen: u64| {
        // The state first: once it is not live, the watermark is final.
        let state = progress.state();
        let committed = progress.committed();
        (state != LIVE || committed > seen).then_some((state, committed))
    };
    let mut seen = 0;
    loop {
        let found = look(seen).or_else(|| {
            progress.add_interest(core);
            look(seen)
        });
        match found {
            Some((state, committed)) if state == SEALED || committed >= enough => return committed,
            Some((_, committed)) => {
                assert!(committed > seen, "a watermark only grows");
                seen = committed;
            }
            None => bell.wait(),
        }
    }
}

/// The writer's core: wakes the cores that are interested, after each change.
fn announce(progress: &Progress, bells: &[Bell]) {
    let interest = progress.take_interest();
    for (core, bell) in bells.iter().enumerate() {
        if interest & 1 << core != 0 {
            bell.ring();
        }
    }
}

fn write(progress: &Progress, bells: &[Bell], commits: u64) {
    for end in 1..=commits {
        progress.commit(end);
        announce(progress, bells);
    }
    progress.end(SEALED);
    announce(progress, bells);
}

fn follow_and_write(readers: usize, commits: u64) {
    let bells: Vec<_> = (0..readers).map(|_| Bell::default()).collect();
    let shared = Arc::new((Progress::new(LIVE, 0), bells));
    let followers: Vec<_> = (0..readers)
        .map(|core| {
            let shared = shared.clone();
            thread::spawn(move || follow(&shared.0, core, &shared.1[core], u64::MAX))
        })
        .collect();
    write(&shared.0, &shared.1, commits);
    for follower in followers {
        assert_eq!(follower.join().unwrap(), commits, "the watermark at the seal is final");
    }
}

#[test]
fn a_reader_that_waits_is_told_of_a_commit_though_none_follows() {
    check_dfs(
        || {
            let shared = Arc::new((Progress::new(LIVE, 0), [Bell::default()]));
            let other = shared.clone();
            let follower = thread::spawn(move || follow(&other.0, 0, &other.1[0], 1));
            shared.0.commit(1);
            announce(&shared.0, &shared.1);
            assert_eq!(follower.join().unwrap(), 1);
        },
        None,
    );
}

#[test]
fn a_reader_that_waits_is_told_of_every_commit_and_of_the_end() {
    check_dfs(|| follow_and_write(1, 1), None);
}

#[test]
fn readers_on_several_cores_are_told_of_every_commit_and_of_the_end() {
    check_random(|| follow_and_write(3, 2), SCHEDULES);
}

fn over() -> Arc<Ended> {
    Ended::by_canceller(Error::new(Kind::Closed, "over"))
}

#[test]
fn who_waits_for_the_end_of_a_context_is_woken() {
    check_dfs(
        || {
            let parent = Node::derive(None, None);
            let child = Node::derive(Some(&parent), None);
            let cancelling = thread::spawn(move || parent.end(&over()));
            assert_eq!(block_on(Cancelled::new(Some(child))).kind(), Kind::Cancelled);
            cancelling.join().unwrap();
        },
        None,
    );
}

#[test]
fn what_derives_while_its_parent_ends_has_ended_too() {
    check_dfs(
        || {
            let parent = Node::derive(None, None);
            let above = parent.clone();
            let deriving = thread::spawn(move || Node::derive(Some(&above), None));
            parent.end(&over());
            assert!(deriving.join().unwrap().ended().is_some());
            assert_eq!(parent.census(), (0, 0, 0));
        },
        None,
    );
}

/// Each leaves its place once, whoever is first: the place may be another's by then.
#[test]
fn children_that_come_end_and_go_while_others_do_keep_their_places() {
    check_random(
        || {
            let parent = Node::derive(None, None);
            let threads: Vec<_> = (0..3)
                .map(|number| {
                    let parent = parent.clone();
                    thread::spawn(move || {
                        let child = Node::derive(Some(&parent), None);
                        let wait = Cancelled::new(Some(child.clone()));
                        if number == 0 {
                            child.end(&over());
                        }
                        drop((child, wait));
                        Node::derive(Some(&parent), None)
                    })
                })
                .collect();
            let children: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(parent.census().0, children.len());
            parent.end(&over());
            assert!(children.iter().all(|child| child.ended().is_some()));
        },
        SCHEDULES,
    );
}
