//! A reader of one object, on its core: live or not, from any offset.
//!
//! A reader that lags is nowhere registered: it walks the extents at its own pace, and costs nobody anything. Only
//! when it has everything up to the watermark it waits in the registry of its core.

use std::rc::Rc;
use std::sync::Arc;

use super::extents::Cursor;
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
    cursor: Cursor,
    offset: u64,
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
        let cursor = object.extents().cursor(offset);
        Reader { local, object, cursor, offset }
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

    /// Where the next bytes are: pieces in order, up to `length_max` bytes and `pieces_max` pieces, not beyond the
    /// watermark. Answers their length; the reader stays where it is.
    pub fn gather(&mut self, length_max: u64, pieces_max: usize, pieces: &mut Vec<Piece>) -> usize {
        let end = self.object.committed().min(self.offset.saturating_add(length_max));
        self.skip_what_is_behind();
        let mut cursor = self.cursor.clone();
        let mut offset = self.offset;
        while offset < end && pieces.len() < pieces_max {
            let Some(extent) = cursor.get() else {
                unreachable!("the watermark is beyond the extents");
            };
            let skipped = offset - extent.offset;
            let length = (extent.end().min(end) - offset) as usize;
            let hot = extent.hot.upgrade().map(|region| {
                let start = skipped as usize;
                region.slice(start..start + length)
            });
            pieces.push(Piece {
                hot,
                segment: extent.segment.clone(),
                position: extent.position + skipped,
                length,
            });
            offset += length as u64;
            cursor.advance();
        }
        (offset - self.offset) as usize
    }

    /// Goes on by this many bytes, which were gathered.
    pub fn advance(&mut self, length: u64) {
        self.offset += length;
        assert!(self.offset <= self.object.committed(), "a reader never goes beyond the watermark");
        self.skip_what_is_behind();
    }

    /// Moves the cursor to the extent that holds the offset, or to where it will be: a reader may begin beyond the
    /// watermark, and then extents come that end before its offset.
    fn skip_what_is_behind(&mut self) {
        while self.cursor.get().is_some_and(|extent| extent.end() <= self.offset) {
            self.cursor.advance();
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
            let elapsed = self.local.shared().elapsed().saturating_sub(appended);
            self.local.metrics().append_to_first_send.record(elapsed);
        }
    }
}
