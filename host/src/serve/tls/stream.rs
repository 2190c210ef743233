//! One client's TLS connection, without its socket's waiting: Rustls has the records and the keys, and
//! this moves bytes between it and the socket.
//!
//! Nothing is stored without bound. What is received is decrypted 4 KiB at a time (a record, 16 KiB, at
//! most) and only when all before it has been taken. Of what is to be sent, a piece of the output at a
//! time is encrypted, and the next one when the kernel has all of that.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;

use crate::serve::socket::Socket;

/// Encrypted at once, in four records.
const SEND_BYTES: usize = 64 * 1024;

/// What a client is told with whom there are to be no handshakes: the fatal alert `internal_error`.
pub(crate) const TLS_REFUSAL: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// A client's TLS connection.
#[derive(Debug)]
pub struct TlsStream {
    connection: ServerConnection,
    /// How much of the output is encrypted and has not all been sent.
    encrypted_bytes: usize,
    /// What the kernel has taken, of records.
    sent_bytes: u64,
    /// The kernel may have more.
    is_filled: bool,
    /// There is plaintext that has not been taken.
    has_plaintext: bool,
    /// After that comes the client's `close_notify`.
    has_closed: bool,
    /// Or after that it has failed.
    failure: Option<rustls::Error>,
    /// When the wait that is under way is over, whatever comes that is no plaintext.
    deadline: Option<Instant>,
    /// That nothing more is sent has been said.
    has_ended: bool,
}

/// How a handshake stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// It waits for the client.
    UnderWay,
    Done,
}

