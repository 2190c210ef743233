//! What a test's client talks through at a door that is more than a socket: a thread between two sockets,
//! with the test's lines on the one, and on the other what becomes of them with WebSocket and TLS.
//!
//! All that a socket tells goes through it: an end of the output is `close_notify` or a close frame, a reset
//! is a reset, and an end without a word is one too. It stores no more than it reads at once, so it does not
//! read from a side while the other takes nothing.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use airlock::settings::address::Address;
use airlock::talk::client::Endpoint;
use rustix::event::{PollFd, PollFlags, poll};
use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

use super::place::Encryption;
use super::{PATIENCE, connected};

/// Read at once.
const ROOM_BYTES: usize = 64 * 1024;

/// Of its sockets, but not of what the server sends: so all that a client has said and the server has not
/// read, or the server has said and the client has not, is about as much as without it.
const BUFFER_BYTES: usize = 32 * 1024;

/// For a client that has been told of the end.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// What is known of one from outside.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_open: bool,
    has_ended: bool,
    passed_bytes: u64,
}

impl Progress {
    /// Waits until all handshakes are done at the server too, or have failed.
    pub(crate) fn wait_until_open(&self) {
        self.wait(|state| state.is_open);
    }

    /// Waits until the kernel has so much of what the client has said, on the way to the server.
    pub(crate) fn wait_until_passed(&self, bytes: u64) {
        self.wait(|state| state.passed_bytes >= bytes);
    }

    fn wait(&self, is_met: impl Fn(&State) -> bool) {
        let (state, changed) = &*self.0;
        let waits = |state: &mut State| !is_met(state) && !state.has_ended;
        let (_state, waited) = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, waits)
            .unwrap();
        assert!(!waited.timed_out(), "the relay is stuck");
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        let (state, changed) = &*self.0;
        change(&mut state.lock().unwrap());
        changed.notify_all();
    }
}

/// Connects to a server, and speaks to it in the place of whoever has the socket that is returned.
/// `prepare` has both of these before they are connected.
pub(crate) fn begin(address: &Address, prepare: impl Fn(&Socket)) -> (Socket, Endpoint, Progress) {
    let server = connected(address, |socket| {
        socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
        prepare(socket);
    });
    let server = server.unwrap();
    let here = Endpoint::from(&server.local_addr().unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound(&near);
    prepare(&near);
    near.connect(&listener.local_addr().unwrap().into())
        .unwrap();
    let far = Socket::from(listener.accept().unwrap().0);
    bound(&far);
    far.set_send_buffer_size(near.recv_buffer_size().unwrap() / 2)
        .unwrap();
    for socket in [&near, &far] {
        socket.set_tcp_nodelay(true).unwrap();
    }
    let progress = Progress::default();
    let scheme = address.scheme;
    let mut relay = Relay {
        client: far,
        server,
        tls: scheme.is_encrypted().then(|| {
            let mut tls = Encryption::shared().trust.connection("localhost");
            // Records are taken from it at once.
            tls.set_buffer_limit(None);
            tls
        }),
        frames: None,
        room: vec![0; ROOM_BYTES],
        to_server: Pending::default(),
        to_client: Pending::default(),
        received_bytes: 0,
        client_ended: false,
        server_ended: false,
        server_closed: false,
        progress: progress.clone(),
    };
    let request = scheme.is_websocket().then(|| {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            address.path, address.endpoint
        )
    });
    thread::spawn(move || relay.run(request.as_deref()));
    (near, here, progress)
}

fn bound(socket: &Socket) {
    socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
    socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
}

/// Whose connection is broken.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// What one side is still to be sent.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what there is room for.
    fn send(&mut self, mut socket: &Socket) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match socket.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

struct Relay {
    client: Socket,
    server: Socket,
    tls: Option<ClientConnection>,
    /// Of WebSocket, after its handshake.
    frames: Option<Frames>,
    room: Vec<u8>,
    to_server: Pending,
    to_client: Pending,
    received_bytes: u64,
    /// It says nothing more.
    client_ended: bool,
    /// It has said so.
    server_ended: bool,
    /// There is nothing to be read from it.
    server_closed: bool,
    progress: Progress,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.progress.set(|state| state.has_ended = true);
    }
}

impl Relay {
    fn run(&mut self, request: Option<&str>) {
        // Who is turned away has nothing to hear but what is in an answer of HTTP.
        if !self.shake_hands(request).is_ok_and(|accepted| accepted) {
            return;
        }
        match self.pass() {
            Err(Side::Client) => reset(&self.server),
            Err(Side::Server) if !self.server_ended => {
                self.pass_the_rest();
                reset(&self.client);
            }
            // What comes to a closed socket would have the client lose the last words.
            Ok(()) | Err(Side::Server) => self.linger(),
        }
    }

