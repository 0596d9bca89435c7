//! The catalog's two threads: one answers look-ups, one writes.
//!
//! Cores never touch the database: they send a question and wait for its answer, or send news and go on. What the
//! news lead to (an object that needs no memory any more, a segment that is empty) is done here, after the
//! transaction is on stable storage.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::changes::{Batch, SegmentUse};
use super::database::{Database, Outcome, Step, StoredObject, View};
use crate::error::{Error, Kind, Result};
use crate::log::{Segment, Space};
use crate::ring::WeakRegion;
use crate::runtime::{Receiver, Sender};
use crate::store::extents::{Extent, Extents};
use crate::store::listing::{self, ListingQuery};
use crate::store::name::Name;
use crate::store::namespace::{Namespace, Visible};
use crate::store::object::{Metadata, Object, State, etag};

/// How many extents of an object are kept in memory with it; one with more is read window by window.
const EXTENTS_WITH_OBJECT: usize = 64;
/// How many extents a reader gets at a time, about.
const EXTENTS_PER_WINDOW: usize = 256;
/// How many requests share a transaction at most.
const STEPS_PER_TRANSACTION: usize = 256;
/// How long to wait before a failed transaction is tried again.
pub const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often it is tried at most when the store comes to an end: the next start reads the segments instead.
const ATTEMPTS_AT_THE_END: usize = 3;

/// The payload of a create record.
#[derive(Deserialize)]
pub struct CreateDocument {
    /// The name.
    pub name: String,
    /// What is kept with the object.
    #[serde(flatten)]
    pub metadata: Metadata,
}

/// What a name serves, for a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key in its bucket.
    pub key: String,
    /// Which generation.
    pub generation: u64,
    /// Where it stands.
    pub state: State,
    /// Its committed bytes.
    pub length: u64,
    /// When it was sealed or interrupted, or begun, in microseconds since 1970.
    pub modified_microseconds: u64,
}

impl Listed {
    /// The strong validator; what an interrupted object holds may still be continued, so it has none.
    pub fn etag(&self) -> Option<String> {
        (self.state != State::Interrupted).then(|| etag(self.generation))
    }

    /// When it was sealed or interrupted; when it was begun, while it is live.
    pub fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.modified_microseconds)
    }
}

/// A page of a bucket.
pub type Page = listing::Page<Listed>;

/// Where an answer goes.
pub type Answer<T> = Sender<Result<T>>;

/// What looks at the catalog itself.
pub type Inspector = Box<dyn FnOnce(Result<&View>) + Send>;

/// A question to the catalog.
pub enum Read {
    /// All generations of a name that the catalog has.
    Find(Name, Answer<Vec<Arc<Object>>>),
    /// The extents of an object from an offset on.
    Extents(Arc<Object>, u64, Answer<Vec<Extent>>),
    /// A page of a bucket.
    List(String, ListingQuery, Answer<Page>),
    /// All buckets that hold something.
    Buckets(Answer<Vec<String>>),
    /// Anything else.
    Inspect(Inspector),
    /// Nothing more is asked.
    Close,
}

/// An object in a batch, as it was when that was cut.
pub struct Entered {
    /// The object.
    pub object: Arc<Object>,
    /// Its whole appends in this batch and before end here.
    pub committed: u64,
    /// Nothing more is to come, unless its writing is taken up again.
    pub has_ended: bool,
    /// How often that was done.
    pub resumes: u64,
}

/// News for the catalog.
pub enum Write {
    /// Records of one log.
    Enter {
        /// The records.
        batch: Arc<Batch>,
        /// The objects in them.
        objects: Vec<Entered>,
        /// One less when it is done.
        under_way: Arc<AtomicUsize>,
    },
    /// A deletion that is durable in this segment.
    Delete(Arc<Object>, SegmentUse),
    /// A deletion that is durable in another segment too: generation, former and new place.
    MoveTombstone(u64, u64, SegmentUse),
    /// Nobody holds a deleted generation any more.
    Purge(u64),
    /// A copy of a generation's creation could not be written. Whoever says so holds the object.
    Doubt(u64),
    /// A segment's file was cleared.
    Cleared(SegmentUse),
    /// Answered when everything before it is on stable storage.
    Flush(Sender<()>),
    /// Nothing more comes.
    Close,
}

