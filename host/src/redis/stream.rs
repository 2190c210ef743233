//! The socket of a connection, with TLS or without. Its reads and writes end at a time, or do not wait.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::limits::process::REDIS_ANSWER_BYTES;
use crate::redis::address::Target;

/// What bytes go through.
pub(crate) enum Stream {
    Plain(Limited),
    Tls(Box<StreamOwned<ClientConnection, Limited>>),
}

/// A socket that reads and writes until a time, or never waits, and reads so much at most.
pub(crate) struct Limited {
    socket: Socket,
    /// None: what would wait fails.
    until: Option<Instant>,
    room_bytes: usize,
}

impl Stream {
    /// Connects to one address.
    pub(crate) fn connect(
        target: &Target,
        address: &SockAddr,
        until: Instant,
    ) -> io::Result<Stream> {
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        socket.connect_timeout(address, left(until)?)?;
        if address.domain() != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let limited = Limited {
            socket,
            until: Some(until),
            room_bytes: REDIS_ANSWER_BYTES,
        };
        Ok(match &target.tls {
            Some((config, name)) => {
                let tls = ClientConnection::new(config.clone(), name.clone());
                let tls = tls.map_err(io::Error::other)?;
                Stream::Tls(Box::new(StreamOwned::new(tls, limited)))
            }
            None => Stream::Plain(limited),
        })
    }

    /// What follows has to end at this time.
    pub(crate) fn ends_at(&mut self, until: Instant) {
        self.limited_mut().until = Some(until);
    }

    /// What follows does not wait.
    pub(crate) fn never_waits(&mut self) -> io::Result<()> {
        let limited = self.limited_mut();
        limited.until = None;
        limited.socket.set_nonblocking(true)
    }

    /// The next answer may have all the bytes that one may have.
    pub(crate) fn next_answer(&mut self) {
        self.limited_mut().room_bytes = REDIS_ANSWER_BYTES;
    }

    /// Whether it has had more than those.
    pub(crate) fn is_too_much(&self) -> bool {
        self.limited().room_bytes == 0
    }

    /// Whether bytes that were written have not been sent.
    pub(crate) fn holds_bytes_back(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.conn.wants_write(),
        }
    }

    fn limited(&self) -> &Limited {
        match self {
            Stream::Plain(limited) => limited,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    fn limited_mut(&mut self) -> &mut Limited {
        match self {
            Stream::Plain(limited) => limited,
            Stream::Tls(tls) => tls.get_mut(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.limited().socket.as_fd()
    }
}

/// What is left of the time, if anything is.
fn left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        // The kernel takes a shorter one for none.
        left => Ok(left.max(Duration::from_micros(1))),
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(limited) => limited.read(bytes),
            Stream::Tls(tls) => tls.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(limited) => limited.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(limited) => limited.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

impl Read for Limited {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.room_bytes == 0 {
            return Err(io::Error::other("the answer is too large"));
        }
        let room = bytes.len().min(self.room_bytes);
        if let Some(until) = self.until {
            self.socket.set_read_timeout(Some(left(until)?))?;
        }
        let read = self.socket.read(&mut bytes[..room])?;
        self.room_bytes -= read;
        Ok(read)
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(until) = self.until {
            self.socket.set_write_timeout(Some(left(until)?))?;
        }
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
