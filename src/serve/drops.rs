//! The task of a connection is dropped at every await point, in the midst of every kind of exchange.
//!
//! A store runs on a core over the real kernel, in memory of its own and files of its own; client and server are both on
//! that core, over a socket of this host. The client sends a piece when the server has taken the one before, so that a
//! cut may fall between any two of them. When all is quiet again, nothing is left of what was dropped: the client sees
//! the end, nobody waits, nothing is promised, pinned, in flight or open that was not before. What was being put is
//! interrupted or awaited and has all that was taken, and no more than was sent; whole is only what says so; and the
//! next connection finds all that, and goes on with it.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::io::{IoSlice, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use redb::backends::InMemoryBackend;
use sha1::{Digest, Sha1};

use super::server::{Arrival, Door, Here, Shared, attend};
use crate::config::{Config, Retention};
use crate::context::Context;
use crate::drops::Cut;
use crate::error::{Error, Kind};
use crate::log::{Space, SpaceSettings};
use crate::metrics::Source;
use crate::ring::{Arena, Descriptor};
use crate::runtime::{Either, Receiver, Stream, race, yield_now};
use crate::store::assembly::{Assembly, Beginning, CatalogWork, CoreSettings, assemble, work};
use crate::store::offline::run;
use crate::store::recover::Recovered;
use crate::store::{Census as StoreCensus, Database, LocalStore, Metadata, Name, Object, State, Writer};

const SEGMENT_BYTES: u64 = 8 << 20;
const PIECES: usize = 8;
const PIECE_LENGTH: usize = 256 << 10;
/// How often all exchanges are gone through: not all that the kernel does takes the same time each time.
const ROUNDS: usize = 2;
/// How much the sockets of a connection hold, more or less: less than an object that is read from them, and more than a
/// packet of this host.
const RECEIVE_LENGTH: usize = 80 << 10;
const SEND_LENGTH: usize = 16 << 10;
/// How long something may take that is to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of the objects that are read from files.
const STORED_LENGTH: usize = 500_000;
const STORED_APPEND: usize = 200_000;
/// Of those whose runs are too short to be spliced.
const SHORT_LENGTH: usize = 120_000;
const SHORT_APPEND: usize = 3000;

/// What is under way on a core. It is the same before an exchange and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    pub store: StoreCensus,
    pub pieces_lent: usize,
    /// Connections that are counted for this core, and those of the data listener.
    pub open: usize,
    pub data_open: usize,
    /// Tasks of connections.
    pub connections: usize,
    pub drain_waiters: usize,
    /// What is shown of open connections, followers, and followers that wait.
    pub gauges: [i64; 3],
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

struct Case {
    /// What is dropped: a connection's task, wherever it waits, and so in this too.
    of: &'static str,
    /// In the midst of what.
    exchange: &'static str,
    run: fn(Rc<Scene>) -> Running,
}

/// The server's part on a core, and the way to it.
struct Stage {
    here: Rc<Here>,
    /// Taken while somebody waits there.
    arrivals: Cell<Option<Receiver<Arrival>>>,
    /// What connections run under.
    listener: Context,
    folder: PathBuf,
    /// Pipes of the process that are no server's; none where others run in it, and make some.
    pipes_before: Option<usize>,
}

/// Where an exchange happens: once for each cut.
struct Scene {
    stage: Rc<Stage>,
    cut: Cut,
    /// Different for each cut of all cases.
    number: usize,
    /// The connection had ended before the cut.
    is_last: Cell<bool>,
}

impl std::ops::Deref for Scene {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

/// The other end of a connection.
struct Client {
    stream: Stream,
    server: Weak<Descriptor>,
    received: RefCell<Vec<u8>>,
    end: Cell<Option<End>>,
    /// How much of a body the server has certainly taken into the object, in bytes.
    taken: Cell<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Clean,
    Reset,
}

/// An answer, or as much of it as there is.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// All of it is there, by what it says itself.
    is_whole: bool,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.header(name)?.parse().ok()
    }
}

