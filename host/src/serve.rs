//! Clients and their connections: from the listening socket to the last byte.

pub mod admission;
pub mod blocking;
mod connection;
mod lingering;
pub mod listener;
pub mod recording;
pub mod scheduling;
pub(crate) mod seats;
pub mod server;
pub mod service;
pub mod socket;
mod threads;
