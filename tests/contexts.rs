//! Every call that may wait ends with its context, says how, and leaves nothing half done: on a core, and from
//! threads and runtimes that have no timers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{assert_same, block_on, content};
use tailwater::context::Canceller;
use tailwater::store::{LocalStore, More};
use tailwater::{Config, Context, Engine, Error, Kind, Metadata, Name, Result, State, Store};

const BLOCK_BYTES: usize = 64 << 10;
/// Longer than any of these tests takes, unless it hangs.
const FAR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(20);

fn config(data: &Path) -> Config {
    Config {
        data: data.to_owned(),
        cores: 2,
        arena_bytes: 4 << 20,
        block_bytes: BLOCK_BYTES,
        segment_bytes: Some(2 << 20),
        ..Config::default()
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn why() -> Error {
    Error::new(Kind::Busy, "the test says so")
}

/// Runs `main` on core 0 of an engine, and stops that.
fn on_a_core<F>(data: &Path, main: impl Fn(Rc<LocalStore>) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let (done, ended) = std::sync::mpsc::channel();
    let main = Arc::new(main);
    let service = move |local: Rc<LocalStore>| {
        let (main, done) = (main.clone(), done.clone());
        let serving: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            if local.core().index() == 0 {
                main(local.clone()).await;
                done.send(()).unwrap();
            }
            local.stopping().await;
        });
        serving
    };
    let engine = Engine::start_with(&config(data), Arc::new(service)).unwrap();
    ended.recv().unwrap();
    engine.stop().unwrap();
}

/// Cancels before the poll with this number, the first being 0, and answers what comes of it.
async fn cancel_at<F: Future>(poll: usize, canceller: &Canceller, future: F) -> F::Output {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|polling| {
        if polls == poll {
            canceller.cancel(why());
            polling.waker().wake_by_ref(); // so that a wait which does not notice is polled on, and counted
        }
        polls += 1;
        match future.as_mut().poll(polling) {
            Poll::Pending if polls == poll => {
                // The next poll comes by itself.
                polling.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    })
    .await
}

#[test]
fn a_cancelled_append_is_wholly_in_the_object_or_not_at_all_and_the_offset_says_which() {
    const LENGTH: usize = 5 * BLOCK_BYTES / 2;
    let folder = folder();
    let seen = Arc::new(std::sync::Mutex::new((Vec::new(), 0, 0)));
    let outcomes = seen.clone();
    on_a_core(folder.path(), move |local| {
        let outcomes = outcomes.clone();
        async move {
            let background = Context::background();
            let mut writer =
                local.create(&background, name("b/cut"), Metadata::default(), false).await.unwrap();
            let (mut expected, mut kept, mut left_out) = (Vec::new(), 0, 0);
            for round in 0..120 {
                let (context, canceller) = background.with_cancel();
                let bytes = content(round as u64, if round % 3 == 0 { 100 } else { LENGTH });
                let before = writer.offset();
                let outcome = match round % 2 {
                    0 => cancel_at(round / 6, &canceller, writer.append(&context, &bytes)).await,
                    _ => cancel_at(round / 6, &canceller, writer.write_frame(&context, 7, &bytes)).await,
                };
                match writer.offset() - before {
                    0 => {
                        assert_eq!(outcome.unwrap_err().kind(), Kind::Cancelled);
                        left_out += 1;
                    }
                    appended => {
                        assert_eq!(appended, bytes.len() as u64, "round {round}: half of an append");
                        expected.extend_from_slice(&bytes);
                        if let Err(error) = outcome {
                            assert_eq!(error.kind(), Kind::Cancelled);
                            kept += 1;
                        }
                    }
                }
                assert_eq!(writer.offset(), expected.len() as u64);
            }
            writer.acknowledged(&background).await.unwrap();
            assert_eq!(writer.object().committed(), expected.len() as u64);
            writer.seal(&background).await.unwrap();
            *outcomes.lock().unwrap() = (expected, kept, left_out);
        }
    });
    let (expected, kept, left_out) = std::mem::take(&mut *seen.lock().unwrap());
    assert!(kept > 0 && left_out > 0, "{kept} kept and {left_out} left out: the test tests nothing");
    // And so it is after a start.
    let engine = Engine::start(&config(folder.path())).unwrap();
    let mut reader = block_on(engine.store().open(&Context::background(), &name("b/cut"), 0)).unwrap();
    let mut bytes = Vec::new();
    while let Some(some) = block_on(reader.next(&Context::background(), 1 << 20)).unwrap() {
        bytes.extend_from_slice(&some);
    }
    assert_same("after a start", &bytes, &expected);
}

#[test]
fn a_cancelled_seal_is_a_seal_or_an_interruption() {
    let folder = folder();
    on_a_core(folder.path(), |local| async move {
        let background = Context::background();
        let (mut sealed, mut interrupted) = (0, 0);
        for round in 0..24 {
            let at = name(&format!("b/seal-{round}"));
            let mut writer = local.create(&background, at, Metadata::default(), false).await.unwrap();
            let object = writer.object().clone();
            writer.append(&background, &content(1, 10)).await.unwrap();
            let (context, canceller) = background.with_cancel();
            let outcome = cancel_at(round / 8, &canceller, writer.seal(&context)).await;
            let reader = local.read(object.clone(), 10);
            let end = reader.more(&background.with_timeout(FAR), 0).await.unwrap();
            match (object.state(), outcome.map(drop).map_err(|error| error.kind())) {
                (State::Sealed, Ok(()) | Err(Kind::Cancelled)) => sealed += 1,
                // The first poll puts the seal into the log.
                (State::Interrupted, Err(Kind::Cancelled)) if round < 8 => interrupted += 1,
                (state, outcome) => panic!("round {round}: {state:?} after {outcome:?}"),
            }
            assert_eq!(end == More::Sealed, object.state() == State::Sealed);
        }
        assert!(interrupted >= 8 && sealed >= 8, "{interrupted} interrupted, {sealed} sealed");
    });
}

#[test]
fn what_waits_on_a_core_ends_with_the_context_or_at_its_deadline() {
    let folder = folder();
    on_a_core(folder.path(), |local| async move {
        let background = Context::background();
        let writer = local.create(&background, name("b/k"), Metadata::default(), false).await.unwrap();
        let reader = local.read(writer.object().clone(), 0);
        let (parent, canceller) = background.with_cancel();
        // Ended before.
        let past = background.with_deadline(local.core().now());
        let kind = Kind::DeadlineExceeded;
        let never = name("b/never");
        assert_eq!(local.find_when_begun(&past, &never).await.unwrap_err().kind(), kind);
        assert_eq!(local.delete(&past, &name("b/k")).await.unwrap_err().kind(), kind);
        assert!(!writer.object().is_deleted(), "nothing is deleted under a context that has ended");
        assert_eq!(writer.room(&past, 1).await.unwrap_err().kind(), kind);
        let created = local.create(&past, never.clone(), Metadata::default(), false).await;
        assert_eq!(created.map(drop).unwrap_err().kind(), kind);
        assert!(local.find(&background, &never).await.unwrap().is_none());
        // While they wait.
        let start = Instant::now();
        let soon = parent.with_timeout(SOON);
        assert_eq!(reader.more(&soon, 0).await.unwrap_err().kind(), kind);
        let soon = parent.with_timeout(SOON).with_timeout(FAR);
        assert_eq!(local.find_when_begun(&soon, &never).await.unwrap_err().kind(), kind);
        assert!(start.elapsed() >= 2 * SOON);
        canceller.cancel(why());
        let more = reader.more(&parent, 0).await;
        assert_eq!(more.unwrap_err().to_string(), "cancelled: the test says so");
        let (context, canceller) = background.with_cancel();
        let more = cancel_at(1, &canceller, reader.more(&context, 0)).await;
        assert_eq!(more.unwrap_err().kind(), Kind::Cancelled);
    });
}

struct Embedded {
    engine: Option<Engine>,
    _folder: tempfile::TempDir,
}

impl Embedded {
    fn start() -> (Embedded, Store) {
        let folder = folder();
        let engine = Engine::start(&config(folder.path())).unwrap();
        let store = engine.store();
        (Embedded { engine: Some(engine), _folder: folder }, store)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop().unwrap();
        }
    }
}

