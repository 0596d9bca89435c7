use std::ffi::CString;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::super::{Region, Ring, silence_bell};
use super::*;

const FOLDER: &str = "/data";
const FILE: &str = "/data/file";
const ROUNDS: u64 = 60;

/// One core's ring in a world, and what is done through it.
struct Bench {
    world: World,
    ring: Rc<Ring>,
}

impl Bench {
    fn new(settings: WorldSettings) -> Bench {
        let world = World::new(settings);
        world.make_folder(Path::new(FOLDER));
        Bench { ring: Ring::new(Box::new(world.kernel(0))), world }
    }

    fn seeded(seed: u64) -> Bench {
        Bench::new(WorldSettings { seed, ..WorldSettings::default() })
    }

    /// The next boot of the same world.
    fn restart(self) -> Bench {
        Bench { ring: Ring::new(Box::new(self.world.kernel(0))), world: self.world }
    }

    fn wait_for<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            self.ring.turn(Wait::Forever).unwrap();
        }
    }

    fn run(&self, operation: Operation) -> Result<u32, Errno> {
        self.wait_for(self.ring.start(operation)).0
    }

    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<Descriptor>, Errno> {
        let path = CString::new(path).unwrap();
        let (result, operation) =
            self.wait_for(self.ring.start(Operation::Open { path, mode, opened: None }));
        let Operation::Open { opened, .. } = operation else { unreachable!() };
        result.map(|_| Arc::new(opened.unwrap()))
    }

    fn write(
        &self,
        file: &Arc<Descriptor>,
        position: u64,
        byte: u8,
        length: usize,
        durable: bool,
    ) -> Result<u32, Errno> {
        self.run(write(file, position, byte, length, durable))
    }

    fn read(&self, file: &Arc<Descriptor>, position: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let operation =
            Operation::Read { file: file.clone(), position, buffer: vec![0xEE; length], start: 0 };
        let (result, operation) = self.wait_for(self.ring.start(operation));
        let Operation::Read { mut buffer, .. } = operation else { unreachable!() };
        buffer.truncate(result? as usize);
        Ok(buffer)
    }

    fn sync(&self, file: &Arc<Descriptor>) -> Result<u32, Errno> {
        self.run(Operation::Sync { file: file.clone() })
    }

    fn reserve(&self, file: &Arc<Descriptor>, length: u64) -> Result<u32, Errno> {
        self.run(Operation::Allocate {
            file: file.clone(),
            position: 0,
            length,
            allocation: Allocation::Reserve,
        })
    }

    /// A file whose name and whose first so many bytes, of zeroes, are on stable storage.
    fn durable_file(&self, length: u64) -> Arc<Descriptor> {
        let file = self.open(FILE, OpenMode::WriteDirect).unwrap();
        self.reserve(&file, length).unwrap();
        self.sync(&file).unwrap();
        self.sync(&self.open(FOLDER, OpenMode::Read).unwrap()).unwrap();
        file
    }

    fn content(&self) -> Vec<u8> {
        self.world.content(Path::new(FILE)).unwrap()
    }
}

fn region(byte: u8, length: usize) -> Region {
    let arena = Arena::new(1, length.next_multiple_of(4096)).unwrap();
    let mut fill = arena.take().unwrap();
    fill.space().fill(byte);
    fill.commit(length)
}

fn write(file: &Arc<Descriptor>, position: u64, byte: u8, length: usize, durable: bool) -> Operation {
    Operation::Write { file: file.clone(), place: None, position, region: region(byte, length), durable }
}

/// Every sector is of one byte: which.
fn sectors(content: &[u8]) -> Vec<u8> {
    let sectors = content.chunks(SECTOR as usize);
    sectors
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn within itself");
            sector[0]
        })
        .collect()
}

#[test]
fn what_is_written_is_read_and_a_file_ends_where_it_ends() {
    let bench = Bench::seeded(1);
    let file = bench.open(FILE, OpenMode::WriteBuffered).unwrap();
    assert_eq!(bench.write(&file, 100, 7, 5000, false), Ok(5000));
    assert_eq!(bench.ring.files().length(&file), Ok(5100));
    let content = bench.read(&file, 0, 9000).unwrap();
    assert_eq!(content.len(), 5100);
    assert!(content[..100].iter().all(|&byte| byte == 0) && content[100..].iter().all(|&byte| byte == 7));
    assert_eq!(bench.read(&file, 5100, 10), Ok(Vec::new()));
    assert_eq!(bench.open("/data/none", OpenMode::Read).unwrap_err(), Errno::NOENT);
    assert_eq!(bench.open("/none/file", OpenMode::WriteDirect).unwrap_err(), Errno::NOENT);
    let reading = bench.open(FILE, OpenMode::Read).unwrap();
    assert_eq!(bench.write(&reading, 0, 1, 512, true), Err(Errno::BADF), "opened for reading only");
}

