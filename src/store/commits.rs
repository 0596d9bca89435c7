//! What happens when records become durable: on this core at once, on others by one message each, and in the catalog
//! batch by batch.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::catalog::{Batch, Change, Entered, SegmentUse, Write};
use super::extents::{Extent, Tail};
use super::object::{Object, State, microseconds};
use super::registry::Registry;
use super::shared::{Message, Shared};
use crate::error::{Error, Kind, Result};
use crate::log::{Placement, Segment, Sink};
use crate::metrics::CoreMetrics;
use crate::runtime::Core;

/// How many records a batch for the catalog has at most, about.
const BATCH_RECORDS_MAX: usize = 32 << 10;
/// How many batches may be on their way into the catalog before writers wait for it.
const BATCHES_UNDER_WAY_MAX: usize = 16;

/// What an append leaves behind until it is durable.
pub(super) enum Note {
    Create {
        live: Rc<Live>,
        document: Box<[u8]>,
        at_microseconds: u64,
    },
    Append {
        live: Rc<Live>,
        offset: u64,
        /// The append goes on in the next record: it does not count yet.
        continued: bool,
    },
    End {
        live: Rc<Live>,
        state: State,
        length: u64,
        at_microseconds: u64,
    },
    /// How long the object is going to be.
    Declare {
        live: Rc<Live>,
        length: u64,
    },
    Delete(Arc<Object>),
    /// A deletion that was logged before, in the segment with this number.
    Tombstone {
        generation: u64,
        from: u64,
    },
    /// A record that was logged before, of an object that the catalog has.
    Copy {
        object: Arc<Object>,
        change: Change,
    },
}

/// An object that is being written on this core.
pub(super) struct Live {
    pub object: Arc<Object>,
    /// The last of the core's blocks, as they became durable, in which it has grown.
    touched_in: Cell<u64>,
    /// The last of the core's batches for the catalog that it is in.
    entered_in: Cell<u64>,
    /// Its creation is durable.
    is_created: Cell<bool>,
    /// Something that was logged of it is lost: nothing of it may follow but that it is interrupted.
    is_broken: Cell<bool>,
    /// Its end is durable.
    has_end: Cell<bool>,
    /// How often its writing had been taken up again when this began.
    resumes: u64,
    tail: RefCell<Tail>,
    /// Durable parts of an append that is not whole yet.
    parts: RefCell<Vec<Extent>>,
}

impl Live {
    /// With `is_created`, of one that is there already.
    pub(super) fn new(object: Arc<Object>, is_created: bool) -> Rc<Live> {
        let (tail, parts) = (RefCell::new(object.extents().tail()), RefCell::default());
        let (touched_in, entered_in, is_created) = (Cell::new(0), Cell::new(0), Cell::new(is_created));
        let (is_broken, has_end, resumes) = (Cell::new(false), Cell::new(false), object.resumes());
        Rc::new(Live { object, touched_in, entered_in, is_created, is_broken, has_end, resumes, tail, parts })
    }

    /// Nobody else has gone on with the object since.
    pub(super) fn is_current(&self) -> bool {
        self.object.resumes() == self.resumes
    }

    /// How long it is if it is interrupted now, where that is known by itself: of what is lost nothing counts. None: of
    /// what was lost not even the creation is there.
    pub(super) fn length_left(&self, length: u64) -> Option<u64> {
        match (self.is_broken.get(), self.is_created.get()) {
            (false, _) => Some(length),
            (true, true) => Some(self.object.committed()),
            (true, false) => None,
        }
    }

