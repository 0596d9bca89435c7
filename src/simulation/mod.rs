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

//!
//! # What is believed of disks, and what is not
//!
//! Believed, because nothing could be kept otherwise:
//!
//! - A sector of 512 bytes is written wholly or not at all. No larger unit is: a power cut leaves any of the sectors
//!   of each write that was not durable.
//! - What a write with DSYNC (FUA, or a flush behind it) has acknowledged is on stable storage, and so is what was
//!   complete when a sync began that has succeeded. The device does not lie: a cache that acknowledges flushes and
//!   loses them loses what was acknowledged to everybody, and nothing above it could tell.
//! - A write goes where it was sent. Reads may come from elsewhere, but writes are never misdirected.
//! - A sync of a folder makes its names durable, and of changes of names a beginning survives a cut.
//!
//! Not believed:
//!
//! - That writes end or reach the medium in the order in which they were begun, or all of one when it was not synced.
//! - That a file's length, its room or its name are durable when its bytes are: each needs its own sync.
//! - That a write which has failed has left things as they were: any of its sectors may be on the medium.
//! - That what is read behind a failed sync is on any medium, or that another sync would put it there.
//! - That zeroes are where nothing was written, in files that are used again.
//! - That reads are right: bits rot for good, are wrong once, or are those of another place. Where checksums are
//!   looked at (starts, whoever verifies, exports, copies of what is moved) that is noticed and named. **Bytes that are
//!   served are not looked at**: a splice never shows them to the program, so a rotten payload is served as it is, and
//!   the runs of [`engine`] have no such reads. And of the last block of a log nobody can tell a wrong read from a
//!   write that was cut off: a start that reads it wrong leaves it out.
//!
//! The catalog lies on the same device, in a file that is written and synced by calls that wait. A process that dies
//! may do so between any two of them, or in the midst of one.

mod cores;
pub mod engine;
pub mod log;

pub use crate::ring::simulated::{ERRNOS, Event, Faults, Kind, World, WorldSettings};
pub use cores::{Cores, Pause, Pauses};
