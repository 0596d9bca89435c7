//! Objects, watermarks, registries, readers and writers.

pub mod listing;
pub mod name;
