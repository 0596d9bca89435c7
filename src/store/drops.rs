//! Every future of the store is dropped at every await point.
//!
//! Each case runs in many simulated worlds, on two cores, where what was begun ends in any order; those of the way in
//! for other threads also over a real engine. When all is quiet again, nothing is left of what was dropped: nobody
//! waits, nothing is promised, pinned, in flight or open that was not before; and what the next call finds is what the
//! case says. At the end of each world all pieces of the arenas are free, and all descriptors closed.
//!
//! What reads a store before it runs, or while it does not, is in [`start`].

mod start;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use redb::backends::InMemoryBackend;

use super::assembly::{Assembly, Beginning, CatalogWork, CoreSettings, assemble, work};
use super::catalog::{Database, Write};
use super::handle::{Store, StoreReader, StoreWriter};
use super::listing::ListingQuery;
use super::local::LocalStore;
use super::name::Name;
use super::object::{Metadata, Object, State};
use super::reader::{More, Reader};
use super::recover::Recovered;
use super::shared::Shared;
use super::writer::Writer;
use super::writers::Resumed;
use crate::config::Retention;
use crate::context::Context;
use crate::drops::{Cut, begin};
use crate::error::{Error, Kind};
use crate::log::{Space, SpaceSettings};
use crate::ring::Arena;
use crate::ring::simulated::{World, WorldSettings};
use crate::runtime::{Either, channel, race};
use crate::simulation::{Cores, Pause};

/// In how many worlds a case is run.
const SEEDS: u64 = 12;
const CORES: usize = 2;
const FOLDER: &str = "/data/segments";
const SEGMENT_BYTES: u64 = 512 << 10;
const BLOCK_BYTES: usize = 16 << 10;
const PIECES: usize = 6;
const PIECE_LENGTH: usize = 64 << 10;
/// How long the writers of these cases are awaited, where they are.
const WINDOW: Duration = Duration::from_secs(3600);

/// What is under way on a core, and who waits there. It is the same before a case and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub operations: usize,
    pub timers: usize,
    pub tasks: usize,
    pub endings: usize,
    pub waiters: usize,
    pub writers: usize,
    pub names_awaited: usize,
    pub pins: usize,
    pub promised_bytes: u64,
    pub blocks_in_flight: usize,
    pub objects_live: i64,
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// A case of what is called on a core.
struct LocalCase {
    /// What is dropped.
    of: &'static str,
    run: fn(Rc<LocalScene>) -> Running,
}

/// A case of what is called from anywhere.
struct HandleCase {
    of: &'static str,
    run: fn(Rc<Scene>) -> Running,
}

/// Where a case happens: once for each cut.
struct Scene {
    store: Store,
    cut: Cut,
    /// Different for each cut.
    number: usize,
    /// The future was done before the cut, or has no further cut.
    is_last: Cell<bool>,
}

struct LocalScene {
    scene: Scene,
    local: Rc<LocalStore>,
}

impl std::ops::Deref for LocalScene {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

fn background() -> Context {
    Context::background()
}

/// Bytes that tell where they are.
fn content(seed: usize, length: usize) -> Bytes {
    (0..length).map(|at| ((at * 31 + at / 251 + seed * 7919) % 256) as u8).collect()
}

impl Scene {
    /// Drops a future where this scene does that.
    async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let output = self.cut.make(future).await;
        self.is_last.set(output.is_some());
        output
    }

    /// As [`Scene::cut`], beside what makes it go on, which begins when it waits.
    async fn cut_beside<F: Future>(&self, future: F, other: impl Future<Output = ()>) -> Option<F::Output> {
        let beside = async {
            other.await;
            pending::<()>().await;
        };
        match race(self.cut(future), beside).await {
            Either::First(output) => output,
            Either::Second(()) => unreachable!("it never ends"),
        }
    }

    /// A name that nobody else has.
    fn name(&self) -> Name {
        Name::parse(&format!("b/{}", self.number)).unwrap()
    }

    async fn create(&self) -> StoreWriter {
        self.store.create(&background(), self.name(), Metadata::default(), false).await.unwrap()
    }

    /// An object with these bytes, sealed.
    async fn put(&self, bytes: &Bytes) {
        let mut writer = self.create().await;
        writer.append(&background(), bytes.clone()).await.unwrap();
        writer.seal(&background()).await.unwrap();
    }

    /// All that there is of the name, and whether it had a clean end.
    async fn read(&self) -> (Vec<u8>, bool) {
        let mut reader = self.store.open(&background(), &self.name(), 0).await.unwrap();
        read_rest(&mut reader).await
    }

    /// Waits until the object has come to an end, and answers which.
    async fn ended(&self, object: &Arc<Object>) -> State {
        while object.state() == State::Live {
            // Any call that is answered lets the others go on.
            self.list().await;
        }
        object.state()
    }

    async fn list(&self) -> Vec<String> {
        let page = self.store.list(&background(), "b", &ListingQuery::default()).await.unwrap();
        page.entries.into_iter().map(|entry| entry.key).collect()
    }
}

async fn read_rest(reader: &mut StoreReader) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match reader.next(&background(), 5000).await {
            Ok(Some(some)) => bytes.extend_from_slice(&some),
            Ok(None) => return (bytes, true),
            Err(error) if error.kind() == Kind::Interrupted => return (bytes, false),
            Err(error) => panic!("{error}"),
        }
    }
}

impl LocalScene {
    async fn create_here(&self) -> Writer {
        self.local.create(&background(), self.name(), Metadata::default(), false).await.unwrap()
    }

