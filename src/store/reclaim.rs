//! Room that comes back.
//!
//! - The bytes of a deleted object are punched out of its segments, when nobody reads them any more.
//! - What must be remembered of deletions is logged again where it is all that keeps a segment from being used again.
//! - When room is short, what is alive in a segment of which little is alive is copied into the log, and the segment is
//!   used again.
//! - What its bucket's retention no longer keeps is deleted, the one that was sealed first before the others.
//!
//! All of this runs on one core, beside its other work, and can be cut off at any place: a copy counts only when the
//! catalog has it, and what is left comes up again.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::catalog::database::{SegmentFill, View};
use super::catalog::{Dead, Read, SegmentUse};
use super::commits::Note;
use super::local::LocalStore;
use super::name::Name;
use super::object::{Object, microseconds};
use super::recover::change;
use crate::config::{Retention, RetentionRule};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::format::{ALIGNMENT, RecordKind};
use crate::log::{RecoveredRecord, Space, records_in};
use crate::ring::OpenMode;
use crate::runtime::{Receiver, channel};

/// How long it rests between two looks.
const REST: Duration = Duration::from_secs(5);
/// Segments for which there must be room, without making any of those in use again; below that room is short.
const SEGMENTS_AHEAD: u64 = 4;
/// A segment is copied from when less than this share of it is alive, in percent.
const ALIVE_PERCENT_MAX: u64 = 50;
/// How many sealed objects of a bucket are looked at a time.
const SEALED_AT_A_TIME: usize = 256;

/// Gives dead parts of segments back to the file system, until nobody can name any more. What is not given back here,
/// such as after a crash, comes back with the whole segment.
pub(super) async fn give_back(local: Rc<LocalStore>, mut dead: Receiver<Vec<Dead>>) {
    while let Some(parts) = dead.receive().await {
        for part in parts {
            let number = part.segment.number();
            if let Err(errno) = punch(&local, &part).await {
                tracing::debug!(segment = number, %errno, "room in a segment could not be given back");
            }
        }
    }
}

async fn punch(local: &LocalStore, dead: &Dead) -> std::result::Result<(), Errno> {
    let alignment = ALIGNMENT as u64;
    let mut file = None;
    for &(position, length) in &dead.ranges {
        let (start, end) =
            (position.next_multiple_of(alignment), (position + length) / alignment * alignment);
        if start >= end {
            continue;
        }
        let file = match &file {
            Some(file) => file,
            None => {
                let path = Space::path(local.segment_folder(), dead.segment.number());
                file.insert(local.core().open(&path, OpenMode::WriteBuffered).await?)
            }
        };
        local.core().punch(file, start, end - start).await?;
        local.metrics().punched_bytes.add(end - start);
    }
    Ok(())
}

/// Looks after room and retention, until the store comes to an end.
pub(super) async fn look_after(local: Rc<LocalStore>, retention: Retention) {
    loop {
        for rule in &retention.rules {
            if let Err(error) = expire(&local, rule).await {
                tracing::warn!(bucket = %rule.bucket, %error, "retention could not be kept");
            }
        }
        if let Err(error) = reclaim(&local).await {
            tracing::debug!(%error, "room could not be reclaimed");
        }
        for core in 0..local.shared().cores() {
            local.shared().call(core, |local| local.look_for_room());
        }
        local.core().sleep(REST).await;
    }
}

/// Asks the catalog anything.
async fn inspect<T: Send + 'static>(
    local: &LocalStore,
    look: impl FnOnce(&View) -> Result<T> + Send + 'static,
) -> Result<T> {
    local.shared().ask(|answer| Read::Inspect(Box::new(move |view| answer.send(view.and_then(look))))).await
}

// Retention.

/// Deletes what a rule no longer keeps.
async fn expire(local: &Rc<LocalStore>, rule: &RetentionRule) -> Result<()> {
    let context = Context::background();
    let buckets = match rule.bucket.as_str() {
        "*" => local.buckets(&context).await?,
        bucket => vec![bucket.to_owned()],
    };
    for bucket in buckets {
        while expire_some(local, rule, &bucket).await? == SEALED_AT_A_TIME {}
    }
    Ok(())
}

/// Looks at the objects that were sealed first, and answers how many it has deleted.
async fn expire_some(local: &Rc<LocalStore>, rule: &RetentionRule, bucket: &str) -> Result<usize> {
    let asked = bucket.to_owned();
    let (stored_bytes, stored) = inspect(local, move |view| {
        Ok((view.bucket_totals(&asked)?.1, view.oldest_sealed(&asked, SEALED_AT_A_TIME)?))
    })
    .await?;
    let news = local.shared().namespace().sealed(bucket);
    let mut bytes = stored_bytes + news.iter().map(|object| object.committed()).sum::<u64>();
    let mut oldest: Vec<(u64, u64, String, u64)> = stored
        .into_iter()
        .map(|sealed| (sealed.sealed_microseconds, sealed.generation, sealed.key, sealed.length))
        .collect();
    // What the catalog does not know yet is newer than what it knows, but for what was sealed on another core.
    oldest.extend(news.iter().map(|object| {
        let key = object.name().key().to_owned();
        (object.modified_microseconds(), object.generation(), key, object.committed())
    }));
    oldest.sort_unstable();
    oldest.truncate(SEALED_AT_A_TIME);
    let now = microseconds(local.core().wall_clock());
    let mut expired = 0;
    for (sealed_microseconds, generation, key, length) in oldest {
        let is_too_old = rule.age.is_some_and(|age| sealed_microseconds + age.as_micros() as u64 <= now);
        let is_too_much = rule.bytes.is_some_and(|limit| bytes > limit);
        if !is_too_old && !is_too_much {
            break;
        }
        let name = Name::new(bucket, &key)?;
        if local.delete_sealed(&name, generation).await? {
            tracing::info!(object = %name, generation, "retention has deleted an object");
            local.metrics().objects_expired.increment();
        }
        bytes = bytes.saturating_sub(length);
        expired += 1;
    }
    Ok(expired)
}

