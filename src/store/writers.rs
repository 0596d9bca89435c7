//! Who writes which object on this core, and what becomes of an object whose writer is gone.
//!
//! Of a generation there is one writer at a time. A writer that is dropped without a seal leaves its object
//! interrupted; or, where it may come back, *awaited*: the object stays live for that long, its followers wait, and
//! whoever comes in time goes on where it ended. Nothing of that is in the log: a crash leaves such an object
//! interrupted, as it would any live one. Who comes while a writer is at work takes its place; that one learns of it
//! by [`Writer::replaced`].
//!
//! All writing of one generation is this core's as long as the store runs ([`Object::home`]), so that the catalog
//! learns of it in order; what is only in the catalog may be continued on any core.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::commits::Live;
use super::local::LocalStore;
use super::name::Name;
use super::object::{Object, State};
use super::registry::Registry;
use super::writer::Writer;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::Promise;

/// One core's writers, by generation.
#[derive(Default)]
pub(super) struct Writers {
    held: RefCell<HashMap<u64, Held>>,
    /// Told of every change of a generation's writer.
    changes: Rc<Registry<u64>>,
}

enum Held {
    /// A writer is at work. Or it is to let go: somebody has come to take its place.
    AtWork { is_replaced: bool },
    /// It is gone, and is awaited.
    Awaited(Box<Left>),
}

/// What a writer has left behind.
pub(super) struct Left {
    pub live: Rc<Live>,
    /// Where the next append begins.
    pub offset: u64,
    /// The block with the last record of this object.
    pub sequence: Option<u64>,
    /// Room for what is still to come, where that was told.
    pub promise: Option<Promise>,
    /// The length that the writer has declared, in bytes.
    pub declared_length: Option<u64>,
}

/// What became of the wish to go on with an object.
pub enum Resumed {
    /// This writes it now. All that was appended before is durable.
    Here(Writer),
    /// It must be done on this core.
    On(usize),
}

impl Writers {
    /// Notes that a writer is at work.
    pub(super) fn begin(&self, generation: u64) {
        self.held.borrow_mut().insert(generation, Held::AtWork { is_replaced: false });
    }

    /// Notes that a writer is gone.
    pub(super) fn end(&self, generation: u64) {
        self.held.borrow_mut().remove(&generation);
        self.changes.wake(&generation);
    }

    /// A generation is deleted: nobody is awaited any more.
    pub(super) fn deleted(&self, generation: u64) {
        self.changes.wake(&generation);
    }

    /// How many writers are awaited.
    pub(super) fn awaited(&self) -> usize {
        self.held.borrow().values().filter(|held| matches!(held, Held::Awaited(_))).count()
    }

    /// How many generations have a writer or an awaited one, and how many wait for a change of that.
    #[cfg(test)]
    pub(super) fn held_and_waiting(&self) -> (usize, usize) {
        (self.held.borrow().len(), self.changes.len())
    }

    /// What is awaited, when nobody can come any more.
    pub(super) fn take_awaited(&self) -> Vec<Left> {
        let mut held = self.held.borrow_mut();
        let awaited = held.extract_if(|_, held| matches!(held, Held::Awaited(_)));
        awaited
            .filter_map(|(_, held)| match held {
                Held::Awaited(left) => Some(*left),
                Held::AtWork { .. } => None,
            })
            .collect()
    }

    /// Takes what a writer has left behind, or asks the one that is at work to let go.
    fn take(&self, generation: u64) -> Option<Left> {
        let mut held = self.held.borrow_mut();
        match held.get_mut(&generation)? {
            Held::AtWork { is_replaced } => {
                *is_replaced = true;
                drop(held);
                self.changes.wake(&generation);
                None
            }
            Held::Awaited(_) => match held.insert(generation, Held::AtWork { is_replaced: false }) {
                Some(Held::Awaited(left)) => Some(*left),
                _ => None,
            },
        }
    }

    fn is_at_work(&self, generation: u64) -> bool {
        matches!(self.held.borrow().get(&generation), Some(Held::AtWork { .. }))
    }

    fn is_replaced(&self, generation: u64) -> bool {
        matches!(self.held.borrow().get(&generation), Some(Held::AtWork { is_replaced: true }))
    }

    /// Returns when somebody has come to take the place of the writer that is at work.
    pub(super) async fn replaced(self: Rc<Self>, generation: u64) {
        let writers = self.clone();
        self.changes.wait(generation, move |_| writers.is_replaced(generation).then_some(())).await;
    }

    /// Returns when the writer that is at work has let go.
    async fn released(self: Rc<Self>, generation: u64) {
        let writers = self.clone();
        self.changes.wait(generation, move |_| (!writers.is_at_work(generation)).then_some(())).await;
    }
}

impl LocalStore {
    /// A writer has let go of an object that is not sealed. With a window it is awaited that long.
    pub(super) fn leave(self: &Rc<Self>, left: Left, window: Duration) {
        let generation = left.live.object.generation();
        let (is_deleted, is_live) = (left.live.object.is_deleted(), left.live.object.state() == State::Live);
        if window.is_zero() || is_deleted || !is_live || self.shared().is_stopping() {
            self.writers().end(generation);
            self.interrupt(left.live, left.offset);
            return;
        }
        tracing::debug!(
            object = %left.live.object.name(),
            generation,
            offset = left.offset,
            seconds = window.as_secs_f64(),
            "the writer is awaited"
        );
        let (local, live) = (self.clone(), left.live.clone());
        self.writers().held.borrow_mut().insert(generation, Held::Awaited(Box::new(left)));
        self.writers().changes.wake(&generation);
        self.spawn(async move {
            let changes = local.writers().changes.clone();
            let (watching, object) = (local.clone(), live.object.clone());
            let mine = live.clone();
            // Until somebody comes, or the object is deleted: nothing else of this writer is awaited then.
            let taken = changes.wait(generation, move |_| {
                let held = watching.writers().held.borrow();
                let is_awaited = matches!(held.get(&generation),
                    Some(Held::Awaited(left)) if Rc::ptr_eq(&left.live, &mine));
                (!is_awaited || object.is_deleted()).then_some(())
            });
            let _ = local.core().timeout(window, taken).await;
            local.give_up(generation, &live);
        });
    }

