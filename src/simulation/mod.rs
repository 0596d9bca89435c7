//! The engine's own code in a simulated world: workloads, models, and the scheduler that turns several cores in one
//! thread. Compiled for tests and with the feature `simulation`; no part of the library's surface otherwise.
//!
//! # How to drive a world
//!
//! ```text
//! let world = World::new(WorldSettings { seed, ..WorldSettings::default() });
//! world.make_folder(Path::new("/data/segments"));
//! let mut cores = Cores::new(&world, 2);
//! cores.begin(0, |core| async move { ... });      // what `Core::run` would be given
//! cores.begin(1, |core| async move { ... });
//! match cores.run(limit) {                          // turns the cores in an order that chance chooses
//!     Pause::Ended => {}                            // all main futures are done
//!     Pause::Limit => cores.cut_power(),            // so many turns are over: pull the plug in the midst of it
//!     Pause::Stalled => panic!("everybody waits for ever"),
//! }
//! world.set_faults(Faults::none());
//! let mut cores = Cores::new(&world, 2);           // the next start, on what the cut has left
//! ```
//!
//! A workload takes its chances from [`World::chance`], its time from its core, its files through its core, and
//! iterates over nothing that is ordered by address or by a random hash: then the seed alone says what happens, and
//! [`World::trace`] is the same each time. What the workload expects it keeps in a model outside of the cores, which
//! survives the cut; see [`log`] for one.

mod cores;
pub mod engine;
pub mod log;

pub use crate::ring::simulated::{ERRNOS, Event, Faults, Kind, World, WorldSettings};
pub use cores::{Cores, Pause, Pauses};
