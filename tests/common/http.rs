//! HTTP by hand: what is sent is what the test says, byte by byte, and how an answer ends is told exactly.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::{PATIENCE, assert_same};

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing says: all bytes of its length, its last chunk, or (HTTP/1.0) the regular end of the
    /// connection.
    Clean,
    /// The connection ended regularly before that.
    Closed,
    /// The connection was reset.
    Reset,
}

/// A connection, and what was received and not taken yet.
pub struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
}

/// The head of an answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Clone)]
pub struct Response {
    /// Its head.
    pub head: Head,
    /// What came of its body, without its framing.
    pub body: Vec<u8>,
    /// How it ended.
    pub end: End,
}

impl Connection {
    /// A new connection.
    pub fn to(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        Connection::of(stream)
    }

    /// A connection whose client holds little that it has not read: a slow reader that is noticed soon.
    pub fn with_small_receive_buffer(address: SocketAddr, length: usize) -> Connection {
        use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // Before connecting: it decides on the window scale.
        sockopt::set_socket_recv_buffer_size(&socket, length).unwrap();
        connect(&socket, &address).unwrap();
        Connection::of(TcpStream::from(socket))
    }

    /// A new connection, if anybody listens.
    pub fn try_to(address: SocketAddr) -> Option<Connection> {
        TcpStream::connect(address).ok().map(Connection::of)
    }

    /// A connection that is there already, and blocks.
    pub fn of(stream: TcpStream) -> Connection {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream, input: Vec::new() }
    }

    /// Sends bytes as they are. Panics where the server does not take them.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server takes what is sent");
    }

    /// Sends bytes as they are; false where the server has ended the connection before it took them all.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match self.stream.write_all(bytes.as_ref()) {
            Ok(()) => true,
            Err(error) => {
                let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
                assert!(gone.contains(&error.kind()), "sending: {error}");
                false
            }
        }
    }

    /// Sends each byte in a packet of its own.
    #[track_caller]
    pub fn send_bytewise(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
        }
    }

    /// Sends a head: HTTP/1.1 with `Host` and these headers.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.send(head + "\r\n");
    }

    /// Says that nothing more will be sent (FIN), and goes on receiving.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends the connection with a reset, as a client that crashed or a middlebox does.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
    }

    /// Takes the head of an answer, interim answers included.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        self.try_head().unwrap_or_else(|end| {
            panic!("no answer came: {end:?} after {:?}", String::from_utf8_lossy(&self.input))
        })
    }

    /// Takes the head of an answer, or tells how the connection ended instead.
    pub fn try_head(&mut self) -> Result<Head, End> {
        let length = loop {
            if let Some(position) = find(&self.input, b"\r\n\r\n") {
                break position + 4;
            }
            assert!(self.input.len() < 1 << 20, "this is no head of an answer");
            self.receive()?;
        };
        let bytes: Vec<u8> = self.input.drain(..length).collect();
        Ok(Head::parse(std::str::from_utf8(&bytes).expect("a head is text")))
    }

    /// Takes a whole answer to a request of this method, or tells how the connection ended before its head.
    pub fn try_response(&mut self, method: &str) -> Result<Response, End> {
        let head = self.try_head()?;
        Ok(self.rest_of_response(head, method))
    }

    /// Takes a whole answer to a request of this method.
    #[track_caller]
    pub fn response(&mut self, method: &str) -> Response {
        let head = self.head();
        self.rest_of_response(head, method)
    }

    #[track_caller]
    fn rest_of_response(&mut self, head: Head, method: &str) -> Response {
        let mut framing = Framing::of(&head, method);
        let mut body = Vec::new();
        let end = loop {
            match framing.take(self, usize::MAX) {
                Ok(bytes) => body.extend(bytes),
                Err(end) => break end,
            }
        };
        Response { head, body, end }
    }

    /// Takes the head of an answer; its body is then taken piece by piece.
    #[track_caller]
    pub fn into_body(mut self, method: &str) -> Body {
        let head = self.head();
        self.body_of(head, method)
    }

    /// As [`Connection::into_body`], or tells how the connection ended before the head.
    pub fn try_into_body(mut self, method: &str) -> Result<Body, End> {
        let head = self.try_head()?;
        Ok(self.body_of(head, method))
    }

    fn body_of(self, head: Head, method: &str) -> Body {
        let framing = Framing::of(&head, method);
        Body { connection: self, head, framing, received: 0, end: None }
    }

    /// Waits until the server ends the connection, and tells how. Panics if it sends something instead.
    #[track_caller]
    pub fn ended(&mut self) -> End {
        assert!(self.input.is_empty(), "there is more: {:?}", String::from_utf8_lossy(&self.input));
        match self.receive() {
            Ok(()) => panic!("the server sent {:?}", String::from_utf8_lossy(&self.input)),
            Err(end) => end,
        }
    }

    /// Receives some more.
    #[track_caller]
    fn receive(&mut self) -> Result<(), End> {
        let mut bytes = [0; 64 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(End::Closed),
            Ok(count) => {
                self.input.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the server sent nothing for {PATIENCE:?}")
            }
            Err(error) => panic!("receiving: {error}"),
        }
    }
}

