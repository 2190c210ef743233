//! What the bytes of a conversation go through on their way from and to the socket.
//!
//! Nothing, TLS, or the frames of WebSocket inside one of these. All that drivers ask of one is here, so no
//! driver knows which it is:
//!
//! - *Receiving* gives bytes of the conversation, 0 at the client's end. It reads from the socket once at
//!   most, and not before all that is decoded already has been taken. When that read brought nothing for the
//!   conversation (a record without content; a ping, or a part of a message), it fails as if it had been
//!   interrupted. Then the wait goes on, and with it its deadline, which only `end_wait` moves.
//! - What is left in it is what the kernel does not tell of: whoever waits for a socket asks
//!   `may_have_more` first.
//! - *Sending* encodes a piece of the output, and counts it as sent when the kernel has all of it; until
//!   then it fails with `WouldBlock`, and the conversation keeps the piece. So what is unsent is always
//!   in the conversation, encoded output is one piece at most, and a client that does not read meets the
//!   conversation's patience.
//! - Its *end* is a word of the protocol (`close_notify`; a close frame) behind the last that is said.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::coding::CloseCode;

use crate::serve::socket::Socket;
use crate::serve::tls::stream::TlsStream;
use crate::serve::websocket::close_code;
use crate::serve::websocket::frames::{Frames, InputEnd};
use crate::talk::conversation::{End, Event};
use crate::talk::framing::Framing;

/// What is between a conversation and its socket.
#[derive(Debug, Default)]
pub enum Transport {
    /// Nothing.
    #[default]
    Plain,
    /// TLS, after its handshake.
    Tls(Box<TlsStream>),
    /// WebSocket, after its handshake.
    WebSocket(Box<WebSocket>),
}

/// A client's WebSocket connection.
#[derive(Debug)]
pub struct WebSocket {
    frames: Frames,
    /// What frames go through; none of this kind.
    below: Transport,
    /// What has come with the handshake.
    early: Vec<u8>,
    /// The kernel, or what is below, may have more.
    is_filled: bool,
    /// When the wait that is under way is over, whatever comes that is no part of a message.
    deadline: Option<Instant>,
}

impl WebSocket {
    /// Whether what it goes through is TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.below, Transport::Tls(_))
    }

    /// Takes parts of messages, for which `receive` reads once at most.
    fn receive(
        &mut self,
        socket: &Socket<'_>,
        room: &mut [u8],
        receive: impl FnOnce(&mut Transport, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if let Some(end) = self.frames.input_end() {
            return input_end(end);
        }
        let read = &mut room[1..];
        let count = if self.early.is_empty() {
            let count = receive(&mut self.below, read)?;
            self.is_filled = self.below.may_have_more(count == read.len());
            count
        } else {
            let count = self.early.len().min(read.len());
            read[..count].copy_from_slice(&self.early[..count]);
            self.early.drain(..count);
            self.is_filled = true;
            count
        };
        if count == 0 {
            return match self.frames.is_cut() {
                true => Err(cut_off()),
                false => Ok(0),
            };
        }
        let count = self.frames.decode(&mut room[..=count]);
        // If there is no room for that, the next ping is answered.
        let _ = self
            .frames
            .answer_ping(|bytes| self.below.send(socket, bytes));
        match self.frames.input_end() {
            _ if count > 0 => Ok(count),
            Some(end) => input_end(end),
            None => Err(ErrorKind::Interrupted.into()),
        }
    }
}

fn input_end(end: InputEnd) -> io::Result<usize> {
    match end {
        InputEnd::Closed(_) => Ok(0),
        InputEnd::Violated(violation) => Err(io::Error::new(ErrorKind::InvalidData, violation)),
    }
}

fn cut_off() -> io::Error {
    let text = "the client ended it in the middle of a message";
    io::Error::new(ErrorKind::UnexpectedEof, text)
}

impl Transport {
    /// WebSocket through this one, of which so much has come already.
    pub(crate) fn upgraded(self, early: Vec<u8>) -> Transport {
        Transport::WebSocket(Box::new(WebSocket {
            frames: Frames::default(),
            below: self,
            is_filled: !early.is_empty(),
            early,
            deadline: None,
        }))
    }

    /// How bytes become messages behind it, where others have this framing.
    pub(crate) fn framing(&self, framing: Framing) -> Framing {
        match self {
            Transport::Plain | Transport::Tls(_) => framing,
            Transport::WebSocket(_) => Framing::Messages,
        }
    }

