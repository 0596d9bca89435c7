//! Clients that load a server, and what each of them knows: what it was told, what it gave, what its followers were
//! given. After a crash that is compared with what is served.
//!
//! Every name has one client, which does one thing at a time with it, so what a name may serve follows from what was
//! answered; what was under way when the server went away may have happened or not. A crowd of clients outlives the
//! server: it is checked after a start, goes on with what it found, and is checked after the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::{Connection, End, Head, Response, Server, assert_same, content, eventually};

/// Numbers that are the same for the same seed.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers for a seed.
    pub fn new(seed: u64) -> Random {
        // Seeds that lie beside each other begin far from each other.
        Random(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below this one.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// How many rounds a test goes: what the environment says, or so many.
pub fn rounds(otherwise: u64) -> u64 {
    number_from("TAILWATER_TEST_ROUNDS").unwrap_or(otherwise)
}

/// A seed that is printed: the environment's, or one that no run had.
pub fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let seed = number_from("TAILWATER_TEST_SEED").unwrap_or_else(clock);
    eprintln!("TAILWATER_TEST_SEED={seed}");
    seed
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    seed: u64,
    length: usize,
}

impl Content {
    fn bytes(self) -> Vec<u8> {
        content(self.seed, self.length)
    }
}

/// What a name serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Served {
    Nothing,
    Sealed {
        content: Content,
        etag: Option<String>,
    },
    /// A prefix of this, between so many bytes that somebody was given and so many that were sent.
    Interrupted {
        content: Content,
        least: u64,
        most: u64,
    },
}

impl Served {
    /// What exactly is served, if that is how this looks.
    fn found_in(&self, response: &Response) -> Option<Served> {
        let state = response.head.get("tailwater-state").unwrap_or_default();
        let (etag_found, length) = (response.head.get("etag").map(str::to_owned), response.body.len() as u64);
        match self {
            Served::Nothing => (response.head.status == 404).then_some(Served::Nothing),
            Served::Sealed { content, etag } => (state == "sealed"
                && length == content.length as u64
                && etag.as_ref().is_none_or(|etag| Some(etag) == etag_found.as_ref())
                && response.body == content.bytes())
            .then_some(Served::Sealed { content: *content, etag: etag_found }),
            Served::Interrupted { content, least, most } => (state == "interrupted"
                && (*least..=*most).contains(&length)
                && content.bytes().starts_with(&response.body))
            .then_some(Served::Interrupted { content: *content, least: length, most: length }),
        }
    }
}

/// When something happened: seconds since 1970.
pub fn now() -> String {
    format!("{:.6}", std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64())
}

/// How much room the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as the clients take.
    Enough,
    /// So little that uploads may be refused.
    Little,
    /// So little that deletions may be refused too.
    None,
}

/// A load on a server, as long as it lasts.
pub struct Load {
    address: SocketAddr,
    room: Room,
    /// The server may refuse, or be gone.
    is_ending: AtomicBool,
    /// What the server says counts for nothing any more.
    is_cut_off: AtomicBool,
    /// The clients are to come to an end.
    has_ended: AtomicBool,
    answered: AtomicU64,
    given: AtomicU64,
    refused: AtomicU64,
}

impl Load {
    /// Says that from now on the server may fail or be gone.
    pub fn ending(&self) {
        self.is_ending.store(true, SeqCst);
    }

