//! One core's readers that wait: for more of an object, or for a name to come into being.
//!
//! Only the core itself touches its registry. A waiter that is dropped leaves it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Waiters by what they wait for.
pub struct Registry<K> {
    waiting: RefCell<HashMap<K, Slab<Waiting>>>,
    registrations: Cell<u64>,
}

struct Waiting {
    /// Tells this waiter from an earlier one at the same place.
    registration: u64,
    waker: Waker,
}

impl<K: Eq + Hash + Clone> Default for Registry<K> {
    fn default() -> Registry<K> {
        Registry { waiting: RefCell::default(), registrations: Cell::default() }
    }
}

impl<K: Eq + Hash + Clone> Registry<K> {
    /// Wakes all who wait for this.
    pub fn wake(&self, key: &K) {
        let waiting = self.waiting.borrow_mut().remove(key);
        for (_, waiting) in waiting.into_iter().flatten() {
            waiting.waker.wake();
        }
    }

    /// Whether somebody waits for this.
    pub fn has(&self, key: &K) -> bool {
        self.waiting.borrow().contains_key(key)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.borrow().values().map(Slab::len).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Waits until `check` answers something. It is asked at once, after each wake, and once more after each
    /// registration, with `true`: then it must say to others that it waits before it looks.
    pub fn wait<T, C>(self: &Rc<Self>, key: K, check: C) -> WaitFor<K, C>
    where
        C: FnMut(bool) -> Option<T>,
    {
        WaitFor { registry: self.clone(), key, check, place: None }
    }
}

/// A wait. Dropping it leaves the registry.
pub struct WaitFor<K: Eq + Hash + Clone, C> {
    registry: Rc<Registry<K>>,
    key: K,
    check: C,
    /// Place and registration.
    place: Option<(usize, u64)>,
}

impl<K: Eq + Hash + Clone, C> WaitFor<K, C> {
    fn leave(&mut self) {
        let Some(place) = self.place.take() else { return };
        let mut waiting = self.registry.waiting.borrow_mut();
        let Some(places) = waiting.get_mut(&self.key) else { return };
        let (place, registration) = place;
        // A wake empties the list, and somebody else may have come to this place since.
        let is_ours = places.get(place).is_some_and(|waiting| waiting.registration == registration);
        let former = is_ours.then(|| places.remove(place));
        if places.is_empty() {
            waiting.remove(&self.key);
        }
        drop(waiting);
        drop(former);
    }
}

impl<K: Eq + Hash + Clone + Unpin, T, C: FnMut(bool) -> Option<T> + Unpin> Future for WaitFor<K, C> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        if let Some(answer) = (this.check)(false) {
            this.leave();
            return Poll::Ready(answer);
        }
        let held = this.place.is_some_and(|(place, registration)| {
            let waiting = this.registry.waiting.borrow();
            waiting.get(&this.key).and_then(|places| places.get(place)).is_some_and(|waiting| {
                waiting.registration == registration && waiting.waker.will_wake(context.waker())
            })
        });
        if !held {
            this.leave();
            let registration = this.registry.registrations.get() + 1;
            this.registry.registrations.set(registration);
            let mut waiting = this.registry.waiting.borrow_mut();
            let places = waiting.entry(this.key.clone()).or_default();
            let place = places.insert(Waiting { registration, waker: context.waker().clone() });
            this.place = Some((place, registration));
        }
        match (this.check)(true) {
            Some(answer) => {
                this.leave();
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl<K: Eq + Hash + Clone, C> Drop for WaitFor<K, C> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_waiter_that_is_dropped_leaves_the_registry() {
        let registry = Rc::new(Registry::<u64>::default());
        let mut first = registry.wait(7, |_| None::<()>);
        let mut second = registry.wait(7, |_| None::<()>);
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        assert_eq!(registry.len(), 2);
        drop(first);
        assert_eq!(registry.len(), 1);
        drop(second);
        assert!(registry.is_empty());
    }

    #[test]
    fn a_stale_place_takes_nobody_else_out() {
        let registry = Rc::new(Registry::<u64>::default());
        let mut first = registry.wait(7, |_| None::<()>);
        assert!(poll(&mut first).is_pending());
        registry.wake(&7);
        let mut second = registry.wait(7, |_| None::<()>);
        assert!(poll(&mut second).is_pending());
        drop(first);
        assert_eq!(registry.len(), 1, "the second waiter has the place of the first, and keeps it");
        drop(second);
    }

    #[test]
    fn a_change_between_look_and_registration_is_seen() {
        let registry = Rc::new(Registry::<u64>::default());
        let mut wait = registry.wait(1, |registered| registered.then_some(3));
        assert_eq!(poll(&mut wait), Poll::Ready(3));
        assert!(registry.is_empty());
    }

    #[test]
    fn a_woken_waiter_that_finds_nothing_waits_again() {
        let registry = Rc::new(Registry::<u64>::default());
        let looks = Rc::new(Cell::new(0));
        let seen = looks.clone();
        let mut wait = registry.wait(1, move |_| {
            seen.set(seen.get() + 1);
            None::<()>
        });
        assert!(poll(&mut wait).is_pending());
        registry.wake(&1);
        assert!(registry.is_empty());
        assert!(poll(&mut wait).is_pending());
        assert_eq!((registry.len(), looks.get()), (1, 4));
    }
}
