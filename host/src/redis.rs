//! Redis or Valkey, as far as a server needs it that must not wait for it: a few connections with a
//! deadline for every answer, and two for messages that nobody waits for.

pub mod address;
mod backoff;
pub(crate) mod broker;
pub(crate) mod connection;
mod pipe;
pub(crate) mod pool;
mod stream;

/// The server of tests.
#[cfg(test)]
#[allow(dead_code, reason = "the tests of the server use other parts of it")]
#[path = "../../tests/redis_server.rs"]
pub(crate) mod redis_server;
