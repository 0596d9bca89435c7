//! A database file that is only read.
//!
//! What the database writes (and it writes when it is opened after a crash) stays in memory, in front of the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// How long the pieces are that are kept, in bytes.
const PIECE_LENGTH: usize = 4096;

/// A file, and what was written in front of it.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// What of the file still shows, from its beginning on, in bytes.
    shown: u64,
    pieces: BTreeMap<u64, Box<[u8; PIECE_LENGTH]>>,
}

impl Overlay {
    /// A layer in front of a file that is open for reading.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn new(file: File) -> io::Result<Overlay> {
        let length = file.metadata()?.len();
        Ok(Overlay { file, written: Mutex::new(Written { length, shown: length, pieces: BTreeMap::new() }) })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the file from an offset on, and zeroes where it shows nothing.
    fn below(&self, shown: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let count = shown.saturating_sub(offset).min(out.len() as u64) as usize;
        self.file.read_exact_at(&mut out[..count], offset)?;
        out[count..].fill(0);
        Ok(())
    }
}

/// The parts of a range by piece: which piece, where in it, how many bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, end) = (offset, offset + length as u64);
    std::iter::from_fn(move || {
        let (piece, within) = (at / PIECE_LENGTH as u64, (at % PIECE_LENGTH as u64) as usize);
        let count = (PIECE_LENGTH - within).min((end - at) as usize);
        at += count as u64;
        (count > 0).then_some((piece, within, count))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.below(written.shown, offset, out)?;
        let mut done = 0;
        for (piece, within, count) in parts(offset, out.len()) {
            if let Some(bytes) = written.pieces.get(&piece) {
                out[done..done + count].copy_from_slice(&bytes[within..within + count]);
            }
            done += count;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = self.written();
        if length < written.length {
            written.pieces.split_off(&length.div_ceil(PIECE_LENGTH as u64));
            let within = (length % PIECE_LENGTH as u64) as usize;
            if let Some(last) = written.pieces.get_mut(&(length / PIECE_LENGTH as u64)) {
                last[within..].fill(0);
            }
            written.shown = written.shown.min(length);
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let shown = written.shown;
        let mut done = 0;
        for (piece, within, count) in parts(offset, data.len()) {
            let bytes = match written.pieces.entry(piece) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let mut bytes = Box::new([0; PIECE_LENGTH]);
                    self.below(shown, piece * PIECE_LENGTH as u64, &mut bytes[..])?;
                    entry.insert(bytes)
                }
            };
            bytes[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_written_shows_and_the_file_stays() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        file.write_all(&bytes).unwrap();
        let overlay = Overlay::new(File::open(file.path()).unwrap()).unwrap();
        let mut expected = bytes.clone();
        let mut check = |length: u64, at: usize, data: &[u8]| {
            overlay.set_len(length).unwrap();
            expected.resize(length as usize, 0);
            overlay.write(at as u64, data).unwrap();
            expected[at..at + data.len()].copy_from_slice(data);
            let mut found = vec![1; expected.len()];
            overlay.read(0, &mut found).unwrap();
            assert_eq!(found, expected, "{length}, {at}");
            assert_eq!(overlay.len().unwrap(), length);
        };
        check(10_000, 4_000, &[0xEE; 300]);
        check(20_000, 19_999, &[7]);
        // What was cut off does not come back.
        check(4_100, 0, &[8]);
        check(12_000, 5_000, &[9; 10]);
        assert!(overlay.read(11_999, &mut [0; 2]).is_err());
        assert!(overlay.write(u64::MAX, &[0; 2]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
    }
}
