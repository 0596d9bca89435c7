//! The catalog's file on a simulated device, as the database wants it.
//!
//! The database asks for storage that threads can share, and a world is one thread's: so the storage holds a number,
//! and the thread knows what it stands for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::ring::simulated::BlockingFile;
use crate::simulation::World;
use crate::store::Database;
use crate::store::assembly::{CatalogFiles, Place};

const FOLDER: &str = "/data";
const OWN: &str = "/data/catalog";
const BESIDE: &str = "/data/catalog.new";

thread_local! {
    static FILES: RefCell<BTreeMap<u64, Rc<BlockingFile>>> = const { RefCell::new(BTreeMap::new()) };
    static WORLDS: RefCell<BTreeMap<u64, World>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

fn next_number() -> u64 {
    NEXT.replace(NEXT.get() + 1)
}

/// A file of this thread's, under its number.
#[derive(Debug)]
struct Storage(u64);

impl Storage {
    fn over(file: BlockingFile) -> Storage {
        let number = next_number();
        FILES.with_borrow_mut(|files| files.insert(number, Rc::new(file)));
        Storage(number)
    }

    fn with<T>(&self, call: impl FnOnce(&BlockingFile) -> std::result::Result<T, Errno>) -> io::Result<T> {
        let file = FILES.with_borrow(|files| files.get(&self.0).cloned());
        call(&*file.ok_or(Errno::BADF)?).map_err(io::Error::from)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // What is closed late, when the thread ends, is closed already.
        let _ = FILES.try_with(|files| files.borrow_mut().remove(&self.0));
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.with(BlockingFile::length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| file.read(offset, out))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.with(|file| file.set_length(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(BlockingFile::sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|file| file.write(offset, data))
    }
}

/// The files of a catalog in a world, until it is dropped.
pub(super) struct Files {
    world: World,
    number: u64,
    store: u64,
    segments: PathBuf,
}

impl Files {
    pub fn new(world: &World, store: u64, segments: &Path) -> Files {
        world.make_folder(Path::new(FOLDER));
        let number = next_number();
        WORLDS.with_borrow_mut(|worlds| worlds.insert(number, world.clone()));
        Files { world: world.clone(), number, store, segments: segments.to_owned() }
    }

    /// Opens the catalog's own file again, after a failure.
    pub fn reopen(&self) -> Box<dyn Fn() -> Result<Database> + Send + Sync> {
        let (number, store) = (self.number, self.store);
        Box::new(move || {
            let world = WORLDS.with_borrow(|worlds| worlds.get(&number).cloned());
            let gone = || Error::new(Kind::Closed, "the world is gone");
            open(&world.ok_or_else(gone)?, Path::new(OWN), store)
        })
    }

    /// Loses the catalog.
    pub fn lose(&self) {
        let _ = self.world.remove(Path::new(OWN));
    }

    /// The catalog, as one who changes nothing sees it. None: there is none.
    pub fn view(&self) -> Result<Option<Database>> {
        let content = match self.world.content(Path::new(OWN)) {
            Ok(content) => content,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::device("the catalog", errno)),
        };
        let storage = InMemoryBackend::new();
        let filled = storage.set_len(content.len() as u64).and_then(|()| storage.write(0, &content));
        filled.map_err(|error| Error::new(Kind::Startup, error.to_string()))?;
        Database::open_checked(storage, self.store).map(Some)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        WORLDS.with_borrow_mut(|worlds| worlds.remove(&self.number));
    }
}

fn path_of(place: Place) -> &'static Path {
    Path::new(if place == Place::Own { OWN } else { BESIDE })
}

fn open(world: &World, path: &Path, store: u64) -> Result<Database> {
    let file = world.open_blocking(path).map_err(|errno| Error::device("the catalog", errno))?;
    Database::open_on(Storage::over(file), store)
}

impl CatalogFiles for Files {
    fn has_segments(&self) -> bool {
        self.world.names(&self.segments).is_ok_and(|names| !names.is_empty())
    }

    fn length(&self) -> Option<u64> {
        self.world.length(Path::new(OWN)).ok()
    }

    fn open(&self, place: Place) -> Result<Database> {
        open(&self.world, path_of(place), self.store)
    }

    fn remove(&self, place: Place) -> Result<()> {
        match self.world.remove(path_of(place)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::device("the catalog", errno)),
        }
    }

    fn keep_made(&self) -> Result<()> {
        let renamed = self.world.rename(Path::new(BESIDE), Path::new(OWN));
        renamed.map_err(|errno| Error::device("the catalog", errno))?;
        self.sync_names()
    }

    fn sync_names(&self) -> Result<()> {
        self.world.sync_folder(Path::new(FOLDER)).map_err(|errno| Error::device("the catalog", errno))
    }
}
