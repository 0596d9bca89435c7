//! The library in another program: from plain threads, and from within another io_uring runtime, which shows that
//! neither has anything to do with the engine's own.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::Poll;
use std::thread;

use bytes::Bytes;
use common::block_on;
use tailwater::{
    Config, Context, Engine, Error, Kind, ListingQuery, Metadata, Name, State, Store, StoreReader,
    StoreWriter,
};

const BLOCK_BYTES: usize = 64 << 10;

fn config(data: &Path, cores: usize) -> Config {
    Config {
        data: data.to_owned(),
        cores,
        arena_bytes: 4 << 20,
        block_bytes: BLOCK_BYTES,
        segment_bytes: Some(2 << 20),
        ..Config::default()
    }
}

/// An engine on a folder of its own.
struct Embedded {
    engine: Option<Engine>,
    folder: tempfile::TempDir,
}

impl Embedded {
    fn start() -> Embedded {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let engine = Some(Engine::start(&config(folder.path(), 2)).unwrap());
        Embedded { engine, folder }
    }

    fn store(&self) -> Store {
        self.engine.as_ref().unwrap().store()
    }

    fn stop(&mut self) {
        self.engine.take().unwrap().stop().unwrap();
    }

    fn restart(&mut self, cores: usize) {
        self.stop();
        self.engine = Some(Engine::start(&config(self.folder.path(), cores)).unwrap());
    }
}

/// Two kinds of callers: a plain thread, and a runtime with a ring of its own.
#[derive(Clone, Copy, Debug)]
enum Caller {
    Thread,
    TokioUring,
}

