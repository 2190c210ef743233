//! Airlock: TCP servers whose logic is a WebAssembly component.
//!
//! A *connection* is a client's socket and its thread. A *message* is what framing cuts out of its
//! bytes. The *guest* is the component a user wrote; a *sandbox* is a guest compiled and linked,
//! shared by all connections; a *session* is one connection's own instance of it. Everything
//! native is the *shim*.
//!
//! The folders, each using only those below it:
//!
//! - [`cli`] and `commands` (of the binary): what was asked for.
//! - [`settings`]: every setting, defined once.
//! - [`serve`]: clients and their connections, from the listening socket to the last byte.
//! - [`versions`]: the guest's file over time, and which version a new connection gets.
//! - [`sandbox`]: where guests run. The only part that knows Wasmtime.
//! - [`store`], [`topics`]: what guests keep beyond their connections, and say across them.
//! - [`redis`]: connections to a Redis or Valkey.
//! - [`talk`]: what is said between a client and a guest, without sockets and without guests.
//! - [`process`]: this process among others: what the machine gives it, how it ends, who takes over.
//! - [`limits`], [`logging`], `budget`, `rate`, [`pem`]: every bound, the log, bytes that many take
//!   from, how often one may do something, and files of certificates and keys.

mod budget;
pub mod cli;
pub mod limits;
pub mod logging;
pub mod pem;
pub mod process;
mod rate;
pub mod redis;
pub mod sandbox;
pub mod serve;
pub mod settings;
pub mod store;
pub mod talk;
pub mod topics;
pub mod versions;

/// The greeter of `guest/`, built by `build.rs`: what `airlock` serves when it is given no other.
pub const GREETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.wasm"));
