//! What has happened to one thread's connections, and waiting for it.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags as Flags;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::pace::Pace;

/// A thread that sleeps is woken this much late, so it does not sleep through the last of a wait.
const WAKE_TIME: Duration = Duration::from_micros(100);

/// The events of one thread's connections.
pub(crate) struct Events {
    queue: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Events {
    /// Room for this many at once.
    pub(crate) fn new(room: usize) -> io::Result<Events> {
        Ok(Events {
            queue: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(room),
        })
    }

    /// Watches a socket until it is closed.
    pub(crate) fn add(&self, socket: impl AsFd, number: usize, flags: Flags) -> io::Result<()> {
        let number = epoll::EventData::new_u64(number as u64);
        Ok(epoll::add(&self.queue, socket, number, flags)?)
    }

    /// Watches it for something else.
    pub(crate) fn change(&self, socket: impl AsFd, number: usize, flags: Flags) -> io::Result<()> {
        let number = epoll::EventData::new_u64(number as u64);
        Ok(epoll::modify(&self.queue, socket, number, flags)?)
    }

    /// Waits for events until this moment, and returns how many came.
    pub(crate) fn wait(&mut self, until: Instant) -> io::Result<usize> {
        let left = until.saturating_duration_since(Instant::now());
        self.look(Timespec::try_from(left).ok())
    }

    /// The same, at a fixed pace precisely.
    pub(crate) fn wait_at(&mut self, pace: Pace, until: Instant) -> io::Result<usize> {
        if !pace.is_fixed() {
            return self.wait(until);
        }
        let left = until.saturating_duration_since(Instant::now());
        let left = left.saturating_sub(WAKE_TIME);
        if !left.is_zero() {
            // Not by epoll, whose time has milliseconds on older kernels.
            let queue = PollFd::new(&self.queue, PollFlags::IN);
            interruptible(poll(&mut [queue], Timespec::try_from(left).ok().as_ref()))?;
        }
        self.look(Some(Timespec::default()))
    }

    /// Waits for an event, however long it takes, and returns how many came.
    pub(crate) fn wait_for_any(&mut self) -> io::Result<usize> {
        self.look(None)
    }

    fn look(&mut self, patience: Option<Timespec>) -> io::Result<usize> {
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        interruptible(epoll::wait(&self.queue, room, patience.as_ref()))
    }

    /// One of the events: whose it is.
    pub(crate) fn number(&self, event: usize) -> usize {
        self.events[event].data.u64() as usize
    }
}

/// A signal is no event.
fn interruptible(result: rustix::io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(Errno::INTR) => Ok(0),
        result => Ok(result?),
    }
}
