//! The simulated device: folders, files, what of them is on stable storage, and what a power cut leaves.
//!
//! A file has two images: `current`, which is what is read, and `durable`, which is what the medium is sure to
//! hold. What was done to the first and not yet to the second is kept as a list of [`Change`]s, in order. A sync
//! carries out the changes that were complete when it was begun. A power cut carries out some of them: of a write
//! every sector by itself, of a punched hole every page, of a change of length all or nothing.
//!
//! A durable write goes to both images at once, and takes away what earlier changes had in store for its sectors.
//! It makes no change of length durable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fastrand::Rng;
use rustix::io::Errno;

/// What is written as a whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
/// What room is given out in, in bytes.
pub const PAGE: u64 = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Page {
    /// No room of its own; reads as zeroes.
    #[default]
    Hole,
    /// Room that reads as zeroes.
    Zeroes,
    Bytes(Rc<[u8; PAGE as usize]>),
}

/// The content of a file.
#[derive(Clone, Debug, Default)]
struct Image {
    pages: Vec<Page>,
    length: u64,
}

impl Image {
    /// Fills the target with what is at this position; behind the last page there are zeroes.
    fn read(&self, position: u64, target: &mut [u8]) {
        for_each_page(position, target.len() as u64, |page, within, at| {
            let part = &mut target[at];
            match self.pages.get(page) {
                Some(Page::Bytes(bytes)) => part.copy_from_slice(&bytes[within]),
                _ => part.fill(0),
            }
        });
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        self.make_pages((position + bytes.len() as u64).div_ceil(PAGE));
        for_each_page(position, bytes.len() as u64, |page, within, at| {
            let (page, part) = (&mut self.pages[page], &bytes[at]);
            let is_zero = part.iter().all(|&byte| byte == 0);
            match page {
                Page::Bytes(_) if is_zero && part.len() == PAGE as usize => *page = Page::Zeroes,
                Page::Bytes(content) => Rc::make_mut(content)[within].copy_from_slice(part),
                Page::Hole | Page::Zeroes if is_zero => *page = Page::Zeroes,
                Page::Hole | Page::Zeroes => {
                    let mut content = [0; PAGE as usize];
                    content[within].copy_from_slice(part);
                    *page = Page::Bytes(Rc::new(content));
                }
            }
        });
    }

    fn punch(&mut self, range: Range<u64>) {
        let end = range.end.min(self.pages.len() as u64 * PAGE);
        for_each_page(range.start, end.saturating_sub(range.start), |page, within, _| {
            let page = &mut self.pages[page];
            match page {
                _ if within.len() == PAGE as usize => *page = Page::Hole,
                Page::Bytes(content) => Rc::make_mut(content)[within].fill(0),
                Page::Hole | Page::Zeroes => {}
            }
        });
    }

    /// Gives room to the pages below `length`, as long as there is any left.
    fn allocate(&mut self, length: u64, mut pages_left: u64) {
        self.make_pages(length.div_ceil(PAGE));
        for page in self.pages.iter_mut().take(length.div_ceil(PAGE) as usize) {
            if *page == Page::Hole {
                if pages_left == 0 {
                    return;
                }
                pages_left -= 1;
                *page = Page::Zeroes;
            }
        }
    }

    /// Sets the length. What is cut off is gone.
    fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.trim(length);
        }
        self.length = length;
    }

    fn trim(&mut self, length: u64) {
        self.punch(length..length.next_multiple_of(PAGE));
        self.pages.truncate(length.div_ceil(PAGE) as usize);
    }

    fn make_pages(&mut self, count: u64) {
        if self.pages.len() < count as usize {
            self.pages.resize(count as usize, Page::Hole);
        }
    }

    /// How many pages have room of their own.
    fn allocated_pages(&self) -> u64 {
        self.pages.iter().filter(|page| **page != Page::Hole).count() as u64
    }

    fn has_room(&self, page: u64) -> bool {
        self.pages.get(page as usize).is_some_and(|page| *page != Page::Hole)
    }
}

