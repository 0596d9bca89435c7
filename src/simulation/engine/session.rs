//! One session: starts the store, compares, works, and stops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fastrand::Rng;

use super::model::Model;
use super::workload::{self, Worker};
use super::{Cores, Files, PIECE_LENGTH, Plan, Scenario, World};
use crate::error::Result;
use crate::log::Space;
use crate::ring::Arena;
use crate::runtime::{Core, Receiver, Sender, channel};
use crate::simulation::Faults;
use crate::store::assembly::{
    Assembly, Beginning, CatalogFiles, CatalogWork, CoreSettings, Orders, assemble, open_catalog, work,
};
use crate::store::recover::recover;
use crate::store::{Database, LocalStore, Lookup, Name, Shared, State};

/// How many pieces a core's arena has.
const PIECES: usize = 8;

/// What the cores and threads of a session share.
pub(super) struct Session {
    pub world: World,
    pub model: Rc<RefCell<Model>>,
    pub names: Rc<[Name]>,
    pub plan: Plan,
    pub space: Arc<Space>,
    pub files: Rc<Files>,
    pub retention: crate::config::Retention,
    pub block_bytes: usize,
    pub resumes: bool,
    pub cores: usize,
    /// Cores that have not ended.
    running: Cell<usize>,
    /// Cores whose work is not done.
    working: Cell<usize>,
    /// The last core to end takes it.
    shared: RefCell<Option<Arc<Shared>>>,
}

/// What may be looked at when a session has ended.
pub(super) struct Left {
    session: std::rc::Weak<Session>,
    shared: Rc<RefCell<Weak<Shared>>>,
    space: Weak<Space>,
}

impl Left {
    /// Says what a session that has come to its end has left behind.
    pub fn look(&self, cores: &Cores, world: &World) -> std::result::Result<(), String> {
        for index in 0..cores.count() {
            let in_flight = cores.core(index).ring().in_flight();
            if in_flight > 0 {
                return Err(format!("core {index} has left {in_flight} operations in flight"));
            }
            let timers = cores.core(index).timers_waiting();
            if timers > 0 {
                return Err(format!("core {index} has left {timers} timers"));
            }
        }
        if self.session.strong_count() > 0 || self.shared.borrow().strong_count() > 0 {
            return Err("somebody has kept the store".to_owned());
        }
        if self.space.strong_count() > 0 {
            return Err("somebody has kept a segment".to_owned());
        }
        match world.open_descriptors() {
            0 => Ok(()),
            count => Err(format!("{count} descriptors are left open")),
        }
    }
}

/// Gives the cores and threads of a session their work.
pub(super) fn begin(scenario: &Scenario, cores: &mut Cores, plan: Plan) -> Left {
    let space = scenario.space();
    let count = scenario.cores;
    let session = Rc::new(Session {
        world: scenario.world.clone(),
        model: scenario.model.clone(),
        names: scenario.names.clone(),
        plan,
        files: scenario.files.clone(),
        retention: scenario.retention.clone(),
        block_bytes: scenario.block_bytes,
        resumes: scenario.resumes,
        cores: count,
        running: Cell::new(count),
        working: Cell::new(count),
        shared: RefCell::default(),
        space: space.clone(),
    });
    let shared = Rc::new(RefCell::new(Weak::new()));
    let left =
        Left { session: Rc::downgrade(&session), shared: shared.clone(), space: Arc::downgrade(&space) };
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| channel::<Orders>()).unzip();
    let (to_reader, at_reader) = channel::<CatalogWork>();
    let mut starting = Some((senders, to_reader));
    for (index, orders) in receivers.into_iter().enumerate() {
        let (session, starting, shared) = (session.clone(), starting.take(), shared.clone());
        cores.begin(index, |core| async move {
            if let Some((senders, catalog)) = starting {
                start(&core, &session, &senders, &catalog, &shared).await;
            }
            live(&core, session, index, orders).await;
        });
    }
    catalog_threads(cores, at_reader);
    left
}

/// The two threads of the catalog. The one that ends last closes it.
fn catalog_threads(cores: &mut Cores, mut at_reader: Receiver<CatalogWork>) {
    type Books = Arc<crate::store::Books>;
    let (to_writer, mut at_writer) = channel();
    let running = Rc::new(Cell::new(2));
    let ends = move |books: &Books| {
        running.set(running.get() - 1);
        if running.get() == 0 {
            books.close();
        }
    };
    let ends_too = ends.clone();
    cores.begin_thread(|_| async move {
        let Some(work) = at_reader.receive().await else { return };
        let CatalogWork { books, questions, news, last_drops, dead } = work;
        to_writer.send((books.clone(), news, last_drops, dead));
        drop(to_writer);
        books.clone().answer(questions).await;
        ends(&books);
    });
    cores.begin_thread(|pauses| async move {
        let Some((books, news, last_drops, dead)) = at_writer.receive().await else { return };
        let writing: Books = Arc::clone(&books);
        writing.write(news, last_drops, dead, async |duration| pauses.pause(duration).await).await;
        ends_too(&books);
    });
}

