//! Requests and answers: who may send when, when a connection can be used again, and how each way to fail is told.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::body::{Decoder, Framing, Progress};
use super::connection::Connection;
use super::head::{self, Head};
use super::{Error, Location, Result, timer};

/// How long an upload with `Expect: 100-continue` waits for leave before it starts all the same.
const CONTINUE_WAIT: Duration = Duration::from_secs(2);
/// How long an answer is looked for on a connection that no longer takes what is sent.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
/// The status of the interim answer that says where an upload can be gone on with (draft-ietf-httpbis-resumable-upload).
const UPLOAD_RESUMPTION_SUPPORTED: u16 = 104;
/// The longest body that is kept in memory when an error or a document is read, in bytes.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// For a part of a body to be taken by the peer.
    pub send: Duration,
    /// For the head of an answer, once the request is sent.
    pub answer: Duration,
    /// For the next bytes of a body; `None` to follow a writer for as long as it takes.
    pub idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(10),
            send: Duration::from_secs(60),
            answer: Duration::from_secs(60),
            idle: Some(Duration::from_secs(60)),
        }
    }
}

/// A server, the connections that are open to it, and the limits of waiting. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    shared: Rc<Shared>,
    limits: Limits,
}

struct Shared {
    addresses: Vec<SocketAddr>,
    authority: String,
    idle: RefCell<Vec<Connection>>,
}

/// A request without a body, or with one that is in memory.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    target: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// A request for a target such as [`Location::target`] gives.
    pub fn new(method: &'static str, target: impl Into<String>) -> Request {
        Request { method, target: target.into(), fields: Vec::new(), body: Vec::new() }
    }

    /// Adds a field to the head.
    ///
    /// # Panics
    /// On a line break: it would make another request of the rest.
    pub fn field(mut self, name: &str, value: impl Into<String>) -> Request {
        let value = value.into();
        assert!(!name.contains(['\r', '\n']) && !value.contains(['\r', '\n']), "a field is one line");
        self.fields.push((name.to_owned(), value));
        self
    }

    /// Gives it a body.
    pub fn body(mut self, body: Vec<u8>) -> Request {
        self.fields.push(("Content-Length".to_owned(), body.len().to_string()));
        self.body = body;
        self
    }
}

/// How long the body of an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Known(u64),
    /// Nobody knows yet: it is sent in chunks.
    Unknown,
}

impl Client {
    /// A client for the server of a location; resolves its name, and connects only when there is something to ask.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the name does not resolve.
    pub fn new(location: &Location, limits: Limits) -> Result<Client> {
        let authority = location.authority();
        let addresses: Vec<SocketAddr> = (location.host.as_str(), location.port)
            .to_socket_addrs()
            .map_err(|cause| Error::Unreachable { address: authority.clone(), cause })?
            .collect();
        let shared = Shared { addresses, authority, idle: RefCell::new(Vec::new()) };
        Ok(Client { shared: Rc::new(shared), limits })
    }

    /// The same client with other limits.
    pub fn with_limits(&self, limits: Limits) -> Client {
        Client { shared: Rc::clone(&self.shared), limits }
    }

    /// The limits of waiting.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Sends a request and gives the answer, whatever its status. A request on a connection that was kept open and
    /// that the server has closed meanwhile is sent again on a new one. Dropping the future closes the connection.
    ///
    /// # Errors
    /// All but [`Error::Refused`].
    pub async fn request(&self, request: &Request) -> Result<Response> {
        if let Some(connection) = self.idle_connection() {
            match self.request_on(connection, request).await {
                Err(Error::Lost { .. }) => {}
                done => return done,
            }
        }
        self.request_on(self.connect().await?, request).await
    }

    /// Starts an upload. With `expect_continue` the server is asked first, and nothing of the body is sent to one
    /// that refuses: when this returns, all that can be checked without the body was checked, unless the server did
    /// not answer in 2 s. Dropping the future closes the connection.
    ///
    /// # Errors
    /// All; [`Error::Refused`] with what the server said.
    pub async fn upload(&self, request: Request, length: Length, expect_continue: bool) -> Result<Upload> {
        assert!(request.body.is_empty(), "the body of an upload is sent piece by piece");
        let mut request = match length {
            Length::Known(bytes) => request.field("Content-Length", bytes.to_string()),
            Length::Unknown => request.field("Transfer-Encoding", "chunked"),
        };
        if expect_continue {
            request = request.field("Expect", "100-continue");
        }
        if let Some(connection) = self.idle_connection() {
            match self.upload_on(connection, &request, length, expect_continue).await {
                Err(Error::Lost { .. }) => {}
                done => return done,
            }
        }
        self.upload_on(self.connect().await?, &request, length, expect_continue).await
    }

