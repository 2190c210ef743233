//! What rings when there is something to be heard by a thread that otherwise blocks on its socket.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::process::connections::Permit;
use crate::serve::socket::Socket;
use crate::talk::mailbox::Mailbox;

/// A descriptor that becomes readable with the first message, and when the connection has to end.
pub(crate) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// Of the mailbox of the connection with this permit.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub(crate) fn new(mailbox: &Mailbox, permit: &Permit) -> io::Result<Bell> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Arc::new(eventfd(0, flags)?);
        permit.set_bell(Arc::clone(&bell));
        mailbox.ring({
            let bell = Arc::clone(&bell);
            move || {
                let _ = rustix::io::write(&*bell, &1_u64.to_ne_bytes());
            }
        });
        Ok(Bell(bell))
    }

    /// Waits for it to ring, or for input, for this long at most. Returns whether there is input; or
    /// nothing, if neither came in time.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`], by a signal.
    pub(crate) fn wait(&self, socket: &Socket<'_>, time: Duration) -> io::Result<Option<bool>> {
        let mut fds = [
            PollFd::from_borrowed_fd(socket.descriptor(), PollFlags::IN | PollFlags::RDHUP),
            PollFd::new(&*self.0, PollFlags::IN),
        ];
        let time = Timespec::try_from(time).unwrap_or_default();
        if poll(&mut fds, Some(&time))? == 0 {
            return Ok(None);
        }
        if !fds[1].revents().is_empty() {
            match rustix::io::read(&*self.0, &mut [0_u8; 8]) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(!fds[0].revents().is_empty()))
    }
}
