//! The store as one core sees it: its log, its registries, and the messages from other cores.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::catalog::{Change, Page, Read};
use super::commits::{Commits, Live, Note};
use super::extents::Extent;
use super::listing::ListingQuery;
use super::name::Name;
use super::namespace::{Look, Pin};
use super::object::{Metadata, Object, State, microseconds};
use super::reader::Reader;
use super::registry::Registry;
use super::shared::{Message, Shared};
use super::writer::Writer;
use super::writers::{Left, Writers};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::format::{RecordHeader, RecordKind};
use crate::log::{Keeper, Log, Segment, Space, open_for_reading};
use crate::metrics::{CoreMetrics, SegmentState, Snapshot};
use crate::ring::Descriptor;
use crate::runtime::{Core, Either, Receiver, Sender, TaskGroup, channel, race};

/// How many objects of the catalog a core keeps at hand.
const OBJECTS_CACHED: usize = 4096;
/// How many segments a core keeps open for reading.
const FILES_OPEN: usize = 128;

/// A small map that forgets what came first.
struct Cache<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
    capacity: usize,
}

impl<K: Clone + Eq + std::hash::Hash, V: Clone> Cache<K, V> {
    fn new(capacity: usize) -> RefCell<Cache<K, V>> {
        RefCell::new(Cache { values: HashMap::new(), order: VecDeque::new(), capacity })
    }

    fn get(&self, key: &K) -> Option<V> {
        self.values.get(key).cloned()
    }

    fn insert(&mut self, key: K, value: V) {
        if self.values.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.capacity {
            if let Some(first) = self.order.pop_front() {
                self.values.remove(&first);
            }
        }
    }

    fn forget(&mut self, key: &K) -> Option<V> {
        self.values.remove(key)
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
    writers: Rc<Writers>,
    /// Who makes room waits here until it is wanted.
    room_wanted: Rc<Registry<()>>,
    wants_room: Rc<Cell<bool>>,
    metrics: Rc<CoreMetrics>,
    objects: RefCell<Cache<Name, Arc<Object>>>,
    /// Segments open for reading, by number.
    files: RefCell<Cache<u64, Arc<Descriptor>>>,
    /// What runs here on behalf of others; ends with the store.
    tasks: TaskGroup,
    /// Interruptions on their way into the log.
    endings: TaskGroup,
}

impl LocalStore {
    pub(super) fn new(
        core: &Rc<Core>,
        shared: Arc<Shared>,
        log: Rc<Log<Commits>>,
        keeper: Rc<Keeper>,
        metrics: Rc<CoreMetrics>,
    ) -> Rc<LocalStore> {
        let commits = Commits::new(core, shared.clone(), metrics.clone());
        log.set_sink(&commits);
        Rc::new(LocalStore {
            core: core.clone(),
            shared,
            log,
            commits,
            keeper,
            names: Rc::default(),
            stopping: Rc::default(),
            writers: Rc::default(),
            room_wanted: Rc::default(),
            wants_room: Rc::default(),
            metrics,
            objects: Cache::new(OBJECTS_CACHED),
            files: Cache::new(FILES_OPEN),
            tasks: TaskGroup::default(),
            endings: TaskGroup::default(),
        })
    }

    /// Handles the messages of other cores, until all senders are gone.
    pub(super) async fn listen(self: Rc<Self>, mut messages: Receiver<Message>) {
        while let Some(message) = messages.receive().await {
            match message {
                Message::Grown(generation) => self.commits.grown().wake(&generation),
                Message::Deleted(generation) => self.writers.deleted(generation),
                Message::Begun(name) => self.names.wake(&name),
                Message::Forget(name) => drop(self.objects.borrow_mut().forget(&name)),
                Message::Delete(context, objects, done, refusals) => {
                    let (local, span) = (self.clone(), context.span());
                    let deletion = async move { local.delete_here(&context, objects, done, refusals).await };
                    self.spawn(deletion.instrument(span));
                }
                Message::Supersede(objects) => self.delete_superseded(objects),
                Message::Call(call) => call(&self),
            }
        }
    }

