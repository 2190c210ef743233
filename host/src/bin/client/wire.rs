//! What is between the client and its server: a socket with a deadline, and TLS if that is wanted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustls::{ClientConnection, StreamOwned};
use socket2::{Socket, Type};

use crate::Target;
use crate::tls::TlsOptions;

/// Connects within this time.
pub(crate) fn connect(target: &Target, tls: &TlsOptions, time: Duration) -> Result<Wire> {
    let Target { address, host } = target;
    let server = address.socket_address().map_err(|error| anyhow!(error))?;
    let tls = match address.scheme.is_encrypted() {
        true => Some(tls.connection(host)?),
        false => None,
    };
    let socket = Socket::new(server.domain(), Type::STREAM, None)?;
    if address.endpoint.ip().is_some() {
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&server, time)?;
    } else {
        // It waits for room in the queue for as long as a write may take.
        socket.set_write_timeout(Some(time))?;
        socket.connect(&server)?;
    }
    let timed = Timed {
        socket,
        deadline: Instant::now() + time,
    };
    let Some(connection) = tls else {
        return Ok(Wire::Plain(timed));
    };
    let mut stream = StreamOwned::new(connection, timed);
    while stream.conn.is_handshaking() {
        let went_on = stream.conn.complete_io(&mut stream.sock);
        went_on.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => anyhow!("the server does not finish the TLS handshake"),
            _ => error.into(),
        })?;
    }
    Ok(Wire::Tls(Box::new(stream)))
}

/// What is between the client and the socket.
pub(crate) enum Wire {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Wire {
    /// All that is read and written from now on has so much time.
    pub(crate) fn begin_time(&mut self, time: Duration) {
        self.timed().deadline = Instant::now() + time;
    }

    fn timed(&mut self) -> &mut Timed {
        match self {
            Wire::Plain(timed) => timed,
            Wire::Tls(stream) => &mut stream.sock,
        }
    }

    /// Says that nothing more comes.
    pub(crate) fn end_output(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(timed) => timed.socket.shutdown(Shutdown::Write),
            Wire::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(timed) => timed.read(room),
            Wire::Tls(stream) => stream.read(room),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(timed) => timed.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(timed) => timed.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// A socket until a deadline, however often it is ready before that. After it all is `WouldBlock`.
pub(crate) struct Timed {
    socket: Socket,
    deadline: Instant,
}

impl Timed {
    fn time_left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::WouldBlock.into()),
            time => Ok(Some(time)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.time_left()?)?;
        self.socket.read(room)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.time_left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
