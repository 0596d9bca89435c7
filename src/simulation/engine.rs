//! The whole store, on several cores with its catalog, against a model.
//!
//! A run is a number of sessions on one device. A session starts the store as the engine does, checks what it finds,
//! and works on a few names from several tasks of every core until it is killed, the power is cut, or it is done, while
//! what chance has chosen goes wrong. Behind most of them somebody looks at what is left, as `tailwater verify` does.
//! The last two run on a device in order with room, and must succeed.
//!
//! What must hold, and is checked:
//!
//! - What was acknowledged, or read by anybody, is there after every start, until it is deleted or superseded.
//! - An object is a beginning of what was appended to it, in whole appends; a sealed one is all of it.
//! - What was deleted, cut off or superseded does not come back, nor does a generation come twice.
//! - Look-ups and listings show what is there, and of a name the generation that it serves.
//! - Readers read what was appended, up to the end that the writer gave.
//! - Nothing is called damaged that nobody has damaged: neither by a start nor by who verifies, with the catalog or
//!   without it, and both know the same of what was acknowledged. No two objects share a place.
//! - Nobody waits for ever; at the end nothing is left behind.

mod catalog;
mod inspection;
mod model;
mod session;
#[cfg(test)]
mod tests;
mod workload;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;
use rustix::io::Errno;

use super::{Cores, Faults, Kind, Pause, World, WorldSettings};
use crate::config::{Retention, RetentionRule};
use crate::log::{Space, SpaceSettings};
use crate::store::Name;
use catalog::Files;
use model::Model;

const FOLDER: &str = "/data/segments";
const STORE: u64 = 77;
const SEGMENT_BYTES: u64 = 256 << 10;
const PIECE_LENGTH: usize = 64 << 10;
/// What of the device is kept for the catalog, in bytes.
const RESERVE_BYTES: u64 = 6 << 20;
/// More turns than any session takes.
const TURNS_MAX: usize = 2_000_000;
/// Seeds from here on also go on with objects that were interrupted. Those below are the runs that they always were.
pub const RESUMING_FROM: u64 = 1_000_000;

/// What a run may do at most: smaller limits make smaller stories of the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many cores there are at most.
    pub cores: usize,
    /// How many tasks work on each core at most.
    pub tasks: usize,
    /// How many steps each task takes at most.
    pub steps: usize,
    /// How many sessions there are at most, before the last two.
    pub sessions: usize,
    /// Whether anything goes wrong but power cuts and kills.
    pub faults: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { cores: 4, tasks: 3, steps: 30, sessions: 5, faults: true }
    }
}

/// What a run has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sessions.
    pub sessions: u64,
    /// Power cuts, in the midst of a session or behind its end.
    pub cuts: u64,
    /// Sessions that were killed.
    pub kills: u64,
    /// Of both: in the midst of a call of the catalog.
    pub in_catalog: u64,
    /// Sessions that came to their end.
    pub ends: u64,
    /// Starts that answered an error.
    pub failed_starts: u64,
    /// Starts that made the catalog anew.
    pub rebuilt: u64,
    /// Operations that were answered with an error that chance had chosen.
    pub faults: u64,
    /// Objects begun.
    pub created: u64,
    /// Interrupted objects that were gone on with.
    pub resumed: u64,
    /// Appends.
    pub appends: u64,
    /// Appends that were acknowledged, or read.
    pub acknowledged: u64,
    /// Seals that were acknowledged.
    pub sealed: u64,
    /// Deletions that were acknowledged.
    pub deleted: u64,
    /// Objects that retention has deleted.
    pub expired: u64,
    /// Bytes that were read and compared.
    pub read_bytes: u64,
    /// Listings that were compared.
    pub listings: u64,
    /// Bytes that were punched out.
    pub punched_bytes: u64,
    /// Segments that were copied out.
    pub segments_copied: u64,
    /// Stores that were verified.
    pub verified: u64,
    /// The world's trace at the end.
    pub trace: u64,
}

impl Tally {
    /// Adds what another run has done. Traces do not add up: the sum has none.
    pub fn add(&mut self, other: &Tally) {
        self.sessions += other.sessions;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.in_catalog += other.in_catalog;
        self.ends += other.ends;
        self.failed_starts += other.failed_starts;
        self.rebuilt += other.rebuilt;
        self.faults += other.faults;
        self.created += other.created;
        self.resumed += other.resumed;
        self.appends += other.appends;
        self.acknowledged += other.acknowledged;
        self.sealed += other.sealed;
        self.deleted += other.deleted;
        self.expired += other.expired;
        self.read_bytes += other.read_bytes;
        self.listings += other.listings;
        self.punched_bytes += other.punched_bytes;
        self.segments_copied += other.segments_copied;
        self.verified += other.verified;
    }
}

/// Runs what this seed stands for.
///
/// # Errors
/// What did not hold, in a sentence.
///
/// # Panics
/// With what the code under test panics.
pub fn run(seed: u64, limits: Limits) -> Result<Tally, String> {
    run_observed(seed, limits, &mut |_| {})
}

