//! tailwater: an io_uring-based, thread-per-core storage engine for Linux ingest nodes.
//!
//! One writer per object pours bytes in, any number of readers follow the same object while it is written,
//! up to the watermark of what is safely on disk, to its real end.
//!
//! What a service that embeds it needs is at the top: an [`Engine`] is started on a data folder, and its [`Store`]
//! is called from any thread and any async runtime.
//!
//! ```
//! use tailwater::{Config, Context, Engine, Metadata, Name};
//! # fn block_on<F: Future>(future: F) -> F::Output {
//! #     tokio_uring::start(future)
//! # }
//! # fn main() -> tailwater::Result<()> {
//! # let folder = tempfile::tempdir().expect("a folder");
//! # let data = folder.path().join("data");
//! let config = Config { data, cores: 1, ..Config::default() };
//! let engine = Engine::start(&config)?;
//! let store = engine.store();
//! block_on(async {
//!     let context = Context::background();
//!     let name = Name::parse("camera-1/2026-11-22.mp4")?;
//!     let mut writer = store.create(&context, name.clone(), Metadata::default(), false).await?;
//!     let mut reader = store.open(&context, &name, 0).await?;
//!     writer.append(&context, "on stable storage when this returns".into()).await?;
//!     writer.write_frame(&context, 1_000_000, ", and so is this frame".into()).await?;
//!     writer.seal(&context).await?;
//!     let mut bytes = Vec::new();
//!     while let Some(some) = reader.next(&context, 1 << 20).await? {
//!         bytes.extend_from_slice(&some);
//!     }
//!     assert_eq!(bytes, b"on stable storage when this returns, and so is this frame");
//!     Ok::<_, tailwater::Error>(())
//! })?;
//! engine.stop()
//! # }
//! ```
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
//! [`context`], [`config`], [`error`], [`mod@errno`] and [`metrics`] are used by all floors.

pub mod cli;
pub mod client;
pub mod config;
pub mod context;
#[cfg(test)]
mod drops;
pub mod errno;
pub mod error;
pub mod load;
pub mod log;
pub mod metrics;
pub mod ring;
pub mod runtime;
pub mod serve;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod store;
mod sync;

pub use config::Config;
pub use context::Context;
pub use error::{Error, Kind, Result};
pub use store::{
    Engine, Listed, ListingQuery, Metadata, Name, Object, Page, State, Store, StoreReader, StoreWriter,
};
