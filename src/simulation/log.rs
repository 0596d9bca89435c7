//! The log and its recovery, on one core, against a model.
//!
//! A run is a number of sessions on one device. A session recovers, checks what it finds, and appends from several
//! tasks until it is killed, the power is cut, or it is done, while what chance has chosen goes wrong. The last one
//! runs on a device in order with room, and must succeed.
//!
//! What must hold, and is checked:
//!
//! - What was acknowledged, or was found once, is found ever after, unless the workload has let it go.
//! - What is found is whole, is what was appended, and is found once, in the order in which it was appended.
//! - Of what was not acknowledged a beginning is found, and what is missing never comes back.
//! - What is durable is read back as it was appended, from the segment and from memory.
//! - Nobody waits for ever, and nothing is called damaged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rustix::io::Errno;

use super::{Cores, Faults, Kind, Pause, World, WorldSettings};
use crate::context::Context;
use crate::error::{self, Error};
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{
    Keeper, Log, LogSettings, Placement, Recovery, Segment, Sink, Space, SpaceSettings, recover,
};
use crate::metrics::CoreMetrics;
use crate::ring::Arena;
use crate::runtime::Core;

const FOLDER: &str = "/data/segments";
const STORE: u64 = 77;
const SEGMENT_BYTES: u64 = 512 << 10;
const PIECE_LENGTH: usize = 64 << 10;

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sessions that ended with the power cut.
    pub cuts: u64,
    /// Sessions that were killed.
    pub kills: u64,
    /// Sessions that came to their end.
    pub ends: u64,
    /// Recoveries that answered an error.
    pub failed_recoveries: u64,
    /// Records appended.
    pub appended: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Logs that have failed for good.
    pub failed_logs: u64,
    /// The world's trace at the end.
    pub trace: u64,
}

impl Tally {
    /// Adds what another run has done. Traces do not add up: the sum has none.
    pub fn add(&mut self, other: &Tally) {
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.ends += other.ends;
        self.failed_recoveries += other.failed_recoveries;
        self.appended += other.appended;
        self.acknowledged += other.acknowledged;
        self.failed_logs += other.failed_logs;
    }
}

/// Runs what this seed stands for.
///
/// # Errors
/// What did not hold, in a sentence.
///
/// # Panics
/// With what the code under test panics.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut scenario = Scenario::new(seed);
    for _ in 0..scenario.random.usize(2..6) {
        scenario.session()?;
    }
    scenario.last_session()?;
    let mut tally = scenario.model.borrow().tally;
    tally.trace = scenario.world.trace();
    Ok(tally)
}

struct Scenario {
    world: World,
    random: Rng,
    capacity_bytes: u64,
    direct: bool,
    model: Rc<RefCell<Model>>,
}

impl Scenario {
    fn new(seed: u64) -> Scenario {
        let mut random = Rng::with_seed(seed);
        let capacity_bytes = if random.u8(0..3) == 0 { random.u64(2..12) * SEGMENT_BYTES } else { 1 << 30 };
        let direct = random.u8(0..8) > 0;
        let settings = WorldSettings {
            seed,
            capacity_bytes,
            takes_direct: direct,
            reserves: random.u8(0..8) > 0,
            writes_zeroes: random.bool(),
            ..WorldSettings::default()
        };
        let world = World::new(settings);
        world.make_folder(&PathBuf::from(FOLDER));
        Scenario { world, random, capacity_bytes, direct, model: Rc::default() }
    }

    fn space(&mut self) -> Arc<Space> {
        Space::new(SpaceSettings {
            folder: PathBuf::from(FOLDER),
            store: STORE,
            segment_bytes: SEGMENT_BYTES,
            direct: self.direct,
            spare_segments: self.random.usize(1..3),
        })
    }