fn bytes(seed: u64, length: usize) -> Bytes {
    content(seed, length).into()
}

fn kind_of<T>(outcome: Result<T>) -> Kind {
    outcome.map(drop).unwrap_err().kind()
}

#[test]
fn deadlines_hold_on_a_thread_without_any_timers() {
    let (_embedded, store) = Embedded::start();
    block_on(async {
        let background = Context::background();
        let start = Instant::now();
        let soon = background.with_timeout(SOON);
        let waiting = store.open_when_begun(&soon, &name("b/never"), 0).await;
        assert_eq!(kind_of(waiting), Kind::DeadlineExceeded);
        let mut writer = store.create(&background, name("b/k"), Metadata::default(), false).await.unwrap();
        let mut reader = store.open(&background, &name("b/k"), 0).await.unwrap();
        let soon = background.with_timeout(SOON);
        assert_eq!(kind_of(reader.next(&soon, 100).await), Kind::DeadlineExceeded);
        assert!(start.elapsed() >= 2 * SOON);
        // Nothing was lost by that.
        writer.append(&background.with_timeout(FAR), bytes(1, 1000)).await.unwrap();
        let all = reader.next(&background.with_timeout(FAR), 1000).await.unwrap().unwrap();
        assert_same("what comes after a deadline", &all, &content(1, 1000));
        // What has ended before does nothing.
        let past = background.with_timeout(Duration::ZERO);
        assert_eq!(kind_of(writer.append(&past, bytes(2, 10)).await), Kind::DeadlineExceeded);
        assert_eq!(kind_of(writer.offset(&past).await), Kind::DeadlineExceeded);
        assert_eq!(writer.offset(&background).await.unwrap(), 1000);
        let created = store.create(&past, name("b/other"), Metadata::default(), false).await;
        assert_eq!(kind_of(created), Kind::DeadlineExceeded);
        assert_eq!(kind_of(store.open(&past, &name("b/k"), 0).await), Kind::DeadlineExceeded);
        assert_eq!(kind_of(store.open(&background, &name("b/other"), 0).await), Kind::NotFound);
        assert_eq!(kind_of(store.delete(&past, &name("b/k")).await), Kind::DeadlineExceeded);
        let object = writer.object().clone();
        assert_eq!(kind_of(writer.seal(&past).await), Kind::DeadlineExceeded);
        assert_eq!(kind_of(reader.next(&background, 1).await), Kind::Interrupted);
        assert_eq!((object.state(), object.committed()), (State::Interrupted, 1000));
    });
}

