//! How tests drop futures: at every await point, and at every moment there is at one.
//!
//! A [`Cut`] says after how many polls a future is dropped, and whether at once or only when it has been woken: then
//! what it waited for is there, and nobody has looked yet. [`Cut::make`] does it, and makes sure that nobody holds the
//! waker of a future that is gone. Whoever calls it goes through the cuts until the future was done before one.
//!
//! What is dropped, and what must hold afterwards, is in `runtime/drops.rs` (a core, its files and sockets), in
//! `store/drops.rs` (the store, its start, and who reads it without a server) and in `serve/drops.rs` (connections). They
//! name what they drop as `Type::function`, so that the test below can tell whether some future of the public surface was
//! forgotten.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::runtime::yield_now;

/// When a future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// After so many polls.
    polls: usize,
    /// Not at once, but when it is to be polled once more.
    when_woken: bool,
    /// Other threads may be just about to wake it.
    has_threads: bool,
}

/// How long a waker may be held by another thread that is just waking it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many turns a task that was cancelled may take to let go of one.
const TURNS: usize = 4;

/// Hands on what it is woken for.
struct Watched(Waker);

impl Wake for Watched {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
    }
}

impl Cut {
    /// Before the first poll.
    pub(crate) fn first() -> Cut {
        Cut { polls: 0, when_woken: false, has_threads: false }
    }

    /// The same among several threads.
    pub(crate) fn among_threads(self) -> Cut {
        Cut { has_threads: true, ..self }
    }

    /// The one behind this one.
    pub(crate) fn next(self) -> Cut {
        match self.when_woken || self.polls == 0 {
            true => Cut { polls: self.polls + 1, when_woken: false, ..self },
            false => Cut { when_woken: true, ..self },
        }
    }

    /// Whether the future is polled at all.
    pub(crate) fn polls(self) -> bool {
        self.polls > 0
    }

    /// Whether the future is dropped only when it was woken: who never will be waits for ever.
    pub(crate) fn when_woken(self) -> bool {
        self.when_woken
    }

