//! One connection from its greeting to its end. The loop of the server: read messages, ask the
//! session, write the replies.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::framing::{Framing, Reader, Waiting, Writer};
use crate::limits::{self, Limits};
use crate::sandbox::Sandbox;
use crate::server::Client;
use crate::session::{GuestError, Outcome, Session};
use crate::shutdown::Permit;

/// Serves one client to the end, and logs the beginning and the end of it.
pub(crate) fn serve(permit: &Permit, client: Client, sandbox: &Sandbox, framing: Framing) {
    let id = client.id;
    tracing::info!(connection = id, peer = %client.peer, "accepted");
    let mut connection = Connection {
        permit,
        limits: &sandbox.limits,
        socket: Socket::new(permit.stream(), sandbox.limits.write_time),
        reader: Reader::new(framing, sandbox.limits.line_bytes),
        writer: Writer::default(),
        line_started: None,
        lines: 0,
        bytes_in: 0,
        bytes_out: 0,
    };
    let (Ok(end) | Err(end)) = connection.converse(sandbox, client);
    connection.close(&end);
    let Connection {
        lines,
        bytes_in,
        bytes_out,
        ..
    } = connection;
    match end {
        End::GuestFailed(error) => tracing::warn!(
            connection = id, peer = %client.peer, lines, bytes_in, bytes_out,
            reason = "the guest failed", %error, "closed"
        ),
        end => tracing::info!(
            connection = id, peer = %client.peer, lines, bytes_in, bytes_out, reason = %end,
            "closed"
        ),
    }
}

struct Connection<'a> {
    permit: &'a Permit,
    limits: &'a Limits,
    socket: Socket<'a>,
    reader: Reader,
    writer: Writer,
    /// When the line that is being received began.
    line_started: Option<Instant>,
    lines: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    ClientClosed,
    GuestClosed,
    GuestFailed(GuestError),
    TimedOut,
    NotReading,
    ShuttingDown,
    Broken(io::Error),
}

impl Connection<'_> {
    /// Both results are the end; the error is the way out of the middle.
    fn converse(&mut self, sandbox: &Sandbox, client: Client) -> Result<End, End> {
        let mut session = Session::start(sandbox, client)?;
        if let Some(text) = session.greeting()? {
            self.writer.push(&text, self.reader.ending());
        }
        loop {
            self.flush()?;
            let received = self.receive()?;
            if self.answer(&mut session)? {
                return Ok(End::GuestClosed);
            }
            if received == 0 {
                self.flush()?;
                return Ok(End::ClientClosed);
            }
        }
    }

    /// Reads until there may be a message; 0 bytes are the end of input.
    fn receive(&mut self) -> Result<usize, End> {
        loop {
            if self.permit.is_draining() {
                return Err(End::ShuttingDown);
            }
            let waiting = self.reader.waiting();
            let time_left = self.time_left(waiting);
            if time_left.is_zero() {
                return Err(End::TimedOut);
            }
            let patience = match waiting {
                Waiting::ForFraming => time_left.min(limits::SETTLE_TIME),
                Waiting::ForMessage | Waiting::ForRestOfLine => time_left,
            };
            self.socket.set_read_time(patience)?;
            match self.reader.fill(&mut self.socket) {
                // The drain ends the input of every connection.
                Ok(0) if self.permit.is_draining() => return Err(End::ShuttingDown),
                Ok(count) => {
                    self.bytes_in += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
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
                let started = *self.line_started.get_or_insert_with(Instant::now);
                self.limits.line_time.saturating_sub(started.elapsed())
            }
        }
    }

    /// Answers every message that was received, and says whether the guest has closed.
    fn answer(&mut self, session: &mut Session<'_>) -> Result<bool, End> {
        let mut last_flush = session.clock();
        while let Some(message) = self.reader.next_message() {
            self.lines += 1;
            self.line_started = None;
            let ending = message.ending;
            let outcome = match message.text {
                Ok(line) => session.handle_line(line)?,
                Err(refusal) => Outcome::Reply(refusal.to_string()),
            };
            match outcome {
                Outcome::Reply(text) => self.writer.push(&text, ending),
                Outcome::NoReply => {}
                Outcome::Close(text) => {
                    if let Some(text) = text {
                        self.writer.push(&text, ending);
                    }
                    return Ok(true);
                }
            }
            // The replies to one read leave in one write, unless they grow large or the guest
            // takes its time.
            let now = session.clock();
            if self.writer.is_full() || now - last_flush > limits::BATCH_TIME {
                self.flush()?;
                last_flush = now;
            }
        }
        Ok(false)
    }

    fn flush(&mut self) -> Result<(), End> {
        match self.writer.flush(&mut self.socket) {
            Ok(count) => {
                self.bytes_out += count as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(End::NotReading),
            Err(error) => Err(error.into()),
        }
    }

    /// Says the last word, and makes sure that it arrives.
    fn close(&mut self, end: &End) {
        if let Some(text) = end.last_word() {
            self.writer.push(text, self.reader.ending());
        }
        match end {
            End::Broken(_) => {}
            // Nothing that waits in the kernel's buffer is going to be read.
            End::NotReading => self.socket.reset(),
            _ => {
                let sent = self.flush();
                if sent.is_ok() && (self.reader.pending_bytes() > 0 || self.socket.has_unread()) {
                    self.socket.linger();
                }
            }
        }
    }
}

impl End {
    /// What the shim itself has to say about it.
    fn last_word(&self) -> Option<&'static str> {
        match self {
            End::GuestFailed(_) => Some("error: the guest failed"),
            End::TimedOut => Some("error: timed out waiting for a line"),
            End::ShuttingDown => Some("error: server is shutting down"),
            End::ClientClosed | End::GuestClosed | End::NotReading | End::Broken(_) => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ClientClosed => f.write_str("the client closed"),
            End::GuestClosed => f.write_str("the guest closed"),
            End::GuestFailed(error) => write!(f, "the guest failed: {error}"),
            End::TimedOut => f.write_str("timed out waiting for a line"),
            End::NotReading => f.write_str("the client does not read"),
            End::ShuttingDown => f.write_str("the server is shutting down"),
            End::Broken(error) => write!(f, "the connection broke: {error}"),
        }
    }
}

