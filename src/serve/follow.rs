//! GET and HEAD of an object: what is there, or all of it as it comes.
//!
//! | the object | asked for | answered |
//! | --- | --- | --- |
//! | sealed, or interrupted | | what is kept, with its length; 206, 416 and 304 as RFC 9110 has them |
//! | live | no range, or `bytes=0-` | 200, followed to the real end: chunked, or with the declared length |
//! | live | `from=live` | the same from the watermark on |
//! | live | `follow=0` | what is committed now, with its length |
//! | live | `bytes=N-M` within the declared length, or committed already | 206, sent as it arrives |
//! | live | `bytes=N-M` beyond what is committed, no declared length | 206 up to the watermark, `/*`; with a very large M (RFC 8673) followed to the end |
//! | live | `bytes=N-` | 206: to the declared length, or up to the watermark with `/*` |

use std::pin::pin;
use std::sync::Arc;

use http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::conditional::{Outcome, Validators, evaluate, range_applies};
use super::connection::{Broken, Connection, Next, Request};
use super::names::etag_of;
use super::problem::Problem;
use super::range::{Requested, Resolved, content_range, content_range_as_written, unsatisfied_range};
use super::reply::{Body, Delimited, last_modified, stored_header};
use super::server::within;
use super::target::{ObjectQuery, Target};
use super::transfer::{Ended, send_body};
use crate::error::Kind;
use crate::runtime::{Either, race};
use crate::store::{Object, State};

const TAILWATER_STATE: HeaderName = HeaderName::from_static("tailwater-state");
const TAILWATER_COMMITTED: HeaderName = HeaderName::from_static("tailwater-committed");
/// A last position from here on means "as far as it will ever go": RFC 8673, section 2.
const VERY_LARGE: u64 = (1 << 53) - 1;

/// What is to be sent.
struct Plan {
    status: StatusCode,
    start: u64,
    /// How many bytes; none where only the object's end will tell.
    length: Option<u64>,
    content_range: Option<HeaderValue>,
}

impl Plan {
    fn whole(start: u64, length: Option<u64>) -> Plan {
        Plan { status: StatusCode::OK, start, length, content_range: None }
    }

    fn part(first: u64, last: u64, total: Option<u64>) -> Plan {
        Plan {
            status: StatusCode::PARTIAL_CONTENT,
            start: first,
            length: Some(last - first + 1),
            content_range: Some(content_range(first, last, total)),
        }
    }
}

pub(super) async fn answer(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let head = &request.head;
    let Target::Object { name, query } = &head.target else { unreachable!("only objects are read") };
    if head.framing.has_body() {
        let problem = Problem::bad_request("a GET has no body here").closing();
        return connection.reply_problem(request, &problem).await;
    }
    let found = match find(connection, request, query).await? {
        Ok(found) => found,
        Err(error) => return connection.reply_problem(request, &Problem::from(error)).await,
    };
    let Some(object) = found else {
        let problem = Problem::not_found(format!("there is no object {name}"));
        return connection.reply_problem(request, &problem).await;
    };
    // The state first: once it is not live, the watermark is final.
    let state = object.state();
    let committed = object.committed();
    let etag = etag_of(&object);
    let validators = Validators {
        etag: etag.as_deref(),
        modified: (state != State::Live).then(|| object.modified()),
        exists: true,
    };
    let is_get = head.method == Method::GET;
    let mut headers = headers_of(&object, state, committed, etag.as_deref(), query);
    match evaluate(&head.method, &head.headers, &validators) {
        // Nobody can have all of what is still being written.
        Outcome::NotModified if state == State::Live => {}
        Outcome::Proceed => {}
        Outcome::NotModified => {
            headers.retain(|(name, _)| *name != CONTENT_TYPE);
            return connection.reply(request, StatusCode::NOT_MODIFIED, &headers, b"").await;
        }
        Outcome::PreconditionFailed => {
            let problem = Problem::precondition_failed("the object is not what the condition says");
            return connection.reply_problem(request, &problem).await;
        }
    }
    let requested = match is_get && range_applies(&head.headers, &validators) {
        true => Requested::from_headers(&head.headers),
        false => Requested::Whole,
    };
    let plan = match state {
        State::Live => plan_live(&requested, committed, object.metadata().declared_length, query),
        _ => plan_fixed(&requested, committed),
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(unsatisfied) => {
            let problem = Problem::range_not_satisfiable(unsatisfied);
            return connection.reply_problem(request, &problem).await;
        }
    };
    if let Some(content_range) = plan.content_range.clone() {
        headers.push((CONTENT_RANGE, content_range));
    }
    send(connection, request, object, plan, &headers).await
}