/// The first answer in these bytes, and where it ends as far as it is there. None: its head is not whole.
fn parse(bytes: &[u8], has_body: bool, is_ended: bool) -> Option<(Answer, usize)> {
    let length = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..length].to_vec()).unwrap();
    let status: u16 = head[9..12].parse().unwrap();
    let rest = &bytes[length..];
    let mut answer = Answer { status, head, ..Answer::default() };
    let used = if status < 200 || status == 204 || status == 304 || !has_body {
        answer.is_whole = true;
        0
    } else if let Some(wanted) = answer.number("content-length") {
        answer.body = rest[..rest.len().min(wanted)].to_vec();
        answer.is_whole = rest.len() >= wanted;
        answer.body.len()
    } else if answer.header("transfer-encoding").is_some() {
        let mut at = 0;
        while let Some(line) = rest[at..].windows(2).position(|two| two == b"\r\n") {
            let count = std::str::from_utf8(&rest[at..at + line]).unwrap();
            let count = usize::from_str_radix(count, 16).unwrap();
            at += line + 2;
            answer.body.extend_from_slice(&rest[at..rest.len().min(at + count)]);
            if rest.len() < at + count + 2 {
                break;
            }
            at += count + 2;
            if count == 0 {
                answer.is_whole = true;
                break;
            }
        }
        at
    } else {
        answer.body = rest.to_vec();
        answer.is_whole = is_ended;
        rest.len()
    };
    Some((answer, length + used))
}

impl Client {
    /// Sends bytes, and returns when the server has taken all of them. False: it is gone.
    async fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.stream.try_send(&[IoSlice::new(bytes)], false) {
                Ok(Some(count)) => bytes = &bytes[count..],
                Ok(None) => self.stream.writable().await.unwrap(),
                Err(_) => return false,
            }
        }
        while let Some(server) = self.server.upgrade() {
            if rustix::io::ioctl_fionread(&*server).unwrap() == 0 {
                return true;
            }
            drop(server);
            yield_now().await;
        }
        false
    }

    /// Sends some of a body behind what was taken of it before: it goes from the socket to its place in the object.
    async fn send_body(&self, taken: usize, bytes: &[u8]) {
        if self.send(bytes).await {
            self.taken.set(taken + bytes.len());
        }
    }

    /// Receives something. False: nothing will come any more.
    async fn receive(&self) -> bool {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match self.stream.try_receive(&mut [IoSliceMut::new(&mut buffer)]) {
                Ok(Some(0)) => self.end.set(Some(End::Clean)),
                Ok(Some(count)) => {
                    self.received.borrow_mut().extend_from_slice(&buffer[..count]);
                    return true;
                }
                Ok(None) => {
                    self.stream.readable().await.unwrap();
                    continue;
                }
                Err(_) => self.end.set(Some(End::Reset)),
            }
            return false;
        }
    }

    /// What was received so far, as an answer.
    fn so_far(&self, has_body: bool) -> Answer {
        let parsed = parse(&self.received.borrow(), has_body, self.end.get() == Some(End::Clean));
        parsed.map(|(answer, _)| answer).unwrap_or_default()
    }

    /// The next answer, whole or cut off.
    async fn answer(&self, has_body: bool) -> Answer {
        loop {
            let parsed = parse(&self.received.borrow(), has_body, self.end.get() == Some(End::Clean));
            if let Some((answer, used)) = parsed
                && answer.is_whole
            {
                self.received.borrow_mut().drain(..used);
                return answer;
            }
            if !self.receive().await {
                return self.so_far(has_body);
            }
        }
    }

    /// Receives until so much of the body of an answer is there.
    async fn receive_body(&self, length: usize) {
        while self.so_far(true).body.len() < length && self.receive().await {}
    }

    async fn ask(&self, request: &str) -> Answer {
        self.send(request.as_bytes()).await;
        self.answer(!request.starts_with("HEAD")).await
    }

    /// Finishes sending, and takes what still comes.
    async fn finish(&self) {
        self.stream.finish();
        while self.receive().await {}
    }
}

fn background() -> Context {
    Context::background()
}

/// Bytes that tell where they are.
fn content(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251 + seed * 7919) as u8).collect()
}

fn name(key: &str) -> Name {
    Name::new("b", key).unwrap()
}

fn chunk_line(length: usize) -> Vec<u8> {
    format!("{length:x}\r\n").into_bytes()
}

impl Stage {
    fn local(&self) -> &Rc<LocalStore> {
        &self.here.local
    }