/// As [`run`], and shows the world before each session ends.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn run_observed(seed: u64, limits: Limits, observe: &mut dyn FnMut(&World)) -> Result<Tally, String> {
    let mut random = Rng::with_seed(seed);
    let mut scenario = Scenario::new(seed, limits, random.fork());
    for _ in 0..random.usize(1..=4).min(limits.sessions) {
        // Most sessions end in their midst; some of them while they start.
        let turns = match random.u8(0..6) {
            0 => random.usize(1..80),
            1..=3 => random.usize(1..3000),
            _ => TURNS_MAX,
        };
        let ending = if random.u8(0..3) == 0 { Ending::Kill } else { Ending::Cut };
        let plan = Plan::new(&mut random, limits, scenario.blocks_fail);
        scenario.session(plan, turns, ending, observe)?;
    }
    // Everything is in order again: what is there must be found, and the store must go on.
    scenario.make_room();
    for is_last in [false, true] {
        scenario.session_in_order(&mut random, is_last, observe)?;
    }
    let mut tally = scenario.model.borrow().tally;
    tally.faults = scenario.world.errors();
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
    cores: usize,
    capacity_bytes: u64,
    direct: bool,
    spare_segments: usize,
    block_bytes: usize,
    blocks_fail: bool,
    resumes: bool,
    names: Rc<[Name]>,
    retention: Retention,
    files: Rc<Files>,
    model: Rc<RefCell<Model>>,
}

impl Scenario {
    fn new(seed: u64, limits: Limits, mut random: Rng) -> Scenario {
        let capacity_bytes = match random.bool() {
            true => RESERVE_BYTES + random.u64(4..24) * SEGMENT_BYTES,
            false => 1 << 30,
        };
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
        let count = random.usize(1..8);
        let name = |number: usize| {
            // The last ones are what retention deletes.
            let bucket = if number % 4 == 3 { "short" } else { ["a", "b"][number % 2] };
            Name::new(bucket, &format!("{}{}", ["k/", "k", "l/"][number % 3], number))
        };
        let names = (0..count).filter_map(|number| name(number).ok()).collect();
        let rule = RetentionRule {
            bucket: "short".to_owned(),
            age: random.bool().then_some(std::time::Duration::from_secs(random.u64(0..8))),
            bytes: Some(random.u64(0..200_000)),
        };
        Scenario {
            cores: random.usize(1..=4).min(limits.cores),
            capacity_bytes,
            direct,
            spare_segments: random.usize(1..3),
            blocks_fail: limits.faults && random.bool(),
            resumes: seed >= RESUMING_FROM,
            block_bytes: [8 << 10, 16 << 10, PIECE_LENGTH][random.usize(0..3)],
            names,
            retention: Retention { rules: vec![rule] },
            files: Rc::new(Files::new(&world, STORE, Path::new(FOLDER))),
            model: Rc::default(),
            world,
        }
    }

    fn make_room(&mut self) {
        self.world.set_capacity_bytes(self.capacity_bytes + 256 * SEGMENT_BYTES);
    }

    fn space(&self) -> std::sync::Arc<Space> {
        Space::new(SpaceSettings {
            folder: FOLDER.into(),
            store: STORE,
            segment_bytes: SEGMENT_BYTES,
            direct: self.direct,
            spare_segments: self.spare_segments,
            reserve_bytes: RESERVE_BYTES,
        })
    }

    /// One session, for so many turns at most, and a look at what it leaves.
    fn session(
        &mut self,
        plan: Plan,
        turns: usize,
        ending: Ending,
        observe: &mut dyn FnMut(&World),
    ) -> Result<Pause, String> {
        self.model.borrow_mut().tally.sessions += 1;
        if plan.loses_catalog {
            self.files.lose();
        }
        let inspects = plan.inspects;
        let mut cores = Cores::new(&self.world, self.cores);
        if let Some(calls) = plan.dies_after {
            self.world.fail_after(calls);
        }
        self.world.set_faults(plan.starting_faults.clone());
        self.world.set_blocking_faults(plan.starting_blocking_faults.clone());
        let left = session::begin(self, &mut cores, plan);
        let pause = cores.run(turns);
        observe(&self.world);
        let is_end = pause == Pause::Ended;
        {
            // From here on nothing that the session says counts: it does not know yet that it is dead.
            let model = &mut *self.model.borrow_mut();
            model.is_dead = true;
            model.tally.ends += u64::from(is_end);
            model.tally.in_catalog += u64::from(pause == Pause::Failed);
            model.tally.cuts += u64::from(ending == Ending::Cut);
            model.tally.kills += u64::from(ending == Ending::Kill && !is_end);
        }
        let leftovers = if is_end { left.look(&cores, &self.world) } else { Ok(()) };
        match ending {
            Ending::Cut => cores.cut_power(),
            Ending::Kill => drop(cores),
        }
        self.model.borrow_mut().is_dead = false;
        self.world.set_faults(Faults::none());
        self.world.set_blocking_faults(Faults::none());
        match (self.model.borrow_mut().violation.take(), pause) {
            (Some(violation), _) => return Err(violation),
            (None, Pause::Stalled) => return Err("everybody waits for ever".to_owned()),
            (None, Pause::Limit) if turns == TURNS_MAX => return Err("a session does not end".to_owned()),
            _ => leftovers?,
        }
        if inspects {
            inspection::inspect(self)?;
        }
        Ok(pause)
    }