async fn find(
    connection: &Connection,
    request: &Request,
    query: &ObjectQuery,
) -> Result<crate::error::Result<Option<Arc<Object>>>, Broken> {
    let Target::Object { name, .. } = &request.head.target else { return Ok(Ok(None)) };
    let local = &connection.here.local;
    match local.find(&request.context, name).await {
        Ok(None) => {}
        found => return Ok(found),
    }
    let Some(wait) = query.wait.filter(|wait| !wait.is_zero()) else { return Ok(Ok(None)) };
    let operation = request.context.with_deadline(local.core().now() + wait);
    let begun = local.find_when_begun(&operation, name);
    let mut waited = pin!(race(begun, connection.here.drained(true)));
    let waited = match race(waited.as_mut(), connection.stream.peer_finished()).await {
        Either::First(waited) => waited,
        // A client may finish sending and wait for its answer all the same.
        // One that has left looks the same, so it gets no more time than an idle connection.
        Either::Second(Ok(())) if connection.stream.is_connected() => {
            let idle_seconds = connection.here.config().idle_seconds;
            match within(&connection.here, idle_seconds, waited.as_mut()).await {
                Ok(waited) => waited,
                Err(_) => return Ok(Ok(None)),
            }
        }
        Either::Second(_) => return Err(Broken::Gone),
    };
    Ok(match waited {
        Either::First(Err(error)) if error.kind() == Kind::DeadlineExceeded => Ok(None),
        Either::First(object) => object.map(Some),
        Either::Second(()) => Ok(None),
    })
}

fn headers_of(
    object: &Object,
    state: State,
    committed: u64,
    etag: Option<&str>,
    query: &ObjectQuery,
) -> Vec<(HeaderName, HeaderValue)> {
    let metadata = object.metadata();
    let mut headers = Vec::with_capacity(8 + metadata.user.len());
    let kind = metadata.content_type.as_deref().unwrap_or("application/octet-stream");
    headers.extend(stored_header(CONTENT_TYPE.as_str(), kind));
    headers.push((ACCEPT_RANGES, HeaderValue::from_static("bytes")));
    headers.push((TAILWATER_STATE, HeaderValue::from_static(state.as_str())));
    headers.push((TAILWATER_COMMITTED, HeaderValue::from(committed)));
    // What is committed now is not what the tag stands for.
    if let Some(etag) = etag
        && (state == State::Sealed || query.follow)
    {
        headers.extend(stored_header(ETAG.as_str(), etag));
    }
    if state != State::Live {
        headers.push((LAST_MODIFIED, last_modified(object.modified())));
    }
    // What is not the whole object must not be taken for it later.
    if state == State::Interrupted || (state == State::Live && !query.follow) {
        headers.push((CACHE_CONTROL, HeaderValue::from_static("no-store")));
    } else if let Some(cache_control) = &metadata.cache_control {
        headers.extend(stored_header(CACHE_CONTROL.as_str(), cache_control));
    } else if state == State::Live {
        headers.push((CACHE_CONTROL, HeaderValue::from_static("no-cache")));
    }
    for (name, value) in &metadata.user {
        headers.extend(stored_header(name, value));
    }
    headers
}