    fn shake_hands(&mut self, request: Option<&str>) -> io::Result<bool> {
        if let Some(tls) = &mut self.tls {
            while tls.is_handshaking() {
                tls.complete_io(&mut self.server)?;
            }
        }
        if let Some(request) = request {
            self.encrypt(request.as_bytes());
            self.to_server.send(&self.server)?;
            let mut response = Vec::new();
            let head_bytes = loop {
                if let Some(end) = memchr::memmem::find(&response, b"\r\n\r\n") {
                    break end + 4;
                }
                if self.server_closed {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.decrypt(&mut response)?;
            };
            if !response.starts_with(b"HTTP/1.1 101 ") {
                while !self.server_closed {
                    self.decrypt(&mut response)?;
                }
                self.client.write_all(&response[head_bytes..])?;
                return Ok(false);
            }
            let mut frames = Frames::default();
            let ended = frames.decode(&response[head_bytes..], &mut self.to_client.bytes);
            self.server_ended |= ended;
            self.frames = Some(frames);
            self.open();
        }
        Ok(true)
    }

    fn open(&self) {
        self.progress.set(|state| state.is_open = true);
    }

    /// Until both sides have ended.
    fn pass(&mut self) -> Result<(), Side> {
        for socket in [&self.client, &self.server] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut is_told = false;
        loop {
            self.to_server
                .send(&self.server)
                .map_err(|_| Side::Server)?;
            self.to_client
                .send(&self.client)
                .map_err(|_| Side::Client)?;
            if self.to_server.is_empty() {
                let bytes = self.received_bytes;
                self.progress.set(|state| state.passed_bytes = bytes);
            }
            if self.server_ended && self.to_client.is_empty() && !is_told {
                is_told = true;
                self.client
                    .shutdown(Shutdown::Write)
                    .map_err(|_| Side::Client)?;
            }
            // Who has sent a close frame takes no message.
            let is_over = self.client_ended || self.frames.is_some();
            if self.server_closed && is_told && is_over {
                return Ok(());
            }
            let mut client = PollFlags::empty();
            client.set(
                PollFlags::IN,
                self.to_server.is_empty() && !self.client_ended,
            );
            client.set(PollFlags::OUT, !self.to_client.is_empty());
            let mut server = PollFlags::empty();
            server.set(
                PollFlags::IN,
                self.to_client.is_empty() && !self.server_closed,
            );
            server.set(PollFlags::OUT, !self.to_server.is_empty());
            let mut waiting = vec![(&self.server, server)];
            // One that has ended and knows that the server has is ready all the time.
            if !(self.client_ended && is_told) {
                waiting.push((&self.client, client));
            }
            let ready = ready(&waiting);
            let server = ready[0];
            let client = ready.get(1).copied().unwrap_or(PollFlags::empty());
            if client.contains(PollFlags::ERR) {
                return Err(Side::Client);
            }
            if server.contains(PollFlags::ERR) {
                return Err(Side::Server);
            }
            if client.contains(PollFlags::IN) {
                self.take_from_client().map_err(|_| Side::Client)?;
            }
            if server.contains(PollFlags::IN) {
                self.take_from_server().map_err(|_| Side::Server)?;
            }
        }
    }

    fn take_from_client(&mut self) -> io::Result<()> {
        let mut room = std::mem::take(&mut self.room);
        let count = self.client.read(&mut room);
        self.room = room;
        let count = count?;
        self.received_bytes += count as u64;
        self.client_ended = count == 0;
        let Some(frames) = &mut self.frames else {
            let plain = self.room[..count].to_vec();
            self.encrypt(&plain);
            return Ok(());
        };
        let mut encoded = Vec::new();
        if self.client_ended {
            frames.end(&mut encoded);
        } else if !self.server_ended {
            frames.encode(&self.room[..count], &mut encoded);
        }
        self.encrypt(&encoded);
        Ok(())
    }

    fn take_from_server(&mut self) -> io::Result<()> {
        // Of TLS, the end of the handshake is the client's word: now the server has it.
        self.open();
        let mut plain = Vec::new();
        self.decrypt(&mut plain)?;
        match &mut self.frames {
            Some(frames) => self.server_ended |= frames.decode(&plain, &mut self.to_client.bytes),
            None => self.to_client.bytes.append(&mut plain),
        }
        match self.server_closed && !self.server_ended {
            true => Err(ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// To be sent; with it, that nothing more comes, if that is so.
    fn encrypt(&mut self, plain: &[u8]) {
        let Some(tls) = &mut self.tls else {
            self.to_server.bytes.extend_from_slice(plain);
            return;
        };
        tls.writer().write_all(plain).unwrap();
        if self.client_ended {
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.to_server.bytes).unwrap();
        }
    }

    /// Reads from the server once.
    fn decrypt(&mut self, plain: &mut Vec<u8>) -> io::Result<()> {
        let count = match self.server.read(&mut self.room) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        self.server_closed = count == 0;
        let mut received = &self.room[..count];
        let Some(tls) = &mut self.tls else {
            plain.extend_from_slice(received);
            return Ok(());
        };
        while !received.is_empty() {
            // It takes nothing after the end.
            if tls.read_tls(&mut received)? == 0 {
                break;
            }
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let at = plain.len();
            plain.resize(at + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut plain[at..])?;
            // After frames that is no news.
            self.server_ended |= state.peer_has_closed() && self.frames.is_none();
        }
        Ok(())
    }

    /// Takes what the client says, until it has heard the end or has had its time for that.
    fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_TIME;
        self.client.set_nonblocking(false).unwrap();
        self.client.set_read_timeout(Some(LINGER_TIME)).unwrap();
        while Instant::now() < deadline
            && self
                .client
                .read(&mut self.room)
                .is_ok_and(|count| count > 0)
        {}
    }

    /// After a reset the server's last words are there, and so is the room for them, if the client reads.
    fn pass_the_rest(&mut self) {
        while self.to_client.send(&self.client).is_ok() && self.to_client.is_empty() {
            if self.server_closed || self.take_from_server().is_err() || self.to_client.is_empty() {
                break;
            }
        }
    }
}

/// Has a socket be reset when it is closed.
pub(super) fn reset(socket: &Socket) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits until one of these is ready for that, or broken; which are.
fn ready(sockets: &[(&Socket, PollFlags)]) -> Vec<PollFlags> {
    let waiting = sockets.iter();
    let waiting = waiting.map(|(socket, events)| PollFd::from_borrowed_fd(socket.as_fd(), *events));
    let mut waiting: Vec<_> = waiting.collect();
    poll(&mut waiting, None).unwrap();
    waiting.iter().map(PollFd::revents).collect()
}

/// Frames of WebSocket that a client sends and gets: a line is a text message, and what there is of one
/// is a part of that.
#[derive(Default)]
struct Frames {
    in_message: bool,
    /// The beginning of a header.
    header: Vec<u8>,
    left_bytes: u64,
    is_final: bool,
}

impl Frames {
    fn encode(&mut self, mut lines: &[u8], encoded: &mut Vec<u8>) {
        while !lines.is_empty() {
            let end = memchr::memchr(b'\n', lines).map(|end| end + 1);
            let (part, rest) = lines.split_at(end.unwrap_or(lines.len()));
            self.encode_part(part, end.is_some(), encoded);
            lines = rest;
        }
    }

    fn encode_part(&mut self, part: &[u8], is_final: bool, encoded: &mut Vec<u8>) {
        let kind = if self.in_message {
            Data::Continue
        } else {
            Data::Text
        };
        let header = FrameHeader {
            is_final,
            opcode: OpCode::Data(kind),
            // It changes nothing, and costs nothing.
            mask: Some([0; 4]),
            ..FrameHeader::default()
        };
        header.format(part.len() as u64, encoded).unwrap();
        encoded.extend_from_slice(part);
        self.in_message = !is_final;
    }

    /// A line that has no ending is one at the end of all.
    fn end(&mut self, encoded: &mut Vec<u8>) {
        if self.in_message {
            self.encode_part(b"", true, encoded);
        }
        let mut close = Frame::close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }));
        close.header_mut().mask = Some([0; 4]);
        close.format(encoded).unwrap();
    }

    /// Returns whether the server has ended it.
    fn decode(&mut self, mut bytes: &[u8], lines: &mut Vec<u8>) -> bool {
        loop {
            if self.left_bytes > 0 {
                let count = usize::try_from(self.left_bytes).unwrap().min(bytes.len());
                let (content, rest) = bytes.split_at(count);
                lines.extend_from_slice(content);
                self.left_bytes -= count as u64;
                bytes = rest;
                if self.left_bytes > 0 {
                    return false;
                }
                lines.extend(self.is_final.then_some(b'\n'));
            }
            let before = self.header.len();
            self.header.extend(bytes.iter().take(14 - before));
            let mut cursor = Cursor::new(&self.header);
            let Some((header, left_bytes)) = FrameHeader::parse(&mut cursor).unwrap() else {
                return false;
            };
            bytes = &bytes[cursor.position() as usize - before..];
            self.header.clear();
            match header.opcode {
                OpCode::Control(Control::Close) => return true,
                OpCode::Data(_) => {}
                other @ OpCode::Control(_) => panic!("{other:?}"),
            }
            (self.left_bytes, self.is_final) = (left_bytes, header.is_final);
            if left_bytes == 0 {
                lines.extend(self.is_final.then_some(b'\n'));
            }
        }
    }
}
