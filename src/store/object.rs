//! One generation of an object, as all cores see it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::catalog::Write;
use super::extents::Extents;
use super::name::Name;
use super::progress::Progress;
use crate::runtime::Sender;

/// What is kept with an object besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The `Content-Type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The `Cache-Control`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Names (in lower case) and values of the writer's own, the `x-amz-meta-*` headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<(String, String)>,
    /// The length that the writer has declared beforehand, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_length: Option<u64>,
    /// What a tus client said of its upload, as it said it. Unfinished, such an upload is kept for a time only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tus: Option<String>,
}

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum State {
    /// Being written.
    Live = 0,
    /// Complete and immutable.
    Sealed = 1,
    /// Its writer is gone without sealing.
    Interrupted = 2,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Live => "live",
            State::Sealed => "sealed",
            State::Interrupted => "interrupted",
        }
    }
}

/// One generation of an object. Its writer's core changes it, all cores read it.
pub struct Object {
    name: Name,
    generation: u64,
    metadata: Metadata,
    progress: Progress,
    deleted: AtomicBool,
    durably_deleted: AtomicBool,
    /// The catalog has all of it.
    stored: AtomicBool,
    modified_microseconds: AtomicU64,
    /// When the oldest bytes that no follower was sent yet were appended, in nanoseconds; 0 when there are none.
    fresh_since: AtomicU64,
    /// A bit for each core that keeps it in its cache.
    cached: AtomicU64,
    /// The core whose log has what the catalog may not have yet, plus one; 0 where there is none.
    home: AtomicUsize,
    /// How often its writing was taken up again after it was interrupted.
    resumes: AtomicU64,
    /// Its length, where that was declared after it began.
    declared_later: OnceLock<u64>,
    extents: Extents,
    /// Who is told when nobody holds the object any more: its bytes can be let go of then.
    on_last_drop: OnceLock<Sender<Write>>,
}

impl Object {
    /// A new generation, live and empty.
    pub fn new(name: Name, generation: u64, metadata: Metadata, created_microseconds: u64) -> Arc<Object> {
        let extents = Extents::beginning_at(0);
        Arc::new(Object {
            name,
            generation,
            metadata,
            progress: Progress::new(State::Live as u8, 0),
            deleted: AtomicBool::new(false),
            durably_deleted: AtomicBool::new(false),
            stored: AtomicBool::new(false),
            modified_microseconds: AtomicU64::new(created_microseconds),
            fresh_since: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            home: AtomicUsize::new(0),
            resumes: AtomicU64::new(0),
            declared_later: OnceLock::new(),
            extents,
            on_last_drop: OnceLock::new(),
        })
    }

    /// A generation that the catalog has all of. Its extents lie there, unless some are given: then all are.
    pub(super) fn stored(
        name: Name,
        generation: u64,
        metadata: Metadata,
        state: State,
        length: u64,
        modified_microseconds: u64,
        extents: Extents,
    ) -> Arc<Object> {
        Arc::new(Object {
            name,
            generation,
            metadata,
            progress: Progress::new(state as u8, length),
            deleted: AtomicBool::new(false),
            durably_deleted: AtomicBool::new(false),
            stored: AtomicBool::new(true),
            modified_microseconds: AtomicU64::new(modified_microseconds),
            fresh_since: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            home: AtomicUsize::new(0),
            resumes: AtomicU64::new(0),
            declared_later: OnceLock::new(),
            extents,
            on_last_drop: OnceLock::new(),
        })
    }

    /// The name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The generation: larger than that of every object begun before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is kept with it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// How long it is going to be in bytes, where that was declared.
    pub fn declared_length(&self) -> Option<u64> {
        self.metadata.declared_length.or_else(|| self.declared_later.get().copied())
    }

    /// Notes the length that its writer has declared now.
    pub(super) fn declare_length(&self, length: u64) {
        let _ = self.declared_later.set(length);
    }

    /// The watermark: everything before this offset is durable. It only grows.
    pub fn committed(&self) -> u64 {
        self.progress.committed()
    }

    /// Where it stands. Read this before [`Object::committed`]: a state other than live means that the watermark
    /// read after it is final.
    pub fn state(&self) -> State {
        match self.progress.state() {
            0 => State::Live,
            1 => State::Sealed,
            _ => State::Interrupted,
        }
    }