    /// Nobody has come: the object is interrupted.
    fn give_up(self: &Rc<Self>, generation: u64, live: &Rc<Live>) {
        let mut held = self.writers().held.borrow_mut();
        let is_awaited =
            matches!(held.get(&generation), Some(Held::Awaited(left)) if Rc::ptr_eq(&left.live, live));
        let left = if is_awaited { held.remove(&generation) } else { None };
        drop(held);
        if let Some(Held::Awaited(left)) = left {
            tracing::info!(object = %live.object.name(), generation, "the writer has not come back");
            self.metrics().writers_given_up.increment();
            self.interrupt(left.live, left.offset);
        }
    }

    /// Goes on with an object that is not sealed: with one that is interrupted, one whose writer is awaited, or one
    /// whose writer is at work, which has to let go. When a writer is answered, everything before its offset is
    /// durable. When that writer is dropped in turn, it is awaited for `window`.
    ///
    /// What was appended behind that offset before and is lost, since the device has refused it, does not count as soon as
    /// something behind the offset is acknowledged. Until then the device may have it all the same, and a start may find
    /// it: whoever goes on after a start asks where.
    ///
    /// Dropping the future may leave the object without the writer that was at work, and awaited.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: there is no such generation. [`Kind::WrongState`]: it is sealed. What the catalog's disk
    /// says; the failure of the log; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn resume(
        self: &Rc<Self>,
        context: &Context,
        name: &Name,
        generation: u64,
        window: Duration,
    ) -> Result<Resumed> {
        self.core().under(context, self.wait_for_catalog()).await?;
        let resumed = self.core().under(context, self.take_over(name, generation, window)).await??;
        if let Resumed::Here(writer) = &resumed {
            writer.acknowledged(context).await?;
            self.metrics().writers_resumed.increment();
        }
        Ok(resumed)
    }

    /// A generation of a name; where none is asked for, the newest one unless that is sealed. Dropping the future
    /// changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn find_upload(
        &self,
        context: &Context,
        name: &Name,
        generation: Option<u64>,
    ) -> Result<Option<Arc<Object>>> {
        let _pin = self.core().under(context, self.complete(name)).await??;
        Ok(match generation {
            Some(generation) => self.shared().namespace().generation(name, generation),
            None => self.shared().namespace().unfinished(name),
        })
    }

    /// Deletes one generation of a name. When this returns the deletion is durable. A writer of it learns of that
    /// with its next call. Dropping the future leaves the deletion undone, or to go on by itself.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; as [`LocalStore::delete`].
    pub async fn delete_generation(&self, context: &Context, name: &Name, generation: u64) -> Result<()> {
        let object = self.find_upload(context, name, Some(generation)).await?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no generation {generation:x} of {name}"))
        })?;
        self.delete_objects(context, vec![object]).await
    }

    async fn take_over(self: &Rc<Self>, name: &Name, generation: u64, window: Duration) -> Result<Resumed> {
        loop {
            let pin = self.complete(name).await?;
            let found = self.shared().namespace().generation(name, generation);
            let object = found.ok_or_else(|| {
                Error::new(Kind::NotFound, format!("there is no generation {generation:x} of {name}"))
            })?;
            let state = object.state();
            if state == State::Sealed {
                return Err(Error::new(Kind::WrongState, format!("{name} is complete")));
            }
            if let Some(home) = object.home().filter(|&home| home != self.core().index()) {
                return Ok(Resumed::On(home));
            }
            if state == State::Interrupted {
                if self.shared().namespace().resume(&object, self.core().index()) {
                    drop(pin);
                    return Ok(Resumed::Here(self.resumed(&object, window)));
                }
                continue;
            }
            drop(pin);
            if let Some(left) = self.writers().take(generation) {
                tracing::debug!(object = %name, generation, offset = left.offset, "the writer is back");
                return Ok(Resumed::Here(Writer::take_up(self.clone(), left, window)));
            }
            if self.writers().is_at_work(generation) {
                self.writers().clone().released(generation).await;
            } else {
                // It is gone for good: its interruption is on its way.
                let ending = object.clone();
                self.wait_for_growth(&object, move || (ending.state() != State::Live).then_some(())).await;
            }
        }
    }

    /// The writer of an object that was interrupted and is live again.
    fn resumed(self: &Rc<Self>, object: &Arc<Object>, window: Duration) -> Writer {
        let (generation, offset) = (object.generation(), object.committed());
        tracing::info!(object = %object.name(), generation, offset, "an interrupted object is continued");
        self.metrics().objects_live.increment();
        self.writers().begin(generation);
        let left = Left {
            live: Live::new(object.clone(), true),
            offset,
            sequence: None,
            promise: None,
            declared_length: object.declared_length(),
        };
        Writer::take_up(self.clone(), left, window)
    }
}
