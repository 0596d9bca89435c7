//! From an object to a socket.
//!
//! Bytes that are still in the arena are sent from that very memory; if the socket is full they are let go of, so
//! that a slow reader holds none of it. Older bytes go file -> pipe -> socket where they lie in long runs, and are
//! read and sent where they lie in short ones: a splice through the ring costs two thread switches, whatever its
//! length. The filling of a pipe may wait for the disk and is left to the ring; its emptying never waits.
//!
//! What was spliced is in the socket as pages of the page cache. Where direct writes pass those by (ext4, XFS), a
//! segment that is used again meanwhile does not change them; elsewhere nothing is spliced.

use std::io::IoSlice;
use std::pin::pin;
use std::sync::Arc;

use rustix::io::Errno;

use super::chunked::{BODY_END, CHUNK_END, ChunkHead};
use super::connection::{Broken, Connection};
use super::reply::Delimited;
use crate::context::Context;
use crate::error::Error;
use crate::log::Segment;
use crate::metrics::Source;
use crate::runtime::{Either, race, yield_now};
use crate::store::{More, Piece, Reader, State};

/// The longest span that is sent as one chunk, in bytes.
const SPAN_LENGTH_MAX: u64 = 512 << 10;
/// Pieces in one send: half of what the system takes at once, with room for the chunk's line and end.
const PIECES_MAX: usize = 120;
/// Runs in a file from this length on are spliced, in bytes.
const SPLICE_LENGTH_MIN: usize = 128 << 10;
/// How much is read at once where runs are short, in bytes, headers between them included.
const READ_LENGTH_MAX: usize = 256 << 10;
/// How many runs are read at once.
const READS_MAX: usize = 8;
/// What may lie between two pieces that are read together, in bytes.
const READ_GAP_MAX: u64 = 16 << 10;
/// How much one connection sends before others have their turn, in bytes.
const TURN_LENGTH: u64 = 1 << 20;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All of it was sent, and its end told.
    Whole,
    /// The writer is gone: what was sent is not the whole, and the connection must not look as if it were.
    Interrupted,
}

/// Sends an object from where the reader is: `length` bytes, or all up to its real end, following it as it grows.
pub(super) async fn send_body(
    connection: &Connection,
    context: &Context,
    reader: &mut Reader,
    length: Option<u64>,
    delimited: Delimited,
    head: &[u8],
) -> Result<Ended, Broken> {
    let mut remaining = length.unwrap_or(u64::MAX);
    let mut head = head;
    let mut turn = 0;
    let mut finished = pin!(connection.stream.peer_finished());
    let mut has_finished = false;
    // Where the object's whole length was told while it was live, the last byte is a clean end: it goes out only once
    // there is a seal.
    let tells_end = reader.object().state() == State::Live
        && length.is_some_and(|length| {
            reader.object().metadata().declared_length == Some(reader.offset().saturating_add(length))
        });
    if tells_end && remaining == 0 {
        // Here the head itself is the end.
        if reader.more(context, 0).await? == More::Interrupted {
            return Ok(Ended::Interrupted);
        }
    }
    loop {
        let held_back = u64::from(tells_end && reader.object().state() != State::Sealed);
        let span = reader.available().min(remaining.saturating_sub(held_back)).min(SPAN_LENGTH_MAX);
        if span > 0 {
            let line = (delimited == Delimited::Chunked).then(|| ChunkHead::new(span));
            let mut before = Vec::new();
            before.extend_from_slice(head);
            head = &[];
            if let Some(line) = &line {
                before.extend_from_slice(line.as_bytes());
            }
            let after: &[u8] = if line.is_some() { CHUNK_END } else { b"" };
            let more = span < (remaining - held_back).min(reader.available());
            send_span(connection, reader, span, &before, after, more).await?;
            remaining -= span;
            turn += span;
            if turn >= TURN_LENGTH {
                turn = 0;
                yield_now().await;
            }
            continue;
        }
        // The head goes out at once, also when there is nothing to send yet.
        connection.send(std::mem::take(&mut head), false).await?;
        if remaining == 0 {
            return Ok(Ended::Whole);
        }
        // What is held back is the last byte, so it only counts when everything else was sent.
        let held_back = if remaining == held_back { held_back } else { 0 };
        let more = match has_finished {
            true => reader.more(context, held_back).await?,
            false => match race(reader.more(context, held_back), finished.as_mut()).await {
                Either::First(more) => more?,
                // A client may finish sending and go on reading. One that has closed looks the same, until the next
                // bytes are sent to it.
                Either::Second(Ok(())) if connection.stream.is_connected() => {
                    has_finished = true;
                    continue;
                }
                Either::Second(_) => return Err(Broken::Gone),
            },
        };
        match more {
            More::Available => {}
            // With a length that was told before, an end before that length is none.
            More::Sealed if length.is_some() => return Ok(Ended::Interrupted),
            More::Sealed => {
                if delimited == Delimited::Chunked {
                    connection.send(BODY_END, false).await?;
                }
                return Ok(Ended::Whole);
            }
            More::Interrupted => return Ok(Ended::Interrupted),
        }
    }
}