    async fn upload_on(
        &self,
        connection: Connection,
        request: &Request,
        length: Length,
        expect_continue: bool,
    ) -> Result<Upload> {
        let mut upload = Upload {
            client: self.clone(),
            connection: Some(connection),
            length,
            sent: 0,
            outgoing: self.head_of(request),
        };
        upload.flush().await?;
        if expect_continue {
            upload.await_continue().await?;
        }
        Ok(upload)
    }

    async fn request_on(&self, mut connection: Connection, request: &Request) -> Result<Response> {
        let mut outgoing = self.head_of(request);
        outgoing.extend_from_slice(&request.body);
        let head = match self.send(&mut connection, outgoing).await? {
            Sent::All(_) => self.final_head(&mut connection, self.limits.answer).await?,
            Sent::Answered(head) => return self.response(connection, head, request.method, false),
        };
        self.response(connection, head, request.method, true)
    }

    fn head_of(&self, request: &Request) -> Vec<u8> {
        let mut output = Vec::with_capacity(512);
        head::write_request(
            &mut output,
            request.method,
            &request.target,
            &self.shared.authority,
            &request.fields,
        );
        output
    }

    fn idle_connection(&self) -> Option<Connection> {
        let mut idle = self.shared.idle.borrow_mut();
        while let Some(mut connection) = idle.pop() {
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Connection> {
        let mut last = Error::Unreachable {
            address: self.shared.authority.clone(),
            cause: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
        };
        for &address in &self.shared.addresses {
            last = match timer::within(self.limits.connect, Connection::connect(address)).await {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(cause)) => Error::Unreachable { address: self.shared.authority.clone(), cause },
                None => Error::TimedOut { what: "a connection", after: self.limits.connect },
            };
        }
        Err(last)
    }

    /// Sends `outgoing`, with an eye on what the server has to say meanwhile.
    async fn send(&self, connection: &mut Connection, outgoing: Vec<u8>) -> Result<Sent> {
        let mut sending = pin!(connection.send(outgoing));
        let sent = timer::within(
            self.limits.send,
            poll_fn(|context| {
                if let Poll::Ready((result, buffer)) = sending.as_mut().poll(context) {
                    return Poll::Ready(Ok(match result {
                        Ok(()) => Some(Sent::All(buffer)),
                        // It may have said why before it closed.
                        Err(_) => None,
                    }));
                }
                while let Poll::Ready(received) = connection.poll_receive(context) {
                    if !matches!(received, Ok(1..)) {
                        return Poll::Ready(Ok(None));
                    }
                    if let Some(head) = take_head(connection)?
                        && !head.is_informational()
                    {
                        return Poll::Ready(Ok(Some(Sent::Answered(head))));
                    }
                }
                Poll::Pending
            }),
        )
        .await;
        match sent {
            Some(Ok(Some(sent))) => Ok(sent),
            Some(Ok(None)) => self.final_head(connection, LAST_WORDS_WAIT).await.map(Sent::Answered),
            Some(Err(error)) => Err(error),
            None => Err(Error::TimedOut { what: "room for more of the body", after: self.limits.send }),
        }
    }

    /// The head of the answer, after those that only announce it.
    async fn final_head(&self, connection: &mut Connection, limit: Duration) -> Result<Head> {
        let waiting = async {
            loop {
                let head = self.next_head(connection).await?;
                if !head.is_informational() {
                    return Ok(head);
                }
            }
        };
        timer::within(limit, waiting)
            .await
            .unwrap_or(Err(Error::TimedOut { what: "an answer", after: limit }))
    }

    async fn next_head(&self, connection: &mut Connection) -> Result<Head> {
        loop {
            if let Some(head) = take_head(connection)? {
                return Ok(head);
            }
            let cause = match poll_fn(|context| connection.poll_receive(context)).await {
                Ok(1..) => continue,
                Ok(_) => io::Error::new(io::ErrorKind::UnexpectedEof, "the end of the connection"),
                Err(error) => error,
            };
            if connection.input().is_empty() {
                return Err(Error::Lost { address: self.shared.authority.clone(), cause });
            }
            return Err(Error::Interrupted(format!(
                "the connection broke in the head of the answer: {cause}"
            )));
        }
    }

    fn response(&self, connection: Connection, head: Head, method: &str, reusable: bool) -> Result<Response> {
        let framing = head.framing(method == "HEAD").map_err(Error::Malformed)?;
        let reusable = reusable && framing != Framing::UntilClose && head.keeps_alive();
        Ok(Response {
            client: self.clone(),
            connection: Some(connection),
            decoder: Decoder::new(framing),
            chunk: 0..0,
            reusable,
            received: 0,
            head,
        })
    }
}

/// What became of bytes that were to be sent.
enum Sent {
    /// All were; the buffer comes back.
    All(Vec<u8>),
    /// The server answered before it had all of them.
    Answered(Head),
}

fn take_head(connection: &mut Connection) -> Result<Option<Head>> {
    match Head::parse(connection.input()).map_err(Error::Malformed)? {
        Some((head, length)) => {
            connection.consume(length);
            if head.status == UPLOAD_RESUMPTION_SUPPORTED {
                connection.upload = head.field("location").map(str::to_owned);
            }
            Ok(Some(head))
        }
        None => Ok(None),
    }
}

/// A request whose body is being sent. Dropping it before [`Upload::finish`] closes the connection in the middle of
/// the body, which the server takes for what it is: a writer that is gone.
pub struct Upload {
    client: Client,
    /// Away while something is being sent: a send that was dropped midway takes it along.
    connection: Option<Connection>,
    length: Length,
    sent: u64,
    outgoing: Vec<u8>,
}

impl Upload {
    /// Sends the next bytes of the body; returns when the kernel has taken them. In an upload of unknown length they
    /// are one chunk. A future that is dropped leaves open how much was sent, and ends the upload.
    ///
    /// # Errors
    /// All; [`Error::Refused`] if the server answered before the end, with what it said. Nothing can be sent after
    /// an error.
    ///
    /// # Panics
    /// On more bytes than were announced.
    pub async fn send(&mut self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.sent += data.len() as u64;
        match self.length {
            Length::Known(length) => {
                assert!(self.sent <= length, "more than the announced {length} bytes are to be sent");
                self.outgoing.extend_from_slice(data);
            }
            Length::Unknown => {
                // Writing to a Vec cannot fail.
                let _ = write!(self.outgoing, "{:x}\r\n", data.len());
                self.outgoing.extend_from_slice(data);
                self.outgoing.extend_from_slice(b"\r\n");
            }
        }
        self.flush().await
    }