/// Bytes of a segment that can be given back to the file system. Holding the segment keeps it from being used again
/// meanwhile.
pub struct Dead {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Position and length in bytes of each part.
    pub ranges: Vec<(u64, u64)>,
}

/// What both threads share.
pub struct Books {
    /// None while it is opened again after a failure.
    database: RwLock<Option<Database>>,
    reopen: Box<dyn Fn() -> Result<Database> + Send + Sync>,
    /// Objects in memory by generation: there is one of each at most.
    held: Mutex<Held>,
    space: Arc<Space>,
    namespace: Arc<Namespace>,
    /// Why the last transaction failed, until one succeeds.
    trouble: Mutex<Option<Error>>,
    /// The store comes to an end, also where nothing can be entered.
    is_ending: AtomicBool,
}

#[derive(Default)]
struct Held {
    objects: HashMap<u64, Weak<Object>>,
    sweep_at: usize,
}

impl Held {
    fn get(&self, generation: u64) -> Option<Arc<Object>> {
        self.objects.get(&generation).and_then(Weak::upgrade)
    }

    fn insert(&mut self, object: &Arc<Object>) {
        if self.objects.len() >= self.sweep_at.max(1024) {
            self.objects.retain(|_, object| object.strong_count() > 0);
            self.sweep_at = self.objects.len() * 2;
        }
        self.objects.insert(object.generation(), Arc::downgrade(object));
    }
}

impl Books {
    /// Books over an open database, and how to open it again.
    pub fn new(
        database: Database,
        reopen: Box<dyn Fn() -> Result<Database> + Send + Sync>,
        space: Arc<Space>,
        namespace: Arc<Namespace>,
    ) -> Arc<Books> {
        Arc::new(Books {
            database: RwLock::new(Some(database)),
            reopen,
            held: Mutex::default(),
            space,
            namespace,
            trouble: Mutex::default(),
            is_ending: AtomicBool::new(false),
        })
    }

