//! The store as one core sees it: its log, its registries, and the messages from other cores.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tracing::Instrument;

use super::extents::{Extent, Tail};
use super::listing::ListingQuery;
use super::name::Name;
use super::namespace::{Listing, Namespace};
use super::object::{Metadata, Object, State, microseconds};
use super::reader::Reader;
use super::registry::Registry;
use super::writer::Writer;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{Keeper, Log, Placement, Sink};
use crate::metrics::{CoreMetrics, SegmentState, Snapshot};
use crate::runtime::{Core, Receiver, Sender, TaskGroup, channel};

/// What all cores of a store share.
pub struct Shared {
    pub(super) namespace: Namespace,
    next_generation: AtomicU64,
    peers: Vec<Sender<Message>>,
    stopping: AtomicBool,
    started: Instant,
    may_splice: bool,
}

/// Something to run on a core.
type Call = Box<dyn FnOnce(&Rc<LocalStore>) + Send>;

/// What one core says to another, or a foreign thread to a core.
pub(super) enum Message {
    /// This generation has grown or ended.
    Grown(u64),
    /// This name has come into being.
    Begun(Name),
    /// The deletion of this object is to be logged, on behalf of this request; then who asked is told.
    Delete(Context, Arc<Object>, Sender<Result<()>>),
    /// This object was superseded: its deletion is to be logged when that is possible.
    Supersede(Arc<Object>),
    /// Something to run here.
    Call(Call),
}

impl Shared {
    /// What cores share, and for each core its messages.
    pub(super) fn new(
        cores: usize,
        namespace: Namespace,
        next_generation: u64,
        may_splice: bool,
    ) -> (Arc<Shared>, Vec<Receiver<Message>>) {
        let (peers, receivers) = (0..cores).map(|_| channel()).unzip();
        let shared = Shared {
            namespace,
            next_generation: AtomicU64::new(next_generation),
            peers,
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            may_splice,
        };
        (Arc::new(shared), receivers)
    }

    /// Runs something on a core; from any thread. It is dropped unrun where the core is gone.
    pub fn call(&self, core: usize, call: impl FnOnce(&Rc<LocalStore>) + Send + 'static) {
        self.peers[core].send(Message::Call(Box::new(call)));
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.peers.len()
    }

    /// How long ago the store was started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether bytes may go from the segment files to sockets as pages of the page cache.
    pub fn may_splice(&self) -> bool {
        self.may_splice
    }

    /// Whether the store is to come to an end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The names.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Tells all cores to come to an end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for core in 0..self.cores() {
            self.call(core, |local| local.stopping.wake(&()));
        }
    }
}

/// The store on one core. Everything in it is that core's own.
pub struct LocalStore {
    core: Rc<Core>,
    shared: Arc<Shared>,
    log: Rc<Log<Commits>>,
    commits: Rc<Commits>,
    keeper: Rc<Keeper>,
    names: Rc<Registry<Name>>,
    stopping: Rc<Registry<()>>,
    metrics: Rc<CoreMetrics>,
    /// What runs here on behalf of others; ends with the store.
    tasks: TaskGroup,
    /// Interruptions on their way into the log.
    endings: TaskGroup,
}

/// What an append leaves behind until it is durable.
pub(super) enum Note {
    Create(Rc<Live>),
    Append {
        live: Rc<Live>,
        offset: u64,
        /// The append goes on in the next record: it does not count yet.
        continued: bool,
    },
    End {
        live: Rc<Live>,
        state: State,
        at_microseconds: u64,
    },
    Delete(Arc<Object>),
}

/// An object that is being written on this core.
pub(super) struct Live {
    pub object: Arc<Object>,
    /// The last of the core's blocks, as they became durable, in which it has grown.
    touched_in: Cell<u64>,
    tail: RefCell<Tail>,
    /// Durable parts of an append that is not whole yet.
    parts: RefCell<Vec<Extent>>,
}

impl Live {
    pub(super) fn new(object: Arc<Object>) -> Rc<Live> {
        let (tail, parts) = (RefCell::new(object.extents().tail()), RefCell::default());
        Rc::new(Live { object, touched_in: Cell::new(0), tail, parts })
    }

    /// Adds bytes that are durable; true when that makes an append whole.
    fn add(&self, extent: Extent, continued: bool) -> bool {
        let mut parts = self.parts.borrow_mut();
        // An append that was given up leaves parts behind; the next one begins where that one began.
        if parts.last().is_some_and(|last| last.end() != extent.offset) {
            parts.clear();
        }
        if continued {
            parts.push(extent);
            return false;
        }
        let mut tail = self.tail.borrow_mut();
        for part in parts.drain(..) {
            tail.push(self.object.extents(), part);
        }
        tail.push(self.object.extents(), extent);
        true
    }
}

