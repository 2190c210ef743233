//! One client's socket: its time limits, and how it is closed so that the client hears the last word.

use std::ffi::c_int;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{self, RecvFlags, SendFlags};
use socket2::SockRef;

use crate::limits::{self, LEAST_WRITE_BYTES_PER_SECOND};
use crate::talk::conversation::Peer;

/// A client's socket, with time limits that cost a system call only when they change, or when the
/// client makes the server wait.
pub(crate) struct Socket<'a, F> {
    stream: &'a TcpStream,
    read_time: Option<Duration>,
    patience: Patience,
    sent_bytes: u64,
    is_draining: F,
}

impl<'a, F: Fn() -> bool> Socket<'a, F> {
    /// A write fails when the client takes nothing for `write_time`, or too little for longer.
    /// `is_draining` is [`Peer::is_draining`].
    pub(crate) fn new(stream: &'a TcpStream, write_time: Duration, is_draining: F) -> Self {
        // Replies are already gathered; waiting for more would only delay them. An error here or
        // below shows again at the first read.
        let _ = stream.set_nodelay(true);
        Socket {
            stream,
            read_time: None,
            patience: Patience::new(write_time),
            sent_bytes: 0,
            is_draining,
        }
    }

    /// Closing while input comes in resets the connection, and a reset may overtake the last reply.
    /// So end the output first and read on until the client ends its side, or has had its time for
    /// that: a while from when its kernel has everything, for which it has the time of a write.
    ///
    /// Not inlined: the buffer would be on the stack of every connection, all the time.
    #[inline(never)]
    pub(crate) fn linger(&mut self) {
        if self.stream.shutdown(Direction::Write).is_err() {
            return;
        }
        let began = Instant::now();
        let mut deadline = began + limits::LINGER_TIME;
        let mut sink = [0; 2 * 1024];
        loop {
            let now = Instant::now();
            let waiting_bytes = unacknowledged_bytes(self.stream).unwrap_or(0);
            if waiting_bytes > 0 && now - began < self.patience.whole {
                deadline = now + limits::LINGER_TIME;
            }
            let time_left = deadline.saturating_duration_since(now);
            if time_left.is_zero() || self.set_read_time(time_left).is_err() {
                return;
            }
            match self.read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                // A drain that begins now shortens the read, not the lingering.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
                {
                    self.read_time = None;
                }
                Err(_) => return,
            }
        }
    }
}

