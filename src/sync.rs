//! What the code that several threads run at once is built of.
//!
//! That code is `context::node`, `runtime::handover`, `runtime::channel` and `store::progress`; it takes its primitives
//! from `crate::sync`, so that `tests/models.rs` can compile the very same files with primitives whose every
//! interleaving is tried.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(crate) use crossbeam_queue::SegQueue;
