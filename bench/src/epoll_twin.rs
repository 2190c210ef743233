//! The native twin of few threads for many connections: one thread that waits for all of them.
//!
//! Every turn reads once, answers all lines that have come, and writes once. There are no limits and
//! no timers.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use airlock::process::listener::Listener;
use rustix::event::epoll::EventFlags as Flags;
use rustix::net::{SocketFlags, acceptfrom_with};
use rustls::ServerConfig;

use crate::events::Events;
use crate::stream::Stream;
use crate::talk::CHUNK;
use crate::twin::{WELCOME, answer, answer_all};

/// More events wait for the next look.
const EVENTS: usize = 256;

struct Server<'a> {
    listener: &'a Listener,
    tls: Option<Arc<ServerConfig>>,
    events: Events,
    /// By descriptor, as the kernel gives always the lowest that is free.
    clients: Vec<Option<Client>>,
    buffer: Vec<u8>,
    replies: String,
}

struct Client {
    stream: Stream,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// What the kernel has had no room for; until it is gone nothing is read.
    unsent: Vec<u8>,
    /// The goodbye was said.
    leaves: bool,
}

/// What a client waits for next; nothing, and it is over.
type Next = Option<Flags>;

/// Serves until the process ends.
pub(crate) fn serve(listener: &Listener, tls: Option<Arc<ServerConfig>>) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let events = Events::new(EVENTS)?;
    let door = number(&**listener);
    events.add(&**listener, door, Flags::IN)?;
    let mut server = Server {
        listener,
        tls,
        events,
        clients: Vec::new(),
        buffer: vec![0; CHUNK],
        replies: String::new(),
    };
    loop {
        for event in 0..server.events.wait_for_any()? {
            match server.events.number(event) {
                number if number == door => server.accept(),
                number => server.turn(number),
            }
        }
    }
}

fn number(socket: &impl AsRawFd) -> usize {
    socket.as_raw_fd().cast_unsigned() as usize
}

impl Server<'_> {
    /// Lets all in that are there. Clients that fail are no concern of a benchmark; one who is not let
    /// in notices.
    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok((socket, _)) = acceptfrom_with(&**self.listener, flags) {
            let number = number(&socket);
            let Ok(stream) = Stream::server(socket.into(), self.tls.clone()) else {
                continue;
            };
            let mut client = Client {
                stream,
                partial: Vec::new(),
                unsent: format!("{WELCOME}\n").into_bytes(),
                leaves: false,
            };
            let Some(next) = client.send() else { continue };
            if self.events.add(&client.stream, number, next).is_err() {
                continue;
            }
            if self.clients.len() <= number {
                self.clients.resize_with(number + 1, || None);
            }
            self.clients[number] = Some(client);
        }
    }

    fn turn(&mut self, number: usize) {
        let Some(client) = &mut self.clients[number] else {
            return;
        };
        let waited = client.waits_for();
        let next = if waited == Flags::OUT {
            client.send()
        } else {
            client.receive(&mut self.buffer, &mut self.replies)
        };
        let goes_on = match next {
            Some(next) if next == waited => true,
            Some(next) => self.events.change(&client.stream, number, next).is_ok(),
            None => false,
        };
        if !goes_on {
            self.clients[number] = None;
        }
    }
}

impl Client {
    fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.stream.has_unsent()
    }

    fn waits_for(&self) -> Flags {
        if self.has_unsent() {
            Flags::OUT
        } else {
            Flags::IN
        }
    }

    fn receive(&mut self, buffer: &mut [u8], replies: &mut String) -> Next {
        let pending = self.partial.len();
        buffer[..pending].copy_from_slice(&self.partial);
        let count = match self.stream.read(&mut buffer[pending..]) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(error) => {
                return is_for_later(&error).then(|| self.waits_for());
            }
        };
        let input = &buffer[..pending + count];
        replies.clear();
        let (taken, leaves) = answer_all(input, replies, answer);
        self.partial.clear();
        self.partial.extend_from_slice(&input[taken..]);
        self.leaves = leaves;
        let sent = self.write(replies.as_bytes())?;
        self.unsent.extend_from_slice(&replies.as_bytes()[sent..]);
        self.next()
    }

    fn send(&mut self) -> Next {
        let unsent = mem::take(&mut self.unsent);
        let sent = self.write(&unsent)?;
        self.unsent.extend_from_slice(&unsent[sent..]);
        self.next()
    }

    fn next(&mut self) -> Next {
        if self.leaves && !self.has_unsent() {
            // All that follows is the close.
            let _ = self.stream.say_end();
            return None;
        }
        Some(self.waits_for())
    }

    /// Returns how much has been taken, or nothing when the client is gone.
    fn write(&mut self, output: &[u8]) -> Option<usize> {
        let written = match output {
            [] => self.stream.flush().map(|()| 0),
            _ => self.stream.write(output),
        };
        match written {
            Ok(count) => Some(count),
            Err(error) => is_for_later(&error).then_some(0),
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
