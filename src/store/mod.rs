//! Objects, watermarks, registries, readers and writers.
//!
//! An [`Object`] is one generation of a name. Its writer appends on one core ([`Writer`]); what has become durable
//! advances the watermark and wakes the readers ([`Reader`]) that wait, each core from its own registry. Names are
//! one map for all cores ([`namespace`]); everything about bytes is without locks.
//!
//! [`Engine`] starts and ends all of it: a data folder, a thread for each core, and what runs there.
//! [`Store`] is the way in for other threads and runtimes.

mod engine;
mod extents;
mod folder;
mod handle;
pub mod listing;
mod local;
pub mod name;
pub mod namespace;
mod object;
mod progress;
mod reader;
mod rebuild;
mod registry;
mod writer;

pub use engine::{Engine, Service};
pub use handle::{Store, StoreReader, StoreWriter};
pub use listing::ListingQuery;
pub use local::{LocalStore, Shared};
pub use name::Name;
pub use namespace::Listing;
pub use object::{Metadata, Object, State};
pub use reader::{More, Piece, Reader};
pub use registry::Registry;
pub use writer::Writer;