    /// Why nothing can be entered now, if so.
    pub fn trouble(&self) -> Option<Error> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on what fails is not tried for ever.
    pub fn begin_to_end(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => act(database),
            None => Err(Error::new(Kind::Device, "the catalog cannot be opened after a failure")),
        }
    }

    /// Lets go of the database, when nothing is asked and told any more.
    pub fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn open_again(&self) -> Result<()> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        *slot = Some((self.reopen)()?);
        Ok(())
    }

    /// Answers questions until it is told to close.
    pub async fn answer(self: Arc<Self>, mut questions: Receiver<Read>) {
        while let Some(question) = questions.receive().await {
            match question {
                Read::Find(name, answer) => answer.send(self.find(&name)),
                Read::Extents(object, offset, answer) => answer.send(self.extents(&object, offset)),
                Read::List(bucket, query, answer) => answer.send(self.list(&bucket, &query)),
                Read::Buckets(answer) => answer.send(self.buckets()),
                Read::Inspect(inspect) => match self.with(Database::view) {
                    Ok(view) => inspect(Ok(&view)),
                    Err(error) => inspect(Err(error)),
                },
                Read::Close => return,
            }
        }
    }

    fn find(&self, name: &Name) -> Result<Vec<Arc<Object>>> {
        // Held throughout: what is deleted now either finds the object held, or is not found here.
        let mut held = self.held();
        'again: loop {
            let view = self.with(Database::view)?;
            let rows = view.objects(name.bucket(), name.key().as_bytes())?;
            let generations: Vec<u64> = rows.iter().map(|row| row.generation).collect();
            let mut objects = Vec::with_capacity(rows.len());
            let mut is_new = false;
            for row in rows {
                if let Some(object) = held.get(row.generation) {
                    objects.push(object);
                    continue;
                }
                if row.state == State::Live {
                    // It has ended, and was let go of, after this view was taken.
                    continue 'again;
                }
                objects.push(self.object(&view, name, row)?);
                is_new = true;
            }
            // Who deletes something holds it until the catalog knows. What is not held and still there after that look
            // is not being deleted.
            if is_new {
                let rows = self.with(Database::view)?.objects(name.bucket(), name.key().as_bytes())?;
                if !rows.iter().map(|row| row.generation).eq(generations) {
                    continue;
                }
                objects.iter().for_each(|object| held.insert(object));
            }
            return Ok(objects);
        }
    }

    fn object(&self, view: &View, name: &Name, row: StoredObject) -> Result<Arc<Object>> {
        let document: CreateDocument = serde_json::from_slice(&row.document).map_err(|error| {
            Error::new(Kind::Damaged, format!("the metadata of {name} cannot be read: {error}"))
        })?;
        let mut stored = view.extents(row.generation, 0, EXTENTS_WITH_OBJECT + 1)?;
        // Behind its end there may be parts of an append that did not become whole. Who goes on writes others there.
        stored.retain(|(extent, _)| extent.offset < row.length);
        let is_all = stored.last().map_or(0, |(extent, _)| extent.end()) >= row.length;
        let extents = if is_all && stored.len() <= EXTENTS_WITH_OBJECT {
            let extents = Extents::beginning_at(0);
            let mut tail = extents.tail();
            self.extents_of(stored).for_each(|extent| tail.push(&extents, extent));
            extents
        } else {
            Extents::beginning_at(row.length)
        };
        let mut metadata = document.metadata;
        if row.state != State::Sealed && metadata.declared_length.is_none() {
            metadata.declared_length = view.declared_length(row.generation)?;
        }
        Ok(Object::stored(
            name.clone(),
            row.generation,
            metadata,
            row.state,
            row.length,
            row.modified_microseconds,
            extents,
        ))
    }

    fn extents_of(
        &self,
        stored: Vec<(super::changes::StoredExtent, u64)>,
    ) -> impl Iterator<Item = Extent> + '_ {
        stored.into_iter().map(|(extent, epoch)| Extent {
            offset: extent.offset,
            length: extent.length,
            position: extent.position,
            segment: self.space.segment(extent.segment, epoch),
            hot: WeakRegion::default(),
        })
    }

    fn extents(&self, object: &Object, offset: u64) -> Result<Vec<Extent>> {
        let view = self.with(Database::view)?;
        let stored = view.extents(object.generation(), offset, EXTENTS_PER_WINDOW)?;
        if stored.first().is_none_or(|(extent, _)| extent.offset > offset) {
            let message = format!("the catalog has lost what {} holds at offset {offset}", object.name());
            return Err(Error::new(Kind::Damaged, message));
        }
        Ok(self.extents_of(stored).collect())
    }

    fn list(&self, bucket: &str, query: &ListingQuery) -> Result<Page> {
        let _stays = self.namespace.list();
        let view = self.with(Database::view)?;
        listing::page(query, |from| self.next_listed(&view, bucket, from.clone()))
    }

    /// The first key of a bucket from a place on that serves something.
    fn next_listed(
        &self,
        view: &View,
        bucket: &str,
        mut from: Bound<Vec<u8>>,
    ) -> Result<Option<(String, Listed)>> {
        loop {
            let news = self.namespace.next_key(bucket, &from);
            let stored = view.next_key(bucket, &from)?;
            let is_news = |(key, _): &(String, Visible)| stored.as_ref().is_none_or(|stored| key <= stored);
            let (key, listed) = match (news.filter(is_news), stored) {
                (Some((key, Visible::Object(object))), _) => {
                    let listed = of_object(&object);
                    (key, Some(listed))
                }
                (Some((key, Visible::Nothing)), _) => (key, None),
                (Some((key, Visible::Ask(newest, known))), _) => {
                    let stored = served(view.objects(bucket, key.as_bytes())?, &known);
                    let stored = stored.filter(|stored| stored.state == State::Sealed || newest.is_none());
                    let listed = match (stored, newest) {
                        (Some(stored), _) => Some(of_stored(&key, &stored)),
                        (None, newest) => newest.map(|object| of_object(&object)),
                    };
                    (key, listed)
                }
                (None, Some(key)) => {
                    let stored = served(view.objects(bucket, key.as_bytes())?, &[]);
                    let listed = stored.map(|stored| of_stored(&key, &stored));
                    (key, listed)
                }
                (None, None) => return Ok(None),
            };
            match listed {
                Some(listed) => return Ok(Some((key, listed))),
                None => from = Bound::Excluded(key.into_bytes()),
            }
        }
    }

    fn buckets(&self) -> Result<Vec<String>> {
        let _stays = self.namespace.list();
        let view = self.with(Database::view)?;
        let mut buckets = Vec::new();
        let mut from = String::new();
        loop {
            let (news, stored) = (self.namespace.next_bucket(&from), view.next_bucket(&from)?);
            let Some(bucket) = news.into_iter().chain(stored).min() else { return Ok(buckets) };
            // The smallest text behind the bucket, though no bucket can have it.
            from = format!("{bucket}\0");
            if self.next_listed(&view, &bucket, Bound::Included(Vec::new()))?.is_some() {
                buckets.push(bucket);
            }
        }
    }

    /// Enters news until it is told to close, or they cannot be entered and the store comes to an end: then the next
    /// start reads them from the segments. Deleted objects say to `last_drops`, which brings news here too, when
    /// nobody holds them any more. `dead` gets what can be given back to the file system; `pause` waits before a
    /// failed transaction is tried again. It is called with no time at all where others may run in between: what shares
    /// its thread with others lets them.
    pub async fn write(
        self: Arc<Self>,
        mut news: Receiver<Write>,
        last_drops: Sender<Write>,
        dead: Sender<Vec<Dead>>,
        pause: impl AsyncFn(Duration),
    ) {
        while let Some(first) = news.receive().await {
            if matches!(first, Write::Close) {
                return;
            }
            let mut batch = vec![first];
            while batch.len() < STEPS_PER_TRANSACTION && !matches!(batch.last(), Some(Write::Close)) {
                let Some(next) = news.try_receive() else { break };
                batch.push(next);
            }
            let is_last = matches!(batch.last(), Some(Write::Close));
            let steps: Vec<Step> = batch.iter().filter_map(|write| self.step(write)).collect();
            let mut failures = 0;
            let outcome = loop {
                if steps.is_empty() {
                    break Outcome::default();
                }
                match self.with(|database| database.take(&steps)) {
                    Ok(outcome) => break outcome,
                    Err(error) => {
                        failures += 1;
                        self.note_failure(&error, failures);
                        if failures >= ATTEMPTS_AT_THE_END && self.is_ending.load(Ordering::SeqCst) {
                            tracing::warn!(
                                "the catalog has not got everything: the next start reads the segments"
                            );
                            return;
                        }
                        pause(PAUSE_AFTER_FAILURE).await;
                        if let Err(error) = self.open_again() {
                            self.note_failure(&error, failures);
                        }
                    }
                }
            };
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if failures > 0 {
                tracing::info!("the catalog can be written again");
            }
            pause(Duration::ZERO).await;
            self.after(outcome, &dead);
            for write in batch {
                pause(Duration::ZERO).await;
                self.entered(write, &last_drops);
            }
            if is_last {
                return;
            }
        }
    }

    fn note_failure(&self, error: &Error, failures: usize) {
        if failures == 1 {
            tracing::error!(%error, "the catalog cannot be written; it is tried again every second");
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    }

    fn step(&self, write: &Write) -> Option<Step> {
        Some(match write {
            Write::Enter { batch, objects, .. } => {
                let mut held = self.held();
                objects.iter().for_each(|entered| held.insert(&entered.object));
                Step::Enter(batch.clone())
            }
            Write::Delete(object, segment) => {
                Step::Delete { generation: object.generation(), segment: *segment }
            }
            &Write::MoveTombstone(generation, from, to) => Step::MoveTombstone { generation, from, to },
            &Write::Purge(generation) => {
                let mut held = self.held();
                // Who holds it now lets go of it later, and says so again.
                if held.get(generation).is_some() {
                    return None;
                }
                held.objects.remove(&generation);
                Step::Purge { generation }
            }
            &Write::Doubt(generation) => Step::Doubt { generation },
            &Write::Cleared(segment) => Step::Free(segment),
            Write::Flush(_) | Write::Close => return None,
        })
    }

    fn after(&self, outcome: Outcome, dead: &Sender<Vec<Dead>>) {
        for segment in outcome.emptied {
            self.space.segment(segment.number, segment.epoch).set_empty();
        }
        let mut parts: BTreeMap<SegmentUse, Vec<(u64, u64)>> = BTreeMap::new();
        for range in outcome.dead {
            parts.entry(range.segment).or_default().push((range.position, range.length));
        }
        if !parts.is_empty() {
            let parts = parts.into_iter().map(|(segment, ranges)| Dead {
                segment: self.space.segment(segment.number, segment.epoch),
                ranges,
            });
            dead.send(parts.collect());
        }
        for generation in outcome.unequal {
            tracing::error!(generation, "a sealed object has another length than its bytes");
        }
    }

    fn entered(&self, write: Write, last_drops: &Sender<Write>) {
        match write {
            Write::Enter { objects, under_way, .. } => {
                for Entered { object, committed, has_ended, resumes } in objects {
                    object.extents().forget_before(committed);
                    if has_ended {
                        self.namespace.is_stored(&object, resumes);
                    }
                }
                under_way.fetch_sub(1, Ordering::SeqCst);
            }
            Write::Delete(object, _) => {
                object.set_on_last_drop(last_drops.clone());
                self.namespace.deletion_is_stored(&object);
            }
            Write::Cleared(segment) => self.space.set_free(segment.number),
            Write::Flush(done) => {
                done.send(());
            }
            Write::MoveTombstone(..) | Write::Purge(_) | Write::Doubt(_) | Write::Close => {}
        }
    }
}

fn of_object(object: &Object) -> Listed {
    Listed {
        key: object.name().key().to_owned(),
        generation: object.generation(),
        state: object.state(),
        length: object.committed(),
        modified_microseconds: object.modified_microseconds(),
    }
}

fn of_stored(key: &str, stored: &StoredObject) -> Listed {
    Listed {
        key: key.to_owned(),
        generation: stored.generation,
        state: stored.state,
        length: stored.length,
        modified_microseconds: stored.modified_microseconds,
    }
}

/// What is served of these generations, without some.
fn served(stored: Vec<StoredObject>, but: &[u64]) -> Option<StoredObject> {
    let mut stored: Vec<_> = stored.into_iter().filter(|object| !but.contains(&object.generation)).collect();
    let newest = stored.iter().rposition(|object| object.state != State::Interrupted);
    match newest {
        Some(place) => Some(stored.swap_remove(place)),
        None => stored.pop(),
    }
}

/// Opens the catalog in a file, now and whenever it has failed.
pub fn opener(path: PathBuf, store: u64) -> Box<dyn Fn() -> Result<Database> + Send + Sync> {
    Box::new(move || Database::open(&path, store))
}
