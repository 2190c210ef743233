//! One client's socket, as a thread that blocks on it uses it: its time limits, and how it is closed
//! so that the client hears the last word.

use std::ffi::c_int;
use std::io::{self, ErrorKind};
use std::net::{Shutdown as Direction, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{self, RecvFlags, SendFlags};
use socket2::SockRef;

use crate::limits::wire::LINGER_TIME;

/// A client's socket, with a time limit that costs a system call only when it changes.
pub struct Socket<'a> {
    stream: &'a TcpStream,
    read_time: Option<Duration>,
}

impl<'a> Socket<'a> {
    /// A socket that blocks.
    pub fn new(stream: &'a TcpStream) -> Socket<'a> {
        // Replies are already gathered; waiting for more would only delay them. An error here shows
        // again at the first read.
        let _ = stream.set_nodelay(true);
        Socket {
            stream,
            read_time: None,
        }
    }

    /// Reads from now on give up after `time` with [`ErrorKind::WouldBlock`].
    pub(crate) fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        if self.read_time != Some(time) {
            // The kernel takes 0 for no limit.
            self.stream
                .set_read_timeout(Some(time.max(Duration::from_millis(1))))?;
            self.read_time = Some(time);
        }
        Ok(())
    }

    /// Waits for bytes; 0 are the end of input.
    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let (count, _) = net::recv(self.stream, room, RecvFlags::empty())?;
        Ok(count)
    }

    /// Sends what there is room for, or fails with [`ErrorKind::WouldBlock`].
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(net::send(self.stream, bytes, flags)?)
    }

    /// Waits until the kernel has room for more to send, for this long at most. Returns whether it
    /// has, or is broken, which sending will tell.
    pub(crate) fn wait_for_room(&self, within: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(within).unwrap_or_default();
        match poll(&mut [PollFd::new(self.stream, PollFlags::OUT)], Some(&time)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// What the kernel has of the output until the client's kernel acknowledges it.
    pub(crate) fn unacknowledged_bytes(&self) -> io::Result<u64> {
        unacknowledged_bytes(self.stream)
    }

    pub(crate) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(self.stream).is_ok_and(|bytes| bytes > 0)
    }

    /// Drops what the kernel still wants to send.
    pub(crate) fn reset(&self) {
        let _ = SockRef::from(self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Closing while input comes in resets the connection, and a reset may overtake the last reply.
    /// So end the output first and read on until the client ends its side, or has had its time for
    /// that: a while from when its kernel has everything, for which it has the time of a write.
    ///
    /// Not inlined: the buffer would be on the stack of every connection, all the time.
    #[inline(never)]
    pub(crate) fn linger(&mut self, write_time: Duration) {
        if self.stream.shutdown(Direction::Write).is_err() {
            return;
        }
        let began = Instant::now();
        let mut deadline = began + LINGER_TIME;
        let mut sink = [0; 2 * 1024];
        loop {
            let now = Instant::now();
            let waiting_bytes = self.unacknowledged_bytes().unwrap_or(0);
            if waiting_bytes > 0 && now - began < write_time {
                deadline = now + LINGER_TIME;
            }
            let time_left = deadline.saturating_duration_since(now);
            if time_left.is_zero() || self.set_read_time(time_left).is_err() {
                return;
            }
            match self.receive(&mut sink) {
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

/// What the kernel has of a socket's output until the other side acknowledges it (`SIOCOUTQ`).
#[expect(unsafe_code, reason = "there is no safe interface to SIOCOUTQ")]
fn unacknowledged_bytes(socket: impl AsFd) -> io::Result<u64> {
    /// The same number as that of terminals.
    const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;
    // SAFETY: of a socket, `SIOCOUTQ` gives an int (tcp(7)).
    let bytes: c_int = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_the_other_side_has_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("the same");
        let socket = Socket::new(&server);
        let block = [0; 64 * 1024];
        let mut sent_bytes = 0;
        while let Ok(count) = socket.send(&block) {
            sent_bytes += count as u64;
        }
        let waits = socket.unacknowledged_bytes().expect("a number");
        assert!(waits > 0 && waits < sent_bytes, "{waits}");
        drop(client);
    }
}
