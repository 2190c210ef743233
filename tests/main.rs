//! End to end: the real binary, real sockets, real components.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod build;
mod conversation;
mod guests;
mod lifecycle;
mod limits;
mod log;
mod refusals;