    /// An object of these bytes whose writer is gone, and awaited or not.
    async fn leave(&self, bytes: &[u8], window: Duration) -> Arc<Object> {
        let mut writer = self.create_here().await;
        writer.append(&background(), bytes).await.unwrap();
        writer.set_window(window);
        writer.object().clone()
    }

    /// What was left can be gone on with, from this offset on.
    async fn go_on(&self, generation: u64, bytes: &Bytes, end: &Bytes) {
        // Should it be stuck, this says so.
        let context = background().with_deadline(self.local.core().now() + Duration::from_secs(600));
        let resumed = self.local.resume(&context, &self.name(), generation, Duration::ZERO).await.unwrap();
        let Resumed::Here(mut writer) = resumed else { panic!("it is written here") };
        assert_eq!(writer.offset(), bytes.len() as u64);
        writer.append(&context, end).await.unwrap();
        writer.seal(&context).await.unwrap();
        assert!(self.read().await == ([&bytes[..], &end[..]].concat(), true));
    }

    /// The catalog has all that was durable, and memory forgets it.
    async fn settle(&self) {
        self.local.cut_batch();
        let (done, mut entered) = channel();
        self.local.shared().enter(Write::Flush(done));
        entered.receive().await;
    }

    /// A writer whose log has no room at the moment.
    async fn writer_without_room(&self, bytes: &mut Vec<u8>) -> Writer {
        let mut writer = self.create_here().await;
        let fill = |space: &mut [u8]| {
            space.fill(b'x');
            Ok::<_, Error>(space.len())
        };
        while let Some(length) = writer.append_from(BLOCK_BYTES, fill).unwrap() {
            bytes.resize(bytes.len() + length, b'x');
        }
        writer
    }

    /// After an append of `second` that was dropped, `offset` says whether it is in; the next one follows it.
    async fn check_append(&self, mut writer: Writer, first: &Bytes, second: &Bytes) {
        let mut expected = first.to_vec();
        if writer.offset() > first.len() as u64 {
            expected.extend_from_slice(second);
        }
        assert_eq!(writer.offset(), expected.len() as u64, "an append is wholly in or wholly out");
        let third = content(3, 700);
        match self.number % 3 {
            // What was given up is in the log in part; also where the next one has parts.
            0 => writer.append(&background(), &third).await.unwrap(),
            _ => writer.append(&background(), &content(3, 3 * BLOCK_BYTES)).await.unwrap(),
        }
        expected.extend_from_slice(&if self.number.is_multiple_of(3) {
            third
        } else {
            content(3, 3 * BLOCK_BYTES)
        });
        assert_eq!(writer.object().committed(), expected.len() as u64);
        writer.seal(&background()).await.unwrap();
        let (found, is_clean) = self.read().await;
        let same = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        assert!(
            found == expected && is_clean,
            "{:?}: {} bytes where {} were expected, the same up to {same}, clean: {is_clean}; {} {}",
            self.cut,
            found.len(),
            expected.len(),
            first.len(),
            second.len()
        );
    }
}

/// All that a reader on a core still finds.
async fn read_here(reader: &mut Reader) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        reader.locate().await.unwrap();
        let mut pieces = Vec::new();
        let length = reader.gather(3000, 1, &mut pieces);
        if let Some(piece) = pieces.pop() {
            let file = reader.local().file(&piece.segment).await.unwrap();
            let buffer = vec![0; piece.length];
            let (count, some) = reader.local().core().read(&file, piece.position, buffer, 0).await;
            assert_eq!(count, Ok(piece.length));
            bytes.extend(some);
            reader.advance(length as u64);
        } else if reader.more(&background(), 0).await.unwrap() != More::Available {
            return bytes;
        }
    }
}

macro_rules! local {
    ($of:literal, |$scene:ident| $run:expr) => {
        LocalCase { of: $of, run: |$scene| Box::pin(async move { $run }) }
    };
}

macro_rules! handle {
    ($of:literal, |$scene:ident| $run:expr) => {
        HandleCase { of: $of, run: |$scene| Box::pin(async move { $run }) }
    };
}

