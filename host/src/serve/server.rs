//! The listener: accepts, takes a permit for each connection and hands it to a thread.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::limits;
use crate::process::connections::Connections;
use crate::process::service_manager;
use crate::process::shutdown::Shutdown;
use crate::process::takeover::TakeoverSocket;
use crate::serve::admission::{Accepted, Admission};
use crate::serve::blocking;
use crate::serve::connection::Admitted;
use crate::serve::service::Service;
use crate::serve::threads::Threads;

/// How a drain ended, and the server with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every connection was closed in order.
    InTime,
    /// This many were still open after the drain's time, and were cut.
    Cut(usize),
}

/// Serves on `listener` until `shutdown` begins, then drains. Through `takeover` the listener comes from
/// the process before this one, and goes to the next.
///
/// # Errors
/// The listener is broken. No fault of a client, of the guest or of the network ends the server,
/// and neither does a lack of descriptors.
pub fn run(
    listener: TcpListener,
    takeover: Option<TakeoverSocket>,
    service: Service,
    shutdown: &Shutdown,
) -> io::Result<Drained> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let version = service.versions.current();
    tracing::info!(%address, version = version.number, sha256 = %version.digest, "waiting for connections");
    version.log_room();
    drop(version);
    let service = Arc::new(service);
    let connections = Arc::clone(shutdown.connections());
    let admission = Admission::new(address, Arc::clone(&service), connections);
    let mut server = Server {
        shutdown,
        threads: Threads::new(
            service.runtime.limits.process.connections,
            limits::process::THREAD_STACK_BYTES,
            limits::process::THREAD_IDLE_TIME,
            {
                let service = Arc::clone(&service);
                move |admitted: Admitted| blocking::serve(admitted, &service)
            },
        ),
        admission,
        service,
        told: Instant::now(),
    };
    let takeover = takeover.map(TakeoverSocket::start).transpose()?;
    service_manager::ready();
    while shutdown.is_accepting() {
        let time = server.be_alive();
        server.wait(Some(&listener), time)?;
        server.accept_all(&listener)?;
    }
    // It has the listener too.
    drop(takeover);
    drop(listener);
    Ok(server.end())
}

struct Server<'a> {
    service: Arc<Service>,
    shutdown: &'a Shutdown,
    admission: Admission,
    threads: Threads<Admitted>,
    /// When the service manager last heard that this server is alive.
    told: Instant,
}

impl Server<'_> {
    /// Waits for a connection, the shutdown, or the end of `time`.
    fn wait(&self, listener: Option<&TcpListener>, time: Option<Duration>) -> io::Result<()> {
        let wake = self.shutdown.wake();
        let wake = PollFd::new(&wake, PollFlags::IN);
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let result = match listener {
            Some(listener) => poll(
                &mut [wake, PollFd::new(listener, PollFlags::IN)],
                time.as_ref(),
            ),
            None => poll(&mut [wake], time.as_ref()),
        };
        match result {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the service manager that this thread is alive, if it is time to. Returns how long it is
    /// until the next time.
    fn be_alive(&mut self) -> Option<Duration> {
        let pause = self.service.watchdog_pause?;
        let since = self.told.elapsed();
        if since < pause {
            return Some(pause - since);
        }
        service_manager::alive();
        self.told = Instant::now();
        Some(pause)
    }

    /// Accepts until nobody waits.
    fn accept_all(&mut self, listener: &TcpListener) -> io::Result<()> {
        while self.shutdown.is_accepting() {
            self.be_alive();
            match self.admission.accept(listener, self.threads.live())? {
                Accepted::Client(admitted) => {
                    let stream = Arc::clone(admitted.permit.stream());
                    if let Err(error) = self.threads.run(admitted) {
                        self.admission
                            .refuse(&stream, &format!("no thread: {error}"));
                    }
                }
                Accepted::Refused => {}
                Accepted::Nobody => break,
                Accepted::Starved => self.wait(None, Some(limits::process::ACCEPT_PAUSE))?,
            }
        }
        Ok(())
    }

    fn end(mut self) -> Drained {
        let time = self.service.runtime.limits.process.drain_time;
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
                tracing::info!(served = self.admission.count(), "stopped");
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
            let pause = self.be_alive().unwrap_or(time_left);
            let left = wait(self.shutdown.connections(), pause.min(time_left));
            if left == 0 || time_left.is_zero() {
                return;
            }
        }
    }
}
