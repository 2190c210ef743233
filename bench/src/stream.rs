//! One end of a connection, with TLS if that is spoken: bytes in and out, whether or not its socket
//! blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use rustix::fd::{AsFd, BorrowedFd};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::Socket;

/// One end of a connection. It decrypts all that one read of the socket brings, so a reader with room for
/// that leaves nothing behind of which the kernel would not tell again.
pub(crate) struct Stream {
    pub(crate) socket: Socket,
    tls: Option<Box<Connection>>,
}

impl Stream {
    /// The client's end of a connection to this server.
    pub(crate) fn client(
        socket: Socket,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> io::Result<Stream> {
        let tls = tls.map(|(config, name)| ClientConnection::new(config, name).map(Into::into));
        Stream::new(socket, tls)
    }

    /// The server's end.
    pub(crate) fn server(socket: Socket, tls: Option<Arc<ServerConfig>>) -> io::Result<Stream> {
        let tls = tls.map(|config| ServerConnection::new(config).map(Into::into));
        Stream::new(socket, tls)
    }

    fn new(socket: Socket, tls: Option<Result<Connection, rustls::Error>>) -> io::Result<Stream> {
        let tls = tls.transpose().map_err(io::Error::other)?.map(Box::new);
        Ok(Stream { socket, tls })
    }

    /// There is something encrypted that the kernel has had no room for. Reading and writing send it
    /// first.
    pub(crate) fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Says that nothing more comes, where that has to be said.
    pub(crate) fn say_end(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.flush()
    }

    /// Ends the output.
    pub(crate) fn end_output(&mut self) -> io::Result<()> {
        self.say_end()?;
        self.socket.shutdown(Shutdown::Write)
    }
}

impl Read for Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else {
                return self.socket.read(room);
            };
            match tls.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            unless_it_would_block(self.flush())?;
            if let Some(tls) = &mut self.tls {
                tls.read_tls(&mut self.socket)?;
                let processed = tls.process_new_packets();
                if let Err(error) = processed {
                    // So that the other side learns why; that it has failed is what is said here.
                    let _ = self.flush();
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            }
        }
    }
}

impl Write for Stream {
    /// With TLS, takes what it encrypts: the kernel may have had no room for all of it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let Some(tls) = &mut self.tls else {
            return self.socket.write(bytes);
        };
        let count = tls.writer().write(bytes)?;
        unless_it_would_block(self.flush())?;
        Ok(count)
    }

    /// Sends what is encrypted.
    fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
        }
        Ok(())
    }
}

fn unless_it_would_block(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