/// Calls with every page that the bytes touch: its number, where within the page, and where within the bytes.
fn for_each_page(position: u64, length: u64, mut call: impl FnMut(usize, Range<usize>, Range<usize>)) {
    let mut at = 0;
    while at < length {
        let (page, within) = ((position + at) / PAGE, (position + at) % PAGE);
        let count = (PAGE - within).min(length - at);
        call(page as usize, within as usize..(within + count) as usize, at as usize..(at + count) as usize);
        at += count;
    }
}

/// Something that was done to a file and is not on stable storage.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    what: What,
    /// The sectors that it still concerns.
    sectors: Vec<Range<u64>>,
}

#[derive(Clone, Debug)]
enum What {
    /// These bytes at the position of this sector.
    Write {
        first_sector: u64,
        bytes: Rc<[u8]>,
    },
    Punch,
    /// The length, and whether everything below it gets room.
    Length {
        length: u64,
        allocates: bool,
    },
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match &self.what {
            What::Length { length, allocates } => {
                image.set_length(*length);
                if *allocates {
                    image.allocate(*length, u64::MAX);
                }
            }
            _ => self.sectors.iter().for_each(|sectors| self.apply_to(image, sectors.clone())),
        }
    }

    fn apply_to(&self, image: &mut Image, sectors: Range<u64>) {
        let (start, end) = (sectors.start * SECTOR, sectors.end * SECTOR);
        match &self.what {
            What::Write { first_sector, bytes } => {
                let base = first_sector * SECTOR;
                image.write(start, &bytes[(start - base) as usize..(end - base) as usize]);
            }
            What::Punch => image.punch(start..end),
            What::Length { .. } => unreachable!("a change of length concerns no sectors"),
        }
    }

    /// Carries out what happens to be carried out when the power goes.
    fn apply_some(&self, image: &mut Image, random: &mut Rng) {
        if let What::Length { .. } = self.what {
            if random.bool() {
                self.apply(image);
            }
            return;
        }
        let step = if matches!(self.what, What::Punch) { PAGE / SECTOR } else { 1 };
        for sectors in &self.sectors {
            some_of(sectors.clone(), step, random, |part| self.apply_to(image, part));
        }
    }

    fn forget(&mut self, settled: &Range<u64>) {
        let mut rest = Vec::new();
        for sectors in self.sectors.drain(..) {
            let before = sectors.start..sectors.end.min(settled.start);
            let behind = sectors.start.max(settled.end)..sectors.end;
            rest.extend([before, behind].into_iter().filter(|part| part.start < part.end));
        }
        self.sectors = rest;
    }
}

/// All, none, or any of the steps of a range.
fn some_of(range: Range<u64>, step: u64, random: &mut Rng, mut call: impl FnMut(Range<u64>)) {
    match random.u8(0..4) {
        0 => {}
        1 => call(range),
        _ => {
            let mut at = range.start;
            while at < range.end {
                let end = ((at / step + 1) * step).min(range.end);
                if random.bool() {
                    call(at..end);
                }
                at = end;
            }
        }
    }
}

/// The sectors that the bytes touch.
pub fn sectors_of(position: u64, length: u64) -> Range<u64> {
    position / SECTOR..(position + length).div_ceil(SECTOR)
}

/// One file.
#[derive(Clone, Debug, Default)]
pub struct File {
    current: Image,
    durable: Image,
    changes: Vec<Change>,
    /// How many changes there have been.
    changed: u64,
    /// Sectors that a cut has left unreadable, until they are written.
    unreadable: BTreeSet<u64>,
    /// Sectors that can never be read or written again.
    bad: Vec<Range<u64>>,
}