    /// The same, and whatever is heard from now on is taken for unheard, as if the clients had lost their power too.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, SeqCst);
        self.ending();
    }

    /// Ends the load; the server is whole.
    pub fn stop(&self) {
        self.has_ended.store(true, SeqCst);
    }

    /// How many requests did what was asked for.
    pub fn answered(&self) -> u64 {
        self.answered.load(SeqCst)
    }

    /// How many bytes followers were given.
    pub fn given(&self) -> u64 {
        self.given.load(SeqCst)
    }

    /// How many requests were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(SeqCst)
    }

    /// Waits until so much more has been answered, and given to followers.
    pub fn await_more(&self, answered: u64, given: u64) {
        let (answered, given) = (self.answered() + answered, self.given() + given);
        eventually("there is something to lose", || self.answered() >= answered && self.given() >= given);
    }

    /// Waits until so many more requests were refused.
    pub fn await_refused(&self, count: u64) {
        let wanted = self.refused() + count;
        eventually("clients are refused", || self.refused() >= wanted);
    }

    /// A connection; none where the server is gone.
    fn connect(&self) -> Option<Connection> {
        let connection = Connection::try_to(self.address);
        assert!(connection.is_some() || self.may_fail(), "nobody listens any more");
        connection
    }

    fn may_fail(&self) -> bool {
        self.is_ending.load(SeqCst)
    }

    /// A connection came to an end where an answer was to come: that is so only when the server is.
    #[track_caller]
    fn is_gone(&self, path: &str, end: End) {
        assert!(self.may_fail(), "{path}: {end:?} where an answer was to come");
    }

    /// Whether a request did what it was asked to, as far as is known; if not, it may have been refused.
    #[track_caller]
    fn is_done(&self, path: &str, response: &Response, wanted: u16) -> bool {
        let status = response.head.status;
        if response.end == End::Clean && status == wanted {
            self.answered.fetch_add(1, SeqCst);
            return !self.is_cut_off.load(SeqCst);
        }
        let may = (self.room != Room::Enough && status == 507) || (self.may_fail() && status >= 500);
        assert!(may || (response.end != End::Clean && self.may_fail()), "{path}: {response:?}");
        if status >= 500 {
            let kind = response.head.get("content-type");
            assert_eq!(kind, Some("application/problem+json"), "{path}: {response:?}");
            self.refused.fetch_add(1, SeqCst);
        }
        false
    }
}

/// An upload, as its client and its followers saw it.
struct Upload {
    content: Content,
    /// How many bytes may have left the client.
    sent: u64,
    /// The client may have sent the end.
    is_complete: bool,
    /// How many bytes a follower was given.
    given: u64,
    /// A follower was given the end.
    was_seen_whole: bool,
}

/// How an upload ended.
enum Outcome {
    Created {
        etag: String,
        generation: u64,
    },
    /// Refused by an answer: it is not there as a whole.
    Refused,
    /// The client went away, or the server.
    Unknown,
}

impl Outcome {
    fn created(response: &Response) -> Outcome {
        let etag = response.head.get("etag").expect("what was created has an ETag").to_owned();
        Outcome::Created { etag, generation: response.json()["generation"].as_u64().unwrap() }
    }
}

/// The names of one client: a bucket of its own.
struct Names {
    bucket: String,
    served: BTreeMap<String, Vec<Served>>,
    /// What lies below that: what was superseded, and failed replacements.
    below: BTreeMap<String, Vec<Served>>,
    /// What was done with each name, and when.
    told: BTreeMap<String, Vec<String>>,
    generations: Vec<u64>,
}

impl Names {
    fn new(bucket: String) -> Names {
        let (served, below, told) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Names { bucket, served, below, told, generations: Vec::new() }
    }

    /// For whoever reads of a failure.
    fn note(&mut self, path: &str, what: String) {
        let told = self.told.entry(path.to_owned()).or_default();
        told.push(format!("{}: {what}", now()));
        told.drain(..told.len().saturating_sub(20));
    }

    fn possible(&self, path: &str) -> Vec<Served> {
        self.served.get(path).cloned().unwrap_or_else(|| vec![Served::Nothing])
    }

    fn set(&mut self, path: &str, possible: Vec<Served>) {
        self.note(path, format!("{possible:?}"));
        self.served.insert(path.to_owned(), possible);
    }

    fn uploaded(&mut self, path: &str, upload: &Upload, outcome: Outcome) {
        let content = upload.content;
        let sealed = |etag| Served::Sealed { content, etag };
        let mut below = self.possible(path);
        below.push(Served::Interrupted { content, least: 0, most: upload.sent });
        self.below.entry(path.to_owned()).or_default().extend(below);
        let possible = match outcome {
            Outcome::Created { etag, generation } => {
                self.generations.push(generation);
                vec![sealed(Some(etag))]
            }
            _ if upload.was_seen_whole => vec![sealed(None)],
            outcome => {
                let mut possible = Vec::new();
                for former in self.possible(path) {
                    // What fails never hides what it was to replace.
                    if matches!(former, Served::Sealed { .. }) {
                        possible.push(former);
                        continue;
                    }
                    if upload.given == 0 {
                        possible.push(former);
                    }
                    possible.push(Served::Interrupted { content, least: upload.given, most: upload.sent });
                }
                if upload.is_complete && matches!(outcome, Outcome::Unknown) {
                    possible.push(sealed(None));
                }
                possible
            }
        };
        self.set(path, possible);
    }