    /// Polls a future when it is woken, and drops it here; or answers its output where it is done before.
    pub(crate) async fn make<F: Future>(self, future: F) -> Option<F::Output> {
        let mut future: Option<Pin<Box<F>>> = Some(Box::pin(future));
        let mut watched: Option<Arc<Watched>> = None;
        let mut polls = 0;
        let output = poll_fn(|context| {
            let Some(inner) = future.as_mut().filter(|_| polls < self.polls) else {
                return Poll::Ready(None);
            };
            polls += 1;
            // One for all polls, as a task has one.
            let waker = watched.get_or_insert_with(|| Arc::new(Watched(context.waker().clone())));
            match inner.as_mut().poll(&mut Context::from_waker(&Waker::from(waker.clone()))) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if polls == self.polls && !self.when_woken => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(future.take());
        let (limit, mut turns) = (Instant::now() + PATIENCE, 0);
        while let Some(watched) = watched.as_ref().filter(|watched| Arc::strong_count(watched) > 1) {
            let may_go_on = if self.has_threads { Instant::now() < limit } else { turns < TURNS };
            assert!(may_go_on, "{} still hold the waker", Arc::strong_count(watched) - 1);
            turns += 1;
            std::thread::yield_now();
            yield_now().await;
        }
        output
    }
}

/// Polls a future once, and drops it where it is not done: what it has begun goes on by itself, or not.
pub(crate) async fn begin<F: Future>(future: F) -> Option<F::Output> {
    Cut { polls: 1, when_woken: false, has_threads: true }.make(future).await
}

/// The rooms whose futures are dropped, and what in them is not for others to call and goes with its caller.
const ROOMS: &[(&str, &str)] = &[
    ("context/mod.rs", include_str!("context/mod.rs")),
    ("log/inspect.rs", include_str!("log/inspect.rs")),
    ("log/recovery.rs", include_str!("log/recovery.rs")),
    ("log/segment.rs", include_str!("log/segment.rs")),
    ("log/writer.rs", include_str!("log/writer.rs")),
    ("ring/mod.rs", include_str!("ring/mod.rs")),
    ("runtime/channel.rs", include_str!("runtime/channel.rs")),
    ("runtime/core.rs", include_str!("runtime/core.rs")),
    ("runtime/file.rs", include_str!("runtime/file.rs")),
    ("runtime/race.rs", include_str!("runtime/race.rs")),
    ("runtime/stream.rs", include_str!("runtime/stream.rs")),
    ("runtime/under.rs", include_str!("runtime/under.rs")),
    ("serve/connection.rs", include_str!("serve/connection.rs")),
    ("serve/server.rs", include_str!("serve/server.rs")),
    ("store/handle.rs", include_str!("store/handle.rs")),
    ("store/local.rs", include_str!("store/local.rs")),
    ("store/offline.rs", include_str!("store/offline.rs")),
    ("store/reader.rs", include_str!("store/reader.rs")),
    ("store/recover.rs", include_str!("store/recover.rs")),
    ("store/verify.rs", include_str!("store/verify.rs")),
    ("store/writer.rs", include_str!("store/writer.rs")),
    ("store/writers.rs", include_str!("store/writers.rs")),
];

/// What returns one of these can be dropped like a future of an `async fn`.
const FUTURES: &[&str] = &["impl Future", "InFlight", "Sleep", "Cancelled", "Task<"];

/// A public function that answers a future: its name with its type's, and its documentation.
fn public_futures(text: &str) -> Vec<(String, String)> {
    let (mut found, mut kind, mut documentation) = (Vec::new(), String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if let Some(rest) = line.strip_prefix("impl") {
            // What is behind `for`, or else the first name, without its parameters.
            let rest =
                if rest.starts_with('<') { rest.split_once("> ").map_or("", |(_, rest)| rest) } else { rest };
            let rest = rest.split_once(" for ").map_or(rest, |(_, rest)| rest);
            kind = rest.trim().chars().take_while(char::is_ascii_alphanumeric).collect();
        } else if let Some(rest) = trimmed.strip_prefix("/// ") {
            documentation.push_str(rest);
            documentation.push(' ');
        } else if trimmed.starts_with("pub async fn ") || trimmed.starts_with("pub fn ") {
            let mut signature = trimmed.to_owned();
            while !signature.ends_with('{') {
                signature.push_str(lines.next().unwrap_or("{").trim());
            }
            let (_, from_name) = signature.split_once("fn ").unwrap_or_default();
            let name: String =
                from_name.chars().take_while(|next| next.is_ascii_alphanumeric() || *next == '_').collect();
            let answer = signature.rsplit_once(" -> ").map_or("", |(_, answer)| answer);
            let is_future =
                trimmed.starts_with("pub async") || FUTURES.iter().any(|future| answer.starts_with(future));
            let is_method = line.starts_with(' ');
            if is_future {
                let name = if is_method { format!("{kind}::{name}") } else { name };
                found.push((name, std::mem::take(&mut documentation)));
            }
            documentation.clear();
        } else if !trimmed.starts_with("///") && !trimmed.starts_with("#[") {
            documentation.clear();
        }
    }
    found
}

#[test]
fn every_public_future_is_dropped_at_every_await_point_and_says_what_that_does() {
    let cases = crate::runtime::dropped().chain(crate::store::dropped()).chain(crate::serve::dropped());
    let cases: std::collections::BTreeSet<&str> = cases.collect();
    let (mut forgotten, mut silent, mut count) = (Vec::new(), Vec::new(), 0);
    for (room, text) in ROOMS {
        for (name, documentation) in public_futures(text) {
            count += 1;
            if !cases.contains(name.as_str()) {
                forgotten.push(format!("{room}: {name}"));
            }
            let speaks =
                ["Dropping", "dropped", "drops", "As [`"].iter().any(|word| documentation.contains(word));
            if !speaks {
                silent.push(format!("{room}: {name}"));
            }
        }
    }
    assert!(count > 50, "the search finds only {count}");
    assert!(forgotten.is_empty(), "no case drops these: {forgotten:#?}");
    assert!(silent.is_empty(), "these do not say what dropping them does: {silent:#?}");
}