impl Head {
    fn parse(text: &str) -> Head {
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap();
        assert!(status_line.starts_with("HTTP/1.1 "), "{status_line}");
        let status = status_line[9..12].parse().unwrap();
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("a header: {line:?}"));
                (name.to_ascii_lowercase(), value.to_owned())
            })
            .collect();
        Head { status, headers }
    }

    /// The value of a header, which must not stand twice.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values =
            self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} stands twice: {self:?}");
        value
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}", self.status, self.headers)
    }
}

impl Response {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]);
        let (head, length, end) = (&self.head, self.body.len(), self.end);
        write!(formatter, "{head:?}, {length} bytes {shown:?}, {end:?}")
    }
}

/// What is still to come of a body.
enum Framing {
    Length(u64),
    /// What remains of the chunk at hand.
    Chunked(usize),
    Close,
    Ended,
}

impl Framing {
    fn of(head: &Head, method: &str) -> Framing {
        if method == "HEAD" || head.status / 100 == 1 || head.status == 204 || head.status == 304 {
            return Framing::Length(0);
        }
        match (head.get("transfer-encoding"), head.get("content-length")) {
            (Some("chunked"), None) => Framing::Chunked(0),
            (None, Some(length)) => Framing::Length(length.parse().unwrap()),
            (None, None) => Framing::Close,
            _ => panic!("no client knows how long this is: {head:?}"),
        }
    }

    /// Takes between one byte and `length_max`, or tells how the body ended.
    #[track_caller]
    fn take(&mut self, connection: &mut Connection, length_max: usize) -> Result<Vec<u8>, End> {
        let expected = match self {
            Framing::Ended | Framing::Length(0) => {
                *self = Framing::Ended;
                return Err(End::Clean);
            }
            Framing::Length(remaining) => usize::try_from(*remaining).unwrap(),
            Framing::Chunked(0) => match take_chunk_line(connection)? {
                0 => {
                    expect(connection, b"\r\n")?;
                    *self = Framing::Ended;
                    return Err(End::Clean);
                }
                length => {
                    *self = Framing::Chunked(length);
                    length
                }
            },
            Framing::Chunked(remaining) => *remaining,
            Framing::Close => usize::MAX,
        };
        if connection.input.is_empty() {
            match (connection.receive(), &*self) {
                (Ok(()), _) => {}
                (Err(End::Closed), Framing::Close) => {
                    *self = Framing::Ended;
                    return Err(End::Clean);
                }
                (Err(end), _) => return Err(end),
            }
        }
        let count = connection.input.len().min(expected).min(length_max);
        let bytes = connection.input.drain(..count).collect();
        match self {
            Framing::Length(remaining) => *remaining -= count as u64,
            Framing::Chunked(remaining) => {
                *remaining -= count;
                if *remaining == 0 {
                    expect(connection, b"\r\n")?;
                }
            }
            Framing::Close | Framing::Ended => {}
        }
        Ok(bytes)
    }
}

#[track_caller]
fn take_chunk_line(connection: &mut Connection) -> Result<usize, End> {
    let length = loop {
        if let Some(position) = find(&connection.input, b"\r\n") {
            break position;
        }
        connection.receive()?;
    };
    let line: Vec<u8> = connection.input.drain(..length + 2).take(length).collect();
    let line = std::str::from_utf8(&line).expect("a chunk line is text");
    Ok(usize::from_str_radix(line, 16).unwrap_or_else(|_| panic!("a chunk line: {line:?}")))
}