    /// Refuses what would follow something that was lost.
    ///
    /// # Errors
    /// [`Kind::NoSpace`]: there was no room for it.
    pub(super) fn check_not_broken(&self) -> Result<()> {
        if self.is_broken.get() {
            return Err(Error::new(Kind::NoSpace, "what was appended before has found no room"));
        }
        Ok(())
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

/// Makes what has become durable known.
pub(super) struct Commits {
    core: Rc<Core>,
    shared: Arc<Shared>,
    metrics: Rc<CoreMetrics>,
    grown: Rc<Registry<u64>>,
    /// Objects that have changed in the block at hand.
    touched: RefCell<Vec<Rc<Live>>>,
    /// How many blocks have become durable, this one included.
    blocks: Cell<u64>,
    batch: RefCell<OpenBatch>,
    /// How many batches were cut, the open one included.
    batches: Cell<u64>,
    under_way: Arc<AtomicUsize>,
}

/// What the catalog will be told next.
#[derive(Default)]
struct OpenBatch {
    segment: Option<Arc<Segment>>,
    next_sequence: u64,
    term: u32,
    changes: Vec<Change>,
    live: Vec<Rc<Live>>,
    copied: Vec<Arc<Object>>,
}

impl Sink for Commits {
    type Note = Note;

    fn durable(&self, note: Note, placement: Placement<'_>) {
        self.follow(&placement);
        match note {
            Note::Create { live, document, at_microseconds } => {
                live.is_created.set(true);
                let (generation, name) = (live.object.generation(), live.object.name().clone());
                self.enter(&live, Change::Create { generation, name, document, at_microseconds });
            }
            Note::Append { live, offset, continued } => self.append(&live, offset, continued, &placement),
            Note::End { live, state, length, at_microseconds } => {
                let generation = live.object.generation();
                let change = match state {
                    State::Sealed => Change::Seal { generation, length, at_microseconds },
                    _ => Change::Interrupt { generation, at_microseconds },
                };
                live.has_end.set(true);
                // Where something was lost its followers know already, and somebody may have gone on since.
                if live.object.state() == State::Live && live.is_current() {
                    self.end(&live, state, at_microseconds);
                }
                self.enter(&live, change);
            }
            Note::Declare { live, length } => {
                self.enter(&live, Change::Declare { generation: live.object.generation(), length });
            }
            Note::Delete(object) => {
                if self.shared.namespace().deletion_is_durable(&object) {
                    self.metrics.objects_deleted.increment();
                }
                self.forget(&object);
                if let Some(home) = object.home().filter(|_| object.state() == State::Live) {
                    self.shared.send(home, Message::Deleted(object.generation()));
                }
                self.shared.enter(Write::Delete(object, use_of(placement.segment)));
            }
            Note::Tombstone { generation, from } => {
                self.shared.enter(Write::MoveTombstone(generation, from, use_of(placement.segment)));
            }
            Note::Copy { object, mut change } => {
                if let Change::Data { position, .. } = &mut change {
                    *position = placement.position;
                }
                let mut batch = self.batch.borrow_mut();
                batch.changes.push(change);
                batch.copied.push(object);
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
        if self.batch.borrow().changes.len() >= BATCH_RECORDS_MAX {
            self.cut(false);
        }
    }

    fn failed(&self, note: Note) {
        match note {
            // It was never there, and supersedes nothing. What a failing disk has of it all the same is deleted, or a
            // start could bring it back.
            Note::Create { live, .. } => {
                live.is_broken.set(true);
                self.shared.give_up(&live.object, self.core.index());
                self.end_without_log(&live);
            }
            Note::Append { live, .. } | Note::Declare { live, .. } | Note::End { live, .. } => {
                live.is_broken.set(true);
                self.end_without_log(&live);
            }
            // What was there before stays where it was. The object is held until the catalog was told.
            Note::Copy { object, change: Change::Create { generation, .. } } => {
                self.shared.enter(Write::Doubt(generation));
                drop(object);
            }
            Note::Copy { .. } | Note::Tombstone { .. } => {}
            // Who asked for it learns of the failure.
            Note::Delete(_) => {}
        }
    }
}

fn use_of(segment: &Segment) -> SegmentUse {
    SegmentUse { number: segment.number(), epoch: segment.epoch() }
}

impl Commits {
    pub(super) fn new(core: &Rc<Core>, shared: Arc<Shared>, metrics: Rc<CoreMetrics>) -> Rc<Commits> {
        Rc::new(Commits {
            core: core.clone(),
            shared,
            metrics,
            grown: Rc::default(),
            touched: RefCell::default(),
            blocks: Cell::new(1),
            batch: RefCell::default(),
            batches: Cell::new(1),
            under_way: Arc::default(),
        })
    }

    /// Who waits for more of an object on this core.
    pub(super) fn grown(&self) -> &Rc<Registry<u64>> {
        &self.grown
    }

    /// Whether so much is on its way into the catalog that writers must wait.
    pub(super) fn is_ahead_of_catalog(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > BATCHES_UNDER_WAY_MAX
    }

    /// Notes which block the records are of. With the first one of another segment everything of the former one is
    /// durable.
    fn follow(&self, placement: &Placement<'_>) {
        let has_changed = self
            .batch
            .borrow()
            .segment
            .as_ref()
            .is_some_and(|segment| segment.epoch() != placement.segment.epoch());
        if has_changed {
            self.cut(true);
        }
        let mut batch = self.batch.borrow_mut();
        if batch.segment.is_none() {
            batch.segment = Some(placement.segment.clone());
        }
        batch.next_sequence = placement.sequence + 1;
        batch.term = placement.term;
    }

    fn enter(&self, live: &Rc<Live>, change: Change) {
        let mut batch = self.batch.borrow_mut();
        batch.changes.push(change);
        if live.entered_in.replace(self.batches.get()) != self.batches.get() {
            batch.live.push(live.clone());
        }
    }

    /// Has the caches forget a name: they would keep the object for ever.
    pub(super) fn forget(&self, object: &Object) {
        let mut cached = object.cached();
        while cached != 0 {
            let core = cached.trailing_zeros() as usize;
            cached &= cached - 1;
            self.shared.send(core, Message::Forget(object.name().clone()));
        }
    }

    /// Sends the open batch to the catalog, if there is something in it. As long as it is open it holds its objects, so
    /// that nothing of them can be given back.
    pub(super) fn cut_what_is_there(&self) {
        if !self.batch.borrow().changes.is_empty() {
            self.cut(false);
        }
    }

    /// Sends the open batch to the catalog.
    pub(super) fn cut(&self, is_full: bool) {
        let mut open = self.batch.borrow_mut();
        let Some(segment) = open.segment.clone() else { return };
        let batch = Arc::new(Batch {
            segment: use_of(&segment),
            log: self.core.index() as u16,
            next_sequence: open.next_sequence,
            term: open.term,
            is_full,
            is_pinned: segment.is_pinned(),
            is_rebuilt: false,
            changes: std::mem::take(&mut open.changes),
        });
        let live = open.live.drain(..).map(|live| Entered {
            object: live.object.clone(),
            committed: live.object.committed(),
            has_ended: live.has_end.get(),
            resumes: live.resumes,
        });
        let mut objects: Vec<Entered> = live.collect();
        objects.extend(open.copied.drain(..).map(|object| Entered {
            committed: 0,
            has_ended: object.is_stored(),
            resumes: object.resumes(),
            object,
        }));
        if is_full {
            open.segment = None;
        }
        drop(open);
        self.batches.set(self.batches.get() + 1);
        let under_way = self.under_way.clone();
        under_way.fetch_add(1, Ordering::SeqCst);
        self.shared.enter(Write::Enter { batch, objects, under_way });
    }

    fn append(&self, live: &Rc<Live>, offset: u64, continued: bool, placement: &Placement<'_>) {
        self.touch(live);
        let object = &live.object;
        let (length, position) = (placement.length, placement.position);
        let generation = object.generation();
        self.enter(live, Change::Data { generation, offset, length, continued, position });
        let segment = placement.segment.clone();
        let extent = Extent { offset, length, position, segment, hot: placement.hot.clone() };
        if live.add(extent, continued) {
            object.commit(offset + u64::from(length));
            object.mark_fresh(self.shared.since_start(placement.appended));
            self.metrics.appends.increment();
            let took = self.core.precise_now().saturating_duration_since(placement.appended);
            self.metrics.append_to_acknowledged.record(took);
        }
    }

    fn touch(&self, live: &Rc<Live>) {
        if live.touched_in.replace(self.blocks.get()) != self.blocks.get() {
            self.touched.borrow_mut().push(live.clone());
        }
    }

    /// Ends an object as interrupted though that could not be logged. Without a seal in the log a restart finds it
    /// interrupted all the same.
    pub(super) fn end_without_log(&self, live: &Rc<Live>) {
        if live.object.state() == State::Live && live.is_current() {
            self.end(live, State::Interrupted, microseconds(self.core.wall_clock()));
            self.block_done();
        }
    }

    /// Wakes whoever waits for more of this object.
    fn announce(&self, object: &Object) {
        let mut interest = object.take_interest();
        while interest != 0 {
            let core = interest.trailing_zeros() as usize;
            interest &= interest - 1;
            if core == self.core.index() {
                self.grown.wake(&object.generation());
            } else {
                self.metrics.core_messages.increment();
                self.metrics.wake_messages.increment();
                self.shared.send(core, Message::Grown(object.generation()));
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
        self.shared.settle(object.name(), self.core.index());
    }
}
