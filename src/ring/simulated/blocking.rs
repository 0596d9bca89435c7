//! Files that are used without a ring, as threads beside the cores do: every call returns when it is done.
//!
//! They lie on the same device, and what is said there of writes, syncs and power cuts is true of them too. What goes
//! wrong with them is set by itself ([`World::set_blocking_faults`]). Such a thread may be in the midst of many calls
//! when its process dies; [`World::fail_after`] says when that is.

use std::path::Path;

use super::{Event, Faults, Flight, Handle, Handled, Open, OpenMode, Request, State, World};
use crate::ring::Descriptor;
use rustix::io::Errno;

/// The core that events of blocking files are noted under.
const NO_CORE: usize = usize::MAX;

/// A file that is open for reading and writing.
pub struct BlockingFile {
    world: World,
    boot: u64,
    number: u64,
    /// Closes it.
    _descriptor: Descriptor,
}

impl World {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_blocking(&self, path: &Path) -> Result<BlockingFile, Errno> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.notice_closed();
        state.check_alive()?;
        let found = match state.disk.find(path) {
            Err(Errno::NOENT) => super::Found::File(state.disk.create(path)?),
            found => found?,
        };
        state.opened += 1;
        let number = state.opened;
        state.open.insert(number, Open { found, mode: OpenMode::WriteBuffered });
        let handle = Handle { boot: state.boot, what: Handled::File(number, state.closed.clone()) };
        Ok(BlockingFile {
            world: self.clone(),
            boot: state.boot,
            number,
            _descriptor: Descriptor::simulated(handle),
        })
    }

    /// How long a file is, in bytes.
    ///
    /// # Errors
    /// ENOENT.
    pub fn length(&self, path: &Path) -> Result<u64, Errno> {
        self.with_file(path, |file, _| file.length())
    }

    /// Removes a file from its folder, durably.
    ///
    /// # Errors
    /// ENOENT.
    pub fn remove(&self, path: &Path) -> Result<(), Errno> {
        let mut state = self.state.borrow_mut();
        state.check_alive()?;
        state.disk.remove(path)
    }

    /// Gives a file the name of another one in the same folder, which goes.
    ///
    /// # Errors
    /// ENOENT.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        let mut state = self.state.borrow_mut();
        state.check_alive()?;
        state.disk.rename(from, to)
    }

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// EIO where the process is dead.
    pub fn sync_folder(&self, path: &Path) -> Result<(), Errno> {
        let mut state = self.state.borrow_mut();
        state.check_alive()?;
        let files = state.disk.files_of(path);
        state.disk.sync_folder(path, &files);
        Ok(())
    }

    /// Sets what goes wrong with blocking files from now on.
    pub fn set_blocking_faults(&self, faults: Faults) {
        self.state.borrow_mut().blocking_faults = faults;
    }

    /// Has the process die in the midst of the call on a blocking file after so many more: that one is done in part, and
    /// none that follow do anything. Then [`World::is_failing`], and it is to be killed, or the power cut.
    pub fn fail_after(&self, calls: u64) {
        self.state.borrow_mut().blocking_calls_left = Some(calls);
    }

    /// Whether the process has died in the midst of a call on a blocking file.
    pub fn is_failing(&self) -> bool {
        self.state.borrow().is_failing
    }

    /// How many calls on blocking files there have been.
    pub fn blocking_calls(&self) -> u64 {
        self.state.borrow().blocking_calls
    }
}

impl State {
    fn check_alive(&self) -> Result<(), Errno> {
        if self.is_failing { Err(Errno::IO) } else { Ok(()) }
    }

    fn block(&mut self, boot: u64, request: Request) -> Result<(u32, super::Answer), Errno> {
        self.check_alive()?;
        if self.boot != boot {
            return Err(Errno::BADF);
        }
        self.blocking_calls += 1;
        let (kind, place) = (request.kind(), request.place());
        let is_last = self.blocking_calls_left == Some(0);
        self.blocking_calls_left = self.blocking_calls_left.map(|left| left.saturating_sub(1));
        let outcome = if is_last {
            self.is_failing = true;
            // It counts as in flight: the end of the boot does all, some or nothing of it.
            self.submitted += 1;
            let flight = Flight { core: NO_CORE, token: 0, request, is_cancelled: false };
            self.in_flight.insert((self.now, self.submitted), flight);
            Err(Errno::IO)
        } else {
            match self.blocking_faults.choose(kind, &mut self.random) {
                Some(super::Fault::Error(errno)) => {
                    self.fail(request, errno);
                    Err(errno)
                }
                Some(fault) => self.carry_out_with(request, fault),
                None => self.carry_out(request),
            }
        };
        let result = match &outcome {
            Ok((count, _)) => *count as i32,
            Err(errno) => -errno.raw_os_error(),
        };
        self.trace.note(Event { at: self.now, core: NO_CORE, kind, place, result });
        outcome
    }
}

impl BlockingFile {
    fn block(&self, request: Request) -> Result<(u32, super::Answer), Errno> {
        self.world.state.borrow_mut().block(self.boot, request)
    }

    /// How long it is, in bytes.
    ///
    /// # Errors
    /// EIO, EBADF where the process is dead.
    pub fn length(&self) -> Result<u64, Errno> {
        let mut state = self.world.state.borrow_mut();
        state.check_alive()?;
        if state.boot != self.boot {
            return Err(Errno::BADF);
        }
        state.file_mut(self.number).map(|file| file.length())
    }

    /// Sets its length.
    ///
    /// # Errors
    /// What goes wrong.
    pub fn set_length(&self, length: u64) -> Result<(), Errno> {
        self.block(Request::SetLength { file: self.number, length }).map(drop)
    }

    /// Fills the target with what is at this position.
    ///
    /// # Errors
    /// What goes wrong. EIO where there is less.
    pub fn read(&self, position: u64, target: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < target.len() {
            let (at, length) = (position + done as u64, (target.len() - done) as u64);
            let (_, answer) = match self.block(Request::Read { file: self.number, position: at, length }) {
                Err(Errno::INTR) => continue,
                outcome => outcome?,
            };
            let super::Answer::Bytes(bytes) = answer else { return Err(Errno::IO) };
            if bytes.is_empty() {
                return Err(Errno::IO);
            }
            target[done..done + bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
        }
        Ok(())
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// What goes wrong; some of them may be written then.
    pub fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let (file, position, bytes) = (self.number, position + done as u64, bytes[done..].to_vec());
            let request = Request::Write { file, place: None, position, bytes, durable: false };
            match self.block(request) {
                Err(Errno::INTR) => {}
                Ok((0, _)) => return Err(Errno::IO),
                outcome => done += outcome?.0 as usize,
            }
        }
        Ok(())
    }

    /// Makes durable what was done to it.
    ///
    /// # Errors
    /// What goes wrong: see [`super`] for what is left then.
    pub fn sync(&self) -> Result<(), Errno> {
        let covers = {
            let mut state = self.world.state.borrow_mut();
            super::Covers::Changes(state.file_mut(self.number).map_or(0, |file| file.changed()))
        };
        self.block(Request::Sync { file: self.number, covers }).map(drop)
    }
}