impl File {
    /// How much room it has, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.current.allocated_pages() * PAGE
    }

    pub fn length(&self) -> u64 {
        self.current.length
    }

    /// How many changes there have been: what a sync that begins now makes durable.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Reads what is there; fewer bytes than wanted at the end of the file and before a sector that cannot be read.
    pub fn read(&self, position: u64, wanted: u64) -> Result<Vec<u8>, Errno> {
        let end = (position.saturating_add(wanted)).min(self.current.length);
        if position >= end {
            return Ok(Vec::new());
        }
        let unreadable = self.first_bad(position, end - position);
        let unreadable = unreadable.into_iter().chain(self.first_unreadable(position, end)).min();
        let end = unreadable.map_or(end, |sector| end.min(sector * SECTOR));
        if end <= position {
            return Err(Errno::IO);
        }
        let mut bytes = vec![0; (end - position) as usize];
        self.current.read(position, &mut bytes);
        Ok(bytes)
    }

    fn first_unreadable(&self, position: u64, end: u64) -> Option<u64> {
        self.unreadable.range(sectors_of(position, end - position)).next().copied()
    }

    /// The first bad sector that these bytes touch.
    pub fn first_bad(&self, position: u64, length: u64) -> Option<u64> {
        let wanted = sectors_of(position, length);
        let touched = self.bad.iter().map(|bad| bad.start.max(wanted.start)..bad.end.min(wanted.end));
        touched.filter(|both| both.start < both.end).map(|both| both.start).min()
    }

    /// Writes whole bytes, and the rest of the sectors that they touch as it is.
    pub fn write(&mut self, position: u64, bytes: &[u8], durable: bool) {
        let end = position + bytes.len() as u64;
        let sectors = sectors_of(position, bytes.len() as u64);
        let first_sector = sectors.start;
        let start = first_sector * SECTOR;
        let mut whole = vec![0; ((sectors.end - first_sector) * SECTOR) as usize];
        if whole.len() > bytes.len() {
            self.current.read(start, &mut whole);
        }
        whole[(position - start) as usize..(end - start) as usize].copy_from_slice(bytes);
        self.current.write(start, &whole);
        let readable: Vec<u64> = self.unreadable.range(sectors.clone()).copied().collect();
        for sector in readable {
            self.unreadable.remove(&sector);
        }
        if durable {
            self.durable.write(start, &whole);
            self.changes.iter_mut().for_each(|change| change.forget(&sectors));
        } else {
            self.change(What::Write { first_sector, bytes: whole.into() }, sectors);
        }
        if end > self.current.length {
            self.set_length(end, false);
        }
    }

    /// Writes any of the sectors of a write that went wrong.
    pub fn write_some(&mut self, position: u64, bytes: &[u8], random: &mut Rng) {
        let end = position + bytes.len() as u64;
        some_of(sectors_of(position, bytes.len() as u64), 1, random, |sectors| {
            let (from, to) = ((sectors.start * SECTOR).max(position), (sectors.end * SECTOR).min(end));
            self.write(from, &bytes[(from - position) as usize..(to - position) as usize], false);
        });
    }

    /// Gives back the room of whole pages and zeroes the rest.
    pub fn punch(&mut self, position: u64, length: u64) {
        let range = position..(position + length).min(self.current.length);
        if range.start >= range.end {
            return;
        }
        // The sectors at the edges that are only partly within are zeroed by writing them.
        let inner = range.start.next_multiple_of(SECTOR)..range.end / SECTOR * SECTOR;
        if inner.start >= inner.end {
            return self.write(range.start, &vec![0; (range.end - range.start) as usize], false);
        }
        for edge in [range.start..inner.start, inner.end..range.end] {
            if !edge.is_empty() {
                self.write(edge.start, &vec![0; (edge.end - edge.start) as usize], false);
            }
        }
        self.current.punch(inner.clone());
        self.change(What::Punch, inner.start / SECTOR..inner.end / SECTOR);
    }

    /// Sets the length; with `allocates` everything below it gets room.
    pub fn set_length(&mut self, length: u64, allocates: bool) {
        self.current.set_length(length);
        if allocates {
            self.current.allocate(length, u64::MAX);
        }
        self.change(What::Length { length, allocates }, 0..0);
    }

    /// Gives room to as much as there is room for, and leaves the length as it is.
    pub fn allocate_some(&mut self, length: u64, pages: u64) {
        self.current.allocate(length, pages);
    }

    fn change(&mut self, what: What, sectors: Range<u64>) {
        self.changes.push(Change { number: self.changed, what, sectors: Vec::from([sectors]) });
        self.changed += 1;
    }

    /// Makes durable what had been done when there had been `changed` changes.
    pub fn sync(&mut self, changed: u64) {
        let first_left = self.changes.partition_point(|change| change.number < changed);
        for change in self.changes.drain(..first_left) {
            change.apply(&mut self.durable);
        }
    }

    /// A sync that failed: the bytes that it should have made durable count as done, are still read, and may be nowhere
    /// else. Holes and lengths are the file system's own matter, which it will write with the next sync.
    pub fn fail_to_sync(&mut self, changed: u64, random: &mut Rng) {
        self.changes.retain(|change| {
            let is_lost = change.number < changed && matches!(change.what, What::Write { .. });
            if is_lost {
                change.apply_some(&mut self.durable, random);
            }
            !is_lost
        });
    }

    /// What the power cut leaves. `unreadable` is the chance that a sector that was being changed cannot be read.
    pub fn cut(&mut self, random: &mut Rng, unreadable: f64) {
        let mut image = std::mem::take(&mut self.durable);
        for change in std::mem::take(&mut self.changes) {
            change.apply_some(&mut image, random);
            for sector in change.sectors.iter().cloned().flatten() {
                if unreadable > 0.0 && random.f64() < unreadable {
                    self.unreadable.insert(sector);
                }
            }
        }
        image.trim(image.length);
        (self.current, self.durable) = (image.clone(), image);
    }

    /// Changes one bit, on the medium and in what is read.
    pub fn rot(&mut self, position: u64, bit: u8) {
        for image in [&mut self.current, &mut self.durable] {
            let mut byte = [0];
            image.read(position, &mut byte);
            image.write(position, &[byte[0] ^ (1 << bit)]);
        }
    }

    /// Makes sectors unusable for ever.
    pub fn make_bad(&mut self, sectors: Range<u64>) {
        self.bad.push(sectors);
    }

    /// The pages that these bytes touch and that have no room of their own.
    pub fn pages_without_room(&self, position: u64, length: u64) -> impl Iterator<Item = u64> {
        let pages = position / PAGE..(position + length).div_ceil(PAGE);
        pages.filter(|&page| !self.current.has_room(page))
    }
}

