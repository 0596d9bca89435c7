//! The writing side of one core's log: the open block, the blocks in flight, and group commit.
//!
//! ```text
//!   append ──▶ open block ──close──▶ in flight ──written──▶ durable, in log order ──▶ sink, waiters
//!              (one piece of the     (several)
//!               arena at a time)
//! ```
//!
//! A block that could not be written is still in memory: it and all blocks behind it are written again, in
//! order, to a fresh segment under a new term, and the failed segment is retired. Where there is no room for that, they
//! are given up, whoever waits for them is told, and the log goes on when there is room again. When segments cannot be
//! written, the log has failed for good: every append and every wait answers the error.

mod again;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::format::{
    ALIGNMENT, BLOCK_HEADER_LENGTH, BlockHeader, RECORD_HEADER_LENGTH, RecordHeader, SEGMENT_HEADER_LENGTH,
    record_length,
};
use super::segment::{Keeper, KeeperClient, Need, Prepared, Segment};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::metrics::CoreMetrics;
use crate::ring::{Arena, Descriptor, Fill, Region, WeakRegion};
use crate::runtime::{Core, Either, Task, race, yield_now};

/// A block is not begun where less than this is left of its piece or segment.
const BLOCK_LENGTH_MIN: usize = 2 * ALIGNMENT;
/// A record is not begun where less than this is left for its payload, unless the payload fits.
const PAYLOAD_ROOM_MIN: usize = 4096;
/// Blocks in flight at most: what the device can do at once, and no more of the arena than that.
const BLOCKS_IN_FLIGHT_MAX: usize = 16;

/// What is kept of the last segment for copies that make room, in sixteenths of its length.
const KEPT_FOR_COPIES: u64 = 2;
/// What data leaves of it for records without a payload (deletions, ends) beside that: a full disk can be emptied.
const KEPT_FOR_DELETIONS: u64 = 1;
/// How long a wait for room is at most before it looks again: pieces of the arena come back from other cores
/// without a word.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Who learns what has become durable.
pub trait Sink: 'static {
    /// What an append leaves behind for the moment when it is durable.
    type Note: 'static;

    /// The record that left this note, and everything before it in the log, is on stable storage.
    fn durable(&self, note: Self::Note, placement: Placement<'_>);

    /// All notes of a block have been told.
    fn block_done(&self);

    /// The record that left this note is lost: the log has failed for good before it became durable, or had no room to
    /// write it again. On a failing disk it may be there all the same, until a later one of this log is durable.
    fn failed(&self, note: Self::Note);
}

/// Where the payload of a durable record lies.
pub struct Placement<'a> {
    /// The segment.
    pub segment: &'a Arc<Segment>,
    /// The block.
    pub sequence: u64,
    /// The log's term.
    pub term: u32,
    /// Where in the segment, in bytes.
    pub position: u64,
    /// How many bytes.
    pub length: u32,
    /// The same bytes in memory, as long as the arena keeps them.
    pub hot: WeakRegion,
    /// When the record was appended.
    pub appended: Instant,
}

/// A record that is in the log, though not yet durable.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// The block that it is in.
    pub sequence: u64,
    /// How many bytes of payload it has.
    pub length: usize,
}

/// How a log is set up.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The number of the log: its core's.
    pub log: u16,
    /// The longest block in bytes, a multiple of 4096.
    pub block_bytes: usize,
    /// Whether a block is written through to stable storage before it counts as durable.
    pub durable: bool,
    /// The sequence of the first block: recovery says which.
    pub next_sequence: u64,
    /// The term that begins: recovery says which.
    pub term: u32,
}

/// What a log is doing, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogState {
    /// Blocks written and not yet durable.
    pub blocks_in_flight: usize,
    /// Their bytes.
    pub bytes_in_flight: usize,
}

/// One core's log.
pub struct Log<S: Sink> {
    core: Rc<Core>,
    settings: LogSettings,
    arena: Arena,
    keeper: Rc<Keeper>,
    metrics: Rc<CoreMetrics>,
    sink: RefCell<Weak<S>>,
    state: RefCell<State<S::Note>>,
    myself: Weak<Log<S>>,
}

