//! Thousands of clients that come and vanish, and what is left of them: nothing.
//!
//! Followers and writers of all kinds go away at random moments, regularly or not, in the midst of anything; some
//! stop reading or writing before. One follower stays on one object that is written throughout, and sees every byte.
//! When all are gone, the server has as many descriptors, threads, connections, followers, awaited writers, live
//! objects, blocks in flight and pieces of memory in use as before the first of them, and no more memory than is said
//! below. What happens depends on a seed, which is printed, and on the moment.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use common::{End, PATIENCE, Put, Random, Server, content, eventually, seed};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FOLLOWERS: usize = 2_000;
const WRITERS: usize = 500;
/// In so many waves. As many come once before anything is counted.
const WAVES: usize = 5;
/// How many rounds a client stays at most.
const ROUNDS_MAX: u64 = 80;
/// How much memory may have come in addition: what is known of the objects that were written, what the catalog's cache
/// has not been filled with, and what the allocator makes of the order in which all went away.
const MEMORY_BOUND_BYTES: u64 = 40 << 20;
/// What the object that stays grows by in a round.
const STEADY_PIECE: usize = 6_000;
/// What must be as it was before.
const GAUGES: [&str; 8] = [
    "tailwater_connections_open",
    "tailwater_followers",
    "tailwater_followers_waiting",
    "tailwater_writers_awaited",
    "tailwater_objects_live",
    "tailwater_blocks_in_flight",
    "tailwater_blocks_in_flight_bytes",
    "tailwater_arena_pieces_lent",
];

/// Who a client is.
#[derive(Clone, Copy, Debug)]
enum Role {
    Follower,
    Plain,
    Chunked,
    Resumable,
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// With a regular end of the connection.
    Closes,
    /// With a reset.
    Resets,
    /// As the first, after it has done nothing for half of its time: it neither reads nor writes.
    Stalls,
    /// It says that it has nothing more to send, and goes later.
    HalfCloses,
    /// It comes to its end: a writer is answered that its object was created.
    Finishes,
}

struct Client {
    stream: TcpStream,
    number: usize,
    role: Role,
    fate: Fate,
    /// How long it stays, and how long it has been there.
    rounds: u64,
    round: u64,
    /// What it still has to send of what it has begun to.
    outgoing: Vec<u8>,
    /// What is left of its body, in bytes.
    left: usize,
    /// What it was answered, for writers.
    answer: Vec<u8>,
    is_gone: bool,
}

/// What became of the clients.
#[derive(Debug, Default)]
struct Tally {
    followers: usize,
    writers: usize,
    fates: BTreeMap<&'static str, usize>,
    resumed: usize,
    finished: usize,
    most_at_once: usize,
}

fn connect_to(address: SocketAddr, has_small_buffer: bool) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    if has_small_buffer {
        // Before connecting: it decides on the window scale.
        sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    }
    connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

fn path(number: usize) -> String {
    format!("/churn/{number}")
}

