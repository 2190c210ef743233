//! One client from accept to close: its socket, its session, and the log of both.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use socket2::SockRef;

use crate::conversation::{Conversation, End, Peer};
use crate::limits;
use crate::server::{Client, Service};
use crate::session::{GuestError, Session};
use crate::shutdown::Permit;
use crate::transcript::Recorder;
use crate::versions::Place;

/// Serves one client to the end, and logs the beginning and the end of it.
pub(crate) fn serve(permit: &Permit, place: &Place, client: Client, service: &Service) {
    let id = client.id;
    let version = &*place.version;
    tracing::info!(connection = id, peer = %client.peer, version = version.number, "accepted");
    let limits = &service.runtime.limits;
    let is_draining = || permit.is_draining() || version.is_retired();
    let socket = Socket::new(permit.stream(), limits.write_time, is_draining);
    let mut conversation = Conversation::new(socket, service.framing, limits);
    let start = || Session::start(&version.sandbox, client);
    let recordings = service.recordings.as_ref();
    // A panic would be a bug of ours. It must not cost the client its answer, or the log its line.
    let run = || match recordings.and_then(|all| all.begin(client, version)) {
        None => conversation.run(start),
        Some(file) => conversation.run(|| Recorder::start(file, start)),
    };
    let (Ok(end) | Err(end)) = panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or(Err(End::GuestFailed(GuestError::Panic)));
    if matches!(&end, End::GuestFailed(error) if !matches!(error, GuestError::Panic)) {
        place.fail();
    }

    let listening = conversation.say_goodbye(&end);
    let unread = conversation.pending_bytes() > 0;
    let socket = &mut conversation.peer;
    match end {
        // Nothing that waits in the kernel's buffer is going to be read.
        End::NotReading => socket.reset(),
        _ if listening && (unread || socket.has_unread()) => socket.linger(),
        _ => {}
    }

    let reason = match &end {
        End::ShuttingDown if !permit.is_draining() => {
            "its version of the guest was replaced".to_owned()
        }
        _ => end.to_string(),
    };
    let Conversation {
        lines,
        bytes_in,
        bytes_out,
        ..
    } = conversation;
    if let End::GuestFailed(error) = &end {
        tracing::warn!(
            connection = id, peer = %client.peer, version = version.number, lines, bytes_in, bytes_out,
            %reason, %error, "closed"
        );
    } else {
        tracing::info!(
            connection = id, peer = %client.peer, version = version.number, lines, bytes_in, bytes_out,
            %reason, "closed"
        );
    }
}

/// A client's socket, with time limits that cost a system call only when they change.
pub(crate) struct Socket<'a, F> {
    stream: &'a TcpStream,
    read_time: Option<Duration>,
    write_time: Duration,
    is_draining: F,
}

impl<'a, F: Fn() -> bool> Socket<'a, F> {
    /// A write that takes longer than `write_time` fails. `is_draining` is [`Peer::is_draining`].
    pub(crate) fn new(stream: &'a TcpStream, write_time: Duration, is_draining: F) -> Self {
        // Replies are already gathered; waiting for more would only delay them. An error here or
        // below shows again at the first read.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(write_time));
        Socket {
            stream,
            read_time: None,
            write_time,
            is_draining,
        }
    }

    fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.stream).is_ok_and(|bytes| bytes > 0)
    }

    /// Closing with unread input resets the connection, and a reset may overtake the last reply.
    /// So end the output first and read on, for a while, until the client ends its side.
    ///
    /// Not inlined: the buffer would be on the stack of every connection, all the time.
    #[inline(never)]
    fn linger(&mut self) {
        let deadline = Instant::now() + limits::LINGER_TIME;
        if self.stream.shutdown(Direction::Write).is_err() {
            return;
        }
        let mut sink = [0; 2 * 1024];
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            if time_left.is_zero() || self.set_read_time(time_left).is_err() {
                return;
            }
            match self.read(&mut sink) {
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

impl<F: Fn() -> bool> Peer for Socket<'_, F> {
    fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        if self.read_time != Some(time) {
            // The kernel takes 0 for no limit.
            self.stream
                .set_read_timeout(Some(time.max(Duration::from_millis(1))))?;
            self.read_time = Some(time);
        }
        Ok(())
    }

    fn is_draining(&self) -> bool {
        (self.is_draining)()
    }
}

impl<F> Read for Socket<'_, F> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let (count, _) = net::recv(self.stream, room, RecvFlags::empty())?;
        Ok(count)
    }
}

impl<F> Write for Socket<'_, F> {
    /// Waits, and looks at a clock, only where there is no room for anything. The kernel then takes a
    /// write only in part when it has waited for its whole time, or when it was interrupted, which is
    /// no reason to give up.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match net::send(
            self.stream,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Err(Errno::WOULDBLOCK) => {}
            sent => return Ok(sent?),
        }
        let started = Instant::now();
        let count = net::send(self.stream, bytes, SendFlags::NOSIGNAL)?;
        if count < bytes.len() && started.elapsed() >= self.write_time {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