    /// Wakes who waits for the end of the store.
    pub(super) fn stop(&self) {
        self.stopping.wake(&());
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

    /// Who writes here.
    pub(super) fn writers(&self) -> &Rc<Writers> {
        &self.writers
    }

    #[cfg(test)]
    pub(super) fn commits(&self) -> &Rc<Commits> {
        &self.commits
    }

    pub(super) fn log(&self) -> &Rc<Log<Commits>> {
        &self.log
    }

    /// Why nothing can be written any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.log.failure().or_else(|| self.keeper.failure())
    }

    /// Returns when the store is to come to an end. Dropping the future leaves nothing behind.
    pub async fn stopping(&self) {
        let shared = self.shared.clone();
        self.stopping.wait((), move |_| shared.is_stopping().then_some(())).await;
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
        let pin = match only_if_absent {
            true => Some(self.core.under(context, self.complete(&name)).await??),
            false => None,
        };
        self.core.under(context, self.wait_for_catalog()).await?;
        // A body that is told to be long gets its room before any of it is taken.
        let promise = match metadata.declared_length {
            Some(length) if length > self.log.payload_length_max() as u64 => {
                Some(self.space().promise(&self.core, length)?)
            }
            _ => None,
        };
        loop {
            self.log.room(context, document.len(), true).await?;
            if let Some(left) = self.begin(&name, &metadata, &document, only_if_absent)? {
                drop(pin);
                return Ok(Writer::take_up(self.clone(), Left { promise, ..left }, Duration::ZERO));
            }
        }
    }

    /// Logs a creation and makes it known. None: whoever keeps segments ready has just found that there are none, and
    /// what room there was is the reserve.
    fn begin(
        self: &Rc<Self>,
        name: &Name,
        metadata: &Metadata,
        document: &[u8],
        only_if_absent: bool,
    ) -> Result<Option<Left>> {
        let generation = self.shared.take_generation();
        let timestamp = microseconds(self.core.wall_clock());
        let object = Object::new(name.clone(), generation, metadata.clone(), timestamp);
        object.set_home(self.core.index());
        let live = Live::new(object, false);
        let mut awaited = 0;
        let appended = self.log.append(
            document.len(),
            true,
            |space| {
                // Only with room is there anything to be found.
                awaited = self.shared.namespace().begin(&live.object, only_if_absent)?;
                space.copy_from_slice(document);
                Ok::<_, Error>(document.len())
            },
            |length| {
                let document = document.into();
                let note = Note::Create { live: live.clone(), document, at_microseconds: timestamp };
                (record(RecordKind::Create, length, generation, 0, timestamp), note)
            },
        );
        let Some(appended) = appended? else { return Ok(None) };
        self.metrics.objects_live.increment();
        tracing::debug!(object = %name, generation, "begun");
        self.announce_name(name, awaited);
        self.complete_later(name);
        self.writers.begin(generation);
        let (sequence, declared_length) = (Some(appended.sequence), metadata.declared_length);
        Ok(Some(Left { live, offset: 0, sequence, promise: None, declared_length }))
    }

    /// Waits while the catalog is far behind the log: what it does not know yet is in memory.
    pub(super) async fn wait_for_catalog(&self) {
        while self.commits.is_ahead_of_catalog() {
            self.core.sleep(CATALOG_PAUSE).await;
        }
    }

    /// Makes the entry of a name complete, and keeps it until the answer is dropped.
    pub(super) async fn complete<'a>(&'a self, name: &'a Name) -> Result<Pin<'a>> {
        let pin = self.shared.namespace().pin(name);
        if !self.shared.namespace().is_complete(name) {
            self.find_in_catalog(name).await?;
        }
        Ok(pin)
    }

    /// Makes the entry of a name complete when the catalog has answered.
    fn complete_later(self: &Rc<Self>, name: &Name) {
        if self.shared.namespace().is_complete(name) {
            return;
        }
        let (local, name) = (self.clone(), name.clone());
        self.spawn(async move {
            while local.find_in_catalog(&name).await.is_err() {
                local.core.sleep(DELETION_PAUSE).await;
            }
        });
    }

