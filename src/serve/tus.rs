//! tus 1.0 (<https://tus.io/protocols/resumable-upload>), below `/_tus/`, which can be no bucket.
//!
//! `POST /_tus/{bucket}/{key}`, or `POST /_tus/{bucket}` with the key as `filename` in the metadata, creates an upload
//! to the object `/{bucket}/{key}`, where it can be followed. Extensions: creation, creation-with-upload,
//! creation-defer-length, expiration, termination, checksum.
//!
//! A body with a checksum counts as a whole or not at all; others as far as they come.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use sha1::{Digest, Sha1};

use super::body::{Check, Failed, receive, receive_checked};
use super::connection::{Broken, Connection, Next, Request};
use super::head::Framing;
use super::ingest::{begin, conclude, go_on};
use super::problem::Problem;
use super::target::TusTarget;
use super::uploads::{
    UPLOAD_LENGTH, UPLOAD_OFFSET, bytes_in, delete, look, offset_of, take_up, wrong_offset,
};
use crate::store::{Metadata, Name, Writer};

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("tus-checksum-algorithm");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_CHECKSUM: HeaderName = HeaderName::from_static("upload-checksum");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const EXTENSIONS: HeaderValue = HeaderValue::from_static(
    "creation,creation-with-upload,creation-defer-length,expiration,termination,checksum",
);
/// What the body of a PATCH is.
const OFFSET_OCTET_STREAM: &str = "application/offset+octet-stream";

/// The method that is meant: some clients can send no PATCH.
fn method(request: &Request) -> Result<Method, Problem> {
    let Some(value) = request.head.headers.get(METHOD_OVERRIDE) else {
        return Ok(request.head.method.clone());
    };
    match Method::from_bytes(value.as_bytes()) {
        Ok(method) if [Method::HEAD, Method::POST, Method::PATCH, Method::DELETE].contains(&method) => {
            Ok(method)
        }
        _ => Err(Problem::bad_request("X-HTTP-Method-Override is HEAD, POST, PATCH or DELETE")),
    }
}

pub(super) async fn answer(
    connection: &mut Connection,
    request: &Request,
    target: &TusTarget,
) -> Result<Next, Broken> {
    let outcome = match dispatch(connection, request, target).await {
        Err(Failed::Problem(problem)) => Err(Failed::Problem(problem.with(TUS_RESUMABLE, VERSION))),
        outcome => outcome,
    };
    conclude(connection, request, outcome).await
}

async fn dispatch(
    connection: &mut Connection,
    request: &Request,
    target: &TusTarget,
) -> Result<Next, Failed> {
    if request.head.method == Method::OPTIONS {
        let headers = [
            (TUS_RESUMABLE, VERSION),
            (TUS_VERSION, VERSION),
            (TUS_EXTENSION, EXTENSIONS),
            (TUS_CHECKSUM_ALGORITHM, HeaderValue::from_static("sha1")),
        ];
        return Ok(connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await?);
    }
    if request.head.headers.get(TUS_RESUMABLE) != Some(&VERSION) {
        let problem = Problem::precondition_failed("Tus-Resumable says 1.0.0: this is what the node speaks");
        return Err(problem.with(TUS_VERSION, VERSION).into());
    }
    let method = method(request)?;
    match (method, target) {
        (Method::POST, TusTarget { bucket: Some(bucket), name, upload: None }) => {
            create(connection, request, bucket, name.as_ref()).await
        }
        (Method::HEAD, TusTarget { name: Some(name), upload: Some(upload), .. }) => {
            tell_offset(connection, request, name, *upload).await
        }
        (Method::PATCH, TusTarget { name: Some(name), upload: Some(upload), .. }) => {
            append(connection, request, name, *upload).await
        }
        (Method::DELETE, TusTarget { name: Some(name), upload: Some(upload), .. }) => {
            terminate(connection, request, name, *upload).await
        }
        (Method::POST, _) => {
            Err(Problem::bad_request("an upload is created at /_tus/BUCKET or /_tus/BUCKET/KEY").into())
        }
        _ => Err(Problem::not_found("this is not the URL of an upload: that was the answer to its creation")
            .into()),
    }
}

/// What a client says about an upload.
#[derive(Debug, Default, PartialEq, Eq)]
struct Described {
    file_name: Option<String>,
    content_type: Option<String>,
    user: Vec<(String, String)>,
}

