//! PUT and POST: a body becomes an object while it arrives.
//!
//! The object exists, and can be followed, from when the head is accepted. Its bytes go from the socket straight
//! into the log's open block, each piece that arrives as one append; only what came together with a head or a
//! chunk line is copied. The answer says 201 when the seal, and so everything before it, is durable.

use std::io::IoSliceMut;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use rustix::io::Errno;
use serde::Serialize;

use super::chunked::{Decoder, Step};
use super::conditional::{Outcome, Validators, evaluate, is_conditional};
use super::connection::{Broken, Connection, Next, Request};
use super::head::Framing;
use super::names::etag_of;
use super::problem::Problem;
use super::reply::CONTINUE;
use super::target::Target;
use crate::error::{Error, Kind};
use crate::runtime::yield_now;
use crate::store::{Metadata, Object, State, Writer};

/// How much is received into the block at once, in bytes.
const PIECE_LENGTH_MAX: usize = 1 << 20;
/// How much one connection receives before others have their turn, in bytes.
const TURN_LENGTH: usize = 1 << 20;
/// Names and values of `x-amz-meta-*` headers together, in bytes; S3 allows 2 KiB, we are not that strict.
const USER_METADATA_LENGTH_MAX: usize = 16 << 10;
const USER_METADATA_PREFIX: &str = "x-amz-meta-";

#[derive(Serialize)]
struct CreatedBody<'a> {
    bucket: &'a str,
    key: &'a str,
    generation: u64,
    state: State,
    length: u64,
    etag: String,
}

/// Why a body did not become an object.
enum Failed {
    /// The client can be told.
    Problem(Problem),
    /// The client is gone or has stalled.
    Broken(Broken),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        if error.kind() == Kind::Device || error.kind() == Kind::NoSpace {
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

pub(super) async fn answer(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    match ingest(connection, request).await {
        Ok(object) => reply_created(connection, request, &object).await,
        Err(Failed::Problem(problem)) => connection.reply_problem(request, &problem).await,
        Err(Failed::Broken(broken)) => {
            tracing::info!(
                path = request.head.path,
                ?broken,
                "the writer went away: the object is interrupted"
            );
            Err(broken)
        }
    }
}

async fn reply_created(
    connection: &mut Connection,
    request: &Request,
    object: &Object,
) -> Result<Next, Broken> {
    let etag = object.etag();
    let body = CreatedBody {
        bucket: object.name().bucket(),
        key: object.name().key(),
        generation: object.generation(),
        state: object.state(),
        length: object.committed(),
        etag: etag.clone(),
    };
    let json = match serde_json::to_vec(&body) {
        Ok(json) => json,
        Err(error) => {
            return connection.reply_problem(request, &Problem::internal(error.to_string())).await;
        }
    };
    let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.push((ETAG, etag));
    }
    connection.reply(request, StatusCode::CREATED, &headers, &json).await
}

async fn ingest(connection: &mut Connection, request: &Request) -> Result<std::sync::Arc<Object>, Failed> {
    let head = &request.head;
    let Target::Object { name, .. } = &head.target else { unreachable!("only objects are written") };
    let declared_length = match head.framing {
        Framing::Length(length) => Some(length),
        Framing::Chunked => None,
        Framing::None => return Err(Problem::length_required().into()),
    };
    let metadata = metadata_of(&head.headers, declared_length)?;
    let local = connection.here.local.clone();
    // What an interrupted upload has left does not count as there: the next attempt may replace it.
    let existing = match is_conditional(&head.headers) {
        true => local.find(&request.context, name).await?,
        false => None,
    };
    let existing = existing.filter(|object| object.state() != State::Interrupted);
    let etag = existing.as_deref().and_then(etag_of);
    let validators = Validators {
        etag: etag.as_deref(),
        modified: existing.as_ref().map(|object| object.modified()),
        exists: existing.is_some(),
    };
    if evaluate(&Method::PUT, &head.headers, &validators) != Outcome::Proceed {
        let detail = "the object is there, or not what the condition says";
        return Err(Problem::precondition_failed(detail).into());
    }
    // Between this look and the beginning of the generation another writer may have come.
    let only_if_absent = head.headers.get(http::header::IF_NONE_MATCH).is_some_and(|value| value == "*");
    let mut writer = local.create(&request.context, name.clone(), metadata, only_if_absent).await?;
    if head.expects_continue {
        connection.send(CONTINUE, false).await?;
    }
    match declared_length {
        Some(length) => receive_length(connection, request, &mut writer, length).await?,
        None => receive_chunked(connection, request, &mut writer).await?,
    }
    Ok(writer.seal(&request.context).await?)
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
        let received = writer.append_from(wanted, |space| receive(stream, &mut [IoSliceMut::new(space)]))?;
        match received {
            Some(0) => connection.readable().await?,
            Some(count) => {
                remaining -= count as u64;
                connection.here.local.metrics().bytes_received.add(count as u64);
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
            match receive(stream, &mut [IoSliceMut::new(input.space())])? {
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
                receive(stream, &mut [IoSliceMut::new(space), IoSliceMut::new(input.space())])?
            } else {
                receive(stream, &mut [IoSliceMut::new(space)])?
            };
            behind = count.saturating_sub(room);
            Ok::<_, Failed>(count - behind)
        })?;
        match received {
            Some(0) => connection.readable().await?,
            Some(count) => {
                connection.input.fill(behind);
                decoder.consume_payload(count as u64);
                connection.here.local.metrics().bytes_received.add(count as u64);
                give_way(&mut turn, count).await;
            }
            None => writer.room(&request.context, payload).await?,
        }
    }
}

/// Takes what the socket has. Zero: nothing yet.
fn receive(stream: &crate::runtime::Stream, buffers: &mut [IoSliceMut<'_>]) -> Result<usize, Failed> {
    match stream.try_receive(buffers)? {
        Some(0) => Err(Failed::Broken(Broken::Gone)),
        Some(count) => Ok(count),
        None => Ok(0),
    }
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
        let taken = writer.append_from(bytes.len(), |space| {
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            Ok::<_, Failed>(count)
        })?;
        match taken {
            Some(count) => {
                appended += count;
                connection.here.local.metrics().bytes_received.add(count as u64);
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

fn metadata_of(headers: &HeaderMap, declared_length: Option<u64>) -> Result<Metadata, Problem> {
    let mut user = Vec::new();
    let mut user_length = 0;
    for (name, value) in headers {
        if name.as_str().starts_with(USER_METADATA_PREFIX) {
            let value = text_of(name, value)?;
            user_length += name.as_str().len() + value.len();
            user.push((name.as_str().to_owned(), value));
        }
    }
    if user_length > USER_METADATA_LENGTH_MAX {
        return Err(Problem::fields_too_large("the x-amz-meta-* headers are longer than 16 KiB together"));
    }
    let single = |name: HeaderName| headers.get(&name).map(|value| text_of(&name, value)).transpose();
    Ok(Metadata {
        content_type: single(CONTENT_TYPE)?,
        cache_control: single(CACHE_CONTROL)?,
        user,
        declared_length,
    })
}

fn text_of(name: &HeaderName, value: &HeaderValue) -> Result<String, Problem> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Problem::bad_request(format!("the header {name} is not UTF-8"))),
    }
}