/// Makes what has become durable known: on this core at once, on others by one message each.
pub(super) struct Commits {
    core: usize,
    shared: Arc<Shared>,
    metrics: Rc<CoreMetrics>,
    grown: Rc<Registry<u64>>,
    /// Objects that have changed in the block at hand.
    touched: RefCell<Vec<Rc<Live>>>,
    /// How many blocks have become durable, this one included.
    blocks: Cell<u64>,
}

impl Sink for Commits {
    type Note = Note;

    fn durable(&self, note: Note, placement: Placement<'_>) {
        match note {
            Note::Create(live) => live.object.anchor(placement.segment),
            Note::Append { live, offset, continued } => {
                self.touch(&live);
                let object = &live.object;
                let extent = Extent {
                    offset,
                    length: placement.length,
                    position: placement.position,
                    segment: placement.segment.clone(),
                    hot: placement.hot,
                };
                if live.add(extent, continued) {
                    object.commit(offset + u64::from(placement.length));
                    object.mark_fresh(placement.appended.saturating_duration_since(self.shared.started));
                    self.metrics.appends.increment();
                    self.metrics.append_to_acknowledged.record(placement.appended.elapsed());
                }
            }
            Note::End { live, state, at_microseconds } => {
                live.object.anchor(placement.segment);
                self.end(&live, state, at_microseconds);
            }
            Note::Delete(object) => {
                for segment in object.segments() {
                    segment.keep(placement.segment);
                }
                self.shared.namespace.deletion_is_durable(&object);
            }
        }
    }

    fn block_done(&self) {
        self.blocks.set(self.blocks.get() + 1);
        let mut touched = self.touched.take();
        for live in touched.drain(..) {
            self.announce(&live.object);
        }
        self.touched.replace(touched);
    }

    fn failed(&self, note: Note) {
        match note {
            Note::Create(live) | Note::Append { live, .. } | Note::End { live, .. } => {
                self.end_without_log(&live)
            }
            // Who asked for the deletion learns of the failure; a restart may find the object again.
            Note::Delete(_) => {}
        }
    }
}

impl Commits {
    fn touch(&self, live: &Rc<Live>) {
        if live.touched_in.replace(self.blocks.get()) != self.blocks.get() {
            self.touched.borrow_mut().push(live.clone());
        }
    }

    /// Ends an object as interrupted though that could not be logged. Without a seal in the log a restart finds it
    /// interrupted all the same.
    fn end_without_log(&self, live: &Rc<Live>) {
        if live.object.state() == State::Live {
            self.end(live, State::Interrupted, microseconds(SystemTime::now()));
            self.block_done();
        }
    }

    /// Wakes whoever waits for more of this object.
    fn announce(&self, object: &Object) {
        let mut interest = object.take_interest();
        while interest != 0 {
            let core = interest.trailing_zeros() as usize;
            interest &= interest - 1;
            if core == self.core {
                self.grown.wake(&object.generation());
            } else {
                self.metrics.core_messages.increment();
                self.metrics.wake_messages.increment();
                self.shared.peers[core].send(Message::Grown(object.generation()));
            }
        }
    }

    /// The object has ended; what it supersedes is deleted.
    fn end(&self, live: &Rc<Live>, state: State, at_microseconds: u64) {
        let object = &live.object;
        object.end(state, at_microseconds);
        self.metrics.objects_live.decrement();
        match state {
            State::Sealed => self.metrics.objects_sealed.increment(),
            _ => self.metrics.objects_interrupted.increment(),
        }
        self.touch(live);
        for superseded in self.shared.namespace.settle(object.name()) {
            superseded.set_deleted();
            self.shared.peers[superseded.home()].send(Message::Supersede(superseded));
        }
    }
}

impl LocalStore {
    pub(super) fn new(
        core: &Rc<Core>,
        shared: Arc<Shared>,
        log: Rc<Log<Commits>>,
        keeper: Rc<Keeper>,
        metrics: Rc<CoreMetrics>,
    ) -> Rc<LocalStore> {
        let commits = Rc::new(Commits {
            core: core.index(),
            shared: shared.clone(),
            metrics: metrics.clone(),
            grown: Rc::default(),
            touched: RefCell::default(),
            blocks: Cell::new(1),
        });
        log.set_sink(&commits);
        Rc::new(LocalStore {
            core: core.clone(),
            shared,
            log,
            commits,
            keeper,
            names: Rc::default(),
            stopping: Rc::default(),
            metrics,
            tasks: TaskGroup::default(),
            endings: TaskGroup::default(),
        })
    }