/// Why a handshake has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("the client ended the connection in the middle of it")]
    Ended,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl TlsStream {
    /// For a client that has said nothing yet.
    ///
    /// # Errors
    /// The configuration allows no connection.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<TlsStream, rustls::Error> {
        let mut connection = ServerConnection::new(config)?;
        connection.set_buffer_limit(Some(SEND_BYTES));
        Ok(TlsStream {
            connection,
            encrypted_bytes: 0,
            sent_bytes: 0,
            is_filled: false,
            has_plaintext: false,
            has_closed: false,
            failure: None,
            deadline: None,
            has_ended: false,
        })
    }

    /// Goes on with the handshake, as far as that needs no waiting.
    pub(crate) fn shake_hands(&mut self, socket: &Socket<'_>) -> Result<Handshake, HandshakeError> {
        loop {
            match self.flush(socket) {
                Ok(()) if !self.connection.is_handshaking() => return Ok(Handshake::Done),
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Handshake::UnderWay);
                }
                Err(error) => return Err(HandshakeError::Broken(error)),
            }
            match self.read(|room| socket.receive_now(room)) {
                Ok(0) => return Err(HandshakeError::Ended),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(Handshake::UnderWay),
                    ErrorKind::Interrupted => {}
                    _ => return Err(HandshakeError::Broken(error)),
                },
            }
            self.decrypt();
            if let Some(error) = self.failure.take() {
                // So that the client learns why.
                let _ = self.flush(socket);
                return Err(error.into());
            }
        }
    }

    /// What has been agreed upon, for the log: the version, and how it came about.
    pub(crate) fn describe(&self) -> String {
        let connection = &self.connection;
        let version = connection.protocol_version();
        let version = version.and_then(|version| version.as_str());
        let suite = connection.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str());
        let kind = connection.handshake_kind();
        let [version, suite] = [version, suite].map(Option::unwrap_or_default);
        format!("{version} {suite} {kind:?}")
    }

    /// The client's certificate and those behind it, if it has shown any, verified.
    pub(crate) fn client_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// How long to wait, of `within`, if the last wait brought nothing that counts.
    pub(crate) fn time_left(&mut self, within: Duration) -> Duration {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + within);
        within.min(deadline.saturating_duration_since(now))
    }

    /// Until when that is.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Something has come of the wait.
    pub(crate) fn end_wait(&mut self) {
        self.deadline = None;
    }

    /// Takes plaintext, 0 at the client's `close_notify`, for which `receive` reads from the socket
    /// once at most. When that brought something, and no plaintext, it is as if it had been
    /// interrupted: a client that sends empty records has said nothing.
    pub(crate) fn receive(
        &mut self,
        socket: &Socket<'_>,
        room: &mut [u8],
        receive: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if let Some(count) = self.take(room)? {
            return Ok(count);
        }
        let count = self.read(receive)?;
        self.decrypt();
        // An answer of TLS itself, or why it has failed.
        let _ = self.flush(socket);
        match self.take(room)? {
            Some(count) => Ok(count),
            None if count == 0 => Err(cut_off()),
            None => Err(ErrorKind::Interrupted.into()),
        }
    }

    /// Whether there may be something to receive of which the kernel does not tell again.
    pub(crate) fn may_have_more(&self) -> bool {
        self.is_filled || self.has_plaintext || self.has_closed || self.failure.is_some()
    }

    /// Whether there is plaintext that has not been taken.
    pub(crate) fn has_plaintext(&self) -> bool {
        self.has_plaintext
    }

    /// Sends the beginning of `output`, which stays the same until that has succeeded. It fails with
    /// [`ErrorKind::WouldBlock`] until the kernel has all of it, and counts no part before.
    pub(crate) fn send(&mut self, socket: &Socket<'_>, output: &[u8]) -> io::Result<usize> {
        if self.encrypted_bytes == 0 {
            let most = output.len().min(SEND_BYTES);
            self.encrypted_bytes = self.connection.writer().write(&output[..most])?;
        }
        self.flush(socket)?;
        Ok(std::mem::take(&mut self.encrypted_bytes))
    }

    /// What the kernel has taken, of records.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Says that nothing more is sent. It fails with [`ErrorKind::WouldBlock`] until the kernel has
    /// that.
    pub(crate) fn end(&mut self, socket: &Socket<'_>) -> io::Result<()> {
        if !self.has_ended {
            self.has_ended = true;
            self.connection.send_close_notify();
        }
        self.flush(socket)
    }

    fn read(&mut self, receive: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut reading = Reading {
            receive: Some(receive),
            is_filled: false,
        };
        self.is_filled = false;
        let count = self.connection.read_tls(&mut reading)?;
        self.is_filled = reading.is_filled;
        Ok(count)
    }

    fn decrypt(&mut self) {
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.has_plaintext = state.plaintext_bytes_to_read() > 0;
                self.has_closed = state.peer_has_closed();
            }
            Err(error) => {
                // There may be some of before.
                self.has_plaintext = true;
                self.failure = Some(error);
            }
        }
    }

    /// Takes what is decrypted: plaintext, 0 at the client's `close_notify`, or why it has failed.
    fn take(&mut self, room: &mut [u8]) -> io::Result<Option<usize>> {
        if self.has_plaintext {
            let count = self.connection.reader().read(room).unwrap_or_default();
            self.has_plaintext = count == room.len();
            if count > 0 {
                return Ok(Some(count));
            }
        }
        if let Some(error) = self.failure.take() {
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(self.has_closed.then_some(0))
    }

    /// Sends the records that there are, or fails with [`ErrorKind::WouldBlock`].
    fn flush(&mut self, socket: &Socket<'_>) -> io::Result<()> {
        while self.connection.wants_write() {
            let count = self.connection.write_tls(&mut Sending(socket))?;
            self.sent_bytes += count as u64;
        }
        Ok(())
    }
}

fn cut_off() -> io::Error {
    let text = "the client ended it without a `close_notify`: what it sent last may be cut off";
    io::Error::new(ErrorKind::UnexpectedEof, text)
}

/// Reads once.
struct Reading<F> {
    receive: Option<F>,
    is_filled: bool,
}

impl<F: FnOnce(&mut [u8]) -> io::Result<usize>> Read for Reading<F> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(receive) = self.receive.take() else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let count = receive(room)?;
        self.is_filled = count == room.len();
        Ok(count)
    }
}

struct Sending<'a>(&'a Socket<'a>);

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_gathered(records)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
