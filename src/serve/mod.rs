//! HTTP: heads, ingest, follow, transfer, admin.
//!
//! Parsing is pure ([`head`], [`target`], [`chunked`], [`range`], [`conditional`]), and so is what an answer looks
//! like ([`reply`], [`problem`]). Above that a connection is one task on one core: it reads heads and hands each
//! request to `ingest` (PUT, POST), `follow` (GET, HEAD), `names` (listings, DELETE) or `admin`. An object may be
//! written by several requests (`uploads`): by ranges (`ranged`), as the draft for resumable uploads has it
//! (`resumable`), or by tus (`tus`).
//!
//! Core 0 accepts and gives each connection to the core with the fewest.

mod admin;
mod body;
pub mod chunked;
pub mod conditional;
mod connection;
#[cfg(test)]
mod drops;
mod follow;
pub mod head;
mod ingest;
mod names;
pub mod problem;
pub mod range;
mod ranged;
pub mod reply;
mod resumable;
mod server;
pub mod target;
mod transfer;
mod tus;
mod uploads;

#[cfg(test)]
pub(crate) use drops::dropped;
pub use server::Server;