    /// Deletes a name. False: the server is gone.
    fn delete(&mut self, path: &str, load: &Load, connection: &mut Option<Connection>) -> bool {
        let former = self.possible(path);
        let asked_for = [&former[..], &[Served::Nothing]].concat();
        self.set(path, asked_for);
        let request = format!("DELETE {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        let asked = now();
        let Some(response) = exchange(load, connection, path, "DELETE", &[request.as_bytes()]) else {
            return false;
        };
        self.note(path, format!("DELETE asked at {asked}: {}", response.head.status));
        if response.head.status == 404 {
            let says_why = former.contains(&Served::Nothing);
            assert!(says_why, "{path} is not there to be deleted, and should be {former:?}");
        } else if load.is_done(path, &response, 204) {
            self.set(path, vec![Served::Nothing]);
            self.below.remove(path);
        } else {
            let may = load.may_fail() || load.room == Room::None;
            assert!(may, "a full disk can be emptied, but {path} could not be deleted");
        }
        true
    }

    /// Gets a name, if it is known for sure what it serves. False: the server is gone.
    fn get(&self, path: &str, load: &Load, connection: &mut Option<Connection>) -> bool {
        let [expected] = &self.possible(path)[..] else { return true };
        let request = format!("GET {path}?follow=0 HTTP/1.1\r\nHost: h\r\n\r\n");
        let Some(response) = exchange(load, connection, path, "GET", &[request.as_bytes()]) else {
            return false;
        };
        let is_whole = response.end == End::Clean && response.head.status < 500;
        if is_whole {
            assert!(expected.found_in(&response).is_some(), "{path} is {response:?} and not {expected:?}");
        } else {
            assert!(load.may_fail(), "{path}: {response:?}");
        }
        true
    }

    /// Looks at everything that is served, and takes it for what is served from now on.
    #[track_caller]
    fn check(&mut self, server: &Server, tally: &mut Tally) {
        let mut heads = BTreeMap::new();
        for (path, possible) in &mut self.served {
            let response = server.get(path);
            assert_eq!(response.end, End::Clean, "{path}: {response:?}");
            let Some(found) = possible.iter().find_map(|served| served.found_in(&response)) else {
                let looks_like =
                    self.below.get(path).into_iter().flatten().chain(&*possible).filter(|served| {
                        let (Served::Sealed { content, .. } | Served::Interrupted { content, .. }) = served
                        else {
                            return false;
                        };
                        content.bytes().starts_with(&response.body)
                    });
                let looks_like: Vec<_> = looks_like.collect();
                let told = self.told.get(path).map(|told| told.join("\n")).unwrap_or_default();
                panic!(
                    "{path} should be one of {possible:?}, looks like {looks_like:?}, and is {response:?}. What was \
                     done with it, in seconds:\n{told}"
                )
            };
            let head = server.head(path);
            for name in ["tailwater-state", "content-length", "etag", "last-modified"] {
                if head.status == 200 {
                    assert_eq!(head.get(name), response.head.get(name), "{path}: {name} by HEAD and by GET");
                }
            }
            assert_eq!(head.status, response.head.status, "{path} by HEAD and by GET");
            match &found {
                Served::Nothing => tally.absent += 1,
                Served::Sealed { .. } => tally.sealed += 1,
                Served::Interrupted { .. } => tally.interrupted += 1,
            }
            if found != Served::Nothing {
                heads.insert(path.clone(), head);
            }
            *possible = vec![found];
        }
        self.check_listing(server, &heads);
    }

    #[track_caller]
    fn check_listing(&self, server: &Server, heads: &BTreeMap<String, Head>) {
        let listing = server.get(&format!("/{}/", self.bucket)).json();
        let listed = listing["objects"].as_array().unwrap();
        let path_of =
            |object: &serde_json::Value| format!("/{}/{}", self.bucket, object["key"].as_str().unwrap());
        let names: Vec<String> = listed.iter().map(path_of).collect();
        assert_eq!(names, heads.keys().cloned().collect::<Vec<_>>(), "what is listed is not what is served");
        for (object, head) in listed.iter().zip(heads.values()) {
            assert_eq!(object["state"].as_str(), head.get("tailwater-state"), "{object} and {head:?}");
            assert_eq!(object["etag"].as_str(), head.get("etag"), "{object} and {head:?}");
            assert_eq!(
                object["length"].as_u64().map(|length| length.to_string()).as_deref(),
                head.get("tailwater-committed"),
                "{object} and {head:?}"
            );
        }
    }
}

/// A request on a connection that is kept, and its answer. None: the server is gone.
fn exchange(
    load: &Load,
    connection: &mut Option<Connection>,
    path: &str,
    method: &str,
    request: &[&[u8]],
) -> Option<Response> {
    if connection.is_none() {
        *connection = load.connect();
    }
    let mut used = connection.take()?;
    for &bytes in request {
        // An answer may come before all of the request was taken.
        if !used.try_send(bytes) {
            break;
        }
    }
    match used.try_response(method) {
        Ok(response) => {
            if response.end == End::Clean && response.head.get("connection") != Some("close") {
                *connection = Some(used);
            }
            Some(response)
        }
        Err(end) => {
            load.is_gone(path, end);
            None
        }
    }
}

/// A client with many small objects: puts, replaces, deletes, gets, and goes away in the midst of an upload.
struct ObjectClient {
    names: Names,
    count: u64,
}

impl ObjectClient {
    fn work(&mut self, load: &Load, mut random: Random) {
        let mut connection = None;
        while !load.has_ended.load(SeqCst) {
            let path = format!("/{}/{}", self.names.bucket, random.below(self.count));
            let goes_on = match random.below(20) {
                0..=3 if self.names.possible(&path) != [Served::Nothing] => {
                    self.names.delete(&path, load, &mut connection)
                }
                4..=6 => self.names.get(&path, load, &mut connection),
                7 => self.abort(&path, load, &mut random),
                _ => self.put(&path, load, &mut random, &mut connection),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn content(random: &mut Random) -> Content {
        let length = match random.below(24) {
            0 => random.below(1 << 20),
            1..=5 => random.below(100_000),
            6 => 0,
            _ => random.below(4_000),
        };
        Content { seed: random.below(1 << 40), length: length as usize }
    }

    fn put(
        &mut self,
        path: &str,
        load: &Load,
        random: &mut Random,
        connection: &mut Option<Connection>,
    ) -> bool {
        let content = ObjectClient::content(random);
        let bytes = content.bytes();
        let mut upload = Upload {
            content,
            sent: content.length as u64,
            is_complete: true,
            given: 0,
            was_seen_whole: false,
        };
        let head = format!("PUT {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", bytes.len());
        let answer = exchange(load, connection, path, "PUT", &[head.as_bytes(), &bytes]);
        let outcome = match &answer {
            Some(response) if load.is_done(path, response, 201) => Outcome::created(response),
            Some(response) if response.head.status == 507 => Outcome::Refused,
            _ => Outcome::Unknown,
        };
        // Without a connection nothing was sent.
        upload.is_complete &= answer.is_some() || load.may_fail();
        self.names.uploaded(path, &upload, outcome);
        answer.is_some()
    }

    /// Goes away before all was sent.
    fn abort(&mut self, path: &str, load: &Load, random: &mut Random) -> bool {
        let content = Content { seed: random.below(1 << 40), length: 1 + random.below(60_000) as usize };
        let sent = random.below(content.length as u64);
        let Some(mut connection) = load.connect() else { return false };
        let (framing, begin) = match random.one_in(2) {
            true => (format!("Content-Length: {}", content.length), String::new()),
            false => ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n", content.length)),
        };
        let upload = Upload { content, sent, is_complete: false, given: 0, was_seen_whole: false };
        // From here on it may be there.
        self.names.uploaded(path, &upload, Outcome::Unknown);
        let head = format!("PUT {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{framing}\r\n\r\n");
        match begin_upload(path, load, &mut connection, &head) {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
        let bytes = &content.bytes()[..sent as usize];
        let was_sent = connection.try_send([begin.as_bytes(), bytes].concat());
        if was_sent && random.one_in(2) {
            // That way the server takes everything before it learns of the end.
            connection.finish_sending();
            if let Ok(response) = connection.try_response("PUT") {
                assert!(response.head.status >= 400, "half of {path}: {response:?}");
            }
        } else {
            connection.reset();
        }
        was_sent && await_its_end(path, load)
    }
}

/// Sends the head of an upload and waits until it is taken. False: it was refused. None: the server is gone.
fn begin_upload(path: &str, load: &Load, connection: &mut Connection, head: &str) -> Option<bool> {
    let was_sent = connection.try_send(head);
    match connection.try_head() {
        Ok(head) if head.status == 100 => Some(was_sent),
        Ok(head) => {
            let refusal = Response { head, body: Vec::new(), end: End::Clean };
            assert!(!load.is_done(path, &refusal, 100));
            Some(false)
        }
        Err(end) => {
            load.is_gone(path, end);
            None
        }
    }
}

/// Waits until the server has noticed that a writer is gone. False: the server is gone.
fn await_its_end(path: &str, load: &Load) -> bool {
    let (mut connection, mut is_there) = (None, true);
    eventually("the server has noticed that a writer is gone", || {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        match exchange(load, &mut connection, path, "HEAD", &[request.as_bytes()]) {
            Some(response) => response.head.get("tailwater-state") != Some("live"),
            None => {
                is_there = false;
                true
            }
        }
    });
    is_there
}

/// A client with long streams, each with several followers.
struct StreamClient {
    names: Names,
    count: u64,
}

/// What is going to happen to a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Finished,
    Reset,
    Left,
}

impl StreamClient {
    fn work(&mut self, load: &Load, mut random: Random) {
        while !load.has_ended.load(SeqCst) {
            let path = format!("/{}/{}", self.names.bucket, random.below(self.count));
            let goes_on = match random.below(8) {
                0 => self.names.delete(&path, load, &mut None),
                1 => self.names.get(&path, load, &mut None),
                _ => self.stream(&path, load, &mut random),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn stream(&mut self, path: &str, load: &Load, random: &mut Random) -> bool {
        let content = Content { seed: random.below(1 << 40), length: 1 + random.below(3 << 20) as usize };
        let fate = match random.below(6) {
            0 => Fate::Reset,
            1 => Fate::Left,
            _ => Fate::Finished,
        };
        let piece_length = 1 + random.below(60_000) as usize;
        let bytes = content.bytes();
        let Some(mut connection) = load.connect() else { return false };
        let mut upload = Upload { content, sent: 0, is_complete: false, given: 0, was_seen_whole: false };
        // From here on it may be there.
        self.names.uploaded(path, &upload, Outcome::Unknown);
        let framing = "Expect: 100-continue\r\nTransfer-Encoding: chunked";
        let head = format!("PUT {path} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n");
        match begin_upload(path, load, &mut connection, &head) {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
        let (given, was_seen_whole, is_complete) =
            (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let followers = 1 + random.below(3);
        let breaks_at = random.below(content.length as u64);
        let outcome = std::thread::scope(|scope| {
            let mut waiting = followers;
            for piece in bytes.chunks(piece_length) {
                if fate != Fate::Finished && upload.sent > breaks_at {
                    break;
                }
                // The first one from the beginning, the others from somewhere on.
                if waiting == followers || (waiting > 0 && random.one_in(10)) {
                    waiting -= 1;
                    let follower = Follower { path, bytes: &bytes, load };
                    if let Some(body) = follower.begin() {
                        let (given, was_seen_whole, is_complete) = (&given, &was_seen_whole, &is_complete);
                        scope.spawn(move || follower.follow(body, given, was_seen_whole, is_complete));
                    }
                }
                upload.sent += piece.len() as u64;
                let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                if !connection.try_send(chunk) {
                    break;
                }
            }
            match fate {
                Fate::Reset => connection.reset(),
                Fate::Left => drop(connection),
                Fate::Finished => {
                    // Where something could not be sent the answer says why, if there is one.
                    if upload.sent == content.length as u64 {
                        is_complete.store(true, SeqCst);
                        connection.try_send("0\r\n\r\n");
                    }
                    match connection.try_response("PUT") {
                        Ok(response) if load.is_done(path, &response, 201) => {
                            return Outcome::created(&response);
                        }
                        Ok(response) if response.head.status == 507 => return Outcome::Refused,
                        Ok(_) => {}
                        Err(end) => load.is_gone(path, end),
                    }
                }
            }
            Outcome::Unknown
        });
        upload.is_complete = is_complete.into_inner();
        upload.given = given.into_inner();
        upload.was_seen_whole = was_seen_whole.into_inner();
        self.names.uploaded(path, &upload, outcome);
        fate == Fate::Finished || await_its_end(path, load)
    }
}

/// Somebody who reads a stream while it is written.
#[derive(Clone, Copy)]
struct Follower<'a> {
    path: &'a str,
    bytes: &'a [u8],
    load: &'a Load,
}

impl Follower<'_> {
    /// The head has come, and says that this is the stream that is being written.
    fn begin(self) -> Option<super::Body> {
        let mut connection = self.load.connect()?;
        if !connection.try_send(format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", self.path)) {
            return None;
        }
        let body = match connection.try_into_body("GET") {
            Ok(body) => body,
            Err(end) => {
                self.load.is_gone(self.path, end);
                return None;
            }
        };
        // Where its writer was refused in the meantime it is another one that is served.
        (body.head.status == 200 && body.head.get("tailwater-state") == Some("live")).then_some(body)
    }

    fn follow(
        self,
        mut body: super::Body,
        given: &AtomicU64,
        was_seen_whole: &AtomicBool,
        is_complete: &AtomicBool,
    ) {
        let end = loop {
            match body.take_some(usize::MAX) {
                Ok(some) => {
                    let until = body.received() as usize;
                    let from = until - some.len();
                    assert!(until <= self.bytes.len(), "{}: more than was sent", self.path);
                    assert_same(self.path, &some, &self.bytes[from..until]);
                    if self.load.is_cut_off.load(SeqCst) {
                        continue;
                    }
                    given.fetch_max(until as u64, SeqCst);
                    self.load.given.fetch_add(some.len() as u64, SeqCst);
                }
                Err(end) => break end,
            }
        };
        if end == End::Clean {
            let is_whole = body.received() == self.bytes.len() as u64 && is_complete.load(SeqCst);
            assert!(is_whole, "{}: a clean end after {} bytes", self.path, body.received());
            was_seen_whole.fetch_or(!self.load.is_cut_off.load(SeqCst), SeqCst);
        }
    }
}

/// What was found after a start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Names that serve nothing.
    pub absent: u64,
    /// Names that serve something whole.
    pub sealed: u64,
    /// Names that serve what an upload has left.
    pub interrupted: u64,
}

/// Clients that belong together.
pub struct Crowd {
    objects: Vec<ObjectClient>,
    streams: Vec<StreamClient>,
    random: Random,
    newest_generation: u64,
}

impl Crowd {
    /// Three clients with small objects, two with streams.
    pub fn new(seed: u64) -> Crowd {
        let objects =
            (0..3).map(|number| ObjectClient { names: Names::new(format!("objects-{number}")), count: 40 });
        let streams =
            (0..2).map(|number| StreamClient { names: Names::new(format!("streams-{number}")), count: 5 });
        Crowd {
            objects: objects.collect(),
            streams: streams.collect(),
            random: Random::new(seed),
            newest_generation: 0,
        }
    }

    /// Loads a server as long as `meanwhile` takes, which ends the load or the server.
    pub fn load<T>(&mut self, address: SocketAddr, room: Room, meanwhile: impl FnOnce(&Load) -> T) -> T {
        let load = Load {
            address,
            room,
            is_ending: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            given: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        let load = &load;
        std::thread::scope(|scope| {
            // Whoever panics ends the others.
            let _stop = Stop(load);
            for client in &mut self.objects {
                let random = Random::new(self.random.below(u64::MAX));
                scope.spawn(move || client.work(load, random));
            }
            for client in &mut self.streams {
                let random = Random::new(self.random.below(u64::MAX));
                scope.spawn(move || client.work(load, random));
            }
            meanwhile(load)
        })
    }

    /// Looks at everything that is served, and takes it for what is served from now on.
    #[track_caller]
    pub fn check(&mut self, server: &Server) -> Tally {
        let mut tally = Tally::default();
        let mut buckets = BTreeSet::new();
        let mut generations = Vec::new();
        let objects = self.objects.iter_mut().map(|client| &mut client.names);
        for names in objects.chain(self.streams.iter_mut().map(|client| &mut client.names)) {
            names.check(server, &mut tally);
            if names.served.values().flatten().any(|served| *served != Served::Nothing) {
                buckets.insert(names.bucket.clone());
            }
            generations.append(&mut names.generations);
        }
        let listed = server.get("/").json();
        let listed = listed["buckets"].as_array().unwrap();
        let is_ours = |bucket: &&str| bucket.starts_with("objects-") || bucket.starts_with("streams-");
        let listed = listed.iter().map(|bucket| bucket.as_str().unwrap()).filter(is_ours);
        let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
        assert_eq!(listed, buckets, "the buckets that are there");
        generations.sort_unstable();
        assert!(generations.windows(2).all(|pair| pair[0] < pair[1]), "a generation came twice");
        if let (Some(&first), Some(&last)) = (generations.first(), generations.last()) {
            assert!(first > self.newest_generation, "a generation came again");
            self.newest_generation = last;
        }
        tally
    }

    /// Numbers for whoever breaks things.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }
}

struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.ending();
        }
        self.0.stop();
    }
}