impl<F> Socket<'_, F> {
    pub(crate) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.stream).is_ok_and(|bytes| bytes > 0)
    }

    /// Drops what the kernel still wants to send.
    pub(crate) fn reset(&self) {
        let _ = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Waits until the kernel has room for more to send.
    ///
    /// It makes room in large steps, some 100 KiB each, so that there is none says little about the
    /// client: what counts is what its own kernel has acknowledged.
    fn wait_for_room(&mut self) -> io::Result<()> {
        self.patience.look(Duration::ZERO, self.taken_bytes()?);
        loop {
            let began = Instant::now();
            let time = Timespec::try_from(self.patience.next_look()).unwrap_or_default();
            let room = poll(&mut [PollFd::new(self.stream, PollFlags::OUT)], Some(&time));
            self.patience.look(began.elapsed(), self.taken_bytes()?);
            match room {
                Ok(0) | Err(Errno::INTR) if self.patience.is_over() => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                Ok(0) | Err(Errno::INTR) => {}
                // Or it is broken, which sending will tell.
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How much of what was sent has reached the client's kernel.
    fn taken_bytes(&self) -> io::Result<u64> {
        Ok(self
            .sent_bytes
            .saturating_sub(unacknowledged_bytes(self.stream)?))
    }
}

/// What the kernel has of a socket's output until the other side acknowledges it (`SIOCOUTQ`).
#[expect(unsafe_code, reason = "there is no safe interface to SIOCOUTQ")]
fn unacknowledged_bytes(socket: impl AsFd) -> io::Result<u64> {
    /// The same number as that of terminals.
    const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;
    // SAFETY: of a socket, `SIOCOUTQ` gives an int (tcp(7)).
    let bytes: c_int = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
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
    /// Waits, and looks at a clock, only where there is no room for anything.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match net::send(self.stream, bytes, flags) {
                Err(Errno::WOULDBLOCK) => self.wait_for_room()?,
                sent => {
                    let count = sent?;
                    self.sent_bytes += count as u64;
                    return Ok(count);
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a client may still make the server wait: time that passes while it waits, and that comes
/// back, up to the whole, with what the client takes. So a client is let go that takes nothing for
/// the whole time, or less than the least rate for longer; one that is faster never is, however long
/// it takes.
#[derive(Debug)]
struct Patience {
    whole: Duration,
    left: Duration,
    taken_bytes: u64,
}

impl Patience {
    fn new(whole: Duration) -> Patience {
        Patience {
            whole,
            left: whole,
            taken_bytes: 0,
        }
    }

    /// `waited` has passed since the last look, and the client has taken this much since it came.
    fn look(&mut self, waited: Duration, taken_bytes: u64) {
        let bytes = taken_bytes.saturating_sub(self.taken_bytes);
        self.taken_bytes = self.taken_bytes.max(taken_bytes);
        let earned = Duration::from_secs_f64(bytes as f64 / LEAST_WRITE_BYTES_PER_SECOND as f64);
        let left = self.left.saturating_add(earned).saturating_sub(waited);
        self.left = left.min(self.whole);
    }

    fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// How long to wait at most before it is time to look again: often enough that a client gets an
    /// eighth more than the whole time at most.
    fn next_look(&self) -> Duration {
        self.left.min(self.whole / 8).max(limits::TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Duration = Duration::from_secs(30);

    /// How long a client that takes `bytes` every `pause` is waited for, if not for a day.
    fn waited(bytes: u64, pause: Duration) -> Option<Duration> {
        let mut patience = Patience::new(WHOLE);
        let (mut time, mut taken_bytes) = (Duration::ZERO, 0);
        while time < Duration::from_secs(24 * 60 * 60) {
            time += pause;
            taken_bytes += bytes;
            patience.look(pause, taken_bytes);
            if patience.is_over() {
                return Some(time);
            }
        }
        None
    }

    #[test]
    fn a_client_is_let_go_for_taking_nothing_or_too_little_and_not_for_being_slow() {
        let second = Duration::from_secs(1);
        assert_eq!(waited(0, second), Some(WHOLE));
        let drip = waited(1, second).expect("a byte a second is no way to stay");
        assert!(drip < WHOLE + 2 * second, "{drip:?}");
        let late = waited(100, WHOLE - second).expect("nor are a few bytes, just in time");
        assert!(late < 2 * WHOLE, "{late:?}");

        assert_eq!(waited(LEAST_WRITE_BYTES_PER_SECOND, second), None);
        assert_eq!(waited(2500, second / 10), None);
        // Kernels make room for much at a time.
        assert_eq!(waited(400 * 1024, WHOLE / 2), None);
    }

    #[test]
    fn what_was_taken_in_time_is_no_credit_beyond_the_whole_time() {
        let mut patience = Patience::new(WHOLE);
        patience.look(Duration::from_secs(1), 1 << 40);
        assert_eq!(patience.left, WHOLE);
        patience.look(WHOLE, 1 << 40);
        assert!(patience.is_over());
    }

    #[test]
    fn the_kernel_tells_what_the_other_side_has_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("the same");
        let mut socket = Socket::new(&server, Duration::from_millis(50), || false);
        let block = [0; 64 * 1024];
        while socket.write(&block).is_ok() {}
        let waits = unacknowledged_bytes(&server).expect("a number");
        assert!(waits > 0 && waits < socket.sent_bytes, "{waits}");
        let taken = socket.taken_bytes().expect("a number");
        assert_eq!(taken, socket.sent_bytes - waits);
        drop(client);
    }
}