#[test]
fn direct_writes_are_aligned_or_refused() {
    let bench = Bench::seeded(1);
    let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
    assert_eq!(bench.write(&file, 512, 1, 1024, false), Ok(1024));
    assert_eq!(bench.write(&file, 100, 1, 512, false), Err(Errno::INVAL));
    assert_eq!(bench.write(&file, 0, 1, 100, false), Err(Errno::INVAL));
    let bench = Bench::new(WorldSettings { takes_direct: false, ..WorldSettings::default() });
    assert_eq!(bench.open(FILE, OpenMode::WriteDirect).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_durable_write_survives_and_others_are_kept_by_the_sector() {
    let (mut kept, mut dropped, mut mixed) = (0, 0, 0);
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(64 << 10);
        bench.write(&file, 0, 1, 4096, true).unwrap();
        bench.write(&file, 4096, 2, 4096, false).unwrap();
        bench.world.cut_power();
        let found = sectors(&bench.content());
        assert_eq!(found.len(), 128, "the length was synced");
        assert_eq!(found[..8], [1; 8], "what was durable is there");
        match found[8..16].iter().filter(|&&byte| byte == 2).count() {
            0 => dropped += 1,
            8 => kept += 1,
            _ => mixed += 1,
        }
        assert!(found[16..].iter().all(|&byte| byte == 0));
    }
    assert!(kept > 0 && dropped > 0 && mixed > 0, "{kept} {dropped} {mixed}");
}

#[test]
fn a_durable_write_supersedes_an_earlier_one_that_was_not() {
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(8192);
        bench.write(&file, 0, 1, 8192, false).unwrap();
        bench.write(&file, 2048, 2, 4096, true).unwrap();
        bench.world.cut_power();
        assert_eq!(sectors(&bench.content())[4..12], [2; 8]);
    }
}

#[test]
fn a_sync_makes_durable_what_was_complete_when_it_was_begun() {
    let mut lost = 0;
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(8192);
        bench.write(&file, 0, 1, 4096, false).unwrap();
        // Begun together: the sync covers the second write only if that happened to be complete, and it was not.
        let sync = bench.ring.start(Operation::Sync { file: file.clone() });
        let second = bench.ring.start(write(&file, 4096, 2, 4096, false));
        bench.wait_for(second).0.unwrap();
        bench.wait_for(sync).0.unwrap();
        assert_eq!(sectors(&bench.content()), [[1; 8], [2; 8]].concat());
        bench.world.cut_power();
        let found = sectors(&bench.content());
        assert_eq!(found[..8], [1; 8]);
        lost += u32::from(found[8..] != [2; 8]);
    }
    assert!(lost > 0);
}

#[test]
fn names_are_durable_by_a_sync_of_the_folder_and_lengths_by_one_of_the_file() {
    let (mut nameless, mut empty) = (0, 0);
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
        bench.reserve(&file, 8192).unwrap();
        bench.sync(&file).unwrap();
        bench.world.cut_power();
        nameless += u32::from(bench.world.names(Path::new(FOLDER)).unwrap().is_empty());

        let bench = Bench::seeded(seed);
        let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
        bench.reserve(&file, 8192).unwrap();
        bench.write(&file, 0, 1, 4096, true).unwrap();
        bench.sync(&bench.open(FOLDER, OpenMode::Read).unwrap()).unwrap();
        bench.world.cut_power();
        match sectors(&bench.content())[..] {
            [] => empty += 1,
            ref found => assert_eq!(found[..8], [1; 8], "with its length the durable write is there"),
        }
    }
    assert!(nameless > 0 && empty > 0, "{nameless} {empty}");
}