/// Sends the next `length` bytes, all of which are there, between `before` and `after`.
async fn send_span(
    connection: &Connection,
    reader: &mut Reader,
    length: u64,
    before: &[u8],
    after: &[u8],
    more: bool,
) -> Result<(), Broken> {
    let metrics = connection.here.local.metrics().clone();
    let is_live = reader.object().state() == State::Live;
    let (mut before, mut after, mut remaining) = (before, after, length);
    let mut pieces: Vec<Piece> = Vec::new();
    while remaining > 0 {
        pieces.clear();
        if let Err(error) = reader.locate().await {
            return Err(unreadable(reader, &error));
        }
        reader.gather(remaining, PIECES_MAX, &mut pieces);
        let hot = pieces.iter().take_while(|piece| piece.hot.is_some()).count();
        if hot == 0 {
            // The rest may be hot again: only the cold run is taken from the files, and nothing of the arena is held.
            let cold = pieces.iter().take_while(|piece| piece.hot.is_none()).count();
            pieces.truncate(cold);
            connection.send(std::mem::take(&mut before), true).await?;
            let sent = send_cold(connection, reader, &pieces, more || !after.is_empty()).await?;
            metrics.bytes_sent.of(Source::Files).add(sent);
            remaining -= sent;
            continue;
        }
        pieces.truncate(hot);
        let body: usize = pieces.iter().map(|piece| piece.length).sum();
        let is_last = body as u64 == remaining;
        let sent = {
            let mut slices = Vec::with_capacity(hot + 2);
            slices.push(IoSlice::new(before));
            slices.extend(pieces.iter().filter_map(|piece| piece.hot.as_deref()).map(IoSlice::new));
            if is_last {
                slices.push(IoSlice::new(after));
            }
            connection.stream.try_send(&slices, more || !is_last)?
        };
        pieces.clear(); // nothing of the arena is held while waiting
        let Some(mut sent) = sent else {
            connection.writable().await?;
            continue;
        };
        if is_live {
            reader.note_first_send();
        }
        let of_before = sent.min(before.len());
        before = &before[of_before..];
        sent -= of_before;
        let of_body = sent.min(body);
        reader.advance(of_body as u64);
        metrics.bytes_sent.of(Source::Arena).add(of_body as u64);
        remaining -= of_body as u64;
        after = &after[sent - of_body..];
    }
    connection.send(before, true).await?;
    connection.send(after, more).await
}

/// Sends the first of these pieces, or some of them, from the files; answers how many bytes.
async fn send_cold(
    connection: &Connection,
    reader: &mut Reader,
    pieces: &[Piece],
    more: bool,
) -> Result<u64, Broken> {
    let may_splice = connection.here.local.shared().may_splice();
    let sent = if may_splice && pieces[0].length >= SPLICE_LENGTH_MIN {
        splice(connection, &pieces[0], more).await
    } else {
        read_and_send(connection, pieces, more).await
    };
    let sent = match sent {
        Ok(sent) => sent,
        Err(Cold::Broken(broken)) => return Err(broken),
        Err(Cold::Unreadable(error)) => return Err(unreadable(reader, &error)),
    };
    reader.advance(sent);
    Ok(sent)
}

/// The client can only be told by breaking off.
fn unreadable(reader: &Reader, error: &Error) -> Broken {
    let (object, offset) = (reader.object().name(), reader.offset());
    tracing::error!(%object, offset, %error, "stored bytes cannot be read");
    Broken::Gone
}

/// Why bytes could not be sent from a file.
enum Cold {
    Broken(Broken),
    Unreadable(Error),
}