/// For an object that no longer changes.
fn plan_fixed(requested: &Requested, length: u64) -> Result<Plan, HeaderValue> {
    match requested.resolve(length) {
        Resolved::Whole => Ok(Plan::whole(0, Some(length))),
        Resolved::Satisfiable { first, last } => Ok(Plan::part(first, last, Some(length))),
        Resolved::Unsatisfiable => Err(unsatisfied_range(length)),
    }
}

/// For an object that is being written.
fn plan_live(
    requested: &Requested,
    committed: u64,
    declared: Option<u64>,
    query: &ObjectQuery,
) -> Result<Plan, HeaderValue> {
    if !query.follow {
        return plan_fixed(requested, committed);
    }
    if query.from_live {
        return Ok(Plan::whole(committed, declared.map(|declared| declared.saturating_sub(committed))));
    }
    if let Some(declared) = declared {
        return match requested {
            Requested::From(0) => Ok(Plan::whole(0, Some(declared))),
            requested => plan_fixed(requested, declared),
        };
    }
    match requested {
        Requested::Whole | Requested::Several | Requested::Suffix(_) | Requested::From(0) => {
            Ok(Plan::whole(0, None))
        }
        Requested::Span { first, last, last_text } if *last >= VERY_LARGE => Ok(Plan {
            status: StatusCode::PARTIAL_CONTENT,
            start: *first,
            length: None,
            content_range: Some(content_range_as_written(*first, last_text, None)),
        }),
        Requested::From(first) | Requested::Span { first, .. } if *first >= committed => {
            Err(unsatisfied_range(committed))
        }
        Requested::From(first) => Ok(Plan::part(*first, committed - 1, None)),
        Requested::Span { first, last, .. } => Ok(Plan::part(*first, (*last).min(committed - 1), None)),
    }
}

async fn send(
    connection: &mut Connection,
    request: &Request,
    object: Arc<Object>,
    plan: Plan,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<Next, Broken> {
    let mut out = Vec::with_capacity(512);
    if request.head.method == Method::HEAD {
        let body = plan.length.map_or(Body::Absent, Body::Length);
        let committed = connection.reply_head(request, plan.status, headers, body, &mut out);
        connection.send(&out, false).await?;
        return Ok(if committed.keep_alive { Next::Request } else { Next::Close });
    }
    let is_live = object.state() == State::Live;
    let body = plan.length.map_or(Body::Unknown, Body::Length);
    let committed = connection.reply_head(request, plan.status, headers, body, &mut out);
    // Until its end was told, a body that ends with the connection must not look whole: not when the writer goes
    // away, not when this task is dropped.
    let ends_with_connection = committed.delimited == Delimited::Close;
    if ends_with_connection {
        connection.stream.set_reset_on_close(true);
    }
    let local = connection.here.local.clone();
    let _follower = is_live.then(|| Follower::new(&local));
    let mut reader = local.read(object, plan.start);
    let (length, delimited) = (plan.length, committed.delimited);
    let ended = send_body(connection, &request.context, &mut reader, length, delimited, &out).await?;
    match ended {
        Ended::Whole => {
            if ends_with_connection {
                connection.stream.set_reset_on_close(false);
            }
            Ok(if committed.keep_alive { Next::Request } else { Next::Close })
        }
        Ended::Interrupted => {
            tracing::info!(object = %reader.object().name(), "the writer went away: a follower gets no clean end");
            Err(Broken::Gone)
        }
    }
}

/// Counts a follower for as long as it follows.
struct Follower {
    local: std::rc::Rc<crate::store::LocalStore>,
}

impl Follower {
    fn new(local: &std::rc::Rc<crate::store::LocalStore>) -> Follower {
        local.metrics().followers.increment();
        Follower { local: local.clone() }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.local.metrics().followers.decrement();
    }
}
