//! Every future of a core, its files, sockets and channels is dropped at every await point.
//!
//! Each case runs under the real kernel, and those that have no sockets and pipes in many simulated worlds, where what
//! was begun ends in any order. When all is quiet again, nothing is left of what was dropped: no operation in the
//! ring, no timer, no descriptor, no piece of the arena; and what the next call finds is what the case says.

use std::cell::Cell;
use std::future::{Future, pending};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::core::tests::run_alone;
use super::{Core, Either, Listener, Pipe, Stream, TaskGroup, channel, race, yield_now};
use crate::context::Context;
use crate::drops::{Cut, begin};
use crate::error::{Error, Kind};
use crate::ring::simulated::{Faults, World, WorldSettings};
use crate::ring::{Allocation, Arena, Descriptor, OpenMode, Operation, Region};
use crate::simulation::{Cores, Pause};

/// In how many worlds a case is run.
const SEEDS: u64 = 60;
/// Where the files of a simulated world are.
const FOLDER: &str = "/data";
const PIECES: usize = 8;
const PIECE_LENGTH: usize = 64 << 10;

type Running = Pin<Box<dyn Future<Output = ()>>>;

struct Case {
    /// What is dropped.
    of: &'static str,
    /// Needs what only the real kernel has.
    is_real_only: bool,
    run: fn(Rc<Scene>) -> Running,
}

/// Where a case happens: once for each cut.
struct Scene {
    core: Rc<Core>,
    folder: PathBuf,
    arena: Arena,
    cut: Cut,
    /// Different for each cut.
    number: usize,
    /// The future was done before the cut, or has no further cut.
    is_last: Cell<bool>,
}

