//! The client side: one small HTTP/1.1 client on the tokio-uring runtime, shared by the commands, the demo and
//! the load tester. It runs on another io_uring runtime than the server, so that neither hides the other's faults.
//!
//! What is true when its calls return:
//!
//! - [`Response::chunk`] gives `None` only when the framing said that the body is whole. A missing last chunk, a
//!   body shorter than its Content-Length and a reset are [`Error::Interrupted`], never an end.
//! - [`Upload::finish`] gives an answer only after every byte of the body was handed to the kernel. An answer that
//!   comes earlier is [`Error::Refused`] with what the server said, and nothing more is sent.
//! - A dropped future loses no received byte: the read that is in flight belongs to the connection, and the next
//!   call continues with it. A send that was dropped midway cannot be continued, and the upload says so.
//! - A connection goes back to the pool only if its answer was read to the end and both sides keep it open. One
//!   that is dropped in any other state is shut down first: tokio-uring keeps a descriptor open for as long as an
//!   operation on it is in flight, and would never close one whose read nobody waits for.
//!
//! Nothing here may leave the runtime that [`run`] started: operations of tokio-uring panic when they are dropped
//! after their ring.

mod body;
mod connection;
mod error;
mod exchange;
mod head;
mod location;
mod runtime;
#[cfg(test)]
mod tests;
mod timer;

pub use error::Error;
pub use exchange::{Client, Length, Limits, Request, Response, Upload};
pub use head::Head;
pub use location::Location;
pub use runtime::{Task, run, spawn};
pub use timer::{sleep, sleep_until, within};

/// The result of a call into the client.
pub type Result<T> = std::result::Result<T, Error>;
