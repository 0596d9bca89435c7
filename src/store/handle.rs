//! The store for any thread and any async runtime.
//!
//! Every call goes to a core as a message and waits for its answer; nothing of the caller's runtime is needed but
//! its wakers. Dropping a future of [`Store`] never leaves half of a change: the call runs to its end on its core.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::catalog::Page;
use super::listing::ListingQuery;
use super::local::{LocalStore, call_on};
use super::name::Name;
use super::object::{Metadata, Object};
use super::reader::{More, Piece, Reader};
use super::shared::Shared;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Either, Receiver, Sender, channel, race};

/// A running store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    next_core: Arc<AtomicUsize>,
}

impl Store {
    pub(super) fn new(shared: Arc<Shared>) -> Store {
        Store { shared, next_core: Arc::default() }
    }

    /// What the cores share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Cores take turns with what comes from outside.
    fn any_core(&self) -> usize {
        self.next_core.fetch_add(1, Ordering::Relaxed) % self.shared.cores()
    }

    /// Begins a new generation of a name and answers its writer. Dropping the future may leave an interrupted,
    /// empty generation.
    ///
    /// # Errors
    /// [`Kind::Exists`] with `only_if_absent` where the name serves something; [`Kind::NoSpace`];
    /// [`Kind::ReadOnly`]; [`Kind::Closed`].
    pub async fn create(
        &self,
        context: &Context,
        name: Name,
        metadata: Metadata,
        only_if_absent: bool,
    ) -> Result<StoreWriter> {
        let (orders, mut received) = channel::<WriterOrder>();
        let context = context.clone();
        let object = call_on(&self.shared, self.any_core(), move |local| async move {
            let mut writer = local.create(&context, name, metadata, only_if_absent).await?;
            let object = writer.object().clone();
            let serving = async move {
                while let Some(order) = received.receive().await {
                    match order {
                        WriterOrder::Append(context, frame, bytes, done) => {
                            let outcome = match frame {
                                Some(timestamp) => writer.write_frame(&context, timestamp, &bytes).await,
                                None => writer.append(&context, &bytes).await,
                            };
                            done.send(outcome);
                        }
                        WriterOrder::Seal(context, done) => {
                            done.send(writer.seal(&context).await.map(drop));
                            return;
                        }
                    }
                }
                // The other side is gone: dropping the writer interrupts the object.
            };
            local.spawn(serving);
            Ok(object)
        })
        .await?;
        Ok(StoreWriter { object, orders })
    }

    /// A reader of what a name serves, from an offset on. It keeps reading that generation, whatever happens to
    /// the name.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub async fn open(&self, context: &Context, name: &Name, offset: u64) -> Result<StoreReader> {
        let (context, wanted) = (context.clone(), name.clone());
        let object = call_on(&self.shared, self.any_core(), move |local| async move {
            local.find(&context, &wanted).await
        });
        Ok(self.reader(object.await?.ok_or_else(|| not_found(name))?, offset))
    }

    /// As [`Store::open`], but waits until the name serves something. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Kind::Closed`].
    pub async fn open_when_begun(&self, context: &Context, name: &Name, offset: u64) -> Result<StoreReader> {
        let (context, name) = (context.clone(), name.clone());
        // Goes with this future, and takes the wait with it.
        let (_waiting, mut given_up) = channel::<()>();
        let object = call_on(&self.shared, self.any_core(), move |local| async move {
            match race(local.find_when_begun(&context, &name), given_up.receive()).await {
                Either::First(object) => object,
                Either::Second(_) => Err(gone()),
            }
        })
        .await?;
        Ok(self.reader(object, offset))
    }

    fn reader(&self, object: Arc<Object>, offset: u64) -> StoreReader {
        let (orders, mut received) = channel::<ReaderOrder>();
        let watched = object.clone();
        self.shared.call(self.any_core(), move |local| {
            let mut reader = local.read(watched, offset);
            let serving = async move {
                while let Some((length_max, done)) = received.receive().await {
                    // An order is only given when the one before was answered: what comes instead is the end.
                    match race(next_bytes(&mut reader, length_max), received.receive()).await {
                        Either::First(outcome) => done.send(outcome),
                        Either::Second(_) => return,
                    }
                }
            };
            local.spawn(serving);
        });
        StoreReader { object, orders, pending: None }
    }

    /// The page of a bucket that is asked for.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`].
    pub async fn list(&self, context: &Context, bucket: &str, query: &ListingQuery) -> Result<Page> {
        let (context, bucket, query) = (context.clone(), bucket.to_owned(), query.clone());
        call_on(&self.shared, self.any_core(), move |local| async move {
            local.list(&context, &bucket, &query).await
        })
        .await
    }

    /// Deletes all generations of a name; durable when this returns.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; the failure of a log.
    pub async fn delete(&self, context: &Context, name: &Name) -> Result<()> {
        let (context, name) = (context.clone(), name.clone());
        call_on(&self.shared, self.any_core(), move |local: Rc<LocalStore>| async move {
            local.delete(&context, &name).await
        })
        .await
    }
}