// Segments.

async fn reclaim(local: &Rc<LocalStore>) -> Result<()> {
    let fills = inspect(local, View::fills).await?;
    // Only deletions of what lies elsewhere keep these.
    for fill in fills.iter().filter(|fill| fill.live_records == 0 && fill.tombstones > 0) {
        move_tombstones(local, fill.segment.number).await?;
    }
    if !local.is_room_short(SEGMENTS_AHEAD) {
        return Ok(());
    }
    let segment_bytes = local.segment_bytes();
    let victim = fills
        .into_iter()
        .filter(|fill| fill.live_records > 0 && fill.live_bytes < segment_bytes * ALIVE_PERCENT_MAX / 100)
        .min_by_key(|fill| fill.live_bytes);
    match victim {
        Some(victim) => copy_out(local, victim).await,
        None => Ok(()),
    }
}

async fn move_tombstones(local: &Rc<LocalStore>, segment: u64) -> Result<()> {
    let generations = inspect(local, move |view| view.tombstones_in(segment)).await?;
    for generation in generations {
        local.log_tombstone(generation, segment).await?;
    }
    Ok(())
}

/// Copies what is alive in a segment to the end of the log. The segment is empty when the catalog has the copies.
async fn copy_out(local: &Rc<LocalStore>, victim: SegmentFill) -> Result<()> {
    let number = victim.segment.number;
    tracing::info!(
        segment = number,
        live_bytes = victim.live_bytes,
        "room is short: a segment is copied out"
    );
    let records = records_in(local.core(), local.space(), number, victim.segment.epoch).await?;
    let (alive, records) = inspect(local, move |view| {
        let alive =
            records.iter().map(|record| is_alive(view, number, record)).collect::<Result<Vec<_>>>()?;
        Ok((alive, records))
    })
    .await?;
    let mut left_alone = HashSet::new();
    let mut copied: BTreeMap<u64, Arc<Object>> = BTreeMap::new();
    for (record, name) in records.into_iter().zip(alive) {
        let Some(name) = name else { continue };
        let generation = record.header.generation;
        if left_alone.contains(&generation) {
            continue;
        }
        let object = local.find_generation(&name, generation).await?;
        // What is still being written, or was deleted meanwhile, stays where it is.
        let Some(object) = object.filter(|object| object.is_stored() && !object.is_deleted()) else {
            left_alone.insert(generation);
            continue;
        };
        copy(local, victim.segment, &object, &record).await?;
        copied.insert(generation, object);
    }
    move_tombstones(local, number).await?;
    local.cut_batch();
    catalog_is_caught_up(local).await;
    // Who looks them up from now on finds the copies; the caches would keep the segment.
    copied.values().for_each(|object| local.forget_cached(object));
    local.metrics().segments_copied.increment();
    Ok(())
}

/// The name of the object that needs this record here, if one does.
fn is_alive(view: &View, segment: u64, record: &RecoveredRecord) -> Result<Option<Name>> {
    let header = record.header;
    let Some((bucket, key)) = view.name(header.generation)? else { return Ok(None) };
    let is_needed = match header.kind {
        RecordKind::Create => {
            view.segments_of(header.generation)?.is_some_and(|(create, _)| create == segment)
        }
        RecordKind::Seal => view.segments_of(header.generation)?.is_some_and(|(_, seal)| seal == segment),
        RecordKind::Append | RecordKind::Frame => {
            let found = view.extents(header.generation, header.offset, 1)?;
            found.first().is_some_and(|(extent, _)| {
                extent.segment == segment
                    && extent.position == record.position
                    && extent.offset == header.offset
            })
        }
        RecordKind::Interrupt | RecordKind::Delete => false,
    };
    Ok(if is_needed { Some(Name::new(&bucket, &key)?) } else { None })
}

async fn copy(
    local: &Rc<LocalStore>,
    victim: SegmentUse,
    object: &Arc<Object>,
    record: &RecoveredRecord,
) -> Result<()> {
    let damaged = |message: String| Error::new(Kind::Damaged, message);
    if !record.is_whole {
        let (name, position) = (object.name(), record.position);
        return Err(damaged(format!("{name} is damaged at position {position}: it is left where it is")));
    }
    let segment = local.space().segment(victim.number, victim.epoch);
    let file = local.file(&segment).await?;
    let length = record.header.length as usize;
    let (read, payload) = local.core().read(&file, record.position, vec![0; length], 0).await;
    match read {
        Ok(count) if count == length => {}
        Ok(_) => return Err(damaged(format!("segment {} is too short", victim.number))),
        Err(errno) => return Err(Error::device(format!("cannot read segment {}", victim.number), errno)),
    }
    let change = change(&record.header, record.position, &payload).map_err(damaged)?;
    let copied = object.clone();
    local
        .log_copy(record.header, &payload, move || Note::Copy {
            object: copied.clone(),
            change: change.clone(),
        })
        .await
}

/// Waits until the catalog has everything that it was told.
async fn catalog_is_caught_up(local: &LocalStore) {
    let (done, mut is_done) = channel();
    local.shared().enter(super::catalog::Write::Flush(done));
    let _ = is_done.receive().await;
}
