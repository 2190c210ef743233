//! Tells a server to end, or to hand over to another process, and wakes whoever has to know.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::process::connections::Connections;
use crate::process::interrupt;

/// Ends a server. Clones end the same one.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handed_over: AtomicBool,
    connections: Arc<Connections>,
    /// Becomes readable, for good, when nobody is accepted any more: `accept` waits for it too.
    wake: OwnedFd,
}

impl Shutdown {
    /// Nobody is connected and nothing has begun to end.
    ///
    /// # Errors
    /// The process is out of descriptors, or may handle no signals.
    pub fn new() -> io::Result<Shutdown> {
        interrupt::prepare()?;
        Ok(Shutdown(Arc::new(Shared {
            handed_over: AtomicBool::new(false),
            connections: Arc::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
        })))
    }

    /// Begins to end the server: it accepts nobody any more, and each connection closes when it
    /// has answered what it has read. Doing it again changes nothing.
    pub fn drain(&self) {
        self.0.connections.end_all();
        self.wake_up();
    }

    /// Stops accepting, since another process does; the connections that are open go on.
    pub fn hand_over(&self) {
        self.0.handed_over.store(true, Ordering::SeqCst);
        self.wake_up();
    }

    fn wake_up(&self) {
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    /// Whether [`Shutdown::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.0.connections.are_ending()
    }

    /// Whether the server takes new connections.
    pub fn is_accepting(&self) -> bool {
        !self.is_draining() && !self.0.handed_over.load(Ordering::Relaxed)
    }

    /// Readable once nobody is accepted any more.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// Waits until nobody is accepted any more, until there is something to read from one of
    /// `sources`, or for `time`. Returns the numbers of those that have something.
    pub(crate) fn wait(
        &self,
        sources: &[BorrowedFd<'_>],
        time: Option<Duration>,
    ) -> io::Result<Vec<usize>> {
        let sources = sources
            .iter()
            .map(|source| PollFd::new(source, PollFlags::IN));
        let wake = PollFd::new(&self.0.wake, PollFlags::IN);
        let mut waits: Vec<_> = sources.chain([wake]).collect();
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut waits, time.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        waits.pop();
        let ready = waits.iter().enumerate();
        let ready = ready.filter(|(_, wait)| !wait.revents().is_empty());
        Ok(ready.map(|(number, _)| number).collect())
    }

    /// Those that it ends.
    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.0.connections
    }
}
