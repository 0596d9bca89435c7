//! A store that nobody serves, read without changing anything in it.
//!
//! When [`Offline::open`] returns, no server has the folder open and none can open it until the answer is dropped, and
//! everything that counts in it is known: what the catalog has, and what the segments say beyond that after a crash.
//! All of that is in memory; where there is no catalog, or a damaged one, all of the segments were read instead.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use redb::backends::InMemoryBackend;
use rustix::io::Errno;

use super::catalog::Database;
use super::catalog::check::Lookup;
use super::catalog::overlay::Overlay;
use super::finding::Finding;
use super::folder::ReadFolder;
use super::name::Name;
use super::object::State;
use super::recover::learn;
use crate::error::{Error, Kind, Result};
use crate::log::{Space, SpaceSettings, open_for_reading, read_record, store_in};
use crate::ring::{Descriptor, Ring, Uring};
use crate::runtime::{Core, Mailbox};

/// How many segments are asked which store they belong to.
const ASKED_MAX: usize = 64;
/// How many extents are asked for at a time, about.
const EXTENTS_PER_WINDOW: usize = 1024;

/// Runs work on a core of its own on this thread, and returns when it is done.
///
/// # Errors
/// [`Kind::NoRing`]: this host does not let us use io_uring; and those of the work.
pub fn run<T>(work: impl AsyncFnOnce(&Rc<Core>) -> Result<T>) -> Result<T> {
    let ring = Ring::new(Box::new(Uring::new().map_err(Error::no_ring)?));
    let failed = |errno: Errno| Error::new(Kind::Startup, format!("the ring failed: {errno}"));
    let core = Core::new(0, ring, Mailbox::new().map_err(failed)?);
    core.run(async { work(&core).await }).map_err(failed)?
}

/// An open store that nobody serves.
pub struct Offline {
    /// Keeps servers away.
    _folder: Option<ReadFolder>,
    space: Arc<Space>,
    database: Database,
    findings: Vec<Finding>,
    /// Segments that the catalog did not cover when it was opened.
    surveyed: Vec<u64>,
    /// Where blocks begin that a start would make unreadable, by segment.
    void: HashMap<u64, Vec<u64>>,
    is_rebuilt: bool,
}

impl Offline {
    /// Opens the data folder at `path`. Dropping the future closes it again.
    ///
    /// # Errors
    /// [`Kind::DataFolder`]: it cannot be read, or is none. [`Kind::Locked`]: a server has it open.
    /// [`Kind::Device`]: what the disk says.
    pub async fn open(core: &Rc<Core>, path: &Path) -> Result<Offline> {
        let mut findings = Vec::new();
        let folder = ReadFolder::open(path)?;
        let (store, segment_bytes) = identify(core, &folder, &mut findings).await?;
        let space = Space::new(SpaceSettings {
            folder: folder.segments.clone(),
            store,
            segment_bytes,
            direct: false,
            spare_segments: 0,
            reserve_bytes: 0,
        });
        let database = open_catalog(&folder, store, &mut findings)?;
        let mut offline = Offline::over(core, space, database).await?;
        findings.append(&mut offline.findings);
        Ok(Offline { _folder: Some(folder), findings, ..offline })
    }

    /// What is in these segments, and in their catalog if there is one that can be read. That is changed, and no segment.
    ///
    /// # Errors
    /// [`Kind::Device`]: what the disk says.
    pub(crate) async fn over(
        core: &Rc<Core>,
        space: Arc<Space>,
        database: Option<Database>,
    ) -> Result<Offline> {
        let is_rebuilt = database.is_none();
        let database = match database {
            Some(database) => database,
            None => Database::open_on(InMemoryBackend::new(), space.settings().store)?,
        };
        let learned = learn(core, &space, &database, is_rebuilt, false).await?;
        let findings = learned.recovered.damage.into_iter().map(Finding::new).collect();
        let surveyed = learned.survey.scanned;
        let void = learned.survey.void.into_iter().collect();
        Ok(Offline { _folder: None, space, database, findings, surveyed, void, is_rebuilt })
    }

