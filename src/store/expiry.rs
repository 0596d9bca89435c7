//! Unfinished tus uploads go when nobody has gone on with them for long: that is what their clients were told
//! (`Upload-Expires`). Nothing else that is unfinished is ever deleted by itself.
//!
//! Only what the catalog shows as interrupted is looked at, in one walk over all objects each hour at most, a part of
//! it at a time, so that look-ups come in between.

use std::rc::Rc;
use std::time::Duration;

use super::catalog::CreateDocument;
use super::catalog::database::Place;
use super::local::LocalStore;
use super::name::Name;
use super::object::{State, microseconds};
use super::reclaim::inspect;
use crate::context::Context;
use crate::error::Result;

/// How long it rests between two walks, at most.
const REST_MAX: Duration = Duration::from_secs(60 * 60);
/// How many rows of the catalog are looked at a time.
const ROWS_AT_A_TIME: usize = 4096;

/// Deletes uploads that have expired, until the store comes to an end.
pub(super) async fn expire_uploads(local: Rc<LocalStore>, expiry: Duration) {
    loop {
        local.core().sleep(expiry.min(REST_MAX)).await;
        if let Err(error) = walk(&local, expiry).await {
            tracing::warn!(%error, "unfinished uploads that have expired could not be deleted");
        }
    }
}

async fn walk(local: &Rc<LocalStore>, expiry: Duration) -> Result<()> {
    let expired_before = microseconds(local.core().wall_clock()).saturating_sub(expiry.as_micros() as u64);
    let mut from = Some(Place::default());
    while let Some(place) = from.take() {
        let (interrupted, next) =
            inspect(local, move |view| view.interrupted(&place, ROWS_AT_A_TIME)).await?;
        from = next;
        for (place, row) in interrupted {
            let is_tus = serde_json::from_slice::<CreateDocument>(&row.document)
                .is_ok_and(|document| document.metadata.tus.is_some());
            if !is_tus || row.modified_microseconds >= expired_before {
                continue;
            }
            let Ok(name) = Name::new(&place.bucket, &String::from_utf8_lossy(&place.key)) else { continue };
            delete(local, &name, row.generation).await?;
        }
    }
    Ok(())
}

/// Deletes an upload, unless somebody has gone on with it.
async fn delete(local: &Rc<LocalStore>, name: &Name, generation: u64) -> Result<()> {
    let context = Context::background();
    let Some(object) = local.find_upload(&context, name, Some(generation)).await? else { return Ok(()) };
    if object.state() == State::Interrupted {
        tracing::info!(object = %name, generation, "an unfinished upload has expired");
        local.delete_objects(&context, vec![object]).await?;
        local.metrics().uploads_expired.increment();
    }
    Ok(())
}