    /// Has what this name's generations have superseded deleted, when the catalog has answered.
    pub(super) fn settle_later(self: &Rc<Self>, name: Name) {
        let local = self.clone();
        self.spawn(async move {
            if let Err(error) = local.complete(&name).await {
                tracing::warn!(object = %name, %error, "what is superseded is left to the next start");
            }
        });
    }

    /// What the name serves, after the catalog was asked. Nothing of the name leaves memory before that has answered:
    /// between question and answer it might be made and deleted otherwise, and the answer be taken for the truth.
    async fn find_in_catalog(&self, name: &Name) -> Result<Option<Arc<Object>>> {
        let _pin = self.shared.namespace().pin(name);
        let stored = self.shared.ask(|answer| Read::Find(name.clone(), answer)).await?;
        let found = self.shared.namespace().complete(name, &stored);
        self.shared.settle(name, self.core.index());
        Ok(found)
    }

    fn announce_name(&self, name: &Name, mut awaited: u64) {
        while awaited != 0 {
            let core = awaited.trailing_zeros() as usize;
            awaited &= awaited - 1;
            if core == self.core.index() {
                self.names.wake(name);
            } else {
                self.metrics.core_messages.increment();
                self.shared.send(core, Message::Begun(name.clone()));
            }
        }
    }

    /// The generation that a name serves. Dropping the future changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context.
    pub async fn find(&self, context: &Context, name: &Name) -> Result<Option<Arc<Object>>> {
        self.core.under(context, self.look_up(name)).await?
    }

    async fn look_up(&self, name: &Name) -> Result<Option<Arc<Object>>> {
        match self.shared.namespace().find(name) {
            Look::Found(object) => return Ok(Some(object)),
            Look::Nothing => return Ok(None),
            Look::Ask => {}
        }
        let cached = self.objects.borrow().get(name);
        if let Some(object) = cached.filter(|object| !object.is_deleted()) {
            return Ok(Some(object));
        }
        let found = self.find_in_catalog(name).await?;
        if let Some(object) = found.as_ref().filter(|object| object.is_stored()) {
            object.add_cached(self.core.index());
            // Whoever deletes it now tells this cache; who has before is seen here.
            if !object.is_deleted() {
                self.objects.borrow_mut().insert(name.clone(), object.clone());
            }
        }
        Ok(found)
    }

    /// Waits until a name serves something. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context, which leave nothing behind either.
    pub async fn find_when_begun(&self, context: &Context, name: &Name) -> Result<Arc<Object>> {
        self.core.under(context, self.begun(name)).await?
    }

    async fn begun(&self, name: &Name) -> Result<Arc<Object>> {
        let _leaving = LeaveName { local: self, name };
        let (shared, core, wanted) = (self.shared.clone(), self.core.index(), name.clone());
        let mut begun = pin!(self.names.wait(name.clone(), move |registered| {
            let look = match registered {
                false => shared.namespace().find(&wanted),
                true => shared.namespace().find_or_await(&wanted, core),
            };
            match look {
                Look::Found(object) => Some(object),
                Look::Nothing | Look::Ask => None,
            }
        }));
        // The wait is registered before the catalog is asked, so that nothing falls in between.
        match race(begun.as_mut(), self.look_up(name)).await {
            Either::First(object) => Ok(object),
            Either::Second(Err(error)) => Err(error),
            Either::Second(Ok(Some(object))) => Ok(object),
            Either::Second(Ok(None)) => Ok(begun.await),
        }
    }

    /// A reader of an object, from an offset on.
    pub fn read(self: &Rc<Self>, object: Arc<Object>, offset: u64) -> Reader {
        Reader::new(self.clone(), object, offset)
    }

