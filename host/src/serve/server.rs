//! A server from its start to its end: it has clients let in until it is to end, and then drains.

use std::io;
use std::time::{Duration, Instant};

use crate::process::connections::Connections;
use crate::process::service_manager;
use crate::process::shutdown::Shutdown;
use crate::process::takeover::TakeoverSocket;
use crate::sandbox::host::Host;
use crate::serve::admission::{Admission, Door};
use crate::serve::blocking::Blocking;
use crate::serve::scheduling::Scheduling;
use crate::serve::seats::Seats;

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

/// Lets clients in at `doors` until `shutdown` begins, then drains. Through `takeover` the listener comes
/// from the process before this one, and goes to the next.
///
/// # Errors
/// A listener is broken. No fault of a client, of the guest or of the network ends the server,
/// and neither does a lack of descriptors.
pub fn run(
    doors: Vec<Door>,
    takeover: Option<TakeoverSocket>,
    host: &Host,
    manner: Manner,
    shutdown: &Shutdown,
) -> io::Result<Drained> {
    let admission = Admission::new(doors);
    let driver = match manner.scheduling {
        Scheduling::PerConnection => {
            Driver::Blocking(Blocking::new(admission, host.limits.connections))
        }
        Scheduling::Shared(count) => {
            Driver::Seats(Seats::start(count.get(), admission, host, shutdown)?)
        }
    };
    let mut server = Server {
        drain_time: host.limits.drain_time,
        shutdown,
        driver,
        watchdog: Watchdog::new(manner.watchdog_pause),
    };
    let takeover = takeover.map(TakeoverSocket::start).transpose()?;
    service_manager::ready();
    while shutdown.is_accepting() {
        server.accept()?;
    }
    server.driver.stop_accepting();
    // It has the listener too.
    drop(takeover);
    Ok(server.end())
}

struct Server<'a> {
    drain_time: Duration,
    shutdown: &'a Shutdown,
    driver: Driver,
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

    /// Nobody is let in any more.
    fn stop_accepting(&mut self) {
        match self {
            Driver::Blocking(blocking) => blocking.stop_accepting(),
            Driver::Seats(seats) => seats.stop_accepting(),
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
        match &mut self.driver {
            Driver::Blocking(blocking) => {
                let doors = self.shutdown.wait(&blocking.listeners(), time)?;
                for door in doors {
                    blocking.accept_at(door, self.shutdown)?;
                }
                Ok(())
            }
            Driver::Seats(seats) => {
                self.shutdown.wait(&[seats.attention()], time)?;
                seats.error().map_or(Ok(()), Err)
            }
        }
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
