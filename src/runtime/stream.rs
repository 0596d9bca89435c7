//! Listeners and connections.
//!
//! Readiness comes from the ring, bytes by non-blocking calls: a wait that is dropped has taken nothing from
//! the socket, and an idle connection holds no buffer.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::core::Core;
use crate::ring::{Descriptor, Operation, Readiness};

/// A listening socket.
pub struct Listener {
    descriptor: Arc<Descriptor>,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address; port 0 means one of the system's choice.
    ///
    /// # Errors
    /// EADDRINUSE when somebody else does, EACCES for a privileged port, EADDRNOTAVAIL for an address that is
    /// not this host's.
    pub fn bind(address: SocketAddr) -> Result<Listener, Errno> {
        let listener = std::net::TcpListener::bind(address).map_err(errno_of)?;
        let address = listener.local_addr().map_err(errno_of)?;
        let descriptor = Descriptor::from(std::os::fd::OwnedFd::from(listener));
        rustix::net::listen(descriptor.system(), 4096)?; // the system cuts it at its own limit (somaxconn)
        Ok(Listener { descriptor: Arc::new(descriptor), address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, as a descriptor that any core can make a [`Stream`] of. Dropping the future loses no
    /// connection that a client could already know of: one that was being taken is closed.
    ///
    /// # Errors
    /// EMFILE and ENFILE when there are too many descriptors, ECONNABORTED when the client was gone already.
    pub async fn accept(&self, core: &Rc<Core>) -> Result<Descriptor, Errno> {
        let operation = Operation::Accept { listener: self.descriptor.clone(), accepted: None };
        match core.ring().start(operation).await {
            (Ok(_), Operation::Accept { accepted: Some(descriptor), .. }) => Ok(descriptor),
            (Ok(_), _) => unreachable!("an accept without a connection"),
            (Err(errno), _) => Err(errno),
        }
    }
}

/// A connection, on one core.
pub struct Stream {
    core: Rc<Core>,
    descriptor: Arc<Descriptor>,
}

impl Stream {
    /// A connection that was accepted, from now on this core's.
    pub fn new(core: Rc<Core>, descriptor: Arc<Descriptor>) -> Stream {
        let _ = rustix::net::sockopt::set_tcp_nodelay(&*descriptor, true);
        Stream { core, descriptor }
    }

    /// Whom it is with, as long as it is connected.
    pub fn peer(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(&*self.descriptor).ok().flatten()?.try_into().ok()
    }

    /// Takes what is there into the buffers, in order. None: nothing is there yet. Zero: the peer has finished.
    ///
    /// # Errors
    /// ECONNRESET and its like, when the connection broke.
    pub fn try_receive(&self, buffers: &mut [IoSliceMut<'_>]) -> Result<Option<usize>, Errno> {
        loop {
            let outcome = match &mut *buffers {
                [one] => rustix::net::recv(&*self.descriptor, &mut **one, RecvFlags::DONTWAIT)
                    .map(|(count, _)| count),
                several => rustix::net::recvmsg(
                    &*self.descriptor,
                    several,
                    &mut Default::default(),
                    RecvFlags::DONTWAIT,
                )
                .map(|message| message.bytes),
            };
            match outcome {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Hands bytes to the socket, in order. None: it is full. `more`: the rest follows at once, so a small packet
    /// may wait for it.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET and their like, when the connection broke.
    pub fn try_send(&self, buffers: &[IoSlice<'_>], more: bool) -> Result<Option<usize>, Errno> {
        let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if more {
            flags |= SendFlags::MORE;
        }
        loop {
            let outcome = match buffers {
                [one] => rustix::net::send(&*self.descriptor, one, flags),
                several => rustix::net::sendmsg(&*self.descriptor, several, &mut Default::default(), flags),
            };
            match outcome {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Waits until something can be received, or the peer has finished. Dropping the future loses nothing.
    ///
    /// # Errors
    /// ECANCELED when the core goes down.
    pub async fn readable(&self) -> Result<(), Errno> {
        self.poll(Readiness::Readable).await
    }

    /// Waits until something can be sent. Dropping the future loses nothing.
    ///
    /// # Errors
    /// ECANCELED when the core goes down.
    pub async fn writable(&self) -> Result<(), Errno> {
        self.poll(Readiness::Writable).await
    }

    /// Waits until the peer has closed its side, at least for sending, or the connection broke. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// ECANCELED when the core goes down.
    pub async fn peer_finished(&self) -> Result<(), Errno> {
        self.poll(Readiness::PeerFinished).await
    }

    /// Whether the connection still is one: a peer that has only finished sending still reads.
    pub fn is_connected(&self) -> bool {
        rustix::net::getpeername(&*self.descriptor).is_ok()
    }

    async fn poll(&self, readiness: Readiness) -> Result<(), Errno> {
        let operation = Operation::Poll { descriptor: self.descriptor.clone(), readiness };
        self.core.ring().start(operation).await.0.map(drop)
    }

    /// The socket itself, for transfers from a pipe.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The socket itself, for another core to go on with it.
    pub fn shared_descriptor(&self) -> Arc<Descriptor> {
        self.descriptor.clone()
    }

    /// Ends the sending side; the peer sees the end after all that was sent.
    pub fn finish(&self) {
        let _ = rustix::net::shutdown(&*self.descriptor, rustix::net::Shutdown::Write);
    }

    /// Says whether closing this connection is a reset, which the peer cannot take for a regular end.
    pub fn set_reset_on_close(&self, reset: bool) {
        let _ = rustix::net::sockopt::set_socket_linger(&*self.descriptor, reset.then_some(Duration::ZERO));
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}
