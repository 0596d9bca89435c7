//! The store for any thread and any async runtime.
//!
//! Every call goes to a core as a message and waits for its answer; nothing of the caller's runtime is needed but
//! its wakers. Dropping a future of [`Store`] never leaves half of a change: the call runs to its end on its core.
//!
//! The context goes with the call, and it is the core that ends the call with it, by the core's own timers: so
//! deadlines hold whatever runs the caller, and an answer of [`Kind::Cancelled`] or [`Kind::DeadlineExceeded`] comes
//! after all that the call has done.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tracing::Instrument;

use super::catalog::Page;
use super::listing::ListingQuery;
use super::local::{LocalStore, call_on};
use super::name::Name;
use super::object::{Metadata, Object};
use super::reader::{More, Piece, Reader};
use super::shared::Shared;
use super::writer::Writer;
use super::writers::Resumed;
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
    /// [`Kind::ReadOnly`]; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context, and
    /// then nothing was begun.
    pub async fn create(
        &self,
        context: &Context,
        name: Name,
        metadata: Metadata,
        only_if_absent: bool,
    ) -> Result<StoreWriter> {
        let (orders, received) = channel::<WriterOrder>();
        let object = call_on(context, &self.shared, self.any_core(), move |local, context| async move {
            let writer = local.create(&context, name, metadata, only_if_absent).await?;
            let object = writer.object().clone();
            local.spawn(carry_out(local.clone(), writer, received));
            Ok(object)
        })
        .await?;
        Ok(StoreWriter { object, orders })
    }

    /// Goes on with a generation that is interrupted, or whose writer is awaited or at work: that one has to let go
    /// then, and its calls end with [`Kind::Closed`]. [`StoreWriter::offset`] says where the next append begins;
    /// everything before is durable. Dropping the future may leave the generation interrupted.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: there is no such generation of the name, or it is superseded. [`Kind::WrongState`]: it is
    /// sealed. [`Kind::ReadOnly`]; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context.
    pub async fn resume(&self, context: &Context, name: &Name, generation: u64) -> Result<StoreWriter> {
        let mut core = self.any_core();
        loop {
            let (orders, received) = channel::<WriterOrder>();
            let name = name.clone();
            let outcome = call_on(context, &self.shared, core, move |local, context| async move {
                Ok(match local.resume(&context, &name, generation, Duration::ZERO).await? {
                    Resumed::Here(writer) => {
                        let object = writer.object().clone();
                        local.spawn(carry_out(local.clone(), writer, received));
                        Ok(object)
                    }
                    Resumed::On(core) => Err(core),
                })
            })
            .await?;
            match outcome {
                Ok(object) => return Ok(StoreWriter { object, orders }),
                Err(home) => core = home,
            }
        }
    }

    /// A reader of what a name serves, from an offset on. It keeps reading that generation, whatever happens to
    /// the name. Dropping the future changes nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn open(&self, context: &Context, name: &Name, offset: u64) -> Result<StoreReader> {
        let wanted = name.clone();
        let object = call_on(context, &self.shared, self.any_core(), move |local, context| async move {
            local.find(&context, &wanted).await
        });
        Ok(self.reader(object.await?.ok_or_else(|| not_found(name))?, offset))
    }

    /// As [`Store::open`], but waits until the name serves something. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn open_when_begun(&self, context: &Context, name: &Name, offset: u64) -> Result<StoreReader> {
        let name = name.clone();
        // Goes with this future, and takes the wait with it.
        let (_waiting, mut given_up) = channel::<()>();
        let object = call_on(context, &self.shared, self.any_core(), move |local, context| async move {
            match race(local.find_when_begun(&context, &name), given_up.receive()).await {
                Either::First(object) => object,
                Either::Second(_) => Err(gone()),
            }
        })
        .await?;
        Ok(self.reader(object, offset))
    }

    fn reader(&self, object: Arc<Object>, offset: u64) -> StoreReader {
        let (orders, received) = channel::<ReaderOrder>();
        let (answer, answers) = channel();
        let watched = object.clone();
        self.shared.call(self.any_core(), move |local| {
            let reader = local.read(watched, offset);
            local.spawn(read_to_order(reader, received, answer));
        });
        StoreReader { object, orders, answers, ordered: 0 }
    }

    /// The page of a bucket that is asked for. Dropping the future changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context.
    pub async fn list(&self, context: &Context, bucket: &str, query: &ListingQuery) -> Result<Page> {
        let (bucket, query) = (bucket.to_owned(), query.clone());
        call_on(context, &self.shared, self.any_core(), move |local, context| async move {
            local.list(&context, &bucket, &query).await
        })
        .await
    }

    /// Deletes all generations of a name; durable when this returns. Dropping the future leaves the deletion to go
    /// on by itself.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; the failure of a log; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`]
    /// from the context: where that had ended before, nothing is deleted, and otherwise the deletion goes on.
    pub async fn delete(&self, context: &Context, name: &Name) -> Result<()> {
        let name = name.clone();
        call_on(context, &self.shared, self.any_core(), move |local: Rc<LocalStore>, context| async move {
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

/// What a writer is asked to do, under which context, and where the answer goes.
struct WriterOrder {
    context: Context,
    work: Work,
    done: Sender<Result<u64>>,
}

enum Work {
    /// Bytes, with the timestamp of a frame.
    Append(Option<u64>, Bytes),
    Offset,
    Seal,
}

/// Carries out orders until one of them ends the object, nobody can give any more, or another writer comes in this
/// one's place; then the writer is dropped, which interrupts the object if it was not sealed.
async fn carry_out(local: Rc<LocalStore>, writer: Writer, received: Receiver<WriterOrder>) {
    let replaced = writer.replaced();
    race(replaced, carry_out_all(local, writer, received)).await;
}

/// Carries out orders one after the other.
async fn carry_out_all(local: Rc<LocalStore>, mut writer: Writer, mut received: Receiver<WriterOrder>) {
    let mut behind = Behind::default();
    loop {
        let order = match behind.pop() {
            Some(order) => order,
            None => match received.receive().await {
                Some(order) => order,
                None => return,
            },
        };
        let WriterOrder { context, work, done } = order;
        let span = context.span();
        let working = async {
            let outcome = match work {
                Work::Append(None, bytes) => writer.append(&context, &bytes).await,
                Work::Append(Some(timestamp), bytes) => writer.write_frame(&context, timestamp, &bytes).await,
                Work::Offset => local.core().check(&context),
                Work::Seal => return (writer.seal(&context).await.map(|object| object.committed()), None),
            };
            (outcome.map(|()| writer.offset()), Some(writer))
        };
        let mut working = pin!(working.instrument(span));
        let mut is_open = true;
        // Where the one who asked did not wait for the answer, more may be asked for meanwhile.
        let (outcome, left) = loop {
            let next = async {
                match is_open {
                    true => received.receive().await,
                    false => pending().await,
                }
            };
            match race(working.as_mut(), race(next, behind.one_ended())).await {
                Either::First(ended) => break ended,
                Either::Second(Either::First(Some(order))) => behind.push(&local, order),
                Either::Second(Either::First(None)) => is_open = false,
                Either::Second(Either::Second(())) => {}
            }
        };
        done.send(outcome);
        match left {
            Some(left) => writer = left,
            None => return,
        }
    }
}

/// Orders whose turn has not come. Each ends with its context also before.
#[derive(Default)]
struct Behind {
    orders: VecDeque<Deferred>,
}

struct Deferred {
    order: WriterOrder,
    /// Completes with the order's context.
    ended: Pin<Box<dyn Future<Output = Error>>>,
}

impl Behind {
    fn push(&mut self, local: &Rc<LocalStore>, order: WriterOrder) {
        let (core, context) = (local.core().clone(), order.context.clone());
        let ended = Box::pin(async move { core.ended(&context).await });
        self.orders.push_back(Deferred { order, ended });
    }

    fn pop(&mut self) -> Option<WriterOrder> {
        self.orders.pop_front().map(|deferred| deferred.order)
    }

    /// Waits until the context of one of them has ended, and answers that one.
    async fn one_ended(&mut self) {
        let (at, error) = poll_fn(|context| {
            let mut orders = self.orders.iter_mut().enumerate();
            let ended = orders.find_map(|(at, deferred)| match deferred.ended.as_mut().poll(context) {
                Poll::Ready(error) => Some((at, error)),
                Poll::Pending => None,
            });
            ended.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        if let Some(Deferred { order, .. }) = self.orders.remove(at) {
            order.done.send(Err(error));
        }
    }
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
    /// by itself, under its context and wholly; the next call comes after it.
    ///
    /// A context that has ended before the bytes are in the log appends none of them; one that ends later ends the
    /// wait, and leaves an append that is whole and becomes durable. [`StoreWriter::offset`] says which.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted; [`Kind::NoSpace`]; the failure of the log;
    /// [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn append(&mut self, context: &Context, bytes: Bytes) -> Result<()> {
        self.order(context, Work::Append(None, bytes)).await.map(drop)
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
        self.order(context, Work::Append(Some(timestamp_microseconds), bytes)).await.map(drop)
    }

    /// How many bytes were appended, in whole appends, those included whose futures were dropped: it is there that
    /// the next append begins. What of them is durable is what the object's watermark says.
    ///
    /// # Errors
    /// [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn offset(&mut self, context: &Context) -> Result<u64> {
        self.order(context, Work::Offset).await
    }

    /// Seals the object; durable when this returns. Dropping the future leaves the seal to go on by itself, under its
    /// context. Where that ends before the seal is in the log, the object is interrupted, and otherwise sealed all
    /// the same; the object's state says which, once it is not live any more.
    ///
    /// # Errors
    /// [`Kind::WrongState`] when the object was deleted; the failure of the log; [`Kind::Closed`];
    /// [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn seal(self, context: &Context) -> Result<()> {
        self.order(context, Work::Seal).await.map(drop)
    }

    async fn order(&self, context: &Context, work: Work) -> Result<u64> {
        let (done, mut outcomes) = channel();
        self.orders.send(WriterOrder { context: context.clone(), work, done });
        outcomes.receive().await.unwrap_or_else(|| Err(gone()))
    }
}

/// The number of an order, its context, and how many bytes it asks for at most.
type ReaderOrder = (u64, Context, usize);

/// The answer to the order with this number.
type ReaderAnswer = (u64, Result<Option<Bytes>>);

/// Reads one object, from any thread.
pub struct StoreReader {
    object: Arc<Object>,
    orders: Sender<ReaderOrder>,
    answers: Receiver<ReaderAnswer>,
    /// The number of the last order.
    ordered: u64,
}

impl StoreReader {
    /// The object.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// The next bytes, at least one and at most `length_max`, waiting for them where the object is live. None: this
    /// was all, the writer has sealed the object. Dropping the future loses nothing, and neither does a context that
    /// ends: the next call answers what this one would have answered, whatever its own `length_max`.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the writer is gone without sealing; [`Kind::Device`]; [`Kind::Closed`];
    /// [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn next(&mut self, context: &Context, length_max: usize) -> Result<Option<Bytes>> {
        context.check()?;
        // What a call that was dropped has left behind comes first.
        while let Some((_, outcome)) = self.answers.try_receive() {
            if !ended_with_its_context(&outcome) {
                return outcome;
            }
        }
        self.ordered += 1;
        self.orders.send((self.ordered, context.clone(), length_max));
        loop {
            match self.answers.receive().await {
                // How an earlier call ended is nobody's business any more.
                Some((number, outcome)) if number < self.ordered && ended_with_its_context(&outcome) => {}
                Some((_, outcome)) => return outcome,
                None => return Err(gone()),
            }
        }
    }
}

fn ended_with_its_context<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::DeadlineExceeded))
}

