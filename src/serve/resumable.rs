//! Resumable uploads as the HTTP working group's draft has them (draft-ietf-httpbis-resumable-upload, interop
//! version 8).
//!
//! The upload resource of an object is its own URL with `?upload=GENERATION`. Any PUT or POST with an
//! `Upload-Complete` header creates one; HEAD tells its offset, PATCH appends, DELETE cancels.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::body::{Failed, receive};
use super::connection::{Broken, Connection, Next, Request};
use super::head::{Framing, Version};
use super::ingest::{begin, conclude, declared_length, go_on, metadata_of, reply_object};
use super::problem::Problem;
use super::target::Target;
use super::uploads::{
    UPLOAD_LENGTH, UPLOAD_OFFSET, bytes_in, delete, look, offset_of, take_up, wrong_offset,
};
use crate::error::Kind;
use crate::store::{Name, Writer};

/// The version of the draft that client and server must have in common for interim answers.
const INTEROP_VERSION: HeaderValue = HeaderValue::from_static("8");
const UPLOAD_DRAFT_INTEROP_VERSION: HeaderName = HeaderName::from_static("upload-draft-interop-version");
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
const UPLOAD_LIMIT: HeaderName = HeaderName::from_static("upload-limit");
/// The largest number that a structured field can hold (RFC 9651, section 3.3.1): the disk ends before.
const LIMIT: HeaderValue = HeaderValue::from_static("max-size=999999999999999");
/// What the body of a PATCH is.
pub(super) const PARTIAL_UPLOAD: &str = "application/partial-upload";

const INCONSISTENT_LENGTH: &str =
    "https://iana.org/assignments/http-problem-types#inconsistent-upload-length";
const COMPLETED_UPLOAD: &str = "https://iana.org/assignments/http-problem-types#completed-upload";

/// Whether the client wants an upload that can be resumed.
pub(super) fn is_creation(headers: &HeaderMap) -> bool {
    completeness(headers).is_some()
}

/// Whether the body is all that was left to send. A header that is no boolean of a structured field is ignored.
fn completeness(headers: &HeaderMap) -> Option<bool> {
    let mut values = headers.get_all(UPLOAD_COMPLETE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    match value.to_str().ok()?.split(';').next()?.trim() {
        "?1" => Some(true),
        "?0" => Some(false),
        _ => None,
    }
}

fn boolean(value: bool) -> HeaderValue {
    HeaderValue::from_static(if value { "?1" } else { "?0" })
}

/// The length of the whole upload, as far as this request tells it: what it says, and what follows from its body.
fn told_length(request: &Request, offset: u64, is_complete: bool) -> Result<Option<u64>, Problem> {
    let said = bytes_in(request, &UPLOAD_LENGTH)?;
    let follows = match request.head.framing {
        Framing::Length(length) if is_complete => Some(offset.saturating_add(length)),
        Framing::None if is_complete => Some(offset),
        _ => None,
    };
    match (said, follows) {
        (Some(said), Some(follows)) if said != follows => Err(inconsistent_length(format!(
            "Upload-Length says {said} bytes, and with this body it would be {follows}"
        ))),
        (said, follows) => Ok(said.or(follows)),
    }
}

fn inconsistent_length(detail: impl Into<String>) -> Problem {
    Problem::bad_request(detail).of_kind(INCONSISTENT_LENGTH)
}

/// Where an upload can be gone on with.
fn location(request: &Request, generation: u64) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(format!("{}?upload={generation:x}", request.head.path))
        .map_err(|error| Problem::internal(error.to_string()))
}

/// PUT or POST with `Upload-Complete`.
pub(super) async fn create(connection: &mut Connection, request: &Request) -> Result<Next, Failed> {
    let head = &request.head;
    let Target::Object { name, .. } = &head.target else { unreachable!("only objects are written") };
    let is_complete = completeness(&head.headers).unwrap_or(true);
    declared_length(request)?;
    let metadata = metadata_of(&head.headers, told_length(request, 0, is_complete)?)?;
    let mut writer = begin(connection, request, name, metadata).await?;
    writer.set_window(connection.here.config().resume_window.resumable(name.bucket()));
    let location = location(request, writer.object().generation())?;
    let speaks_draft =
        head.headers.get(UPLOAD_DRAFT_INTEROP_VERSION).is_some_and(|value| value == INTEROP_VERSION);
    if speaks_draft && head.version == Version::Http11 {
        let mut interim =
            b"HTTP/1.1 104 Upload Resumption Supported\r\nupload-draft-interop-version: 8\r\nlocation: "
                .to_vec();
        interim.extend_from_slice(location.as_bytes());
        interim.extend_from_slice(b"\r\nupload-limit: ");
        interim.extend_from_slice(LIMIT.as_bytes());
        interim.extend_from_slice(b"\r\n\r\n");
        connection.send(&interim, false).await?;
    }
    go_on(connection, request).await?;
    take(connection, request, writer, is_complete, Some(location)).await
}