struct State<N> {
    active: Option<Active>,
    /// The piece that blocks are being built in; the open block begins at its uncommitted part.
    piece: Option<Fill>,
    /// Full pieces, oldest first, kept so that followers find their bytes in memory.
    recent: VecDeque<Region>,
    open: Option<OpenBlock<N>>,
    in_flight: VecDeque<Flying<N>>,
    bytes_in_flight: usize,
    next_sequence: u64,
    durable_sequence: u64,
    term: u32,
    term_start: u64,
    waiting_for_durable: BTreeMap<(u64, u64), Waker>,
    waiting_for_room: BTreeMap<u64, Waker>,
    waits: u64,
    flusher: Option<Waker>,
    flusher_wanted: bool,
    recovering: bool,
    failed: Option<Error>,
    /// Blocks that were given up, as appends were told their sequences, and why.
    given_up: Vec<(Range<u64>, Error)>,
    /// How many sequences were told to appends and are not in the log.
    skipped: u64,
    /// Blocks were given up, and none of a later term is durable that makes clear that they are void.
    voids: bool,
    spare_notes: Vec<Vec<Noted<N>>>,
}

impl<N> State<N> {
    /// The sequence that an append of now is told: that of the open block. A sequence that was given up comes again in
    /// the log, so these run ahead of it.
    fn told_sequence(&self) -> u64 {
        self.next_sequence + self.skipped
    }

    /// Goes on behind what is durable, as if what is in flight and in the open block had not been. A new term voids what
    /// of it may be on disk.
    fn give_up(&mut self, why: Error) {
        let end = self.told_sequence() + 1;
        self.given_up.push((self.durable_sequence + self.skipped..end, why));
        self.skipped = end - self.durable_sequence;
        self.voids = true;
        self.next_sequence = self.durable_sequence;
        self.term += 1;
        self.term_start = self.durable_sequence;
    }
}

/// What a record is for: that decides what it may take of the last segments of a full disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Bytes of a writer: none of the reserve.
    Data,
    /// A copy that lets another segment be used again: all of the reserve.
    Copy,
    /// A record without a payload, a deletion or an end: the reserve, but for what copies need.
    Bare,
}

impl Purpose {
    fn of(payload_length: usize) -> Purpose {
        if payload_length > 0 { Purpose::Data } else { Purpose::Bare }
    }

    /// What it may have a segment made for of the file system's reserve.
    fn need(self) -> Option<Need> {
        match self {
            Purpose::Data => None,
            Purpose::Copy => Some(Need::Copies),
            Purpose::Bare => Some(Need::Deletions),
        }
    }
}

/// Why a record finds no room now.
enum Lack {
    /// Blocks are in flight or memory is in use: it comes by itself.
    Time,
    /// There is no segment; the keeper is at it, or in trouble.
    Segment,
}

struct Active {
    segment: Arc<Segment>,
    /// The last segment that could be had: kept for records without a payload, until there is another one.
    is_reserve: bool,
    writing: Arc<Descriptor>,
    place: Option<u32>,
    position: u64,
    in_flight: usize,
}

struct OpenBlock<N> {
    /// How long it may become.
    limit: usize,
    used: usize,
    records: u32,
    notes: Vec<Noted<N>>,
}

struct Noted<N> {
    note: N,
    /// Where the payload lies in the block.
    payload: Range<u32>,
    appended: Instant,
}

struct Flying<N> {
    sequence: u64,
    region: Region,
    /// Length without padding.
    length: usize,
    segment: Arc<Segment>,
    position: u64,
    notes: Vec<Noted<N>>,
    outcome: Option<std::result::Result<(), Errno>>,
    submitted: Instant,
}

impl<S: Sink> Log<S> {
    /// Starts the log of `core`. Blocks are built in `arena` and written to segments of `keeper`, until the
    /// returned task is dropped.
    pub fn start(
        core: &Rc<Core>,
        settings: LogSettings,
        arena: Arena,
        keeper: Rc<Keeper>,
        metrics: Rc<CoreMetrics>,
    ) -> (Rc<Log<S>>, Task<()>) {
        assert!(settings.block_bytes <= arena.piece_length() && settings.block_bytes >= BLOCK_LENGTH_MIN);
        let log = Rc::new_cyclic(|myself| Log {
            core: core.clone(),
            arena,
            keeper: keeper.clone(),
            metrics,
            sink: RefCell::new(Weak::new()),
            state: RefCell::new(State {
                active: None,
                piece: None,
                recent: VecDeque::new(),
                open: None,
                in_flight: VecDeque::new(),
                bytes_in_flight: 0,
                next_sequence: settings.next_sequence,
                durable_sequence: settings.next_sequence,
                term: settings.term,
                term_start: settings.next_sequence,
                waiting_for_durable: BTreeMap::new(),
                waiting_for_room: BTreeMap::new(),
                waits: 0,
                flusher: None,
                flusher_wanted: false,
                recovering: false,
                failed: None,
                given_up: Vec::new(),
                skipped: 0,
                voids: false,
                spare_notes: Vec::new(),
            }),
            settings,
            myself: myself.clone(),
        });
        keeper.set_client(Rc::new(Client(Rc::downgrade(&log))));
        let flusher = core.spawn(flush_when_idle(Rc::downgrade(&log)));
        (log, flusher)
    }

