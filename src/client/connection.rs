//! One TCP connection: bytes in and out. What the bytes mean is told one floor up.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio_uring::BufResult;
use tokio_uring::net::TcpStream;

/// How much one read takes at most, in bytes.
const READ_BYTES_MAX: usize = 128 * 1024;

/// A connection, the bytes that it received and nobody has used, and the read in flight.
///
/// Dropping it shuts the socket down, so that what is in flight completes and the descriptor is closed.
pub(super) struct Connection {
    stream: Rc<TcpStream>,
    /// The read in flight. It is kept here and not in the future that waits for it: bytes that a dropped future had
    /// already been given by the kernel are then not lost.
    reading: Option<Reading>,
    received: Vec<u8>,
    /// How much of `received` was used.
    used: usize,
    /// The buffer of the next read.
    spare: Vec<u8>,
    /// Where the server has said that the upload on this connection can be gone on with.
    pub(super) upload: Option<String>,
}

type Reading = Pin<Box<dyn Future<Output = BufResult<usize, Vec<u8>>>>>;

impl Connection {
    /// Connects. Dropping the future leaves the attempt to the kernel, which closes the socket when it ends.
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: Rc::new(stream),
            reading: None,
            received: Vec::new(),
            used: 0,
            spare: Vec::new(),
            upload: None,
        })
    }

    /// What was received and not used.
    pub(super) fn input(&self) -> &[u8] {
        &self.received[self.used..]
    }

    /// Says that so many bytes of the input were used.
    pub(super) fn consume(&mut self, length: usize) {
        self.used += length;
        assert!(self.used <= self.received.len(), "more was used than was received");
        if self.used == self.received.len() {
            self.received.clear();
            self.used = 0;
        }
    }

    /// Receives more: how many bytes the input grew by, 0 at the end of the connection. One read at a time is in
    /// flight; it stays so when nobody polls any longer, and the next call continues with it.
    pub(super) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let reading = self.reading.get_or_insert_with(|| {
            let mut buffer = std::mem::take(&mut self.spare);
            buffer.clear();
            buffer.reserve(READ_BYTES_MAX);
            let stream = Rc::clone(&self.stream);
            Box::pin(async move { stream.read(buffer).await })
        });
        let (result, buffer) = std::task::ready!(reading.as_mut().poll(context));
        self.reading = None;
        if let Ok(length) = result {
            debug_assert_eq!(length, buffer.len());
            if self.received.is_empty() {
                self.spare = std::mem::replace(&mut self.received, buffer);
            } else {
                self.received.drain(..self.used);
                self.used = 0;
                self.received.extend_from_slice(&buffer);
                self.spare = buffer;
            }
        } else {
            self.spare = buffer;
        }
        Poll::Ready(result)
    }

    /// Sends all of `bytes`, and gives the buffer back. Dropping the future leaves open how much was sent: the
    /// connection can then only be dropped.
    pub(super) fn send(&self, bytes: Vec<u8>) -> impl Future<Output = BufResult<(), Vec<u8>>> + 'static {
        let stream = Rc::clone(&self.stream);
        async move { stream.write_all(bytes).await }
    }

    /// Whether the peer has neither closed an idle connection nor sent what nobody asked for, as far as is known.
    /// It also sees to it that the next call knows.
    pub(super) fn is_idle(&mut self) -> bool {
        self.input().is_empty() && self.poll_receive(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails if the peer was faster, and then there is nothing to do.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