    /// What was found damaged when the store was opened.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether all that is known comes from the segments, because there is no catalog that can be read.
    pub fn is_rebuilt(&self) -> bool {
        self.is_rebuilt
    }

    /// The folder of the segments.
    pub fn segments(&self) -> &Path {
        &self.space.settings().folder
    }

    /// The store's number.
    pub fn store(&self) -> u64 {
        self.space.settings().store
    }

    /// The length of a segment in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.space.settings().segment_bytes
    }

    /// The numbers of segments that the catalog did not cover when it was opened.
    pub(super) fn surveyed(&self) -> &[u64] {
        &self.surveyed
    }

    /// Where blocks begin in a segment that do not count: a start would make them unreadable.
    pub(super) fn void_in(&self, segment: u64) -> &[u64] {
        self.void.get(&segment).map_or(&[], Vec::as_slice)
    }

    /// The catalog, as it would be after a start.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Look-ups in the catalog, as it would be after a start.
    pub(crate) fn lookup(&self) -> Result<Lookup> {
        Lookup::new(self.database.view()?)
    }

    /// What a name serves: its newest generation that is sealed, or an interrupted one where there is no other; or
    /// the generation that is asked for.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Damaged`]; what the disk says.
    pub fn find(&self, name: &Name, generation: Option<u64>) -> Result<Kept> {
        let mut rows = self.database.view()?.objects(name.bucket(), name.key().as_bytes())?;
        let place = match generation {
            Some(generation) => rows.iter().position(|row| row.generation == generation),
            None => rows.iter().rposition(|row| row.state == State::Sealed).or(rows.len().checked_sub(1)),
        };
        let Some(place) = place else {
            let message = match generation {
                Some(generation) => format!("there is no generation {generation} of {name}"),
                None => format!("there is no object {name}"),
            };
            return Err(Error::new(Kind::NotFound, message));
        };
        let row = rows.swap_remove(place);
        Ok(Kept { generation: row.generation, state: row.state, length: row.length })
    }

    /// Hands the bytes of an object to `take`, in order and without a gap, each after it was checked. Dropping the future
    /// leaves it at what was handed over.
    ///
    /// # Errors
    /// What `take` says, at once; what the catalog's disk says.
    pub async fn read<E: From<Error>>(
        &self,
        core: &Rc<Core>,
        kept: &Kept,
        mut take: impl FnMut(Run<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let view = self.database.view()?;
        let mut file: Option<(u64, std::result::Result<Arc<Descriptor>, Errno>)> = None;
        let mut offset = 0;
        while offset < kept.length {
            let mut extents = view.extents(kept.generation, offset, EXTENTS_PER_WINDOW)?;
            extents.retain(|(extent, _)| extent.offset < kept.length);
            if extents.first().is_none_or(|(extent, _)| extent.offset > offset) {
                let end = extents.first().map_or(kept.length, |(extent, _)| extent.offset);
                take(Run::Lost(offset..end, UNKNOWN_PLACE))?;
                offset = end;
            }
            let before = offset;
            for (extent, _) in extents {
                // What overlaps was handed over before.
                if extent.offset != offset {
                    if extent.offset > offset {
                        break;
                    }
                    continue;
                }
                let path = Space::path(self.segments(), extent.segment);
                if file.as_ref().is_none_or(|file| file.0 != extent.segment) {
                    file = Some((extent.segment, open_for_reading(core, &path).await));
                }
                let record = match &file {
                    Some((_, Ok(file))) => read_record(core, file, extent.position, extent.length).await,
                    Some((_, Err(errno))) => Err(*errno),
                    None => Ok(None),
                };
                let range = extent.offset..extent.end();
                let (position, segment) = (extent.position, extent.segment);
                match record {
                    Ok(Some((header, payload)))
                        if header.generation == kept.generation
                            && header.offset == extent.offset
                            && header.kind.is_data() =>
                    {
                        take(Run::Whole(&payload))?;
                    }
                    Ok(_) => take(Run::Lost(
                        range,
                        &format!("position {position} of segment {segment} is damaged"),
                    ))?,
                    Err(Errno::NOENT) => take(Run::Lost(range, &format!("segment {segment} is missing")))?,
                    Err(errno) => {
                        take(Run::Lost(
                            range,
                            &format!("position {position} of segment {segment} cannot be read: {errno}"),
                        ))?;
                    }
                }
                offset = extent.end();
            }
            if offset == before && offset < kept.length {
                take(Run::Lost(offset..kept.length, UNKNOWN_PLACE))?;
                offset = kept.length;
            }
        }
        Ok(())
    }
}

