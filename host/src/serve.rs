//! Clients and their connections: from the listening socket to the last byte.

mod connection;
pub mod listener;
pub mod recording;
pub mod server;
pub mod service;
pub(crate) mod socket;
mod threads;