    /// How many bytes of the body were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Where the server has said that the upload can be gone on with, if it has said so by now and nothing is being
    /// sent.
    pub fn resource(&self) -> Option<&str> {
        self.connection.as_ref()?.upload.as_deref()
    }

    /// Waits for an answer that comes before the end of the body: to be polled beside whatever produces the body.
    /// It never returns without an error, and may be dropped and called again.
    pub async fn refused(&mut self) -> Error {
        let Some(connection) = self.connection.as_mut() else { return ended_midway() };
        loop {
            match self.client.next_head(connection).await {
                Ok(head) if head.is_informational() => {}
                Ok(head) => return self.early(head).await,
                Err(error) => return error,
            }
        }
    }

    /// Ends the body and gives the answer, whatever its status. Dropping the future closes the connection.
    ///
    /// # Errors
    /// All; [`Error::Refused`] if the server answered before the end.
    ///
    /// # Panics
    /// On fewer bytes than were announced: drop the upload to abandon it.
    pub async fn finish(mut self) -> Result<Response> {
        match self.length {
            Length::Known(length) => {
                assert_eq!(self.sent, length, "the upload ends short of what was announced");
            }
            Length::Unknown => {
                self.outgoing.extend_from_slice(b"0\r\n\r\n");
                self.flush().await?;
            }
        }
        let mut connection = self.connection.take().ok_or_else(ended_midway)?;
        let head = self.client.final_head(&mut connection, self.client.limits.answer).await?;
        self.client.response(connection, head, "PUT", true)
    }

    async fn flush(&mut self) -> Result<()> {
        let mut connection = self.connection.take().ok_or_else(ended_midway)?;
        let outgoing = std::mem::take(&mut self.outgoing);
        let sent = self.client.send(&mut connection, outgoing).await?;
        self.connection = Some(connection);
        match sent {
            Sent::All(buffer) => {
                self.outgoing = buffer;
                self.outgoing.clear();
                Ok(())
            }
            Sent::Answered(head) => Err(self.early(head).await),
        }
    }

    async fn await_continue(&mut self) -> Result<()> {
        let connection = self.connection.as_mut().ok_or_else(ended_midway)?;
        loop {
            match timer::within(CONTINUE_WAIT, self.client.next_head(connection)).await {
                Some(Ok(head)) if head.status == 100 => return Ok(()),
                Some(Ok(head)) if head.is_informational() => {}
                Some(Ok(head)) => return Err(self.early(head).await),
                Some(Err(error)) => return Err(error),
                // A server may leave it out (RFC 9110, section 10.1.1).
                None => return Ok(()),
            }
        }
    }

