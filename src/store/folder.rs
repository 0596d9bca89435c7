//! The data folder: who owns it, what it is, and what its disk can do.
//!
//! When [`Folder::open`] returns, no other process has the folder open, it is a store of ours (made now, if the
//! folder was empty), and it is known whether the file system takes direct writes.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::log::format::{ALIGNMENT, VERSION};
use crate::log::{check_segment_bytes, segment_bytes_for};
use crate::ring::Arena;

const MARKER: &str = "tailwater.json";
const LOCK: &str = "lock";
const SEGMENTS: &str = "segments";
const CATALOG: &str = "catalog";

/// Numbers of file systems: statfs(2).
const TMPFS: u64 = 0x0102_1994;
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;

/// What `tailwater.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    tailwater: u32,
    store: u64,
    segment_bytes: u64,
}

/// An open data folder. The lock is held until it is dropped.
#[derive(Debug)]
pub struct Folder {
    /// The folder of the segments.
    pub segments: PathBuf,
    /// The file of the catalog.
    pub catalog: PathBuf,
    /// The store's number.
    pub store: u64,
    /// The length of a segment in bytes.
    pub segment_bytes: u64,
    /// What of the disk is kept for the catalog, in bytes.
    pub reserve_bytes: u64,
    /// Whether the file system takes direct writes.
    pub direct: bool,
    /// Whether direct writes are known to leave alone what was spliced from the page cache: on ext4 and XFS.
    pub may_splice: bool,
    _lock: OwnedFd,
}

impl Folder {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`Kind::DataFolder`]: it cannot be written, or holds something else. [`Kind::Locked`]: another process has
    /// it open. [`Kind::NoSpace`].
    pub fn open(path: &Path, segment_bytes: Option<u64>) -> Result<Folder> {
        let trouble = |what: &str, error: std::io::Error| {
            let kind = if error.kind() == ErrorKind::StorageFull { Kind::NoSpace } else { Kind::DataFolder };
            Error::new(kind, format!("cannot {what} the data folder {}: {error}", path.display()))
        };
        fs::create_dir_all(path).map_err(|error| trouble("make", error))?;
        let marker = read_marker(path)?;
        if marker.is_none() {
            check_not_foreign(path)?;
        }
        let lock = take_lock(path)?;
        // Once more: another process may have made it a store while this one waited for the lock.
        let marker = match marker {
            None => read_marker(path)?,
            marker => marker,
        };
        let segments = path.join(SEGMENTS);
        let disk_bytes = rustix::fs::statvfs(path).map_or(0, |disk| disk.f_blocks * disk.f_frsize);
        let marker = match marker {
            Some(marker) => marker,
            None => {
                fs::create_dir_all(&segments).map_err(|error| trouble("make", error))?;
                let segment_bytes = segment_bytes.unwrap_or_else(|| segment_bytes_for(disk_bytes));
                check_segment_bytes(segment_bytes)?;
                let marker = Marker { tailwater: VERSION, store: random_number()?, segment_bytes };
                write_marker(path, &marker).map_err(|error| trouble("write to", error))?;
                marker
            }
        };
        check_segment_bytes(marker.segment_bytes)?;
        let file_system = rustix::fs::statfs(&segments).map_or(0, |disk| disk.f_type as u64);
        // tmpfs takes direct writes in name only.
        let direct = file_system != TMPFS && takes_direct_writes(&segments)?;
        Ok(Folder {
            segments,
            catalog: path.join(CATALOG),
            store: marker.store,
            segment_bytes: marker.segment_bytes,
            reserve_bytes: (disk_bytes / 32).clamp(16 << 20, 1 << 30),
            direct,
            may_splice: direct && (file_system == EXT4 || file_system == XFS),
            _lock: lock,
        })
    }
}

/// A data folder that is only read. No server can open it until this is dropped.
#[derive(Debug)]
pub struct ReadFolder {
    /// The folder of the segments.
    pub segments: PathBuf,
    /// The file of the catalog.
    pub catalog: PathBuf,
    /// What the folder says it is: the store's number, and the length of a segment in bytes. Or why it does not.
    pub marker: std::result::Result<(u64, u64), Error>,
    _lock: Option<OwnedFd>,
}

impl ReadFolder {
    /// Opens a folder that is there, and changes nothing in it.
    ///
    /// # Errors
    /// [`Kind::DataFolder`]: it cannot be read, or holds something else. [`Kind::Locked`]: a server has it open.
    pub fn open(path: &Path) -> Result<ReadFolder> {
        let segments = path.join(SEGMENTS);
        let marker = read_marker(path).and_then(|marker| match marker {
            Some(marker) => {
                check_segment_bytes(marker.segment_bytes)
                    .map_err(|error| Error::new(Kind::DataFolder, format!("{MARKER} is damaged: {error}")))?;
                Ok((marker.store, marker.segment_bytes))
            }
            None => Err(Error::new(Kind::DataFolder, format!("{} is missing", path.join(MARKER).display()))),
        });
        // What has neither was never a store.
        if let Err(error) = fs::read_dir(&segments) {
            let message = match error.kind() {
                ErrorKind::PermissionDenied => format!("cannot read {}: {error}", segments.display()),
                _ if marker.is_ok() => format!("{} has lost its folder of segments: {error}", path.display()),
                _ => format!("{} is not a data folder of tailwater", path.display()),
            };
            return Err(Error::new(Kind::DataFolder, message));
        }
        Ok(ReadFolder { segments, catalog: path.join(CATALOG), marker, _lock: share_lock(path)? })
    }
}

