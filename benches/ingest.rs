//! How close one upload comes to the raw kernel path.
//!
//! In one run, in turns: the raw loop (receive from loopback into a registered buffer, write with `O_DIRECT` and
//! `RWF_DSYNC` into initialised blocks, nothing else: no checksum, no format, no name) and a PUT of the same length
//! into a server; then the ratio of their medians, and the CPU that the receiving side took per GiB.
//!
//! `cargo bench --bench ingest [-- --gib N --rounds N]`. Prints; judges nothing.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwater::ring::{Allocation, Arena, Descriptor, OpenMode, Region, Ring, Uring};
use tailwater::runtime::{Core, Mailbox, Stream, Task};

const GIB: u64 = 1 << 30;
/// What the raw loop writes at once, and how much of it may be in flight.
const RAW_BLOCK_LENGTH: usize = 512 << 10;
const RAW_BLOCKS_IN_FLIGHT: usize = 8;

struct Measured {
    elapsed: Duration,
    cpu: Duration,
    bytes: u64,
}

impl Measured {
    fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64() / (1 << 20) as f64
    }

    fn cpu_seconds_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 / GIB as f64)
    }
}

fn main() {
    let bytes = option("--gib").unwrap_or(2) * GIB;
    let rounds = option("--rounds").unwrap_or(5);
    let folder = Folder::new();
    println!(
        "one connection over loopback, {} GiB, {rounds} rounds; MiB/s and CPU seconds per GiB",
        bytes / GIB
    );

    let raw_file = folder.0.join("raw");
    prepare_raw(&raw_file, bytes);
    let server = Server::start(&folder.0.join("data"));
    let fresh = server.put(bytes);
    println!(
        "  first upload of the store (segments made meanwhile)  {:8.0}  {:5.3}",
        fresh.mib_per_second(),
        fresh.cpu_seconds_per_gib()
    );
    server.wait_for_segments();

    let (mut raw, mut tailwater) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let a = run_raw(&raw_file, bytes);
        let b = server.put(bytes);
        println!(
            "  round {round}: raw {:6.0}  {:5.3}   tailwater {:6.0}  {:5.3}",
            a.mib_per_second(),
            a.cpu_seconds_per_gib(),
            b.mib_per_second(),
            b.cpu_seconds_per_gib()
        );
        raw.push(a);
        tailwater.push(b);
    }
    let median = |runs: &[Measured], figure: fn(&Measured) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let (raw_speed, our_speed) =
        (median(&raw, Measured::mib_per_second), median(&tailwater, Measured::mib_per_second));
    let (raw_cpu, our_cpu) =
        (median(&raw, Measured::cpu_seconds_per_gib), median(&tailwater, Measured::cpu_seconds_per_gib));
    println!("  median:  raw {raw_speed:6.0}  {raw_cpu:5.3}   tailwater {our_speed:6.0}  {our_cpu:5.3}");
    println!("  ratio tailwater / raw: speed {:.2}, CPU {:.2}", our_speed / raw_speed, our_cpu / raw_cpu);
}

fn option(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map(|text| text.parse().expect("a whole number"))
}

/// A folder on a real disk, gone when the run is over.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ingest-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the run");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sends `bytes` bytes, after `head`.
fn send(stream: &mut TcpStream, head: &[u8], bytes: u64) {
    let piece: Vec<u8> = (0..1 << 20).map(|index: u32| ((index * 7) >> 3) as u8).collect();
    stream.write_all(head).expect("the receiver takes it");
    let mut left = bytes;
    while left > 0 {
        let length = left.min(piece.len() as u64) as usize;
        stream.write_all(&piece[..length]).expect("the receiver takes it");
        left -= length as u64;
    }
}

/// CPU time of all threads of a process, or of one, from the scheduler's own accounts in nanoseconds.
fn cpu_of(tasks: &Path) -> Duration {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(tasks).expect("the process runs").flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    }
    Duration::from_nanos(nanoseconds)
}

fn run_on_core<F: Future>(main: impl FnOnce(Rc<Core>) -> F) -> F::Output {
    let ring = Ring::new(Box::new(Uring::new().expect("io_uring is allowed")));
    let core = Core::new(0, ring, Mailbox::new().expect("an event descriptor"));
    let future = main(core.clone());
    core.run(future).expect("the ring works")
}

