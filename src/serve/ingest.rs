//! PUT and POST: a body becomes an object while it arrives.
//!
//! The object exists, and can be followed, from when the head is accepted. The answer says 201 when the seal, and so
//! everything before it, is durable.
//!
//! A body may also be a part of an object, and the next one goes on with it: by `Content-Range` ([`super::ranged`])
//! or as the resumable-upload draft has it ([`super::resumable`]).

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;

use super::body::{Failed, receive};
use super::conditional::{Outcome, Validators, evaluate, is_conditional};
use super::connection::{Broken, Connection, Next, Request};
use super::head::Framing;
use super::names::etag_of;
use super::problem::Problem;
use super::reply::CONTINUE;
use super::target::Target;
use super::{ranged, resumable};
use crate::store::{Metadata, Name, Object, State, Writer};

/// Names and values of `x-amz-meta-*` headers together, in bytes; S3 allows 2 KiB, we are not that strict.
const USER_METADATA_LENGTH_MAX: usize = 16 << 10;
const USER_METADATA_PREFIX: &str = "x-amz-meta-";

#[derive(Serialize)]
struct ObjectBody<'a> {
    bucket: &'a str,
    key: &'a str,
    generation: u64,
    state: State,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
}

pub(super) async fn answer(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let outcome = if resumable::is_creation(&request.head.headers) {
        resumable::create(connection, request).await
    } else if let Some(part) = ranged::part_of(&request.head) {
        match part {
            Ok(part) => ranged::put(connection, request, part).await,
            Err(problem) => Err(problem.into()),
        }
    } else {
        put(connection, request).await
    };
    conclude(connection, request, outcome).await
}

/// Answers what was not answered yet, or ends the connection.
pub(super) async fn conclude(
    connection: &mut Connection,
    request: &Request,
    outcome: Result<Next, Failed>,
) -> Result<Next, Broken> {
    match outcome {
        Ok(next) => Ok(next),
        Err(Failed::Problem(problem)) => connection.reply_problem(request, &problem).await,
        Err(Failed::Elsewhere(core)) => Ok(Next::Elsewhere(core)),
        Err(Failed::Broken(broken)) => {
            tracing::info!(path = request.head.path, ?broken, "the writer went away");
            Err(broken)
        }
    }
}

async fn put(connection: &mut Connection, request: &Request) -> Result<Next, Failed> {
    let Target::Object { name, .. } = &request.head.target else { unreachable!("only objects are written") };
    let declared_length = declared_length(request)?;
    let metadata = metadata_of(&request.head.headers, declared_length)?;
    let mut writer = begin(connection, request, name, metadata).await?;
    writer.set_window(connection.here.config().resume_window.plain(name.bucket()));
    go_on(connection, request).await?;
    receive(connection, request, &mut writer).await?;
    let object = writer.seal(&request.context).await?;
    Ok(reply_object(connection, request, StatusCode::CREATED, &object, Vec::new()).await?)
}

/// How long the body says it is.
pub(super) fn declared_length(request: &Request) -> Result<Option<u64>, Problem> {
    match request.head.framing {
        Framing::Length(length) => Ok(Some(length)),
        Framing::Chunked => Ok(None),
        Framing::None => Err(Problem::length_required()),
    }
}

/// Begins a generation of a name, where the request's conditions allow it.
pub(super) async fn begin(
    connection: &Connection,
    request: &Request,
    name: &Name,
    metadata: Metadata,
) -> Result<Writer, Failed> {
    let headers = &request.head.headers;
    let local = &connection.here.local;
    // What an interrupted upload has left does not count as there: the next attempt may replace it.
    let existing = match is_conditional(headers) {
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
    if evaluate(&Method::PUT, headers, &validators) != Outcome::Proceed {
        let detail = "the object is there, or not what the condition says";
        return Err(Problem::precondition_failed(detail).into());
    }
    // Between this look and the beginning of the generation another writer may have come.
    let only_if_absent = headers.get(http::header::IF_NONE_MATCH).is_some_and(|value| value == "*");
    Ok(local.create(&request.context, name.clone(), metadata, only_if_absent).await?)
}

/// Tells a client that waits for it that it may send the body.
pub(super) async fn go_on(connection: &Connection, request: &Request) -> Result<(), Broken> {
    match request.head.expects_continue {
        true => connection.send(CONTINUE, false).await,
        false => Ok(()),
    }
}

/// Tells of an object that was written, or of a part of it.
pub(super) async fn reply_object(
    connection: &mut Connection,
    request: &Request,
    status: StatusCode,
    object: &Arc<Object>,
    mut headers: Vec<(HeaderName, HeaderValue)>,
) -> Result<Next, Broken> {
    // The state first: once it is not live, the watermark is final.
    let state = object.state();
    let etag = (state == State::Sealed).then(|| object.etag());
    headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    if let Some(etag) = etag.as_ref().and_then(|etag| HeaderValue::try_from(etag).ok()) {
        headers.push((ETAG, etag));
    }
    let body = ObjectBody {
        bucket: object.name().bucket(),
        key: object.name().key(),
        generation: object.generation(),
        state,
        length: object.committed(),
        etag,
    };
    match serde_json::to_vec(&body) {
        Ok(json) => connection.reply(request, status, &headers, &json).await,
        Err(error) => connection.reply_problem(request, &Problem::internal(error.to_string())).await,
    }
}

pub(super) fn metadata_of(headers: &HeaderMap, declared_length: Option<u64>) -> Result<Metadata, Problem> {
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
        tus: None,
    })
}

fn text_of(name: &HeaderName, value: &HeaderValue) -> Result<String, Problem> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Problem::bad_request(format!("the header {name} is not UTF-8"))),
    }
}