/// What the first core does before anything else.
async fn start(
    core: &Rc<Core>,
    session: &Rc<Session>,
    senders: &[Sender<Orders>],
    catalog: &Sender<CatalogWork>,
    shared: &RefCell<Weak<Shared>>,
) {
    let assembly = match begin_store(core, session).await {
        Ok(assembly) => assembly,
        Err(error) => {
            session.model.borrow_mut().tally.failed_starts += 1;
            let is_explained = !session.plan.is_in_order && error.kind() != crate::error::Kind::Damaged;
            if !is_explained && !session.world.is_failing() {
                session.model.borrow_mut().violate(format!("a start has failed: {error}"));
            }
            return;
        }
    };
    let Assembly { shared: begun, orders, catalog: catalog_work } = assembly;
    *shared.borrow_mut() = Arc::downgrade(&begun);
    *session.shared.borrow_mut() = Some(begun);
    catalog.send(catalog_work);
    for (sender, orders) in senders.iter().zip(orders) {
        sender.send(orders);
    }
}

/// Opens the catalog, recovers, and compares.
async fn begin_store(core: &Rc<Core>, session: &Rc<Session>) -> Result<Assembly> {
    let (files, space, model) = (&session.files, &session.space, &session.model);
    let (database, is_rebuilt) = open_catalog(&**files, &mut Vec::new())?;
    let found = recover(core, space, &database, is_rebuilt).await?;
    if is_rebuilt {
        files.keep_made()?;
        model.borrow_mut().tally.rebuilt += 1;
    }
    session.world.set_faults(Faults::none());
    session.world.set_blocking_faults(Faults::none());
    if !found.damage.is_empty() {
        model.borrow_mut().violate(format!("damage was reported: {:?}", found.damage));
    }
    let compared = model.borrow_mut().compare(&rows(&database)?);
    if let Err(violation) = compared {
        model.borrow_mut().violate(violation);
    }
    model.borrow_mut().expire("short");
    session.world.set_faults(session.plan.faults.clone());
    session.world.set_blocking_faults(session.plan.blocking_faults.clone());
    Ok(assemble(Beginning {
        cores: session.cores,
        database,
        reopen: files.reopen(),
        space: space.clone(),
        found,
        may_splice: false,
        started: core.precise_now(),
    }))
}

/// Name, generation, state and length of every object.
pub(super) fn rows(database: &Database) -> Result<Vec<(String, u64, State, u64)>> {
    let mut rows = Vec::new();
    Lookup::new(database.view()?)?
        .each_object(|object| rows.push((object.name, object.generation, object.state, object.length)))?;
    Ok(rows)
}

/// What every core does.
async fn live(core: &Rc<Core>, session: Rc<Session>, index: usize, mut orders: Receiver<Orders>) {
    let Some(orders) = orders.receive().await else { return };
    let Ok(arena) = Arena::new(PIECES, PIECE_LENGTH) else {
        return session.model.borrow_mut().violate("there is no memory".to_owned());
    };
    let settings = CoreSettings {
        block_bytes: session.block_bytes,
        durable: true,
        retention: session.retention.clone(),
        tus_expiry: std::time::Duration::from_secs(3600),
    };
    let mut random = session.world.chance();
    let inner = session.clone();
    let service = move |local| serve(local, inner, index, random.fork());
    let at_work = AtomicBool::new(false);
    let outcome = work(core, &session.space, arena, settings, orders, service, || {}, &at_work).await;
    if let Err(error) = outcome
        && session.plan.is_in_order
    {
        session.model.borrow_mut().violate(format!("a core has failed: {error}"));
    }
    session.running.set(session.running.get() - 1);
    if session.running.get() == 0
        && let Some(shared) = session.shared.take()
    {
        shared.end_catalog();
    }
}

/// What runs on every core beside its store.
async fn serve(local: Rc<LocalStore>, session: Rc<Session>, index: usize, mut random: Rng) {
    let core = local.core().clone();
    let workers = (0..session.plan.tasks).map(|_| {
        let worker = Worker::new(&local, &session, random.fork());
        core.spawn(worker.work(session.plan.steps))
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await;
    }
    session.working.set(session.working.get() - 1);
    let is_last = session.working.get() == 0;
    if is_last && session.plan.is_in_order {
        // What goes on by itself comes to its end.
        core.sleep(Duration::from_secs(random.u64(2..12))).await;
        workload::compare_at_rest(&local, &session, &mut random).await;
    }
    let metrics = local.metrics();
    {
        let tally = &mut session.model.borrow_mut().tally;
        tally.punched_bytes += metrics.punched_bytes.get();
        tally.segments_copied += metrics.segments_copied.get();
        tally.expired += metrics.objects_expired.get();
    }
    if is_last || (session.plan.stops_early && index == 0) {
        local.shared().stop();
    }
    local.stopping().await;
}