    /// How long to wait for the client, of the time that the conversation gives it: less if the wait goes
    /// on, since the last read brought nothing.
    pub(crate) fn time_left(&mut self, within: Duration) -> Duration {
        match self {
            Transport::Plain => within,
            Transport::Tls(tls) => tls.time_left(within),
            Transport::WebSocket(websocket) => {
                let now = Instant::now();
                let deadline = *websocket.deadline.get_or_insert(now + within);
                within.min(deadline.saturating_duration_since(now))
            }
        }
    }

    /// Whether a wait goes on that has lasted as long as it may: a client that keeps sending what says
    /// nothing has said nothing.
    pub(crate) fn is_overdue(&self) -> bool {
        let deadline = match self {
            Transport::Plain => None,
            Transport::Tls(tls) => tls.deadline(),
            Transport::WebSocket(websocket) => websocket.deadline,
        };
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Something has come of the wait.
    pub(crate) fn end_wait(&mut self) {
        match self {
            Transport::Plain => {}
            Transport::Tls(tls) => tls.end_wait(),
            Transport::WebSocket(websocket) => websocket.deadline = None,
        }
    }

    /// Waits for bytes; 0 are the end of input.
    pub(crate) fn receive(&mut self, socket: &Socket<'_>, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain => socket.receive(room),
            Transport::Tls(tls) => tls.receive(socket, room, |room| socket.receive(room)),
            Transport::WebSocket(websocket) => {
                websocket.receive(socket, room, |below, room| below.receive(socket, room))
            }
        }
    }

    /// The same without waiting.
    pub(crate) fn receive_now(
        &mut self,
        socket: &Socket<'_>,
        room: &mut [u8],
    ) -> io::Result<usize> {
        match self {
            Transport::Plain => socket.receive_now(room),
            Transport::Tls(tls) => tls.receive(socket, room, |room| socket.receive_now(room)),
            Transport::WebSocket(websocket) => {
                websocket.receive(socket, room, |below, room| below.receive_now(socket, room))
            }
        }
    }

    /// Whether there may be input of which the kernel does not tell again; `is_filled`: what was received
    /// last has filled the room.
    pub(crate) fn may_have_more(&self, is_filled: bool) -> bool {
        match self {
            Transport::Plain => is_filled,
            Transport::Tls(tls) => tls.may_have_more(),
            Transport::WebSocket(websocket) => {
                websocket.is_filled || websocket.frames.input_end().is_some()
            }
        }
    }

    /// Sends what there is room for, or fails with `WouldBlock`.
    pub(crate) fn send(&mut self, socket: &Socket<'_>, output: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain => socket.send(output),
            Transport::Tls(tls) => tls.send(socket, output),
            Transport::WebSocket(websocket) => {
                let WebSocket { frames, below, .. } = &mut **websocket;
                frames.send(output, |bytes| below.send(socket, bytes))
            }
        }
    }

    /// What to say of a client when its socket takes nothing. `sent_bytes` is what it was sent of the
    /// conversation.
    pub(crate) fn stalled(&self, socket: &Socket<'_>, sent_bytes: u64) -> Event {
        let sent_bytes = match self {
            Transport::Plain => sent_bytes,
            Transport::Tls(tls) => tls.sent_bytes(),
            Transport::WebSocket(websocket) => {
                let sent_bytes = websocket.frames.sent_bytes();
                return websocket.below.stalled(socket, sent_bytes);
            }
        };
        match socket.unacknowledged_bytes() {
            Ok(unacknowledged_bytes) => Event::Stalled {
                taken_bytes: sent_bytes.saturating_sub(unacknowledged_bytes),
            },
            Err(error) => Event::Broken(error),
        }
    }

    /// Says that nothing more comes, when all has been sent, and why; that is nothing where no conversation
    /// has been. Fails with `WouldBlock` until the kernel has taken that.
    pub(crate) fn end<E>(&mut self, socket: &Socket<'_>, why: Option<&End<E>>) -> io::Result<()> {
        match self {
            Transport::Plain => Ok(()),
            Transport::Tls(tls) => tls.end(socket),
            Transport::WebSocket(websocket) => {
                let WebSocket { frames, below, .. } = &mut **websocket;
                let code = why.map_or(CloseCode::Normal, close_code);
                frames.end(code, |bytes| below.send(socket, bytes))?;
                below.end(socket, why)
            }
        }
    }

    /// Whether something has come that was not received, or is going to come: the client's close frame.
    pub(crate) fn has_unread(&self, socket: &Socket<'_>) -> bool {
        let has_plaintext = match self {
            Transport::Plain => false,
            Transport::Tls(tls) => tls.has_plaintext(),
            Transport::WebSocket(websocket) => {
                let end = websocket.frames.input_end();
                return !matches!(end, Some(InputEnd::Closed(_)))
                    || websocket.below.has_unread(socket);
            }
        };
        has_plaintext || socket.has_unread()
    }
}
