//! What is said between a client and a guest, whoever they are: bytes, messages, replies, and the
//! order of them. Nothing here knows sockets, threads or Wasmtime.

pub mod client;
pub mod conversation;
pub mod framing;
pub mod handler;
pub mod mailbox;
mod patience;
pub mod play;
pub mod recorder;
pub mod transcript;