    /// Handles the messages of other cores, until all senders are gone.
    pub(super) async fn listen(self: Rc<Self>, mut messages: Receiver<Message>) {
        while let Some(message) = messages.receive().await {
            match message {
                Message::Grown(generation) => self.commits.grown.wake(&generation),
                Message::Begun(name) => self.names.wake(&name),
                Message::Delete(context, object, done) => {
                    let (local, span) = (self.clone(), context.span());
                    let deletion = async move { done.send(local.log_deletion(&context, object).await) };
                    self.spawn(deletion.instrument(span));
                }
                Message::Supersede(object) => self.delete_superseded(object),
                Message::Call(call) => call(&self),
            }
        }
    }

    /// Runs something on this core until the store comes to an end.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.tasks.spawn(&self.core, future);
    }

    /// The core.
    pub fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// What the cores share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The core's metrics.
    pub fn metrics(&self) -> &Rc<CoreMetrics> {
        &self.metrics
    }

    pub(super) fn log(&self) -> &Rc<Log<Commits>> {
        &self.log
    }

    /// Why nothing can be written any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.log.failure()
    }

    /// Returns when the store is to come to an end.
    pub async fn stopping(&self) {
        let shared = self.shared.clone();
        self.stopping.wait((), move |_| shared.stopping.load(Ordering::SeqCst).then_some(())).await;
    }

    /// Begins a new generation of a name. Its creation is in the log, not yet durable; readers find it at once.
    /// Dropping the future before it returns leaves nothing behind.
    ///
    /// # Errors
    /// [`Kind::Exists`] with `only_if_absent` where the name serves something; [`Kind::NoSpace`];
    /// [`Kind::ReadOnly`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context, and then nothing was
    /// begun.
    pub async fn create(
        self: &Rc<Self>,
        context: &Context,
        name: Name,
        metadata: Metadata,
        only_if_absent: bool,
    ) -> Result<Writer> {
        let document = serde_json::to_vec(&CreateDocument { name: name.as_str(), metadata: &metadata })
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("metadata: {error}")))?;
        if document.len() > self.log.payload_length_max() {
            return Err(Error::new(Kind::InvalidArgument, "the metadata is too long"));
        }
        self.log.room(context, document.len(), true).await?;
        let generation = self.shared.next_generation.fetch_add(1, Ordering::Relaxed);
        let timestamp = microseconds(SystemTime::now());
        let object = Object::new(name, generation, metadata, self.core.index(), timestamp);
        let awaited = self.shared.namespace.begin(&object, only_if_absent)?;
        let live = Live::new(object);
        let appended = self.log.append(
            document.len(),
            true,
            |space| {
                space.copy_from_slice(&document);
                Ok::<_, Error>(document.len())
            },
            |length| {
                (record(RecordKind::Create, length, generation, 0, timestamp), Note::Create(live.clone()))
            },
        );
        match appended {
            Ok(Some(appended)) => {
                self.metrics.objects_live.increment();
                tracing::debug!(object = %live.object.name(), generation, "begun");
                self.announce_name(live.object.name(), awaited);
                Ok(Writer::new(self.clone(), live, appended.sequence))
            }
            // There was room before `begin`, and nothing has waited since.
            Ok(None) => unreachable!("the room that was waited for is gone"),
            Err(error) => {
                self.shared.namespace.forget(&live.object);
                Err(error)
            }
        }
    }

    fn announce_name(&self, name: &Name, mut awaited: u64) {
        while awaited != 0 {
            let core = awaited.trailing_zeros() as usize;
            awaited &= awaited - 1;
            if core == self.core.index() {
                self.names.wake(name);
            } else {
                self.metrics.core_messages.increment();
                self.shared.peers[core].send(Message::Begun(name.clone()));
            }
        }
    }

    /// The generation that a name serves.
    pub fn find(&self, name: &Name) -> Option<Arc<Object>> {
        self.shared.namespace.find(name)
    }

    /// Waits until a name serves something. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context, which leave nothing behind either.
    pub async fn find_when_begun(&self, context: &Context, name: &Name) -> Result<Arc<Object>> {
        let _leaving = LeaveName { local: self, name };
        let (shared, core, wanted) = (self.shared.clone(), self.core.index(), name.clone());
        let begun = self.names.wait(name.clone(), move |registered| match registered {
            false => shared.namespace.find(&wanted),
            true => shared.namespace.find_or_await(&wanted, core),
        });
        self.core.under(context, begun).await
    }

    /// A reader of an object, from an offset on.
    pub fn read(self: &Rc<Self>, object: Arc<Object>, offset: u64) -> Reader {
        Reader::new(self.clone(), object, offset)
    }

    /// The page of a bucket that is asked for.
    pub fn list(&self, bucket: &str, query: &ListingQuery) -> Listing {
        self.shared.namespace.list(bucket, query)
    }

    /// Deletes all generations of a name. When this returns the deletion is durable; a writer of a generation that
    /// is live learns of it with its next call; readers keep what they hold. Dropping the future leaves the
    /// deletion to go on by itself.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; the failure of a log, and then the deletion may be undone by a restart;
    /// [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context: where that had ended before, nothing is
    /// deleted, and otherwise the deletion goes on by itself.
    pub async fn delete(&self, context: &Context, name: &Name) -> Result<()> {
        self.core.check(context)?;
        let objects = self.shared.namespace.remove(name);
        if objects.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("there is no object {name}")));
        }
        let count = objects.len();
        let (done, mut outcomes) = channel();
        for object in objects {
            // What was superseded is deleted already, but perhaps not durably.
            if !object.is_deleted() {
                object.set_deleted();
                self.metrics.objects_deleted.increment();
            }
            self.metrics.core_messages.increment();
            self.shared.peers[object.home()].send(Message::Delete(context.detached(), object, done.clone()));
        }
        drop(done);
        for _ in 0..count {
            let gone = || Error::new(Kind::Closed, "the store was stopped before the deletion was durable");
            let outcome = self.core.under(context, outcomes.receive()).await?;
            outcome.unwrap_or_else(|| Err(gone()))?;
        }
        Ok(())
    }

    /// Has the deletion of a superseded object logged, here at its home. Where the disk is full that waits for room:
    /// until then the object's segments stay.
    pub(super) fn delete_superseded(self: &Rc<Self>, object: Arc<Object>) {
        let local = self.clone();
        self.spawn(async move {
            loop {
                match local.log_deletion(&Context::background(), object.clone()).await {
                    Err(error) if error.kind() == Kind::NoSpace => local.core.sleep(DELETION_PAUSE).await,
                    Err(error) => {
                        tracing::warn!(object = %object.name(), %error, "what is superseded could not be deleted");
                        return;
                    }
                    Ok(()) => return,
                }
            }
        });
    }

    /// Logs a deletion on this core, which is the object's home, and waits until it is durable.
    pub(super) async fn log_deletion(&self, context: &Context, object: Arc<Object>) -> Result<()> {
        loop {
            self.log.room(context, 0, true).await?;
            let timestamp = microseconds(SystemTime::now());
            let generation = object.generation();
            let appended = self.log.append(
                0,
                true,
                |_| Ok::<_, Error>(0),
                |length| {
                    let header = record(RecordKind::Delete, length, generation, 0, timestamp);
                    (header, Note::Delete(object.clone()))
                },
            )?;
            if let Some(appended) = appended {
                tracing::debug!(object = %object.name(), generation, "the deletion is in the log");
                return self.log.acknowledged(context, appended.sequence).await;
            }
        }
    }

    /// Waits until `check` says that there is more of an object, or that it has ended.
    pub(super) async fn wait_for_growth<T>(
        &self,
        object: &Arc<Object>,
        mut check: impl FnMut() -> Option<T> + Unpin,
    ) -> T {
        let (watched, core) = (object.clone(), self.core.index());
        self.commits
            .grown
            .wait(object.generation(), move |registered| {
                if registered {
                    watched.add_interest(core);
                }
                check()
            })
            .await
    }

    /// Ends an object without its writer's seal: what was appended is kept and its followers learn of it.
    pub(super) fn interrupt(self: &Rc<Self>, live: Rc<Live>, length: u64) {
        let local = self.clone();
        let task = async move {
            let context = Context::background();
            let outcome = loop {
                match local.append_end(&live, State::Interrupted, length) {
                    Ok(Some(_)) => break Ok(()),
                    Ok(None) => {}
                    Err(error) => break Err(error),
                }
                if let Err(error) = local.log.room(&context, 0, true).await {
                    break Err(error);
                }
            };
            match outcome {
                Ok(()) => tracing::debug!(object = %live.object.name(), length, "interrupted"),
                Err(error) => {
                    tracing::warn!(object = %live.object.name(), %error, "an interruption could not be logged");
                    local.end_without_log(&live);
                }
            }
        };
        // The writer was dropped by whoever wrote: the lines of its end are that request's too.
        self.endings.spawn(&self.core, task.in_current_span());
    }

    /// Ends an object as interrupted though that could not be logged.
    pub(super) fn end_without_log(&self, live: &Rc<Live>) {
        self.commits.end_without_log(live);
    }

    /// Puts the end of an object into the log. None: there is no room now.
    pub(super) fn append_end(&self, live: &Rc<Live>, state: State, length: u64) -> Result<Option<u64>> {
        let timestamp = microseconds(SystemTime::now());
        let kind = if state == State::Sealed { RecordKind::Seal } else { RecordKind::Interrupt };
        let generation = live.object.generation();
        let appended = self.log.append(
            0,
            true,
            |_| Ok::<_, Error>(0),
            |payload_length| {
                let header = record(kind, payload_length, generation, length, timestamp);
                (header, Note::End { live: live.clone(), state, at_microseconds: timestamp })
            },
        )?;
        Ok(appended.map(|appended| appended.sequence))
    }

    /// The state of this core's metrics.
    pub fn snapshot(&self) -> Snapshot {
        let metrics = &self.metrics;
        metrics.followers_waiting.set(self.commits.grown.len() as i64);
        metrics.loop_turns.add(self.core.turns() - metrics.loop_turns.get());
        let segments = &metrics.segments;
        let active = i64::from(self.log.has_active_segment());
        let (prepared, preparing) = (self.keeper.prepared() as i64, i64::from(self.keeper.is_preparing()));
        // Each core knows its own; core 0 adds what belongs to none.
        let (unprepared, in_use) = match self.core.index() {
            0 => self.keeper.space_counts(),
            _ => (0, 0),
        };
        segments.of(SegmentState::Active).set(active);
        segments.of(SegmentState::Preparing).set(preparing);
        segments.of(SegmentState::Free).set(prepared + unprepared);
        segments.of(SegmentState::Filled).set(in_use - prepared - preparing - active);
        metrics.snapshot()
    }

    /// Writes what is appended and waits until it is durable.
    pub(super) async fn flush(&self) -> Result<()> {
        self.log.flush(&Context::background()).await
    }

    /// Ends what runs here on behalf of others, makes durable what that leaves behind, and takes nothing more.
    pub(super) async fn close(&self) -> Result<()> {
        self.tasks.cancel().await;
        // Writers that were dropped just now leave their interruptions to be logged.
        let limit = self.core.now() + ENDINGS_LIMIT;
        while !self.endings.is_empty() && self.core.now() < limit {
            self.core.sleep(Duration::from_millis(1)).await;
        }
        self.endings.cancel().await;
        let outcome = self.flush().await;
        self.log.close();
        outcome
    }
}