const UNKNOWN_PLACE: &str = "the catalog does not know where they are";

/// A run of an object's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run<'a> {
    /// Bytes as they were written.
    Whole(&'a [u8]),
    /// Bytes that are damaged or lost: which of the object, and why.
    Lost(std::ops::Range<u64>, &'a str),
}

/// An object, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which generation of its name.
    pub generation: u64,
    /// Sealed or interrupted.
    pub state: State,
    /// Its bytes, in whole appends.
    pub length: u64,
}

/// The store's number and the length of its segments: what the marker says, if the segments say the same.
async fn identify(core: &Rc<Core>, folder: &ReadFolder, findings: &mut Vec<Finding>) -> Result<(u64, u64)> {
    let names = core.list(&folder.segments).unwrap_or_default();
    let mut said: Vec<((u64, u64), usize)> = Vec::new();
    for name in names.iter().filter(|name| name.to_string_lossy().ends_with(".segment")).take(ASKED_MAX) {
        let path = folder.segments.join(name);
        let answer = store_in(core, &path).await.map_err(|errno| match errno {
            Errno::ACCESS | Errno::PERM => {
                Error::new(Kind::DataFolder, format!("cannot read {}: {errno}", path.display()))
            }
            errno => Error::device(format!("cannot read {}", path.display()), errno),
        });
        match answer {
            Ok(Some(answer)) => match said.iter_mut().find(|(known, _)| *known == answer) {
                Some((_, count)) => *count += 1,
                None => said.push((answer, 1)),
            },
            Ok(None) => {}
            Err(error) if error.kind() == Kind::DataFolder => return Err(error),
            // The check of the segment names it.
            Err(_) => {}
        }
    }
    let most = said.iter().max_by_key(|(_, count)| *count).map(|(answer, _)| *answer);
    match (&folder.marker, most) {
        (Ok(marker), Some(most)) if *marker != most && !said.iter().any(|(answer, _)| answer == marker) => {
            let what = "tailwater.json says another store or segment length than every segment does";
            findings.push(Finding::new(what));
            Ok(most)
        }
        (Ok(marker), _) => Ok(*marker),
        (Err(damage), Some(most)) => {
            findings.push(Finding::new(damage.to_string()));
            Ok(most)
        }
        (Err(damage), None) => Err(damage.clone()),
    }
}

/// The catalog, if it can be read.
fn open_catalog(folder: &ReadFolder, store: u64, findings: &mut Vec<Finding>) -> Result<Option<Database>> {
    let file = match File::open(&folder.catalog) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if std::fs::read_dir(&folder.segments).is_ok_and(|mut segments| segments.next().is_some()) {
                findings.push(Finding::new(
                    "the catalog is missing: tailwater serve makes it anew from the segments",
                ));
            }
            return Ok(None);
        }
        Err(error) => {
            let message = format!("cannot read {}: {error}", folder.catalog.display());
            return Err(Error::new(Kind::DataFolder, message));
        }
    };
    let opened = Overlay::new(file)
        .map_err(|error| Error::new(Kind::Damaged, format!("the catalog cannot be read: {error}")))
        .and_then(|overlay| Database::open_checked(overlay, store));
    match opened {
        Ok(database) => Ok(Some(database)),
        Err(error) => {
            findings.push(Finding::new(error.to_string()));
            Ok(None)
        }
    }
}