    /// Sets who learns what has become durable.
    pub fn set_sink(&self, sink: &Rc<S>) {
        *self.sink.borrow_mut() = Rc::downgrade(sink);
    }

    /// Puts one record into the open block, without waiting.
    ///
    /// `fill` gets the room for the payload, between 1 and `wanted` bytes of it, and says how many it has written
    /// there: bytes from a socket come straight to their place. Zero means that nothing is appended. `header` and
    /// `note` are then called with that length. None: there is no room now; [`Log::room`] waits for it. With
    /// `whole`, less room than `wanted` counts as none.
    ///
    /// # Errors
    /// The log's own failure, or what `fill` says; then nothing is appended.
    pub fn append<E: From<Error>>(
        &self,
        wanted: usize,
        whole: bool,
        fill: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
        describe: impl FnOnce(usize) -> (RecordHeader, S::Note),
    ) -> std::result::Result<Option<Appended>, E> {
        self.append_for(Purpose::of(wanted), wanted, whole, fill, describe)
    }

    /// As [`Log::append`], whole, of a record that was logged before. It may take all of the reserve: it is copied so
    /// that its segment can be used again.
    ///
    /// # Errors
    /// The log's own failure; then nothing is appended.
    pub fn append_copy(
        &self,
        header: RecordHeader,
        payload: &[u8],
        note: S::Note,
    ) -> Result<Option<Appended>> {
        let fill = |space: &mut [u8]| {
            space.copy_from_slice(payload);
            Ok::<_, Error>(payload.len())
        };
        self.append_for(Purpose::Copy, payload.len(), true, fill, |_| (header, note))
    }