impl Client {
    fn come(server: &Server, role: Role, number: usize, others: usize, random: &mut Random) -> Client {
        let fate = match random.below(6) {
            0 => Fate::Resets,
            1 => Fate::Stalls,
            2 => Fate::HalfCloses,
            3 => Fate::Finishes,
            _ => Fate::Closes,
        };
        let length = 1 + random.below(150_000) as usize;
        let path = path(number);
        let request = match role {
            Role::Follower => {
                // Half of them follow the one that stays, from its beginning or from now on.
                let target = match random.below(4) {
                    0 => "/churn/steady".to_owned(),
                    1 => "/churn/steady?from=live".to_owned(),
                    _ => format!("/churn/{}?wait=2", number + random.below(others as u64) as usize),
                };
                format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")
            }
            Role::Plain => format!("PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"),
            Role::Chunked => {
                format!("PUT {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
            }
            Role::Resumable => format!(
                "PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\nUpload-Complete: ?1\r\n\
                 Upload-Draft-Interop-Version: 8\r\n\r\n"
            ),
        };
        Client {
            stream: connect_to(server.data_address(), random.below(2) == 0),
            number,
            role,
            fate,
            rounds: 1 + random.below(ROUNDS_MAX),
            round: 0,
            outgoing: request.into_bytes(),
            left: length,
            answer: Vec::new(),
            is_gone: false,
        }
    }

    /// Does a little. False when its time is over, or the server has ended the connection.
    fn step(&mut self, random: &mut Random) -> bool {
        self.round += 1;
        if self.round >= self.rounds {
            return false;
        }
        let is_second_half = self.round > self.rounds / 2;
        match self.fate {
            Fate::Stalls if is_second_half => return true,
            Fate::HalfCloses if self.round == self.rounds / 2 => {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            Fate::HalfCloses if is_second_half => self.outgoing.clear(),
            _ => self.say_more(1 + random.below(6_000) as usize),
        }
        self.send();
        self.receive();
        !self.is_gone
    }

    /// The next piece of a writer's body.
    fn say_more(&mut self, length: usize) {
        if matches!(self.role, Role::Follower) || !self.outgoing.is_empty() {
            return;
        }
        let piece = length.min(self.left);
        if piece == 0 {
            return;
        }
        self.left -= piece;
        let bytes = content(self.number as u64, piece);
        match self.role {
            Role::Chunked => {
                self.outgoing.extend_from_slice(format!("{piece:x}\r\n").as_bytes());
                self.outgoing.extend_from_slice(&bytes);
                self.outgoing.extend_from_slice(b"\r\n");
            }
            _ => self.outgoing.extend_from_slice(&bytes),
        }
    }

    fn send(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.is_gone = true,
            }
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; 32 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.is_gone = true,
            Ok(count) if !matches!(self.role, Role::Follower) => {
                self.answer.extend_from_slice(&bytes[..count])
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.is_gone = true,
        }
    }

    /// Goes, as its fate is.
    fn leave(mut self, server: &Server, random: &mut Random, tally: &mut Tally) {
        let fate = match self.fate {
            _ if self.is_gone => "was ended by the server",
            Fate::Closes => "closed",
            Fate::Resets => "reset",
            Fate::Stalls => "stalled",
            Fate::HalfCloses => "half closed",
            Fate::Finishes => "finished",
        };
        *tally.fates.entry(fate).or_default() += 1;
        let is_writer = !matches!(self.role, Role::Follower);
        match self.fate {
            Fate::Finishes if is_writer && !self.is_gone => {
                self.finish();
                tally.finished += 1;
                return;
            }
            Fate::Resets => sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap(),
            _ => {}
        }
        let resumes = matches!(self.role, Role::Resumable) && random.below(2) == 0;
        let (answer, number) = (std::mem::take(&mut self.answer), self.number);
        drop(self);
        if resumes && let Some(upload) = upload_in(&answer) {
            tally.resumed += usize::from(resume(server, &upload, number, random.below(2) == 0));
        }
    }

    /// Sends what is left, and waits for the answer.
    fn finish(&mut self) {
        self.stream.set_nonblocking(false).unwrap();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.say_more(self.left);
        while self.left > 0 {
            self.send();
            self.say_more(self.left);
        }
        if matches!(self.role, Role::Chunked) {
            self.outgoing.extend_from_slice(b"0\r\n\r\n");
        }
        self.send();
        while !self.is_gone && !String::from_utf8_lossy(&self.answer).contains("HTTP/1.1 201") {
            self.receive();
        }
        assert!(!self.is_gone, "{}: {:?}", self.number, String::from_utf8_lossy(&self.answer));
    }
}

/// Where an upload can be gone on with, if that was told.
fn upload_in(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let location = text.lines().find_map(|line| line.strip_prefix("location: ").map(str::to_owned))?;
    Some(location)
}

/// Goes on with an upload, to its end or not. False: it was complete.
fn resume(server: &Server, upload: &str, number: usize, finishes: bool) -> bool {
    let head = server.head(upload);
    if head.get("upload-complete") != Some("?0") {
        return false;
    }
    let offset: usize = head.get("upload-offset").unwrap().parse().unwrap();
    let length: usize = head.get("upload-length").unwrap().parse().unwrap();
    let (left, mut connection) = (length - offset, server.connect());
    let headers = [
        ("Content-Type", "application/partial-upload"),
        ("Upload-Offset", &offset.to_string()),
        ("Upload-Complete", "?1"),
        ("Content-Length", &left.to_string()),
    ];
    connection.request("PATCH", upload, &headers);
    let bytes = content(number as u64, left);
    if finishes {
        connection.send(&bytes);
        assert_eq!(connection.response("PATCH").head.status, 201);
    } else {
        connection.send(&bytes[..left / 2]);
    }
    true
}

/// Clients come, stay for a while and vanish, until all have gone; the object that stays grows meanwhile.
fn wave(server: &Server, first: usize, random: &mut Random, steady: &mut Steady, tally: &mut Tally) {
    let (followers, writers) = (FOLLOWERS / WAVES, WRITERS / WAVES);
    let mut coming: Vec<Role> = (0..followers).map(|_| Role::Follower).collect();
    coming.extend((0..writers).map(|number| match number % 3 {
        0 => Role::Plain,
        1 => Role::Chunked,
        _ => Role::Resumable,
    }));
    for at in (1..coming.len()).rev() {
        coming.swap(at, random.below(at as u64 + 1) as usize);
    }
    let (mut here, mut number) = (Vec::new(), first);
    while !(coming.is_empty() && here.is_empty()) {
        for role in coming.split_off(coming.len().saturating_sub(random.below(40) as usize)) {
            number += usize::from(!matches!(role, Role::Follower));
            *(if matches!(role, Role::Follower) { &mut tally.followers } else { &mut tally.writers }) += 1;
            here.push(Client::come(server, role, number, writers, random));
        }
        tally.most_at_once = tally.most_at_once.max(here.len());
        steady.grow();
        let (stay, go): (Vec<Client>, Vec<Client>) = here
            .into_iter()
            .map(|mut client| (client.step(random), client))
            .fold((Vec::new(), Vec::new()), |(mut stay, mut go), (stays, client)| {
                if stays {
                    stay.push(client)
                } else {
                    go.push(client)
                }
                (stay, go)
            });
        here = stay;
        for client in go {
            client.leave(server, random, tally);
        }
    }
}

/// The object that is written throughout.
struct Steady {
    put: Put,
    pieces: u64,
}

impl Steady {
    fn begin(server: &Server) -> Steady {
        Steady { put: server.begin_put("/churn/steady", None, &[]), pieces: 0 }
    }

