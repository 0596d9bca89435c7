//! How far an object is, and who is to be told: what its writer's core and the readers' cores share.
//!
//! A core whose readers have everything says so ([`Progress::add_interest`]) before it looks once more; the writer's
//! core advances the watermark or the state before it looks who is interested. So either the reader sees the change,
//! or the writer sees the reader. `tests/models.rs` tries every interleaving of this.

use crate::sync::{AtomicU8, AtomicU64, Ordering};

/// Watermark, state and interest of one object.
pub(super) struct Progress {
    committed: AtomicU64,
    state: AtomicU8,
    /// A bit for each core with readers that wait for more.
    interest: AtomicU64,
}

impl Progress {
    /// So much is committed, and nobody waits.
    pub(super) fn new(state: u8, committed: u64) -> Progress {
        Progress {
            committed: AtomicU64::new(committed),
            state: AtomicU8::new(state),
            interest: AtomicU64::new(0),
        }
    }

    /// The watermark. It only grows.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::SeqCst)
    }

    /// The state. Once it is one that ends the object, the watermark that is read after it was that of the end, unless
    /// the object goes on after all.
    pub(super) fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    /// Advances the watermark. The one place where it changes.
    pub(super) fn commit(&self, end: u64) {
        let former = self.committed.swap(end, Ordering::SeqCst);
        assert!(former <= end, "a watermark only grows");
    }

    /// Changes the state, when the watermark is final.
    pub(super) fn end(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    /// It goes on after all: from now on the watermark may grow again.
    pub(super) fn resume(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    /// Says that readers on this core wait. Who calls this looks once more afterwards.
    pub(super) fn add_interest(&self, core: usize) {
        self.interest.fetch_or(1 << core, Ordering::SeqCst);
    }

    /// Whether readers wait.
    pub(super) fn has_interest(&self) -> bool {
        self.interest.load(Ordering::SeqCst) != 0
    }

    /// Takes the cores whose readers wait, a bit for each. Who calls this has changed something before.
    pub(super) fn take_interest(&self) -> u64 {
        // Mostly nobody waits; a load is cheaper than a swap. It cannot miss anybody: whoever registers after it
        // sees the change that was made before it.
        if self.has_interest() { self.interest.swap(0, Ordering::SeqCst) } else { 0 }
    }
}