/// A name in a folder.
#[derive(Clone, Debug)]
struct Entry {
    file: u64,
    /// The folder was synced since it came into being. Syncing the file itself is not enough: POSIX promises no more.
    durable: bool,
}

/// A change of a name that was not synced.
#[derive(Clone, Debug)]
struct Rename {
    folder: PathBuf,
    from: OsString,
    to: OsString,
    /// What had the name before.
    replaced: Option<Entry>,
}

/// Everything on the device.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    renames: Vec<Rename>,
    folders: BTreeMap<PathBuf, BTreeMap<OsString, Entry>>,
    files: BTreeMap<u64, File>,
    next_file: u64,
    capacity_bytes: u64,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    File(u64),
    Folder(PathBuf),
}

impl Disk {
    pub fn new(capacity_bytes: u64) -> Disk {
        Disk { capacity_bytes, ..Disk::default() }
    }

    /// Makes a folder, durably.
    pub fn make_folder(&mut self, path: &Path) {
        self.folders.entry(path.to_owned()).or_default();
    }

    /// What is at a path.
    pub fn find(&self, path: &Path) -> Result<Found, Errno> {
        if self.folders.contains_key(path) {
            return Ok(Found::Folder(path.to_owned()));
        }
        let (folder, name) = self.split(path)?;
        folder.get(name).map(|entry| Found::File(entry.file)).ok_or(Errno::NOENT)
    }