/// Answers orders. One that comes while another is carried out takes its place: whoever had given that one has
/// dropped its future, and what is being read is for the new one. Returns when nobody can give any more.
async fn read_to_order(
    mut reader: Reader,
    mut received: Receiver<ReaderOrder>,
    answers: Sender<ReaderAnswer>,
) {
    let core = reader.local().core().clone();
    let mut order = received.receive().await;
    while let Some((mut number, mut context, length_max)) = order.take() {
        let reading = next_bytes(&mut reader, length_max).instrument(context.span());
        let mut reading = pin!(reading);
        order = loop {
            let outcome = match race(reading.as_mut(), race(core.ended(&context), received.receive())).await {
                Either::First(outcome) => outcome,
                Either::Second(Either::First(error)) => Err(error),
                Either::Second(Either::Second(Some(later))) => {
                    (number, context, _) = later;
                    continue;
                }
                Either::Second(Either::Second(None)) => return,
            };
            answers.send((number, outcome));
            break received.receive().await;
        };
    }
}

/// The next bytes of a reader: from memory if they are there, else from the file. Dropping the future leaves the
/// reader where it is.
async fn next_bytes(reader: &mut Reader, length_max: usize) -> Result<Option<Bytes>> {
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
        // Who calls this waits under a context of its own.
        match reader.more(&Context::background(), 0).await? {
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
