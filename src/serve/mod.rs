//! HTTP: heads, ingest, follow, transfer, admin.

pub mod chunked;
pub mod conditional;
pub mod head;
pub mod problem;
pub mod range;
pub mod reply;
pub mod target;

/// Not furnished yet.
pub struct Server;
impl Server {
    /// Not yet.
    pub fn start(_config: crate::config::Config) -> crate::error::Result<Server> { unimplemented!() }
    /// Not yet.
    pub fn data_address(&self) -> std::net::SocketAddr { unimplemented!() }
    /// Not yet.
    pub fn admin_address(&self) -> std::net::SocketAddr { unimplemented!() }
    /// Not yet.
    pub fn notices(&self) -> &[String] { &[] }
    /// Not yet.
    pub fn stop(self) {}
}
