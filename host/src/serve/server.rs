//! The listener: accepts, takes a permit for each connection and hands it to a thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::limits;
use crate::logging::Recurring;
use crate::process::connections::{Caps, Connections};
use crate::process::service_manager;
use crate::process::shutdown::Shutdown;
use crate::process::takeover::TakeoverSocket;
use crate::serve::connection::{self, Job};
use crate::serve::service::Service;
use crate::serve::threads::Threads;
use crate::talk::client::Client;
use crate::talk::framing::{Reader, Writer};

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
    let connections = service.runtime.limits.process.connections;
    let service = Arc::new(service);
    let mut server = Server {
        address,
        shutdown,
        threads: Threads::new(
            connections,
            limits::process::THREAD_STACK_BYTES,
            limits::process::THREAD_IDLE_TIME,
            {
                let service = Arc::clone(&service);
                move |job: Job| connection::serve(job, &service)
            },
        ),
        service,
        told: Instant::now(),
        accepted: 0,
        refused: Recurring::new(),
        starved: Recurring::new(),
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
    address: SocketAddr,
    service: Arc<Service>,
    shutdown: &'a Shutdown,
    threads: Threads<Job>,
    /// When the service manager last heard that this server is alive.
    told: Instant,
    /// How many connections there have been: the id of the last one.
    accepted: u64,
    refused: Recurring,
    starved: Recurring,
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
            match listener.accept() {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => break,
                    Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => {
                        return Err(error);
                    }
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        if let Some(times) = self.starved.again() {
                            tracing::error!(times, "cannot accept for want of resources: {error}");
                        }
                        // The connection stays in the kernel's queue, so asking again at once
                        // would spin.
                        self.wait(None, Some(limits::process::ACCEPT_PAUSE))?;
                    }
                    // The client has gone again, or its network has: the next one may be fine.
                    _ => tracing::debug!("a connection failed before it was accepted: {error}"),
                },
            }
        }
        Ok(())
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        let stream = Arc::new(stream);
        let id = self.accepted + 1;
        let runtime = &self.service.runtime;
        let caps = Caps {
            total: runtime.limits.process.connections,
            per_ip: runtime.limits.process.connections_per_ip,
        };
        let assignment = self.service.versions.assign();
        let version = assignment.version.number;
        let connections = self.shutdown.connections();
        let admitted = connections.admit(id, &stream, peer.ip(), version, caps);
        let permit = match admitted {
            Ok(permit) => permit,
            Err(full) => return self.refuse(&stream, &full.to_string()),
        };
        let room = &runtime.room;
        let (reservation, memory) = match room.take(assignment.version.need, self.threads.live()) {
            Ok(taken) => taken,
            Err(none) => {
                // A new version that needs more than there is has failed whom it was given.
                assignment.begin();
                assignment.fail();
                return self.refuse(&stream, &none.to_string());
            }
        };
        self.accepted = id;
        assignment.begin();
        let client = Client {
            id,
            peer: canonical(peer),
            local: canonical(self.local_address(&stream)),
        };
        if let Err(error) = self.threads.run(Job {
            permit,
            assignment,
            reservation,
            memory,
            client,
        }) {
            self.refuse(&stream, &format!("no thread: {error}"));
        }
    }

    /// The address the client reached; of a listener on all interfaces each socket knows its own.
    fn local_address(&self, stream: &TcpStream) -> SocketAddr {
        if self.address.ip().is_unspecified() {
            stream.local_addr().unwrap_or(self.address)
        } else {
            self.address
        }
    }

    /// Turns a client away, without a thread, a sandbox, or a wait.
    fn refuse(&mut self, stream: &TcpStream, why: &str) {
        if let Some(times) = self.refused.again() {
            tracing::warn!(times, "refusing connections: {why}");
        }
        let mut refusal = Writer::default();
        let ending = Reader::new(self.service.framing, 0).ending();
        refusal.push("error: too many connections", ending);
        let _ = turn_away(stream, &refusal);
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
                tracing::info!(served = self.accepted, "stopped");
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

/// Writes into the empty buffer of a new socket, which never blocks, and takes what the client has
/// already sent: unread bytes would turn the close into a reset, and the reset could overtake the
/// refusal.
fn turn_away(mut stream: &TcpStream, refusal: &Writer) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.write_all(refusal.output())?;
    stream.shutdown(Direction::Write)?;
    let _taken = stream.read(&mut [0; 4096])?;
    Ok(())
}

/// An IPv4 client of an IPv6 socket is shown as what it is: `203.0.113.7`, not `::ffff:203.0.113.7`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
