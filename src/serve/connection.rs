//! One connection: heads in, answers out, until either side has had enough.
//!
//! What was received and not used yet belongs to the connection ([`Input`]), so that no dropped wait loses it. An
//! idle connection holds no buffer.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use rustix::io::Errno;
use tracing::Instrument;

use super::head::{Head, Limits, Parsed, Version, parse_more};
use super::problem::Problem;
use super::reply::{Body, Committed, ReplyHead, write_problem};
use super::server::{Arrival, Door, Here, within};
use super::target::{ObjectQuery, Target};
use super::{admin, follow, ingest, names, resumable, tus};
use crate::context::{Context, Peer, RequestId};
use crate::error::Error;
use crate::metrics::Stall;
use crate::runtime::{Either, Elapsed, Stream, race};

/// How much is received at a time while heads or chunk lines are awaited, in bytes.
const INPUT_LENGTH: usize = 16 << 10;
/// What of an unwanted body is taken after the answer, so that the client reads it before a reset, in bytes.
const LINGER_LENGTH_MAX: usize = 4 << 20;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes that were received and not used yet.
#[derive(Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// What is there.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Marks the first bytes as used.
    pub fn consume(&mut self, length: usize) {
        assert!(length <= self.end - self.start);
        self.start += length;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room behind what is there: at least `INPUT_LENGTH` bytes.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.bytes.len() - self.end < INPUT_LENGTH {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.bytes.len() - self.end < INPUT_LENGTH {
            self.bytes.resize(self.end + INPUT_LENGTH, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Says that the first bytes of the room were filled.
    pub fn fill(&mut self, length: usize) {
        self.end += length;
        assert!(self.end <= self.bytes.len());
    }

    /// Takes back what was consumed since this answered `mark`, where nothing was received since.
    fn restore(&mut self, mark: (usize, usize)) {
        (self.start, self.end) = mark;
    }

    fn mark(&self) -> (usize, usize) {
        (self.start, self.end)
    }

    /// Gives the memory back where nothing is held.
    fn release(&mut self) {
        if self.is_empty() {
            *self = Input::default();
        }
    }
}

/// Why an exchange ended before its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection broke, or the client left.
    Gone,
    /// The client took or sent nothing for too long.
    Stalled,
    /// The context has ended: the node cuts what is left.
    Ended,
    /// Somebody else has come to write the object.
    Replaced,
}

impl From<Errno> for Broken {
    fn from(_: Errno) -> Broken {
        Broken::Gone
    }
}

impl From<Elapsed> for Broken {
    fn from(_: Elapsed) -> Broken {
        Broken::Stalled
    }
}

impl From<Error> for Broken {
    /// Of a wait that ends with its context only.
    fn from(error: Error) -> Broken {
        tracing::debug!(%error, "cut");
        Broken::Ended
    }
}

/// What is to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another request may come.
    Request,
    /// All was sent: close, after the client has had time to read it although it may still be sending.
    Close,
    /// Only this core can answer the request, of which nothing but the head was used.
    Elsewhere(usize),
}

pub(super) struct Connection {
    pub here: Rc<Here>,
    pub stream: Stream,
    pub input: Input,
    door: Door,
    /// What it runs under, and all requests on it.
    context: Context,
    /// Since when a body is measured, and how many bytes of it have come since.
    pace: Cell<(Instant, u64)>,
}

/// A request and what its answer needs.
pub(super) struct Request {
    pub head: Head,
    pub id: RequestId,
    pub context: Context,
}

/// Tells a client that there are too many connections.
pub(super) fn refuse(here: &Here, stream: &Stream) {
    let problem =
        Problem::unavailable("this node is at its limit of connections", Duration::from_secs(1)).closing();
    let mut out = Vec::new();
    here.with_date(|date| write_problem(&mut out, &problem, "-", Version::Http11, false, true, date));
    let _ = stream.try_send(&[std::io::IoSlice::new(&out)], false);
    stream.finish();
}

impl Connection {
    pub fn new(here: Rc<Here>, context: Context, stream: Stream, door: Door, input: Input) -> Connection {
        let pace = Cell::new((here.local.core().now(), 0));
        Connection { here, stream, input, door, context, pace }
    }

    /// Serves requests until the connection ends. Dropping the future closes it: an object that is being put on it is
    /// interrupted with what was received, or awaited.
    pub async fn serve(mut self) {
        loop {
            let next = match self.read_head().await {
                Ok(Some(Parsed::Complete { head, length })) => {
                    let mark = self.input.mark();
                    self.input.consume(length);
                    let id = self.here.next_request();
                    // What a request has begun elsewhere and nobody waits for any more ends with it.
                    let (context, _over) = self.context.with_value(id).with_cancel();
                    let span = context.span();
                    match self.exchange(head, id, context).instrument(span).await {
                        Ok(Next::Elsewhere(core)) => {
                            self.input.restore(mark);
                            let input = std::mem::take(&mut self.input);
                            self.here.send_to(core, Arrival::moved(self.door, &self.stream, input));
                            return;
                        }
                        next => next,
                    }
                }
                Ok(Some(Parsed::Refused { problem, method, version, length })) => {
                    self.input.consume(length);
                    self.refuse_head(&problem, &method, version).await
                }
                Ok(Some(Parsed::Incomplete)) | Ok(None) => return,
                Err(Refusal::Problem(problem)) => {
                    self.refuse_head(&problem, &Method::GET, Version::Http11).await
                }
                Err(Refusal::Broken(_)) => return,
            };
            match next {
                Ok(Next::Request) if !self.here.is_draining() => {}
                // What the client has sent and nobody has read would make closing a reset, and the end of the answer
                // could be lost with it.
                Ok(_) => {
                    self.linger().await;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// The next head. None: the client has finished, was idle for too long, or the node drains.
    async fn read_head(&mut self) -> Result<Option<Parsed>, Refusal> {
        let limits = Limits { head_length_max: self.here.config().head_bytes_max, ..Limits::default() };
        let core = self.here.local.core().clone();
        let mut seen = 0;
        let mut deadline = None;
        loop {
            let is_idle = self.input.is_empty();
            if !is_idle {
                match parse_more(self.input.filled(), seen, &limits).map_err(Refusal::Problem)? {
                    Parsed::Incomplete => seen = self.input.filled().len(),
                    parsed => return Ok(Some(parsed)),
                }
            }
            match self.stream.try_receive(&mut [IoSliceMut::new(self.input.space())])? {
                Some(0) => return Ok(None),
                Some(count) => {
                    self.input.fill(count);
                    if is_idle {
                        deadline = None;
                    }
                    continue;
                }
                None => self.input.release(),
            }
            // A client of the admin listener is heard to the end: /readyz tells that the node drains.
            let ends_with_drain = is_idle && self.door == Door::Data;
            if ends_with_drain && self.here.is_draining() {
                return Ok(None);
            }
            let config = self.here.config();
            let limit_seconds = if is_idle { config.idle_seconds } else { config.head_seconds };
            let deadline = *deadline.get_or_insert_with(|| core.now() + Duration::from_secs(limit_seconds));
            let limit = race(core.sleep_until(deadline), self.here.drained(ends_with_drain));
            match core.under(&self.context, race(self.stream.readable(), limit)).await {
                Err(_) => return Ok(None),
                Ok(Either::First(outcome)) => outcome?,
                // A request that came before the end of the node's patience is answered.
                Ok(Either::Second(Either::Second(()))) => {}
                Ok(Either::Second(Either::First(()))) if is_idle => return Ok(None),
                Ok(Either::Second(Either::First(()))) => {
                    self.note_stall(Stall::Head, limit_seconds);
                    let detail = format!("the head did not come within {limit_seconds} seconds");
                    return Err(Refusal::Problem(Problem::request_timeout(detail)));
                }
            }
        }
    }

    async fn exchange(&mut self, head: Head, id: RequestId, context: Context) -> Result<Next, Broken> {
        let peer = context.value().map(|Peer(address)| tracing::field::display(address));
        tracing::debug!(method = %head.method, path = head.path, peer, "request");
        let mut request = Request { head, id, context };
        if self.here.is_draining() {
            request.head.keep_alive = false;
        }
        if self.door == Door::Admin {
            return admin::answer(self, &request).await;
        }
        match (&request.head.method, &request.head.target) {
            (_, Target::Tus(target)) => tus::answer(self, &request, target).await,
            (&Method::OPTIONS, _) => resumable::options(self, &request).await,
            (
                &Method::HEAD | &Method::PATCH | &Method::DELETE,
                Target::Object { name, query: ObjectQuery { upload: Some(upload), .. } },
            ) => resumable::answer(self, &request, name, *upload).await,
            (&Method::PUT | &Method::POST, Target::Object { .. }) => ingest::answer(self, &request).await,
            (&Method::GET | &Method::HEAD, Target::Object { .. }) => follow::answer(self, &request).await,
            (&Method::DELETE, Target::Object { .. }) => names::delete(self, &request).await,
            (_, Target::Bucket { .. }) => names::list(self, &request).await,
            _ => names::buckets(self, &request).await,
        }
    }

    /// Counts the answer to a request, and says so in the log.
    pub fn record(&self, method: &Method, status: StatusCode) {
        if self.door == Door::Data {
            self.here.local.metrics().requests.record(method.into(), status.as_u16());
        }
        tracing::debug!(status = status.as_u16(), "answered");
    }

    /// Writes the head of an answer into `out`.
    pub fn reply_head(
        &self,
        request: &Request,
        status: StatusCode,
        headers: &[(HeaderName, HeaderValue)],
        body: Body,
        out: &mut Vec<u8>,
    ) -> Committed {
        self.record(&request.head.method, status);
        let keep_alive = request.head.keep_alive && !self.here.is_draining();
        let reply = ReplyHead { status, headers, body, version: request.head.version, keep_alive };
        self.here.with_date(|date| reply.write(out, date))
    }

    /// Sends a whole answer with a body that is at hand. Dropping the future leaves some of it sent: nothing more can be
    /// sent on this connection.
    pub async fn reply(
        &mut self,
        request: &Request,
        status: StatusCode,
        headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> Result<Next, Broken> {
        let mut out = Vec::with_capacity(512 + body.len());
        let length = match status {
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Body::Absent,
            _ => Body::Length(body.len() as u64),
        };
        let committed = self.reply_head(request, status, headers, length, &mut out);
        if request.head.method != Method::HEAD {
            out.extend_from_slice(body);
        }
        self.send(&out, false).await?;
        Ok(if committed.keep_alive { Next::Request } else { Next::Close })
    }

    /// Sends the answer that tells of a problem. The body of the request, if there is one, was not read.
    /// Dropping the future: as for [`Connection::reply`].
    pub async fn reply_problem(&mut self, request: &Request, problem: &Problem) -> Result<Next, Broken> {
        self.record(&request.head.method, problem.status);
        if problem.status.is_server_error() {
            tracing::warn!(%problem, method = %request.head.method, path = request.head.path, "failed");
        }
        let has_body = request.head.framing.has_body();
        let keep_alive = request.head.keep_alive && !has_body && !self.here.is_draining();
        let mut out = Vec::new();
        let (version, with_body) = (request.head.version, request.head.method != Method::HEAD);
        let id = request.id.to_string();
        let committed = self
            .here
            .with_date(|date| write_problem(&mut out, problem, &id, version, keep_alive, with_body, date));
        self.send(&out, false).await?;
        Ok(if committed.keep_alive { Next::Request } else { Next::Close })
    }

    async fn refuse_head(
        &mut self,
        problem: &Problem,
        method: &Method,
        version: Version,
    ) -> Result<Next, Broken> {
        let id = self.here.next_request().to_string();
        tracing::debug!(id, %problem, "refused");
        self.record(method, problem.status);
        let mut out = Vec::new();
        let with_body = method != Method::HEAD;
        let committed = self.here.with_date(|date| {
            write_problem(&mut out, problem, &id, version, !problem.close, with_body, date)
        });
        self.send(&out, false).await?;
        Ok(if committed.keep_alive { Next::Request } else { Next::Close })
    }

    /// Sends bytes, waiting for a slow client as long as it takes something. Dropping the future leaves some of them sent.
    pub async fn send(&self, mut bytes: &[u8], more: bool) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.stream.try_send(&[std::io::IoSlice::new(bytes)], more)? {
                Some(count) => bytes = &bytes[count..],
                None => self.writable().await?,
            }
        }
        Ok(())
    }

    /// Waits until the client can take more, for as long as a reader may stall. Dropping the future loses nothing.
    pub async fn writable(&self) -> Result<(), Broken> {
        let seconds = self.here.config().reader_stall_seconds;
        self.wait(Stall::Reader, seconds, self.stream.writable()).await
    }

    /// A body begins: from now on its client has to keep up with the floor.
    pub fn begin_body(&self) {
        self.pace.set((self.here.local.core().now(), 0));
    }

    /// Counts bytes of a body.
    pub fn took(&self, bytes: usize) {
        let (since, former) = self.pace.get();
        self.pace.set((since, former + bytes as u64));
        self.here.local.metrics().bytes_received.add(bytes as u64);
    }

    /// Waits until the client has sent more of a body, for as long as a writer may stall. Dropping the future loses
    /// nothing.
    pub async fn readable(&self) -> Result<(), Broken> {
        let config = self.here.config();
        let (now, (since, bytes)) = (self.here.local.core().now(), self.pace.get());
        if now.saturating_duration_since(since) >= Duration::from_secs(config.writer_stall_seconds) {
            if bytes < config.body_floor_bytes {
                self.note_stall(Stall::Body, config.writer_stall_seconds);
                return Err(Broken::Stalled);
            }
            self.pace.set((now, 0));
        }
        self.wait(Stall::Writer, config.writer_stall_seconds, self.stream.readable()).await
    }

    async fn wait(
        &self,
        stall: Stall,
        seconds: u64,
        ready: impl Future<Output = Result<(), Errno>>,
    ) -> Result<(), Broken> {
        let core = self.here.local.core();
        let outcome = core.under(&self.context, within(&self.here, seconds, ready)).await?;
        if outcome.is_err() {
            self.note_stall(stall, seconds);
        }
        outcome??;
        Ok(())
    }

    /// Says that a client is cut because it is too slow.
    fn note_stall(&self, stall: Stall, seconds: u64) {
        self.here.local.metrics().stalls.of(stall).increment();
        let peer = self.context.value().map(|Peer(address)| tracing::field::display(address));
        tracing::info!(?stall, seconds, peer, "a client is too slow, and is cut");
    }

    /// Ends the sending side and takes what the client still sends for a moment: closing at once would reset the
    /// connection, and the client might lose the answer (RFC 9112, section 9.6).
    async fn linger(&mut self) {
        self.stream.finish();
        let core = self.here.local.core().clone();
        let mut taken = 0;
        let taking = async {
            let mut waste = vec![0; 64 << 10];
            while taken < LINGER_LENGTH_MAX {
                match self.stream.try_receive(&mut [IoSliceMut::new(&mut waste)]) {
                    Ok(Some(0)) | Err(_) => return,
                    Ok(Some(count)) => taken += count,
                    Ok(None) => {
                        if self.stream.readable().await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let _ = core.timeout(LINGER, taking).await;
    }
}

enum Refusal {
    Problem(Problem),
    Broken(#[expect(dead_code, reason = "for whoever looks at it in a debugger")] Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal::Broken(errno)
    }
}