#[test]
fn another_thread_cancels_what_waits() {
    let (_embedded, store) = Embedded::start();
    let background = Context::background();
    let mut writer = block_on(store.create(&background, name("b/k"), Metadata::default(), false)).unwrap();
    let mut reader = block_on(store.open(&background, &name("b/k"), 0)).unwrap();
    for round in 0..200 {
        let (context, canceller) = background.with_cancel();
        let outcome = thread::scope(|scope| {
            let reading = scope.spawn(|| block_on(reader.next(&context, 10)));
            if round % 2 == 0 {
                thread::yield_now();
            }
            canceller.cancel(why());
            reading.join().unwrap()
        });
        assert_eq!(outcome.unwrap_err().to_string(), "cancelled: the test says so");
        if round % 10 == 0 {
            block_on(writer.append(&background, bytes(round, 10))).unwrap();
            let some = block_on(reader.next(&background, 10)).unwrap().unwrap();
            assert_same("after a cancelled wait", &some, &content(round, 10));
        }
    }
}

/// The wait of a dropped call goes on under its own context: how that ends is not the next one's answer.
#[test]
fn a_dropped_read_does_not_end_the_next_one() {
    let (_embedded, store) = Embedded::start();
    block_on(async {
        let background = Context::background();
        let mut writer = store.create(&background, name("b/k"), Metadata::default(), false).await.unwrap();
        let mut reader = store.open(&background, &name("b/k"), 0).await.unwrap();
        for round in 0..300 {
            let (context, canceller) = background.with_cancel();
            {
                let mut dropped = pin!(reader.next(&context, 10));
                poll_fn(|polling| {
                    assert!(dropped.as_mut().poll(polling).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            if round % 2 == 0 {
                canceller.cancel(why());
            }
            let mut next = pin!(reader.next(&background, 10));
            if round % 3 == 0 {
                poll_fn(|polling| {
                    let _ = next.as_mut().poll(polling).map(|outcome| panic!("{outcome:?}"));
                    Poll::Ready(())
                })
                .await;
            }
            canceller.cancel(why());
            writer.append(&background, bytes(round, 10)).await.unwrap();
            assert_same("the next read", &next.await.unwrap().unwrap(), &content(round, 10));
        }
    });
}

#[test]
fn a_call_behind_one_that_takes_long_ends_with_its_own_context() {
    const LENGTH: usize = 48 << 20;
    let (_embedded, store) = Embedded::start();
    block_on(async {
        let background = Context::background();
        let mut writer = store.create(&background, name("b/long"), Metadata::default(), false).await.unwrap();
        let long = bytes(1, LENGTH);
        let mut reader = store.open(&background, &name("b/long"), 0).await.unwrap();
        {
            let mut dropped = pin!(writer.append(&background, long.clone()));
            poll_fn(|polling| {
                assert!(dropped.as_mut().poll(polling).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        let soon = background.with_timeout(Duration::from_millis(1));
        assert_eq!(kind_of(writer.append(&soon, bytes(2, 10)).await), Kind::DeadlineExceeded);
        let (context, canceller) = background.with_cancel();
        let cancelling = thread::spawn(move || canceller.cancel(why()));
        assert_eq!(kind_of(writer.write_frame(&context, 1, bytes(2, 10)).await), Kind::Cancelled);
        cancelling.join().unwrap();
        assert_eq!(writer.object().committed(), 0, "the first one has ended already: the test tests nothing");
        // The first append is in the object wholly, the others are not, and the next comes behind it.
        assert_eq!(writer.offset(&background).await.unwrap(), LENGTH as u64);
        writer.append(&background, bytes(3, 10)).await.unwrap();
        writer.seal(&background).await.unwrap();
        let mut all = Vec::new();
        while let Some(some) = reader.next(&background, 1 << 20).await.unwrap() {
            all.extend_from_slice(&some);
        }
        assert_same("what was appended", &all, &[&long[..], &content(3, 10)].concat());
    });
}
