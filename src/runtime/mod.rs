//! One core: its loop, tasks, timers, sockets, files, and what passes between cores.
//!
//! A [`Core`] is one thread with one ring. Its tasks run on that thread only, one at a time, and never wait
//! except through the core: so state that belongs to a core needs no lock, and what happens between two
//! `.await`s happens at once.
//!
//! Sockets are waited for through the ring and then read and written by non-blocking calls (`stream`): bytes
//! are taken from a socket at a moment when somebody owns them, so dropping any future loses none. Files are
//! read and written by ring operations, which own their buffers.

mod channel;
#[cfg(test)]
mod channel_tests;
mod core;
#[cfg(test)]
mod drops;
mod file;
mod handover;
mod race;
mod stream;
mod timer;
mod under;

pub use self::channel::{Receiver, Sender, channel};
pub use self::core::{Core, Mailbox, Task, TaskGroup, allowed_processors};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use self::core::{Running, Turn};
#[cfg(test)]
pub(crate) use self::drops::dropped;
pub use self::file::Pipe;
pub use self::race::{Either, race, yield_now};
pub use self::stream::{Listener, Stream};
pub use self::timer::Elapsed;