fn prepare_raw(path: &Path, bytes: u64) {
    run_on_core(|core| async move {
        let file = core.open(path, OpenMode::WriteDirect).await.expect("the disk takes direct writes");
        core.allocate(&file, 0, bytes, Allocation::Reserve).await.expect("there is room");
        let arena = Arena::new(1, 1 << 20).expect("memory");
        let zeroes = arena.take().expect("a piece").commit(1 << 20);
        for position in (0..bytes).step_by(1 << 20) {
            core.write(&file, None, position, zeroes.clone(), false).await.expect("the disk works");
        }
        core.sync(&file).await.expect("the disk works");
    });
}

fn run_raw(path: &Path, bytes: u64) -> Measured {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (path, receiving) = (path.to_owned(), Instant::now());
    let receiver = std::thread::spawn(move || {
        let (connection, _) = listener.accept().expect("a connection");
        connection.set_nonblocking(true).expect("it can be set");
        let before = cpu_of_thread();
        run_on_core(|core| {
            receive_raw(core, path, Descriptor::from(std::os::fd::OwnedFd::from(connection)), bytes)
        });
        cpu_of_thread() - before
    });
    let mut stream = TcpStream::connect(address).expect("it listens");
    let _ = receiving;
    let began = Instant::now();
    send(&mut stream, b"", bytes);
    let cpu = receiver.join().expect("the raw loop ends");
    Measured { elapsed: began.elapsed(), cpu, bytes }
}

fn cpu_of_thread() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

async fn receive_raw(core: Rc<Core>, path: PathBuf, connection: Descriptor, bytes: u64) {
    let stream = Stream::new(core.clone(), Arc::new(connection));
    let file = core.open(&path, OpenMode::WriteDirect).await.expect("the file is there");
    let place = core.ring().register_file(&file);
    let arena = Arena::new(RAW_BLOCKS_IN_FLIGHT + 1, RAW_BLOCK_LENGTH).expect("memory");
    core.ring().register_arena(&arena).expect("the arena can be registered");
    let mut in_flight: std::collections::VecDeque<Task<()>> = std::collections::VecDeque::new();
    let mut position = 0;
    while position < bytes {
        while in_flight.len() >= RAW_BLOCKS_IN_FLIGHT {
            in_flight.pop_front().expect("one is in flight").await;
        }
        let mut fill = loop {
            match arena.take() {
                Some(fill) => break fill,
                None => in_flight.pop_front().expect("one is in flight").await,
            }
        };
        let mut filled = 0;
        while filled < RAW_BLOCK_LENGTH {
            match stream.try_receive(&mut [IoSliceMut::new(&mut fill.space()[filled..])]).expect("it sends") {
                Some(count) => filled += count,
                None => stream.readable().await.expect("it sends"),
            }
        }
        let region = fill.commit(RAW_BLOCK_LENGTH);
        in_flight.push_back(core.spawn(write_raw(core.clone(), file.clone(), place, position, region)));
        position += RAW_BLOCK_LENGTH as u64;
    }
    for write in in_flight {
        write.await;
    }
}

async fn write_raw(core: Rc<Core>, file: Arc<Descriptor>, place: Option<u32>, position: u64, region: Region) {
    core.write(&file, place, position, region, true).await.expect("the disk works");
}

/// The server, as it is shipped.
struct Server {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Server {
    fn start(data: &Path) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut find = |word: &str| loop {
            let line = lines.next().expect("the server says where it listens").expect("text");
            if line.trim_start().starts_with(word) {
                let rest = line.split("http://").nth(1).expect("an address");
                break rest.split('/').next().expect("an address").parse().expect("an address");
            }
        };
        let (address, admin) = (find("objects"), find("admin"));
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address, admin }
    }

    /// Uploads, then deletes, so that the next upload finds segments to use again.
    fn put(&self, bytes: u64) -> Measured {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let head = format!("PUT /bench/object HTTP/1.1\r\nHost: bench\r\nContent-Length: {bytes}\r\n\r\n");
        let (before, began) = (cpu_of(&tasks), Instant::now());
        send(&mut stream, head.as_bytes(), bytes);
        let answer = read_head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let measured = Measured { elapsed: began.elapsed(), cpu: cpu_of(&tasks) - before, bytes };
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.write_all(b"DELETE /bench/object HTTP/1.1\r\nHost: bench\r\n\r\n").expect("it reads");
        let answer = read_head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        self.wait_for_segments();
        measured
    }

    /// Waits until no segment is being prepared: what was deleted can be used again.
    fn wait_for_segments(&self) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        loop {
            let before = cpu_of(&tasks);
            std::thread::sleep(Duration::from_millis(300));
            if cpu_of(&tasks) - before < Duration::from_millis(5) {
                return;
            }
        }
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !text.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut piece).expect("an answer");
        assert!(count > 0, "the server closed without an answer");
        text.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.admin;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
