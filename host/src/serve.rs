//! Clients and their connections: from the listening socket to the last byte.

pub mod admission;
mod bell;
pub mod blocking;
mod connection;
mod handshakes;
mod headers;
mod lingering;
pub mod listener;
mod proxy;
pub mod recording;
pub mod renewal;
pub mod scheduling;
pub(crate) mod seats;
pub mod server;
pub mod service;
pub mod socket;
mod threads;
pub mod tls;
pub mod transport;
pub mod unix_socket;
mod waiting_room;
pub mod websocket;