    fn session(&mut self) -> Result<(), String> {
        let space = self.space();
        let mut cores = Cores::new(&self.world, 1);
        let plan = Plan::new(&mut self.random);
        self.world.set_faults(plan.recovery_faults.clone());
        let (world, model, inner) = (self.world.clone(), self.model.clone(), space.clone());
        cores.begin(0, |core| async move {
            if let Err(violation) = live(&core, &inner, &world, &model, plan).await {
                model.borrow_mut().violation.get_or_insert(violation);
            }
        });
        // Most sessions end in their midst; some early, while they still recover.
        let turns =
            if self.random.u8(0..4) == 0 { self.random.usize(1..100) } else { self.random.usize(1..4000) };
        let pause = cores.run(turns);
        self.close(cores, &space, pause)
    }

    /// Everything is in order again: what is there must be found, and the log must go on.
    fn last_session(&mut self) -> Result<(), String> {
        let space = self.space();
        self.world.set_faults(Faults::none());
        self.world.set_capacity_bytes(self.capacity_bytes + 64 * SEGMENT_BYTES);
        let mut cores = Cores::new(&self.world, 1);
        let plan = Plan {
            recovery_faults: Faults::none(),
            faults: Faults::none(),
            writers: 2,
            steps: 20,
            forgets: false,
            flushes: true,
        };
        let (world, model, inner) = (self.world.clone(), self.model.clone(), space.clone());
        let before = self.model.borrow().tally;
        cores.begin(0, |core| async move {
            if let Err(violation) = live(&core, &inner, &world, &model, plan).await {
                model.borrow_mut().violation.get_or_insert(violation);
            }
        });
        let pause = cores.run(1_000_000);
        self.close(cores, &space, pause)?;
        let after = self.model.borrow().tally;
        if pause != Pause::Ended || after.failed_recoveries > before.failed_recoveries {
            return Err(format!("on a device in order the last session did not come to its end: {pause:?}"));
        }
        if after.acknowledged - before.acknowledged != after.appended - before.appended {
            return Err("on a device in order not everything was acknowledged".to_owned());
        }
        Ok(())
    }

    fn close(&mut self, cores: Cores, space: &Space, pause: Pause) -> Result<(), String> {
        let is_cut = self.random.u8(0..3) > 0;
        {
            let tally = &mut self.model.borrow_mut().tally;
            match (pause, is_cut) {
                (Pause::Limit, true) => tally.cuts += 1,
                (Pause::Limit, false) => tally.kills += 1,
                _ => tally.ends += 1,
            }
        }
        // From here on nothing that the session says counts: it does not know yet that it is dead.
        self.model.borrow_mut().is_dead = true;
        if is_cut {
            cores.cut_power();
        } else {
            drop(cores);
        }
        let kept = std::mem::take(&mut self.model.borrow_mut().kept);
        drop(kept);
        space.close();
        let mut model = self.model.borrow_mut();
        model.is_dead = false;
        if let Some(violation) = model.violation.take() {
            return Err(violation);
        }
        match pause {
            Pause::Stalled => Err("everybody waits for ever".to_owned()),
            _ => Ok(()),
        }
    }
}

/// What a session does.
struct Plan {
    recovery_faults: Faults,
    faults: Faults,
    writers: usize,
    steps: usize,
    forgets: bool,
    flushes: bool,
}

impl Plan {
    fn new(random: &mut Rng) -> Plan {
        let recovery_faults = match random.u8(0..4) {
            0 | 1 => Faults::none(),
            2 => Faults::disturbances(),
            // No sync may fail here: see `recover_and_check`.
            _ => Faults::disturbances()
                .and_any_error(Kind::Open, 0.05)
                .and_any_error(Kind::Read, 0.05)
                .and_any_error(Kind::Files, 0.02)
                .and_any_error(Kind::Write, 0.1),
        };
        let faults = match random.u8(0..4) {
            0 => Faults::none(),
            1 => Faults::disturbances(),
            kind => [Kind::Open, Kind::Allocate, Kind::Sync, Kind::Write, Kind::Files]
                .into_iter()
                .fold(Faults { zero_write: 0.002, ..Faults::disturbances() }, |faults, of| {
                    faults.and_any_error(of, if kind == 2 { 0.02 } else { 0.2 * random.f64() })
                }),
        };
        Plan {
            recovery_faults,
            faults,
            writers: random.usize(1..5),
            steps: random.usize(1..60),
            forgets: random.bool(),
            flushes: random.u8(0..4) > 0,
        }
    }
}