    /// The extents of an object from an offset on that are only in the catalog.
    pub(super) async fn stored_extents(&self, object: &Arc<Object>, offset: u64) -> Result<Vec<Extent>> {
        self.shared.ask(|answer| Read::Extents(object.clone(), offset, answer)).await
    }

    /// The folder of the segments.
    pub(super) fn segment_folder(&self) -> &std::path::Path {
        self.keeper.folder()
    }

    /// The length of a segment in bytes.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.keeper.segment_bytes()
    }

    /// The room for segments.
    pub(super) fn space(&self) -> &Arc<Space> {
        self.keeper.space()
    }

    /// Whether there is room for fewer segments than these, beside those that are kept prepared on all cores.
    pub(super) fn is_room_short(&self, segments: u64) -> bool {
        let wanted = segments + self.space().wanted_segments() as u64;
        self.space().room_bytes(&self.core) < wanted.saturating_mul(self.segment_bytes())
    }

    /// Has room made at once.
    fn want_room(&self) {
        self.wants_room.set(true);
        self.room_wanted.wake(&());
    }

    /// Returns when room is to be made at once.
    pub(super) async fn room_is_wanted(&self) {
        let wants = self.wants_room.clone();
        self.room_wanted.wait((), move |_| wants.take().then_some(())).await;
    }

    /// Tries once more to make segments, where there was no room, and to clear those that could not be: some may have
    /// come back.
    pub(super) fn look_for_room(&self) {
        if self.keeper.trouble().is_some() || self.space().has_emptied() {
            self.keeper.try_again();
        }
    }

    /// Tells the catalog what has become durable since it was told last.
    pub(super) fn cut_batch(&self) {
        self.commits.cut_what_is_there();
    }

    /// Has the caches forget what an object of this name was.
    pub(super) fn forget_cached(&self, object: &Object) {
        self.commits.forget(object);
    }

    /// A segment's file, open for reading through the page cache. Dropping the future closes what was being opened.
    ///
    /// # Errors
    /// As open(2).
    pub async fn file(&self, segment: &Segment) -> Result<Arc<Descriptor>> {
        let cached = self.files.borrow().get(&segment.number());
        if let Some(file) = cached {
            return Ok(file);
        }
        let path = Space::path(self.keeper.folder(), segment.number());
        let opened = open_for_reading(&self.core, &path).await;
        let file = opened.map_err(|errno| Error::device(format!("cannot open {}", path.display()), errno))?;
        self.files.borrow_mut().insert(segment.number(), file.clone());
        Ok(file)
    }

    /// The page of a bucket that is asked for. Dropping the future changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context.
    pub async fn list(&self, context: &Context, bucket: &str, query: &ListingQuery) -> Result<Page> {
        let page = self.shared.ask(|answer| Read::List(bucket.to_owned(), query.clone(), answer));
        self.core.under(context, page).await?
    }

    /// All buckets that hold something, in order. Dropping the future changes nothing.
    ///
    /// # Errors
    /// What the catalog's disk says; [`Kind::Closed`]; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the
    /// context.
    pub async fn buckets(&self, context: &Context) -> Result<Vec<String>> {
        self.core.under(context, self.shared.ask(Read::Buckets)).await?
    }

    /// Deletes one generation of a name, if it is there and sealed; answers whether it was. When this returns the
    /// deletion is durable.
    ///
    /// # Errors
    /// As [`LocalStore::delete`].
    pub(super) async fn delete_sealed(&self, name: &Name, generation: u64) -> Result<bool> {
        let pin = self.complete(name).await?;
        let Some(object) = self.shared.namespace().sealed_generation(name, generation) else {
            return Ok(false);
        };
        drop(pin);
        self.delete_objects(&Context::background(), vec![object]).await?;
        Ok(true)
    }

    /// One generation of a name, if the catalog has it.
    pub(super) async fn find_generation(&self, name: &Name, generation: u64) -> Result<Option<Arc<Object>>> {
        let stored = self.shared.ask(|answer| Read::Find(name.clone(), answer)).await?;
        Ok(stored.into_iter().find(|object| object.generation() == generation))
    }

