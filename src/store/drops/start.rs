//! What reads a store before it runs, or while it does not, is dropped at every await point.
//!
//! A store is killed in the midst of its work, in many worlds; then each of these is dropped on what is left. When all
//! is quiet again, nothing is left of it on the core: no operation, no timer, no descriptor. What a start finds
//! thereafter, on the same core or after a kill, is what it would have found at once; and all of it is whole.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::StorageBackend;

use super::{FOLDER, Stage, background, content, new_space};
use crate::config::Config;
use crate::drops::{Cut, begin};
use crate::log::{Continuation, Known, Space, inspect, read_record, records_in, store_in, survey};
use crate::ring::simulated::{Faults, World};
use crate::runtime::{Core, channel};
use crate::simulation::{Cores, Pause};
use crate::store::catalog::check::Lookup;
use crate::store::catalog::{Database, Write};
use crate::store::name::Name;
use crate::store::object::{Metadata, State};
use crate::store::offline::{Offline, Run, run};
use crate::store::recover::{Recovered, learn, recover};
use crate::store::verify::{verify, verify_open};
use crate::store::{Engine, Store, StoreWriter};

/// How many stores are gone through, and of how many: of those some have blocks that do not count.
const STORES: usize = 2;
const SEEDS: u64 = 60;
const STORE: u64 = 77;

type Running = Pin<Box<dyn Future<Output = ()>>>;

struct Case {
    /// What is dropped.
    of: &'static str,
    run: fn(Rc<Scene>) -> Running,
}

/// Where a case happens: once for each cut.
struct Scene {
    core: Rc<Core>,
    space: Arc<Space>,
    database: Database,
    /// The catalog is empty.
    is_rebuilt: bool,
    cut: Cut,
    /// The future was done before the cut.
    is_last: Cell<bool>,
}

impl Scene {
    /// Drops a future where this scene does that.
    async fn cut<F: Future>(&self, future: F) -> Option<F::Output> {
        let output = self.cut.make(future).await;
        self.is_last.set(output.is_some());
        output
    }

    fn known(&self) -> Known {
        let coverage = self.database.coverage().unwrap();
        Known { segments: coverage.segments, logs: coverage.logs }
    }
}

macro_rules! case {
    ($of:literal, |$scene:ident| $run:expr) => {
        Case { of: $of, run: |$scene| Box::pin(async move { $run }) }
    };
}

/// What is dropped. A new future of these rooms gets its line here.
const CASES: &[Case] = &[
    case!("survey", |scene| {
        let outcome = scene.cut(survey(&scene.core, &scene.space, &scene.known())).await;
        outcome.into_iter().for_each(|survey| assert!(survey.unwrap().damage.is_empty()));
    }),
    case!("Survey::read", |scene| {
        let survey = survey(&scene.core, &scene.space, &scene.known()).await.unwrap();
        let reading = async {
            for segment in &survey.segments {
                survey.read(&scene.core, &scene.space, segment).await.unwrap();
            }
        };
        scene.cut(reading).await;
    }),
    case!("Survey::clear_void", |scene| {
        let survey = survey(&scene.core, &scene.space, &scene.known()).await.unwrap();
        // Nothing is known of these segments but what they say, so their blocks are read again.
        scene.cut(survey.clear_void(&scene.core, &scene.space)).await.into_iter().for_each(Result::unwrap);
    }),
    case!("Survey::settle", |scene| {
        let survey = survey(&scene.core, &scene.space, &scene.known()).await.unwrap();
        survey.clear_void(&scene.core, &scene.space).await.unwrap();
        scene.cut(survey.settle(&scene.core, &scene.space)).await.into_iter().for_each(|outcome| {
            outcome.unwrap();
        });
    }),
    case!("records_in", |scene| {
        let survey = survey(&scene.core, &scene.space, &scene.known()).await.unwrap();
        let Some(segment) = survey.segments.first() else { return scene.is_last.set(true) };
        scene.cut(records_in(&scene.core, &scene.space, segment.number, segment.epoch)).await;
    }),
    case!("recover", |scene| {
        scene.cut(recover(&scene.core, &scene.space, &scene.database, scene.is_rebuilt)).await;
    }),
    case!("learn", |scene| {
        // As a start does it.
        scene.cut(learn(&scene.core, &scene.space, &scene.database, scene.is_rebuilt, true)).await;
    }),
    case!("inspect", |scene| {
        let folder = Path::new(FOLDER);
        scene.cut(inspect(&scene.core, folder, STORE, 1, None, |_| {})).await;
    }),
    case!("Window::at", |scene| {
        // It is no other's: with whoever reads a segment.
        scene.cut(inspect(&scene.core, Path::new(FOLDER), STORE, 2, None, |_| {})).await;
    }),
    case!("read_record", |scene| {
        let file =
            crate::log::open_for_reading(&scene.core, &Space::path(Path::new(FOLDER), 1)).await.unwrap();
        scene.cut(read_record(&scene.core, &file, 8192, 100)).await;
    }),
    case!("store_in", |scene| {
        let path = Space::path(Path::new(FOLDER), 1);
        let said = scene.cut(store_in(&scene.core, &path)).await;
        assert!(said.is_none_or(|said| said.unwrap().is_some_and(|(store, _)| store == STORE)));
    }),
];