/// Reads an `Upload-Metadata` header: pairs of a key and a value in Base64.
fn described(text: &str) -> Option<Described> {
    let mut described = Described::default();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        let value = String::from_utf8(BASE64_STANDARD.decode(value.trim()).ok()?).ok()?;
        let is_header = HeaderValue::from_str(&value).is_ok();
        match key {
            "filename" | "name" if described.file_name.is_none() => described.file_name = Some(value),
            "filetype" | "type" | "contentType" if is_header => described.content_type = Some(value),
            _ => {
                let name = format!("x-amz-meta-{}", key.to_ascii_lowercase());
                if is_header && HeaderName::try_from(&name).is_ok() {
                    described.user.push((name, value));
                }
            }
        }
    }
    Some(described)
}

async fn create(
    connection: &mut Connection,
    request: &Request,
    bucket: &str,
    name: Option<&Name>,
) -> Result<Next, Failed> {
    let headers = &request.head.headers;
    if request.head.framing.has_body() {
        check_content_type(request)?;
    }
    let length = bytes_in(request, &UPLOAD_LENGTH)?;
    let is_deferred = headers.get(UPLOAD_DEFER_LENGTH);
    match (length, is_deferred.map(HeaderValue::as_bytes)) {
        (Some(_), None) | (None, Some(b"1")) => {}
        _ => {
            let detail =
                "an upload says its Upload-Length, or by Upload-Defer-Length: 1 that it is not known yet";
            return Err(Problem::bad_request(detail).into());
        }
    }
    let text = match headers.get(UPLOAD_METADATA) {
        Some(value) => value.to_str().map_err(|_| malformed_metadata())?,
        None => "",
    };
    let described = described(text).ok_or_else(malformed_metadata)?;
    let name = match (name, &described.file_name) {
        (Some(name), _) => name.clone(),
        (None, Some(file_name)) => Name::new(bucket, file_name)?,
        (None, None) => {
            let detail =
                "the key of the object is missing: it stands in the path, or as filename in Upload-Metadata";
            return Err(Problem::bad_request(detail).into());
        }
    };
    let metadata = Metadata {
        content_type: described.content_type,
        user: described.user,
        declared_length: length,
        tus: Some(text.to_owned()),
        ..Metadata::default()
    };
    let mut writer = begin(connection, request, &name, metadata).await?;
    writer.set_window(connection.here.config().resume_window.resumable(name.bucket()));
    let key = percent_encoding::utf8_percent_encode(name.key(), super::target::KEY_ESCAPES);
    let location = format!("/_tus/{}/{key}?upload={:x}", name.bucket(), writer.object().generation());
    let location = HeaderValue::try_from(location).map_err(|error| Problem::internal(error.to_string()))?;
    let mut answer = vec![(LOCATION, location)];
    go_on(connection, request).await?;
    take(connection, request, &mut writer).await?;
    let headers = close(connection, request, writer).await?;
    answer.extend(headers);
    Ok(connection.reply(request, StatusCode::CREATED, &answer, b"").await?)
}

fn malformed_metadata() -> Problem {
    Problem::bad_request("Upload-Metadata is a list of keys, each with its value in Base64")
}

fn check_content_type(request: &Request) -> Result<(), Problem> {
    match request.head.headers.get(CONTENT_TYPE) {
        Some(kind) if kind == OFFSET_OCTET_STREAM => Ok(()),
        _ => Err(Problem::unsupported_media_type(format!("the body of an upload is {OFFSET_OCTET_STREAM}"))),
    }
}

/// The checksum that a body must have.
struct Checksum {
    wanted: Vec<u8>,
    hash: Sha1,
}

impl Checksum {
    fn of(request: &Request) -> Result<Option<Checksum>, Problem> {
        let Some(value) = request.head.headers.get(UPLOAD_CHECKSUM) else { return Ok(None) };
        let value = value.to_str().ok().and_then(|value| value.trim().split_once(' '));
        let wanted = match value {
            Some(("sha1", wanted)) => BASE64_STANDARD.decode(wanted.trim()).ok(),
            _ => None,
        };
        let wanted = wanted.ok_or_else(|| {
            Problem::bad_request(
                "Upload-Checksum is sha1 and the checksum in Base64: no other algorithm is known",
            )
        })?;
        Ok(Some(Checksum { wanted, hash: Sha1::new() }))
    }

    fn end(&mut self) -> Result<(), Problem> {
        if self.hash.finalize_reset().as_slice() == self.wanted {
            return Ok(());
        }
        let status = StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST);
        let detail = "the body is not what its checksum says, and was dropped";
        Err(Problem::new(status, "Checksum mismatch", detail))
    }
}

impl Check for Checksum {
    fn take(&mut self, bytes: &[u8], is_last: bool) -> Result<(), Problem> {
        self.hash.update(bytes);
        if is_last { self.end() } else { Ok(()) }
    }
}