    /// A new connection: its client, and what the server does for it.
    async fn connect(&self, door: Door) -> (Client, impl Future<Output = ()> + use<>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&client, RECEIVE_LENGTH).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&server, SEND_LENGTH).unwrap();
        server.set_nonblocking(true).unwrap();
        let descriptor = Descriptor::from(OwnedFd::from(server));
        self.here.send_to(0, Arrival::new(door, descriptor));
        let mut arrivals = self.arrivals.take().expect("one connects after the other");
        let arrival = arrivals.receive().await.unwrap();
        self.arrivals.set(Some(arrivals));
        let server = arrival.socket();
        let stream =
            Stream::new(self.local().core().clone(), Arc::new(Descriptor::from(OwnedFd::from(client))));
        let client = Client {
            stream,
            server,
            received: RefCell::default(),
            end: Cell::new(None),
            taken: Cell::new(0),
        };
        (client, attend(&self.here, &self.listener, arrival))
    }

    /// Has an exchange on a connection that is not dropped.
    async fn ask(&self, request: &str) -> Answer {
        let (client, serving) = self.connect(Door::Data).await;
        let serving = self.local().core().spawn(serving);
        let answer = client.ask(request).await;
        client.finish().await;
        serving.await;
        answer
    }

    async fn find(&self, key: &str) -> Option<Arc<Object>> {
        self.local().find(&background(), &name(key)).await.unwrap()
    }

    async fn create(&self, key: &str) -> Writer {
        self.local().create(&background(), name(key), Metadata::default(), false).await.unwrap()
    }

    /// An object with these bytes, sealed.
    async fn put(&self, key: &str, bytes: &[u8], append: usize) {
        let mut writer = self.create(key).await;
        for part in bytes.chunks(append) {
            writer.append(&background(), part).await.unwrap();
        }
        writer.seal(&background()).await.unwrap();
    }

    /// Objects whose bytes are in the files alone.
    async fn store_some(&self) {
        let bytes = content(1, STORED_LENGTH);
        self.put("stored", &bytes, STORED_APPEND).await;
        let (mut first, mut second) = (self.create("short").await, self.create("between").await);
        for part in content(2, SHORT_LENGTH).chunks(SHORT_APPEND) {
            first.append(&background(), part).await.unwrap();
            second.append(&background(), part).await.unwrap();
        }
        first.seal(&background()).await.unwrap();
        second.seal(&background()).await.unwrap();
        // The memory has other blocks.
        self.put("behind", &content(3, PIECES * PIECE_LENGTH), 100_000).await;
    }

    /// Files and pipes that are open, and those that are known to be.
    fn descriptors(&self) -> [(usize, usize); 2] {
        let targets = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
            descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        };
        let files = targets().filter(|target| target.starts_with(&self.folder)).count();
        let pipes = match self.pipes_before {
            Some(before) => (pipes_open(), before + 2 * self.here.pipes_kept()),
            None => (0, 0),
        };
        [(files, self.local().files_open()), pipes]
    }

    /// Waits until all is as it was.
    async fn quiet(&self, before: Option<Census>, what: &str) -> Census {
        let core = self.local().core();
        let limit = core.precise_now() + PATIENCE;
        loop {
            let (census, descriptors) = (self.here.census(), self.descriptors());
            let is_quiet = match before {
                Some(before) => census == before,
                None => census.store.operations == 1 && census.store.blocks_in_flight == 0,
            };
            if is_quiet && census.pieces_lent == 0 && descriptors.iter().all(|(open, known)| open == known) {
                return census;
            }
            assert!(
                core.precise_now() < limit,
                "{what}: {census:?}, before {before:?}; open and known {descriptors:?}"
            );
            core.sleep(Duration::from_micros(100)).await;
        }
    }
}

fn pipes_open() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
}

impl Scene {
    fn key(&self) -> String {
        self.number.to_string()
    }

    /// Drops what the server does for a connection where this scene does that, beside a client that does this and then
    /// leaves. Answers the client, which has seen the end.
    async fn cut(&self, door: Door, script: impl AsyncFnOnce(&Client)) -> Client {
        let (client, serving) = self.connect(door).await;
        let doing = async {
            script(&client).await;
            client.stream.finish();
            pending::<()>().await;
        };
        // In a task of its own, as connections are: who polls the client does not poll the server.
        let cut = self.cut;
        let serving = self.local().core().spawn(async move { cut.make(serving).await });
        match race(serving, doing).await {
            Either::First(output) => self.is_last.set(output.is_some()),
            Either::Second(()) => unreachable!("it never ends"),
        }
        let rest = async {
            while client.receive().await {}
            // The ring has it until what waited there is cancelled.
            while client.server.strong_count() > 0 {
                yield_now().await;
            }
        };
        let outcome = self.local().core().timeout(PATIENCE, rest).await;
        assert!(outcome.is_ok(), "the connection is open though nobody serves it");
        client
    }