impl Scene {
    /// Drops a future where this scene does that.
    async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let output = self.cut.make(future).await;
        self.is_last.set(output.is_some());
        output
    }

    /// What waits for something that does not come ends when it is dropped.
    async fn give_up<F: Future>(&self, future: F) {
        let before = self.core.ring().in_flight();
        assert!(begin(future).await.is_none(), "it has come");
        let limit = self.core.precise_now() + Duration::from_secs(20);
        while self.core.ring().in_flight() > before {
            assert!(self.core.precise_now() < limit, "an operation goes on though nobody waits for it");
            self.core.sleep(Duration::from_micros(100)).await;
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.number.to_string())
    }

    /// A file of this scene's own, with this content.
    async fn file(&self, content: &[u8]) -> Arc<Descriptor> {
        let file = self.core.open(&self.path(), OpenMode::WriteBuffered).await.unwrap();
        if !content.is_empty() {
            self.core.write(&file, None, 0, self.region(content), true).await.unwrap();
        }
        file
    }

    fn region(&self, content: &[u8]) -> Region {
        let mut fill = self.arena.take().unwrap();
        fill.space()[..content.len()].copy_from_slice(content);
        fill.commit(content.len())
    }

    async fn content(&self, file: &Arc<Descriptor>, length: usize) -> Vec<u8> {
        let (count, mut bytes) = self.core.read(file, 0, vec![0; length], 0).await;
        bytes.truncate(count.unwrap());
        bytes
    }

    /// What is still under way: operations, timers, and pieces of the arena.
    fn census(&self) -> [usize; 3] {
        [self.core.ring().in_flight(), self.core.timers_waiting(), PIECES - self.arena.free_pieces()]
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// A connection with both ends here. The peer's blocks.
async fn pair(core: &Rc<Core>) -> (Stream, TcpStream) {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let peer = TcpStream::connect(listener.address()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let accepted = listener.accept(core).await.unwrap();
    (Stream::new(core.clone(), Arc::new(accepted)), peer)
}

/// Receives what is there.
fn receive(stream: &Stream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Some(count) = stream.try_receive(&mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap() {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&bytes[..count]);
    }
    all
}

macro_rules! case {
    ($of:literal, |$scene:ident| $run:expr) => {
        Case { of: $of, is_real_only: false, run: |$scene| Box::pin(async move { $run }) }
    };
    (real $of:literal, |$scene:ident| $run:expr) => {
        Case { of: $of, is_real_only: true, run: |$scene| Box::pin(async move { $run }) }
    };
}

/// What is dropped. A new future of this room gets its line here.
const CASES: &[Case] = &[
    case!("Core::open", |scene| {
        let path = scene.path();
        scene.cut(scene.core.open(&path, OpenMode::WriteBuffered)).await;
        scene.core.open(&path, OpenMode::WriteBuffered).await.unwrap();
    }),
    case!("Core::allocate", |scene| {
        let file = scene.file(b"").await;
        scene.cut(scene.core.allocate(&file, 0, 64 << 10, Allocation::Reserve)).await;
        scene.core.allocate(&file, 0, 64 << 10, Allocation::Reserve).await.unwrap();
        assert_eq!(scene.core.length(&file).unwrap(), 64 << 10);
    }),
    case!("Core::punch", |scene| {
        let file = scene.file(&bytes(16 << 10)).await;
        scene.cut(scene.core.punch(&file, 4096, 4096)).await;
        scene.core.punch(&file, 4096, 4096).await.unwrap();
        let expected = [&bytes(16 << 10)[..4096], &[0; 4096], &bytes(16 << 10)[8192..]].concat();
        assert!(scene.content(&file, 16 << 10).await == expected);
    }),
    case!("Core::sync", |scene| {
        let file = scene.file(&bytes(100)).await;
        scene.cut(scene.core.sync(&file)).await;
        scene.core.sync(&file).await.unwrap();
    }),
    case!("Core::read", |scene| {
        let file = scene.file(&bytes(20_000)).await;
        let reading = scene.core.read(&file, 0, vec![0; 20_000], 0);
        if let Some((count, read)) = scene.cut(reading).await {
            assert!(count == Ok(20_000) && read == bytes(20_000));
        }
        // The kernel may still write to the buffer of the first one: it is not this one's.
        assert!(scene.content(&file, 20_000).await == bytes(20_000));
    }),
    case!("Core::write", |scene| {
        let file = scene.file(&bytes(20_000)).await;
        let region = scene.region(&[7; 20_000]);
        scene.cut(scene.core.write(&file, None, 0, region, true)).await;
        // The piece is not free before the kernel is done with it: what others fill in does not get into the file.
        let others: Vec<Region> = std::iter::from_fn(|| {
            let mut fill = scene.arena.take()?;
            fill.space().fill(9);
            Some(fill.commit(PIECE_LENGTH))
        })
        .collect();
        while scene.core.ring().in_flight() > 1 {
            scene.core.sleep(Duration::from_micros(100)).await;
        }
        let content = scene.content(&file, 20_000).await;
        assert!(content.iter().zip(bytes(20_000)).all(|(&found, former)| found == 7 || found == former));
        drop(others);
    }),
    case!("Core::spawn", |scene| {
        let core = scene.core.clone();
        let held = Rc::new(());
        let inner = held.clone();
        let task = scene.core.spawn(async move {
            core.sleep(Duration::from_millis(1)).await;
            drop(inner);
            7
        });
        assert!(scene.cut(task).await.is_none_or(|output| output == 7));
        // It is cancelled by its next turn.
        yield_now().await;
        yield_now().await;
        assert_eq!(Rc::strong_count(&held), 1);
    }),
    case!("Core::sleep", |scene| {
        scene.cut(scene.core.sleep(Duration::from_millis(1))).await;
    }),
    case!("Core::sleep_until", |scene| {
        scene.cut(scene.core.sleep_until(scene.core.now() + Duration::from_millis(1))).await;
    }),
    case!("Core::timeout", |scene| {
        let file = scene.file(&bytes(5000)).await;
        let limit = Duration::from_micros(if scene.number % 2 == 0 { 200 } else { 1_000_000 });
        scene.cut(scene.core.timeout(limit, scene.core.read(&file, 0, vec![0; 5000], 0))).await;
    }),
    case!("Core::under", |scene| {
        let (context, canceller) = Context::background().with_cancel();
        let context = context.with_deadline(scene.core.now() + Duration::from_secs(3600));
        let (core, waits) = (scene.core.clone(), scene.number % 2 == 0);
        let cancelling = scene.core.spawn(async move {
            core.sleep(Duration::from_millis(1)).await;
            canceller.cancel(Error::new(Kind::Closed, "the test says so"));
        });
        let what = async {
            if waits {
                pending::<()>().await;
            }
            scene.core.sleep(Duration::from_micros(100)).await;
        };
        let outcome = scene.cut(scene.core.under(&context, what)).await;
        assert!(outcome.is_none_or(|outcome| outcome.is_err() == waits));
        cancelling.await;
    }),
    case!("Core::ended", |scene| {
        let context = Context::background().with_deadline(scene.core.now() + Duration::from_millis(1));
        let ended = scene.cut(scene.core.ended(&context)).await;
        assert!(ended.is_none_or(|error| error.kind() == Kind::DeadlineExceeded));
    }),
    case!("Context::cancelled", |scene| {
        let (context, canceller) = Context::background().with_cancel();
        let core = scene.core.clone();
        let cancelling = scene.core.spawn(async move {
            core.sleep(Duration::from_millis(1)).await;
            drop(canceller);
        });
        scene.cut(context.cancelled()).await;
        cancelling.await;
        assert_eq!(context.cancelled().await.kind(), Kind::Cancelled);
    }),
    case!("Receiver::receive", |scene| {
        let (sender, mut receiver) = channel();
        let core = scene.core.clone();
        let sending = scene.core.spawn(async move {
            for number in 0..3 {
                sender.send(number);
                core.sleep(Duration::from_micros(200)).await;
            }
            sender
        });
        let mut received = Vec::new();
        received.extend(scene.cut(receiver.receive()).await.flatten());
        drop(sending.await);
        while let Some(number) = receiver.receive().await {
            received.push(number);
        }
        assert_eq!(received, [0, 1, 2], "no message is lost");
    }),
    case!("TaskGroup::cancel", |scene| {
        let group = TaskGroup::default();
        let held = Rc::new(());
        for _ in 0..3 {
            let (core, held) = (scene.core.clone(), held.clone());
            group.spawn(&scene.core, async move {
                core.sleep(Duration::from_secs(3600)).await;
                drop(held);
            });
        }
        yield_now().await;
        scene.cut(group.cancel()).await;
        if scene.cut.polls() {
            // All of them are cancelled from the first moment on.
            yield_now().await;
            yield_now().await;
            assert_eq!(Rc::strong_count(&held), 1);
        }
    }),
    case!("race", |scene| {
        let (first, second) = (Duration::from_micros(300), Duration::from_micros(200));
        let outcome = scene.cut(race(scene.core.sleep(first), scene.core.sleep(second))).await;
        assert!(outcome.is_none_or(|outcome| matches!(outcome, Either::First(()) | Either::Second(()))));
    }),
    case!("yield_now", |scene| {
        scene.cut(yield_now()).await;
    }),
    case!("Ring::start", |scene| {
        // As many as make the queue overflow: some of them are dropped before the kernel has seen them.
        let file = scene.file(&bytes(3000)).await;
        let read = || {
            let (file, buffer) = (file.clone(), vec![0; 3000]);
            scene.core.ring().start(Operation::Read { file, position: 0, buffer, start: 0 })
        };
        let others: Vec<_> = (0..20).map(|_| read()).collect();
        if let Some((result, operation)) = scene.cut(read()).await {
            let Operation::Read { buffer, .. } = operation else { unreachable!("another operation") };
            let count = result.unwrap() as usize;
            assert!(count > 0 && buffer[..count] == bytes(3000)[..count]);
        }
        drop(others);
    }),
    case!(real "Pipe::fill", |scene| {
        let file = scene.file(&bytes(10_000)).await;
        let mut pipe = Pipe::new(64 << 10).unwrap();
        let count = scene.cut(pipe.fill(&scene.core, &file, 0, 10_000)).await;
        assert!(count.is_none_or(|count| count == Ok(10_000)));
    }),
    case!(real "Listener::accept", |scene| {
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        scene.give_up(listener.accept(&scene.core)).await;
        // It waits first, or the client is there first.
        let connect = || TcpStream::connect(listener.address()).unwrap();
        let early = (scene.number % 2 == 0).then(connect);
        let mut late = None;
        let accepted = {
            let coming = async {
                yield_now().await;
                late = early.is_none().then(connect);
                pending::<()>().await;
            };
            match race(scene.cut(listener.accept(&scene.core)), coming).await {
                Either::First(accepted) => accepted,
                Either::Second(()) => unreachable!("it never ends"),
            }
        };
        let mut first = early.or(late).unwrap_or_else(connect);
        let accepted = accepted.map(|accepted| Stream::new(scene.core.clone(), Arc::new(accepted.unwrap())));
        let address = first.local_addr().unwrap();
        if accepted.as_ref().and_then(Stream::peer) == Some(address) {
            return;
        }
        // The next one to accept gets it; or it was being taken when the wait was dropped, and is closed: then the
        // client knows, and the next one gets the next.
        let second = connect();
        let next = Stream::new(scene.core.clone(), Arc::new(listener.accept(&scene.core).await.unwrap()));
        if next.peer() == Some(address) {
            return;
        }
        assert_eq!(next.peer(), Some(second.local_addr().unwrap()), "a connection is lost");
        first.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        match first.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }),
    case!(real "Stream::readable", |scene| {
        let (stream, mut peer) = pair(&scene.core).await;
        scene.give_up(stream.readable()).await;
        let mut sender = peer.try_clone().unwrap();
        let coming = async {
            // It waits first, or the bytes are there first.
            if scene.number % 2 == 0 {
                yield_now().await;
            }
            sender.write_all(b"first").unwrap();
            pending::<()>().await;
        };
        match race(coming, scene.cut(stream.readable())).await {
            Either::First(()) => unreachable!("it never ends"),
            Either::Second(outcome) => outcome.into_iter().for_each(|outcome| outcome.unwrap()),
        }
        // Where nothing had come before the wait was dropped, this is the first.
        peer.write_all(b" second").unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"second") {
            stream.readable().await.unwrap();
            received.extend(receive(&stream));
        }
        assert!(received == b"first second" || (scene.number % 2 == 0 && received == b" second"));
    }),
    case!(real "Stream::writable", |scene| {
        let (stream, mut peer) = pair(&scene.core).await;
        let (all, mut sent) = (bytes(4096), 0);
        while let Some(count) = stream.try_send(&[std::io::IoSlice::new(&all[sent % 4096..])], false).unwrap() {
            sent += count;
        }
        scene.give_up(stream.writable()).await;
        let mut received = vec![0; sent];
        let draining = async {
            yield_now().await;
            peer.read_exact(&mut received).unwrap();
            assert!(received.iter().enumerate().all(|(at, &byte)| byte == all[at % 4096]));
            pending::<()>().await;
        };
        match race(scene.cut(stream.writable()), draining).await {
            Either::First(outcome) => outcome.into_iter().for_each(|outcome| outcome.unwrap()),
            Either::Second(()) => unreachable!("it never ends"),
        }
        stream.set_reset_on_close(true);
    }),
    case!(real "Stream::peer_finished", |scene| {
        let (stream, mut peer) = pair(&scene.core).await;
        scene.give_up(stream.peer_finished()).await;
        peer.write_all(b"last").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        scene.cut(stream.peer_finished()).await.into_iter().for_each(|outcome| outcome.unwrap());
        stream.peer_finished().await.unwrap();
        assert_eq!(receive(&stream), b"last");
    }),
];

/// What the cases of this room drop.
pub(crate) fn dropped() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.of)
}

