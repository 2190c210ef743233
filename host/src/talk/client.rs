//! Who a guest talks with.

use std::net::{Ipv4Addr, SocketAddr};

/// What tells one connection from another.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Counted from 1 since the server started.
    pub id: u64,
    /// The client's address and port.
    pub peer: SocketAddr,
    /// The server's address and port, as the client reached it.
    pub local: SocketAddr,
}

impl Client {
    /// The client of a trial, and of conversations without a network.
    pub const NOBODY: Client = Client {
        id: 0,
        peer: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        local: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    };
}
