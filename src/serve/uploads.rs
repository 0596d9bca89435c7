//! What all ways have in common in which an object is written by several requests.
//!
//! An upload is one generation of a name. Its offset is how much of it is durable: what is reported is what must come
//! next. To look at an upload ends a request that is still writing it, so that the offset stays true until the next
//! one; a connection that hangs is replaced that way.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::body::Failed;
use super::connection::{Connection, Request};
use super::problem::Problem;
use crate::error::Kind;
use crate::store::{Name, Object, Resumed, State, Writer};

pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
pub(super) const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");

/// How an upload stands.
pub(super) struct Standing {
    pub object: Arc<Object>,
    /// How much of it is durable, and what must come next, in bytes.
    pub offset: u64,
    /// How long it is going to be, where that was told.
    pub length: Option<u64>,
    pub is_complete: bool,
}

/// How an upload stands, after whoever was writing it has let go. It can be gone on with at once.
pub(super) async fn look(
    connection: &Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Standing, Failed> {
    match take_up(connection, request, name, generation).await? {
        Ok(writer) => {
            let (object, offset, length) =
                (writer.object().clone(), writer.offset(), writer.declared_length());
            Ok(Standing { object, offset, length, is_complete: false })
        }
        Err(object) => {
            let (offset, declared) = (object.committed(), object.metadata().declared_length);
            Ok(Standing { object, offset, length: declared.or(Some(offset)), is_complete: true })
        }
    }
}

/// A generation of a name; of those that are not complete the newest, where none is asked for.
pub(super) async fn find(
    connection: &Connection,
    request: &Request,
    name: &Name,
    generation: Option<u64>,
) -> Result<Option<Arc<Object>>, Failed> {
    Ok(connection.here.local.find_upload(&request.context, name, generation).await?)
}

fn gone(name: &Name) -> Problem {
    Problem::not_found(format!(
        "there is no such upload to {name}: it was deleted or replaced, or never begun"
    ))
}

/// Goes on with an upload; or answers its object, where it is complete. Whoever was writing it has let go when this
/// returns.
pub(super) async fn take_up(
    connection: &Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Result<Writer, Arc<Object>>, Failed> {
    let found = find(connection, request, name, Some(generation)).await?;
    let object = found.ok_or_else(|| gone(name))?;
    if object.state() == State::Sealed {
        return Ok(Err(object));
    }
    match resume(connection, request, name, generation).await {
        // It was completed by the request that was under way.
        Err(_) if object.state() == State::Sealed => Ok(Err(object)),
        resumed => Ok(Ok(resumed?)),
    }
}

/// Goes on with an upload that is not complete. Whoever was writing it has let go when this returns.
pub(super) async fn resume(
    connection: &Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Writer, Failed> {
    let window = connection.here.config().resume_window.resumable(name.bucket());
    match connection.here.local.resume(&request.context, name, generation, window).await? {
        Resumed::Here(writer) => Ok(writer),
        Resumed::On(core) => Err(Failed::Elsewhere(core)),
    }
}

/// Deletes an upload, complete or not. It is durably gone when this returns.
pub(super) async fn delete(
    connection: &Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<(), Failed> {
    match connection.here.local.delete_generation(&request.context, name, generation).await {
        Err(error) if error.kind() == Kind::NotFound => Err(gone(name).into()),
        outcome => Ok(outcome?),
    }
}

/// Where a PATCH says that its body goes.
pub(super) fn offset_of(request: &Request) -> Result<u64, Problem> {
    bytes_in(request, &UPLOAD_OFFSET)?
        .ok_or_else(|| Problem::bad_request("a PATCH says by Upload-Offset where it goes on"))
}

/// 409 with the offset that would have been right.
pub(super) fn wrong_offset(expected: u64, provided: u64) -> Problem {
    let detail = format!("the upload goes on at {expected}, and not at {provided}");
    Problem::conflict(detail)
        .of_kind("https://iana.org/assignments/http-problem-types#mismatching-upload-offset")
        .with_member("expected-offset", expected)
        .with_member("provided-offset", provided)
        .with(UPLOAD_OFFSET, HeaderValue::from(expected))
}

/// A number of bytes in a header, if it is there.
///
/// # Errors
/// 400 where it is none.
pub(super) fn bytes_in(request: &Request, name: &HeaderName) -> Result<Option<u64>, Problem> {
    let Some(value) = request.head.headers.get(name) else { return Ok(None) };
    let digits =
        value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits
        .and_then(|digits| digits.parse().ok())
        .filter(|&number| number <= super::head::BODY_LENGTH_MAX);
    number.map(Some).ok_or_else(|| Problem::bad_request(format!("{name} is a number of bytes")))
}