/// Goes through all cuts of a case; answers how many there are.
async fn go_through(core: &Rc<Core>, folder: &Path, case: &Case) -> usize {
    let (mut cut, mut cuts) = (Cut::first(), 0);
    // The core has begun to listen to its bell.
    core.sleep(Duration::from_micros(1)).await;
    loop {
        let arena = Arena::new(PIECES, PIECE_LENGTH).unwrap();
        let scene = Rc::new(Scene {
            core: core.clone(),
            folder: folder.to_owned(),
            arena,
            cut,
            number: cuts,
            is_last: Cell::new(false),
        });
        (case.run)(scene.clone()).await;
        // All that is left is the wait for the core's bell.
        let limit = core.precise_now() + Duration::from_secs(20);
        while scene.census() != [1, 0, 0] {
            assert!(
                core.precise_now() < limit,
                "{} at {cut:?} leaves operations, timers, pieces: {:?}",
                case.of,
                scene.census()
            );
            core.sleep(Duration::from_micros(200)).await;
        }
        cuts += 1;
        if scene.is_last.get() {
            return cuts;
        }
        assert!(cuts < 100, "{} is never done", case.of);
        cut = cut.next();
    }
}

#[test]
fn nothing_is_left_of_what_is_dropped_under_the_real_kernel() {
    let mut cuts = 0;
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        cuts += run_alone(|core| {
            let path = folder.path().to_owned();
            async move { go_through(&core, &path, case).await }
        });
        // Of this folder's files none is open any more.
        let open: Vec<PathBuf> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.starts_with(folder.path()))
            .collect();
        assert!(open.is_empty(), "{}: {open:?}", case.of);
    }
    println!("{} futures, {cuts} cuts", CASES.len());
}

#[test]
fn nothing_is_left_of_what_is_dropped_whatever_the_order_in_which_the_kernel_answers() {
    let (mut cuts, mut cases) = (0, 0);
    for case in CASES.iter().filter(|case| !case.is_real_only) {
        cases += 1;
        for seed in 0..SEEDS {
            let world = World::new(WorldSettings { seed, ..WorldSettings::default() });
            world.make_folder(Path::new(FOLDER));
            world.set_faults(Faults { short_read: 0.1, slow: 0.05, ..Faults::none() });
            let mut cores = Cores::new(&world, 1);
            let count = Rc::new(Cell::new(0));
            let (counted, files) = (count.clone(), world.clone());
            cores.begin(0, move |core| async move {
                counted.set(go_through(&core, Path::new(FOLDER), case).await);
                assert_eq!(files.open_descriptors(), 0, "{}", case.of);
            });
            assert_eq!(cores.run(1_000_000), Pause::Ended, "{} with seed {seed}", case.of);
            cuts += count.get();
        }
    }
    println!("{cases} futures, {SEEDS} orders each, {cuts} cuts");
}
