//! Native servers to compare with: the greeter's logic compiled in, and a thread per connection, or
//! one for all (`epoll_twin.rs`). They listen at the same doors as Airlock, with the same TLS.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use airlock::limits::wire::Wire;
use airlock::process::listener::Listener;
use airlock::serve::blocking;
use airlock::serve::listener::{self, MOST_BACKLOG};
use airlock::serve::socket::Socket;
use airlock::serve::tls::Tls;
use airlock::serve::transport::Transport;
use airlock::serve::unix_socket;
use airlock::settings::door::DoorSettings;
use airlock::settings::store::StoreSettings;
use airlock::talk::client::Endpoint;
use airlock::talk::conversation::{Conversation, Event, Turn};
use airlock::talk::framing::Framing;
use airlock::talk::handler::{Handler, Outcome};
use clap::ValueEnum;
use rustls::ServerConfig;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message};

use crate::store_twin::{self, Kept};
use crate::stream::Stream;
use crate::talk::{CHUNK, GOODBYE};
use crate::{epoll_twin, haproxy};

pub(crate) const WELCOME: &str = "Welcome!";

/// What `keeper` says first.
pub(crate) const HELLO: &str = "hello";

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
    /// HAProxy, which ends TLS, in front of the plain one.
    Haproxy,
}

impl Twin {
    /// What its figures are called beside Airlock's.
    pub fn column(self) -> &'static str {
        match self {
            Twin::Haproxy => "haproxy",
            Twin::Plain | Twin::Shim | Twin::Epoll => "native",
        }
    }
}

/// Serves at a door, whose address is printed, until the process ends: the greeter, or, where there is
/// a store, `keeper`.
///
/// # Errors
/// There is no such door or store, or nobody to tell.
pub fn serve(
    twin: Twin,
    door: &DoorSettings,
    store: Option<&StoreSettings>,
    mut output: impl Write,
) -> io::Result<Infallible> {
    let store = store.map(Kept::open).transpose()?;
    let tls = door.tls().map(Tls::new).transpose();
    let tls = tls.map_err(io::Error::other)?.map(|tls| tls.config());
    let listener = bind(door)?;
    match listener.local_addr()?.as_socket() {
        Some(address) => writeln!(output, "listening on {address}")?,
        None => writeln!(output, "listening on {}", door.address)?,
    }
    if let Some(store) = store {
        return each_on_a_thread(&listener, tls, move |stream| keep(stream, &store));
    }
    match (twin, door.address.scheme.is_websocket()) {
        (Twin::Plain, false) => each_on_a_thread(&listener, tls, greet),
        (Twin::Plain, true) => each_on_a_thread(&listener, tls, |stream| {
            greet_with_messages(stream).map_err(io::Error::other)
        }),
        (Twin::Shim, false) if tls.is_none() => each_on_a_thread(&listener, None, |stream| {
            converse(&stream.socket);
            Ok(())
        }),
        (Twin::Epoll, false) => epoll_twin::serve(&listener, tls),
        (Twin::Haproxy, false) => haproxy::serve(&listener, door),
        _ => Err(io::Error::other("this twin does not speak that")),
    }
}

/// With as many who wait as Airlock has.
fn bind(door: &DoorSettings) -> io::Result<Listener> {
    let bound = match &door.address.endpoint {
        Endpoint::Ip(address) => listener::bind(*address, &door.tcp(MOST_BACKLOG, false)),
        Endpoint::Unix(path) => {
            let path = path.as_deref().unwrap_or(Path::new(""));
            unix_socket::bind(path, &door.unix(MOST_BACKLOG))
        }
    };
    bound.map_err(io::Error::other)
}

/// A plain twin, of plain bytes.
pub(crate) fn greet_each(listener: &Listener) -> io::Result<Infallible> {
    each_on_a_thread(listener, None, greet)
}

fn each_on_a_thread(
    listener: &Listener,
    tls: Option<Arc<ServerConfig>>,
    serve: impl Fn(Stream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<Infallible> {
    loop {
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        let (tls, serve) = (tls.clone(), serve.clone());
        // Clients that leave in the middle are no concern of a benchmark; one without a thread
        // notices.
        let _ = thread::Builder::new().spawn(move || serve(Stream::server(socket, tls)?));
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

fn greet(stream: Stream) -> io::Result<()> {
    talk(stream, WELCOME, answer)
}

/// A store that fails ends the connection.
fn keep(stream: Stream, store: &Kept) -> io::Result<()> {
    let mut store = store.connect()?;
    talk(stream, HELLO, |line, reply| {
        store_twin::answer(&mut *store, line, reply).is_ok()
    })
}

fn talk(
    mut stream: Stream,
    greeting: &str,
    mut answer: impl FnMut(&str, &mut String) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut pending = 0;
    let mut replies = format!("{greeting}\n");
    loop {
        stream.write_all(replies.as_bytes())?;
        replies.clear();
        let count = stream.read(&mut buffer[pending..])?;
        if count == 0 {
            return Ok(());
        }
        let end = pending + count;
        let (taken, leaves) = answer_all(&buffer[..end], &mut replies, &mut answer);
        if leaves {
            stream.write_all(replies.as_bytes())?;
            return stream.say_end();
        }
        buffer.copy_within(taken..end, 0);
        pending = end - taken;
    }
}

/// The room for what is received is no larger than Airlock's.
const WEBSOCKET_BYTES: usize = 4096;

fn greet_with_messages(stream: Stream) -> Result<(), Error> {
    let config = WebSocketConfig::default().read_buffer_size(WEBSOCKET_BYTES);
    let accepted = tungstenite::accept_with_config(stream, Some(config));
    let mut socket = accepted.map_err(|_| Error::ConnectionClosed)?;
    socket.send(Message::text(WELCOME))?;
    loop {
        let Message::Text(line) = socket.read()? else {
            continue;
        };
        let mut reply = String::new();
        if !answer(&line, &mut reply) {
            socket.close(Some(GOODBYE))?;
            return Ok(socket.get_mut().say_end()?);
        }
        socket.send(Message::text(reply))?;
    }
}

/// Writes the answers to all whole lines of `input` behind what is in `replies`. Returns how much of
/// it they are, and whether the last one ends the conversation: it is a goodbye, or no text.
pub(crate) fn answer_all(
    input: &[u8],
    replies: &mut String,
    mut answer: impl FnMut(&str, &mut String) -> bool,
) -> (usize, bool) {
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

fn converse(stream: &socket2::Socket) {
    let mut socket = Socket::new(stream);
    let mut transport = Transport::Plain;
    let mut conversation = Conversation::new(Framing::Auto, Wire::DEFAULT);
    let mut turn = conversation.start(|| Ok(Greeter));
    while let Turn::Wait(wait) = turn {
        turn = match blocking::perform(
            wait,
            &mut conversation,
            &mut socket,
            &mut transport,
            &|| false,
        ) {
            Some(event) => conversation.turn(event),
            None => conversation.resume(),
        };
    }
    // However it has ended.
    let mut event = Event::Sent(0);
    while let Some(wait) = conversation.goodbye(event) {
        let next = blocking::perform(
            wait,
            &mut conversation,
            &mut socket,
            &mut transport,
            &|| false,
        );
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
