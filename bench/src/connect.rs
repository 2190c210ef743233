//! Connections that are begun, and not waited for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::fault::Fault;

/// So many connections to a server share an address on this machine. A kernel that has given half of
/// the ports of one away (14 000, `ip_local_port_range`) searches for milliseconds for the next.
const SHARE_ADDRESS: usize = 5_000;

/// Begins the connection with this number among those that are open at once.
pub(crate) fn begin(address: SocketAddr, number: usize) -> Result<TcpStream, Fault> {
    let domain = Domain::for_address(address);
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    let refused = |error| Fault::Connect(address, error);
    if let Some(source) = source(address, number / SHARE_ADDRESS) {
        let any_port = SocketAddr::from((source, 0));
        socket.bind(&any_port.into()).map_err(refused)?;
    }
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => {
            Err(refused(error))
        }
        _ => Ok(socket.into()),
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
