//! One generation of an object, as all cores see it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::extents::Extents;
use super::name::Name;
use super::progress::Progress;
use crate::log::Segment;

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
    /// The core whose log has the records, or is the one for what is logged about it now.
    home: AtomicUsize,
    progress: Progress,
    deleted: AtomicBool,
    modified_microseconds: AtomicU64,
    /// When the oldest bytes that no follower was sent yet were appended, in nanoseconds; 0 when there are none.
    fresh_since: AtomicU64,
    extents: Extents,
    /// Segments with records of this object that are not its bytes.
    anchors: Mutex<Vec<Arc<Segment>>>,
}

impl Object {
    /// A new generation, live and empty.
    pub fn new(
        name: Name,
        generation: u64,
        metadata: Metadata,
        home: usize,
        created_microseconds: u64,
    ) -> Arc<Object> {
        Arc::new(Object {
            name,
            generation,
            metadata,
            home: AtomicUsize::new(home),
            progress: Progress::new(State::Live as u8),
            deleted: AtomicBool::new(false),
            modified_microseconds: AtomicU64::new(created_microseconds),
            fresh_since: AtomicU64::new(0),
            extents: Extents::default(),
            anchors: Mutex::default(),
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

    /// The strong validator (RFC 9110, section 8.8.3): a generation never comes twice, and a byte of it never
    /// changes. It stays the same from the first byte through the seal, so that who follows can go on where a
    /// connection broke.
    pub fn etag(&self) -> String {
        format!("\"{:x}\"", self.generation)
    }

    /// Where its bytes lie; those up to the watermark count.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    pub(super) fn home(&self) -> usize {
        self.home.load(Ordering::Relaxed)
    }

    pub(super) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::SeqCst);
    }

    /// Advances the watermark.
    pub(super) fn commit(&self, end: u64) {
        self.progress.commit(end);
    }

    pub(super) fn end(&self, state: State, at_microseconds: u64) {
        self.modified_microseconds.store(at_microseconds, Ordering::Relaxed);
        self.progress.end(state as u8);
    }

    pub(super) fn anchor(&self, segment: &Arc<Segment>) {
        let mut anchors = self.anchors.lock().unwrap_or_else(PoisonError::into_inner);
        if !anchors.iter().any(|anchor| Arc::ptr_eq(anchor, segment)) {
            anchors.push(segment.clone());
        }
    }

    /// Every segment with records of this object, some more than once.
    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        let mut segments = self.extents.segments();
        segments.extend(self.anchors.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        segments
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

impl std::fmt::Debug for Object {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}@{} ({})", self.name, self.generation, self.state().as_str())
    }
}

/// Microseconds since 1970.
pub(super) fn microseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as u64)
}
