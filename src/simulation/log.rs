//! The log and its recovery, on one core, against a model.
//!
//! A run is a number of sessions on one device. A session recovers, checks what it finds, and appends from several
//! tasks until it is killed, the power is cut, or it is done, while what chance has chosen goes wrong. The last two
//! run on a device in order with room, and must succeed.
//!
//! What must hold, and is checked:
//!
//! - What was acknowledged, or was found once, is found ever after, unless the workload has let it go.
//! - What is found is whole, is what was appended, and is found once, in the order in which it was appended.
//! - Of what was not acknowledged a beginning is found, and what is missing never comes back.
//! - What is durable is read back as it was appended, from the segment and from memory.
//! - Nobody waits for ever, and nothing is called damaged.

mod model;
mod session;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;

use super::{Cores, Faults, Kind, Pause, World, WorldSettings};
use crate::log::{Space, SpaceSettings};
use model::Model;

const FOLDER: &str = "/data/segments";
const STORE: u64 = 77;
const SEGMENT_BYTES: u64 = 512 << 10;
const PIECE_LENGTH: usize = 64 << 10;
/// More turns than any session takes.
const TURNS_MAX: usize = 1_000_000;

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Power cuts, in the midst of a session or behind its end.
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
    run_observed(seed, &mut |_| {})
}

/// As [`run`], and shows the world before each session ends.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn run_observed(seed: u64, observe: &mut dyn FnMut(&World)) -> Result<Tally, String> {
    let mut random = Rng::with_seed(seed);
    let mut scenario = Scenario::new(seed, random.fork());
    for _ in 0..random.usize(2..6) {
        // Most sessions end in their midst; some of them while they recover.
        let turns = match random.u8(0..4) {
            0 => random.usize(1..60),
            1 | 2 => random.usize(1..400),
            _ => TURNS_MAX,
        };
        let ending = if random.u8(0..3) == 0 { Ending::Kill } else { Ending::Cut };
        scenario.session(Plan::new(&mut random), turns, ending, observe)?;
    }
    // Everything is in order again: what is there must be found, and the log must go on.
    scenario.make_room();
    for _ in 0..2 {
        scenario.session_in_order(observe)?;
    }
    let mut tally = scenario.model.borrow().tally;
    tally.trace = scenario.world.trace();
    Ok(tally)
}

/// How a session ends, in its midst or behind its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Cut,
    Kill,
}

/// A device, what was done to it so far, and what is expected of it.
struct Scenario {
    world: World,
    capacity_bytes: u64,
    direct: bool,
    spare_segments: usize,
    model: Rc<RefCell<Model>>,
}

impl Scenario {
    fn new(seed: u64, mut random: Rng) -> Scenario {
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
        world.make_folder(Path::new(FOLDER));
        Scenario { world, capacity_bytes, direct, spare_segments: random.usize(1..3), model: Rc::default() }
    }

    fn make_room(&mut self) {
        self.world.set_capacity_bytes(self.capacity_bytes + 64 * SEGMENT_BYTES);
    }

    /// One session, for so many turns at most.
    fn session(
        &mut self,
        plan: Plan,
        turns: usize,
        ending: Ending,
        observe: &mut dyn FnMut(&World),
    ) -> Result<Pause, String> {
        let space = Space::new(SpaceSettings {
            folder: FOLDER.into(),
            store: STORE,
            segment_bytes: SEGMENT_BYTES,
            direct: self.direct,
            spare_segments: self.spare_segments,
            reserve_bytes: 0,
        });
        let mut cores = Cores::new(&self.world, 1);
        self.world.set_faults(plan.recovery_faults.clone());
        let (world, model, inner) = (self.world.clone(), self.model.clone(), space.clone());
        cores.begin(0, |core| async move {
            if let Err(violation) = session::live(&core, &inner, &world, &model, plan).await {
                model.borrow_mut().violation.get_or_insert(violation);
            }
        });
        let pause = cores.run(turns);
        observe(&self.world);
        self.end(cores, pause, ending);
        match (self.model.borrow_mut().violation.take(), pause) {
            (Some(violation), _) => Err(violation),
            (None, Pause::Stalled) => Err("everybody waits for ever".to_owned()),
            (None, pause) => Ok(pause),
        }
    }

    fn end(&mut self, cores: Cores, pause: Pause, ending: Ending) {
        {
            // From here on nothing that the session says counts: it does not know yet that it is dead.
            let model = &mut *self.model.borrow_mut();
            model.is_dead = true;
            let is_end = pause == Pause::Ended;
            model.tally.ends += u64::from(is_end);
            model.tally.cuts += u64::from(ending == Ending::Cut);
            model.tally.kills += u64::from(ending == Ending::Kill && !is_end);
        }
        match ending {
            Ending::Cut => cores.cut_power(),
            Ending::Kill => drop(cores),
        }
        let kept = std::mem::take(&mut self.model.borrow_mut().kept);
        drop(kept);
        self.model.borrow_mut().is_dead = false;
    }

    /// A session in which nothing goes wrong, and nothing may.
    fn session_in_order(&mut self, observe: &mut dyn FnMut(&World)) -> Result<(), String> {
        let before = self.model.borrow().tally;
        let pause = self.session(Plan::in_order(20), TURNS_MAX, Ending::Cut, observe)?;
        let after = self.model.borrow().tally;
        if pause != Pause::Ended || after.failed_recoveries > before.failed_recoveries {
            return Err(format!("on a device in order a session did not come to its end: {pause:?}"));
        }
        if after.acknowledged - before.acknowledged != after.appended - before.appended {
            return Err("on a device in order not everything was acknowledged".to_owned());
        }
        Ok(())
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

    /// Nothing goes wrong, and everything is kept.
    fn in_order(steps: usize) -> Plan {
        let (recovery_faults, faults) = (Faults::none(), Faults::none());
        Plan { recovery_faults, faults, writers: 2, steps, forgets: false, flushes: true }
    }
}