/// What is dropped on a core. A new future of these rooms gets its line here.
const LOCAL_CASES: &[LocalCase] = &[
    local!("LocalStore::create", |scene| {
        // With a promise of room, and with a look into the catalog.
        let metadata = Metadata { declared_length: Some(200 << 10), ..Metadata::default() };
        let (name, context) = (scene.name(), background());
        let created = scene.cut(scene.local.create(&context, name.clone(), metadata, true)).await;
        let is_begun = created.is_some();
        drop(created);
        let found = scene.local.find(&context, &name).await.unwrap();
        assert_eq!(found.is_some(), is_begun, "what was dropped leaves nothing behind");
        if let Some(object) = found {
            assert_eq!(scene.ended(&object).await, State::Interrupted);
        }
    }),
    local!("LocalStore::resume", |scene| {
        // Of one whose append was lost and which is dropped while somebody waits: its interruption was logged between
        // the parts of what that one appended, and took the first from it.
        let (mut first, context, bytes) = (scene.create_here().await, background(), content(1, 300));
        first.append(&context, &bytes).await.unwrap();
        let (object, name) = (first.object().clone(), scene.name());
        let mut resuming = pin!(scene.local.resume(&context, &name, object.generation(), Duration::ZERO));
        let is_waiting = poll_fn(|context| Poll::Ready(resuming.as_mut().poll(context).is_pending()));
        assert!(is_waiting.await);
        first.lose_last();
        drop(first);
        let Resumed::Here(mut second) = resuming.await.unwrap() else { panic!("it is written here") };
        let (whole, mut before) = (content(2, 2000), 0);
        for (part, is_last) in [(&whole[..1000], false), (&whole[1000..], true)] {
            let fill = |space: &mut [u8]| {
                space[..1000].copy_from_slice(part);
                Ok::<_, Error>((1000, is_last))
            };
            assert_eq!(second.append_part_from(&mut before, 1000, fill).unwrap(), Some(1000));
            // What is left of the first one is done.
            scene.local.core().sleep(Duration::from_millis(1)).await;
        }
        scene.cut(second.acknowledged(&context)).await;
        drop(second);
        assert_eq!(scene.ended(&object).await, State::Interrupted);
        drop(object);
        scene.settle().await;
        assert!(scene.read().await == ([&bytes[..], &whole[..]].concat(), false));
    }),
    local!("LocalStore::resume", |scene| {
        // What one writer had appended was lost, another one has gone on, and only then the first one is dropped: it
        // took the other out of the books, who was not asked to let go when a third one came.
        let (first, context) = (scene.create_here().await, background());
        let (object, name) = (first.object().clone(), scene.name());
        let resumed = scene.local.resume(&context, &name, object.generation(), Duration::ZERO);
        first.acknowledged(&context).await.unwrap();
        first.lose_last();
        let Resumed::Here(mut second) = resumed.await.unwrap() else { panic!("it is written here") };
        drop(first);
        second.append(&context, &content(1, 300)).await.unwrap();
        assert_eq!(object.state(), State::Live);
        let third = scene.local.resume(&context, &name, object.generation(), Duration::ZERO);
        let letting_go = async move {
            second.replaced().await;
            drop(second);
        };
        drop(scene.cut_beside(third, letting_go).await);
        scene.go_on(object.generation(), &content(1, 300), &content(2, 200)).await;
    }),
    local!("LocalStore::resume", |scene| {
        let (bytes, context) = (content(1, 3000), background());
        // Of one that is awaited.
        let object = scene.leave(&bytes, WINDOW).await;
        let name = scene.name();
        let resumed = scene.cut(scene.local.resume(&context, &name, object.generation(), WINDOW)).await;
        drop(resumed);
        assert!(scene.local.writers().awaited() == 1, "it is awaited, or written");
        scene.go_on(object.generation(), &bytes, &content(2, 500)).await;
    }),
    local!("LocalStore::resume", |scene| {
        let (bytes, context) = (content(1, 3000), background());
        // Of one that is interrupted, which perhaps only the catalog knows.
        let generation = {
            let object = scene.leave(&bytes, Duration::ZERO).await;
            assert_eq!(scene.ended(&object).await, State::Interrupted);
            object.generation()
        };
        if scene.number % 2 == 0 {
            scene.settle().await;
        }
        let name = scene.name();
        let resumed = scene.cut(scene.local.resume(&context, &name, generation, Duration::ZERO)).await;
        drop(resumed);
        scene.go_on(generation, &bytes, &content(2, 500)).await;
    }),
    local!("LocalStore::resume", |scene| {
        let (bytes, context) = (content(1, 3000), background());
        // Of one whose writer is at work, and lets go when it is told.
        let mut writer = scene.create_here().await;
        writer.append(&context, &bytes).await.unwrap();
        writer.set_window(if scene.number % 2 == 0 { WINDOW } else { Duration::ZERO });
        let (generation, replaced) = (writer.object().generation(), writer.replaced());
        let core = scene.local.core().clone();
        let working = core.clone().spawn(async move {
            replaced.await;
            core.sleep(Duration::from_micros(300)).await;
            drop(writer);
        });
        let name = scene.name();
        let resumed = scene.cut(scene.local.resume(&context, &name, generation, Duration::ZERO)).await;
        drop(resumed);
        scene.go_on(generation, &bytes, &content(2, 500)).await;
        working.await;
    }),
    local!("LocalStore::find", |scene| {
        scene.put(&content(1, 100)).await;
        scene.settle().await;
        let (name, context) = (scene.name(), background());
        scene.cut(scene.local.find(&context, &name)).await;
        assert!(scene.local.find(&context, &name).await.unwrap().is_some());
    }),
    local!("LocalStore::find_when_begun", |scene| {
        let (name, context) = (scene.name(), background());
        let beginning = async {
            scene.local.core().sleep(Duration::from_millis(2)).await;
            drop(scene.create_here().await);
        };
        let found = scene.cut_beside(scene.local.find_when_begun(&context, &name), beginning).await;
        if let Some(object) = found {
            assert_eq!(*object.unwrap().name(), name);
        }
        assert_eq!(scene.local.shared().namespace().awaited_and_pinned().0, 0);
    }),
    local!("LocalStore::find_upload", |scene| {
        let object = scene.leave(&content(1, 100), Duration::ZERO).await;
        assert_eq!(scene.ended(&object).await, State::Interrupted);
        scene.settle().await;
        let (generation, name, context) = (object.generation(), scene.name(), background());
        drop(object);
        scene.cut(scene.local.find_upload(&context, &name, Some(generation))).await;
        assert!(scene.local.find_upload(&context, &name, None).await.unwrap().is_some());
    }),
    local!("LocalStore::delete_generation", |scene| {
        let object = scene.leave(&content(1, 100), WINDOW).await;
        let (generation, name, context) = (object.generation(), scene.name(), background());
        scene.cut(scene.local.delete_generation(&context, &name, generation)).await;
        // It is undone, or goes on by itself.
        if let Err(error) = scene.local.delete_generation(&context, &name, generation).await {
            assert_eq!(error.kind(), Kind::NotFound);
        }
        assert!(scene.local.find(&context, &name).await.unwrap().is_none());
        assert_ne!(scene.ended(&object).await, State::Sealed);
    }),
    local!("LocalStore::delete", |scene| {
        scene.put(&content(1, 100)).await;
        if scene.number % 2 == 0 {
            scene.settle().await;
        }
        let (name, context) = (scene.name(), background());
        scene.cut(scene.local.delete(&context, &name)).await;
        if let Err(error) = scene.local.delete(&context, &name).await {
            assert_eq!(error.kind(), Kind::NotFound);
        }
        assert!(scene.local.find(&context, &name).await.unwrap().is_none());
    }),
    local!("LocalStore::list", |scene| {
        scene.put(&content(1, 100)).await;
        let (query, context) = (ListingQuery::default(), background());
        scene.cut(scene.local.list(&context, "b", &query)).await;
        let page = scene.local.list(&context, "b", &query).await.unwrap();
        assert!(page.entries.iter().any(|entry| entry.key == scene.number.to_string()));
    }),
    local!("LocalStore::buckets", |scene| {
        scene.put(&content(1, 100)).await;
        scene.cut(scene.local.buckets(&background())).await;
        assert_eq!(scene.local.buckets(&background()).await.unwrap(), ["b"]);
    }),
    local!("LocalStore::file", |scene| {
        // Of another segment than those that are open.
        let bytes = content(1, SEGMENT_BYTES as usize);
        let mut writer = scene.create_here().await;
        writer.append(&background(), &bytes).await.unwrap();
        let object = writer.seal(&background()).await.unwrap();
        let mut reader = scene.local.read(object, bytes.len() as u64 - 1);
        reader.locate().await.unwrap();
        let mut pieces = Vec::new();
        assert_eq!(reader.gather(1, 1, &mut pieces), 1);
        scene.cut(scene.local.file(&pieces[0].segment)).await;
        scene.local.file(&pieces[0].segment).await.unwrap();
        scene.local.delete(&background(), &scene.name()).await.unwrap();
    }),
    local!("LocalStore::stopping", |scene| {
        if scene.cut.when_woken() {
            // It will be woken only when all of this has ended.
            scene.is_last.set(true);
        } else {
            assert!(scene.cut(scene.local.stopping()).await.is_none());
        }
    }),
    local!("Writer::append", |scene| {
        let (first, second) = (content(1, 3000), content(2, 7 * BLOCK_BYTES / 2));
        let (mut writer, context) = (scene.create_here().await, background());
        writer.append(&context, &first).await.unwrap();
        scene.cut(writer.append(&context, &second)).await;
        scene.check_append(writer, &first, &second).await;
    }),
    local!("Writer::append", |scene| {
        // Its parts find no room: they wait in between.
        let mut first = Vec::new();
        let mut writer = scene.writer_without_room(&mut first).await;
        let (second, context) = (content(2, 5 * BLOCK_BYTES), background());
        scene.cut(writer.append(&context, &second)).await;
        scene.check_append(writer, &first.into(), &second).await;
    }),
    local!("Writer::write_frame", |scene| {
        let (first, second) = (content(1, 3000), content(2, 5 * BLOCK_BYTES / 2));
        let (mut writer, context) = (scene.create_here().await, background());
        writer.append(&context, &first).await.unwrap();
        scene.cut(writer.write_frame(&context, 7, &second)).await;
        scene.check_append(writer, &first, &second).await;
    }),
    local!("Writer::room", |scene| {
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        let context = background();
        scene.cut(writer.room(&context, BLOCK_BYTES)).await.into_iter().for_each(|room| room.unwrap());
        assert_eq!(writer.offset(), bytes.len() as u64);
        writer.seal(&context).await.unwrap();
        assert!(scene.read().await == (bytes, true));
    }),
    local!("Writer::acknowledged", |scene| {
        let (mut writer, context) = (scene.create_here().await, background());
        let fill = |space: &mut [u8]| {
            space.fill(7);
            Ok::<_, Error>(space.len())
        };
        let length = writer.append_from(1000, fill).unwrap().unwrap() as u64;
        scene.cut(writer.acknowledged(&context)).await;
        assert_eq!(writer.offset(), length);
        writer.acknowledged(&context).await.unwrap();
        assert_eq!(writer.object().committed(), length);
    }),
    local!("Writer::replaced", |scene| {
        let (mut writer, context, bytes) = (scene.create_here().await, background(), content(1, 10));
        writer.append(&context, &bytes).await.unwrap();
        let (generation, inner) = (writer.object().generation(), scene.clone());
        let going_on = scene.local.core().spawn(async move {
            inner.local.core().sleep(Duration::from_micros(100)).await;
            inner.go_on(generation, &content(1, 10), &content(2, 10)).await;
        });
        scene.cut(writer.replaced()).await;
        writer.replaced().await;
        drop(writer);
        going_on.await;
    }),
    local!("Writer::declare_length", |scene| {
        let (first, second) = (content(1, 3000), content(2, 1000));
        let mut writer = scene.create_here().await;
        writer.append(&background(), &first).await.unwrap();
        scene.cut(writer.declare_length(&background(), 4000)).await;
        writer.declare_length(&background(), 4000).await.unwrap();
        writer.append(&background(), &second).await.unwrap();
        writer.seal(&background()).await.unwrap();
        assert!(scene.read().await == ([first, second].concat(), true));
    }),
    local!("Writer::seal", |scene| {
        let (mut writer, context, bytes) = (scene.create_here().await, background(), content(1, 3000));
        writer.append(&context, &bytes).await.unwrap();
        let object = writer.object().clone();
        let sealed = scene.cut(writer.seal(&context)).await;
        let state = scene.ended(&object).await;
        assert!(sealed.is_none() || state == State::Sealed);
        assert!(scene.read().await == (bytes.to_vec(), state == State::Sealed));
        if state == State::Interrupted {
            scene.go_on(object.generation(), &bytes, &content(2, 500)).await;
        }
    }),
    local!("Writer::seal", |scene| {
        // Its record finds no room: it waits before it is in the log.
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        let (object, context) = (writer.object().clone(), background());
        scene.cut(writer.seal(&context)).await;
        let state = scene.ended(&object).await;
        assert!(scene.read().await == (bytes, state == State::Sealed));
    }),
    local!("Reader::locate", |scene| {
        let bytes = content(1, 3 * BLOCK_BYTES);
        let mut writer = scene.create_here().await;
        writer.append(&background(), &bytes).await.unwrap();
        let object = writer.seal(&background()).await.unwrap();
        // From here on only the catalog knows where its bytes are.
        scene.settle().await;
        let mut reader = scene.local.read(object, 0);
        scene.cut(reader.locate()).await.into_iter().for_each(|outcome| outcome.unwrap());
        assert!(read_here(&mut reader).await == bytes);
    }),
    local!("Reader::more", |scene| {
        let (mut writer, context) = (scene.create_here().await, background());
        let mut reader = scene.local.read(writer.object().clone(), 0);
        let core = scene.local.core().clone();
        let writing = core.clone().spawn(async move {
            for seed in 0..3 {
                core.sleep(Duration::from_millis(1)).await;
                writer.append(&background(), &content(seed, 1000)).await.unwrap();
            }
            writer.seal(&background()).await.unwrap();
        });
        scene.cut(reader.more(&context, 0)).await.into_iter().for_each(|more| {
            more.unwrap();
        });
        assert!(
            read_here(&mut reader).await == (0..3).flat_map(|seed| content(seed, 1000)).collect::<Vec<_>>()
        );
        writing.await;
    }),
    local!("Log::room", |scene| {
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        let context = background();
        scene.cut(scene.local.log().room(&context, BLOCK_BYTES / 2, true)).await;
        scene.local.log().room(&context, BLOCK_BYTES / 2, true).await.unwrap();
        drop(writer);
    }),
    local!("Log::room_for_copy", |scene| {
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        scene.cut(scene.local.log().room_for_copy(BLOCK_BYTES / 2)).await;
        scene.local.log().room_for_copy(BLOCK_BYTES / 2).await.unwrap();
        drop(writer);
    }),
    local!("Log::trim", |scene| {
        // Nothing is appended meanwhile; what is there stays.
        scene.put(&content(1, 3000)).await;
        scene.cut(scene.local.log().trim()).await;
        scene.local.log().trim().await;
        assert!(scene.read().await == (content(1, 3000).to_vec(), true));
    }),
    local!("Log::acknowledged", |scene| {
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        // The last block of those that are under way.
        let context = background();
        let sequence = scene.local.log().state().blocks_in_flight as u64;
        scene.cut(scene.local.log().acknowledged(&context, sequence)).await;
        drop(writer);
    }),
    local!("Log::flush", |scene| {
        let mut bytes = Vec::new();
        let writer = scene.writer_without_room(&mut bytes).await;
        let context = background();
        scene.cut(scene.local.log().flush(&context)).await.into_iter().for_each(|outcome| outcome.unwrap());
        scene.local.log().flush(&context).await.unwrap();
        assert_eq!(writer.object().committed(), bytes.len() as u64);
    }),
    local!("open_for_reading", |scene| {
        scene.put(&content(1, 100)).await;
        let path = Space::path(Path::new(FOLDER), 1);
        scene.cut(crate::log::open_for_reading(scene.local.core(), &path)).await;
        crate::log::open_for_reading(scene.local.core(), &path).await.unwrap();
    }),
];

