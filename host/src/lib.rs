//! Airlock: TCP servers whose logic is a WebAssembly component.
//!
//! A *connection* is a client's socket and its thread. A *message* is what framing cuts out of its
//! bytes. The *guest* is the component a user wrote; a *sandbox* is a guest compiled and linked,
//! shared by all connections; a *session* is one connection's own instance of it. Everything
//! native is the *shim*.
//!
//! The modules in the order in which a line passes them: [`listener`] has the socket, [`server`]
//! accepts, [`versions`] tells which guest a connection gets, `connection` is one client's `socket`,
//! [`conversation`] the loop, [`framing`] makes messages of bytes and bytes of replies, [`session`]
//! asks the guest, which [`sandbox`] has prepared.
//!
//! New versions of the guest: [`reload`] notices a changed [`guest_file`], [`trial`] tries what is
//! in it, [`canary`] judges it on a share of the connections. Conversations as files:
//! [`transcript`], and [`recording`], which writes them. Load on this server or another, and what it
//! took: [`mod@bench`].
//!
//! At the edges: [`cli`] and [`logging`], [`capacity`] for what the machine allows, [`room`] for what is left of it, [`limits`] for
//! every bound, [`shutdown`] for the end, [`takeover`] for the next process, [`supervisor`] for the
//! service manager.

pub mod bench;
mod bindings;
mod budget;
pub mod canary;
pub mod capacity;
pub mod cli;
mod connection;
pub mod conversation;
pub mod framing;
pub mod guest_file;
pub mod heap;
mod interrupt;
pub mod limits;
pub mod listener;
pub mod logging;
pub mod recording;
pub mod reload;
pub mod room;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod shutdown;
mod signal_stack;
mod socket;
pub mod supervisor;
pub mod takeover;
mod threads;
pub mod transcript;
pub mod trial;
pub mod versions;
mod watch;

/// The greeter of `guest/`, built by `build.rs`: what `airlock` serves when it is given no other.
pub const GREETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.wasm"));
