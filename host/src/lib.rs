//! Airlock: TCP servers whose logic is a WebAssembly component.
//!
//! A *connection* is a client's socket and its thread. A *message* is what framing cuts out of its
//! bytes. The *guest* is the component a user wrote; a *sandbox* is a guest compiled and linked,
//! shared by all connections; a *session* is one connection's own instance of it. Everything
//! native is the *shim*.
//!
//! The modules in the order in which a line passes them: [`server`] accepts, `connection` is one
//! client's socket, [`conversation`] the loop, [`framing`] makes messages of bytes and bytes of
//! replies, [`session`] asks the guest, which [`sandbox`] has prepared. At the edges: [`cli`] and
//! [`logging`], [`capacity`] for what the machine allows, [`limits`] for every bound, [`shutdown`]
//! for the end.

mod bindings;
pub mod capacity;
pub mod cli;
mod connection;
pub mod conversation;
pub mod framing;
pub mod limits;
pub mod logging;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod shutdown;
mod signal_stack;
mod threads;

/// The greeter of `guest/`, built by `build.rs`: what `airlock` serves when it is given no other.
pub const GREETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.wasm"));