/// What is dropped by whoever calls from anywhere.
const HANDLE_CASES: &[HandleCase] = &[
    handle!("Store::create", |scene| {
        let (store, name, context) = (&scene.store, scene.name(), background());
        drop(
            scene.cut(store.create(&context, name.clone(), Metadata::default(), scene.number % 2 == 0)).await,
        );
        // It is empty and interrupted, or was not begun. What is behind it in the queue comes after it.
        match store.open(&context, &name, 0).await {
            Ok(reader) => assert_eq!(scene.ended(reader.object()).await, State::Interrupted),
            Err(error) => assert_eq!(error.kind(), Kind::NotFound),
        }
        scene.create().await.seal(&context).await.unwrap();
        assert!(scene.read().await == (Vec::new(), true));
    }),
    handle!("Store::resume", |scene| {
        let (context, bytes, name) = (background(), content(1, 3000), scene.name());
        let mut writer = scene.create().await;
        writer.append(&context, bytes.clone()).await.unwrap();
        let object = writer.object().clone();
        // Its writer is at work, or gone.
        let held = (scene.number % 2 == 0).then_some(writer);
        let resumed = scene.cut(scene.store.resume(&context, &name, object.generation())).await;
        drop((held, resumed));
        let mut writer = scene.store.resume(&context, &name, object.generation()).await.unwrap();
        assert_eq!(writer.offset(&context).await.unwrap(), bytes.len() as u64);
        writer.append(&context, content(2, 500)).await.unwrap();
        writer.seal(&context).await.unwrap();
        assert!(scene.read().await == ([&bytes[..], &content(2, 500)].concat(), true));
    }),
    handle!("Store::resume", |scene| {
        // Left alone after the drop it is not live for ever: nobody writes it any more.
        let (context, name) = (background(), scene.name());
        let mut writer = scene.create().await;
        writer.append(&context, content(1, 300)).await.unwrap();
        let object = writer.object().clone();
        let held = (scene.number % 2 == 0).then_some(writer);
        drop(scene.cut(scene.store.resume(&context, &name, object.generation())).await);
        drop(held);
        assert_eq!(scene.ended(&object).await, State::Interrupted);
        assert!(scene.read().await == (content(1, 300).to_vec(), false));
    }),
    handle!("Store::open", |scene| {
        scene.put(&content(1, 100)).await;
        let name = scene.name();
        drop(scene.cut(scene.store.open(&background(), &name, 0)).await);
        assert!(scene.read().await == (content(1, 100).to_vec(), true));
    }),
    handle!("Store::open_when_begun", |scene| {
        let (store, name, context) = (&scene.store, scene.name(), background());
        let beginning = async {
            // When it waits already, it has been to a core and back.
            scene.list().await;
            // It goes on by itself.
            begin(store.create(&context, name.clone(), Metadata::default(), false)).await;
        };
        let reader = scene.cut_beside(store.open_when_begun(&context, &name, 0), beginning).await;
        if let Some(reader) = reader {
            assert!(read_rest(&mut reader.unwrap()).await == (Vec::new(), false));
        }
    }),
    handle!("Store::list", |scene| {
        scene.put(&content(1, 100)).await;
        scene.cut(scene.store.list(&background(), "b", &ListingQuery::default())).await;
        assert!(scene.list().await.contains(&scene.number.to_string()));
    }),
    handle!("Store::delete", |scene| {
        scene.put(&content(1, 100)).await;
        let (name, context) = (scene.name(), background());
        scene.cut(scene.store.delete(&context, &name)).await;
        if let Err(error) = scene.store.delete(&context, &name).await {
            assert!(scene.cut.polls() && error.kind() == Kind::NotFound, "{error}");
        }
        assert!(!scene.list().await.contains(&scene.number.to_string()));
    }),
    handle!("StoreWriter::append", |scene| {
        let (mut writer, context, second) = (scene.create().await, background(), content(2, 3 * BLOCK_BYTES));
        writer.append(&context, content(1, 3000)).await.unwrap();
        scene.cut(writer.append(&context, second.clone())).await;
        let mut expected = content(1, 3000).to_vec();
        // Once it was polled it goes on by itself.
        if scene.cut.polls() {
            expected.extend_from_slice(&second);
        }
        assert_eq!(writer.offset(&context).await.unwrap(), expected.len() as u64);
        writer.append(&context, content(3, 500)).await.unwrap();
        expected.extend_from_slice(&content(3, 500));
        assert_eq!(writer.object().committed(), expected.len() as u64);
        writer.seal(&context).await.unwrap();
        assert!(scene.read().await == (expected, true));
    }),
    handle!("StoreWriter::append", |scene| {
        // The writer is dropped too: what was handed over is in all the same.
        let (mut writer, context, second) = (scene.create().await, background(), content(2, 3 * BLOCK_BYTES));
        let object = writer.object().clone();
        scene.cut(writer.append(&context, second.clone())).await;
        drop(writer);
        assert_eq!(scene.ended(&object).await, State::Interrupted);
        let expected = if scene.cut.polls() { second.to_vec() } else { Vec::new() };
        assert!(scene.read().await == (expected, false));
    }),
    handle!("StoreWriter::write_frame", |scene| {
        let (mut writer, context, second) = (scene.create().await, background(), content(2, 3 * BLOCK_BYTES));
        scene.cut(writer.write_frame(&context, 7, second.clone())).await;
        let expected = if scene.cut.polls() { second.to_vec() } else { Vec::new() };
        assert_eq!(writer.offset(&context).await.unwrap(), expected.len() as u64);
        writer.seal(&context).await.unwrap();
        assert!(scene.read().await == (expected, true));
    }),
    handle!("StoreWriter::offset", |scene| {
        let (mut writer, context) = (scene.create().await, background());
        writer.append(&context, content(1, 300)).await.unwrap();
        scene.cut(writer.offset(&context)).await;
        assert_eq!(writer.offset(&context).await.unwrap(), 300);
    }),
    handle!("StoreWriter::seal", |scene| {
        let (mut writer, context) = (scene.create().await, background());
        begin(writer.append(&context, content(1, 300))).await;
        let object = writer.object().clone();
        scene.cut(writer.seal(&context)).await;
        let expected = if scene.cut.polls() { State::Sealed } else { State::Interrupted };
        assert_eq!(scene.ended(&object).await, expected);
        assert!(scene.read().await == (content(1, 300).to_vec(), expected == State::Sealed));
    }),
    handle!("StoreReader::next", |scene| {
        // A call is dropped, and one before it too: the bytes are there already, or come only now.
        let (mut writer, context) = (scene.create().await, background());
        let mut reader = scene.store.open(&context, &scene.name(), 0).await.unwrap();
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for seed in 0..4 {
            let bytes = content(seed, 4000);
            expected.extend_from_slice(&bytes);
            match seed % 2 {
                0 => writer.append(&context, bytes).await.unwrap(),
                _ => drop(begin(writer.append(&context, bytes)).await),
            }
            if scene.number % 3 == 0 {
                begin(reader.next(&context, 100)).await.into_iter().for_each(|some| {
                    found.extend_from_slice(&some.unwrap().unwrap());
                });
            }
            let some = scene.cut(reader.next(&context, 1500)).await;
            some.into_iter().for_each(|some| found.extend_from_slice(&some.unwrap().unwrap()));
        }
        let sealing = async { writer.seal(&context).await.unwrap() };
        sealing.await;
        let (rest, is_clean) = read_rest(&mut reader).await;
        found.extend(rest);
        assert!(is_clean && found == expected, "{} bytes where {} were written", found.len(), expected.len());
    }),
];

