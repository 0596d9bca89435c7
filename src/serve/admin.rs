//! The admin listener: `/livez`, `/readyz`, `/metrics`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};

use super::connection::{Broken, Connection, Next, Request};
use super::problem::Problem;
use crate::error::Kind;
use crate::metrics::{self, Snapshot};
use crate::runtime::channel;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

pub(super) async fn answer(connection: &mut Connection, request: &Request) -> Result<Next, Broken> {
    let head = &request.head;
    if head.framing.has_body() {
        let problem = Problem::bad_request("the admin listener takes no bodies").closing();
        return connection.reply_problem(request, &problem).await;
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        let problem = Problem::method_not_allowed(&head.method, "GET, HEAD");
        return connection.reply_problem(request, &problem).await;
    }
    let (status, kind, text) = match head.path.as_str() {
        "/livez" => (StatusCode::OK, TEXT, "live\n".to_owned()),
        "/readyz" => match readiness(connection).await {
            Ok(()) => (StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => {
            let snapshot = snapshot(connection).await;
            let text = metrics::render(&snapshot, connection.here.shared.started);
            (StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), text)
        }
        _ => {
            let problem = Problem::not_found("the admin listener answers /livez, /readyz and /metrics");
            return connection.reply_problem(request, &problem).await;
        }
    };
    connection.reply(request, status, &[(CONTENT_TYPE, kind)], text.as_bytes()).await
}

async fn readiness(connection: &Connection) -> Result<(), String> {
    if connection.here.is_draining() {
        return Err("draining".to_owned());
    }
    let shared = connection.here.local.shared();
    let (sender, mut failures) = channel();
    for core in 0..shared.cores() {
        let sender = sender.clone();
        shared.call(core, move |local| sender.send(local.failure()));
    }
    drop(sender);
    while let Some(failure) = failures.receive().await {
        if let Some(error) = failure {
            return Err(format!("read-only: {error}"));
        }
    }
    // For want of room nobody is turned away before the request: it may be for what makes room.
    match shared.catalog_trouble().filter(|error| error.kind() != Kind::NoSpace) {
        Some(error) => Err(format!("the catalog cannot be written: {error}")),
        None => Ok(()),
    }
}

/// The metrics of all cores together.
async fn snapshot(connection: &Connection) -> Snapshot {
    let here = &connection.here.local;
    let shared = here.shared();
    let (sender, mut snapshots) = channel();
    for core in (0..shared.cores()).filter(|&core| core != here.core().index()) {
        let sender = sender.clone();
        shared.call(core, move |local| sender.send(local.snapshot()));
    }
    drop(sender);
    let mut sum = here.snapshot();
    while let Some(snapshot) = snapshots.receive().await {
        sum.merge(&snapshot);
    }
    sum
}
