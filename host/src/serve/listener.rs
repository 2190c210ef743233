//! The listening sockets: bound here, or handed over by systemd.

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// What the kernel makes of this is the most it allows, the sysctl `net.core.somaxconn`.
pub const MOST_BACKLOG: u32 = i32::MAX.cast_unsigned();

/// Binds a socket of our own. `backlog` is how many connections the kernel completes ahead of time;
/// with `reuse_port` other processes may listen on the same address, and the kernel gives each a
/// part of the connections.
///
/// # Errors
/// A sentence that says what to do about it.
pub fn bind(address: SocketAddr, backlog: u32, reuse_port: bool) -> Result<TcpListener, String> {
    try_bind(address, backlog, reuse_port).map_err(|error| advice(address, &error))
}

fn try_bind(address: SocketAddr, backlog: u32, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the last run to time out.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn advice(address: SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop the program that has it, or take another with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need privileges; take a higher one with --listen, or grant \
             CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; 0.0.0.0 or [::] are all of them"
        }
        _ => return format!("cannot listen on {address}: {error}"),
    };
    format!("cannot listen on {address}: {advice}")
}

/// More sockets than any service manager hands over: the usual limit of open files.
const MOST_SOCKETS: usize = 1024;

/// A socket that systemd opened for this process.
pub struct Activated {
    /// `FileDescriptorName=` of its unit, or else the unit's name.
    pub name: String,
    /// It.
    pub listener: TcpListener,
}

/// The sockets that systemd opened for this process (`LISTEN_FDS`), if it did. To be called before
/// there are other threads, since it changes the environment.
///
/// # Errors
/// One is no listening TCP socket.
pub fn from_systemd() -> Result<Vec<Activated>, String> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    // The library would make a list of them.
    let count = env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse().ok());
    if let Some(count @ MOST_SOCKETS..) = count {
        return Err(format!(
            "LISTEN_FDS is {count}, and no service manager hands over as many sockets: unset it"
        ));
    }
    let mut sockets = ListenFd::from_env();
    let wrong = |error: &dyn std::fmt::Display| {
        format!(
            "the socket that systemd handed over is no listening TCP socket ({error}): the unit \
             needs ListenStream=ADDR:PORT and Accept=no"
        )
    };
    let mut activated = Vec::new();
    for number in 0..sockets.len() {
        let listener = sockets
            .take_tcp_listener(number)
            .map_err(|error| wrong(&error))?;
        match listener {
            Some(listener) if SockRef::from(&listener).is_listener().unwrap_or(false) => {
                let name = names.next().unwrap_or_default();
                activated.push(Activated { name, listener });
            }
            _ => return Err(wrong(&"it does not listen")),
        }
    }
    Ok(activated)
}
