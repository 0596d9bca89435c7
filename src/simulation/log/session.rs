//! One session: recovers, compares, appends.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use rustix::io::Errno;

use super::model::{Model, Place, byte_of, is_content_of};
use super::{FOLDER, PIECE_LENGTH, Plan};
use crate::context::Context;
use crate::error::{Error, Result as EngineResult};
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{
    Continuation, Keeper, Known, Log, LogSettings, Placement, RecoveredRecord, Segment, Sink, Space,
    open_for_reading, survey,
};
use crate::metrics::CoreMetrics;
use crate::ring::Arena;
use crate::runtime::Core;
use crate::simulation::{Faults, World};

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
        // Whoever holds it last lets go of it.
        placement.segment.set_empty();
        let place = Place { segment: placement.segment.clone(), position: placement.position };
        model.kept.insert(number, place);
    }

    fn block_done(&self) {}

    fn failed(&self, number: u64) {
        self.model.borrow_mut().give_up(number);
    }
}

/// What the tasks of a session share.
#[derive(Clone)]
struct Session {
    core: Rc<Core>,
    log: Rc<Log<Durable>>,
    model: Rc<RefCell<Model>>,
    forgets: bool,
}

/// What the core of a session does. Returns when the session has come to its end.
pub(super) async fn live(
    core: &Rc<Core>,
    space: &Arc<Space>,
    world: &World,
    model: &Rc<RefCell<Model>>,
    plan: Plan,
) -> Result<(), String> {
    let Some(continuation) = recover_and_check(core, space, world, model).await? else {
        model.borrow_mut().tally.failed_recoveries += 1;
        return Ok(());
    };
    world.set_faults(plan.faults);
    let mut random = world.chance();
    let free = Arc::downgrade(space);
    space.set_cleared(Box::new(move |number, _| {
        free.upgrade().into_iter().for_each(|space| space.set_free(number));
    }));
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
) -> Result<Option<Continuation>, String> {
    let Ok(recovery) = recover(core, space).await else { return Ok(None) };
    world.set_faults(Faults::none());
    if !recovery.damage.is_empty() {
        return Err(format!("damage was reported: {:?}", recovery.damage));
    }
    let found: Vec<_> = recovery
        .records
        .iter()
        .map(|(record, _)| (record.header.generation, record.header.length as usize))
        .collect();
    model.borrow_mut().compare(&found)?;
    for (record, segment) in &recovery.records {
        let number = record.header.generation;
        let place = Place { segment: segment.clone(), position: record.position };
        if number >= model.borrow().forgotten_below {
            check_content(core, number, &place, record.header.length as usize, false).await?;
            model.borrow_mut().kept.insert(number, place);
        }
    }
    Ok(Some(recovery.continuation))
}

/// What a start has found.
struct Recovery {
    records: Vec<(RecoveredRecord, Arc<Segment>)>,
    damage: Vec<String>,
    continuation: Continuation,
}

async fn recover(core: &Rc<Core>, space: &Arc<Space>) -> EngineResult<Recovery> {
    let survey = survey(core, space, &Known::default()).await?;
    let mut recovery = Recovery {
        records: Vec::new(),
        damage: survey.damage.clone(),
        continuation: survey.logs.get(&0).copied().unwrap_or_default(),
    };
    for surveyed in &survey.segments {
        let segment = space.segment(surveyed.number, surveyed.epoch);
        segment.set_empty();
        for record in survey.read(core, space, surveyed).await? {
            if !record.is_whole {
                recovery.damage.push(format!("{} is damaged", record.header.generation));
            }
            recovery.records.push((record, segment.clone()));
        }
    }
    survey.clear_void(core, space).await?;
    for (number, _) in survey.settle(core, space).await? {
        space.set_free(number);
    }
    Ok(recovery)
}

async fn check_content(
    core: &Core,
    number: u64,
    place: &Place,
    length: usize,
    has_faults: bool,
) -> Result<(), String> {
    let path = Space::path(Path::new(FOLDER), place.segment.number());
    let (outcome, bytes) = match open_for_reading(core, &path).await {
        Ok(file) => core.read(&file, place.position, vec![0; length], 0).await,
        // What cannot be opened now says nothing about what is there.
        Err(_) if has_faults => return Ok(()),
        Err(errno) => (Err(errno), Vec::new()),
    };
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
        let appended: EngineResult<_> = log.append(length, true, fill, |length| {
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
    let outcome = check_content(&session.core, number, &place, length, true).await;
    // Too many interruptions in a row are an error that says nothing about what is there.
    let says_nothing =
        outcome.as_ref().is_err_and(|violation| violation.ends_with(&Errno::CANCELED.to_string()));
    if says_nothing || session.model.borrow().is_dead { Ok(()) } else { outcome }
}
