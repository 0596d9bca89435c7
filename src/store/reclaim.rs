//! Room that comes back.
//!
//! - The bytes of a deleted object are punched out of its segments, when nobody reads them any more.
//! - What must be remembered of deletions is logged again where it is all that keeps a segment from being used again.
//! - When room is short, what is alive in a segment is copied into the log, where that is little beside what the segment
//!   takes of the disk, and the segment is used again. On a full disk the copies go to the reserve, which gets the room
//!   of the segment before anybody else does.
//! - What its bucket's retention no longer keeps is deleted, the one that was sealed first before the others.
//!
//! All of this runs on one core, beside its other work, and can be cut off at any place: a copy counts only when the
//! catalog has it, and what is left comes up again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::catalog::database::{SegmentFill, View};
use super::catalog::{Dead, Read, SegmentUse};
use super::local::{Copy, LocalStore};
use super::name::Name;
use super::object::{Object, microseconds};
use super::recover::change;
use crate::config::{Retention, RetentionRule};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::log::format::{ALIGNMENT, RecordKind, record_length};
use crate::log::{RecoveredRecord, Space, records_in};
use crate::ring::OpenMode;
use crate::runtime::{Either, Receiver, channel, race};

/// How long it rests between two looks.
const REST: Duration = Duration::from_secs(5);
/// Segments for which there must be room beside those that are kept prepared; below that room is short.
const SEGMENTS_AHEAD: u64 = 4;
/// How long it rests without a look at the room.
const NAP: Duration = Duration::from_secs(1);
/// How long it rests behind a segment while room is short.
const REST_WHEN_SHORT: Duration = Duration::from_millis(100);
/// A segment is copied from when less than this share of what it takes of the disk is alive, in percent.
const ALIVE_PERCENT_MAX: u64 = 50;
/// What a record takes beside its payload, about, in bytes.
const RECORD_BYTES: u64 = 48;
/// How many records are looked up at a time.
const RECORDS_AT_A_TIME: usize = 1024;
/// How much is read before it is logged, in bytes: copies that are logged together share blocks.
const COPY_BYTES: usize = 256 << 10;
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
    let mut looked_at = LookedAt::default();
    loop {
        for rule in &retention.rules {
            if let Err(error) = expire(&local, rule).await {
                tracing::warn!(bucket = %rule.bucket, %error, "retention could not be kept");
            }
        }
        let goes_on = reclaim(&local, &mut looked_at).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "room could not be reclaimed");
            false
        });
        for core in 0..local.shared().cores() {
            local.shared().call(core, |local| {
                local.cut_batch();
                local.look_for_room();
            });
        }
        local.core().sleep(REST_WHEN_SHORT).await;
        // What is dead in the meantime fills a small disk sooner than that.
        let mut rested = Duration::ZERO;
        while !goes_on && rested < REST {
            rested += NAP;
            let woken = race(local.core().sleep(NAP), local.room_is_wanted()).await;
            if matches!(woken, Either::Second(())) || local.is_room_short(SEGMENTS_AHEAD) {
                break;
            }
        }
    }
}

/// Asks the catalog anything.
pub(super) async fn inspect<T: Send + 'static>(
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

/// Segments that nothing is copied from.
#[derive(Default)]
struct LookedAt {
    /// As long as so many records are alive in them: it would gain too little.
    poor: HashMap<SegmentUse, u64>,
    /// Until it has rested: it was done, as far as that goes.
    done: HashSet<SegmentUse>,
}

/// Makes room. True: there may be more to be made at once.
async fn reclaim(local: &Rc<LocalStore>, looked_at: &mut LookedAt) -> Result<bool> {
    let fills = inspect(local, View::fills).await?;
    // Only deletions of what lies elsewhere keep these.
    for fill in fills.iter().filter(|fill| fill.live_records == 0 && fill.tombstones > 0) {
        move_tombstones(local, fill.segment.number).await?;
    }
    let alive: HashMap<_, _> = fills.iter().map(|fill| (fill.segment, fill.live_records)).collect();
    looked_at.poor.retain(|segment, live_records| alive.get(segment) == Some(live_records));
    let victim = match local.is_room_short(SEGMENTS_AHEAD) {
        true => find_victim(local, fills, looked_at).await?,
        false => None,
    };
    let Some((victim, allocated_bytes)) = victim else {
        looked_at.done.clear();
        return Ok(false);
    };
    looked_at.done.insert(victim.segment);
    if !copy_out(local, victim, allocated_bytes).await? {
        looked_at.poor.insert(victim.segment, victim.live_records);
    }
    Ok(true)
}

/// Whether so much that is alive is little beside what its segment takes of the disk.
fn is_little(alive_bytes: u64, allocated_bytes: u64) -> bool {
    alive_bytes * 100 < allocated_bytes * ALIVE_PERCENT_MAX
}

/// The segment with the least that is alive, among those that are worth it; and how much of the disk it takes.
async fn find_victim(
    local: &LocalStore,
    mut fills: Vec<SegmentFill>,
    looked_at: &LookedAt,
) -> Result<Option<(SegmentFill, u64)>> {
    let alive_bytes =
        |fill: &SegmentFill| fill.live_bytes + (fill.live_records + fill.tombstones) * RECORD_BYTES;
    fills.retain(|fill| {
        let is_worth_a_look = fill.live_records > 0 && is_little(alive_bytes(fill), local.segment_bytes());
        let was_looked_at =
            looked_at.poor.contains_key(&fill.segment) || looked_at.done.contains(&fill.segment);
        is_worth_a_look && !was_looked_at
    });
    fills.sort_unstable_by_key(alive_bytes);
    for fill in fills {
        let segment = local.space().segment(fill.segment.number, fill.segment.epoch);
        let file = local.file(&segment).await?;
        let allocated_bytes = local.core().allocated_bytes(&file).unwrap_or(0);
        if is_little(alive_bytes(&fill), allocated_bytes) {
            return Ok(Some((fill, allocated_bytes)));
        }
    }
    Ok(None)
}