/// Keeps servers away without writing. None where there is no lock that could be read: nobody here can tell then.
fn share_lock(path: &Path) -> Result<Option<OwnedFd>> {
    let Ok(lock) = rustix::fs::open(path.join(LOCK), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    // As long as a server waits for one that was killed.
    for _ in 0..20 {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(50)),
            // A file system without locks.
            Err(_) => return Ok(None),
        }
    }
    let message =
        format!("the data folder {} is in use by another process: end that server first", path.display());
    Err(Error::new(Kind::Locked, message))
}

fn read_marker(path: &Path) -> Result<Option<Marker>> {
    let file = path.join(MARKER);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::new(Kind::DataFolder, format!("cannot read {}: {error}", file.display())));
        }
    };
    let marker: Marker = serde_json::from_str(&text).map_err(|error| {
        Error::new(Kind::DataFolder, format!("{} is not what tailwater has written: {error}", file.display()))
    })?;
    if marker.tailwater != VERSION {
        let message = format!(
            "{} holds format version {}, and this program reads version {VERSION}",
            path.display(),
            marker.tailwater
        );
        return Err(Error::new(Kind::DataFolder, message));
    }
    Ok(Some(marker))
}

/// A folder without the marker is made a store only if there is nothing in it, or what an earlier attempt left.
fn check_not_foreign(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).map_err(|error| {
        Error::new(Kind::DataFolder, format!("cannot read the data folder {}: {error}", path.display()))
    })?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        // A file system of its own begins with lost+found.
        let is_ours = name == LOCK || name == "lost+found" || name == format!("{MARKER}.new").as_str();
        let is_empty_folder =
            name == SEGMENTS && fs::read_dir(entry.path()).is_ok_and(|mut within| within.next().is_none());
        if !is_ours && !is_empty_folder {
            let message = format!(
                "{} is not a data folder of tailwater and not empty (it holds {:?}): choose another with --data",
                path.display(),
                name
            );
            return Err(Error::new(Kind::DataFolder, message));
        }
    }
    Ok(())
}

/// Takes the folder's lock. A process that was killed holds it until its last operations are done: a few attempts.
fn take_lock(path: &Path) -> Result<OwnedFd> {
    let file = path.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&file, flags, Mode::from_raw_mode(0o640)).map_err(|errno| {
        let message = format!("cannot write to the data folder {}: {errno}", path.display());
        Error::new(if errno == Errno::NOSPC { Kind::NoSpace } else { Kind::DataFolder }, message)
    })?;
    for _ in 0..20 {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(50)),
            Err(errno) => {
                return Err(Error::new(Kind::DataFolder, format!("cannot lock {}: {errno}", file.display())));
            }
        }
    }
    let message = format!("the data folder {} is in use by another process", path.display());
    Err(Error::new(Kind::Locked, message))
}

/// Written beside and renamed, so that it is there whole or not at all.
fn write_marker(path: &Path, marker: &Marker) -> std::io::Result<()> {
    let beside = path.join(format!("{MARKER}.new"));
    let mut file = fs::File::create(&beside)?;
    file.write_all(serde_json::to_string_pretty(marker)?.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path.join(MARKER))?;
    fs::File::open(path)?.sync_all()
}

fn random_number() -> Result<u64> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes))
        .map_err(|error| Error::new(Kind::Startup, format!("cannot read /dev/urandom: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Tries a direct write: some file systems refuse at the opening, some at the write.
fn takes_direct_writes(segments: &Path) -> Result<bool> {
    let probe = segments.join("probe");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::DIRECT;
    let outcome = rustix::fs::open(&probe, flags, Mode::from_raw_mode(0o640)).and_then(|file| {
        let arena = Arena::new(1, ALIGNMENT)?;
        let mut fill = arena.take().ok_or(Errno::NOMEM)?;
        rustix::io::pwrite(&file, &fill.commit(ALIGNMENT), 0)
    });
    let _ = fs::remove_file(&probe);
    match outcome {
        Ok(_) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        // It opened; a full disk is no reason not to serve what is there.
        Err(Errno::NOSPC | Errno::DQUOT) => Ok(true),
        Err(errno) => Err(Error::device(format!("cannot write to {}", segments.display()), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Folder::open(&folder.path().join("a/b"), Some(4 << 20)).unwrap();
        let (store, path) = (first.store, folder.path().join("a/b"));
        drop(first);
        let again = Folder::open(&path, Some(8 << 20)).unwrap();
        assert_eq!((again.store, again.segment_bytes), (store, 4 << 20), "what was made stays");
    }

    #[test]
    fn a_second_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Folder::open(folder.path(), None).unwrap();
        assert_eq!(Folder::open(folder.path(), None).unwrap_err().kind(), Kind::Locked);
    }

    #[test]
    fn a_foreign_folder_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        assert_eq!(Folder::open(folder.path(), None).unwrap_err().kind(), Kind::DataFolder);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_version_and_a_damaged_marker_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Folder::open(folder.path(), None).unwrap());
        for text in ["{\"tailwater\":3,\"store\":1,\"segment_bytes\":4194304}", "{", ""] {
            fs::write(folder.path().join(MARKER), text).unwrap();
            assert_eq!(Folder::open(folder.path(), None).unwrap_err().kind(), Kind::DataFolder, "{text}");
        }
    }
}