    /// What an answer before the end of the body means.
    async fn early(&mut self, head: Head) -> Error {
        let Some(connection) = self.connection.take() else { return ended_midway() };
        let status = head.status;
        match self.client.response(connection, head, "PUT", false) {
            Ok(response) => match response.accepted().await {
                Ok(_) => Error::Malformed(format!("it answered {status} before it had the whole body")),
                Err(error) => error,
            },
            Err(error) => error,
        }
    }
}

fn ended_midway() -> Error {
    Error::Interrupted("the upload ended earlier, in the middle of the body".to_owned())
}

/// An answer, and its body as it comes. Dropping it before its end closes the connection.
pub struct Response {
    /// Its head.
    pub head: Head,
    client: Client,
    /// Gone once the body was read to its end.
    connection: Option<Connection>,
    decoder: Decoder,
    /// The part of the connection's input that was last given out.
    chunk: Range<usize>,
    reusable: bool,
    received: u64,
}

impl Response {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// How many bytes of the body were given out.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes of the body, as they come; `None` at its end, which the framing proved to be the end. A future
    /// that is dropped loses nothing: the next call continues.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the connection ended before the body, [`Error::Malformed`], [`Error::TimedOut`].
    pub async fn chunk(&mut self) -> Result<Option<&[u8]>> {
        let Some(connection) = self.connection.as_mut() else { return Ok(None) };
        connection.consume(std::mem::take(&mut self.chunk).end);
        loop {
            match self.decoder.decode(connection.input()).map_err(Error::Malformed)? {
                Progress::Data(range) => {
                    self.received += range.len() as u64;
                    self.chunk = range;
                    break;
                }
                Progress::Finished(used) => {
                    connection.consume(used);
                    self.release();
                    return Ok(None);
                }
                Progress::More => {
                    let length = connection.input().len();
                    connection.consume(length);
                }
            }
            let receiving = poll_fn(|context| connection.poll_receive(context));
            let received = match self.client.limits.idle {
                Some(idle) => timer::within(idle, receiving)
                    .await
                    .ok_or(Error::TimedOut { what: "the next bytes of the body", after: idle })?,
                None => receiving.await,
            };
            match received {
                Ok(1..) => {}
                Ok(_) => {
                    let missing = self.decoder.end();
                    self.connection = None;
                    return match missing {
                        Ok(()) => Ok(None),
                        Err(missing) => Err(self.interrupted(&missing)),
                    };
                }
                Err(cause) => return Err(self.interrupted(&cause)),
            }
        }
        // The connection is there: it was a few lines above.
        Ok(self.connection.as_ref().map(|connection| &connection.input()[self.chunk.clone()]))
    }

    /// The whole body, for a document of at most 64 MiB.
    ///
    /// # Errors
    /// As [`Response::chunk`]; [`Error::Malformed`] for a longer one.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > DOCUMENT_BYTES_MAX {
                return Err(Error::Malformed(format!("a document of more than {DOCUMENT_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(chunk);
        }
        Ok(bytes)
    }

    /// The body as a JSON document.
    ///
    /// # Errors
    /// As [`Response::bytes`]; [`Error::Malformed`] if it is not that document.
    pub async fn json<T: serde::de::DeserializeOwned>(self) -> Result<T> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Malformed(format!("its JSON: {error}")))
    }

    /// This answer, if the server did what was asked.
    ///
    /// # Errors
    /// [`Error::Refused`] for any status that is not 2xx, with what the server said about it.
    pub async fn accepted(self) -> Result<Response> {
        let status = self.status();
        if (200..300).contains(&status) {
            return Ok(self);
        }
        let is_json = self.head.field("content-type").is_some_and(|kind| kind.contains("json"));
        // The status is what matters: a body that breaks takes nothing away from it.
        let body = self.bytes().await.unwrap_or_default();
        let detail = if is_json { problem_detail(&body) } else { None };
        let detail = detail.unwrap_or_else(|| {
            let name = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            name.unwrap_or("an unknown status").to_owned()
        });
        Err(Error::Refused { status, detail })
    }

    fn interrupted(&self, cause: &dyn std::fmt::Display) -> Error {
        Error::Interrupted(format!("the connection broke after {} bytes of the body: {cause}", self.received))
    }

    fn release(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && self.reusable
            && connection.is_idle()
        {
            self.client.shared.idle.borrow_mut().push(connection);
        }
    }
}

/// What an `application/problem+json` document (RFC 9457) says, in one line.
fn problem_detail(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
    }
    let problem: Problem = serde_json::from_slice(body).ok()?;
    let text = problem.detail.or(problem.title)?;
    Some(text.replace(|character: char| character.is_control(), " "))
}