    /// Of `whole` there is a beginning with at least `least` bytes; all of it where it is sealed, and that it must be
    /// where it was said.
    async fn check_put(&self, whole: &[u8], least: usize, was_told: bool) {
        let Some(object) = self.find(&self.key()).await else {
            assert!(least == 0 && !was_told, "an object is lost of which {least} bytes were taken");
            return;
        };
        while object.state() == State::Live {
            yield_now().await;
        }
        let (state, found) = self.get(&self.key()).await;
        assert!(whole.starts_with(&found), "what was put is something else");
        assert!(found.len() >= least, "{} bytes are left of {least} that were taken", found.len());
        match object.state() {
            State::Sealed => assert!(state == "sealed" && found == whole),
            _ => assert!(state == "interrupted" && !was_told),
        }
    }

    /// The state and the bytes of an object, as the next connection finds them.
    async fn get(&self, key: &str) -> (String, Vec<u8>) {
        let answer = self.ask(&format!("GET /b/{key} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        assert!(answer.status == 200 && answer.is_whole, "{answer:?}");
        (answer.header("tailwater-state").unwrap().to_owned(), answer.body)
    }

    /// Drops an exchange of one request and one answer.
    async fn cut_asking(&self, door: Door, request: &str, statuses: &[u16]) -> Option<Answer> {
        let told = RefCell::new(None);
        self.cut(door, async |client| {
            let answer = client.ask(request).await;
            if answer.is_whole {
                assert!(statuses.contains(&answer.status), "{answer:?}");
                *told.borrow_mut() = Some(answer);
            }
        })
        .await;
        told.into_inner()
    }

    /// Reads a stored object while the connection is dropped. What came is a beginning of it.
    async fn cut_reading(&self, key: &str, whole: &[u8]) {
        let request = format!("GET /b/{key} HTTP/1.1\r\nhost: x\r\n\r\n");
        let client = self
            .cut(Door::Data, async |client| {
                client.send(request.as_bytes()).await;
                client.receive_body(whole.len()).await;
            })
            .await;
        let answer = client.so_far(true);
        assert!(whole.starts_with(&answer.body), "what was read is something else");
        assert_eq!(answer.is_whole, answer.body.len() == whole.len() && answer.status == 200);
        let (state, found) = self.get(key).await;
        assert!(state == "sealed" && found == whole, "the next one reads something else");
    }

    /// Follows a live object while the connection is dropped. Only all of it has a clean end.
    async fn cut_following(&self, version: &str) {
        let whole = content(self.number, 9000);
        let (key, mut writer) = (self.key(), Some(self.create(&self.key()).await));
        let object = writer.as_ref().unwrap().object().clone();
        let request = format!("GET /b/{key} HTTP/{version}\r\nhost: x\r\n\r\n");
        let client = self
            .cut(Door::Data, async |client| {
                client.send(request.as_bytes()).await;
                for (number, part) in whole.chunks(3000).enumerate() {
                    writer.as_mut().unwrap().append(&background(), part).await.unwrap();
                    client.receive_body((number + 1) * 3000).await;
                }
                writer.take().unwrap().seal(&background()).await.unwrap();
                client.answer(true).await;
            })
            .await;
        let is_sealed = writer.is_none();
        drop(writer);
        while object.state() == State::Live {
            yield_now().await;
        }
        // An answer that was whole was taken from what was received.
        let answer = client.so_far(true);
        assert!(whole.starts_with(&answer.body), "what was followed is something else");
        if answer.is_whole {
            assert!(
                is_sealed && answer.body == whole,
                "a clean end of {} bytes: {answer:?}",
                answer.body.len()
            );
        }
        let (state, found) = self.get(&key).await;
        assert_eq!(state, object.state().as_str());
        assert!(whole.starts_with(&found) && found.len() >= answer.body.len());
        assert!(object.state() != State::Sealed || found == whole);
    }

    /// What was begun as an upload in parts is gone on with where it says, by these requests of one more connection.
    async fn go_on(&self, whole: &[u8], is_tus: bool, offsets: Option<&[usize]>, least: usize, told: usize) {
        let found = self.local().find_upload(&background(), &name(&self.key()), None).await.unwrap();
        let found = match found {
            Some(object) => Some(object),
            None => self.find(&self.key()).await,
        };
        let Some(object) = found else {
            assert!(least == 0 && told == 0, "an upload is lost of which {least} bytes were taken");
            return;
        };
        let (key, generation) = (self.key(), object.generation());
        let (path, head) = match is_tus {
            true => (format!("/_tus/b/{key}?upload={generation:x}"), "tus-resumable: 1.0.0\r\n"),
            false => (format!("/b/{key}?upload={generation:x}"), ""),
        };
        let asked = self.ask(&format!("HEAD {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n")).await;
        assert!(asked.status == 204 || asked.status == 200, "{asked:?}");
        let offset = asked.number("upload-offset").unwrap();
        assert!(
            offset >= least.max(told),
            "{offset} bytes are left of {least} taken and {told} acknowledged"
        );
        assert!(offsets.is_none_or(|offsets| offsets.contains(&offset)), "{offset} is no end of a body");
        if object.state() != State::Sealed {
            let rest = &whole[offset..];
            let more = match is_tus {
                true => format!(
                    "content-type: application/offset+octet-stream\r\nupload-length: {}\r\n{head}",
                    whole.len()
                ),
                false => "content-type: application/partial-upload\r\nupload-complete: ?1\r\n".to_owned(),
            };
            let mut request = format!(
                "PATCH {path} HTTP/1.1\r\nhost: x\r\nupload-offset: {offset}\r\ncontent-length: {}\r\n{more}\r\n",
                rest.len()
            )
            .into_bytes();
            request.extend_from_slice(rest);
            let (client, serving) = self.connect(Door::Data).await;
            let serving = self.local().core().spawn(serving);
            client.send(&request).await;
            let answer = client.answer(true).await;
            assert!(matches!(answer.status, 201 | 204), "{answer:?}");
            client.finish().await;
            serving.await;
        }
        let (state, found) = self.get(&key).await;
        assert!(state == "sealed" && found == whole);
    }
}

macro_rules! case {
    ($of:literal, $exchange:literal, |$scene:ident| $run:expr) => {
        Case { of: $of, exchange: $exchange, run: |$scene| Box::pin(async move { $run }) }
    };
}

/// What is dropped, in the midst of what.
const CASES: &[Case] = &[
    case!("Connection::serve", "nothing", |scene| {
        scene.cut(Door::Data, async |_| {}).await;
    }),
    case!("Connection::serve", "a head that comes in parts", |scene| {
        scene
            .cut(Door::Data, async |client| {
                for part in ["GET /b/beh", "ind HTTP/1.1\r\nhost", ": x\r\nrange: bytes=0-9\r\n"] {
                    client.send(part.as_bytes()).await;
                }
                let answer = client.ask("\r\n").await;
                assert!(!answer.is_whole || answer.body == content(3, 10), "{answer:?}");
            })
            .await;
    }),
    case!("Connection::readable", "PUT by Content-Length", |scene| {
        let whole = content(scene.number, 40_000);
        let told = Cell::new(false);
        let client = scene
            .cut(Door::Data, async |client| {
                let head = format!(
                    "PUT /b/{} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 40000\r\n\r\n",
                    scene.number
                );
                assert!(client.ask(&head).await.status <= 100);
                // Only what follows is certain.
                client.send(&whole[..5000]).await;
                client.send_body(5000, &whole[5000..6000]).await;
                client.send_body(6000, &whole[6000..30_000]).await;
                client.send_body(30_000, &whole[30_000..]).await;
                told.set(client.answer(true).await.status == 201);
            })
            .await;
        scene.check_put(&whole, client.taken.get(), told.get()).await;
    }),
    case!("Connection::serve", "PUT by Content-Length, of which some comes with the head", |scene| {
        let whole = content(scene.number, 3000);
        let told = Cell::new(false);
        let client = scene
            .cut(Door::Data, async |client| {
                let head =
                    format!("PUT /b/{} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n", scene.number);
                client.send(&[head.as_bytes(), &whole[..1000]].concat()).await;
                client.send_body(1000, &whole[1000..2000]).await;
                client.send_body(2000, &whole[2000..]).await;
                told.set(client.answer(true).await.status == 201);
            })
            .await;
        scene.check_put(&whole, client.taken.get(), told.get()).await;
    }),
    case!("Connection::readable", "PUT in chunks", |scene| {
        let whole = content(scene.number, 9000);
        let told = Cell::new(false);
        let client = scene
            .cut(Door::Data, async |client| {
                let head = format!(
                    "PUT /b/{} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
                    scene.number
                );
                client.send(head.as_bytes()).await;
                for (number, part) in whole.chunks(3000).enumerate() {
                    client.send(&chunk_line(3000)).await;
                    client.send_body(number * 3000, &part[..1000]).await;
                    client.send_body(number * 3000 + 1000, &part[1000..]).await;
                    client.send(b"\r\n").await;
                }
                client.send(b"0\r\n").await;
                client.send(b"\r\n").await;
                told.set(client.answer(true).await.status == 201);
            })
            .await;
        scene.check_put(&whole, client.taken.get(), told.get()).await;
    }),
    case!("Connection::serve", "PUT that replaces an object", |scene| {
        // The name serves the new one while it is written, and the old one where it does not become whole.
        let (key, old, new) = (scene.key(), content(1, 500), content(2, 2000));
        scene.put(&key, &old, 500).await;
        let told = Cell::new(false);
        scene
            .cut(Door::Data, async |client| {
                let head = format!(
                    "PUT /b/{key} HTTP/1.1\r\nhost: x\r\nif-match: *\r\ncontent-length: 2000\r\n\r\n"
                );
                client.send(head.as_bytes()).await;
                client.send(&new[..1000]).await;
                client.send(&new[1000..]).await;
                told.set(client.answer(true).await.status == 201);
            })
            .await;
        while scene.find(&key).await.unwrap().state() == State::Live {
            yield_now().await;
        }
        let (state, found) = scene.get(&key).await;
        assert!(state == "sealed" && (found == new || found == old && !told.get()), "{} bytes", found.len());
    }),
    case!("Connection::serve", "two requests that come together", |scene| {
        let (key, whole) = (scene.key(), content(scene.number, 700));
        let told = Cell::new(false);
        scene
            .cut(Door::Data, async |client| {
                let put = format!("PUT /b/{key} HTTP/1.1\r\nhost: x\r\ncontent-length: 700\r\n\r\n");
                let get = format!("GET /b/{key} HTTP/1.1\r\nhost: x\r\n\r\n");
                client.send(&[put.as_bytes(), &whole, get.as_bytes()].concat()).await;
                told.set(client.answer(true).await.status == 201);
                let answer = client.answer(true).await;
                assert!(!answer.is_whole || answer.body == whole, "{answer:?}");
            })
            .await;
        scene.check_put(&whole, 0, told.get()).await;
    }),
    case!("Connection::send", "an upload in parts, by the draft", |scene| {
        let (key, whole) = (scene.key(), content(scene.number, 6000));
        let told = Cell::new(0);
        let client = scene
            .cut(Door::Data, async |client| {
                let head = format!(
                    "PUT /b/{key} HTTP/1.1\r\nhost: x\r\nupload-complete: ?0\r\ncontent-length: 4000\r\n\
                     upload-draft-interop-version: 8\r\n\r\n"
                );
                assert!(matches!(client.ask(&head).await.status, 0 | 104));
                client.send(&whole[..1000]).await;
                client.send_body(1000, &whole[1000..2000]).await;
                client.send_body(2000, &whole[2000..4000]).await;
                let answer = client.answer(true).await;
                let Some(location) = answer.header("location") else { return };
                told.set(4000);
                let head = format!(
                    "PATCH {location} HTTP/1.1\r\nhost: x\r\nupload-complete: ?1\r\nupload-offset: 4000\r\n\
                     content-type: application/partial-upload\r\ncontent-length: 2000\r\n\r\n"
                );
                client.send(head.as_bytes()).await;
                client.send(&whole[4000..4500]).await;
                client.send_body(4500, &whole[4500..]).await;
                if client.answer(true).await.status == 201 {
                    told.set(6000);
                }
            })
            .await;
        scene.go_on(&whole, false, None, client.taken.get(), told.get()).await;
    }),
    case!("Connection::serve", "an upload by tus, with checksums", |scene| {
        let (key, whole) = (scene.key(), content(scene.number, 6000));
        let told = Cell::new(0);
        scene
            .cut(Door::Data, async |client| {
                let head = format!(
                    "POST /_tus/b/{key} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-length: 6000\r\n\
                     content-length: 0\r\n\r\n"
                );
                let answer = client.ask(&head).await;
                let Some(location) = answer.header("location") else { return };
                for part in [&whole[..4000], &whole[4000..]] {
                    let checksum = BASE64_STANDARD.encode(Sha1::digest(part));
                    let head = format!(
                        "PATCH {location} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\n\
                         content-type: application/offset+octet-stream\r\nupload-offset: {}\r\n\
                         upload-checksum: sha1 {checksum}\r\ncontent-length: {}\r\n\r\n",
                        told.get(),
                        part.len()
                    );
                    client.send(&[head.as_bytes(), &part[..500]].concat()).await;
                    client.send(&part[500..1500]).await;
                    client.send(&part[1500..]).await;
                    if client.answer(true).await.status != 204 {
                        return;
                    }
                    told.set(told.get() + part.len());
                }
            })
            .await;
        // A body counts when all of it has come.
        scene.go_on(&whole, true, Some(&[0, 4000, 6000]), 0, told.get()).await;
    }),
    case!("Connection::writable", "GET from a file, spliced", |scene| {
        scene.cut_reading("stored", &content(1, STORED_LENGTH)).await;
    }),
    case!("Connection::writable", "GET from a file, read", |scene| {
        scene.cut_reading("short", &content(2, SHORT_LENGTH)).await;
    }),
    case!("Connection::serve", "GET from memory", |scene| {
        scene.put("recent", &content(4, 100_000), 30_000).await;
        scene.cut_reading("recent", &content(4, 100_000)).await;
    }),
    case!("Connection::serve", "GET of what is being written", |scene| {
        scene.cut_following("1.1").await;
    }),
    case!("Connection::serve", "GET of what is being written, up to the connection's end", |scene| {
        scene.cut_following("1.0").await;
    }),
    case!("Here::drained", "GET that waits", |scene| {
        let (key, whole) = (scene.key(), content(scene.number, 2000));
        scene
            .cut(Door::Data, async |client| {
                client.send(format!("GET /b/{key}?wait=3600 HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
                // The answer comes only when there is something to tell of.
                assert!(client.received.borrow().is_empty());
                scene.put(&key, &whole, 500).await;
                let answer = client.answer(true).await;
                assert!(!answer.is_whole || answer.body == whole, "{answer:?}");
            })
            .await;
    }),
    case!("Connection::serve", "HEAD", |scene| {
        let told = scene.cut_asking(Door::Data, "HEAD /b/stored HTTP/1.1\r\nhost: x\r\n\r\n", &[200]).await;
        assert!(told.is_none_or(|told| told.number("content-length") == Some(STORED_LENGTH)));
    }),
    case!("Connection::serve", "DELETE", |scene| {
        let (key, whole) = (scene.key(), content(scene.number, 2000));
        scene.put(&key, &whole, 2000).await;
        let request = format!("DELETE /b/{key} HTTP/1.1\r\nhost: x\r\n\r\n");
        let told = scene.cut_asking(Door::Data, &request, &[204]).await;
        let again = scene.ask(&request).await;
        // What was begun may have gone on by itself.
        assert!(matches!(again.status, 204 | 404) && (told.is_none() || again.status == 404), "{again:?}");
        assert!(scene.find(&key).await.is_none());
    }),
    case!("Connection::reply", "a listing", |scene| {
        let told = scene.cut_asking(Door::Data, "GET /b HTTP/1.1\r\nhost: x\r\n\r\n", &[200]).await;
        assert!(told.is_none_or(|told| String::from_utf8(told.body).unwrap().contains("stored")));
    }),
    case!("Connection::serve", "the buckets", |scene| {
        scene.cut_asking(Door::Data, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", &[200]).await;
    }),
    case!("Connection::serve", "OPTIONS", |scene| {
        scene.cut_asking(Door::Data, "OPTIONS /b/stored HTTP/1.1\r\nhost: x\r\n\r\n", &[204]).await;
    }),
    case!("Connection::serve", "what the operator asks", |scene| {
        for path in ["readyz", "metrics"] {
            let request = format!("GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n");
            scene.cut_asking(Door::Admin, &request, &[200]).await;
        }
    }),
    case!("Connection::reply_problem", "a refusal of what is still being sent", |scene| {
        scene
            .cut(Door::Data, async |client| {
                client.send(b"GET /b/stored HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n").await;
                let answer = client.answer(true).await;
                assert!(!answer.is_whole || answer.status == 400, "{answer:?}");
                client.send(&content(1, 30_000)).await;
                client.send(&content(1, 20_000)).await;
            })
            .await;
    }),
    case!("Connection::serve", "a refusal of a head", |scene| {
        scene.cut_asking(Door::Data, "no request\r\n\r\n", &[400]).await;
    }),
];

/// What the cases of this room drop.
pub(crate) fn dropped() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.of)
}

/// Goes through all cuts of a case; answers how many there are. Numbers come from `numbers`.
async fn go_through(stage: &Rc<Stage>, case: &Case, numbers: &Cell<usize>) -> usize {
    // The catalog's threads may be just about to wake it.
    let (mut cut, mut cuts) = (Cut::first().among_threads(), 0);
    let before = stage.quiet(None, case.exchange).await;
    loop {
        let number = numbers.replace(numbers.get() + 1);
        let scene = Rc::new(Scene { stage: stage.clone(), cut, number, is_last: Cell::new(false) });
        (case.run)(scene.clone()).await;
        stage.quiet(Some(before), &format!("{} at {cut:?}", case.exchange)).await;
        cuts += 1;
        if scene.is_last.get() {
            return cuts;
        }
        assert!(cuts < 400, "{} is never done", case.exchange);
        cut = cut.next();
    }
}

/// A store on a core of this thread over the real kernel, and the server's part there.
fn on_a_core<F>(main: impl FnOnce(Rc<Stage>) -> F + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let folder = tempfile::tempdir().unwrap();
    // Others in this process have pipes too, unless it is this test's own.
    let is_alone = std::env::var("NEXTEST_EXECUTION_MODE").is_ok_and(|mode| mode == "process-per-test");
    let pipes_before = is_alone.then(pipes_open);
    let space = Space::new(SpaceSettings {
        folder: folder.path().to_owned(),
        store: 77,
        segment_bytes: SEGMENT_BYTES,
        direct: false,
        spare_segments: 1,
        reserve_bytes: 0,
    });
    let Assembly { shared, mut orders, catalog } = assemble(Beginning {
        cores: 1,
        database: Database::open_on(InMemoryBackend::new(), 77).unwrap(),
        reopen: Box::new(|| Err(Error::new(Kind::Device, "memory does not fail"))),
        space: space.clone(),
        found: Recovered::default(),
        may_splice: true,
        started: std::time::Instant::now(),
    });
    let CatalogWork { books, questions, news, last_drops, dead } = catalog;
    let answering = books.clone();
    let threads = [
        std::thread::spawn(move || pollster::block_on(answering.answer(questions))),
        std::thread::spawn(move || {
            let pause = async |duration: Duration| std::thread::sleep(duration);
            pollster::block_on(books.write(news, last_drops, dead, pause));
        }),
    ];
    let arena = Arena::new(PIECES, PIECE_LENGTH).unwrap();
    let (lent, ends, path) = (arena.clone(), shared.clone(), folder.path().to_owned());
    let outcome = run(async move |core| {
        let settings = CoreSettings {
            block_bytes: PIECE_LENGTH,
            durable: true,
            retention: Retention::default(),
            tus_expiry: Duration::from_secs(3600),
        };
        let service = move |local: Rc<LocalStore>| {
            let (shared, mut arrivals) = Shared::new(Config { cores: 1, ..Config::default() });
            let stage = Rc::new(Stage {
                here: Here::new(local, shared),
                arrivals: Cell::new(arrivals.pop()),
                listener: background(),
                folder: path,
                pipes_before,
            });
            async move {
                main(stage).await;
                ends.stop();
            }
        };
        let is_at_work = AtomicBool::new(false);
        work(core, &space, lent, settings, orders.remove(0), service, || {}, &is_at_work).await
    });
    outcome.unwrap();
    shared.end_catalog();
    drop(shared);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(arena.free_pieces(), PIECES, "memory is left");
    assert!(is_alone.then(pipes_open) == pipes_before, "pipes are left");
}

#[test]
fn nothing_is_left_of_a_connection_that_is_dropped_in_the_midst_of_any_exchange() {
    on_a_core(|stage| async move {
        stage.store_some().await;
        let (mut cuts, numbers) = (0, Cell::new(0));
        for case in (0..ROUNDS).flat_map(|_| CASES) {
            let of_this = go_through(&stage, case, &numbers).await;
            println!("{}: {of_this} cuts", case.exchange);
            cuts += of_this;
        }
        println!("{} exchanges, {ROUNDS} times, {cuts} cuts", CASES.len());
        // What was to be spliced was.
        assert!(stage.here.pipes_kept() > 0);
        assert!(stage.local().metrics().bytes_sent.of(Source::Files).get() > STORED_LENGTH as u64);
    });
}
