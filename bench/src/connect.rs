//! Connections that are begun, and not waited for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use airlock::settings::address::Address;
use airlock::talk::client::Endpoint;
use rustix::io::Errno;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{Socket, Type};

use crate::client::Client;
use crate::fault::Fault;
use crate::stream::Stream;
use crate::trust;

/// So many connections to a server share an address on this machine. A kernel that has given half of
/// the ports of one away (14 000, `ip_local_port_range`) searches for milliseconds for the next.
const SHARE_ADDRESS: usize = 5_000;

/// Begins connections to one server.
pub(crate) struct Connector {
    pub(crate) address: Address,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Connector {
    pub(crate) fn new(address: Address) -> io::Result<Connector> {
        let tls = match address.endpoint {
            Endpoint::Ip(server) if address.scheme.is_encrypted() => {
                Some((trust::config()?, ServerName::from(server.ip())))
            }
            _ => None,
        };
        Ok(Connector { address, tls })
    }

    /// Begins the connection with this number among those that are open at once.
    pub(crate) fn begin(&self, number: usize) -> Result<Client, Fault> {
        let socket = self.connect(number)?;
        let stream = Stream::client(socket, self.tls.clone())?;
        Ok(Client::new(stream, &self.address))
    }

    fn connect(&self, number: usize) -> Result<Socket, Fault> {
        let server = self.address.socket_address().map_err(io::Error::other)?;
        let socket = Socket::new(server.domain(), Type::STREAM, None)?;
        let refused = |error| Fault::Connect(self.address.clone(), error);
        if let Endpoint::Ip(address) = self.address.endpoint {
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            if let Some(source) = source(address, number / SHARE_ADDRESS) {
                let any_port = SocketAddr::from((source, 0));
                socket.bind(&any_port.into()).map_err(refused)?;
            }
        }
        match socket.connect(&server) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => {
                Err(refused(error))
            }
            // At a Unix socket it has waited until the server's queue had room.
            _ => socket
                .set_nonblocking(true)
                .map(|()| socket)
                .map_err(refused),
        }
    }
}

/// Where a connection to this machine comes from, if the usual address has no ports left. It has the
/// server's port in it, so that no earlier server's connections are in the way, which have their ports
/// for another minute.
fn source(address: SocketAddr, share: usize) -> Option<Ipv4Addr> {
    let IpAddr::V4(server) = address.ip() else {
        return None;
    };
    let [high, low] = address.port().to_be_bytes();
    let share = u8::try_from(share).ok()?;
    (server.is_loopback() && share > 0).then(|| Ipv4Addr::new(127, high, low, share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_there_are_many_to_this_machine_they_come_from_other_addresses() {
        let here = SocketAddr::from(([127, 0, 0, 1], 0x1234));
        assert_eq!(source(here, 0), None);
        assert_eq!(source(here, 1), Some(Ipv4Addr::new(127, 0x12, 0x34, 1)));
        assert_eq!(source(SocketAddr::from(([192, 0, 2, 1], 0x1234)), 1), None);
    }
}
