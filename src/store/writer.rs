//! The one writer of an object, on its core.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::commits::{Live, Note};
use super::local::{LocalStore, record};
use super::object::{Object, State, microseconds};
use super::writers::Left;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::Promise;
use crate::log::format::RecordKind;

/// Writes one object. Dropping it without [`Writer::seal`] interrupts the object, unless it is awaited: what was
/// appended is kept. Followers get an unclean end, or wait for who goes on.
pub struct Writer {
    local: Rc<LocalStore>,
    live: Rc<Live>,
    /// Where the next append begins.
    offset: u64,
    /// The block with the last record of this writer's.
    sequence: Option<u64>,
    ended: bool,
    /// Room for what is still to come, where that was told.
    promise: Option<Promise>,
    /// How long the object is to be in bytes, where that was told.
    declared_length: Option<u64>,
    /// How long it is awaited when it is dropped without a seal.
    window: Duration,
}

impl Writer {
    /// A writer of what another one has left behind, if only its creation.
    pub(super) fn take_up(local: Rc<LocalStore>, left: Left, window: Duration) -> Writer {
        let Left { live, offset, sequence, promise, declared_length } = left;
        Writer { local, live, offset, sequence, ended: false, promise, declared_length, window }
    }

    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.live.object
    }

    /// As if what was appended last had found no room.
    #[cfg(test)]
    pub(super) fn lose_last(&self) {
        let (live, offset) = (self.live.clone(), self.offset);
        let note = Note::Append { live, offset, continued: false };
        crate::log::Sink::failed(&**self.local.commits(), note);
    }

    /// How many bytes were appended, in whole appends: those up to the object's watermark are durable.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How long the object is going to be in bytes, where that was told.
    pub fn declared_length(&self) -> Option<u64> {
        self.declared_length
    }

    /// Says how long the object is going to be in bytes. Whoever goes on with it later knows that, as soon as what was
    /// appended up to then is durable. Dropping the future leaves it said or not.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] where another length was told before, or more was appended already;
    /// [`Kind::WrongState`] when the object was deleted; the failure of the log; [`Kind::Cancelled`] and
    /// [`Kind::DeadlineExceeded`] from the context.
    pub async fn declare_length(&mut self, context: &Context, length: u64) -> Result<()> {
        match self.declared_length {
            Some(declared) if declared == length => return Ok(()),
            Some(_) => {
                return Err(Error::new(Kind::InvalidArgument, "another length was declared before"));
            }
            None => {}
        }
        if length < self.offset {
            return Err(Error::new(
                Kind::InvalidArgument,
                "more was appended than the length that is declared",
            ));
        }
        let sequence = loop {
            self.check_may_grow()?;
            match self.local.append_length(&self.live, length)? {
                Some(sequence) => break sequence,
                None => self.local.log().room(context, 0, true).await?,
            }
        };
        self.live.object.declare_length(length);
        (self.sequence, self.declared_length) = (Some(sequence), Some(length));
        Ok(())
    }

    /// How long the writer is awaited when it is dropped without a seal; zero: the object is interrupted at once.
    pub fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Returns when somebody has come to write the object in this writer's place, and waits for it to be dropped.
    /// Dropping the future changes nothing.
    pub fn replaced(&self) -> impl Future<Output = ()> + 'static {
        self.local.writers().clone().replaced(self.live.object.generation())
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
        self.append_part_from(&mut 0, wanted, |space| Ok((fill(space)?, true)))
    }

    /// As [`Writer::append_from`], for an append that comes in parts and counts only with the last of them: `fill`
    /// also says whether this is it. `before` is how many bytes of the append came before, and grows. An append that
    /// is given up leaves nothing; the next one begins where it began.
    ///
    /// # Errors
    /// As [`Writer::append_from`].
    pub fn append_part_from<E: From<Error>>(
        &mut self,
        before: &mut u64,
        wanted: usize,
        fill: impl FnOnce(&mut [u8]) -> std::result::Result<(usize, bool), E>,
    ) -> std::result::Result<Option<usize>, E> {
        let offset = self.offset.saturating_add(*before);
        self.check_may_grow()?;
        self.check_length(offset.saturating_add(wanted as u64))?;
        let timestamp = microseconds(self.local.core().wall_clock());
        let live = &self.live;
        let is_last = Cell::new(true);
        let appended = self.local.log().append(
            wanted,
            false,
            |space| {
                let (length, last) = fill(space)?;
                is_last.set(last);
                Ok::<_, E>(length)
            },
            |length| {
                let continued = !is_last.get();
                let mut header =
                    record(RecordKind::Append, length, live.object.generation(), offset, timestamp);
                header.continued = continued;
                (header, Note::Append { live: live.clone(), offset, continued })
            },
        )?;
        let Some(appended) = appended else { return Ok(None) };
        if appended.length > 0 {
            *before += appended.length as u64;
            self.sequence = Some(appended.sequence);
            if is_last.get() {
                self.advance(*before);
            }
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
            self.check_may_grow()?;
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
                    self.sequence = Some(appended.sequence);
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
        match self.sequence {
            Some(sequence) => self.local.log().acknowledged(context, sequence).await,
            None => self.local.core().check(context),
        }
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
        if self.declared_length.is_some_and(|declared| declared != self.offset) {
            return Err(Error::new(Kind::WrongState, "less was appended than the length that was declared"));
        }
        self.local.core().check(context)?;
        let sequence = loop {
            self.check_may_grow()?;
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
        if self.declared_length.is_some_and(|declared| end > declared) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "more was appended than the length that was declared",
            ));
        }
        Ok(())
    }

    /// Refuses what could not become a part of the object any more. Where the log has failed, that is why: what it has
    /// lost counts as deleted.
    fn check_may_grow(&self) -> Result<()> {
        let refusal = self.live.check_not_broken().and_then(|()| match self.live.object.is_deleted() {
            true => Err(Error::new(Kind::WrongState, "the object was deleted while it was written")),
            false => Ok(()),
        });
        refusal.map_err(|refusal| self.local.failure().unwrap_or(refusal))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What it had appended was lost, the object interrupted, and somebody else writes it now.
        if !self.live.is_current() {
            return;
        }
        if self.ended {
            self.local.writers().end(self.live.object.generation());
            return;
        }
        let left = Left {
            live: self.live.clone(),
            offset: self.offset,
            sequence: self.sequence,
            promise: self.promise.take(),
            declared_length: self.declared_length,
        };
        self.local.leave(left, self.window);
    }
}