impl From<GuestError> for End {
    fn from(error: GuestError) -> End {
        End::GuestFailed(error)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Broken(error)
    }
}

/// A client's socket, with time limits that cost a system call only when they change.
struct Socket<'a> {
    stream: &'a TcpStream,
    read_time: Option<Duration>,
    write_time: Duration,
    write_stalled: Option<Instant>,
}

impl<'a> Socket<'a> {
    fn new(stream: &'a TcpStream, write_time: Duration) -> Socket<'a> {
        // Replies are already gathered; waiting for more would only delay them. An error here or
        // below shows again at the first read.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(write_time));
        Socket {
            stream,
            read_time: None,
            write_time,
            write_stalled: None,
        }
    }

    fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        if self.read_time != Some(time) {
            // The kernel takes 0 for no limit.
            self.stream
                .set_read_timeout(Some(time.max(Duration::from_millis(1))))?;
            self.read_time = Some(time);
        }
        Ok(())
    }

    fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.stream).is_ok_and(|bytes| bytes > 0)
    }

    /// Closing with unread input resets the connection, and a reset may overtake the last reply.
    /// So end the output first and read on, for a while, until the client ends its side.
    fn linger(&mut self) {
        let deadline = Instant::now() + limits::LINGER_TIME;
        if self.stream.shutdown(Direction::Write).is_err() {
            return;
        }
        let mut sink = [0; 16 * 1024];
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            if time_left.is_zero() || self.set_read_time(time_left).is_err() {
                return;
            }
            match self.stream.read(&mut sink) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Drops what the kernel still wants to send.
    fn reset(&self) {
        let _ = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
    }
}

impl Read for Socket<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.read(room)
    }
}

impl Write for Socket<'_> {
    /// The kernel takes a write only in part when it was interrupted, or has waited for its whole
    /// time. Which of the two only a clock could tell; it starts when that first happens.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        if count == bytes.len() {
            self.write_stalled = None;
        } else {
            let stalled = *self.write_stalled.get_or_insert_with(Instant::now);
            if stalled.elapsed() >= self.write_time {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