    fn append_for<E: From<Error>>(
        &self,
        purpose: Purpose,
        wanted: usize,
        whole: bool,
        fill: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
        describe: impl FnOnce(usize) -> (RecordHeader, S::Note),
    ) -> std::result::Result<Option<Appended>, E> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Some(error) = &state.failed {
            return Err(error.clone().into());
        }
        let least = if whole { wanted } else { wanted.min(PAYLOAD_ROOM_MIN) };
        let Ok(limit) = self.ensure_open(state, least, purpose) else { return Ok(None) };
        let sequence = state.told_sequence();
        let (Some(open), Some(piece)) = (&mut state.open, &mut state.piece) else { return Ok(None) };
        let start = open.used + RECORD_HEADER_LENGTH;
        let end = limit.min(start + wanted);
        let space = piece.space();
        let length = fill(&mut space[start..end])?;
        assert!(length <= end - start, "more was filled in than there was room for");
        if length == 0 && wanted > 0 {
            return Ok(Some(Appended { sequence, length }));
        }
        let (header, note) = describe(length);
        header.encode(&mut space[open.used..start + length]);
        open.used += record_length(length);
        space[start + length..open.used].fill(0);
        open.records += 1;
        self.metrics.records.increment();
        open.notes.push(Noted {
            note,
            payload: start as u32..(start + length) as u32,
            appended: self.core.precise_now(),
        });
        let appended = Appended { sequence, length };
        if open.limit < open.used + record_length(PAYLOAD_ROOM_MIN) {
            self.close_block(state);
        } else if state.in_flight.is_empty() {
            state.flusher_wanted = true;
            if let Some(flusher) = state.flusher.take() {
                flusher.wake();
            }
        }
        Ok(Some(appended))
    }

    /// The longest payload that a record can have and still be sure to find room in one block.
    pub fn payload_length_max(&self) -> usize {
        self.settings.block_bytes - BLOCK_HEADER_LENGTH - RECORD_HEADER_LENGTH
    }

    /// Waits until an append of `wanted` bytes (a smaller part of it unless `whole`) may find room. Dropping the
    /// future changes nothing.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] when no segment can be had; the log's own failure; [`Kind::Cancelled`] and
    /// [`Kind::DeadlineExceeded`] from the context, which change nothing either.
    pub async fn room(&self, context: &Context, wanted: usize, whole: bool) -> Result<()> {
        self.core.under(context, self.find_room(wanted, whole, Purpose::of(wanted))).await?
    }

    /// How many bytes of records copies have room for, in segments that are there or can be made of the reserve.
    pub fn copy_room_bytes(&self) -> u64 {
        let state = self.state.borrow();
        let left = state.active.as_ref().map_or(0, |active| self.room_in(active, Purpose::Copy) as u64);
        let segments = self.keeper.prepared() as u64 + self.keeper.space().reserve_segments(&self.core);
        left + segments * (self.keeper.segment_bytes() - SEGMENT_HEADER_LENGTH as u64)
    }

    /// Waits until [`Log::append_copy`] of so many bytes may find room. Dropping the future changes nothing.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] when no segment can be had, not even of the reserve; the log's own failure.
    pub async fn room_for_copy(&self, length: usize) -> Result<()> {
        self.find_room(length, true, Purpose::Copy).await
    }

    async fn find_room(&self, wanted: usize, whole: bool, purpose: Purpose) -> Result<()> {
        let least = if whole { wanted } else { wanted.min(PAYLOAD_ROOM_MIN) };
        let waiting = self.wait_for_room();
        let mut attempts = None;
        loop {
            let look = poll_fn(|context| {
                let mut state = self.state.borrow_mut();
                if let Some(error) = &state.failed {
                    return Poll::Ready(Err(error.clone()));
                }
                match self.ensure_open(&mut state, least, purpose) {
                    Ok(_) => return Poll::Ready(Ok(())),
                    Err(Lack::Time) => {}
                    Err(Lack::Segment) => {
                        // One more attempt for whoever comes while the keeper is in trouble; then its answer counts.
                        if let Some(error) = self.keeper.trouble() {
                            let since = *attempts.get_or_insert_with(|| {
                                self.keeper.try_again();
                                self.keeper.attempts()
                            });
                            if self.keeper.attempts() > since {
                                return Poll::Ready(Err(error));
                            }
                        }
                    }
                }
                let former = state.waiting_for_room.insert(waiting.number, context.waker().clone());
                drop(state);
                if former.is_none() {
                    tracing::trace!(wanted, "the log has no room yet");
                }
                drop(former);
                Poll::Pending
            });
            if let Either::First(outcome) = race(look, self.core.sleep(LOOK_AGAIN)).await {
                return outcome;
            }
        }
    }

    /// Waits until the block with this sequence, and all before it, are on stable storage. Dropping the future
    /// changes nothing.
    ///
    /// # Errors
    /// The log's own failure; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context, and the blocks go
    /// on to stable storage all the same.
    pub async fn acknowledged(&self, context: &Context, sequence: u64) -> Result<()> {
        self.core.under(context, self.become_durable(sequence)).await?
    }

    async fn become_durable(&self, sequence: u64) -> Result<()> {
        let mut registration = Registration { log: self, key: None };
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if let Some((_, why)) = state.given_up.iter().find(|(lost, _)| lost.contains(&sequence)) {
                return Poll::Ready(Err(why.clone()));
            }
            if state.durable_sequence + state.skipped > sequence {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = &state.failed {
                return Poll::Ready(Err(error.clone()));
            }
            let key = *registration.key.get_or_insert_with(|| {
                state.waits += 1;
                (sequence, state.waits)
            });
            let former = state.waiting_for_durable.insert(key, context.waker().clone());
            drop(state);
            drop(former);
            Poll::Pending
        })
        .await
    }

    /// What the log is doing.
    pub fn state(&self) -> LogState {
        let state = self.state.borrow();
        LogState { blocks_in_flight: state.in_flight.len(), bytes_in_flight: state.bytes_in_flight }
    }

    /// How many waits it knows of.
    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        let state = self.state.borrow();
        state.waiting_for_room.len() + state.waiting_for_durable.len()
    }

    /// How many pieces of the arena the log has let go of, and others still hold: blocks in flight, and readers that
    /// are being sent from them.
    pub fn pieces_lent(&self) -> usize {
        let state = self.state.borrow();
        let kept = state.recent.len() + usize::from(state.piece.is_some());
        self.arena.pieces() - self.arena.free_pieces() - kept
    }

    /// Whether the log has a segment that it writes to.
    pub fn has_active_segment(&self) -> bool {
        self.state.borrow().active.is_some()
    }

    /// The log's failure, if it has failed for good.
    pub fn failure(&self) -> Option<Error> {
        self.state.borrow().failed.clone()
    }

    /// Writes what is open and waits until everything that was appended is on stable storage. Dropping the future
    /// ends the wait; what is being written goes on.
    ///
    /// # Errors
    /// The log's own failure; [`Kind::Cancelled`] and [`Kind::DeadlineExceeded`] from the context.
    pub async fn flush(&self, context: &Context) -> Result<()> {
        self.core.under(context, self.write_and_wait()).await?
    }

    async fn write_and_wait(&self) -> Result<()> {
        let waiting = self.wait_for_room();
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if !state.recovering {
                return Poll::Ready(());
            }
            state.waiting_for_room.insert(waiting.number, context.waker().clone());
            Poll::Pending
        })
        .await;
        drop(waiting);
        let last = {
            let mut state = self.state.borrow_mut();
            if state.open.as_ref().is_some_and(|open| open.records > 0) && state.failed.is_none() {
                self.close_block(&mut state);
            }
            // Whoever waited for what was given up has been told.
            let last = state.told_sequence().checked_sub(1);
            last.filter(|last| !state.given_up.iter().any(|(lost, _)| lost.contains(last)))
        };
        match last {
            Some(last) if last >= self.settings.next_sequence => self.become_durable(last).await,
            _ => Ok(()),
        }
    }

    /// Whether the last segment may hold blocks that were given up, and nothing says yet that they are void.
    pub fn has_blocks_to_void(&self) -> bool {
        self.state.borrow().voids
    }

    /// Gives back the room that nothing was written to in the last segment. Nothing is to be appended any more. Dropping
    /// the future leaves the room given back, in part, or not.
    pub async fn trim(&self) {
        let tail = self.state.borrow().active.as_ref().map(|active| {
            let writing = active.writing.clone();
            (writing, active.position, self.keeper.segment_bytes() - active.position)
        });
        // What is still under way is written behind that.
        let is_quiet = {
            let state = self.state.borrow();
            state.in_flight.is_empty() && state.open.as_ref().is_none_or(|open| open.records == 0)
        };
        let Some((writing, position, length)) =
            tail.filter(|_| is_quiet).filter(|(_, _, length)| *length > 0)
        else {
            return;
        };
        if let Err(errno) = self.core.punch(&writing, position, length).await {
            tracing::debug!(%errno, "the rest of a segment could not be given back");
        }
    }

    /// Takes no more: every append and every wait that is left answers that the store is closed.
    pub fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.failed.get_or_insert_with(|| Error::new(Kind::Closed, "the store has been stopped"));
        let waiting = std::mem::take(&mut state.waiting_for_durable);
        drop(state);
        for waker in waiting.into_values() {
            waker.wake();
        }
        self.wake_room();
    }

    /// Makes sure that a record with this much payload fits into the open block, opening one if need be. Answers how
    /// long the block may become with it: the keeper works on, and the next look may have another answer.
    fn ensure_open(
        &self,
        state: &mut State<S::Note>,
        least: usize,
        purpose: Purpose,
    ) -> std::result::Result<usize, Lack> {
        if state.recovering {
            return Err(Lack::Time);
        }
        if let Some(open) = &state.open {
            let end = open.used + record_length(least);
            let limit = self.limit_of(state, open, purpose);
            if end <= limit {
                return Ok(limit);
            }
            if open.records > 0 && end <= open.limit {
                return Err(self.lack_of_segment(purpose));
            }
        }
        if state.in_flight.len() >= BLOCKS_IN_FLIGHT_MAX {
            return Err(Lack::Time);
        }
        if state.open.as_ref().is_some_and(|open| open.records > 0) {
            self.close_block(state);
        }
        let length = BLOCK_HEADER_LENGTH + record_length(least);
        self.open_block(state, length.next_multiple_of(ALIGNMENT).max(BLOCK_LENGTH_MIN), purpose)?;
        let limit = state.open.as_ref().map_or(0, |open| self.limit_of(state, open, purpose));
        // The segment may be of the reserve.
        if limit < length { Err(self.lack_of_segment(purpose)) } else { Ok(limit) }
    }

    /// What is left is the reserve. The block stays open for what that is kept for.
    fn lack_of_segment(&self, purpose: Purpose) -> Lack {
        self.keeper.hurry();
        if let Some(need) = purpose.need() {
            self.keeper.set_need(Some(need));
        }
        Lack::Segment
    }

    /// How long the open block may become with this record: data leaves the reserve alone.
    fn limit_of(&self, state: &State<S::Note>, open: &OpenBlock<S::Note>, purpose: Purpose) -> usize {
        match &state.active {
            Some(active) => open.limit.min(self.room_in(active, purpose)),
            None => open.limit,
        }
    }

    /// How much of the segment is left, in bytes. Where there is no other one, all or the end of it is kept for what
    /// makes room, so that a full disk can be emptied.
    fn room_in(&self, active: &Active, purpose: Purpose) -> usize {
        if purpose == Purpose::Data && active.is_reserve && self.is_short_of_segments() {
            return 0;
        }
        let segment_bytes = self.keeper.segment_bytes();
        let sixteenths = match purpose {
            Purpose::Data if self.keeper.prepared() == 0 => KEPT_FOR_COPIES + KEPT_FOR_DELETIONS,
            Purpose::Bare if self.keeper.prepared() == 0 && self.is_short_of_segments() => KEPT_FOR_COPIES,
            _ => 0,
        };
        (segment_bytes - active.position).saturating_sub(sixteenths * segment_bytes / 16) as usize
    }

    fn is_short_of_segments(&self) -> bool {
        self.keeper.trouble().is_some()
    }

    /// Opens a block of at least this length. Its limit is the segment's: what data may take of that is settled with
    /// each record.
    fn open_block(
        &self,
        state: &mut State<S::Note>,
        length: usize,
        purpose: Purpose,
    ) -> std::result::Result<(), Lack> {
        assert!(state.open.as_ref().is_none_or(|open| open.records == 0));
        state.open = None;
        if state.active.as_ref().is_none_or(|active| self.room_in(active, purpose) < length)
            && !self.next_segment(state, purpose)
        {
            return Err(Lack::Segment);
        }
        if state.piece.as_ref().is_none_or(|piece| piece.remaining() < length) && !self.next_piece(state) {
            return Err(Lack::Time);
        }
        let (Some(active), Some(piece)) = (&state.active, &state.piece) else {
            unreachable!("both were made sure of");
        };
        let limit = self.settings.block_bytes.min(piece.remaining()).min(self.room_in(active, Purpose::Copy));
        let notes = state.spare_notes.pop().unwrap_or_default();
        state.open = Some(OpenBlock { limit, used: BLOCK_HEADER_LENGTH, records: 0, notes });
        Ok(())
    }

    /// Goes on in the next segment. The last one of a full disk is not for data.
    fn next_segment(&self, state: &mut State<S::Note>, purpose: Purpose) -> bool {
        let is_reserve = self.is_short_of_segments() && self.keeper.prepared() <= 1;
        if purpose == Purpose::Data && is_reserve {
            self.keeper.hurry();
            return false;
        }
        let taken = self.keeper.take();
        let Some(prepared) = taken else {
            if let Some(need) = purpose.need() {
                self.keeper.set_need(Some(need));
            }
            return false;
        };
        self.keeper.set_need(None);
        if state.voids {
            prepared.segment.pin();
        }
        let next = Active { is_reserve: is_reserve || prepared.is_reserve, ..self.activate(prepared) };
        if let Some(former) = state.active.replace(next)
            && former.in_flight == 0
        {
            self.leave(former.place);
        }
        true
    }

    fn activate(&self, prepared: Prepared) -> Active {
        Active {
            place: self.core.ring().register_file(&prepared.writing),
            segment: prepared.segment,
            is_reserve: false,
            writing: prepared.writing,
            position: SEGMENT_HEADER_LENGTH as u64,
            in_flight: 0,
        }
    }

    fn leave(&self, place: Option<u32>) {
        if let Some(place) = place {
            self.core.ring().unregister_file(place);
        }
    }

    fn next_piece(&self, state: &mut State<S::Note>) -> bool {
        if let Some(mut full) = state.piece.take() {
            let region = full.commit(0);
            state.recent.push_back(region);
        }
        loop {
            if let Some(piece) = self.arena.take() {
                state.piece = Some(piece);
                return true;
            }
            // The oldest piece is free once its blocks are durable and nobody is sending from it.
            if state.recent.pop_front().is_none() {
                return false;
            }
        }
    }

    /// Closes the open block and has it written.
    fn close_block(&self, state: &mut State<S::Note>) {
        let (Some(open), Some(piece), Some(active)) =
            (state.open.take(), &mut state.piece, &mut state.active)
        else {
            unreachable!("only an open block is closed");
        };
        assert!(open.records > 0, "an empty block is not written");
        let padded = open.used.next_multiple_of(ALIGNMENT);
        let header = BlockHeader {
            store: self.keeper.store(),
            epoch: active.segment.epoch(),
            sequence: state.next_sequence,
            durable: state.durable_sequence,
            term_start: state.term_start,
            term: state.term,
            length: open.used as u32,
            records: open.records,
            log: self.settings.log,
            position: active.position,
        };
        let space = piece.space();
        header.encode(space);
        space[open.used..padded].fill(0);
        let region = piece.commit(padded);
        let flying = Flying {
            sequence: state.next_sequence,
            region,
            length: open.used,
            segment: active.segment.clone(),
            position: active.position,
            notes: open.notes,
            outcome: None,
            submitted: self.core.precise_now(),
        };
        state.next_sequence += 1;
        active.position += padded as u64;
        active.in_flight += 1;
        state.bytes_in_flight += padded;
        let (writing, place) = (active.writing.clone(), active.place);
        self.metrics.block_sizes.record(padded as u64);
        self.metrics.blocks_in_flight.increment();
        self.metrics.block_bytes_in_flight.add(padded as i64);
        let write = write_block(self.myself.clone(), writing, place, &flying, self.settings.durable);
        state.in_flight.push_back(flying);
        self.core.spawn(write).detach();
    }

    fn written(&self, sequence: u64, outcome: std::result::Result<(), Errno>, place: Option<u32>) {
        let mut state = self.state.borrow_mut();
        let now = self.core.precise_now();
        let Some(first) = state.in_flight.front().map(|flying| flying.sequence) else { return };
        let flying = &mut state.in_flight[(sequence - first) as usize];
        self.metrics.block_write.record(now.saturating_duration_since(flying.submitted));
        self.metrics.blocks_in_flight.decrement();
        self.metrics.block_bytes_in_flight.add(-(flying.region.len() as i64));
        if let Err(errno) = outcome {
            self.metrics.block_write_failures.increment();
            tracing::error!(segment = flying.segment.number(), sequence, %errno, "a block could not be written");
        }
        flying.outcome = Some(outcome);
        let segment = flying.segment.clone();
        match &mut state.active {
            Some(active) if active.segment.number() == segment.number() => active.in_flight -= 1,
            // The last write to a segment that is full gives its fixed place back.
            _ => {
                let others = state
                    .in_flight
                    .iter()
                    .any(|other| other.segment.number() == segment.number() && other.outcome.is_none());
                if !others {
                    self.leave(place);
                }
            }
        }
        drop(state);
        self.advance();
    }

    /// Tells the sink, in log order, what has become durable, and goes on.
    fn advance(&self) {
        let sink = self.sink.borrow().upgrade();
        loop {
            let mut state = self.state.borrow_mut();
            match state.in_flight.front().and_then(|flying| flying.outcome) {
                Some(Ok(())) => {}
                Some(Err(_)) => {
                    self.begin_recovery(&mut state);
                    return;
                }
                None => break,
            }
            let Some(flying) = state.in_flight.pop_front() else { break };
            state.bytes_in_flight -= flying.region.len();
            state.durable_sequence = flying.sequence + 1;
            // Its term says from here on what is void.
            state.voids &= !flying.segment.is_pinned();
            let term = state.term;
            let told = flying.sequence + state.skipped;
            let later = state.waiting_for_durable.split_off(&(told + 1, 0));
            let acknowledged = std::mem::replace(&mut state.waiting_for_durable, later);
            drop(state); // the sink and the waiters may append
            let mut notes = flying.notes;
            if let Some(sink) = &sink {
                for noted in notes.drain(..) {
                    let payload = noted.payload.start as usize..noted.payload.end as usize;
                    sink.durable(
                        noted.note,
                        Placement {
                            segment: &flying.segment,
                            sequence: flying.sequence,
                            term,
                            position: flying.position + u64::from(noted.payload.start),
                            length: noted.payload.end - noted.payload.start,
                            hot: flying.region.slice(payload).downgrade(),
                            appended: noted.appended,
                        },
                    );
                }
                sink.block_done();
            }
            notes.clear();
            self.state.borrow_mut().spare_notes.push(notes);
            for waker in acknowledged.into_values() {
                waker.wake();
            }
        }
        let mut state = self.state.borrow_mut();
        if state.in_flight.is_empty() && state.open.as_ref().is_some_and(|open| open.records > 0) {
            state.flusher_wanted = true;
            if let Some(flusher) = state.flusher.take() {
                flusher.wake();
            }
        }
        drop(state);
        self.wake_room();
    }

    fn wait_for_room(&self) -> RoomWait<'_, S> {
        let mut state = self.state.borrow_mut();
        state.waits += 1;
        RoomWait { log: self, number: state.waits }
    }

    fn wake_room(&self) {
        let waiting = std::mem::take(&mut self.state.borrow_mut().waiting_for_room);
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    /// A block has failed: once nothing is in flight any more, it and all behind it are written again elsewhere.
    fn begin_recovery(&self, state: &mut State<S::Note>) {
        if state.in_flight.iter().any(|flying| flying.outcome.is_none()) {
            return; // the last one to end comes back here
        }
        if !std::mem::replace(&mut state.recovering, true)
            && let Some(log) = self.myself.upgrade()
        {
            self.core.spawn(async move { log.write_again().await }).detach();
        }
    }
}