impl Cold {
    fn unreadable(segment: &Segment, errno: Errno) -> Cold {
        Cold::Unreadable(Error::device(format!("cannot read segment {}", segment.number()), errno))
    }
}

impl From<Error> for Cold {
    fn from(error: Error) -> Cold {
        Cold::Unreadable(error)
    }
}

impl From<Broken> for Cold {
    fn from(broken: Broken) -> Cold {
        Cold::Broken(broken)
    }
}

async fn splice(connection: &Connection, piece: &Piece, more: bool) -> Result<u64, Cold> {
    let here = &connection.here;
    let unreadable = |errno| Cold::unreadable(&piece.segment, errno);
    let file = here.local.file(&piece.segment).await?;
    let mut pipe = here.take_pipe().map_err(unreadable)?;
    let length = piece.length.min(pipe.capacity());
    let filled = pipe.fill(here.local.core(), &file, piece.position, length).await.map_err(unreadable)?;
    if filled == 0 {
        return Err(unreadable(Errno::IO)); // the file ends before the bytes that were written to it
    }
    while pipe.held() > 0 {
        match pipe.try_drain(&connection.stream, more) {
            Ok(Some(_)) => {}
            Ok(None) => connection.writable().await?,
            Err(errno) => return Err(Cold::Broken(Broken::from(errno))),
        }
    }
    here.keep_pipe(pipe);
    Ok(filled as u64)
}

/// Some pieces that are read together, with what lies between them.
struct Run<'a> {
    pieces: &'a [Piece],
    length: usize,
}

/// Splits the first pieces into runs, no more of them than are read at once.
fn runs_of(pieces: &[Piece]) -> Vec<Run<'_>> {
    let mut runs = Vec::with_capacity(READS_MAX);
    let mut rest = pieces;
    let mut total = 0;
    while let [first, ..] = rest
        && runs.len() < READS_MAX
        && (first.length < SPLICE_LENGTH_MIN || runs.is_empty())
    {
        let mut end = first.position + first.length as u64;
        let mut count = 1;
        for piece in &rest[1..] {
            let near = Arc::ptr_eq(&piece.segment, &first.segment)
                && piece.position >= end
                && piece.position - end <= READ_GAP_MAX
                && (piece.position + piece.length as u64 - first.position) as usize <= READ_LENGTH_MAX;
            if !near {
                break;
            }
            end = piece.position + piece.length as u64;
            count += 1;
        }
        let length = (end - first.position) as usize;
        total += length;
        if total > READ_LENGTH_MAX && !runs.is_empty() {
            break;
        }
        let (run, behind) = rest.split_at(count);
        runs.push(Run { pieces: run, length });
        rest = behind;
    }
    runs
}

/// Reads the first pieces, several runs at once, and sends them.
async fn read_and_send(connection: &Connection, pieces: &[Piece], more: bool) -> Result<u64, Cold> {
    let here = &connection.here;
    let core = here.local.core();
    let runs = runs_of(pieces);
    let mut reads = Vec::with_capacity(runs.len());
    for run in &runs {
        let file = here.local.file(&run.pieces[0].segment).await?;
        let position = run.pieces[0].position;
        let (reading, buffer) = (core.clone(), here.take_buffer(run.length));
        reads.push(core.spawn(async move { reading.read(&file, position, buffer, 0).await }));
    }
    let mut sent = 0;
    for (run, read) in runs.iter().zip(reads) {
        let (read, buffer) = read.await;
        match read {
            Ok(read) if read == run.length => {}
            Ok(_) => return Err(Cold::unreadable(&run.pieces[0].segment, Errno::IO)),
            Err(errno) => return Err(Cold::unreadable(&run.pieces[0].segment, errno)),
        }
        let slice = |piece: &Piece| {
            let start = (piece.position - run.pieces[0].position) as usize;
            start..start + piece.length
        };
        let mut slices: Vec<IoSlice<'_>> =
            run.pieces.iter().map(|piece| IoSlice::new(&buffer[slice(piece)])).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match connection.stream.try_send(rest, more).map_err(|errno| Cold::Broken(Broken::from(errno)))? {
                Some(count) => {
                    sent += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                None => connection.writable().await?,
            }
        }
        here.keep_buffer(buffer);
    }
    Ok(sent)
}