/// Receives the body, completes the upload where this was the last part, and answers.
async fn take(
    connection: &mut Connection,
    request: &Request,
    mut writer: Writer,
    is_complete: bool,
    location: Option<HeaderValue>,
) -> Result<Next, Failed> {
    receive(connection, request, &mut writer).await?;
    let object = writer.object().clone();
    if is_complete {
        writer.seal(&request.context).await?;
        let headers = vec![(UPLOAD_COMPLETE, boolean(true)), (UPLOAD_OFFSET, object.committed().into())];
        return Ok(reply_object(connection, request, StatusCode::CREATED, &object, headers).await?);
    }
    writer.acknowledged(&request.context).await?;
    let mut headers = vec![
        (UPLOAD_COMPLETE, boolean(false)),
        (UPLOAD_OFFSET, writer.offset().into()),
        (UPLOAD_LIMIT, LIMIT),
    ];
    drop(writer);
    match location {
        Some(location) => {
            headers.push((LOCATION, location));
            Ok(reply_object(connection, request, StatusCode::CREATED, &object, headers).await?)
        }
        None => Ok(connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await?),
    }
}

/// HEAD, PATCH and DELETE of an upload resource.
pub(super) async fn answer(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Broken> {
    let outcome = match request.head.method {
        Method::HEAD => tell_offset(connection, request, name, generation).await,
        Method::PATCH => append(connection, request, name, generation).await,
        _ => cancel(connection, request, name, generation).await,
    };
    conclude(connection, request, outcome).await
}

async fn tell_offset(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    let standing = look(connection, request, name, generation).await?;
    let mut headers = vec![
        (UPLOAD_COMPLETE, boolean(standing.is_complete)),
        (UPLOAD_OFFSET, standing.offset.into()),
        (UPLOAD_LIMIT, LIMIT),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    if let Some(length) = standing.length {
        headers.push((UPLOAD_LENGTH, length.into()));
    }
    Ok(connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await?)
}

async fn append(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    let head = &request.head;
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(PARTIAL_UPLOAD)) {
        let detail = format!("the body of a PATCH is {PARTIAL_UPLOAD}");
        return Err(Problem::unsupported_media_type(detail).into());
    }
    let offset = offset_of(request)?;
    let is_complete = completeness(&head.headers).ok_or_else(|| {
        Problem::bad_request("a PATCH says by Upload-Complete whether it has the last bytes: ?1 or ?0")
    })?;
    let mut writer = match take_up(connection, request, name, generation).await? {
        Ok(writer) => writer,
        Err(object) => {
            let problem = Problem::bad_request("the upload is complete").of_kind(COMPLETED_UPLOAD);
            let problem = problem.with(UPLOAD_COMPLETE, boolean(true));
            return Err(problem.with(UPLOAD_OFFSET, object.committed().into()).into());
        }
    };
    if writer.offset() != offset {
        let problem = wrong_offset(writer.offset(), offset);
        return Err(problem.with(UPLOAD_COMPLETE, boolean(false)).into());
    }
    if let Some(length) = told_length(request, offset, is_complete)? {
        match writer.declare_length(&request.context, length).await {
            Err(error) if error.kind() == Kind::InvalidArgument => {
                return Err(inconsistent_length(error.to_string()).into());
            }
            outcome => outcome?,
        }
    }
    go_on(connection, request).await?;
    take(connection, request, writer, is_complete, None).await
}

async fn cancel(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    delete(connection, request, name, generation).await?;
    Ok(connection.reply(request, StatusCode::NO_CONTENT, &[], b"").await?)
}

/// OPTIONS: what can be done here.
pub(super) async fn options(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let mut headers = vec![(http::header::ALLOW, HeaderValue::from_static(request.head.target.allow()))];
    if matches!(request.head.target, Target::Object { .. }) {
        headers.push((HeaderName::from_static("accept-patch"), HeaderValue::from_static(PARTIAL_UPLOAD)));
        headers.push((UPLOAD_LIMIT, LIMIT));
    }
    connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await
}
