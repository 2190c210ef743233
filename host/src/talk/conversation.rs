//! THE loop: read messages, ask the handler, write the replies; until somebody ends it.
//!
//! It knows neither sockets nor Wasmtime, only what it needs of them, so that it can be tested and
//! fuzzed without either.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::limits::{self, Limits};
use crate::talk::framing::{Framing, Reader, WRITE_BYTES, Waiting, Writer};

/// What a client hears when the guest fails, and all it hears about it.
pub const GUEST_FAILED: &str = "error: the guest failed";

/// The client's end: a socket.
pub trait Peer: Read + Write {
    /// Reads from now on give up after `time` with [`ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// The socket is broken.
    fn set_read_time(&mut self, time: Duration) -> io::Result<()>;

    /// Whether the server has begun to end, or this connection's version of the guest has. When that
    /// begins, a read that waits gives up, and so does one for which the time has been set before:
    /// so ask between the two.
    fn is_draining(&self) -> bool;
}

/// The guest's end: a session.
pub trait Handler {
    /// How a guest fails.
    type Error;

    /// What is said before any message, if anything.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn greeting(&mut self) -> Result<Option<String>, Self::Error>;

    /// What to do about one message.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn handle_line(&mut self, line: &str) -> Result<Outcome, Self::Error>;

    /// What to do about lines that have arrived together, where the handler can take more than one
    /// at a time; then `lines` gives them, each with its line feed, if there are such lines. Replies
    /// of `enough` bytes are enough.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn handle_lines<'a>(
        &mut self,
        lines: impl FnOnce() -> Option<&'a str>,
        enough: usize,
    ) -> Result<Option<Answers>, Self::Error> {
        let _ = (lines, enough);
        Ok(None)
    }

    /// Time since some moment, as precise as comes for free.
    fn clock(&self) -> Duration;
}

/// What a guest wants done after a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Send this text.
    Reply(String),
    /// Send nothing.
    NoReply,
    /// Send this text, if there is one, and close.
    Close(Option<String>),
}

/// What a guest has made of several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Its replies, each with its line feed.
    pub replies: String,
    /// How many of the lines it has handled: at least one, and no more than there were.
    pub handled: usize,
    /// Whether it wants to close.
    pub close: bool,
}

/// Why a conversation ended.
#[derive(Debug)]
pub enum End<E> {
    /// The client ended its side, and has every reply.
    ClientClosed,
    /// The guest said goodbye.
    GuestClosed,
    /// The guest failed.
    GuestFailed(E),
    /// The client did not send a whole line in time.
    TimedOut,
    /// The client did not read its replies in time.
    NotReading,
    /// The server ends.
    ShuttingDown,
    /// The connection is no more.
    Broken(io::Error),
}

/// One conversation, and the count of what went through it.
#[derive(Debug)]
pub struct Conversation<'a, P> {
    /// The client.
    pub peer: P,
    limits: &'a Limits,
    reader: Reader,
    writer: Writer,
    /// Which line is being received, by [`Reader::lines`], and since when.
    line_started: Option<(u64, Instant)>,
    /// Messages that were received, including those that were refused.
    pub lines: u64,
    /// Bytes that were received.
    pub bytes_in: u64,
    /// Bytes that were sent.
    pub bytes_out: u64,
}

