//! The one writer of an object, on its core.

use std::rc::Rc;
use std::sync::Arc;

use super::commits::{Live, Note};
use super::local::{LocalStore, record};
use super::object::{Object, State, microseconds};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::Promise;
use crate::log::format::RecordKind;

/// Writes one object. Dropping it without [`Writer::seal`] interrupts the object: what was appended is kept, and
/// its followers get an unclean end.
pub struct Writer {
    local: Rc<LocalStore>,
    live: Rc<Live>,
    /// Where the next append begins.
    offset: u64,
    /// The block with the last record of this object.
    sequence: u64,
    ended: bool,
    /// Room for what is still to come, where that was told.
    promise: Option<Promise>,
}

impl Writer {
    pub(super) fn new(
        local: Rc<LocalStore>,
        live: Rc<Live>,
        sequence: u64,
        promise: Option<Promise>,
    ) -> Writer {
        Writer { local, live, offset: 0, sequence, ended: false, promise }
    }

    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.live.object
    }

    /// How many bytes were appended, in whole appends: those up to the object's watermark are durable.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends what `fill` puts into the room it is given: at most `wanted` bytes, straight into the open block.
    /// Zero from `fill` means that nothing is appended. None: there is no room now, see [`Writer::room`].
    ///
    /// The bytes are in the log when this returns, and durable when the watermark says so.
    ///
    /// # Errors
    /// What `fill` says; [`Kind::WrongState`] when the object was deleted; the failure of the log. Nothing is
    /// appended then.
    pub fn append_from<E: From<Error>>(
        &mut self,
        wanted: usize,
        fill: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<Option<usize>, E> {
        self.check_not_deleted()?;
        self.check_length(self.offset.saturating_add(wanted as u64))?;
        let timestamp = microseconds(self.local.core().wall_clock());
        let (live, offset) = (&self.live, self.offset);
        let appended = self.local.log().append(wanted, false, fill, |length| {
            let header = record(RecordKind::Append, length, live.object.generation(), offset, timestamp);
            (header, Note::Append { live: live.clone(), offset, continued: false })
        })?;
        let Some(appended) = appended else { return Ok(None) };
        if appended.length > 0 {
            self.advance(appended.length as u64);
            self.sequence = appended.sequence;
        }
        Ok(Some(appended.length))
    }

    /// Waits until there may be room for an append of about `wanted` bytes. Dropping the future changes nothing.
    ///
    /// # Errors
    /// [`Kind::NoSpace`]; the failure of the log; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn room(&self, context: &Context, wanted: usize) -> Result<()> {
        self.local.log().room(context, wanted, false).await
    }

    /// Appends bytes, all or none of them, and waits until they are durable.
    ///
    /// Dropping the future: before all bytes are in the log, none of them are appended; after that all of them
    /// are. [`Writer::offset`] says which. The same holds where the context ends: a context that has ended before
    /// appends nothing, and one that ends while durability is awaited leaves an append that is whole, and becomes
    /// durable all the same.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted; [`Kind::NoSpace`]; the failure of the log; [`Kind::Cancelled`]
    /// and [`Kind::DeadlineExceeded`] from the context. Nothing is appended then, unless that came after the bytes
    /// were in the log; then [`Writer::offset`] has grown, and whether they are durable is for
    /// [`Writer::acknowledged`] to say.
    pub async fn append(&mut self, context: &Context, bytes: &[u8]) -> Result<()> {
        let timestamp = microseconds(self.local.core().wall_clock());
        self.append_whole(context, RecordKind::Append, timestamp, bytes).await?;
        self.acknowledged(context).await
    }

    /// As [`Writer::append`], for a frame with a timestamp of the caller's, in microseconds.
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub async fn write_frame(
        &mut self,
        context: &Context,
        timestamp_microseconds: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.append_whole(context, RecordKind::Frame, timestamp_microseconds, bytes).await?;
        self.acknowledged(context).await
    }

    async fn append_whole(
        &mut self,
        context: &Context,
        kind: RecordKind,
        timestamp: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let log = self.local.log().clone();
        self.local.core().check(context)?;
        self.check_length(self.offset.saturating_add(bytes.len() as u64))?;
        let mut rest = bytes;
        let mut offset = self.offset;
        while !rest.is_empty() {
            self.check_not_deleted()?;
            let (part, behind) = rest.split_at(rest.len().min(log.payload_length_max()));
            let continued = !behind.is_empty();
            let live = &self.live;
            let appended = log.append(
                part.len(),
                true,
                |space| {
                    space.copy_from_slice(part);
                    Ok::<_, Error>(part.len())
                },
                |length| {
                    let mut header = record(kind, length, live.object.generation(), offset, timestamp);
                    header.continued = continued;
                    (header, Note::Append { live: live.clone(), offset, continued })
                },
            )?;
            match appended {
                Some(appended) => {
                    self.sequence = appended.sequence;
                    offset += part.len() as u64;
                    rest = behind;
                }
                None => log.room(context, part.len(), true).await?,
            }
        }
        self.advance(offset - self.offset);
        Ok(())
    }

    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        if let Some(promise) = &mut self.promise {
            promise.use_up(bytes);
        }
    }

    /// Waits until everything that was appended is durable. Dropping the future changes nothing.
    ///
    /// # Errors
    /// The failure of the log; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context, which change
    /// nothing either.
    pub async fn acknowledged(&self, context: &Context) -> Result<()> {
        self.local.log().acknowledged(context, self.sequence).await
    }

    /// Seals the object: it is complete, and its readers get a clean end. When this returns that is durable.
    ///
    /// Dropping the future before the seal is in the log interrupts the object; after that it is sealed. The same
    /// holds where the context ends; [`Object::state`] says which, once it is not live any more.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted, or less was appended than the writer has declared; the
    /// failure of the log. The object is interrupted then. [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from
    /// the context.
    pub async fn seal(mut self, context: &Context) -> Result<Arc<Object>> {
        let declared = self.live.object.metadata().declared_length;
        if declared.is_some_and(|declared| declared != self.offset) {
            return Err(Error::new(Kind::WrongState, "less was appended than the length that was declared"));
        }
        self.local.core().check(context)?;
        let sequence = loop {
            self.check_not_deleted()?;
            match self.local.append_end(&self.live, State::Sealed, self.offset)? {
                Some(sequence) => break sequence,
                None => self.local.log().room(context, 0, true).await?,
            }
        };
        self.ended = true;
        let outcome = self.local.log().acknowledged(context, sequence).await;
        if let Err(error) = outcome {
            // Where only the wait has ended, the seal goes on to stable storage.
            if !matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded) {
                self.local.end_without_log(&self.live);
            }
            return Err(error);
        }
        Ok(self.live.object.clone())
    }

    fn check_length(&self, end: u64) -> Result<()> {
        if self.live.object.metadata().declared_length.is_some_and(|declared| end > declared) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "more was appended than the length that was declared",
            ));
        }
        Ok(())
    }

    fn check_not_deleted(&self) -> Result<()> {
        if self.live.object.is_deleted() {
            return Err(Error::new(Kind::WrongState, "the object was deleted while it was written"));
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended {
            self.local.interrupt(self.live.clone(), self.offset);
        }
    }
}