impl Caller {
    /// Runs a future made there, on a thread of its own.
    fn spawn<F: Future>(self, make: impl FnOnce() -> F + Send + 'static) -> thread::JoinHandle<F::Output>
    where
        F::Output: Send + 'static,
    {
        thread::spawn(move || match self {
            Caller::Thread => block_on(make()),
            Caller::TokioUring => tokio_uring::start(make()),
        })
    }
}

const CALLERS: [(Caller, Caller); 3] = [
    (Caller::Thread, Caller::TokioUring),
    (Caller::TokioUring, Caller::Thread),
    (Caller::TokioUring, Caller::TokioUring),
];

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn content(seed: usize, length: usize) -> Bytes {
    (0..length).map(|at| ((at * 31 + at / 251 + seed * 7919) % 256) as u8).collect()
}

async fn create(store: &Store, at: &str) -> StoreWriter {
    store.create(&Context::background(), name(at), Metadata::default(), false).await.unwrap()
}

async fn open(store: &Store, at: &str) -> StoreReader {
    store.open(&Context::background(), &name(at), 0).await.unwrap()
}

/// All that a reader gets, and how it ended.
async fn read_all(reader: &mut StoreReader) -> (Vec<u8>, Result<(), Error>) {
    let mut bytes = Vec::new();
    loop {
        match reader.next(&Context::background(), 100_000).await {
            Ok(Some(some)) => bytes.extend_from_slice(&some),
            Ok(None) => return (bytes, Ok(())),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

/// Polls a future once. None: it is not ready, and is dropped.
async fn poll_once_and_drop<F: Future>(future: F) -> Option<F::Output> {
    let mut future: Pin<Box<F>> = Box::pin(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A pair of ends by which two threads go in step.
fn steps() -> (SyncSender<()>, Receiver<()>) {
    sync_channel(0)
}

#[test]
fn a_follower_on_another_runtime_has_each_append_before_the_next_is_made() {
    for (writing, following) in CALLERS {
        let embedded = Embedded::start();
        let pieces: Vec<Bytes> = [1, 10, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES + 17]
            .into_iter()
            .cycle()
            .take(40)
            .enumerate()
            .map(|(seed, length)| content(seed, length))
            .collect();
        let (seen, wait_seen) = steps();

        let (store, expected) = (embedded.store(), pieces.concat());
        let follower = following.spawn(move || async move {
            let mut reader =
                store.open_when_begun(&Context::background(), &name("b/followed"), 0).await.unwrap();
            let mut bytes: Vec<u8> = Vec::new();
            while let Some(some) = reader.next(&Context::background(), 1 << 20).await.unwrap() {
                assert!(bytes.len() + some.len() <= reader.object().committed() as usize);
                bytes.extend_from_slice(&some);
                if reader.object().committed() as usize == bytes.len()
                    && reader.object().state() == State::Live
                {
                    seen.send(()).unwrap();
                }
            }
            assert!(bytes == expected, "{} bytes where {} were written", bytes.len(), expected.len());
            assert_eq!(reader.object().state(), State::Sealed);
        });

        let store = embedded.store();
        let writer = writing.spawn(move || async move {
            let context = Context::background();
            let mut writer = create(&store, "b/followed").await;
            let mut offset = 0;
            for (index, piece) in pieces.into_iter().enumerate() {
                offset += piece.len() as u64;
                match index % 2 {
                    0 => writer.append(&context, piece).await.unwrap(),
                    _ => writer.write_frame(&context, index as u64, piece).await.unwrap(),
                }
                // Acknowledged is durable, and what is durable is seen: nothing else has to happen for it.
                assert_eq!(writer.object().committed(), offset);
                wait_seen.recv().unwrap();
            }
            writer.seal(&context).await.unwrap();
        });
        writer.join().unwrap();
        follower.join().unwrap();
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_its_object_interrupted_with_all_that_was_acknowledged() {
    for (writing, following) in CALLERS {
        let embedded = Embedded::start();
        let store = embedded.store();
        let follower = following.spawn(move || async move {
            let mut reader = store.open_when_begun(&Context::background(), &name("b/left"), 0).await.unwrap();
            let (bytes, end) = read_all(&mut reader).await;
            assert_eq!(end.unwrap_err().kind(), Kind::Interrupted, "this is no clean end");
            bytes
        });
        let store = embedded.store();
        let writer = writing.spawn(move || async move {
            let mut writer = create(&store, "b/left").await;
            writer.append(&Context::background(), content(1, 200_000)).await.unwrap();
            drop(writer);
        });
        writer.join().unwrap();
        assert!(follower.join().unwrap() == content(1, 200_000));

        let mut reader = block_on(open(&embedded.store(), "b/left"));
        assert_eq!(reader.object().state(), State::Interrupted);
        let (bytes, end) = block_on(read_all(&mut reader));
        assert!(bytes == content(1, 200_000) && end.unwrap_err().kind() == Kind::Interrupted);
    }
}

#[test]
fn dropping_a_future_that_waits_for_the_next_bytes_loses_none() {
    let embedded = Embedded::start();
    for (round, (_, following)) in CALLERS.into_iter().enumerate() {
        let at = format!("b/impatient-{round}");
        let (store, followed) = (embedded.store(), at.clone());
        let follower = following.spawn(move || async move {
            let mut reader =
                store.open_when_begun(&Context::background(), &name(&followed), 0).await.unwrap();
            let (mut bytes, mut dropped) = (Vec::new(), 0);
            loop {
                // Given up many times, with another length each time, before it is waited for.
                let mut outcome = None;
                for length_max in [1, 100_000, 7] {
                    outcome = poll_once_and_drop(reader.next(&Context::background(), length_max)).await;
                    match outcome {
                        None => dropped += 1,
                        Some(_) => break,
                    }
                }
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None => reader.next(&Context::background(), 1000).await,
                };
                match outcome.unwrap() {
                    Some(some) => bytes.extend_from_slice(&some),
                    None => return (bytes, dropped),
                }
            }
        });
        let store = embedded.store();
        block_on(async {
            let mut writer = create(&store, &at).await;
            for seed in 0..100 {
                writer.append(&Context::background(), content(seed, 1000)).await.unwrap();
            }
            writer.seal(&Context::background()).await.unwrap();
        });
        let (bytes, dropped) = follower.join().unwrap();
        let expected: Vec<u8> = (0..100).flat_map(|seed| content(seed, 1000)).collect();
        assert!(bytes == expected, "{} bytes", bytes.len());
        assert!(dropped > 100, "only {dropped} futures were dropped: the test tests nothing");
    }
}

#[test]
fn an_append_whose_future_is_dropped_is_in_the_object_wholly() {
    let mut embedded = Embedded::start();
    let store = embedded.store();
    let expected: Vec<u8> = (0..60).flat_map(|seed| content(seed, 5 * BLOCK_BYTES / 2)).collect();
    block_on(async {
        let context = Context::background();
        let mut writer = create(&store, "b/hasty").await;
        for seed in 0..60 {
            let append = writer.append(&context, content(seed, 5 * BLOCK_BYTES / 2));
            if seed % 3 == 2 {
                append.await.unwrap();
            } else {
                assert!(poll_once_and_drop(append).await.is_none(), "nothing is durable at once");
            }
        }
        writer.seal(&context).await.unwrap();
        let mut reader = open(&store, "b/hasty").await;
        let (bytes, end) = read_all(&mut reader).await;
        end.unwrap();
        assert!(bytes == expected, "{} bytes where {} were appended", bytes.len(), expected.len());
    });
    // Also a seal goes on by itself.
    block_on(async {
        let mut writer = create(&store, "b/hasty-seal").await;
        writer.append(&Context::background(), content(1, 10)).await.unwrap();
        let mut reader = open(&store, "b/hasty-seal").await;
        assert!(poll_once_and_drop(writer.seal(&Context::background())).await.is_none());
        assert!(read_all(&mut reader).await.1.is_ok());
    });
    embedded.restart(2);
    let mut reader = block_on(open(&embedded.store(), "b/hasty"));
    assert!(block_on(read_all(&mut reader)).0 == expected);
    assert_eq!(block_on(open(&embedded.store(), "b/hasty-seal")).object().state(), State::Sealed);
}

#[test]
fn a_frame_longer_than_a_block_is_there_wholly_or_not_at_all() {
    const FRAME: usize = 5 * BLOCK_BYTES / 2;
    let mut embedded = Embedded::start();
    let store = embedded.store();
    let object = {
        let store = store.clone();
        let writer = Caller::Thread.spawn(move || async move {
            let mut writer = create(&store, "b/frames").await;
            for number in 0..40 {
                writer
                    .write_frame(&Context::background(), number, content(number as usize, FRAME))
                    .await
                    .unwrap();
            }
        });
        let reader = block_on(embedded.store().open_when_begun(&Context::background(), &name("b/frames"), 0));
        // Whenever one looks, the watermark stands between two frames.
        let object = reader.unwrap().object().clone();
        let mut looks = 0u64;
        while object.state() == State::Live {
            let committed = object.committed();
            assert_eq!(committed % FRAME as u64, 0, "a torn frame at {committed} after {looks} looks");
            looks += 1;
        }
        writer.join().unwrap();
        object
    };
    assert_eq!(object.committed(), 40 * FRAME as u64);
    // Given up in the midst of it, the engine stopped under it: all or nothing.
    for round in 0..8 {
        let at = format!("b/torn-{round}");
        let store = embedded.store();
        block_on(async {
            let mut writer = create(&store, &at).await;
            writer.write_frame(&Context::background(), 0, content(0, FRAME)).await.unwrap();
            let context = Context::background();
            let frame = writer.write_frame(&context, 1, content(1, 9 * FRAME));
            assert!(poll_once_and_drop(frame).await.is_none());
        });
        embedded.restart(1 + round % 3);
        let mut reader = block_on(open(&embedded.store(), &at));
        let (bytes, _) = block_on(read_all(&mut reader));
        let (first, both) = (content(0, FRAME), [content(0, FRAME), content(1, 9 * FRAME)].concat());
        assert!(bytes == first || bytes == both, "{} bytes are no whole frames", bytes.len());
    }
}

#[test]
fn a_restart_keeps_what_was_sealed_interrupted_and_deleted() {
    let mut embedded = Embedded::start();
    let context = Context::background();
    let store = embedded.store();
    let metadata = Metadata {
        content_type: Some("video/mp4".to_owned()),
        cache_control: Some("no-transform".to_owned()),
        user: vec![("x-amz-meta-camera".to_owned(), "7 é".to_owned())],
        declared_length: None,
        tus: None,
    };
    block_on(async {
        for number in 0..20 {
            let at = format!("b/dir-{}/{number}", number % 3);
            let mut writer = store.create(&context, name(&at), metadata.clone(), true).await.unwrap();
            writer.append(&context, content(number, 50_000)).await.unwrap();
            writer.seal(&context).await.unwrap();
        }
        create(&store, "c/empty").await.seal(&context).await.unwrap();
        let mut left = create(&store, "c/left").await;
        left.append(&context, content(99, 123_456)).await.unwrap();
        drop(left);
        for number in [3, 4] {
            store.delete(&context, &name(&format!("b/dir-{}/{number}", number % 3))).await.unwrap();
        }
    });
    let generation = block_on(open(&store, "b/dir-1/19")).object().generation();
    drop(store);
    for cores in [2, 1, 3, 2] {
        embedded.restart(cores);
        let store = embedded.store();
        for number in 0..20 {
            let at = format!("b/dir-{}/{number}", number % 3);
            if number == 3 || number == 4 {
                let outcome = block_on(store.open(&context, &name(&at), 0)).map(|_| ());
                assert_eq!(outcome.unwrap_err().kind(), Kind::NotFound);
                continue;
            }
            let mut reader = block_on(open(&store, &at));
            assert_eq!(reader.object().metadata(), &metadata);
            assert_eq!(reader.object().state(), State::Sealed);
            let (bytes, end) = block_on(read_all(&mut reader));
            assert!(bytes == content(number, 50_000) && end.is_ok(), "{at}");
        }
        assert_eq!(block_on(open(&store, "b/dir-1/19")).object().generation(), generation);
        assert!(block_on(read_all(&mut block_on(open(&store, "c/empty")))).1.is_ok());
        let (bytes, end) = block_on(read_all(&mut block_on(open(&store, "c/left"))));
        assert!(bytes == content(99, 123_456) && end.unwrap_err().kind() == Kind::Interrupted);

        let query = ListingQuery { delimiter: Some("/".to_owned()), ..ListingQuery::default() };
        let context = Context::background();
        assert_eq!(
            block_on(store.list(&context, "b", &query)).unwrap().prefixes,
            ["dir-0/", "dir-1/", "dir-2/"]
        );
        let query = ListingQuery { prefix: "dir-0/".to_owned(), limit: 3, ..ListingQuery::default() };
        let page = block_on(store.list(&context, "b", &query)).unwrap();
        let keys: Vec<_> = page.entries.iter().map(|listed| listed.key.as_str()).collect();
        assert_eq!(keys, ["dir-0/0", "dir-0/12", "dir-0/15"]);
        assert_eq!(page.next.as_deref(), Some("dir-0/15"));
        // What is begun now comes after everything that ever was.
        let object = block_on(create(&store, "c/next")).object().clone();
        assert!(object.generation() > generation);
    }
}

#[test]
fn a_name_is_written_anew_only_by_who_may() {
    let embedded = Embedded::start();
    let (store, context) = (embedded.store(), Context::background());
    block_on(async {
        let begin = |only_if_absent| store.create(&context, name("b/k"), Metadata::default(), only_if_absent);
        let kind = |outcome: Result<StoreWriter, Error>| outcome.map(|_| ()).unwrap_err().kind();
        let mut first = begin(true).await.unwrap();
        first.append(&context, content(1, 10)).await.unwrap();
        assert_eq!(kind(begin(true).await), Kind::Exists, "it is being written");
        first.seal(&context).await.unwrap();
        assert_eq!(kind(begin(true).await), Kind::Exists, "it is there");

        // Who reads the old generation keeps it, whatever becomes of the name.
        let mut old = open(&store, "b/k").await;
        let mut second = begin(false).await.unwrap();
        let mut live = open(&store, "b/k").await;
        second.append(&context, content(2, 20)).await.unwrap();
        store.delete(&context, &name("b/k")).await.unwrap();
        assert_eq!(
            store.open(&context, &name("b/k"), 0).await.map(|_| ()).unwrap_err().kind(),
            Kind::NotFound
        );
        assert_eq!(store.delete(&context, &name("b/k")).await.unwrap_err().kind(), Kind::NotFound);
        let error = second.append(&context, content(3, 30)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::WrongState, "its object was deleted");
        assert_eq!(second.seal(&context).await.unwrap_err().kind(), Kind::WrongState);
        assert!(read_all(&mut old).await.0 == content(1, 10));
        let (bytes, end) = read_all(&mut live).await;
        assert!(bytes == content(2, 20) && end.unwrap_err().kind() == Kind::Interrupted);
        begin(true).await.unwrap().seal(&context).await.unwrap();
    });
}

#[test]
fn a_reader_begins_at_any_offset() {
    let embedded = Embedded::start();
    let (store, context) = (embedded.store(), Context::background());
    let whole = content(5, 300_000);
    block_on(async {
        let mut writer = create(&store, "b/k").await;
        for piece in whole.chunks(7_000) {
            writer.append(&context, Bytes::copy_from_slice(piece)).await.unwrap();
        }
        for offset in [0, 1, 6_999, 7_000, 65_536, 299_999, 300_000] {
            let mut reader = store.open(&context, &name("b/k"), offset as u64).await.unwrap();
            let mut bytes = Vec::new();
            while bytes.len() < whole.len() - offset {
                bytes.extend_from_slice(&reader.next(&context, 9_999).await.unwrap().unwrap());
            }
            assert!(bytes == whole[offset..], "from {offset}");
        }
        writer.seal(&context).await.unwrap();
        let mut reader = store.open(&context, &name("b/k"), 300_000).await.unwrap();
        assert!(reader.next(&context, 1).await.unwrap().is_none());
    });
}

#[test]
fn an_engine_that_stops_answers_whoever_still_calls() {
    for round in 0..10 {
        let mut embedded = Embedded::start();
        let (store, context) = (embedded.store(), Context::background());
        let mut writer = block_on(create(&store, "b/open"));
        block_on(writer.append(&context, content(1, 100))).unwrap();
        // Callers that wait for something that will not come, and one that never rests.
        let waiting = {
            let store = store.clone();
            Caller::TokioUring.spawn(move || async move { read_all(&mut open(&store, "b/open").await).await })
        };
        let awaiting = {
            let store = store.clone();
            Caller::Thread.spawn(move || async move {
                store.open_when_begun(&Context::background(), &name("b/never"), 0).await.map(|_| ())
            })
        };
        let busy = {
            let store = store.clone();
            Caller::Thread.spawn(move || async move {
                for number in 0.. {
                    let at = name(&format!("b/busy-{number}"));
                    let outcome = store.create(&Context::background(), at, Metadata::default(), false).await;
                    let outcome = match outcome {
                        Ok(writer) => writer.seal(&Context::background()).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = outcome {
                        return (number, error.kind());
                    }
                }
                unreachable!()
            })
        };
        block_on(store.open_when_begun(&context, &name("b/busy-5"), 0)).unwrap();
        embedded.stop();
        let (bytes, end) = waiting.join().unwrap();
        assert!(bytes == content(1, 100), "{} bytes", bytes.len());
        assert!(matches!(end.unwrap_err().kind(), Kind::Interrupted | Kind::Closed));
        assert_eq!(awaiting.join().unwrap().unwrap_err().kind(), Kind::Closed);
        let (acknowledged, kind) = busy.join().unwrap();
        assert_eq!(kind, Kind::Closed);
        assert_eq!(block_on(writer.append(&context, content(2, 1))).unwrap_err().kind(), Kind::Closed);
        assert_eq!(block_on(store.delete(&context, &name("b/open"))).unwrap_err().kind(), Kind::Closed);

        // What was acknowledged until then is there.
        embedded.engine = Some(Engine::start(&config(embedded.folder.path(), 1 + round % 3)).unwrap());
        let store = embedded.store();
        for number in 0..acknowledged {
            let reader = block_on(open(&store, &format!("b/busy-{number}")));
            assert_eq!(reader.object().state(), State::Sealed, "{number} of {acknowledged}");
        }
        assert_eq!(block_on(open(&store, "b/open")).object().committed(), 100);
    }
}

#[test]
fn a_folder_has_one_engine_at_a_time() {
    let mut embedded = Embedded::start();
    let error = Engine::start(&config(embedded.folder.path(), 1)).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Locked, "{error}");
    embedded.restart(1);
}

#[test]
fn a_reader_or_a_wait_that_is_given_up_leaves_nothing_behind() {
    let embedded = Embedded::start();
    let (store, context) = (embedded.store(), Context::background());
    let writer = block_on(create(&store, "b/k"));
    let object = writer.object().clone();
    let holders = Arc::strong_count(&object);
    for _ in 0..100 {
        block_on(async {
            let mut reader = open(&store, "b/k").await;
            assert!(poll_once_and_drop(reader.next(&context, 1)).await.is_none());
            assert!(poll_once_and_drop(store.open_when_begun(&context, &name("b/never"), 0)).await.is_none());
        });
    }
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while Arc::strong_count(&object) > holders {
        let left = Arc::strong_count(&object) - holders;
        assert!(std::time::Instant::now() < limit, "{left} readers that nobody has are still there");
        thread::yield_now();
    }
}
