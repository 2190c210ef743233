//! A server from its start to its end: it has clients let in until it is to end, and then drains.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::process::connections::Connections;
use crate::process::service_manager;
use crate::process::shutdown::Shutdown;
use crate::process::takeover::TakeoverSocket;
use crate::sandbox::host::Host;
use crate::serve::admission::Door;
use crate::serve::blocking::Blocking;
use crate::serve::scheduling::Scheduling;
use crate::serve::seats::Seats;
use crate::serve::service::Service;

/// How a drain ended, and the server with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every connection was closed in order.
    InTime,
    /// This many were still open after the drain's time, and were cut.
    Cut(usize),
}

/// How a process serves all its services.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Which threads serve the connections.
    pub scheduling: Scheduling,
    /// How often the service manager has to hear that this server is alive, if at all.
    pub watchdog_pause: Option<Duration>,
}

/// What is served, which may change while it is.
#[derive(Clone)]
pub struct Offer(Arc<Offered>);

struct Offered {
    /// What has changed since that was last looked at.
    change: Mutex<Change>,
    /// That is so now.
    made: Condvar,
    /// Readable when something has.
    wake: OwnedFd,
}

#[derive(Default)]
struct Change {
    doors: Option<Vec<Door>>,
    ended: Vec<Arc<Service>>,
    /// It has not been made yet.
    is_pending: bool,
    /// Nobody is let in any more.
    is_closed: bool,
}

