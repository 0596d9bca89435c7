//! The kernel itself, through `io_uring`.
//!
//! Set-up goes down a ladder, so that every kernel since 5.11 works and newer ones work better:
//! `SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG|SUBMIT_ALL|NO_SQARRAY|CLAMP` (6.6), without `NO_SQARRAY` (6.1),
//! with `COOP_TASKRUN` (5.19), plain. The completion queue is much larger than the submission queue; should it
//! overflow all the same, the kernel keeps what did not fit and the next `enter` fetches it.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Instant, SystemTime};

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;

use super::arena::Arena;
use super::operation::{Allocation, Descriptor, OpenMode, Operation, Readiness};
use super::{Completion, Files, Kernel, TOKEN_CANCEL, TOKEN_MESSAGE, Wait};

const SUBMISSION_ENTRIES: u32 = 512;
const COMPLETION_ENTRIES: u32 = 16_384;
const FIXED_FILES: u32 = 1024;
/// Kernel workers per ring, for splice, fsync, fallocate and buffered writes.
const WORKERS: u32 = 16;

const RWF_DSYNC: i32 = 0x2;
const FALLOC_FL_WRITE_ZEROES: i32 = 0x80;
const FALLOC_FL_KEEP_SIZE: i32 = 0x1;
const FALLOC_FL_PUNCH_HOLE: i32 = 0x2;

/// How far down the ladder set-up went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Completion work runs when this core asks for it, not as an interrupt of it (Linux 6.1).
    pub defers_task_work: bool,
    /// Messages between rings (Linux 5.18); without them cores wake each other by eventfd.
    pub has_messages: bool,
}

/// The real kernel.
pub struct Uring {
    uring: IoUring,
    settings: RingSettings,
    /// The identity of the registered arena.
    arena: Option<u64>,
    /// Free fixed places; None when the kernel gave no table.
    places: Option<Vec<u32>>,
}

impl Uring {
    /// Sets a ring up for the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// EPERM: seccomp or `kernel.io_uring_disabled`; ENOSYS: a kernel without it; ENOMEM: the memlock limit
    /// (before Linux 5.12).
    pub fn new() -> Result<Uring, Errno> {
        let (uring, defers_task_work) = set_up()?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(Errno::NOSYS); // before Linux 5.11
        }
        let submitter = uring.submitter();
        let _ = submitter.register_iowq_max_workers(&mut [WORKERS, WORKERS]);
        let places = match submitter.register_files_sparse(FIXED_FILES) {
            Ok(()) => Some((0..FIXED_FILES).rev().collect()),
            Err(_) => None,
        };
        let mut probe = io_uring::Probe::new();
        let has_messages =
            submitter.register_probe(&mut probe).is_ok() && probe.is_supported(opcode::MsgRingData::CODE);
        let settings = RingSettings { defers_task_work, has_messages };
        Ok(Uring { uring, settings, arena: None, places })
    }

    /// What this ring can do.
    pub fn settings(&self) -> RingSettings {
        self.settings
    }

    fn push_entry(&mut self, entry: squeue::Entry) -> bool {
        // SAFETY: every pointer in the entry is into memory owned by the operation in its slot, which stays
        // there until the completion with its token (contract of `Kernel::push`); cancellations and messages
        // carry no pointer.
        unsafe { self.uring.submission().push(&entry).is_ok() }
    }
}

