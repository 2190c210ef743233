//! The listening sockets: bound here, or handed over by systemd.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::process::listener::Listener;

/// What the kernel makes of this is the most it allows, the sysctl `net.core.somaxconn`.
pub const MOST_BACKLOG: u32 = i32::MAX.cast_unsigned();

/// How a TCP socket listens, and what the connections that it accepts inherit.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    /// How many connections the kernel completes ahead of time.
    pub backlog: u32,
    /// Other processes may listen on the same address, and the kernel gives each a part of the
    /// connections.
    pub reuse_port: bool,
    /// An address of IPv6 takes no clients of IPv4.
    pub v6only: bool,
    /// Replies are sent at once. They are gathered already; waiting for more would only delay them.
    pub nodelay: bool,
    /// How long a client's kernel may be silent until it is asked for a sign of life, and again.
    pub keepalive: Option<Duration>,
    /// How long it may acknowledge nothing of what is sent.
    pub user_timeout: Option<Duration>,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions {
            backlog: MOST_BACKLOG,
            reuse_port: false,
            v6only: false,
            nodelay: true,
            keepalive: None,
            user_timeout: None,
        }
    }
}

impl TcpOptions {
    /// Sets those that a socket may change while it listens.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn set(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(self.nodelay)?;
        socket.set_keepalive(self.keepalive.is_some())?;
        if let Some(time) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(time).with_interval(time);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// Binds a TCP socket of our own.
///
/// # Errors
/// A sentence that says what to do about it.
pub fn bind(address: SocketAddr, options: &TcpOptions) -> Result<Listener, String> {
    let bound = try_bind(address, options).map_err(|error| advice(address, &error))?;
    Ok(Listener::bound(bound))
}

fn try_bind(address: SocketAddr, options: &TcpOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the last run to time out.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    if address.is_ipv6() {
        // Whatever the sysctl `net.ipv6.bindv6only` says.
        socket.set_only_v6(options.v6only)?;
    }
    options.set(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
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
    pub listener: Listener,
}

/// The sockets that systemd opened for this process (`LISTEN_FDS`), if it did. To be called before
/// there are other threads, since it changes the environment.
///
/// # Errors
/// One is no listening socket of TCP or Unix.
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
            "the socket that systemd handed over is no listening socket of TCP or Unix ({error}): \
             the unit needs ListenStream= and Accept=no"
        )
    };
    let mut activated = Vec::new();
    for number in 0..sockets.len() {
        let tcp = sockets.take_tcp_listener(number);
        let socket = match tcp {
            Ok(listener) => listener.map(Socket::from),
            Err(_) => {
                let unix = sockets.take_unix_listener(number);
                unix.map_err(|error| wrong(&error))?.map(Socket::from)
            }
        };
        match socket {
            Some(socket) if socket.is_listener().unwrap_or(false) => {
                let name = names.next().unwrap_or_default();
                let listener = Listener::lent(socket);
                activated.push(Activated { name, listener });
            }
            _ => return Err(wrong(&"it does not listen")),
        }
    }
    Ok(activated)
}
