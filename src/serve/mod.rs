//! Not furnished yet: the pure parts, and what `tailwater serve` is written against.

pub mod chunked;
pub mod conditional;
pub mod head;
pub mod problem;
pub mod range;
pub mod reply;
pub mod target;

use std::net::{SocketAddr, TcpListener};

use rustix::io::Errno;

use crate::config::Config;
use crate::error::{Error, Kind, Result};

/// A stand-in that takes its addresses and serves nothing.
pub struct Server {
    data: TcpListener,
    admin: TcpListener,
}

impl Server {
    /// Takes the addresses.
    ///
    /// # Errors
    /// [`Kind::AddressInUse`].
    pub fn start(config: Config) -> Result<Server> {
        let listen = |address: SocketAddr| {
            TcpListener::bind(address).map_err(|error| {
                let reason = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Error::new(Kind::AddressInUse, format!("{address} cannot be listened on: {reason}"))
            })
        };
        Ok(Server { data: listen(config.listen)?, admin: listen(config.admin)? })
    }

    /// Where objects are put and read.
    pub fn data_address(&self) -> SocketAddr {
        self.data.local_addr().expect("a listener has an address")
    }

    /// Where the operator looks.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr().expect("a listener has an address")
    }

    /// What the host does not allow.
    pub fn notices(&self) -> &[String] {
        &[]
    }

    /// Ends.
    pub fn stop(self) {}
}
