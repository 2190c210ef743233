//! Native servers to compare with: the greeter's logic compiled in, and a thread per connection, or
//! one for all (`epoll_twin.rs`).

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use airlock::limits::wire::Wire;
use airlock::serve::blocking;
use airlock::serve::listener;
use airlock::serve::socket::Socket;
use airlock::talk::conversation::{Conversation, Event, Turn};
use airlock::talk::framing::Framing;
use airlock::talk::handler::{Handler, Outcome};
use clap::ValueEnum;

use crate::epoll_twin;
use crate::talk::CHUNK;

/// As many as Airlock's.
const BACKLOG: u32 = listener::MOST_BACKLOG;

pub(crate) const WELCOME: &str = "Welcome!";

/// What is around the greeter's logic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Twin {
    /// Nothing that it can do without: no limit and no timeout. As fast as a thread for each
    /// connection gets.
    Plain,
    /// Airlock's own loop and socket with their default limits, but a new thread for each
    /// connection, and each line by itself.
    Shim,
    /// One thread for all connections, which nothing limits either. As fast as one thread gets.
    Epoll,
}

/// Serves on a free port, which is printed, until the process ends.
///
/// # Errors
/// There is no port, or nobody to tell.
pub fn serve(twin: Twin, mut output: impl Write) -> io::Result<()> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = listener::bind(any, BACKLOG, false).map_err(io::Error::other)?;
    writeln!(output, "listening on {}", listener.local_addr()?)?;
    match twin {
        Twin::Plain => each_on_a_thread(&listener, |stream| {
            let _ = greet(stream);
        }),
        Twin::Shim => each_on_a_thread(&listener, converse),
        Twin::Epoll => return epoll_twin::serve(listener).map(|never| match never {}),
    }
    Ok(())
}

fn each_on_a_thread(listener: &TcpListener, serve: fn(&TcpStream)) {
    for stream in listener.incoming().flatten() {
        // Clients that leave in the middle are no concern of a benchmark; one without a thread
        // notices.
        let _ = thread::Builder::new().spawn(move || serve(&stream));
    }
}

/// The greeter's logic: writes its answer to `line` behind what is in `reply`, or says that it is a
/// goodbye.
pub fn answer(line: &str, reply: &mut String) -> bool {
    if line == "exit" {
        return false;
    }
    reply.reserve("Hello, !".len() + line.len());
    reply.push_str("Hello, ");
    reply.push_str(line);
    reply.push('!');
    true
}

fn greet(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    let mut pending = 0;
    let mut replies = format!("{WELCOME}\n");
    loop {
        stream.write_all(replies.as_bytes())?;
        replies.clear();
        let count = stream.read(&mut buffer[pending..])?;
        if count == 0 {
            return Ok(());
        }
        let end = pending + count;
        let (taken, leaves) = answer_all(&buffer[..end], &mut replies);
        if leaves {
            return stream.write_all(replies.as_bytes());
        }
        buffer.copy_within(taken..end, 0);
        pending = end - taken;
    }
}

/// Writes the answers to all whole lines of `input` behind what is in `replies`. Returns how much of
/// it they are, and whether the last one ends the conversation: it is a goodbye, or no text.
pub(crate) fn answer_all(input: &[u8], replies: &mut String) -> (usize, bool) {
    let mut taken = 0;
    while let Some(length) = memchr::memchr(b'\n', &input[taken..]) {
        let line = &input[taken..taken + length];
        taken += length + 1;
        match str::from_utf8(line) {
            Ok(line) if answer(line, replies) => replies.push('\n'),
            _ => return (taken, true),
        }
    }
    (taken, false)
}

fn converse(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut socket = Socket::new(stream);
    let mut conversation = Conversation::new(Framing::Auto, Wire::DEFAULT);
    let mut turn = conversation.start(|| Ok(Greeter));
    while let Turn::Wait(wait) = turn {
        turn = match blocking::perform(wait, &mut conversation, &mut socket, &|| false) {
            Some(event) => conversation.turn(event),
            None => conversation.resume(),
        };
    }
    // However it has ended.
    let mut event = Event::Sent(0);
    while let Some(wait) = conversation.goodbye(event) {
        let next = blocking::perform(wait, &mut conversation, &mut socket, &|| false);
        event = next.unwrap_or(Event::Sent(0));
    }
}

struct Greeter;

impl Handler for Greeter {
    type Error = Infallible;

    fn greeting(&mut self) -> Result<Option<String>, Infallible> {
        Ok(Some(WELCOME.to_owned()))
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, Infallible> {
        let mut reply = String::new();
        Ok(if answer(line, &mut reply) {
            Outcome::Reply(reply)
        } else {
            Outcome::Close(None)
        })
    }

    /// It never takes its time.
    fn clock(&self) -> Duration {
        Duration::ZERO
    }
}