fn set_up() -> Result<(IoUring, bool), Errno> {
    let mut last = Errno::INVAL;
    for step in 0..4 {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(COMPLETION_ENTRIES);
        if step < 3 {
            builder.setup_submit_all().setup_taskrun_flag();
        }
        match step {
            0 => builder.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray(),
            1 => builder.setup_single_issuer().setup_defer_taskrun(),
            2 => builder.setup_coop_taskrun(),
            _ => &mut builder,
        };
        match builder.build(SUBMISSION_ENTRIES) {
            Ok(uring) => return Ok((uring, step < 2)),
            Err(error) => {
                last = errno_of(&error);
                if last != Errno::INVAL {
                    return Err(last);
                }
            }
        }
    }
    Err(last)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Kernel for Uring {
    fn push(&mut self, token: u64, operation: &mut Operation) -> bool {
        let entry = match operation {
            Operation::Poll { descriptor, readiness } => {
                let events = match readiness {
                    Readiness::Readable => POLLIN | POLLRDHUP,
                    Readiness::Writable => POLLOUT,
                    Readiness::PeerFinished => POLLRDHUP,
                };
                opcode::PollAdd::new(fd(descriptor), events).build()
            }
            Operation::Accept { listener, .. } => {
                opcode::Accept::new(fd(listener), std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(SOCK_CLOEXEC | SOCK_NONBLOCK)
                    .build()
            }
            Operation::Open { path, mode, .. } => {
                let flags = match mode {
                    OpenMode::Read => O_RDONLY,
                    OpenMode::WriteDirect => O_RDWR | O_CREAT | O_DIRECT,
                    OpenMode::WriteBuffered => O_RDWR | O_CREAT,
                };
                opcode::OpenAt::new(Fd(AT_FDCWD), path.as_ptr()).flags(flags | O_CLOEXEC).mode(0o640).build()
            }
            Operation::Allocate { file, position, length, allocation } => {
                let mode = match allocation {
                    Allocation::Reserve => 0,
                    Allocation::WriteZeroes => FALLOC_FL_WRITE_ZEROES,
                };
                opcode::Fallocate::new(fd(file), *length).offset(*position).mode(mode).build()
            }
            Operation::Punch { file, position, length } => opcode::Fallocate::new(fd(file), *length)
                .offset(*position)
                .mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
                .build(),
            Operation::Sync { file } => opcode::Fsync::new(fd(file)).build(),
            Operation::Read { file, position, buffer, start } => {
                let target = &mut buffer[*start..];
                opcode::Read::new(fd(file), target.as_mut_ptr(), target.len() as u32)
                    .offset(*position)
                    .build()
            }
            Operation::Write { file, place, position, region, durable } => {
                let flags = if *durable { RWF_DSYNC } else { 0 };
                let (pointer, length) = (region.as_ptr(), region.len() as u32);
                let registered = self.arena == Some(region.arena_identity());
                match (registered, place) {
                    (true, Some(place)) => opcode::WriteFixed::new(Fixed(*place), pointer, length, 0)
                        .offset(*position)
                        .rw_flags(flags)
                        .build(),
                    (true, None) => opcode::WriteFixed::new(fd(file), pointer, length, 0)
                        .offset(*position)
                        .rw_flags(flags)
                        .build(),
                    (false, _) => opcode::Write::new(fd(file), pointer, length)
                        .offset(*position)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Operation::Splice { file, position, pipe, length } => {
                // -1 as i64: a pipe has no position.
                opcode::Splice::new(fd(file), *position as i64, fd(pipe), -1, *length).build()
            }
            Operation::Message { address, .. } => {
                opcode::MsgRingData::new(Fd(*address), 0, TOKEN_MESSAGE, None).build()
            }
        };
        self.push_entry(entry.user_data(token))
    }

    fn push_cancel(&mut self, token: u64) -> bool {
        self.push_entry(opcode::AsyncCancel::new(token).build().user_data(TOKEN_CANCEL))
    }

    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        let waiting = !matches!(wait, Wait::No);
        let has_completions = !self.uring.completion().is_empty();
        let outcome = {
            let queued = {
                let mut submission = self.uring.submission();
                submission.sync();
                !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
            };
            let submitter = self.uring.submitter();
            match wait {
                _ if has_completions || !waiting => {
                    if queued {
                        submitter.submit()
                    } else {
                        Ok(0)
                    }
                }
                Wait::AtMost(duration) => {
                    let timespec = Timespec::from(duration);
                    submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
                }
                _ => submitter.submit_and_wait(1),
            }
        };
        if let Err(error) = outcome {
            match errno_of(&error) {
                // Time is up; a signal; or the completion queue must be emptied first, which happens below.
                Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN => {}
                errno => return Err(errno),
            }
        }
        let mut queue = self.uring.completion();
        queue.sync();
        for entry in &mut queue {
            let token = entry.user_data();
            if token != TOKEN_MESSAGE && token != TOKEN_CANCEL {
                completions.push(Completion { token, result: entry.result() });
            }
        }
        Ok(())
    }

    fn land(&mut self, completion: Completion, operation: &mut Operation) {
        if completion.result >= 0 && operation.produces_descriptor() {
            // SAFETY: the kernel has just answered this number to an accept or open of ours: it is open, and
            // nobody else knows it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(completion.result) };
            operation.receive(Descriptor::from(descriptor));
        }
    }

    fn register_arena(&mut self, arena: &Arena) -> Result<(), Errno> {
        let (base, length) = arena.mapping();
        let vector = libc_iovec { iov_base: base.cast(), iov_len: length };
        // SAFETY: the mapping stays as long as any region of it, and every write from it holds a region. The
        // registration itself pins the pages, so that even a dropped arena leaves no dangling reference.
        unsafe { self.uring.submitter().register_buffers(&[vector]) }.map_err(|error| errno_of(&error))?;
        self.arena = Some(arena.identity());
        Ok(())
    }

    fn register_file(&mut self, file: &Descriptor) -> Option<u32> {
        let place = self.places.as_mut()?.pop()?;
        let numbers = [file.system().as_raw_fd()];
        match self.uring.submitter().register_files_update(place, &numbers) {
            Ok(_) => Some(place),
            Err(_) => {
                self.places.as_mut()?.push(place);
                None
            }
        }
    }

    fn unregister_file(&mut self, place: u32) {
        if self.uring.submitter().register_files_update(place, &[-1]).is_ok()
            && let Some(places) = &mut self.places
        {
            places.push(place);
        }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }

    fn files(&self) -> &(dyn Files + 'static) {
        &SystemFiles
    }

    fn address(&self) -> i32 {
        if self.settings.has_messages { self.uring.as_raw_fd() } else { -1 }
    }
}

/// The files of the system.
struct SystemFiles;

impl Files for SystemFiles {
    fn length(&self, file: &Descriptor) -> Result<u64, Errno> {
        rustix::fs::fstat(file).map(|stat| stat.st_size as u64)
    }

    fn allocated_bytes(&self, file: &Descriptor) -> Result<u64, Errno> {
        rustix::fs::fstat(file).map(|stat| stat.st_blocks as u64 * 512)
    }

    fn set_length(&self, file: &Descriptor, length: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(file, length)
    }

    fn lock(&self, file: &Descriptor) -> Result<(), Errno> {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
    }

    fn unlock(&self, file: &Descriptor) -> Result<(), Errno> {
        rustix::fs::flock(file, FlockOperation::Unlock)
    }

    fn read_nothing_ahead(&self, file: &Descriptor) -> Result<(), Errno> {
        rustix::fs::fadvise(file, 0, None, Advice::Random)
    }

    fn free_bytes(&self, folder: &Path) -> Result<u64, Errno> {
        let disk = rustix::fs::statvfs(folder)?;
        // A file system that has no size, such as ramfs, keeps no count.
        Ok(if disk.f_blocks == 0 { u64::MAX } else { disk.f_bavail * disk.f_frsize })
    }

    fn list(&self, folder: &Path) -> Result<Vec<OsString>, Errno> {
        let names = std::fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
        names.map_err(|error| errno_of(&error))
    }
}

fn fd(descriptor: &Descriptor) -> Fd {
    Fd(descriptor.system().as_raw_fd())
}

/// What this host says to io_uring.
#[derive(Clone, Debug)]
pub struct UringReport {
    /// The rings can be used, and how.
    pub settings: Result<RingSettings, Errno>,
    /// What registering this many bytes of arena answered.
    pub registration: Result<(), Errno>,
}

/// Tries to set up a ring and to register an arena of this size.
pub fn probe(arena_bytes: usize) -> UringReport {
    let mut uring = match Uring::new() {
        Ok(uring) => uring,
        Err(errno) => return UringReport { settings: Err(errno), registration: Err(errno) },
    };
    let registration = Arena::new(1, arena_bytes.next_multiple_of(4096).max(4096))
        .and_then(|arena| uring.register_arena(&arena));
    UringReport { settings: Ok(uring.settings()), registration }
}

use libc_constants::*;

/// The few constants of the system's ABI that the operations need.
mod libc_constants {
    use rustix::event::PollFlags;
    use rustix::fs::OFlags;

    pub(super) use libc::iovec as libc_iovec;

    pub(super) const POLLIN: u32 = PollFlags::IN.bits() as u32;
    pub(super) const POLLOUT: u32 = PollFlags::OUT.bits() as u32;
    pub(super) const POLLRDHUP: u32 = PollFlags::RDHUP.bits() as u32;
    pub(super) const O_RDONLY: i32 = OFlags::RDONLY.bits() as i32;
    pub(super) const O_RDWR: i32 = OFlags::RDWR.bits() as i32;
    pub(super) const O_CREAT: i32 = OFlags::CREATE.bits() as i32;
    pub(super) const O_DIRECT: i32 = OFlags::DIRECT.bits() as i32;
    pub(super) const O_CLOEXEC: i32 = OFlags::CLOEXEC.bits() as i32;
    pub(super) const SOCK_CLOEXEC: i32 = O_CLOEXEC;
    pub(super) const SOCK_NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;
    pub(super) const AT_FDCWD: i32 = -100;
}

#[cfg(test)]
mod tests {
    use super::super::{Ring, Wait};
    use super::*;
    use std::future::Future;
    use std::io::{Read as _, Write as _};
    use std::pin::pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    fn ring() -> Rc<Ring> {
        Ring::new(Box::new(Uring::new().unwrap()))
    }

    fn wait_for<F: Future>(ring: &Ring, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            ring.turn(Wait::Forever).unwrap();
        }
    }

    fn temporary_file() -> Arc<Descriptor> {
        Arc::new(Descriptor::from(OwnedFd::from(tempfile::tempfile().unwrap())))
    }

    fn pipe() -> (std::fs::File, Arc<Descriptor>) {
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        (std::fs::File::from(writing), Arc::new(Descriptor::from(reading)))
    }

    #[test]
    fn a_region_is_written_and_read_back() {
        let ring = ring();
        let arena = Arena::new(2, 8192).unwrap();
        ring.register_arena(&arena).unwrap();
        let file = temporary_file();
        let place = ring.register_file(&file);
        let mut fill = arena.take().unwrap();
        fill.space()[..3].copy_from_slice(b"abc");
        let write = Operation::Write {
            file: file.clone(),
            place,
            position: 5,
            region: fill.commit(3),
            durable: true,
        };
        assert_eq!(wait_for(&ring, ring.start(write)).0, Ok(3));
        let read = Operation::Read { file, position: 4, buffer: vec![9; 8], start: 2 };
        let (result, operation) = wait_for(&ring, ring.start(read));
        assert_eq!(result, Ok(4));
        let Operation::Read { buffer, .. } = operation else { unreachable!() };
        assert_eq!(buffer, b"\x09\x09\0abc\x09\x09");
    }

    #[test]
    fn a_hole_is_punched_and_the_length_stays() {
        let ring = ring();
        let file = temporary_file();
        std::fs::File::from(file.system().try_clone().unwrap()).write_all(&[7; 16_384]).unwrap();
        let punch = Operation::Punch { file: file.clone(), position: 4096, length: 8192 };
        assert_eq!(wait_for(&ring, ring.start(punch)).0, Ok(0));
        assert_eq!(ring.files().length(&file), Ok(16_384));
        let read = Operation::Read { file, position: 0, buffer: vec![9; 16_384], start: 0 };
        let (_, Operation::Read { buffer, .. }) = wait_for(&ring, ring.start(read)) else { unreachable!() };
        let is_hole = |at: usize| (4096..12_288).contains(&at);
        assert!(buffer.iter().enumerate().all(|(at, &byte)| byte == if is_hole(at) { 0 } else { 7 }));
    }

    #[test]
    fn an_operation_stays_in_its_slot_when_its_future_is_dropped() {
        let ring = ring();
        let (mut writing, reading) = pipe();
        let observed = Arc::downgrade(&reading);
        let read = Operation::Read { file: reading, position: u64::MAX, buffer: vec![0; 16], start: 0 };
        let mut future = Box::pin(ring.start(read));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        ring.turn(Wait::No).unwrap();
        drop(future);
        assert_eq!(ring.in_flight(), 1, "the kernel may still write into the buffer");
        assert!(observed.upgrade().is_some());
        while ring.in_flight() > 0 {
            ring.turn(Wait::Forever).unwrap();
        }
        assert!(observed.upgrade().is_none(), "the descriptor is released with the slot");
        assert!(writing.write_all(b"x").is_err(), "the reading end is closed");
    }

    #[test]
    fn a_connection_that_nobody_took_is_closed() {
        let ring = ring();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Arc::new(Descriptor::from(OwnedFd::from(listener)));
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let accept = ring.start(Operation::Accept { listener, accepted: None });
        ring.turn(Wait::Forever).unwrap(); // the accept has landed, nobody has asked for it
        drop(accept);
        assert_eq!(ring.in_flight(), 0);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection must be closed");
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_complete() {
        let ring = ring();
        let (mut writing, reading) = pipe();
        let polls: Vec<_> = (0..SUBMISSION_ENTRIES * 3)
            .map(|_| {
                ring.start(Operation::Poll { descriptor: reading.clone(), readiness: Readiness::Readable })
            })
            .collect();
        writing.write_all(b"x").unwrap();
        for poll in polls {
            assert!(wait_for(&ring, poll).0.is_ok());
        }
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn closing_reaps_what_never_completes_by_itself() {
        let ring = ring();
        let (_writing, reading) = pipe();
        let poll = ring.start(Operation::Poll { descriptor: reading, readiness: Readiness::Readable });
        ring.turn(Wait::No).unwrap();
        assert!(ring.close());
        assert_eq!(wait_for(&ring, poll).0, Err(Errno::CANCELED));
    }

    #[test]
    fn a_late_completion_is_not_taken_for_the_next_tenants() {
        let ring = ring();
        let (_writing, reading) = pipe();
        let poll = || Operation::Poll { descriptor: reading.clone(), readiness: Readiness::Readable };
        let first = ring.start(poll());
        let stale = Completion { token: first.token, result: 1 };
        ring.turn(Wait::No).unwrap();
        drop(first);
        while ring.in_flight() > 0 {
            ring.turn(Wait::Forever).unwrap();
        }
        let second = ring.start(poll());
        assert_eq!(super::super::slot_of(second.token).0, super::super::slot_of(stale.token).0);
        assert!(matches!(ring.inner.borrow_mut().complete(stale), super::super::Landing::Nothing));
        assert_eq!(ring.in_flight(), 1);
    }
}