impl Offer {
    /// Of nothing.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Offer> {
        Ok(Offer(Arc::new(Offered {
            change: Mutex::default(),
            made: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })))
    }

    /// Clients are let in at these doors from now on, and at no others; the connections of the services
    /// that have ended are drained. Nothing happens when nobody is let in any more.
    pub fn change(&self, doors: Vec<Door>, ended: Vec<Arc<Service>>) {
        let mut change = self.lock();
        if change.is_closed {
            return;
        }
        change.doors = Some(doors);
        change.ended.extend(ended);
        change.is_pending = true;
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    /// Waits until clients are let in as was said last, or the server lets in nobody any more.
    pub fn wait(&self) {
        let made = self
            .0
            .made
            .wait_while(self.lock(), |change| change.is_pending);
        drop(made);
    }

    fn take(&self) -> (Option<Vec<Door>>, Vec<Arc<Service>>) {
        let _ = rustix::io::read(&self.0.wake, &mut [0_u8; 8]);
        let mut change = self.lock();
        (change.doors.take(), mem::take(&mut change.ended))
    }

    /// Nobody is let in any more.
    fn close(&self) {
        let mut change = self.lock();
        *change = Change {
            is_closed: true,
            ..Change::default()
        };
        self.0.made.notify_all();
    }

    /// What was taken is so now.
    fn has_made(&self) {
        let mut change = self.lock();
        change.is_pending = change.doors.is_some();
        self.0.made.notify_all();
    }

    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Change> {
        let change = self.0.change.lock();
        change.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets clients in at what is on offer until `shutdown` begins, then drains. Through `takeover` the
/// listeners come from the process before this one, and go to the next.
///
/// # Errors
/// A listener is broken. No fault of a client, of the guest or of the network ends the server,
/// and neither does a lack of descriptors.
pub fn run(
    offer: &Offer,
    takeover: Option<TakeoverSocket>,
    host: &Host,
    manner: Manner,
    shutdown: &Shutdown,
) -> io::Result<Drained> {
    let driver = match manner.scheduling {
        Scheduling::PerConnection => {
            Driver::Blocking(Blocking::new(host.limits.connections, shutdown))
        }
        Scheduling::Shared(count) => Driver::Seats(Seats::start(count.get(), host, shutdown)?),
    };
    let mut server = Server {
        drain_time: host.limits.drain_time,
        shutdown,
        offer,
        driver,
        takeover: None,
        ending: Vec::new(),
        watchdog: Watchdog::new(manner.watchdog_pause),
    };
    server.change();
    server.takeover = takeover.map(TakeoverSocket::start).transpose()?;
    service_manager::ready();
    while shutdown.is_accepting() {
        server.accept()?;
    }
    server.driver.change(Vec::new());
    // These have the listeners too.
    server.takeover = None;
    offer.close();
    Ok(server.end())
}

struct Server<'a> {
    drain_time: Duration,
    shutdown: &'a Shutdown,
    offer: &'a Offer,
    driver: Driver,
    takeover: Option<TakeoverSocket>,
    /// Services that are served no more, and when their connections are cut.
    ending: Vec<(Instant, Arc<Service>)>,
    watchdog: Watchdog,
}

enum Driver {
    Blocking(Blocking),
    Seats(Seats),
}

impl Driver {
    /// Whether it does its work.
    fn is_alive(&mut self) -> bool {
        match self {
            // The thread that asks is the one that accepts.
            Driver::Blocking(_) => true,
            Driver::Seats(seats) => seats.are_alive(),
        }
    }

    /// Lets clients in at these doors from now on, and at no others.
    fn change(&mut self, doors: Vec<Door>) {
        match self {
            Driver::Blocking(blocking) => blocking.change(doors),
            Driver::Seats(seats) => seats.change(doors),
        }
    }

    /// How many clients have been let in.
    fn count(&self) -> u64 {
        match self {
            Driver::Blocking(blocking) => blocking.count(),
            Driver::Seats(seats) => seats.count(),
        }
    }
}

/// Tells the service manager from time to time that the server is alive.
struct Watchdog {
    pause: Option<Duration>,
    told: Instant,
}

impl Watchdog {
    fn new(pause: Option<Duration>) -> Watchdog {
        Watchdog {
            pause,
            told: Instant::now(),
        }
    }

    /// Tells it if it is time to, and true. Returns how long it is until the next time.
    fn tell(&mut self, is_alive: impl FnOnce() -> bool) -> Option<Duration> {
        let pause = self.pause?;
        let since = self.told.elapsed();
        if since < pause {
            return Some(pause - since);
        }
        if is_alive() {
            service_manager::alive();
        }
        self.told = Instant::now();
        Some(pause)
    }
}

impl Server<'_> {
    /// Waits for clients and lets them in, or has that done, for a while.
    fn accept(&mut self) -> io::Result<()> {
        let time = self.watchdog.tell(|| self.driver.is_alive());
        let time = self.cut_ended().into_iter().chain(time).min();
        let changes = self.offer.0.wake.as_fd();
        let ready = match &mut self.driver {
            Driver::Blocking(blocking) => {
                let (doors, listeners): (Vec<_>, Vec<_>) = blocking.listeners().unzip();
                let sources: Vec<_> = [changes].into_iter().chain(listeners).collect();
                let ready = self.shutdown.wait(&sources, time)?;
                for &source in ready.iter().filter(|&&source| source > 0) {
                    blocking.accept_at(doors[source - 1], self.shutdown)?;
                }
                ready
            }
            Driver::Seats(seats) => {
                let ready = self.shutdown.wait(&[changes, seats.attention()], time)?;
                seats.error().map_or(Ok(()), Err)?;
                ready
            }
        };
        if ready.contains(&0) {
            self.change();
        }
        Ok(())
    }

    /// Offers what is to be offered now.
    fn change(&mut self) {
        let (doors, ended) = self.offer.take();
        if let Some(doors) = doors {
            if let Some(takeover) = &self.takeover {
                takeover.change(doors.iter().map(Door::listener).collect());
            }
            self.driver.change(doors);
        }
        for service in ended {
            tracing::info!(
                service = service.runtime.service(),
                "ending: waiting for its messages in progress"
            );
            service.group.end();
            self.ending
                .push((Instant::now() + self.drain_time, service));
        }
        self.offer.has_made();
    }

    /// Cuts the connections of services that have ended long ago. Returns how long it is until the next
    /// time.
    fn cut_ended(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.ending.retain(|(when, service)| {
            if now < *when {
                return true;
            }
            let connections = service.group.cut();
            if connections > 0 {
                let service = service.runtime.service();
                tracing::error!(service, connections, "cut: they did not end in time");
            }
            false
        });
        self.ending.iter().map(|(when, _)| *when - now).min()
    }

    fn end(mut self) -> Drained {
        let time = self.drain_time;
        if !self.shutdown.is_draining() {
            // Another process accepts, so there is no hurry: short conversations end by themselves.
            tracing::info!("handed over: letting the open connections finish");
            self.wait_until(time, |connections, time| {
                match connections.wait_until_closed_or_ending(time) {
                    _ if connections.are_ending() => 0,
                    left => left,
                }
            });
        }
        tracing::info!("shutting down: waiting for the messages in progress");
        service_manager::stopping();
        self.shutdown.drain();
        self.wait_until(time, Connections::wait_until_closed);
        match self.shutdown.connections().cut() {
            0 => {
                tracing::info!(served = self.driver.count(), "stopped");
                Drained::InTime
            }
            left => {
                tracing::error!(connections = left, "cut: they did not end in time");
                Drained::Cut(left)
            }
        }
    }

    /// Has `wait` wait for as long as something is left, or for `time`.
    fn wait_until(&mut self, time: Duration, wait: fn(&Connections, Duration) -> usize) {
        let deadline = Instant::now() + time;
        loop {
            let time_left = deadline.saturating_duration_since(Instant::now());
            let pause = self.watchdog.tell(|| self.driver.is_alive());
            let pause = pause.unwrap_or(time_left);
            let left = wait(self.shutdown.connections(), pause.min(time_left));
            if left == 0 || time_left.is_zero() {
                return;
            }
        }
    }
}