    /// Whether it was deleted: its name no longer leads to it, who holds it may go on reading.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::SeqCst)
    }

    /// When it was sealed or interrupted; when it was begun, while it is live.
    pub fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.modified_microseconds.load(Ordering::Relaxed))
    }

    pub(super) fn modified_microseconds(&self) -> u64 {
        self.modified_microseconds.load(Ordering::Relaxed)
    }

    /// The strong validator (RFC 9110, section 8.8.3): a generation never comes twice, and a byte of it never
    /// changes. It stays the same from the first byte through the seal, so that who follows can go on where a
    /// connection broke.
    pub fn etag(&self) -> String {
        etag(self.generation)
    }

    /// Where its bytes lie; those up to the watermark count.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Whether no crash can bring it back.
    pub(super) fn is_durably_deleted(&self) -> bool {
        self.durably_deleted.load(Ordering::SeqCst)
    }

    pub(super) fn set_durably_deleted(&self) {
        self.durably_deleted.store(true, Ordering::SeqCst);
    }

    /// Whether the catalog has all of it.
    pub(super) fn is_stored(&self) -> bool {
        self.stored.load(Ordering::SeqCst)
    }

    pub(super) fn set_stored(&self, stored: bool) {
        self.stored.store(stored, Ordering::SeqCst);
    }

    /// The core that writes it, or that wrote the end of it in this run. Only that core may add to it: of one object
    /// the catalog learns from one log at a time. None: all of it was in the catalog when it was looked up.
    pub fn home(&self) -> Option<usize> {
        self.home.load(Ordering::SeqCst).checked_sub(1)
    }

    pub(super) fn set_home(&self, core: usize) {
        self.home.store(core + 1, Ordering::SeqCst);
    }

    /// How often its writing was taken up again.
    pub(crate) fn resumes(&self) -> u64 {
        self.resumes.load(Ordering::SeqCst)
    }

    /// It is being written again, on this core. Only for the namespace, which keeps it from leaving at the same time.
    pub(super) fn resume(&self, core: usize) {
        self.set_home(core);
        self.resumes.fetch_add(1, Ordering::SeqCst);
        self.set_stored(false);
        self.progress.resume(State::Live as u8);
    }

    /// Says that a core keeps it in its cache.
    pub(super) fn add_cached(&self, core: usize) {
        self.cached.fetch_or(1 << core, Ordering::SeqCst);
    }

    /// The cores that keep it in their caches.
    pub(super) fn cached(&self) -> u64 {
        self.cached.load(Ordering::SeqCst)
    }

    /// Says who is told when nobody holds the object any more.
    pub(super) fn set_on_last_drop(&self, told: Sender<Write>) {
        let _ = self.on_last_drop.set(told);
    }

    /// Says that it is deleted. Answers whether it was before.
    pub(super) fn set_deleted(&self) -> bool {
        self.deleted.swap(true, Ordering::SeqCst)
    }

    /// Advances the watermark.
    pub(super) fn commit(&self, end: u64) {
        self.progress.commit(end);
    }

    pub(super) fn end(&self, state: State, at_microseconds: u64) {
        self.modified_microseconds.store(at_microseconds, Ordering::Relaxed);
        self.progress.end(state as u8);
    }

    /// Notes when new bytes were appended (since the start of the store) that somebody waits for, for the latency
    /// to the first follower.
    pub(super) fn mark_fresh(&self, appended: Duration) {
        if self.progress.has_interest() && self.fresh_since.load(Ordering::Relaxed) == 0 {
            self.fresh_since.store(appended.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// When the oldest bytes that no follower was sent yet were appended; answered to one of them only.
    pub(super) fn take_fresh(&self) -> Option<Duration> {
        if self.fresh_since.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.fresh_since.swap(0, Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }

    /// Says that readers on this core wait. Who calls this looks at the watermark once more afterwards.
    pub(super) fn add_interest(&self, core: usize) {
        self.progress.add_interest(core);
    }

    /// Takes the cores whose readers wait. Who calls this has changed the watermark or the state before.
    pub(super) fn take_interest(&self) -> u64 {
        self.progress.take_interest()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(told) = self.on_last_drop.get() {
            told.send(Write::Purge(self.generation));
        }
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}@{} ({})", self.name, self.generation, self.state().as_str())
    }
}

pub(super) fn etag(generation: u64) -> String {
    format!("\"{generation:x}\"")
}

/// Microseconds since 1970.
pub(super) fn microseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as u64)
}
