//! What happens when a block could not be written: it is still in memory, so it and all behind it are written again,
//! in order, to a fresh segment under a new term, and the failed segment is retired.
//!
//! Nothing else of the log moves meanwhile: `recovering` keeps blocks from being opened and closed. When that is not
//! possible either, the log has failed for good, and whoever waits is told.

use rustix::io::Errno;

use super::{
    ALIGNMENT, Active, Arena, BlockHeader, Duration, Error, Kind, Log, Prepared, Region, Result, Sink,
};

impl<S: Sink> Log<S> {
    pub(super) async fn write_again(&self) {
        let outcome = self.write_again_to_fresh_segments().await;
        let mut state = self.state.borrow_mut();
        state.recovering = false;
        if let Err(error) = outcome {
            tracing::error!(%error, "the log has failed: no segment can be written");
            state.failed = Some(error);
            let waiting = std::mem::take(&mut state.waiting_for_durable);
            let open = state.open.take().map(|open| open.notes);
            let lost: Vec<_> =
                state.in_flight.drain(..).map(|flying| flying.notes).chain(open).flatten().collect();
            drop(state);
            if let Some(sink) = self.sink.borrow().upgrade() {
                lost.into_iter().for_each(|noted| sink.failed(noted.note));
            }
            for waker in waiting.into_values() {
                waker.wake();
            }
            self.wake_room();
            return;
        }
        drop(state);
        self.advance();
    }

    async fn write_again_to_fresh_segments(&self) -> Result<()> {
        for _ in 0..3 {
            let prepared = self.wait_for_segment().await?;
            let mut active = self.activate(prepared);
            let (blocks, term, term_start) = {
                let mut state = self.state.borrow_mut();
                for flying in &state.in_flight {
                    flying.segment.pin();
                }
                if let Some(former) = state.active.take() {
                    former.segment.pin();
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
                    active.segment.pin();
                    self.leave(active.place);
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
            // What was rewritten so far is rewritten once more, in order.
            for flying in &mut self.state.borrow_mut().in_flight {
                flying.outcome = Some(Err(Errno::IO));
            }
        }
        Err(Error::new(Kind::ReadOnly, "three segments in a row could not be written: the device fails"))
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
