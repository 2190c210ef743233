//! A connection on which commands go out while earlier ones are not answered yet, and which nobody
//! waits for.

use std::collections::VecDeque;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use redis::{Parser, Value};
use rustix::event::PollFlags;

use crate::limits::process::{REDIS_PING_TIME, REDIS_SILENCE_TIME};
use crate::redis::connection::{Connection, Failure};
use crate::redis::stream::Stream;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Bytes for output that are kept for the next.
const KEPT_BYTES: usize = 256 * 1024;

/// For each command that is not answered there is a `T`, which says what it was.
pub(crate) struct Pipe<T> {
    stream: BufReader<Stream>,
    parser: Parser,
    output: Vec<u8>,
    /// Bytes of the output that are on their way.
    sent: usize,
    owed: VecDeque<T>,
    /// When it last said something, or was first asked something since.
    since: Instant,
}

impl<T> Pipe<T> {
    /// From one that is ready, and owes nothing.
    pub(crate) fn new(connection: Connection) -> io::Result<Pipe<T>> {
        let Connection {
            mut stream, parser, ..
        } = connection;
        stream.never_waits()?;
        Ok(Pipe {
            stream: BufReader::with_capacity(READ_BYTES, stream),
            parser,
            output: Vec::new(),
            sent: 0,
            owed: VecDeque::new(),
            since: Instant::now(),
        })
    }

    /// Commands that are to be sent, each of which owes one answer. Leaves nothing in `packed`.
    pub(crate) fn ask(&mut self, packed: &mut Vec<u8>, what: impl IntoIterator<Item = T>) {
        if packed.is_empty() {
            return;
        }
        if self.owed.is_empty() {
            self.since = Instant::now();
        }
        self.owed.extend(what);
        if self.output.is_empty() {
            std::mem::swap(&mut self.output, packed);
        } else {
            self.output.append(packed);
        }
    }

    /// Asks whether it is there, if it has said nothing for a while and owes nothing.
    pub(crate) fn ask_if_quiet(&mut self, now: Instant, what: T) {
        if self.owed.is_empty() && now.saturating_duration_since(self.since) >= REDIS_PING_TIME {
            self.ask(&mut redis::cmd("PING").get_packed_command(), [what]);
        }
    }

    /// Sends as much as it takes now.
    pub(crate) fn send(&mut self) -> Result<(), Failure> {
        match self.try_send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Failure::Unavailable(error.to_string())),
            Ok(()) => Ok(()),
        }
    }

    fn try_send(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            let sent = self.stream.get_mut().write(&self.output[self.sent..])?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += sent;
        }
        self.sent = 0;
        self.output.clear();
        self.output.shrink_to(KEPT_BYTES);
        self.stream.get_mut().flush()
    }

    /// The next that it says, if it has arrived.
    pub(crate) fn receive(&mut self) -> Result<Option<Value>, Failure> {
        self.stream.get_mut().next_answer();
        match self.parser.parse_value(&mut self.stream) {
            Ok(value) => {
                self.since = Instant::now();
                Ok(Some(value))
            }
            Err(error) if error.is_timeout() => Ok(None),
            Err(_) if self.stream.get_ref().is_too_much() => Err(Failure::TooLarge),
            Err(error) => Err(Failure::Unavailable(error.to_string())),
        }
    }

    /// An answer has come. What it is to.
    pub(crate) fn answered(&mut self) -> Option<T> {
        self.owed.pop_front()
    }

    /// Bytes that are to be sent.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Whether it owes nothing.
    pub(crate) fn is_quiet(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether it has owed an answer for too long.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        !self.is_quiet() && self.due() <= now
    }

    /// When it is to be asked whether it is there, or is overdue.
    pub(crate) fn due(&self) -> Instant {
        let patience = match self.is_quiet() {
            true => REDIS_PING_TIME,
            false => REDIS_SILENCE_TIME,
        };
        self.since + patience
    }

    /// What it waits for.
    pub(crate) fn events(&self) -> PollFlags {
        if self.unsent_bytes() > 0 || self.stream.get_ref().holds_bytes_back() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }
}

impl<T> AsFd for Pipe<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}
