//! Objects, watermarks, registries, readers and writers.

pub mod name;