#[test]
fn a_hole_reads_as_zeroes_at_once_and_may_come_back_by_the_page() {
    let (mut back, mut gone) = (0, 0);
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(16 << 10);
        bench.write(&file, 0, 1, 16 << 10, true).unwrap();
        let used = bench.world.used_bytes();
        let punch = Operation::Punch { file: file.clone(), position: 4096, length: 8192 };
        bench.run(punch).unwrap();
        assert_eq!(sectors(&bench.content()), [[1; 8], [0; 8], [0; 8], [1; 8]].concat());
        assert_eq!(bench.world.used_bytes(), used - 8192);
        bench.world.cut_power();
        let found = sectors(&bench.content());
        for page in found.chunks(8) {
            assert!(page.iter().all(|&byte| byte == page[0]), "a part of a page came back");
        }
        back += u32::from(found[8] == 1);
        gone += u32::from(found[8] == 0);
    }
    assert!(back > 0 && gone > 0);
}

#[test]
fn what_is_in_flight_when_the_power_goes_is_done_or_not() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(4096);
        let write = bench.ring.start(write(&file, 0, 1, 4096, true));
        bench.ring.turn(Wait::No).unwrap();
        bench.world.cut_power();
        outcomes.insert(sectors(&bench.content()).iter().filter(|&&byte| byte == 1).count().min(8));
        assert_eq!(bench.wait_for(write).0, Err(Errno::CANCELED), "who was waiting is let go");
    }
    assert!(outcomes.contains(&0) && outcomes.contains(&8) && outcomes.len() > 3, "{outcomes:?}");
}

#[test]
fn descriptors_and_kernels_end_with_their_boot_and_locks_with_their_descriptors() {
    let bench = Bench::seeded(1);
    let file = bench.durable_file(4096);
    let other = bench.open(FILE, OpenMode::Read).unwrap();
    assert_eq!(bench.ring.files().lock(&file), Ok(()));
    assert_eq!(bench.ring.files().lock(&other), Err(Errno::WOULDBLOCK));
    drop(file);
    assert_eq!(bench.ring.files().lock(&other), Ok(()));
    assert_eq!(bench.world.open_descriptors(), 1);
    bench.world.kill();
    assert_eq!(bench.sync(&other), Err(Errno::CANCELED));
    assert_eq!(bench.ring.files().length(&other), Err(Errno::BADF));
    let bench = bench.restart();
    assert_eq!(bench.sync(&other), Err(Errno::BADF));
    let again = bench.open(FILE, OpenMode::WriteDirect).unwrap();
    assert_eq!(bench.ring.files().lock(&again), Ok(()));
}

#[test]
fn what_was_written_is_read_after_a_kill() {
    let bench = Bench::seeded(1);
    let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
    bench.write(&file, 0, 3, 4096, false).unwrap();
    bench.world.kill();
    let bench = bench.restart();
    let file = bench.open(FILE, OpenMode::Read).unwrap();
    assert_eq!(bench.read(&file, 0, 4096), Ok(vec![3; 4096]));
}

#[test]
fn completions_come_in_any_order_and_time_jumps() {
    let mut orders = BTreeSet::new();
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(16 << 10);
        let writes: Vec<_> =
            (0..3).map(|at| bench.ring.start(write(&file, at * 4096, 1, 4096, true))).collect();
        let mut waiting: Vec<_> = writes.into_iter().enumerate().collect();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            bench.ring.turn(Wait::Forever).unwrap();
            waiting.retain_mut(|(number, write)| {
                let is_done = pin!(write).poll(&mut Context::from_waker(Waker::noop())).is_ready();
                if is_done {
                    order.push(*number);
                }
                !is_done
            });
        }
        orders.insert(order);
    }
    assert!(orders.len() >= 6, "{orders:?}");
    let bench = Bench::seeded(1);
    let before = bench.world.now();
    bench.ring.turn(Wait::AtMost(Duration::from_secs(3600))).unwrap();
    assert!(bench.world.now() - before >= Duration::from_secs(3600));
    assert_eq!(bench.ring.turn(Wait::Forever), Err(Errno::DEADLK));
}

#[test]
fn a_cancellation_comes_in_time_or_too_late_and_frees_the_slot_either_way() {
    let (mut whole, mut not_whole) = (0, 0);
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(4096);
        let mut write = Box::pin(bench.ring.start(write(&file, 0, 1, 4096, true)));
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        bench.ring.turn(Wait::No).unwrap();
        drop(write);
        assert_eq!(bench.ring.in_flight(), 1);
        while bench.ring.in_flight() > 0 {
            bench.ring.turn(Wait::Forever).unwrap();
        }
        match sectors(&bench.content()) == [1; 8] {
            true => whole += 1,
            false => not_whole += 1,
        }
    }
    assert!(whole > 0 && not_whole > 0);
}

