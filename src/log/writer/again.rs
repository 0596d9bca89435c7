//! What happens when a block could not be written: it is still in memory, so it and all behind it are written again,
//! in order, to a fresh segment under a new term, and the failed segment is retired.
//!
//! Nothing else of the log moves meanwhile: `recovering` keeps blocks from being opened and closed. Where no segment
//! can be had for lack of room, descriptors or memory, what could not be written is *given up*: whoever waits for it is
//! told, and the log goes on in front of it, under a new term, when there is a segment again. Where segments cannot be
//! written, the log has failed for good.

use rustix::io::Errno;

use super::{
    ALIGNMENT, Active, Arena, BlockHeader, Duration, Error, Kind, Log, Prepared, Region, Result, Segment,
    Sink,
};

impl<S: Sink> Log<S> {
    pub(super) async fn write_again(&self) {
        let outcome = self.write_again_to_fresh_segments().await;
        // What was written again before a failure is as durable as anything.
        self.advance();
        let mut state = self.state.borrow_mut();
        state.recovering = false;
        let Err(error) = outcome else { return };
        let error = match error.kind() {
            Kind::NoSpace | Kind::Busy => {
                tracing::error!(%error, "blocks are given up: the log goes on when there is a segment");
                state.give_up(error.clone());
                error
            }
            _ => {
                let error = Error::new(Kind::ReadOnly, format!("no segment can be written: {error}"));
                tracing::error!(%error, "the log has failed: the store is read-only");
                state.failed = Some(error.clone());
                error
            }
        };
        let former = state.active.take();
        let waiting = std::mem::take(&mut state.waiting_for_durable);
        let open = state.open.take().map(|open| open.notes);
        state.bytes_in_flight = 0;
        let lost: Vec<_> =
            state.in_flight.drain(..).map(|flying| flying.notes).chain(open).flatten().collect();
        drop(state);
        tracing::debug!(records = lost.len(), %error, "records are lost");
        if let Some(former) = former {
            self.leave(former.place);
        }
        if let Some(sink) = self.sink.borrow().upgrade() {
            lost.into_iter().for_each(|noted| sink.failed(noted.note));
        }
        for waker in waiting.into_values() {
            waker.wake();
        }
        self.wake_room();
    }

    async fn write_again_to_fresh_segments(&self) -> Result<()> {
        let mut last = Errno::IO;
        for _ in 0..3 {
            // Before anything else may fail: nobody is to use them again. And none of it counts until it is written again.
            for flying in &mut self.state.borrow_mut().in_flight {
                self.retire(&flying.segment);
                flying.outcome = Some(Err(Errno::IO));
            }
            let prepared = self.wait_for_segment().await?;
            let mut active = self.activate(prepared);
            let (blocks, term, term_start) = {
                let mut state = self.state.borrow_mut();
                if let Some(former) = state.active.take() {
                    self.retire(&former.segment);
                    self.leave(former.place);
                }
                state.term += 1;
                state.term_start = state.durable_sequence;
                active.segment.pin();
                let blocks: Vec<_> = state
                    .in_flight
                    .iter()
                    .map(|flying| (flying.sequence, flying.region.clone(), flying.length))
                    .collect();
                (blocks, state.term, state.term_start)
            };
            let mut failed = false;
            for (index, (sequence, region, length)) in blocks.into_iter().enumerate() {
                if active.position + region.len() as u64 > self.keeper.segment_bytes() {
                    let prepared = self.wait_for_segment().await?;
                    let full = std::mem::replace(&mut active, self.activate(prepared));
                    self.leave(full.place);
                    active.segment.pin();
                }
                let copy = restamped(&region, |header| BlockHeader {
                    epoch: active.segment.epoch(),
                    term,
                    term_start,
                    position: active.position,
                    durable: header.durable.min(term_start),
                    ..header
                })?;
                let written =
                    self.core.write(&active.writing, active.place, active.position, copy, true).await;
                if let Err(errno) = written {
                    tracing::error!(segment = active.segment.number(), sequence, %errno, "nor here");
                    self.retire(&active.segment);
                    self.leave(active.place);
                    last = errno;
                    failed = true;
                    break;
                }
                let mut state = self.state.borrow_mut();
                let flying = &mut state.in_flight[index];
                assert_eq!((flying.sequence, flying.length), (sequence, length));
                flying.segment = active.segment.clone();
                flying.position = active.position;
                flying.outcome = Some(Ok(()));
                active.position += region.len() as u64;
            }
            if !failed {
                return self.go_on_with(active).await;
            }
            self.advance();
        }
        Err(Error::device("three segments in a row could not be written", last))
    }

    /// Goes on behind what was written again. The open block was limited by the former segment: where it has
    /// outgrown what is left of this one, it begins the next.
    async fn go_on_with(&self, mut active: Active) -> Result<()> {
        let segment_bytes = self.keeper.segment_bytes();
        let open_length = self.state.borrow().open.as_ref().map_or(0, |open| open.used);
        if active.position + open_length.next_multiple_of(ALIGNMENT) as u64 > segment_bytes {
            let prepared = self.wait_for_segment().await?;
            let full = std::mem::replace(&mut active, self.activate(prepared));
            self.leave(full.place);
        }
        let mut state = self.state.borrow_mut();
        let room = (segment_bytes - active.position) as usize;
        if let Some(open) = &mut state.open {
            open.limit = open.limit.min(room);
        }
        state.active = Some(active);
        Ok(())
    }

    fn retire(&self, segment: &Segment) {
        if segment.retire() {
            tracing::error!(segment = segment.number(), "the segment is retired");
            self.metrics.segments_retired.increment();
        }
    }

    async fn wait_for_segment(&self) -> Result<Prepared> {
        let mut attempts = None;
        for _ in 0..200 {
            if let Some(prepared) = self.keeper.take() {
                return Ok(prepared);
            }
            // What went wrong before may be over: only another attempt that fails counts.
            if let Some(error) = self.keeper.trouble() {
                let since = *attempts.get_or_insert_with(|| {
                    self.keeper.try_again();
                    self.keeper.attempts()
                });
                if self.keeper.attempts() > since {
                    return Err(error);
                }
            }
            self.core.sleep(Duration::from_millis(50)).await;
        }
        Err(Error::new(Kind::ReadOnly, "no segment could be prepared within ten seconds"))
    }
}

/// A copy of a block with another header.
fn restamped(region: &Region, change: impl FnOnce(BlockHeader) -> BlockHeader) -> Result<Region> {
    let no_memory = |errno| Error::device("no memory to write a block again", errno);
    let arena = Arena::new(1, region.len()).map_err(no_memory)?;
    let mut fill = arena.take().ok_or_else(|| no_memory(Errno::NOMEM))?;
    fill.space().copy_from_slice(region);
    let header = BlockHeader::decode(region)
        .ok_or_else(|| Error::new(Kind::Damaged, "a block in memory has lost its header"))?;
    change(header).encode(fill.space());
    Ok(fill.commit(region.len()))
}