    fn split<'a>(&self, path: &'a Path) -> Result<(&BTreeMap<OsString, Entry>, &'a OsStr), Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
        Ok((self.folders.get(parent).ok_or(Errno::NOENT)?, name))
    }

    /// Makes an empty file where there is none.
    pub fn create(&mut self, path: &Path) -> Result<u64, Errno> {
        self.split(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
        let file = self.next_file;
        let Some(folder) = self.folders.get_mut(parent) else { return Err(Errno::NOENT) };
        folder.insert(name.to_owned(), Entry { file, durable: false });
        self.next_file += 1;
        self.files.insert(file, File::default());
        Ok(file)
    }

    /// Takes a name away, durably. Who has the file open keeps it no longer.
    pub fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        let Found::File(number) = self.find(path)? else { return Err(Errno::ISDIR) };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
        self.folders.get_mut(parent).ok_or(Errno::NOENT)?.remove(name);
        self.files.remove(&number);
        Ok(())
    }

    /// Gives a file another name in its folder. The file that had that name goes, when the folder is synced.
    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let Found::File(number) = self.find(from)? else { return Err(Errno::ISDIR) };
        let (Some(parent), Some(former), Some(name)) = (from.parent(), from.file_name(), to.file_name())
        else {
            return Err(Errno::NOENT);
        };
        let folder = self.folders.get_mut(parent).ok_or(Errno::NOENT)?;
        let Some(entry) = folder.remove(former) else { return Err(Errno::NOENT) };
        let replaced = folder.insert(name.to_owned(), Entry { file: number, durable: entry.durable });
        self.renames.push(Rename {
            folder: parent.to_owned(),
            from: former.to_owned(),
            to: name.to_owned(),
            replaced,
        });
        Ok(())
    }

    pub fn file(&self, number: u64) -> Result<&File, Errno> {
        self.files.get(&number).ok_or(Errno::BADF)
    }

    pub fn file_mut(&mut self, number: u64) -> Result<&mut File, Errno> {
        self.files.get_mut(&number).ok_or(Errno::BADF)
    }

    /// The names in a folder, in order.
    pub fn list(&self, path: &Path) -> Result<Vec<OsString>, Errno> {
        Ok(self.folders.get(path).ok_or(Errno::NOENT)?.keys().cloned().collect())
    }

    /// The files of a folder: what a sync of it that begins now makes durable.
    pub fn files_of(&self, path: &Path) -> Vec<u64> {
        self.folders
            .get(path)
            .into_iter()
            .flat_map(|folder| folder.values())
            .map(|entry| entry.file)
            .collect()
    }

    /// Makes the names of these files durable.
    pub fn sync_folder(&mut self, path: &Path, files: &[u64]) {
        for rename in self.renames.extract_if(.., |rename| rename.folder == path) {
            rename.replaced.into_iter().for_each(|entry| drop(self.files.remove(&entry.file)));
        }
        for entry in self.folders.get_mut(path).into_iter().flat_map(|folder| folder.values_mut()) {
            entry.durable |= files.contains(&entry.file);
        }
    }

    /// How many bytes have room.
    pub fn used_bytes(&self) -> u64 {
        self.files.values().map(|file| file.current.allocated_pages() * PAGE).sum()
    }

    /// How many pages are left.
    pub fn free_pages(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes()) / PAGE
    }

    /// Changes the size of the device.
    pub fn set_capacity_bytes(&mut self, capacity_bytes: u64) {
        self.capacity_bytes = capacity_bytes;
    }

    /// What the power cut leaves of everything. See [`File::cut`].
    pub fn cut(&mut self, random: &mut Rng, unreadable: f64) {
        // Of changes of names a beginning counts, as journals keep them.
        let counted = if self.renames.is_empty() { 0 } else { random.usize(0..=self.renames.len()) };
        for rename in self.renames.drain(..).skip(counted).rev() {
            let Some(folder) = self.folders.get_mut(&rename.folder) else { continue };
            if let Some(entry) = folder.remove(&rename.to) {
                folder.insert(rename.from, entry);
            }
            if let Some(entry) = rename.replaced {
                folder.insert(rename.to.clone(), entry);
            }
        }
        for folder in self.folders.values_mut() {
            folder.retain(|_, entry| {
                entry.durable = entry.durable || random.bool();
                entry.durable
            });
        }
        let kept: BTreeSet<u64> =
            self.folders.values().flat_map(|folder| folder.values()).map(|entry| entry.file).collect();
        self.files.retain(|number, _| kept.contains(number));
        self.files.values_mut().for_each(|file| file.cut(random, unreadable));
    }
}
