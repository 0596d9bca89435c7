//! Objects, watermarks, registries, readers and writers.
//!
//! An [`Object`] is one generation of a name. Its writer appends on one core ([`Writer`]); what has become durable
//! advances the watermark and wakes the readers ([`Reader`]) that wait, each core from its own registry. Names with
//! news are one map for all cores ([`namespace`]); what is no longer in an active segment is in the catalog, a
//! database on threads of its own; everything about bytes is without locks.
//!
//! [`Engine`] starts and ends all of it: a data folder, a thread for each core, and what runs there.
//! [`Store`] is the way in for other threads and runtimes.

pub(crate) mod assembly;
mod catalog;
mod commits;
#[cfg(test)]
mod drops;
mod engine;
mod expiry;
mod extents;
pub mod finding;
mod folder;
mod handle;
pub mod listing;
mod local;
pub mod name;
pub mod namespace;
mod object;
pub mod offline;
mod progress;
mod reader;
mod reclaim;
pub(crate) mod recover;
mod registry;
mod shared;
pub mod verify;
mod writer;
mod writers;

#[cfg(any(test, feature = "simulation"))]
pub(crate) use catalog::{Books, Database, check::Lookup};
pub use catalog::{Listed, Page};
#[cfg(test)]
pub(crate) use drops::{Census, dropped};
pub use engine::{Engine, Service};
pub use handle::{Store, StoreReader, StoreWriter};
pub use listing::ListingQuery;
pub use local::LocalStore;
pub use name::Name;
pub use object::{Metadata, Object, State};
pub use reader::{More, Piece, Reader};
pub use registry::Registry;
pub use shared::Shared;
pub use writer::Writer;
pub use writers::Resumed;
