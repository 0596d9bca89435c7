//! A reader of one object, on its core: live or not, from any offset.
//!
//! A reader that lags is nowhere registered: it walks the extents at its own pace, and costs nobody anything. Only
//! when it has everything up to the watermark it waits in the registry of its core.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::extents::{Cursor, Extent};
use super::local::LocalStore;
use super::object::{Object, State};
use crate::context::Context;
use crate::error::Result;
use crate::log::Segment;
use crate::ring::Region;

/// Reads one object. Keeps what it reads from being used again, also when the object is deleted meanwhile.
pub struct Reader {
    local: Rc<LocalStore>,
    object: Arc<Object>,
    offset: u64,
    /// A place in the object's list, once it has come to what is there.
    cursor: Option<Cursor>,
    /// Extents from the catalog, for what comes before that.
    window: VecDeque<Extent>,
}

/// Where some of an object's bytes are.
pub struct Piece {
    /// The bytes in memory, if they are still there. Not to be kept across a wait.
    pub hot: Option<Region>,
    /// The segment they lie in.
    pub segment: Arc<Segment>,
    /// Where in the segment, in bytes.
    pub position: u64,
    /// How many bytes.
    pub length: usize,
}

/// What a reader that has everything finds after waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// There is more to read.
    Available,
    /// This was all: the writer has sealed the object.
    Sealed,
    /// The writer is gone without sealing: this is no clean end.
    Interrupted,
}

impl Reader {
    pub(super) fn new(local: Rc<LocalStore>, object: Arc<Object>, offset: u64) -> Reader {
        Reader { local, object, offset, cursor: None, window: VecDeque::new() }
    }

    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// The store on this core.
    pub fn local(&self) -> &Rc<LocalStore> {
        &self.local
    }

    /// Where the reader is.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes are there to read now.
    pub fn available(&self) -> u64 {
        self.object.committed().saturating_sub(self.offset)
    }

    /// Makes sure that it is known where the next bytes are, if any are there to read: the catalog may have to be
    /// asked. Dropping the future changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`crate::Kind::Damaged`] where it has lost them; [`crate::Kind::Closed`].
    pub async fn locate(&mut self) -> Result<()> {
        if self.available() == 0 {
            return Ok(());
        }
        self.skip_what_is_behind();
        if self.cursor.as_mut().is_some_and(|cursor| cursor.get().is_some()) || !self.window.is_empty() {
            return Ok(());
        }
        self.cursor = self.object.extents().cursor(self.offset);
        if self.cursor.as_mut().is_none_or(|cursor| cursor.get().is_none()) {
            self.cursor = None;
            let beginning = self.object.extents().beginning();
            let stored = self.local.stored_extents(&self.object, self.offset).await?;
            self.window = stored.into_iter().take_while(|extent| extent.offset < beginning).collect();
        }
        Ok(())
    }

    /// Where the next bytes are, as far as it is known: pieces in order, up to `length_max` bytes and `pieces_max`
    /// pieces, not beyond the watermark. Answers their length, which after [`Reader::locate`] is not 0 where something
    /// is there to read; the reader stays where it is.
    pub fn gather(&mut self, length_max: u64, pieces_max: usize, pieces: &mut Vec<Piece>) -> usize {
        let end = self.object.committed().min(self.offset.saturating_add(length_max));
        self.skip_what_is_behind();
        let mut offset = self.offset;
        let mut take = |extent: &Extent| {
            if offset >= end || pieces.len() >= pieces_max {
                return false;
            }
            let skipped = offset - extent.offset;
            let length = (extent.end().min(end) - offset) as usize;
            let hot = extent.hot.upgrade().map(|region| {
                let start = skipped as usize;
                region.slice(start..start + length)
            });
            let (segment, position) = (extent.segment.clone(), extent.position + skipped);
            pieces.push(Piece { hot, segment, position, length });
            offset += length as u64;
            true
        };
        match self.cursor.clone() {
            Some(mut cursor) => {
                while cursor.get().is_some_and(&mut take) {
                    cursor.advance();
                }
            }
            None => {
                self.window.iter().take_while(|extent| take(extent)).for_each(drop);
            }
        }
        (offset - self.offset) as usize
    }

    /// Goes on by this many bytes, which were gathered.
    pub fn advance(&mut self, length: u64) {
        self.offset += length;
        assert!(self.offset <= self.object.committed(), "a reader never goes beyond the watermark");
        self.skip_what_is_behind();
    }

    /// Lets go of extents that end before the offset: a reader may begin beyond the watermark.
    fn skip_what_is_behind(&mut self) {
        while self.window.front().is_some_and(|extent| extent.end() <= self.offset) {
            self.window.pop_front();
        }
        if let Some(cursor) = &mut self.cursor {
            while cursor.get().is_some_and(|extent| extent.end() <= self.offset) {
                cursor.advance();
            }
        }
    }

    /// Waits until there is more, or it is clear that there never will be. With `held_back`, that many bytes do not
    /// count as more as long as the object is not sealed. Dropping the future leaves the registry.
    ///
    /// # Errors
    /// [`Kind::Cancelled`](crate::Kind::Cancelled) and [`Kind::DeadlineExceeded`](crate::Kind::DeadlineExceeded) from
    /// the context: the reader stays where it is, and has left the registry.
    pub async fn more(&self, context: &Context, held_back: u64) -> Result<More> {
        let (object, offset) = (self.object.clone(), self.offset);
        let growth = self.local.wait_for_growth(&self.object, move || {
            // The state first: once it is not live, the watermark is final.
            let state = object.state();
            let available = object.committed().saturating_sub(offset);
            if available > if state == State::Sealed { 0 } else { held_back } {
                return Some(More::Available);
            }
            match state {
                State::Live => None,
                State::Sealed => Some(More::Sealed),
                State::Interrupted => Some(More::Interrupted),
            }
        });
        self.local.core().under(context, growth).await
    }

    /// Notes that bytes that have just become durable are on their way to this follower.
    pub fn note_first_send(&self) {
        if let Some(appended) = self.object.take_fresh() {
            let elapsed =
                self.local.shared().since_start(self.local.core().precise_now()).saturating_sub(appended);
            self.local.metrics().append_to_first_send.record(elapsed);
        }
    }
}