#[test]
fn a_small_device_is_full_when_it_is_full() {
    let bench = Bench::new(WorldSettings { capacity_bytes: 32 << 10, ..WorldSettings::default() });
    let file = bench.durable_file(16 << 10);
    assert_eq!(bench.reserve(&file, 64 << 10), Err(Errno::NOSPC));
    assert_eq!(bench.ring.files().length(&file), Ok(16 << 10), "the length stays");
    assert_eq!(bench.world.used_bytes(), 32 << 10, "what there was is taken all the same");
    assert_eq!(bench.write(&file, 60 << 10, 1, 4096, true), Err(Errno::NOSPC));
    assert_eq!(bench.write(&file, 28 << 10, 1, 8192, true), Ok(4096), "as far as there is room");
    bench.run(Operation::Punch { file: file.clone(), position: 0, length: 8192 }).unwrap();
    assert_eq!(bench.write(&file, 32 << 10, 1, 4096, true), Ok(4096));
    let bench = Bench::new(WorldSettings { reserves: false, descriptors_max: 1, ..WorldSettings::default() });
    let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
    assert_eq!(bench.reserve(&file, 4096), Err(Errno::OPNOTSUPP));
    assert_eq!(bench.open(FILE, OpenMode::Read).unwrap_err(), Errno::MFILE);
}

#[test]
fn bad_sectors_stay_bad_and_unreadable_ones_until_they_are_written() {
    let bench = Bench::seeded(1);
    let file = bench.durable_file(16 << 10);
    bench.world.make_bad(Path::new(FILE), 4096..4608).unwrap();
    assert_eq!(bench.read(&file, 0, 8192).unwrap().len(), 4096, "up to it");
    assert_eq!(bench.read(&file, 4096, 512), Err(Errno::IO));
    assert_eq!(bench.write(&file, 2048, 1, 8192, true), Ok(2048));
    assert_eq!(bench.write(&file, 4096, 1, 4096, true), Err(Errno::IO));

    let mut unreadable = 0;
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        bench.world.set_faults(Faults { unreadable_after_cut: 0.5, ..Faults::none() });
        let file = bench.durable_file(4096);
        bench.write(&file, 0, 1, 512, false).unwrap();
        bench.world.cut_power();
        let bench = bench.restart();
        let file = bench.open(FILE, OpenMode::WriteDirect).unwrap();
        unreadable += u32::from(bench.read(&file, 0, 512) == Err(Errno::IO));
        bench.write(&file, 0, 2, 512, true).unwrap();
        assert_eq!(bench.read(&file, 0, 512), Ok(vec![2; 512]));
    }
    assert!(unreadable > 0);
}

#[test]
fn reads_can_be_wrong_once_or_for_ever_or_from_elsewhere() {
    let differing = |faults: Faults| {
        let bench = Bench::seeded(3);
        let file = bench.durable_file(64 << 10);
        for page in 0..16u8 {
            bench.write(&file, u64::from(page) * 4096, page, 4096, true).unwrap();
        }
        let before = bench.content();
        bench.world.set_faults(faults);
        let read = bench.read(&file, 32 << 10, 4096).unwrap();
        bench.world.set_faults(Faults::none());
        let count =
            |content: &[u8], from: usize| content.iter().zip(&before[from..]).filter(|(a, b)| a != b).count();
        (count(&read, 32 << 10), count(&bench.content(), 0))
    };
    assert_eq!(differing(Faults::none()), (0, 0));
    assert_eq!(differing(Faults { flipped_read: 1.0, ..Faults::none() }), (1, 0));
    assert_eq!(differing(Faults { rotten_read: 1.0, ..Faults::none() }), (1, 1));
    let (read, kept) = differing(Faults { misdirected_read: 1.0, ..Faults::none() });
    assert!(read > 0 && kept == 0);
}