/// What is dropped with a store that nobody serves, over a folder of this host. `Offline::over` is a part of it.
const OFFLINE: &[&str] = &["Offline::open", "Offline::read", "verify"];

/// What the cases of this room drop.
pub(super) fn dropped() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.of).chain(OFFLINE.iter().copied())
}

/// A file in memory that outlives who has opened it.
#[derive(Clone, Debug, Default)]
struct Storage(Arc<Mutex<Vec<u8>>>);

impl Storage {
    /// What it holds now, as a file of its own.
    fn copy(&self) -> Storage {
        Storage(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    fn open(&self) -> Database {
        Database::open_on(self.clone(), STORE).unwrap()
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A device, and the catalog, after a kill.
struct Left {
    world: World,
    catalog: Storage,
}

impl Left {
    /// Has a store work for a while, and kills it in the midst.
    fn new(seed: u64) -> Left {
        let (catalog, is_begun) = (Storage::default(), Rc::new(Cell::new(false)));
        let begun = is_begun.clone();
        let mut stage = Stage::over(seed, catalog.open(), move |local, store| async move {
            let name = |key: &str| Name::new("b", key).unwrap();
            let context = background();
            let create = async |key: &str| {
                store.create(&context, name(key), Metadata::default(), false).await.unwrap()
            };
            let put = async |key: &str, seed: usize, length: usize| {
                let mut writer: StoreWriter = create(key).await;
                for part in 0..length.div_ceil(20_000) {
                    let some = content(seed + part, 20_000.min(length - part * 20_000));
                    writer.append(&context, some).await.unwrap();
                }
                writer.seal(&context).await.unwrap();
            };
            for number in 0..6 {
                put(&format!("sealed/{number}"), number, 60_000).await;
            }
            put("again", 1, 5000).await;
            put("deleted", 2, 5000).await;
            let mut left = create("interrupted").await;
            left.append(&context, content(3, 3000)).await.unwrap();
            drop(left);
            // From here on the catalog knows of it.
            local.cut_batch();
            let (done, mut entered) = channel();
            local.shared().enter(Write::Flush(done));
            entered.receive().await;
            store.delete(&context, &name("deleted")).await.unwrap();
            for number in 6..12 {
                put(&format!("sealed/{number}"), number, 60_000).await;
            }
            let mut left = create("interrupted too").await;
            left.append(&context, content(4, 3000)).await.unwrap();
            drop(left);
            // What is not done when the kill comes.
            let mut writers = Vec::new();
            for number in 0..8 {
                let mut writer = create(&format!("begun/{number}")).await;
                begin(writer.append(&context, content(number, 40_000))).await;
                writers.push(writer);
            }
            let mut again = create("again").await;
            again.append(&context, content(5, 2000)).await.unwrap();
            begin(again.seal(&context)).await;
            begun.set(true);
            pending::<()>().await;
        });
        stage.world.set_faults(Faults { slow: 0.2, ..Faults::none() });
        while !is_begun.get() {
            assert_ne!(stage.cores.run(1), Pause::Stalled);
        }
        stage.cores.run(seed as usize * 7 % 50);
        let (world, catalog) = (stage.world, catalog.copy());
        drop(stage.cores);
        Left { world, catalog }
    }
}

impl Left {
    /// In how many segments there are blocks that do not count beside others that do, and in how many nothing counts.
    fn does_not_count(&self, seed: u64) -> (usize, usize) {
        let (storage, world) = (self.catalog.copy(), self.world.twin(seed));
        on_a_core(&world, |core| async move {
            let space = new_space();
            let learned = learn(&core, &space, &storage.open(), false, true).await.unwrap();
            let cleared = learned.survey.settle(&core, &space).await.unwrap();
            (learned.survey.void.len(), cleared.len())
        })
    }
}

/// What a start finds.
#[derive(Debug, PartialEq)]
struct Found {
    objects: Vec<(String, u64, State, u64)>,
    /// Generation, segment, position and length.
    places: Vec<(u64, u64, u64, u32)>,
    logs: BTreeMap<u16, Continuation>,
    generation_max: u64,
    names: Vec<Name>,
    damage: Vec<String>,
}

impl Found {
    fn new(database: &Database, recovered: Recovered) -> Found {
        let lookup = || Lookup::new(database.view().unwrap()).unwrap();
        let (mut objects, mut places) = (Vec::new(), Vec::new());
        lookup()
            .each_object(|object| objects.push((object.name, object.generation, object.state, object.length)))
            .unwrap();
        lookup()
            .each_extent(|generation, extent| {
                places.push((generation, extent.segment, extent.position, extent.length));
            })
            .unwrap();
        let Recovered { logs, generation_max, damage, names, .. } = recovered;
        Found { objects, places, logs, generation_max, names, damage }
    }
}

/// Runs something on the one core of a world, to its end. Nothing is left open there.
fn on_a_core<T: 'static, F>(world: &World, main: impl FnOnce(Rc<Core>) -> F) -> T
where
    F: Future<Output = T> + 'static,
{
    let output = Rc::new(RefCell::new(None));
    let mut cores = Cores::new(world, 1);
    let answer = output.clone();
    cores.begin(0, |core| {
        let main = main(core);
        async move {
            let output = main.await;
            *answer.borrow_mut() = Some(output);
        }
    });
    assert_eq!(cores.run(1_000_000), Pause::Ended);
    drop(cores);
    assert_eq!(world.open_descriptors(), 0, "descriptors are left");
    output.take().unwrap()
}

/// Waits until nothing is under way on a core but the wait for its bell.
async fn quiet(core: &Rc<Core>, open: impl Fn() -> usize, what: &str) {
    let limit = core.precise_now() + Duration::from_secs(20);
    loop {
        core.sleep(Duration::from_micros(200)).await;
        let left = [core.ring().in_flight() - 1, core.timers_waiting(), open()];
        if left == [0; 3] {
            return;
        }
        assert!(core.precise_now() < limit, "{what} leaves operations, timers, descriptors: {left:?}");
    }
}

/// A start, and a look at everything that it has found.
async fn start(core: &Rc<Core>, database: Database, is_rebuilt: bool, behind: &str) -> Found {
    let recovered = recover(core, &new_space(), &database, is_rebuilt).await.unwrap();
    let found = Found::new(&database, recovered);
    let store = Offline::over(core, new_space(), Some(database)).await.unwrap();
    let report = verify_open(core, &store, &mut |_, _| {}).await.unwrap();
    assert!(report.findings.is_empty(), "behind {behind}: {:?}", report.findings);
    found
}

/// Drops what a case drops, once, and starts; answers what is found, and whether that was the last cut.
fn cut_once(
    left: &Left,
    case: &'static Case,
    cut: Cut,
    seed: u64,
    is_rebuilt: bool,
    is_killed: bool,
) -> (Found, bool) {
    let (world, catalog) =
        (left.world.twin(seed), if is_rebuilt { Storage::default() } else { left.catalog.copy() });
    world.set_faults(Faults { slow: 0.05, short_read: 0.1, ..Faults::none() });
    let (files, storage) = (world.clone(), catalog.clone());
    let dropped = format!("{} at {cut:?}", case.of);
    let behind = format!("{dropped}, killed");
    let (found, is_last) = on_a_core(&world, |core| async move {
        let (space, database) = (new_space(), storage.open());
        let scene = Scene { core: core.clone(), space, database, is_rebuilt, cut, is_last: Cell::new(false) };
        let scene = Rc::new(scene);
        (case.run)(scene.clone()).await;
        quiet(&core, || files.open_descriptors(), &dropped).await;
        let is_last = scene.is_last.get();
        let scene = Rc::into_inner(scene).expect("somebody keeps the scene");
        assert_eq!(Arc::strong_count(&scene.space), 1, "somebody keeps a segment");
        if is_killed {
            return (None, is_last);
        }
        // A catalog that is being made anew is begun anew.
        let database = if is_rebuilt { Storage::default().open() } else { scene.database };
        (Some(start(&core, database, is_rebuilt, &dropped).await), is_last)
    });
    let found = found.unwrap_or_else(|| {
        let catalog = if is_rebuilt { Storage::default() } else { catalog };
        on_a_core(&world, |core| async move { start(&core, catalog.open(), is_rebuilt, &behind).await })
    });
    (found, is_last)
}

#[test]
fn whatever_is_dropped_of_a_start_the_next_one_finds_the_same() {
    let (mut cuts, mut stores, mut void, mut cleared) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let left = Left::new(seed);
        let (of_void, of_cleared) = left.does_not_count(seed);
        // One of them has a segment in which nothing counts, too.
        if of_void == 0 || (stores + 1 == STORES && cleared + of_cleared == 0) {
            continue;
        }
        (stores, void, cleared) = (stores + 1, void + of_void, cleared + of_cleared);
        for is_rebuilt in [false, true] {
            let storage = if is_rebuilt { Storage::default() } else { left.catalog.copy() };
            let world = left.world.twin(seed);
            let expected =
                on_a_core(
                    &world,
                    |core| async move { start(&core, storage.open(), is_rebuilt, "nothing").await },
                );
            assert!(expected.damage.is_empty() && expected.objects.len() > 12, "{expected:?}");
            for case in CASES {
                let (mut cut, mut number) = (Cut::first(), 0);
                loop {
                    // A cut at once and one when it is woken follow each other: both ways of each of them.
                    let is_killed = number / 2 % 2 == 0;
                    let (found, is_last) = cut_once(&left, case, cut, seed + number, is_rebuilt, is_killed);
                    assert!(
                        found == expected,
                        "{} at {cut:?} of seed {seed}, rebuilt: {is_rebuilt}, killed: {is_killed}: {found:#?} instead \
                         of {expected:#?}",
                        case.of
                    );
                    number += 1;
                    if is_last {
                        break;
                    }
                    assert!(number < 1000, "{} is never done", case.of);
                    cut = cut.next();
                }
                cuts += number;
            }
        }
        if stores == STORES {
            break;
        }
    }
    println!(
        "{} futures, {stores} stores, {cuts} cuts; {void} segments with blocks that do not count, {cleared} cleared",
        CASES.len()
    );
    assert!(stores == STORES && cleared > 0, "{stores} stores, {cleared} segments cleared");
}

/// What is dropped of reading a store that nobody serves.
enum Offlining<'a> {
    Open,
    Read(&'a Offline),
    Verify,
}

/// Goes through all cuts of one of them.
async fn go_through(core: &Rc<Core>, data: &Path, is_rebuilt: bool, what: &Offlining<'_>) -> usize {
    let open = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(data)).count()
    };
    let before = open();
    let (mut cut, mut cuts) = (Cut::first(), 0);
    loop {
        let is_last = match what {
            Offlining::Open => cut.make(Offline::open(core, data)).await.map(drop).is_some(),
            Offlining::Read(store) => {
                let kept = store.find(&Name::new("b", "whole").unwrap(), None).unwrap();
                let mut read = Vec::new();
                let reading = store.read(core, &kept, |run| match run {
                    Run::Whole(bytes) => {
                        read.extend_from_slice(bytes);
                        crate::error::Result::Ok(())
                    }
                    Run::Lost(..) => panic!("{run:?}"),
                });
                let is_done = cut.make(reading).await.map(Result::unwrap).is_some();
                let whole = content(1, 300_000);
                assert!(whole.starts_with(&read) && is_done == (read.len() == whole.len()));
                is_done
            }
            Offlining::Verify => {
                let report = cut.make(verify(core, data, |_, _| {})).await;
                report
                    .map(|report| {
                        // Without its catalog a store is whole all the same, but it says so.
                        let findings = report.unwrap().findings;
                        assert!(findings.len() == usize::from(is_rebuilt), "{findings:?}");
                    })
                    .is_some()
            }
        };
        quiet(core, || open() - before, &format!("cut {cut:?}")).await;
        cuts += 1;
        if is_last {
            return cuts;
        }
        cut = cut.next();
    }
}

#[test]
fn nothing_is_left_of_reading_a_store_that_nobody_serves() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        data: folder.path().join("data"),
        cores: 1,
        arena_bytes: 4 << 20,
        block_bytes: 64 << 10,
        segment_bytes: Some(2 << 20),
        ..Config::default()
    };
    let engine = Engine::start(&config).unwrap();
    pollster::block_on(async {
        let (store, context): (Store, _) = (engine.store(), background());
        let name = Name::new("b", "whole").unwrap();
        let mut writer = store.create(&context, name, Metadata::default(), false).await.unwrap();
        for part in content(1, 300_000).chunks(30_000) {
            writer.append(&context, part.to_vec().into()).await.unwrap();
        }
        writer.seal(&context).await.unwrap();
    });
    engine.stop().unwrap();
    // With the catalog, and without it.
    for is_rebuilt in [false, true] {
        if is_rebuilt {
            Engine::forget_catalog(&config).unwrap();
        }
        run(async |core| {
            let opened = go_through(core, &config.data, is_rebuilt, &Offlining::Open).await;
            let verified = go_through(core, &config.data, is_rebuilt, &Offlining::Verify).await;
            let store = Offline::open(core, &config.data).await?;
            assert_eq!(store.is_rebuilt(), is_rebuilt);
            let read = go_through(core, &config.data, is_rebuilt, &Offlining::Read(&store)).await;
            println!("{opened} cuts of opening, {verified} of verifying, {read} of reading");
            Ok(())
        })
        .unwrap();
    }
    // Nobody keeps servers away.
    Engine::start(&config).unwrap().stop().unwrap();
}
