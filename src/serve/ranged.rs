//! PUT with `Content-Range`: a body is a part of an object, and the parts come in order (RFC 9110, section 14.5).
//!
//! | `Content-Range` | what is done |
//! | --- | --- |
//! | `bytes 0-b/*` | begins a generation |
//! | `bytes a-b/*` | goes on with the newest one that is not complete, if that has `a` bytes; otherwise 409 |
//! | `bytes a-b/total` | the same, and with the last of `total` bytes the object is complete |
//! | `bytes */total`, no body | completes an object of `total` bytes |
//!
//! GStreamer's `souphttpclientsink` sends the first part without a `Content-Range`, and never says that it has sent
//! the last one: its first PUT is taken as `bytes 0-b/*`.

use http::header::{CONTENT_RANGE, USER_AGENT};
use http::{Method, StatusCode};

use super::body::{Failed, receive};
use super::connection::{Connection, Next, Request};
use super::head::{Framing, Head};
use super::ingest::{begin, declared_length, go_on, metadata_of, reply_object};
use super::problem::Problem;
use super::target::Target;
use super::uploads::{UPLOAD_OFFSET, find, resume, wrong_offset};
use crate::store::State;

const GSTREAMER: &str = "GStreamer souphttpclientsink";

/// Which part of an object a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it begins.
    offset: u64,
    length: u64,
    /// How long the object is going to be.
    total: Option<u64>,
}

/// The part that a PUT says it has. None: it has all of the object.
pub(super) fn part_of(head: &Head) -> Option<Result<Part, Problem>> {
    if head.method != Method::PUT {
        return None;
    }
    let mut values = head.headers.get_all(CONTENT_RANGE).iter();
    let part = match (values.next(), values.next()) {
        (None, _) => {
            let agent = head.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
            let is_gstreamer = agent.is_some_and(|agent| agent.starts_with(GSTREAMER));
            return match head.framing {
                Framing::Length(length) if is_gstreamer => Some(Ok(Part { offset: 0, length, total: None })),
                _ => None,
            };
        }
        (Some(value), None) => value.to_str().ok().and_then(parse),
        (Some(_), Some(_)) => None,
    };
    let malformed =
        || Problem::bad_request("Content-Range is bytes FIRST-LAST/TOTAL, with * for a total not known");
    let Some(part) = part else { return Some(Err(malformed())) };
    Some(match head.framing {
        Framing::Length(length) if length != part.length => Err(Problem::bad_request(format!(
            "Content-Range says {} bytes, and Content-Length {length}",
            part.length
        ))),
        Framing::Length(_) => Ok(part),
        _ => Err(Problem::length_required()),
    })
}

fn parse(text: &str) -> Option<Part> {
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number
            .then(|| digits.parse::<u64>().ok().filter(|&number| number < super::head::BODY_LENGTH_MAX))?
    };
    let (unit, range) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (span, total) = range.trim_start().split_once('/')?;
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    if span == "*" {
        return Some(Part { offset: total?, length: 0, total });
    }
    let (first, last) = span.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let is_part = first <= last && total.is_none_or(|total| last < total);
    is_part.then(|| Part { offset: first, length: last - first + 1, total })
}

pub(super) async fn put(connection: &mut Connection, request: &Request, part: Part) -> Result<Next, Failed> {
    let Target::Object { name, .. } = &request.head.target else { unreachable!("only objects are written") };
    declared_length(request)?;
    let window = connection.here.config().resume_window.resumable(name.bucket());
    let is_first = part.offset == 0 && part.length > 0;
    let mut writer = if is_first {
        let metadata = metadata_of(&request.head.headers, part.total)?;
        let mut writer = begin(connection, request, name, metadata).await?;
        writer.set_window(window);
        writer
    } else {
        let Some(object) = find(connection, request, name, None).await? else {
            let detail = format!(
                "no upload to {name} was begun that this could go on with; the first part begins at 0"
            );
            return Err(Problem::conflict(detail).with(UPLOAD_OFFSET, 0.into()).into());
        };
        resume(connection, request, name, object.generation()).await?
    };
    if writer.offset() != part.offset {
        return Err(wrong_offset(writer.offset(), part.offset).into());
    }
    if let Some(total) = part.total {
        writer.declare_length(&request.context, total).await?;
    }
    go_on(connection, request).await?;
    receive(connection, request, &mut writer).await?;
    let object = writer.object().clone();
    if writer.declared_length() == Some(writer.offset()) {
        writer.seal(&request.context).await?;
    } else {
        writer.acknowledged(&request.context).await?;
        drop(writer);
    }
    let status =
        if is_first || object.state() == State::Sealed { StatusCode::CREATED } else { StatusCode::OK };
    Ok(reply_object(connection, request, status, &object, vec![(UPLOAD_OFFSET, object.committed().into())])
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let part = |offset, length, total| Some(Part { offset, length, total });
        for (text, expected) in [
            ("bytes 0-9/*", part(0, 10, None)),
            ("Bytes 10-10/11", part(10, 1, Some(11))),
            ("bytes */11", part(11, 0, Some(11))),
            ("bytes */*", None),
            ("bytes 9-0/*", None),
            ("bytes 0-9/9", None),
            ("bytes=0-9/10", None),
            ("bytes 0-9", None),
            ("bytes -9/10", None),
            ("bytes 0-99999999999999999999/*", None),
            ("bytes +0-9/*", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