#[test]
fn every_error_is_answered_when_it_is_wanted() {
    for errno in ERRNOS {
        let bench = Bench::seeded(1);
        let file = bench.durable_file(8192);
        let set = |kind| bench.world.set_faults(Faults::none().and(kind, errno, 1.0));
        set(Kind::Write);
        assert_eq!(bench.write(&file, 0, 1, 4096, true), Err(errno));
        set(Kind::Read);
        assert_eq!(bench.read(&file, 0, 4096), Err(errno));
        set(Kind::Sync);
        assert_eq!(bench.sync(&file), Err(errno));
        set(Kind::Open);
        assert_eq!(bench.open(FILE, OpenMode::Read).unwrap_err(), errno);
        set(Kind::Allocate);
        assert_eq!(bench.reserve(&file, 8192), Err(errno));
        set(Kind::Punch);
        assert_eq!(bench.run(Operation::Punch { file: file.clone(), position: 0, length: 4096 }), Err(errno));
        set(Kind::Files);
        assert_eq!(bench.ring.files().length(&file), Err(errno));
    }
    let bench = Bench::seeded(1);
    let file = bench.durable_file(8192);
    bench.world.set_faults(Faults { zero_read: 1.0, zero_write: 1.0, ..Faults::none() });
    assert_eq!(bench.write(&file, 0, 1, 4096, true), Ok(0));
    assert_eq!(bench.read(&file, 0, 4096), Ok(Vec::new()));
    bench.world.set_faults(Faults { short_read: 1.0, short_write: 1.0, ..Faults::none() });
    let count = bench.write(&file, 0, 1, 4096, true).unwrap();
    assert!(count > 0 && count < 4096 && count.is_multiple_of(512), "{count}");
    let count = bench.read(&file, 0, 4096).unwrap().len();
    assert!(count > 0 && count < 4096 && count.is_multiple_of(512), "{count}");
}

#[test]
fn after_a_failed_sync_the_bytes_are_read_and_no_later_sync_writes_them() {
    let mut lost = 0;
    for seed in 0..ROUNDS {
        let bench = Bench::seeded(seed);
        let file = bench.durable_file(4096);
        bench.write(&file, 0, 1, 4096, false).unwrap();
        bench.world.set_faults(Faults::none().and(Kind::Sync, Errno::IO, 1.0));
        assert_eq!(bench.sync(&file), Err(Errno::IO));
        bench.world.set_faults(Faults::none());
        assert_eq!(bench.sync(&file), Ok(0));
        assert_eq!(bench.read(&file, 0, 4096), Ok(vec![1; 4096]));
        bench.world.cut_power();
        lost += u32::from(sectors(&bench.content()) != [1; 8]);
    }
    assert!(lost > 0);
}

#[test]
fn a_write_goes_to_what_has_the_fixed_place() {
    let bench = Bench::seeded(1);
    let (first, second) =
        (bench.durable_file(4096), bench.open("/data/second", OpenMode::WriteDirect).unwrap());
    let place = bench.ring.register_file(&first);
    let at_place = |file: &Arc<Descriptor>| Operation::Write {
        file: file.clone(),
        place,
        position: 0,
        region: region(1, 512),
        durable: true,
    };
    assert_eq!(bench.run(at_place(&first)), Ok(512));
    bench.ring.unregister_file(place.unwrap());
    assert_eq!(bench.run(at_place(&first)), Err(Errno::BADF));
    assert_eq!(bench.ring.register_file(&second), place);
    assert_eq!(bench.run(at_place(&first)), Ok(512));
    assert_eq!(bench.read(&second, 0, 512), Ok(vec![1; 512]), "the caller's mistake is not hidden");
}

#[test]
fn bells_and_messages_call_a_core() {
    let bench = Bench::seeded(1);
    let bell = Arc::new(bench.world.bell());
    let poll = Operation::Poll { descriptor: bell.clone(), readiness: super::super::Readiness::Readable };
    let poll = bench.ring.start(poll);
    bench.ring.turn(Wait::No).unwrap();
    assert!(!bench.world.calls(0));
    super::super::ring_bell(&bell);
    assert!(bench.world.calls(0));
    assert_eq!(bench.wait_for(poll).0, Ok(1));
    silence_bell(&bell);

    let second = Ring::new(Box::new(bench.world.kernel(1)));
    let message = |address| Operation::Message { address, bell: bell.clone() };
    assert_eq!(bench.run(message(second.address())), Ok(0));
    assert!(bench.world.calls(1) && !bench.world.calls(0));
    assert_eq!(bench.run(message(7)), Err(Errno::BADFD));
    // A message that cannot be delivered rings the bell all the same.
    bench.world.set_faults(Faults::none().and(Kind::Message, Errno::OVERFLOW, 1.0));
    let poll = Operation::Poll { descriptor: bell.clone(), readiness: super::super::Readiness::Readable };
    let poll = second.start(poll);
    second.turn(Wait::No).unwrap();
    bench.ring.start_detached(message(second.address()));
    while bench.ring.in_flight() > 0 {
        bench.ring.turn(Wait::Forever).unwrap();
    }
    assert!(bench.world.calls(1));
    drop(poll);
}
