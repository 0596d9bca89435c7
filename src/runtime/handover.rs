//! What other threads hand over to a core, and whether it must be woken for that.
//!
//! The core declares itself asleep before it looks for the last time ([`HandOver::may_sleep`]); the other side hands
//! over before it looks whether the core sleeps. So either the core sees what was handed over, or the other side sees
//! that it sleeps, and rings; of several, one does. `tests/models.rs` tries every interleaving of this.

use crate::sync::{AtomicBool, Ordering, SegQueue};

/// Things on their way to a core, and the wakes of its main future.
pub(super) struct HandOver<T> {
    things: SegQueue<T>,
    main_woken: AtomicBool,
    asleep: AtomicBool,
}

impl<T> HandOver<T> {
    pub(super) fn new() -> HandOver<T> {
        HandOver {
            things: SegQueue::new(),
            main_woken: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        }
    }

    /// Hands something over, from any thread. True: the core sleeps, and the caller is the one to ring.
    #[must_use]
    pub(super) fn push(&self, thing: T) -> bool {
        self.things.push(thing);
        self.asleep.swap(false, Ordering::SeqCst)
    }

    /// Says that the main future is to be polled, on the core itself.
    pub(super) fn wake_main_here(&self) {
        self.main_woken.store(true, Ordering::SeqCst);
    }

    /// Says that the main future is to be polled, on another thread. True: as with [`HandOver::push`].
    #[must_use]
    pub(super) fn wake_main(&self) -> bool {
        self.main_woken.store(true, Ordering::SeqCst);
        self.asleep.swap(false, Ordering::SeqCst)
    }

    /// The core: the next thing.
    pub(super) fn pop(&self) -> Option<T> {
        self.things.pop()
    }

    /// The core: whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// The core: whether the main future was woken since it was asked last.
    pub(super) fn take_main_woken(&self) -> bool {
        self.main_woken.swap(false, Ordering::SeqCst)
    }

    /// The core: declares itself asleep, then looks for the last time. False: there is something to do. After either
    /// answer, and the sleep, comes [`HandOver::awake`].
    pub(super) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        self.things.is_empty() && !self.main_woken.load(Ordering::SeqCst)
    }

    /// The core: nobody needs to ring.
    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}