impl<'a, P: Peer> Conversation<'a, P> {
    /// Nothing has been said yet.
    pub fn new(peer: P, framing: Framing, limits: &'a Limits) -> Conversation<'a, P> {
        Conversation {
            peer,
            limits,
            reader: Reader::new(framing, limits.line_bytes),
            writer: Writer::default(),
            line_started: None,
            lines: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Converses to the end. Both results are that end; the error is the way out of the middle.
    /// `start` makes the handler.
    ///
    /// # Errors
    /// Why the conversation ended before either side wanted it to.
    pub fn run<H: Handler>(
        &mut self,
        start: impl FnOnce() -> Result<H, H::Error>,
    ) -> Result<End<H::Error>, End<H::Error>> {
        let mut handler = start().map_err(End::GuestFailed)?;
        if let Some(text) = handler.greeting().map_err(End::GuestFailed)? {
            self.writer.push(&text, self.reader.ending());
        }
        self.flush()?;
        loop {
            let received = self.receive()?;
            let guest_closed = self.answer(&mut handler)?;
            self.flush()?;
            if guest_closed {
                return Ok(End::GuestClosed);
            }
            if received == 0 {
                return Ok(End::ClientClosed);
            }
        }
    }

    /// Sends what is still gathered, and the shim's own word about this end, if it has one.
    /// Returns whether the client may still be listening.
    pub fn say_goodbye<E>(&mut self, end: &End<E>) -> bool {
        if matches!(end, End::Broken(_) | End::NotReading) {
            return false;
        }
        if let Some(text) = end.last_word() {
            self.writer.push(text, self.reader.ending());
        }
        self.flush::<E>().is_ok()
    }

    /// How many bytes were received that nothing was made of.
    pub fn pending_bytes(&self) -> usize {
        self.reader.pending_bytes()
    }

    /// Reads until there may be a message; 0 bytes are the end of input.
    fn receive<E>(&mut self) -> Result<usize, End<E>> {
        loop {
            let waiting = self.reader.waiting();
            let time_left = self.time_left(waiting);
            if time_left.is_zero() {
                return Err(End::TimedOut);
            }
            let patience = match waiting {
                Waiting::ForFraming => time_left.min(limits::SETTLE_TIME),
                Waiting::ForMessage | Waiting::ForRestOfLine => time_left,
            };
            self.peer.set_read_time(patience).map_err(End::Broken)?;
            if self.peer.is_draining() {
                return Err(End::ShuttingDown);
            }
            match self.reader.fill(&mut self.peer) {
                // It was cut.
                Ok(0) if self.peer.is_draining() => return Err(End::ShuttingDown),
                Ok(count) => {
                    self.bytes_in += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(End::Broken(error));
                }
                Err(_) if self.peer.is_draining() => {}
                Err(_) if waiting == Waiting::ForFraming && patience < time_left => {
                    self.reader.settle();
                    return Ok(self.reader.pending_bytes());
                }
                Err(_) => return Err(End::TimedOut),
            }
        }
    }

    /// How long the client may take for what the reader waits for.
    fn time_left(&mut self, waiting: Waiting) -> Duration {
        match waiting {
            Waiting::ForMessage => self.limits.idle_time,
            Waiting::ForRestOfLine | Waiting::ForFraming => {
                let line = self.reader.lines();
                let started = match self.line_started {
                    Some((same, started)) if same == line => started,
                    _ => Instant::now(),
                };
                self.line_started = Some((line, started));
                self.limits.line_time.saturating_sub(started.elapsed())
            }
        }
    }

    /// Answers every message that was received, and says whether the guest has closed.
    fn answer<H: Handler>(&mut self, handler: &mut H) -> Result<bool, End<H::Error>> {
        let mut last_flush = handler.clock();
        while let Some(guest_closed) = self.answer_next(handler)? {
            if guest_closed {
                return Ok(true);
            }
            // The replies to one read leave in one write, unless they grow large or the guest
            // takes its time.
            let now = handler.clock();
            if self.writer.is_full() || now - last_flush > limits::BATCH_TIME {
                self.flush()?;
                last_flush = now;
            }
        }
        Ok(false)
    }

    /// Answers one message or, where the handler can, as many lines as have arrived. Says whether
    /// the guest has closed, or nothing when there is no message.
    fn answer_next<H: Handler>(&mut self, handler: &mut H) -> Result<Option<bool>, End<H::Error>> {
        let answers = handler.handle_lines(|| self.reader.lines_at_hand(), WRITE_BYTES);
        if let Some(answers) = answers.map_err(End::GuestFailed)? {
            self.lines += self.reader.take_lines(answers.handled) as u64;
            self.writer.push_lines(&answers.replies);
            return Ok(Some(answers.close));
        }
        let Some(message) = self.reader.next_message() else {
            return Ok(None);
        };
        self.lines += 1;
        let ending = message.ending;
        let outcome = match message.text {
            Ok(line) => handler.handle_line(line).map_err(End::GuestFailed)?,
            Err(refusal) => Outcome::Reply(refusal.to_string()),
        };
        let (text, close) = match outcome {
            Outcome::Reply(text) => (Some(text), false),
            Outcome::NoReply => (None, false),
            Outcome::Close(text) => (text, true),
        };
        if let Some(text) = text {
            self.writer.push(&text, ending);
        }
        Ok(Some(close))
    }

    fn flush<E>(&mut self) -> Result<(), End<E>> {
        match self.writer.flush(&mut self.peer) {
            Ok(count) => {
                self.bytes_out += count as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(End::NotReading),
            Err(error) => Err(End::Broken(error)),
        }
    }
}

impl<E> End<E> {
    /// What the shim itself has to say about it.
    pub fn last_word(&self) -> Option<&'static str> {
        match self {
            End::GuestFailed(_) => Some(GUEST_FAILED),
            End::TimedOut => Some("error: timed out waiting for a line"),
            End::ShuttingDown => Some("error: server is shutting down"),
            End::ClientClosed | End::GuestClosed | End::NotReading | End::Broken(_) => None,
        }
    }
}

impl<E> fmt::Display for End<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ClientClosed => f.write_str("the client closed"),
            End::GuestClosed => f.write_str("the guest closed"),
            End::GuestFailed(_) => f.write_str("the guest failed"),
            End::TimedOut => f.write_str("timed out waiting for a line"),
            End::NotReading => f.write_str("the client does not read"),
            End::ShuttingDown => f.write_str("the server is shutting down"),
            End::Broken(error) => write!(f, "the connection broke: {error}"),
        }
    }
}