/// What is expected. Records are numbered in the order in which they are appended.
#[derive(Default)]
struct Model {
    lengths: BTreeMap<u64, usize>,
    /// Acknowledged, or found once.
    firm: BTreeSet<u64>,
    /// Appended since the last recovery and not acknowledged, in order.
    pending: Vec<u64>,
    /// Not found by a recovery: must never come back.
    cut_off: BTreeSet<u64>,
    /// Nobody refers to records below this number: they may be found, or not.
    forgotten_below: u64,
    kept: BTreeMap<u64, Place>,
    next_number: u64,
    /// The session has ended and does not know it.
    is_dead: bool,
    violation: Option<String>,
    tally: Tally,
}

#[derive(Clone)]
struct Place {
    segment: Arc<Segment>,
    position: u64,
}

impl Model {
    fn append(&mut self, length: usize) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.lengths.insert(number, length);
        self.pending.push(number);
        self.tally.appended += 1;
        number
    }

    fn forget(&mut self, below: u64) -> Vec<Place> {
        self.forgotten_below = self.forgotten_below.max(below);
        let kept = self.kept.split_off(&self.forgotten_below);
        std::mem::replace(&mut self.kept, kept).into_values().collect()
    }

    /// Compares what a recovery has found with what is expected, and goes on from there.
    fn compare(&mut self, found: &[(u64, usize)]) -> Result<(), String> {
        if !found.is_sorted_by(|first, second| first.0 < second.0) {
            return Err(format!("found out of order: {found:?}"));
        }
        for &(number, length) in found {
            match self.lengths.get(&number) {
                None => return Err(format!("found {number}, which nobody has appended")),
                Some(&expected) if expected != length => {
                    return Err(format!("found {length} bytes of {number}, which has {expected}"));
                }
                Some(_) if self.cut_off.contains(&number) => {
                    return Err(format!("{number} was cut off by an earlier start, and has come back"));
                }
                Some(_) => {}
            }
        }
        let found: BTreeSet<u64> = found.iter().map(|&(number, _)| number).collect();
        if let Some(lost) = self.firm.range(self.forgotten_below..).find(|number| !found.contains(number)) {
            return Err(format!("{lost} was acknowledged, and is lost"));
        }
        let pending = std::mem::take(&mut self.pending);
        let missing =
            pending.iter().position(|number| !found.contains(number) && *number >= self.forgotten_below);
        let (beginning, rest) = pending.split_at(missing.unwrap_or(pending.len()));
        if let Some(number) = rest.iter().find(|number| found.contains(number)) {
            return Err(format!("{number} is found, and {} before it is not", rest[0]));
        }
        self.firm.extend(beginning.iter().filter(|number| found.contains(number)));
        self.cut_off.extend(rest);
        Ok(())
    }
}

fn byte_of(number: u64, at: usize) -> u8 {
    (number as usize).wrapping_mul(31).wrapping_add(at.wrapping_mul(7)).wrapping_add(at >> 8) as u8
}

fn is_content_of(number: u64, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(at, &byte)| byte == byte_of(number, at))
}

/// Tells the model what has become durable.
struct Durable {
    model: Rc<RefCell<Model>>,
}

impl Sink for Durable {
    type Note = u64;

    fn durable(&self, number: u64, placement: Placement<'_>) {
        let model = &mut *self.model.borrow_mut();
        if model.is_dead {
            return;
        }
        if model.pending.first() != Some(&number) {
            model.violation.get_or_insert(format!("{number} became durable out of turn"));
            return;
        }
        model.pending.remove(0);
        model.firm.insert(number);
        model.tally.acknowledged += 1;
        if placement.hot.upgrade().is_some_and(|hot| !is_content_of(number, &hot)) {
            model.violation.get_or_insert(format!("{number} is not in memory as it was appended"));
        }
        let place = Place { segment: placement.segment.clone(), position: placement.position };
        model.kept.insert(number, place);
    }