    /// Deletes all generations of a name. When this returns the deletion is durable; a writer of a generation that
    /// is live learns of it with its next call; readers keep what they hold. Dropping the future leaves the
    /// deletion undone, or to go on by itself.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::NoSpace`]; the failure of a log, and then a restart may find some generations
    /// deleted; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context: where that had ended before,
    /// nothing is deleted, and otherwise nothing, or the deletion goes on by itself.
    pub async fn delete(&self, context: &Context, name: &Name) -> Result<()> {
        let pin = self.core.under(context, self.complete(name)).await??;
        let objects = self.shared.namespace().to_be_deleted(name);
        drop(pin);
        if objects.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("there is no object {name}")));
        }
        self.delete_objects(context, objects).await
    }

    /// Has deletions logged, and waits under the context until they are durable. They are logged also when that ends.
    pub(super) async fn delete_objects(&self, context: &Context, objects: Vec<Arc<Object>>) -> Result<()> {
        let (done, mut outcomes) = channel();
        self.shared.send(self.core.index(), Message::Delete(context.detached(), objects, done, 0));
        let gone = || Error::new(Kind::Closed, "the store was stopped before the deletion was durable");
        self.core.under(context, outcomes.receive()).await?.unwrap_or_else(|| Err(gone()))
    }

    /// Logs deletions here, or on the next core where there is no room.
    async fn delete_here(
        &self,
        context: &Context,
        objects: Vec<Arc<Object>>,
        done: Sender<Result<()>>,
        refusals: usize,
    ) {
        let mut outcome = self.log_deletions(context, &objects).await;
        // The last core waits a moment for room to be made: a full disk can be emptied.
        for _ in 0..DELETION_ATTEMPTS {
            let is_last = refusals + 1 >= self.shared.cores();
            if !is_last || outcome.as_ref().map_or_else(|error| error.kind() != Kind::NoSpace, |()| true) {
                break;
            }
            self.shared.call(0, |local| local.want_room());
            self.core.sleep(DELETION_PAUSE / 4).await;
            outcome = self.log_deletions(context, &objects).await;
        }
        let has_no_room = outcome.as_ref().is_err_and(|error| error.kind() == Kind::NoSpace);
        if has_no_room && refusals + 1 < self.shared.cores() {
            let next = (self.core.index() + 1) % self.shared.cores();
            self.shared.send(next, Message::Delete(context.clone(), objects, done, refusals + 1));
        } else {
            done.send(outcome);
        }
    }

    /// Has the deletion of superseded objects logged. Where the disk is full that waits for room.
    fn delete_superseded(self: &Rc<Self>, objects: Vec<Arc<Object>>) {
        let local = self.clone();
        self.spawn(async move {
            loop {
                match local.delete_objects(&Context::background(), objects.clone()).await {
                    Err(error) if error.kind() == Kind::NoSpace => local.core.sleep(DELETION_PAUSE).await,
                    Err(error) => {
                        tracing::warn!(object = %objects[0].name(), %error, "what is superseded could not be deleted");
                        return;
                    }
                    Ok(()) => return,
                }
            }
        });
    }

    /// Logs deletions on this core, one after the other, and waits until they are durable.
    async fn log_deletions(&self, context: &Context, objects: &[Arc<Object>]) -> Result<()> {
        for object in objects {
            let generation = object.generation();
            tracing::debug!(object = %object.name(), generation, "a deletion is logged");
            let note = || Note::Delete(object.clone());
            self.log_record(context, RecordKind::Delete, generation, note).await?;
        }
        Ok(())
    }

    /// Logs the deletions of generations once more, which were logged in the segment with this number, and waits until
    /// they are durable.
    pub(super) async fn log_tombstones(&self, generations: Vec<u64>, from: u64) -> Result<()> {
        let mut last = None;
        for generation in generations {
            let header = record(RecordKind::Delete, 0, generation, 0, microseconds(self.core.wall_clock()));
            let note = || Note::Tombstone { generation, from };
            last = Some(self.log_copy(header, &[], note).await?);
        }
        self.logged(last).await
    }

    /// Puts a record into the log once more, and answers its block.
    async fn log_copy(&self, header: RecordHeader, payload: &[u8], note: impl Fn() -> Note) -> Result<u64> {
        loop {
            if let Some(appended) = self.log.append_copy(header, payload, note())? {
                return Ok(appended.sequence);
            }
            self.log.room_for_copy(payload.len()).await?;
        }
    }

    /// Logs records once more, one behind the other, as far as that goes without waiting in one block. Answers what to
    /// wait for with [`LocalStore::logged`].
    pub(super) async fn log_copies(&self, copies: Vec<Copy>) -> Result<Option<u64>> {
        let mut last = None;
        for Copy { header, payload, object, change } in copies {
            // What was deleted meanwhile stays where it is.
            if !object.is_deleted() {
                let note = || Note::Copy { object: object.clone(), change: change.clone() };
                last = Some(self.log_copy(header, &payload, note).await?);
            }
        }
        Ok(last)
    }

    /// Waits until what was logged last is durable.
    pub(super) async fn logged(&self, last: Option<u64>) -> Result<()> {
        match last {
            Some(last) => self.log.acknowledged(&Context::background(), last).await,
            None => Ok(()),
        }
    }

    async fn log_record(
        &self,
        context: &Context,
        kind: RecordKind,
        generation: u64,
        note: impl Fn() -> Note,
    ) -> Result<()> {
        let sequence = self.append_bare(context, kind, generation, note).await?;
        self.log.acknowledged(context, sequence).await
    }

    /// Puts a record without a payload into the log, and answers its block.
    async fn append_bare(
        &self,
        context: &Context,
        kind: RecordKind,
        generation: u64,
        note: impl Fn() -> Note,
    ) -> Result<u64> {
        loop {
            let timestamp = microseconds(self.core.wall_clock());
            let describe = |length| (record(kind, length, generation, 0, timestamp), note());
            if let Some(appended) = self.log.append(0, true, |_| Ok::<_, Error>(0), describe)? {
                return Ok(appended.sequence);
            }
            self.log.room(context, 0, true).await?;
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
            .grown()
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
                // Behind what somebody else has appended since, its end would be taken for his.
                if !live.is_current() {
                    return;
                }
                let Some(length) = live.length_left(length) else { return };
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
        if state == State::Sealed {
            live.check_not_broken()?;
        }
        let timestamp = microseconds(self.core.wall_clock());
        let kind = if state == State::Sealed { RecordKind::Seal } else { RecordKind::Interrupt };
        let generation = live.object.generation();
        let appended = self.log.append(
            0,
            true,
            |_| Ok::<_, Error>(0),
            |payload_length| {
                let header = record(kind, payload_length, generation, length, timestamp);
                (header, Note::End { live: live.clone(), state, length, at_microseconds: timestamp })
            },
        )?;
        Ok(appended.map(|appended| appended.sequence))
    }

    /// Puts the length that an object is going to have into the log. None: there is no room now.
    pub(super) fn append_length(&self, live: &Rc<Live>, length: u64) -> Result<Option<u64>> {
        let timestamp = microseconds(self.core.wall_clock());
        let generation = live.object.generation();
        let describe = |payload_length| {
            let header = record(RecordKind::Declare, payload_length, generation, length, timestamp);
            (header, Note::Declare { live: live.clone(), length })
        };
        let appended = self.log.append(0, true, |_| Ok::<_, Error>(0), describe)?;
        Ok(appended.map(|appended| appended.sequence))
    }

    /// The state of this core's metrics.
    pub fn snapshot(&self) -> Snapshot {
        let metrics = &self.metrics;
        metrics.followers_waiting.set(self.commits.grown().len() as i64);
        metrics.loop_turns.add(self.core.turns() - metrics.loop_turns.get());
        metrics.logs_failed.set(i64::from(self.failure().is_some()));
        metrics.writers_awaited.set(self.writers.awaited() as i64);
        metrics.arena_pieces_lent.set(self.log.pieces_lent() as i64);
        let segments = &metrics.segments;
        let active = i64::from(self.log.has_active_segment());
        let (prepared, preparing) = (self.keeper.prepared() as i64, i64::from(self.keeper.is_preparing()));
        // Each core knows its own; core 0 adds what belongs to none.
        let (unprepared, in_use) = match self.core.index() {
            0 => {
                metrics.catalog_failing.set(i64::from(self.shared.catalog_trouble().is_some()));
                self.keeper.space_counts()
            }
            _ => (0, 0),
        };
        segments.of(SegmentState::Active).set(active);
        segments.of(SegmentState::Preparing).set(preparing);
        segments.of(SegmentState::Free).set(prepared + unprepared);
        segments.of(SegmentState::Filled).set(in_use - prepared - preparing - active);
        metrics.snapshot()
    }

    /// What is under way here, and who waits.
    #[cfg(test)]
    pub(crate) fn census(&self) -> super::drops::Census {
        let (writers, writer_waiters) = self.writers.held_and_waiting();
        let (names_awaited, pins) = self.shared.namespace().awaited_and_pinned();
        super::drops::Census {
            operations: self.core.ring().in_flight(),
            timers: self.core.timers_waiting(),
            tasks: self.tasks.len(),
            endings: self.endings.len(),
            waiters: self.commits.grown().len() + self.names.len() + writer_waiters + self.log.waiters(),
            writers,
            names_awaited,
            pins,
            promised_bytes: self.space().promised_bytes(),
            blocks_in_flight: self.log.state().blocks_in_flight,
            objects_live: self.metrics.objects_live.get(),
        }
    }

    /// How many pieces of the arena are held by others than the log.
    #[cfg(test)]
    pub(crate) fn pieces_lent(&self) -> usize {
        self.log.pieces_lent()
    }

    /// How many files are open here: for reading, and of segments that are written or prepared.
    #[cfg(test)]
    pub(crate) fn files_open(&self) -> usize {
        let written = usize::from(self.log.has_active_segment()) + self.keeper.prepared();
        self.files.borrow().values.len() + written
    }

    /// Writes what is appended and waits until it is durable.
    pub(super) async fn flush(&self) -> Result<()> {
        self.log.flush(&Context::background()).await
    }

    /// Ends what runs here on behalf of others, makes durable what that leaves behind, and takes nothing more.
    pub(super) async fn close(self: &Rc<Self>) -> Result<()> {
        self.tasks.cancel().await;
        for left in self.writers.take_awaited() {
            self.interrupt(left.live, left.offset);
        }
        // Writers that were dropped just now leave their interruptions to be logged.
        let limit = self.core.now() + ENDINGS_LIMIT;
        while !self.endings.is_empty() && self.core.now() < limit {
            self.core.sleep(Duration::from_millis(1)).await;
        }
        self.endings.cancel().await;
        let outcome = self.flush().await;
        self.log.close();
        // Before the catalog says that there is nothing more to be read in it.
        self.log.trim().await;
        // What failed or was given up is made unreadable by the next start, which looks only at what is not known as full.
        self.commits.cut(outcome.is_ok() && !self.log.has_blocks_to_void());
        self.keeper.release();
        outcome
    }
}

/// How long writers wait before they look again whether the catalog has caught up.
const CATALOG_PAUSE: Duration = Duration::from_millis(5);
/// How long to wait before the deletion of a superseded object is tried again on a full disk.
const DELETION_PAUSE: Duration = Duration::from_secs(1);
/// How often a deletion is tried again, a quarter of that apart, while somebody waits for it.
const DELETION_ATTEMPTS: usize = 20;
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
            self.local.shared.namespace().no_longer_await(self.name, self.local.core.index());
        }
    }
}

/// A record that is logged once more.
pub(super) struct Copy {
    pub header: RecordHeader,
    pub payload: Vec<u8>,
    pub object: Arc<Object>,
    pub change: Change,
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