async fn move_tombstones(local: &Rc<LocalStore>, segment: u64) -> Result<()> {
    let generations = inspect(local, move |view| view.tombstones_in(segment)).await?;
    local.log_tombstones(generations, segment).await
}

/// Copies what is alive in a segment to the end of the log. The segment is empty when the catalog has the copies.
/// False: that would gain too little, or something in it is damaged or lies behind damage, and stays.
async fn copy_out(local: &Rc<LocalStore>, victim: SegmentFill, allocated_bytes: u64) -> Result<bool> {
    let number = victim.segment.number;
    let mut records = records_in(local.core(), local.space(), number, victim.segment.epoch).await?;
    let (mut alive, mut is_whole) = (Vec::new(), true);
    while !records.is_empty() {
        // Others have questions too.
        let some: Vec<_> = records.drain(..records.len().min(RECORDS_AT_A_TIME)).collect();
        let find = move |view: &View| {
            let (mut found, mut stays) = (Vec::new(), false);
            for record in some {
                match is_alive(view, number, &record)? {
                    Alive::Not => {}
                    Alive::Stays => stays = true,
                    Alive::Of(name) => found.push((record, name)),
                }
            }
            Ok((found, stays))
        };
        let (mut found, stays) = inspect(local, find).await?;
        alive.append(&mut found);
        is_whole &= !stays;
    }
    let of_objects: usize =
        alive.iter().map(|(record, _)| record_length(record.header.length as usize)).sum();
    let alive_bytes = of_objects as u64 + victim.tombstones * RECORD_BYTES;
    if !is_little(alive_bytes, allocated_bytes) {
        return Ok(false);
    }
    // What is begun and not ended has taken room and made none: that is the deletions'.
    if alive_bytes + COPY_BYTES as u64 > local.log().copy_room_bytes() {
        tracing::debug!(segment = number, alive_bytes, "there is no room to copy it out");
        return Ok(true);
    }
    tracing::info!(segment = number, alive_bytes, allocated_bytes, "room is short: a segment is copied out");
    // What is still being written, or was deleted meanwhile, stays where it is.
    let mut objects: HashMap<u64, Option<Arc<Object>>> = HashMap::new();
    let (mut copies, mut bytes, mut last) = (Vec::new(), 0, None);
    for (record, name) in alive {
        let generation = record.header.generation;
        if let Entry::Vacant(vacant) = objects.entry(generation) {
            let object = local.find_generation(&name, generation).await?;
            vacant.insert(object.filter(|object| object.is_stored() && !object.is_deleted()));
        }
        let Some(Some(object)) = objects.get(&generation) else { continue };
        match read(local, victim.segment, object, &record).await {
            Ok(copy) => copies.push(copy),
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::error!(%error, "it is left where it is");
                is_whole = false;
            }
            Err(error) => return Err(error),
        }
        bytes += record.header.length as usize;
        if bytes >= COPY_BYTES {
            last = local.log_copies(std::mem::take(&mut copies)).await?.or(last);
            bytes = 0;
        }
    }
    last = local.log_copies(copies).await?.or(last);
    local.logged(last).await?;
    move_tombstones(local, number).await?;
    local.cut_batch();
    catalog_is_caught_up(local).await;
    // Who looks them up from now on finds the copies; the caches would keep the segment.
    objects.values().flatten().for_each(|object| local.forget_cached(object));
    local.metrics().segments_copied.increment();
    Ok(is_whole)
}

/// Whether a record is needed.
enum Alive {
    Not,
    /// By the object of this name.
    Of(Name),
    /// It is behind the end of its object. It may be repaired where it is; a copy of it could get between what is written
    /// there now.
    Stays,
}

fn is_alive(view: &View, segment: u64, record: &RecoveredRecord) -> Result<Alive> {
    let header = record.header;
    let Some((bucket, key)) = view.name(header.generation)? else { return Ok(Alive::Not) };
    let Some((create, seal, length)) = view.segments_and_length_of(header.generation)? else {
        return Ok(Alive::Not);
    };
    let is_needed = match header.kind {
        RecordKind::Create => create == segment,
        RecordKind::Seal => seal == segment,
        RecordKind::Append | RecordKind::Frame => {
            let found = view.extents(header.generation, header.offset, 1)?;
            found.first().is_some_and(|(extent, _)| {
                extent.segment == segment
                    && extent.position == record.position
                    && extent.offset == header.offset
            })
        }
        RecordKind::Interrupt | RecordKind::Declare | RecordKind::Delete => false,
    };
    Ok(match is_needed {
        false => Alive::Not,
        true if header.kind.is_data() && header.offset >= length => Alive::Stays,
        true => Alive::Of(Name::new(&bucket, &key)?),
    })
}

/// Reads a record that is to be copied.
async fn read(
    local: &LocalStore,
    victim: SegmentUse,
    object: &Arc<Object>,
    record: &RecoveredRecord,
) -> Result<Copy> {
    let damaged = |message: String| Error::new(Kind::Damaged, message);
    if !record.is_whole {
        let (name, position) = (object.name(), record.position);
        return Err(damaged(format!(
            "{name} is damaged at position {position} of segment {}",
            victim.number
        )));
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
    Ok(Copy { header: record.header, payload, object: object.clone(), change })
}

/// Waits until the catalog has everything that it was told.
async fn catalog_is_caught_up(local: &LocalStore) {
    let (done, mut is_done) = channel();
    local.shared().enter(super::catalog::Write::Flush(done));
    let _ = is_done.receive().await;
}
