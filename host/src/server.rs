//! The listener: accepts, takes a permit for each connection and hands it to a thread.

use std::io::{self, Read};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::connection;
use crate::framing::{Framing, Reader, Writer};
use crate::limits;
use crate::sandbox::Sandbox;
use crate::shutdown::{Caps, Permit, Shutdown};
use crate::threads::Threads;

/// What tells one connection from another.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Counted from 1 since the server started.
    pub id: u64,
    /// The client's address and port.
    pub peer: SocketAddr,
    /// The server's address and port, as the client reached it.
    pub local: SocketAddr,
}

/// How a server ended after a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every connection was closed in order.
    InTime,
    /// This many were still open after the drain's time, and were cut.
    Cut(usize),
}

/// Serves `sandbox` on `listener` until `shutdown` begins, then drains.
///
/// # Errors
/// The listener is broken. No fault of a client, of the guest or of the network ends the server,
/// and neither does a lack of descriptors.
pub fn run(
    listener: TcpListener,
    sandbox: Sandbox,
    framing: Framing,
    shutdown: &Shutdown,
) -> io::Result<Ended> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "waiting for connections");
    let caps = Caps {
        total: sandbox.limits.connections,
        per_ip: sandbox.limits.connections_per_ip,
    };
    let sandbox = Arc::new(sandbox);
    let mut server = Server {
        address,
        framing,
        caps,
        shutdown,
        threads: Threads::new(
            caps.total,
            limits::THREAD_STACK_BYTES,
            limits::THREAD_IDLE_TIME,
            move |job: Job| connection::serve(&job.permit, job.client, &sandbox, framing),
        ),
        accepted: 0,
        refused: Recurring::default(),
        starved: Recurring::default(),
    };
    while !shutdown.is_draining() {
        server.wait(Some(&listener), None)?;
        server.accept_all(&listener)?;
    }
    drop(listener);
    Ok(server.drain())
}

struct Server<'a> {
    address: SocketAddr,
    framing: Framing,
    caps: Caps,
    shutdown: &'a Shutdown,
    threads: Threads<Job>,
    /// How many connections there have been: the id of the last one.
    accepted: u64,
    refused: Recurring,
    starved: Recurring,
}

/// Something that may happen thousands of times a second, and is logged at most once in one.
#[derive(Default)]
struct Recurring {
    logged: Option<Instant>,
    count: u64,
}

impl Recurring {
    /// Counts once more. Returns how often it has happened since that was last logged, if it is
    /// time to log it again.
    fn again(&mut self) -> Option<u64> {
        self.count += 1;
        let now = Instant::now();
        if self
            .logged
            .is_some_and(|logged| now - logged < limits::LOG_PAUSE)
        {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

struct Job {
    permit: Permit,
    client: Client,
}

impl Server<'_> {
    /// Waits for a connection, the shutdown, or the end of `time`.
    fn wait(&self, listener: Option<&TcpListener>, time: Option<Duration>) -> io::Result<()> {
        let wake = self.shutdown.wake();
        let mut fds = vec![PollFd::new(&wake, PollFlags::IN)];
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Accepts until nobody waits.
    fn accept_all(&mut self, listener: &TcpListener) -> io::Result<()> {
        while !self.shutdown.is_draining() {
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
                        self.wait(None, Some(limits::ACCEPT_PAUSE))?;
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
        let permit = match self.shutdown.admit(id, &stream, peer.ip(), self.caps) {
            Ok(permit) => permit,
            Err(full) => return self.refuse(&stream, &full.to_string()),
        };
        self.accepted = id;
        let client = Client {
            id,
            peer: canonical(peer),
            local: canonical(self.local_address(&stream)),
        };
        if let Err(error) = self.threads.run(Job { permit, client }) {
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
        let ending = Reader::new(self.framing, 0).ending();
        refusal.push("error: too many connections", ending);
        let _ = turn_away(stream, &mut refusal);
    }

    fn drain(self) -> Ended {
        tracing::info!("shutting down: waiting for the messages in progress");
        match self.shutdown.wait_until_empty(limits::DRAIN_TIME) {
            0 => {
                tracing::info!(connections = self.accepted, "stopped");
                Ended::InTime
            }
            left => {
                tracing::error!("{left} connections did not end in time and are cut");
                self.shutdown.cut();
                Ended::Cut(left)
            }
        }
    }
}

/// Writes into the empty buffer of a new socket, which never blocks, and takes what the client has
/// already sent: unread bytes would turn the close into a reset, and the reset could overtake the
/// refusal.
fn turn_away(mut stream: &TcpStream, refusal: &mut Writer) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    refusal.flush(&mut stream)?;
    stream.shutdown(Direction::Write)?;
    let _taken = stream.read(&mut [0; 4096])?;
    Ok(())
}

/// An IPv4 client of an IPv6 socket is shown as what it is: `203.0.113.7`, not `::ffff:203.0.113.7`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
