//! The body of a request on its way into an object.
//!
//! Bytes go from the socket straight into the log's open block, each piece that arrives as one append; only what came
//! together with a head or a chunk line is copied. When [`receive`] returns, all of the body is in the log, and
//! durable when the watermark says so. When it fails, what came before is in the object; so it is when its future is
//! dropped.

use std::io::IoSliceMut;

use rustix::io::Errno;

use super::chunked::{Decoder, Step};
use super::connection::{Broken, Connection, Request};
use super::head::Framing;
use super::problem::Problem;
use crate::error::Error;
use crate::runtime::{Either, race, yield_now};
use crate::store::Writer;

/// How much is received into the block at once, in bytes.
const PIECE_LENGTH_MAX: usize = 1 << 20;
/// How much one connection receives before others have their turn, in bytes.
const TURN_LENGTH: usize = 1 << 20;

/// Why a body did not become part of an object.
pub(super) enum Failed {
    /// The client can be told.
    Problem(Problem),
    /// The client is gone or has stalled.
    Broken(Broken),
    /// This core cannot do it, and nothing of the body was taken.
    Elsewhere(usize),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        if error.errno().is_some() {
            tracing::error!(%error, "an upload failed");
        }
        Failed::Problem(Problem::from(error))
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Failed {
        Failed::Problem(problem)
    }
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Failed {
        Failed::Broken(broken)
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Failed {
        Failed::Broken(Broken::from(errno))
    }
}

/// What bytes go through before they are appended: all of a body or nothing.
pub(super) trait Check {
    /// Takes the next bytes; the last ones with `is_last`. An error refuses the whole body.
    fn take(&mut self, bytes: &[u8], is_last: bool) -> Result<(), Problem>;
}

/// Receives the whole body, until it ends or somebody else comes to write the object.
pub(super) async fn receive(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
) -> Result<(), Failed> {
    connection.begin_body();
    let replaced = writer.replaced();
    let receiving = async {
        match request.head.framing {
            Framing::Length(length) => receive_length(connection, request, writer, length).await,
            Framing::Chunked => receive_chunked(connection, request, writer).await,
            Framing::None => Ok(()),
        }
    };
    unless_replaced(receiving, replaced).await
}

/// Receives a body of a declared length as one append, which counts only when `check` has seen all of it.
pub(super) async fn receive_checked(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
    length: u64,
    check: &mut impl Check,
) -> Result<(), Failed> {
    connection.begin_body();
    let replaced = writer.replaced();
    unless_replaced(receive_as_one(connection, request, writer, length, check), replaced).await
}

async fn unless_replaced(
    receiving: impl Future<Output = Result<(), Failed>>,
    replaced: impl Future<Output = ()>,
) -> Result<(), Failed> {
    match race(receiving, replaced).await {
        Either::First(outcome) => outcome,
        Either::Second(()) => Err(Failed::Broken(Broken::Replaced)),
    }
}

async fn receive_as_one(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
    length: u64,
    check: &mut impl Check,
) -> Result<(), Failed> {
    let mut before = 0;
    let mut turn = 0;
    while before < length {
        let remaining = length - before;
        let wanted = remaining.min(PIECE_LENGTH_MAX as u64) as usize;
        let (stream, input) = (&connection.stream, &mut connection.input);
        let appended = writer.append_part_from(&mut before, wanted, |space| {
            let count = if input.is_empty() {
                receive_some(stream, &mut [IoSliceMut::new(space)])?
            } else {
                let count = copy_some(input.filled(), space);
                input.consume(count);
                count
            };
            let is_last = count as u64 == remaining;
            if count > 0 {
                check.take(&space[..count], is_last)?;
            }
            Ok::<_, Failed>((count, is_last))
        })?;
        match appended {
            Some(0) => connection.readable().await?,
            Some(count) => {
                connection.took(count);
                give_way(&mut turn, count).await;
            }
            None => writer.room(&request.context, wanted).await?,
        }
    }
    Ok(())
}

/// A body by Content-Length.
async fn receive_length(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
    length: u64,
) -> Result<(), Failed> {
    let at_hand = (connection.input.filled().len() as u64).min(length) as usize;
    append_input(connection, request, writer, 0, at_hand).await?;
    connection.input.consume(at_hand);
    let mut remaining = length - at_hand as u64;
    let mut turn = 0;
    while remaining > 0 {
        let wanted = remaining.min(PIECE_LENGTH_MAX as u64) as usize;
        let stream = &connection.stream;
        let received =
            writer.append_from(wanted, |space| receive_some(stream, &mut [IoSliceMut::new(space)]))?;
        match received {
            Some(0) => connection.readable().await?,
            Some(count) => {
                remaining -= count as u64;
                connection.took(count);
                give_way(&mut turn, count).await;
            }
            None => writer.room(&request.context, wanted).await?,
        }
    }
    Ok(())
}

/// A chunked body (RFC 9112, section 7.1).
async fn receive_chunked(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
) -> Result<(), Failed> {
    let mut decoder = Decoder::new();
    let mut turn = 0;
    loop {
        if !connection.input.is_empty() {
            match decoder.advance(connection.input.filled())? {
                Step::NeedMore => connection.input.consume(connection.input.filled().len()),
                Step::Data { skip, available } => {
                    append_input(connection, request, writer, skip, available).await?;
                    connection.input.consume(skip + available);
                    give_way(&mut turn, available).await;
                }
                Step::End { consumed } => {
                    connection.input.consume(consumed);
                    return Ok(());
                }
            }
            continue;
        }
        let payload = decoder.payload_remaining().min(PIECE_LENGTH_MAX as u64) as usize;
        let (stream, input) = (&connection.stream, &mut connection.input);
        if payload == 0 {
            match receive_some(stream, &mut [IoSliceMut::new(input.space())])? {
                0 => connection.readable().await?,
                count => input.fill(count),
            }
            continue;
        }
        // The rest of the chunk goes to its place, and what follows it, the next chunk's line, into the input.
        let mut behind = 0;
        let received = writer.append_from(payload, |space| {
            let room = space.len();
            let count = if room == payload {
                receive_some(stream, &mut [IoSliceMut::new(space), IoSliceMut::new(input.space())])?
            } else {
                receive_some(stream, &mut [IoSliceMut::new(space)])?
            };
            behind = count.saturating_sub(room);
            Ok::<_, Failed>(count - behind)
        })?;
        match received {
            Some(0) => connection.readable().await?,
            Some(count) => {
                connection.input.fill(behind);
                decoder.consume_payload(count as u64);
                connection.took(count);
                give_way(&mut turn, count).await;
            }
            None => writer.room(&request.context, payload).await?,
        }
    }
}

/// Takes what the socket has. Zero: nothing yet.
fn receive_some(stream: &crate::runtime::Stream, buffers: &mut [IoSliceMut<'_>]) -> Result<usize, Failed> {
    match stream.try_receive(buffers)? {
        Some(0) => Err(Failed::Broken(Broken::Gone)),
        Some(count) => Ok(count),
        None => Ok(0),
    }
}

/// Copies as much as there is, or there is room for.
fn copy_some(bytes: &[u8], space: &mut [u8]) -> usize {
    let count = space.len().min(bytes.len());
    space[..count].copy_from_slice(&bytes[..count]);
    count
}

/// Appends bytes that are in the input already.
async fn append_input(
    connection: &mut Connection,
    request: &Request,
    writer: &mut Writer,
    start: usize,
    length: usize,
) -> Result<(), Failed> {
    let mut appended = 0;
    while appended < length {
        let bytes = &connection.input.filled()[start + appended..start + length];
        let taken = writer.append_from(bytes.len(), |space| Ok::<_, Failed>(copy_some(bytes, space)))?;
        match taken {
            Some(count) => {
                appended += count;
                connection.took(count);
            }
            None => writer.room(&request.context, length - appended).await?,
        }
    }
    Ok(())
}

/// Lets others have their turn after a while.
async fn give_way(turn: &mut usize, received: usize) {
    *turn += received;
    if *turn >= TURN_LENGTH {
        *turn = 0;
        yield_now().await;
    }
}