    fn piece(number: u64) -> Vec<u8> {
        content(number + 1, STEADY_PIECE)
    }

    fn grow(&mut self) {
        self.put.send(&Steady::piece(self.pieces));
        self.pieces += 1;
    }
}

/// What a server holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    gauges: Vec<u64>,
    threads: usize,
    /// Sockets, pipes and others, but for segment files: of those the last that were read stay open.
    descriptors: usize,
}

/// What it holds besides, which need not be the same.
#[derive(Debug)]
struct Besides {
    segment_files: usize,
    kernel_workers: usize,
    memory_bytes: u64,
}

fn look(server: &Server) -> (Held, Besides) {
    let folder = format!("/proc/{}", server.process_id());
    let names = |of: &str| {
        let tasks = std::fs::read_dir(format!("{folder}/{of}")).unwrap();
        tasks.map(|entry| entry.unwrap().path())
    };
    // A worker of the kernel's shows as a thread, for as long as the kernel likes.
    let (workers, threads): (Vec<_>, Vec<_>) = names("task")
        .filter_map(|task| std::fs::read_to_string(task.join("comm")).ok())
        .partition(|name| name.starts_with("iou-"));
    let (segments, others): (Vec<_>, Vec<_>) = names("fd")
        .filter_map(|descriptor| std::fs::read_link(descriptor).ok())
        .partition(|target| target.starts_with(server.data_path().join("segments")));
    let pages: u64 = {
        let statm = std::fs::read_to_string(format!("{folder}/statm")).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // The connection that asks is to the other listener, whose connections are not counted; but it is a descriptor,
    // as is that of the look before until the server has noticed.
    let gauges = GAUGES.iter().map(|gauge| server.metric(gauge)).collect();
    let held = Held { gauges, threads: threads.len(), descriptors: others.len() };
    let memory_bytes = pages * rustix::param::page_size() as u64;
    (held, Besides { segment_files: segments.len(), kernel_workers: workers.len(), memory_bytes })
}

/// Waits until all is over, and looks at what is left.
fn at_rest(server: &Server, before: Option<&Held>) -> (Held, Besides) {
    eventually("nobody is there any more", || {
        let (held, _) = look(server);
        held.gauges.iter().all(|&gauge| gauge == 0) && before.is_none_or(|before| *before == held)
    });
    let rest = look(server);
    let Besides { segment_files, kernel_workers, memory_bytes } = &rest.1;
    println!(
        "{:?}; besides {segment_files} segment files, {kernel_workers} kernel workers, {} KiB of memory",
        rest.0,
        memory_bytes >> 10
    );
    rest
}

#[test]
fn nothing_is_left_of_thousands_of_clients_that_come_and_vanish_and_who_stays_sees_every_byte() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut random = Random::new(seed());
    let mut server = Server::start_with(&["--resume-window", "churn resumable=1s", "--log-level", "warn"]);

    // What is made once is made for these: memory for as many as are there at once, and the catalog's cache.
    let mut warm_up = Tally::default();
    let mut steady = Steady::begin(&server);
    for number in 0..WAVES {
        wave(&server, number * WRITERS, &mut random, &mut steady, &mut warm_up);
    }
    steady.put.close();
    let (before, besides_before) = at_rest(&server, None);

    let mut tally = Tally::default();
    let mut steady = Steady::begin(&server);
    let mut body = server.follow("/churn/steady");
    let follower = std::thread::spawn(move || {
        let (mut number, mut bytes) = (0, Vec::new());
        loop {
            match body.take_some(usize::MAX) {
                Ok(some) => bytes.extend(some),
                Err(end) => return (number, bytes.len(), end),
            }
            while bytes.len() >= STEADY_PIECE {
                let rest = bytes.split_off(STEADY_PIECE);
                assert!(bytes == Steady::piece(number), "piece {number} is another one");
                (bytes, number) = (rest, number + 1);
            }
        }
    });
    for number in 0..WAVES {
        wave(&server, (WAVES + number) * WRITERS, &mut random, &mut steady, &mut tally);
    }
    let pieces = steady.pieces;
    steady.put.finish_created();
    assert_eq!(follower.join().unwrap(), (pieces, 0, End::Clean), "who stays sees every byte, and the end");

    let (_, besides_after) = at_rest(&server, Some(&before));
    println!("{tally:?}");
    assert_eq!((tally.followers, tally.writers), (FOLLOWERS, WRITERS));
    let grown = besides_after.memory_bytes.saturating_sub(besides_before.memory_bytes);
    println!("memory has grown by {} KiB, and may by {}", grown >> 10, MEMORY_BOUND_BYTES >> 10);
    assert!(grown <= MEMORY_BOUND_BYTES, "{besides_before:?} {besides_after:?}");
    server.assert_alive();
    server.assert_undamaged();
}
