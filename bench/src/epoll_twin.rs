//! The native twin of few threads for many connections: one thread that waits for all of them.
//!
//! Every turn reads once, answers all lines that have come, and writes once. There are no limits and
//! no timers.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::epoll::EventFlags as Flags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::SockRef;

use crate::events::Events;
use crate::talk::CHUNK;
use crate::twin::{WELCOME, answer_all};

/// More events wait for the next look.
const EVENTS: usize = 256;

struct Server {
    listener: TcpListener,
    events: Events,
    /// By descriptor, as the kernel gives always the lowest that is free.
    clients: Vec<Option<Client>>,
    buffer: Vec<u8>,
    replies: String,
}

struct Client {
    socket: OwnedFd,
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
pub(crate) fn serve(listener: TcpListener) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    // Those that are accepted inherit it.
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    let events = Events::new(EVENTS)?;
    let door = number(&listener);
    events.add(&listener, door, Flags::IN)?;
    let mut server = Server {
        listener,
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

impl Server {
    /// Lets all in that are there. Clients that fail are no concern of a benchmark; one who is not let
    /// in notices.
    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok((socket, _)) = acceptfrom_with(&self.listener, flags) {
            let number = number(&socket);
            let mut client = Client {
                socket,
                partial: Vec::new(),
                unsent: format!("{WELCOME}\n").into_bytes(),
                leaves: false,
            };
            let Some(next) = client.send() else { continue };
            if self.events.add(&client.socket, number, next).is_err() {
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
            Some(next) => self.events.change(&client.socket, number, next).is_ok(),
            None => false,
        };
        if !goes_on {
            self.clients[number] = None;
        }
    }
}

impl Client {
    fn waits_for(&self) -> Flags {
        if self.unsent.is_empty() {
            Flags::IN
        } else {
            Flags::OUT
        }
    }

    fn receive(&mut self, buffer: &mut [u8], replies: &mut String) -> Next {
        let pending = self.partial.len();
        buffer[..pending].copy_from_slice(&self.partial);
        let count = match rustix::io::read(&self.socket, &mut buffer[pending..]) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Some(Flags::IN),
            Err(_) => return None,
        };
        let input = &buffer[..pending + count];
        replies.clear();
        let (taken, leaves) = answer_all(input, replies);
        self.partial.clear();
        self.partial.extend_from_slice(&input[taken..]);
        self.leaves = leaves;
        let sent = write(self.socket.as_fd(), replies.as_bytes())?;
        self.unsent.extend_from_slice(&replies.as_bytes()[sent..]);
        self.next()
    }

    fn send(&mut self) -> Next {
        let sent = write(self.socket.as_fd(), &self.unsent)?;
        self.unsent.drain(..sent);
        self.next()
    }

    fn next(&self) -> Next {
        let is_over = self.leaves && self.unsent.is_empty();
        (!is_over).then(|| self.waits_for())
    }
}

/// Returns how much the kernel has taken, or nothing when the client is gone.
fn write(socket: impl AsFd, output: &[u8]) -> Option<usize> {
    if output.is_empty() {
        return Some(0);
    }
    match rustix::io::write(socket, output) {
        Ok(count) => Some(count),
        Err(Errno::AGAIN | Errno::INTR) => Some(0),
        Err(_) => None,
    }
}