    fn block_done(&self) {}

    fn failed(&self, _number: u64) {}
}

/// What the tasks of a session share.
#[derive(Clone)]
struct Session {
    core: Rc<Core>,
    log: Rc<Log<Durable>>,
    model: Rc<RefCell<Model>>,
    forgets: bool,
}

async fn live(
    core: &Rc<Core>,
    space: &Arc<Space>,
    world: &World,
    model: &Rc<RefCell<Model>>,
    plan: Plan,
) -> Result<(), String> {
    let Some(mut recovery) = recover_and_check(core, space, world, model).await? else {
        model.borrow_mut().tally.failed_recoveries += 1;
        return Ok(());
    };
    world.set_faults(plan.faults);
    let mut random = world.chance();
    let continuation = recovery.logs.remove(&0).unwrap_or_default();
    drop(recovery);
    let arena = Arena::new(6, PIECE_LENGTH).map_err(|errno| format!("no memory: {errno}"))?;
    let settings = LogSettings {
        log: 0,
        block_bytes: if random.bool() { 16 << 10 } else { PIECE_LENGTH },
        durable: true,
        next_sequence: continuation.next_sequence,
        term: continuation.term,
    };
    let (keeper, keeping) = Keeper::start(core, space);
    let (log, flushing) = Log::start(core, settings, arena, keeper, Rc::new(CoreMetrics::new()));
    let durable = Rc::new(Durable { model: model.clone() });
    log.set_sink(&durable);
    let session =
        Session { core: core.clone(), log: log.clone(), model: model.clone(), forgets: plan.forgets };
    let writers: Vec<_> =
        (0..plan.writers).map(|_| core.spawn(write(session.clone(), world.chance(), plan.steps))).collect();
    for writer in writers {
        writer.await?;
    }
    if plan.flushes {
        let _ = log.flush(&Context::background()).await;
    }
    if log.failure().is_some() {
        model.borrow_mut().tally.failed_logs += 1;
    } else if random.bool() {
        log.close();
    }
    flushing.cancel().await;
    keeping.cancel().await;
    Ok(())
}

/// What the segments hold, compared with what is expected. None: recovery has answered an error.
///
/// A sync that fails while recovering is left out. What it leaves is read and is on no medium, the next attempt
/// believes it, and nothing that can be called would tell: only the operator, who is told of the failure, could.
async fn recover_and_check(
    core: &Rc<Core>,
    space: &Arc<Space>,
    world: &World,
    model: &Rc<RefCell<Model>>,
) -> Result<Option<Recovery>, String> {
    let Ok(recovery) = recover(core, space).await else { return Ok(None) };
    world.set_faults(Faults::none());
    if !recovery.damage.is_empty() {
        return Err(format!("damage was reported: {:?}", recovery.damage));
    }
    let found: Vec<_> = recovery
        .records
        .iter()
        .map(|record| (record.header.generation, record.header.length as usize))
        .collect();
    model.borrow_mut().compare(&found)?;
    for record in &recovery.records {
        let number = record.header.generation;
        let place = Place { segment: record.segment.clone(), position: record.position };
        if number >= model.borrow().forgotten_below {
            check_content(core, number, &place, record.header.length as usize).await?;
            model.borrow_mut().kept.insert(number, place);
        }
    }
    Ok(Some(recovery))
}

async fn check_content(core: &Core, number: u64, place: &Place, length: usize) -> Result<(), String> {
    let (outcome, bytes) = core.read(place.segment.file(), place.position, vec![0; length], 0).await;
    let where_ = || format!("in segment {} at {}", place.segment.number(), place.position);
    match outcome {
        Ok(count) if count < length => Err(format!("{number} {} ends after {count} bytes", where_())),
        Ok(_) if !is_content_of(number, &bytes) => Err(format!("{number} {} is something else", where_())),
        Ok(_) => Ok(()),
        Err(errno) => Err(format!("{number} {} cannot be read: {errno}", where_())),
    }
}