/// How long to wait before the deletion of a superseded object is tried again on a full disk.
const DELETION_PAUSE: Duration = Duration::from_secs(1);
/// How long interruptions may take to get into the log when the store comes to an end.
const ENDINGS_LIMIT: Duration = Duration::from_secs(2);

/// A wait for a name: the last one of a core to leave says so.
struct LeaveName<'a> {
    local: &'a LocalStore,
    name: &'a Name,
}

impl Drop for LeaveName<'_> {
    fn drop(&mut self) {
        if !self.local.names.has(self.name) {
            self.local.shared.namespace.no_longer_await(self.name, self.local.core.index());
        }
    }
}

/// The payload of a create record.
#[derive(serde::Serialize)]
struct CreateDocument<'a> {
    name: &'a str,
    #[serde(flatten)]
    metadata: &'a Metadata,
}

pub(super) fn record(
    kind: RecordKind,
    length: usize,
    generation: u64,
    offset: u64,
    timestamp: u64,
) -> RecordHeader {
    RecordHeader { kind, continued: false, length: length as u32, generation, offset, timestamp }
}

/// Calls of other threads end here.
pub(super) type Answer<T> = Sender<Result<T>>;

/// Runs an asynchronous call on a core and waits for its answer; from any thread or runtime. Dropping the future
/// leaves the call to run to its end, which is that of the store at the latest.
///
/// The call is given the context and waits under it there, by the core's timers: so a deadline holds on a runtime
/// without any, and the answer tells how far the call came. Its log lines carry the context's request.
pub(super) async fn call_on<T, F>(
    context: &Context,
    shared: &Shared,
    core: usize,
    call: impl FnOnce(Rc<LocalStore>, Context) -> F + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + 'static,
{
    let (answer, mut answers): (Answer<T>, _) = channel();
    let context = context.clone();
    shared.call(core, move |local| {
        let span = context.span();
        let future = call(local.clone(), context);
        local.spawn(async move { answer.send(future.await) }.instrument(span));
    });
    match answers.receive().await {
        Some(outcome) => outcome,
        None => Err(Error::new(Kind::Closed, "the store has been stopped")),
    }
}