/// Receives the body of a request.
async fn take(connection: &mut Connection, request: &Request, writer: &mut Writer) -> Result<(), Failed> {
    match (Checksum::of(request)?, request.head.framing) {
        (None, _) => receive(connection, request, writer).await,
        (Some(mut checksum), Framing::None | Framing::Length(0)) => Ok(checksum.end()?),
        (Some(mut checksum), Framing::Length(length)) => {
            receive_checked(connection, request, writer, length, &mut checksum).await
        }
        (Some(_), Framing::Chunked) => {
            Err(Problem::bad_request("a body with an Upload-Checksum has a Content-Length").closing().into())
        }
    }
}

/// Completes an upload that has all its bytes. What the answer says of it.
async fn close(
    connection: &Connection,
    request: &Request,
    writer: Writer,
) -> Result<Vec<(HeaderName, HeaderValue)>, Failed> {
    let offset = writer.offset();
    let mut headers = vec![(TUS_RESUMABLE, VERSION), (UPLOAD_OFFSET, offset.into())];
    if writer.declared_length() == Some(offset) {
        writer.seal(&request.context).await?;
    } else {
        writer.acknowledged(&request.context).await?;
        drop(writer);
        headers.push(expiry(connection));
    }
    Ok(headers)
}

/// When an upload goes that nobody goes on with.
fn expiry(connection: &Connection) -> (HeaderName, HeaderValue) {
    let kept = Duration::from_secs(connection.here.config().tus_expiry_seconds);
    (UPLOAD_EXPIRES, super::reply::last_modified(std::time::SystemTime::now() + kept))
}

async fn tell_offset(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    let standing = look(connection, request, name, generation).await?;
    let mut headers = vec![
        (TUS_RESUMABLE, VERSION),
        (UPLOAD_OFFSET, standing.offset.into()),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    match standing.length {
        Some(length) => headers.push((UPLOAD_LENGTH, length.into())),
        None => headers.push((UPLOAD_DEFER_LENGTH, HeaderValue::from_static("1"))),
    }
    let metadata = standing.object.metadata().tus.as_deref().unwrap_or_default();
    if let Some(metadata) = HeaderValue::from_str(metadata).ok().filter(|metadata| !metadata.is_empty()) {
        headers.push((UPLOAD_METADATA, metadata));
    }
    if !standing.is_complete {
        headers.push(expiry(connection));
    }
    Ok(connection.reply(request, StatusCode::OK, &headers, b"").await?)
}

async fn append(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    check_content_type(request)?;
    let offset = offset_of(request)?;
    let length = bytes_in(request, &UPLOAD_LENGTH)?;
    let mut writer = match take_up(connection, request, name, generation).await? {
        Ok(writer) => writer,
        // All of it is there: a client that did not hear so may ask for nothing more.
        Err(object) if offset == object.committed() && !request.head.framing.has_body() => {
            let headers = [(TUS_RESUMABLE, VERSION), (UPLOAD_OFFSET, offset.into())];
            return Ok(connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await?);
        }
        Err(object) => {
            let problem = Problem::conflict("the upload is complete");
            return Err(problem.with(UPLOAD_OFFSET, object.committed().into()).into());
        }
    };
    if writer.offset() != offset {
        return Err(wrong_offset(writer.offset(), offset).into());
    }
    if let Some(length) = length {
        writer.declare_length(&request.context, length).await?;
    }
    go_on(connection, request).await?;
    take(connection, request, &mut writer).await?;
    let headers = close(connection, request, writer).await?;
    Ok(connection.reply(request, StatusCode::NO_CONTENT, &headers, b"").await?)
}

async fn terminate(
    connection: &mut Connection,
    request: &Request,
    name: &Name,
    generation: u64,
) -> Result<Next, Failed> {
    delete(connection, request, name, generation).await?;
    Ok(connection.reply(request, StatusCode::NO_CONTENT, &[(TUS_RESUMABLE, VERSION)], b"").await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata() {
        let user = vec![("x-amz-meta-camera".to_owned(), "north".to_owned())];
        assert_eq!(
            described("filename YS9iLnR4dA==,filetype dGV4dC9wbGFpbg==, camera bm9ydGg=,empty"),
            Some(Described {
                file_name: Some("a/b.txt".into()),
                content_type: Some("text/plain".into()),
                user: [user, vec![("x-amz-meta-empty".to_owned(), String::new())]].concat(),
            })
        );
        assert_eq!(described(""), Some(Described::default()));
        for wrong in ["filename ???", "filename YQ", "filename /w=="] {
            assert_eq!(described(wrong), None, "{wrong}");
        }
        // What cannot stand in a header is not kept.
        assert_eq!(described("a Cg==,b\u{fc} YQ=="), Some(Described::default()));
    }
}
