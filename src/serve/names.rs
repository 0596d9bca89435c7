//! Listings and deletions.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;

use super::conditional::{Outcome, Validators, evaluate};
use super::connection::{Broken, Connection, Next, Request};
use super::problem::Problem;
use super::target::Target;
use crate::store::{Listed, Object, State};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

#[derive(Serialize)]
struct ListingBody<'a> {
    bucket: &'a str,
    objects: Vec<Entry>,
    prefixes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize)]
struct Entry {
    key: String,
    state: State,
    generation: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    modified: String,
}

#[derive(Serialize)]
struct BucketsBody {
    buckets: Vec<String>,
}

/// The entity tag of an object that is whole, or will be. What an interrupted one holds may still be continued.
pub(super) fn etag_of(object: &Object) -> Option<String> {
    (object.state() != State::Interrupted).then(|| object.etag())
}

fn entry(listed: Listed) -> Entry {
    Entry {
        state: listed.state,
        generation: listed.generation,
        length: listed.length,
        etag: listed.etag(),
        modified: humantime::format_rfc3339_millis(listed.modified()).to_string(),
        key: listed.key,
    }
}

/// `GET /{bucket}/`.
pub(super) async fn list(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let Target::Bucket { bucket, query } = &request.head.target else {
        unreachable!("a listing is of a bucket");
    };
    let page = match connection.here.local.list(&request.context, bucket, query).await {
        Ok(page) => page,
        Err(error) => return connection.reply_problem(request, &Problem::from(error)).await,
    };
    let body = ListingBody {
        bucket,
        objects: page.entries.into_iter().map(entry).collect(),
        prefixes: page.prefixes,
        next: page.next,
    };
    reply_json(connection, request, &body).await
}

/// `GET /`.
pub(super) async fn buckets(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let body = match connection.here.local.buckets(&request.context).await {
        Ok(buckets) => BucketsBody { buckets },
        Err(error) => return connection.reply_problem(request, &Problem::from(error)).await,
    };
    reply_json(connection, request, &body).await
}

async fn reply_json(
    connection: &mut Connection,
    request: &Request,
    body: &impl Serialize,
) -> Result<Next, Broken> {
    if request.head.framing.has_body() {
        let problem = Problem::bad_request("a GET has no body here").closing();
        return connection.reply_problem(request, &problem).await;
    }
    match serde_json::to_vec(body) {
        Ok(mut text) => {
            text.push(b'\n');
            connection.reply(request, StatusCode::OK, &[(CONTENT_TYPE, JSON)], &text).await
        }
        Err(error) => connection.reply_problem(request, &Problem::internal(error.to_string())).await,
    }
}

/// `DELETE /{bucket}/{key}`.
pub(super) async fn delete(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let Target::Object { name, .. } = &request.head.target else { unreachable!("only objects are deleted") };
    if request.head.framing.has_body() {
        let problem = Problem::bad_request("a DELETE has no body").closing();
        return connection.reply_problem(request, &problem).await;
    }
    let local = connection.here.local.clone();
    let object = match local.find(&request.context, name).await {
        Ok(object) => object,
        Err(error) => return connection.reply_problem(request, &Problem::from(error)).await,
    };
    let etag = object.as_deref().and_then(etag_of);
    let validators = Validators {
        etag: etag.as_deref(),
        modified: object.as_ref().map(|object| object.modified()),
        exists: object.is_some(),
    };
    if object.is_some() && evaluate(&Method::DELETE, &request.head.headers, &validators) != Outcome::Proceed {
        let problem = Problem::precondition_failed("the object is not what the condition says");
        return connection.reply_problem(request, &problem).await;
    }
    match local.delete(&request.context, name).await {
        Ok(()) => connection.reply(request, StatusCode::NO_CONTENT, &[], b"").await,
        Err(error) => connection.reply_problem(request, &Problem::from(error)).await,
    }
}
