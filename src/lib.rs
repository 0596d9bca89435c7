//! tailwater: an io_uring-based, thread-per-core storage engine for Linux ingest nodes.
//!
//! One writer per object pours bytes in, any number of readers follow the same object while it is written,
//! up to the watermark of what is safely on disk, to its real end.
//!
//! The rooms, from the cellar up; imports run downward only:
//!
//! - [`ring`]: the seam to the kernel: operations, completions, the arena. All `unsafe` is there.
//! - [`runtime`]: one core: its loop, tasks, timers, sockets, files, and messages between cores.
//! - [`log`]: blocks, records, segments, group commit, and the recovery scan.
//! - [`store`]: objects, watermarks, registries, readers and writers.
//! - [`serve`]: HTTP: heads, ingest, follow, transfer, admin.
//! - [`client`], [`load`]: the client side, on another io_uring runtime than the server.
//! - [`cli`]: the commands.
//!
//! [`context`], [`config`], [`error`] and [`metrics`] are used by all floors.

pub mod cli;
pub mod client;
pub mod config;
pub mod context;
pub mod error;
pub mod load;
pub mod log;
pub mod metrics;
pub mod ring;
pub mod runtime;
pub mod serve;
pub mod store;