fn write_block<S: Sink>(
    log: Weak<Log<S>>,
    writing: Arc<Descriptor>,
    place: Option<u32>,
    flying: &Flying<S::Note>,
    durable: bool,
) -> impl Future<Output = ()> + 'static {
    let (region, position, sequence) = (flying.region.clone(), flying.position, flying.sequence);
    async move {
        let Some(core) = log.upgrade().map(|log| log.core.clone()) else { return };
        let outcome = core.write(&writing, place, position, region, durable).await;
        if let Some(log) = log.upgrade() {
            log.written(sequence, outcome, place);
        }
    }
}

/// The log as its keeper sees it.
struct Client<S: Sink>(Weak<Log<S>>);

impl<S: Sink> KeeperClient for Client<S> {
    fn prepared(&self) {
        if let Some(log) = self.0.upgrade() {
            log.wake_room();
        }
    }

    fn is_busy(&self) -> bool {
        self.0.upgrade().is_some_and(|log| !log.state.borrow().in_flight.is_empty())
    }
}

/// Writes the open block whenever nothing is in flight, after every task that is ready has had its turn to add
/// to it.
async fn flush_when_idle<S: Sink>(log: Weak<Log<S>>) {
    loop {
        let waited = poll_fn(|context| {
            let Some(log) = log.upgrade() else { return Poll::Ready(false) };
            let mut state = log.state.borrow_mut();
            if std::mem::take(&mut state.flusher_wanted) {
                return Poll::Ready(true);
            }
            state.flusher = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        if !waited {
            return;
        }
        yield_now().await;
        let Some(log) = log.upgrade() else { return };
        let mut state = log.state.borrow_mut();
        if state.in_flight.is_empty()
            && !state.recovering
            && state.open.as_ref().is_some_and(|open| open.records > 0)
        {
            log.close_block(&mut state);
        }
    }
}

/// A wait for room: leaves nothing behind when dropped.
struct RoomWait<'a, S: Sink> {
    log: &'a Log<S>,
    number: u64,
}

impl<S: Sink> Drop for RoomWait<'_, S> {
    fn drop(&mut self) {
        let former = self.log.state.borrow_mut().waiting_for_room.remove(&self.number);
        drop(former);
    }
}

/// A wait for durability: leaves nothing behind when dropped.
struct Registration<'a, S: Sink> {
    log: &'a Log<S>,
    key: Option<(u64, u64)>,
}

impl<S: Sink> Drop for Registration<'_, S> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let former = self.log.state.borrow_mut().waiting_for_durable.remove(&key);
            drop(former);
        }
    }
}