/// What the cases of this room drop.
pub(crate) fn dropped() -> impl Iterator<Item = &'static str> {
    let running = LOCAL_CASES.iter().map(|case| case.of).chain(HANDLE_CASES.iter().map(|case| case.of));
    running.chain(start::dropped())
}

fn new_space() -> Arc<Space> {
    Space::new(SpaceSettings {
        folder: FOLDER.into(),
        store: 77,
        segment_bytes: SEGMENT_BYTES,
        direct: true,
        spare_segments: 1,
        reserve_bytes: 0,
    })
}

/// A store on the cores of a simulated world, and what is left to look at when it has ended.
struct Stage {
    world: World,
    cores: Cores,
    shared: Arc<Shared>,
    locals: Rc<RefCell<Vec<Weak<LocalStore>>>>,
    arenas: Vec<Arena>,
}

impl Stage {
    /// A store whose core 0 runs `main`, and ends when that is done.
    fn new<F>(seed: u64, main: impl FnOnce(Rc<LocalStore>, Store) -> F + 'static) -> Stage
    where
        F: Future<Output = ()> + 'static,
    {
        Stage::over(seed, Database::open_on(InMemoryBackend::new(), 77).unwrap(), main)
    }

    /// The same with this catalog, which is empty.
    fn over<F>(
        seed: u64,
        database: Database,
        main: impl FnOnce(Rc<LocalStore>, Store) -> F + 'static,
    ) -> Stage
    where
        F: Future<Output = ()> + 'static,
    {
        let world = World::new(WorldSettings { seed, ..WorldSettings::default() });
        world.make_folder(Path::new(FOLDER));
        let mut cores = Cores::new(&world, CORES);
        let space = new_space();
        let Assembly { shared, orders, catalog } = assemble(Beginning {
            cores: CORES,
            database,
            reopen: Box::new(|| Err(Error::new(Kind::Device, "memory does not fail"))),
            space: space.clone(),
            found: Recovered::default(),
            may_splice: false,
            started: world.now(),
        });
        let locals = Rc::<RefCell<Vec<_>>>::default();
        let arenas: Vec<Arena> = (0..CORES).map(|_| Arena::new(PIECES, PIECE_LENGTH).unwrap()).collect();
        let (mut main, at_work) = (Some(main), Rc::new(Cell::new(CORES)));
        for (index, orders) in orders.into_iter().enumerate() {
            let (space, arena, locals) = (space.clone(), arenas[index].clone(), locals.clone());
            let (main, shared, at_work) = (main.take(), shared.clone(), at_work.clone());
            cores.begin(index, |core| async move {
                let settings = CoreSettings {
                    block_bytes: BLOCK_BYTES,
                    durable: true,
                    retention: Retention::default(),
                    tus_expiry: Duration::from_secs(3600),
                };
                let (begins, ends) = (Store::new(shared.clone()), shared.clone());
                let service = |local: Rc<LocalStore>| {
                    locals.borrow_mut().push(Rc::downgrade(&local));
                    async move {
                        if let Some(main) = main {
                            main(local, begins).await;
                            ends.stop();
                        }
                    }
                };
                let is_at_work = AtomicBool::new(false);
                let outcome = work(&core, &space, arena, settings, orders, service, || {}, &is_at_work);
                outcome.await.unwrap();
                at_work.set(at_work.get() - 1);
                if at_work.get() == 0 {
                    shared.end_catalog();
                }
            });
        }
        let CatalogWork { books, questions, news, last_drops, dead } = catalog;
        let answering = books.clone();
        cores.begin_thread(|_| answering.answer(questions));
        cores.begin_thread(|pauses| async move {
            books.write(news, last_drops, dead, async |duration| pauses.pause(duration).await).await;
        });
        Stage { world, cores, shared, locals, arenas }
    }

    /// Runs it to its end, and looks at what is left.
    fn run(mut self, of: &str, seed: u64) {
        let pause = self.cores.run(4_000_000);
        assert_eq!(pause, Pause::Ended, "{of} with seed {seed}");
        drop(self.cores);
        drop(self.shared);
        for local in &*self.locals.borrow() {
            assert_eq!(local.strong_count(), 0, "{of} with seed {seed}: a task is left");
        }
        for arena in &self.arenas {
            assert_eq!(arena.free_pieces(), PIECES, "{of} with seed {seed}: memory is left");
        }
        assert_eq!(self.world.open_descriptors(), 0, "{of} with seed {seed}: descriptors are left");
    }
}

/// Waits until a core is as it was, and nothing of its memory is held.
async fn quiet(local: &Rc<LocalStore>, before: Option<Census>, what: &str) -> Census {
    let limit = local.core().now() + Duration::from_secs(60);
    loop {
        local.core().sleep(Duration::from_millis(1)).await;
        let census = local.census();
        let held = local.log().pieces_lent();
        // Where nothing was before, nothing is to be in flight.
        let is_quiet = match before {
            Some(before) => census == before && held == 0,
            None => census.blocks_in_flight == 0 && census.operations == 1 && held == 0,
        };
        if is_quiet {
            return census;
        }
        assert!(local.core().now() < limit, "{what}: {held} pieces held, {census:?}, before {before:?}");
    }
}

/// Goes through all cuts of a case; answers how many there are.
async fn go_through(
    of: &str,
    local: Rc<LocalStore>,
    store: Store,
    run: impl AsyncFn(Scene) -> bool,
) -> usize {
    let (mut cut, mut number) = (Cut::first(), 0);
    let before = quiet(&local, None, of).await;
    loop {
        let scene = Scene { store: store.clone(), cut, number, is_last: Cell::new(false) };
        let is_last = run(scene).await;
        number += 1;
        // Of what may be continued later nothing goes on.
        quiet(&local, Some(before), &format!("{of} at {cut:?}")).await;
        if is_last {
            return number;
        }
        assert!(number < 300, "{of} is never done");
        cut = cut.next();
    }
}

/// Whether the future came to its end.
type Watched = Pin<Box<dyn Future<Output = bool>>>;

fn go_through_worlds<C>(
    cases: &'static [C],
    of: fn(&C) -> &'static str,
    run: fn(&C, Scene, Rc<LocalStore>) -> Watched,
) {
    let mut cuts = 0;
    for case in cases {
        for seed in 0..SEEDS {
            let count = Rc::new(Cell::new(0));
            let counted = count.clone();
            let stage = Stage::new(seed, move |local, store| async move {
                let each = async |scene| run(case, scene, local.clone()).await;
                counted.set(go_through(of(case), local.clone(), store, each).await);
            });
            stage.run(of(case), seed);
            cuts += count.get();
        }
    }
    println!("{} cases, {SEEDS} orders each, {cuts} cuts", cases.len());
}

#[test]
fn nothing_is_left_of_what_is_dropped_on_a_core_in_any_order() {
    go_through_worlds(
        LOCAL_CASES,
        |case| case.of,
        |case, scene, local| {
            let scene = Rc::new(LocalScene { scene, local });
            let running = (case.run)(scene.clone());
            Box::pin(async move {
                running.await;
                scene.is_last.get()
            })
        },
    );
}

#[test]
fn nothing_is_left_of_what_is_dropped_by_who_calls_from_anywhere_in_any_order() {
    go_through_worlds(
        HANDLE_CASES,
        |case| case.of,
        |case, scene, _| {
            let scene = Rc::new(scene);
            let running = (case.run)(scene.clone());
            Box::pin(async move {
                running.await;
                scene.is_last.get()
            })
        },
    );
}

#[test]
fn nothing_is_left_of_what_is_dropped_by_another_thread_over_a_real_engine() {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::config::Config {
        data: folder.path().join("data"),
        cores: CORES,
        arena_bytes: 4 << 20,
        block_bytes: 64 << 10,
        segment_bytes: Some(2 << 20),
        ..crate::config::Config::default()
    };
    let engine = super::Engine::start(&config).unwrap();
    let store = engine.store();
    // What each core says of itself.
    let census = || -> Vec<(Census, usize)> {
        let of = |core| {
            let (answer, mut answers) = channel();
            store.shared().call(core, move |local| answer.send((local.census(), local.files_open())));
            pollster::block_on(answers.receive()).unwrap()
        };
        (0..CORES).map(of).collect()
    };
    let open = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(config.data.join("segments"))).count()
    };
    // What runs on each core when nobody wants anything, with a timer at most; and each waits for its bell.
    let tasks: Vec<usize> = census().iter().map(|(census, _)| census.tasks).collect();
    let is_quiet = |census: &[(Census, usize)]| {
        let of_each = census.iter().zip(&tasks).all(|((census, _), &own)| {
            let rest = Census { operations: 0, timers: 0, tasks: 0, objects_live: 0, ..*census };
            let is_own = census.operations == 1 && census.tasks == own && census.timers <= own;
            is_own && rest == Census::default()
        });
        of_each && census.iter().map(|(census, _)| census.objects_live).sum::<i64>() == 0
    };
    let quiet = |what: &str| {
        let limit = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (census, open) = (census(), open());
            if is_quiet(&census) && open == census.iter().map(|(_, files)| files).sum::<usize>() {
                return;
            }
            assert!(std::time::Instant::now() < limit, "{what}: {census:?}, {open} files open");
            std::thread::yield_now();
        }
    };
    let mut cuts = 0;
    for case in HANDLE_CASES {
        // Each time threads meet otherwise.
        for _ in 0..12 {
            let mut cut = Cut::first().among_threads();
            loop {
                let scene =
                    Rc::new(Scene { store: store.clone(), cut, number: cuts, is_last: Cell::new(false) });
                pollster::block_on((case.run)(scene.clone()));
                cuts += 1;
                if scene.is_last.get() {
                    break;
                }
                cut = cut.next();
            }
        }
        quiet(case.of);
    }
    println!("{} cases, {cuts} cuts", HANDLE_CASES.len());
    engine.stop().unwrap();
}