fn not_found(name: &Name) -> Error {
    Error::new(Kind::NotFound, format!("there is no object {name}"))
}

fn gone() -> Error {
    Error::new(Kind::Closed, "the store has been stopped, or the writer has ended")
}

enum WriterOrder {
    Append(Context, Option<u64>, Bytes, Sender<Result<()>>),
    Seal(Context, Sender<Result<()>>),
}

/// Writes one object, from any thread. Dropping it without a seal interrupts the object.
pub struct StoreWriter {
    object: Arc<Object>,
    orders: Sender<WriterOrder>,
}

impl StoreWriter {
    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Appends bytes, all or none of them; durable when this returns. Dropping the future leaves the append to go on
    /// by itself, wholly; the next call comes after it, and the object's watermark then says that it is there.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted; [`Kind::NoSpace`]; the failure of the log;
    /// [`Kind::Closed`].
    pub async fn append(&mut self, context: &Context, bytes: Bytes) -> Result<()> {
        self.order(|done| WriterOrder::Append(context.clone(), None, bytes, done)).await
    }

    /// As [`StoreWriter::append`], for a frame with a timestamp in microseconds.
    ///
    /// # Errors
    /// As [`StoreWriter::append`].
    pub async fn write_frame(
        &mut self,
        context: &Context,
        timestamp_microseconds: u64,
        bytes: Bytes,
    ) -> Result<()> {
        self.order(|done| WriterOrder::Append(context.clone(), Some(timestamp_microseconds), bytes, done))
            .await
    }

    /// Seals the object; durable when this returns. Dropping the future leaves the seal to go on by itself.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted; the failure of the log; [`Kind::Closed`].
    pub async fn seal(self, context: &Context) -> Result<()> {
        self.order(|done| WriterOrder::Seal(context.clone(), done)).await
    }

    async fn order(&self, order: impl FnOnce(Sender<Result<()>>) -> WriterOrder) -> Result<()> {
        let (done, mut outcomes) = channel();
        self.orders.send(order(done));
        outcomes.receive().await.unwrap_or_else(|| Err(gone()))
    }
}

type ReaderOrder = (usize, Sender<Result<Option<Bytes>>>);

/// Reads one object, from any thread.
pub struct StoreReader {
    object: Arc<Object>,
    orders: Sender<ReaderOrder>,
    /// The answer to an order that was given and not taken yet.
    pending: Option<Receiver<Result<Option<Bytes>>>>,
}

impl StoreReader {
    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// The next bytes, at least one and at most `length_max`, waiting for them where the object is live. None: this was all, the
    /// writer has sealed the object. Dropping the future loses nothing: the next call answers what it would have
    /// answered, whatever its own `length_max`.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the writer is gone without sealing; [`Kind::Device`]; [`Kind::Closed`].
    pub async fn next(&mut self, length_max: usize) -> Result<Option<Bytes>> {
        let pending = self.pending.get_or_insert_with(|| {
            let (done, outcomes) = channel();
            self.orders.send((length_max, done));
            outcomes
        });
        let outcome = pending.receive().await;
        self.pending = None;
        outcome.unwrap_or_else(|| Err(gone()))
    }
}

/// The next bytes of a reader: from memory if they are there, else from the file.
async fn next_bytes(reader: &mut Reader, length_max: usize) -> Result<Option<Bytes>> {
    let context = Context::background();
    loop {
        let mut pieces: Vec<Piece> = Vec::with_capacity(1);
        reader.locate().await?;
        let length = reader.gather(length_max.max(1) as u64, 1, &mut pieces);
        if let Some(piece) = pieces.pop() {
            let bytes = match &piece.hot {
                Some(region) => Bytes::copy_from_slice(region),
                None => read_piece(reader, &piece).await?,
            };
            reader.advance(length as u64);
            return Ok(Some(bytes));
        }
        match reader.more(&context, 0).await {
            More::Available => {}
            More::Sealed => return Ok(None),
            More::Interrupted => {
                return Err(Error::new(Kind::Interrupted, "the writer went away before it had finished"));
            }
        }
    }
}

async fn read_piece(reader: &Reader, piece: &Piece) -> Result<Bytes> {
    let local = reader.local();
    let file = local.file(&piece.segment).await?;
    let (result, buffer) = local.core().read(&file, piece.position, vec![0; piece.length], 0).await;
    match result {
        Ok(count) if count == piece.length => Ok(Bytes::from(buffer)),
        Ok(_) => Err(Error::new(Kind::Damaged, format!("segment {} is too short", piece.segment.number()))),
        Err(errno) => Err(Error::device(format!("cannot read segment {}", piece.segment.number()), errno)),
    }
}
