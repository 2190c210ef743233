//! One client's socket: waited for, or not, as its driver has it.

use std::ffi::c_int;
#[cfg(doc)]
use std::io::ErrorKind;
use std::io::{self, IoSlice};
use std::net::Shutdown as Direction;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags};

/// A client's socket, with a time limit that costs a system call only when it changes.
pub struct Socket<'a> {
    stream: &'a socket2::Socket,
    read_time: Option<Duration>,
}

impl<'a> Socket<'a> {
    /// A socket that blocks.
    pub fn new(stream: &'a socket2::Socket) -> Socket<'a> {
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

    /// To be polled.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Somebody else may have set it.
    pub(crate) fn forget_read_time(&mut self) {
        self.read_time = None;
    }

    /// Waits for bytes; 0 are the end of input.
    pub(crate) fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let (count, _) = net::recv(self.stream, room, RecvFlags::empty())?;
        Ok(count)
    }

    /// Reads what there is, or fails with [`ErrorKind::WouldBlock`].
    pub(crate) fn receive_now(&self, room: &mut [u8]) -> io::Result<usize> {
        let (count, _) = net::recv(self.stream, room, RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    /// Sends what there is room for, or fails with [`ErrorKind::WouldBlock`].
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(net::send(self.stream, bytes, flags)?)
    }

    /// The same of several pieces, one after the other.
    pub(crate) fn send_gathered(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [piece] = pieces {
            return self.send(piece);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        Ok(net::sendmsg(self.stream, pieces, &mut nothing, flags)?)
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
        let _ = self.stream.set_linger(Some(Duration::ZERO));
    }

    /// Ends the output, and takes what the client has already sent: unread bytes would turn the close into
    /// a reset, and the reset could overtake the last that was sent.
    pub(crate) fn turn_away(&self) {
        if self.end_output().is_ok() {
            let _taken = self.receive_now(&mut [0; 4096]);
        }
    }

    /// Nothing more is sent.
    pub(crate) fn end_output(&self) -> io::Result<()> {
        self.stream.shutdown(Direction::Write)
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
        let client = std::net::TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("the same");
        let server = server.into();
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
