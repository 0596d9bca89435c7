//! Not furnished yet.

pub mod chunked;
pub mod conditional;
pub mod head;
pub mod problem;
pub mod range;
pub mod reply;
pub mod target;
