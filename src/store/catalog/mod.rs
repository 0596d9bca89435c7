//! The catalog: names, metadata and extents of what is no longer in an active segment.
//!
//! It is derived: the segments alone hold everything, and the catalog can be made anew from them. What it saves is
//! reading them all at the start, and keeping what they hold in memory.
//!
//! [`database`] is the embedded database and its transactions, [`changes`] what the logs tell it, [`service`] the
//! threads that keep cores from ever waiting for it. [`check`] looks whether its rows agree, and [`overlay`] lets it be
//! opened where nothing may be written.

pub mod changes;
pub mod check;
pub mod database;
mod failure;
pub mod overlay;
pub mod service;
mod tables;
#[cfg(test)]
mod tests;
mod work;

pub use changes::{Batch, Change, SegmentUse};
pub use database::{Database, Nameless, Outcome, Step};
pub(super) use failure::CURE;
pub use service::{Answer, Books, CreateDocument, Dead, Entered, Listed, Page, Read, Write};