    /// A session in which nothing goes wrong, and nothing may.
    fn session_in_order(
        &mut self,
        random: &mut Rng,
        is_last: bool,
        observe: &mut dyn FnMut(&World),
    ) -> Result<(), String> {
        let before = self.model.borrow().tally;
        let plan = Plan::in_order(random, if is_last { 4 } else { 20 });
        let ending = if random.bool() { Ending::Cut } else { Ending::Kill };
        let pause = self.session(plan, TURNS_MAX, ending, observe)?;
        let after = self.model.borrow().tally;
        if pause != Pause::Ended || after.failed_starts > before.failed_starts {
            return Err(format!("on a device in order a session did not come to its end: {pause:?}"));
        }
        Ok(())
    }
}

/// What a session does.
struct Plan {
    starting_faults: Faults,
    starting_blocking_faults: Faults,
    faults: Faults,
    blocking_faults: Faults,
    tasks: usize,
    steps: usize,
    /// The store is told to stop when the first core has done its work.
    stops_early: bool,
    loses_catalog: bool,
    /// The process dies in the midst of a call of the catalog, after so many.
    dies_after: Option<u64>,
    inspects: bool,
    /// Nothing may go wrong: neither faults nor a full disk explain an error.
    is_in_order: bool,
}

impl Plan {
    /// `blocks_fail`: blocks may fail to be written.
    fn new(random: &mut Rng, limits: Limits, blocks_fail: bool) -> Plan {
        let starting_faults = match random.u8(0..4) {
            0 | 1 => Faults::none(),
            2 => Faults::disturbances(),
            // No sync may fail here: what it leaves is read and on no medium, and nobody could tell.
            _ => Faults::disturbances()
                .and_any_error(Kind::Open, 0.02)
                .and_any_error(Kind::Read, 0.02)
                .and_any_error(Kind::Files, 0.01)
                .and_any_error(Kind::Write, 0.05),
        };
        let faults = match random.u8(0..4) {
            0 => Faults::none(),
            1 => Faults::disturbances(),
            kind => {
                [Kind::Open, Kind::Allocate, Kind::Sync, Kind::Write, Kind::Files, Kind::Punch, Kind::Read]
                    .into_iter()
                    .fold(
                        Faults {
                            zero_write: if blocks_fail { 0.002 } else { 0.0 },
                            ..Faults::disturbances()
                        },
                        |faults, of| {
                            faults.and_any_error(of, if kind == 2 { 0.01 } else { 0.1 * random.f64() })
                        },
                    )
            }
        };
        let blocking = |chance: f64| {
            [Kind::Allocate, Kind::Sync, Kind::Write, Kind::Read]
                .into_iter()
                .fold(Faults { short_read: 0.02, short_write: 0.02, ..Faults::none() }, |faults, of| {
                    faults.and_any_error(of, chance)
                })
        };
        let blocking_faults = match random.u8(0..4) {
            0 => blocking(0.1 * random.f64()),
            1 => blocking(0.003),
            _ => Faults::none(),
        };
        let starting_blocking_faults = if random.u8(0..8) == 0 { blocking(0.01) } else { Faults::none() };
        let plan = Plan {
            starting_faults,
            starting_blocking_faults,
            faults,
            blocking_faults,
            tasks: random.usize(1..=3).min(limits.tasks),
            steps: random.usize(1..30).min(limits.steps),
            stops_early: random.u8(0..4) == 0,
            loses_catalog: random.u8(0..6) == 0,
            dies_after: (random.u8(0..3) == 0).then(|| random.u64(0..400)),
            inspects: random.u8(0..3) > 0,
            is_in_order: false,
        };
        let mut plan = plan;
        if !blocks_fail {
            // A write that is cancelled twice has failed too, and so has one that takes less than a page.
            for faults in [&mut plan.starting_faults, &mut plan.faults] {
                faults.short_write = 0.0;
                faults.errors.retain(|(kind, errno, _)| {
                    *kind != Kind::Write || matches!(*errno, Errno::INTR | Errno::AGAIN)
                });
            }
        }
        match limits.faults {
            true => plan,
            false => Plan {
                starting_faults: Faults::none(),
                starting_blocking_faults: Faults::none(),
                faults: Faults::none(),
                blocking_faults: Faults::none(),
                ..plan
            },
        }
    }

    /// Nothing goes wrong.
    fn in_order(random: &mut Rng, steps: usize) -> Plan {
        Plan {
            starting_faults: Faults::none(),
            starting_blocking_faults: Faults::none(),
            faults: Faults::none(),
            blocking_faults: Faults::none(),
            tasks: 2,
            steps,
            stops_early: false,
            loses_catalog: random.u8(0..4) == 0,
            dies_after: None,
            inspects: true,
            is_in_order: true,
        }
    }
}