#[track_caller]
fn expect(connection: &mut Connection, expected: &[u8]) -> Result<(), End> {
    while connection.input.len() < expected.len() {
        connection.receive()?;
    }
    let found: Vec<u8> = connection.input.drain(..expected.len()).collect();
    assert_eq!(found, expected, "the framing of the answer is broken");
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The body of an answer, taken at the test's own pace. Nothing is received but by these calls.
pub struct Body {
    connection: Connection,
    /// The head of the answer.
    pub head: Head,
    framing: Framing,
    received: u64,
    end: Option<End>,
}

impl Body {
    /// How many bytes were taken.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes some bytes, at most `length_max`, or tells how the body ended.
    #[track_caller]
    pub fn take_some(&mut self, length_max: usize) -> Result<Vec<u8>, End> {
        if let Some(end) = self.end {
            return Err(end);
        }
        match self.framing.take(&mut self.connection, length_max) {
            Ok(bytes) => {
                self.received += bytes.len() as u64;
                Ok(bytes)
            }
            Err(end) => {
                self.end = Some(end);
                Err(end)
            }
        }
    }

    /// Waits for exactly so many bytes. Panics where the body ends before.
    #[track_caller]
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            match self.take_some(length - bytes.len()) {
                Ok(some) => bytes.extend(some),
                Err(end) => panic!("{end:?} after {} bytes, {} of {length}", self.received, bytes.len()),
            }
        }
        bytes
    }

    /// Waits for exactly these bytes.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let offset = self.received;
        let found = self.take(expected.len());
        assert_same(&format!("from offset {offset} on"), &found, expected);
    }

    /// Takes all that still comes, and how it ended.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        loop {
            match self.take_some(usize::MAX) {
                Ok(some) => bytes.extend(some),
                Err(end) => return (bytes, end),
            }
        }
    }

    /// Waits for these bytes and then a clean end.
    #[track_caller]
    pub fn expect_rest(&mut self, expected: &[u8]) {
        let offset = self.received;
        let (found, end) = self.rest();
        assert_same(&format!("from offset {offset} on"), &found, expected);
        assert_eq!(end, End::Clean, "after {} bytes", self.received);
    }

    /// The connection, for another request after a clean end.
    #[track_caller]
    pub fn into_connection(self) -> Connection {
        assert_eq!(self.end, Some(End::Clean), "the answer has not come to its end");
        self.connection
    }
}

/// An upload under way.
pub struct Put {
    connection: Connection,
    chunked: bool,
}

impl Put {
    /// Sends the head, and waits for `100 Continue`: the object is there from then on.
    #[track_caller]
    pub fn begin(
        mut connection: Connection,
        path: &str,
        declared_length: Option<u64>,
        headers: &[(&str, &str)],
    ) -> Put {
        let length = declared_length.unwrap_or_default().to_string();
        let framing = match declared_length {
            Some(_) => ("Content-Length", length.as_str()),
            None => ("Transfer-Encoding", "chunked"),
        };
        let mut all = vec![framing, ("Expect", "100-continue")];
        all.extend_from_slice(headers);
        connection.request("PUT", path, &all);
        let head = connection.head();
        assert_eq!(head.status, 100, "{path} cannot be put: {head:?}");
        Put { connection, chunked: declared_length.is_none() }
    }

    /// Sends a piece of the object: one chunk where it is chunked.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        if !self.chunked {
            return self.connection.send(bytes);
        }
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.connection.send(chunk);
    }

    /// Sends bytes as they are, without framing.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.connection.send(bytes);
    }

    /// Says that this was all, and waits for the answer.
    #[track_caller]
    pub fn finish(mut self) -> Response {
        if self.chunked {
            self.connection.send("0\r\n\r\n");
        }
        self.response()
    }

    /// As [`Put::finish`], and asserts that the object was created.
    #[track_caller]
    pub fn finish_created(self) -> Response {
        let response = self.finish();
        assert_eq!(response.head.status, 201, "{response:?}");
        response
    }

    /// Waits for the answer.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.connection.response("PUT")
    }

    /// As [`Put::send`]; false where the server has ended the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        if !self.chunked {
            return self.connection.try_send(bytes);
        }
        let head = format!("{:x}\r\n", bytes.len());
        self.connection.try_send([head.as_bytes(), bytes, b"\r\n"].concat())
    }

    /// Goes away with a regular end of the connection (FIN).
    pub fn close(self) {}

    /// Goes away with a reset.
    pub fn reset(self) {
        self.connection.reset();
    }

    /// Says that nothing more will come (FIN), and stays to see what is answered.
    pub fn finish_sending(self) -> Connection {
        self.connection.finish_sending();
        self.connection
    }
}
