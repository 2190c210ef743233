//! Who a guest talks with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use socket2::SockAddr;

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Of TCP. One that is written as IPv4 in IPv6 (`::ffff:203.0.113.7`) is what it is, IPv4.
    Ip(SocketAddr),
    /// Of a Unix socket, with its path if it has one.
    Unix(Option<Arc<Path>>),
}

impl Endpoint {
    /// Its address, if it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Endpoint::Ip(address) => Some(address.ip()),
            Endpoint::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint::Ip(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl From<&SockAddr> for Endpoint {
    fn from(address: &SockAddr) -> Endpoint {
        match address.as_socket() {
            Some(address) => address.into(),
            None => Endpoint::Unix(address.as_pathname().map(Arc::from)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Ip(address) => address.fmt(f),
            Endpoint::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Endpoint::Unix(None) => f.write_str("unix:"),
        }
    }
}

/// What tells one connection from another.
#[derive(Debug, Clone)]
pub struct Client {
    /// Counted from 1 since the server started.
    pub id: u64,
    /// Where the client is.
    pub peer: Endpoint,
    /// Where the client reached the server.
    pub local: Endpoint,
    /// Whether what is said is encrypted on its way.
    pub is_encrypted: bool,
    /// Who the client is, if it has shown a certificate, which was verified.
    pub identity: Option<Arc<Identity>>,
}

/// What stands in a client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its subject, as RFC 4514 writes it: `CN=ada,O=Example`.
    pub subject: String,
    /// The DNS names of its `subjectAltName`.
    pub dns_names: Vec<String>,
}

impl Client {
    /// The client of a trial, and of conversations without a network.
    pub const NOBODY: Client = Client {
        id: 0,
        peer: Client::NOWHERE,
        local: Client::NOWHERE,
        is_encrypted: false,
        identity: None,
    };

    const NOWHERE: Endpoint = Endpoint::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
}