/// One task that appends.
async fn write(session: Session, mut random: Rng, steps: usize) -> Result<(), String> {
    let Session { core, log, model, .. } = &session;
    let context = Context::background();
    for _ in 0..steps {
        let length = match random.u8(0..8) {
            0 => 0,
            1..=4 => random.usize(1..300),
            5 | 6 => random.usize(1..9000),
            _ => random.usize(1..=log.payload_length_max()),
        };
        let Some((number, sequence)) = append(&session, length).await? else {
            // Nothing more can be appended, now or for ever.
            if log.failure().is_some() || !session.forgets {
                return Ok(());
            }
            forget(&session, &mut random);
            core.sleep(Duration::from_millis(random.u64(1..200))).await;
            continue;
        };
        match random.u8(0..10) {
            0..=4 => {
                let outcome = log.acknowledged(&context, sequence).await;
                if outcome.is_ok() && !model.borrow().firm.contains(&number) {
                    return Err(format!("{number} was acknowledged before it was durable"));
                }
            }
            5 => {
                let limit = Duration::from_micros(random.u64(0..500));
                let _ = core.timeout(limit, log.acknowledged(&context, sequence)).await;
            }
            6 => core.sleep(Duration::from_micros(random.u64(0..3000))).await,
            7 => read_back(&session, &mut random).await?,
            8 if session.forgets => forget(&session, &mut random),
            _ => {}
        }
    }
    Ok(())
}

/// Appends one record. None: there is no room for it, or the log has failed.
async fn append(session: &Session, length: usize) -> Result<Option<(u64, u64)>, String> {
    let Session { log, model, .. } = session;
    loop {
        let fill = |space: &mut [u8]| {
            let number = model.borrow().next_number;
            space[..length].iter_mut().enumerate().for_each(|(at, byte)| *byte = byte_of(number, at));
            Ok::<_, Error>(length)
        };
        let mut appended_number = 0;
        let appended: error::Result<_> = log.append(length, true, fill, |length| {
            let number = model.borrow_mut().append(length);
            appended_number = number;
            let kind = if length == 0 { RecordKind::Delete } else { RecordKind::Append };
            let length = length as u32;
            (
                RecordHeader { kind, continued: false, length, generation: number, offset: 0, timestamp: 0 },
                number,
            )
        });
        match appended {
            Err(_) => return Ok(None),
            Ok(Some(appended)) => return Ok(Some((appended_number, appended.sequence))),
            Ok(None) => {
                if log.room(&Context::background(), length, true).await.is_err() {
                    return Ok(None);
                }
            }
        }
    }
}

/// Lets the oldest records go, so that their segments are used again.
fn forget(session: &Session, random: &mut Rng) {
    let places = {
        let mut model = session.model.borrow_mut();
        let (oldest, next) = (model.forgotten_below, model.next_number);
        let durable = model.pending.first().copied().unwrap_or(next);
        let below = random.u64(oldest..=durable.max(oldest));
        model.forget(below)
    };
    drop(places);
}

async fn read_back(session: &Session, random: &mut Rng) -> Result<(), String> {
    let chosen = {
        let model = session.model.borrow();
        let place = random.usize(0..model.kept.len().max(1));
        model.kept.iter().nth(place).map(|(number, place)| (*number, place.clone(), model.lengths[number]))
    };
    let Some((number, place, length)) = chosen else { return Ok(()) };
    let outcome = check_content(&session.core, number, &place, length).await;
    // Too many interruptions in a row are an error that says nothing about what is there.
    let says_nothing =
        outcome.as_ref().is_err_and(|violation| violation.ends_with(&Errno::CANCELED.to_string()));
    if says_nothing || session.model.borrow().is_dead { Ok(()) } else { outcome }
}
