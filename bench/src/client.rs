//! A client's connection, whatever door it goes to: WebSocket begins with a request and its answer, and
//! is frames from then on, which are the conversation's.

use std::io::{self, ErrorKind, Read, Write};

use airlock::settings::address::Address;
use memchr::memmem;
use rustix::event::epoll::EventFlags as Flags;
use rustix::fd::{AsFd, BorrowedFd};

use crate::stream::Stream;

/// The answer to a request has a head of 130 bytes.
const MOST_HEAD: usize = 4096;

/// What ends it.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A client's connection. The conversation is what is read from it and written to it; it is read first,
/// which is what moves its beginning on.
pub(crate) struct Client {
    pub(crate) stream: Stream,
    upgrade: Option<Box<Upgrade>>,
    speaks_first: bool,
}

/// How WebSocket's beginning stands.
struct Upgrade {
    /// What has to be written of the request.
    request: Vec<u8>,
    /// What has come of the answer, and behind it.
    answer: Vec<u8>,
    is_answered: bool,
}

impl Client {
    pub(crate) fn new(stream: Stream, address: &Address) -> Client {
        let upgrade = address.scheme.is_websocket().then(|| {
            Box::new(Upgrade {
                request: request(address),
                answer: Vec::new(),
                is_answered: false,
            })
        });
        Client {
            stream,
            speaks_first: address.scheme.is_encrypted() || upgrade.is_some(),
            upgrade,
        }
    }

    /// What to wait for until the greeting has come, if the conversation has one.
    pub(crate) fn first_flags(&self, has_greeting: bool) -> Flags {
        match (has_greeting, self.speaks_first) {
            (true, false) => Flags::IN,
            (true, true) => Flags::IN | Flags::OUT,
            (false, _) => Flags::OUT,
        }
    }
}

/// The key is the example of RFC 6455: nobody is to be kept from anything here.
fn request(address: &Address) -> Vec<u8> {
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        address.path, address.endpoint
    );
    head.into_bytes()
}

impl Upgrade {
    /// Goes on until the answer has come.
    fn go_on(&mut self, stream: &mut Stream) -> io::Result<()> {
        while !self.request.is_empty() {
            let count = stream.write(&self.request)?;
            self.request.drain(..count);
        }
        while !self.is_answered {
            let mut piece = [0; MOST_HEAD];
            let count = stream.read(&mut piece)?;
            self.answer.extend_from_slice(&piece[..count]);
            if let Some(end) = memmem::find(&self.answer, HEAD_END) {
                if !self.answer.starts_with(b"HTTP/1.1 101 ") {
                    return Err(self.no_websocket());
                }
                self.answer.drain(..end + HEAD_END.len());
                self.is_answered = true;
            } else if count == 0 || self.answer.len() > MOST_HEAD {
                return Err(self.no_websocket());
            }
        }
        Ok(())
    }

    fn no_websocket(&self) -> io::Error {
        let answer = String::from_utf8_lossy(&self.answer);
        let line = answer.lines().next().unwrap_or_default();
        let text = format!("the server takes no WebSocket: `{line}`");
        io::Error::new(ErrorKind::InvalidData, text)
    }
}

impl Read for Client {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.go_on(&mut self.stream)?;
            let early = &mut upgrade.answer;
            let count = early.len().min(room.len());
            room[..count].copy_from_slice(&early[..count]);
            early.drain(..count);
            if early.is_empty() {
                self.upgrade = None;
            }
            if count > 0 {
                return Ok(count);
            }
        }
        self.stream.read(room)
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
