//! Lets clients in, or turns them away.

use std::io::{self, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rustix::io::Errno;

use crate::logging::Recurring;
use crate::process::connections::{Caps, Connections};
use crate::serve::connection::Admitted;
use crate::serve::service::Service;
use crate::talk::client::Client;
use crate::talk::framing::{Reader, Writer};

/// Whoever accepts, with what has to be counted for that.
pub(crate) struct Admission {
    /// What the listener is bound to.
    address: SocketAddr,
    service: Arc<Service>,
    connections: Arc<Connections>,
    /// How many connections there have been: the id of the last one.
    accepted: u64,
    refused: Recurring,
    starved: Recurring,
}

/// What came of accepting once.
pub(crate) enum Accepted {
    /// A client.
    Client(Admitted),
    /// A client who was turned away, or has gone again.
    Refused,
    /// Nobody waits.
    Nobody,
    /// Somebody may wait, but there are no resources. Whoever waits stays in the kernel's queue, so
    /// asking again at once would spin.
    Starved,
}

impl Admission {
    /// For the clients of a listener that is bound to `address`.
    pub(crate) fn new(
        address: SocketAddr,
        service: Arc<Service>,
        connections: Arc<Connections>,
    ) -> Admission {
        Admission {
            address,
            service,
            connections,
            accepted: 0,
            refused: Recurring::new(),
            starved: Recurring::new(),
        }
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.accepted
    }

    /// Accepts one client, where there are so many `threads`.
    ///
    /// # Errors
    /// The listener is broken.
    pub(crate) fn accept(
        &mut self,
        listener: &TcpListener,
        threads: usize,
    ) -> io::Result<Accepted> {
        let error = match listener.accept() {
            Ok((stream, peer)) => {
                let admitted = self.admit(stream, peer, threads);
                return Ok(admitted.map_or(Accepted::Refused, Accepted::Client));
            }
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => Ok(Accepted::Nobody),
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Err(error),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                if let Some(times) = self.starved.again() {
                    tracing::error!(times, "cannot accept for want of resources: {error}");
                }
                Ok(Accepted::Starved)
            }
            // The client has gone again, or its network has: the next one may be fine.
            _ => {
                tracing::debug!("a connection failed before it was accepted: {error}");
                Ok(Accepted::Refused)
            }
        }
    }

    /// What there is room for, or nothing, and the client has been told.
    fn admit(&mut self, stream: TcpStream, peer: SocketAddr, threads: usize) -> Option<Admitted> {
        let stream = Arc::new(stream);
        let id = self.accepted + 1;
        let runtime = &self.service.runtime;
        let caps = Caps {
            total: runtime.limits.connections,
            per_ip: runtime.limits.connections_per_ip,
        };
        let assignment = self.service.versions.assign();
        let version = assignment.version.number;
        let admitted = self
            .connections
            .admit(id, &stream, peer.ip(), version, caps);
        let permit = match admitted {
            Ok(permit) => permit,
            Err(full) => {
                self.refuse(&stream, &full.to_string());
                return None;
            }
        };
        let (reservation, memory) = match runtime.host.room.take(assignment.version.need, threads) {
            Ok(taken) => taken,
            Err(none) => {
                // A new version that needs more than there is has failed whom it was given.
                assignment.begin();
                assignment.fail();
                self.refuse(&stream, &none.to_string());
                return None;
            }
        };
        self.accepted = id;
        assignment.begin();
        let client = Client {
            id,
            peer: canonical(peer),
            local: canonical(self.local_address(&stream)),
        };
        Some(Admitted {
            permit,
            assignment,
            reservation,
            memory,
            client,
        })
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
    pub(crate) fn refuse(&mut self, stream: &TcpStream, why: &str) {
        if let Some(times) = self.refused.again() {
            tracing::warn!(times, "refusing connections: {why}");
        }
        let mut refusal = Writer::default();
        let ending = Reader::new(self.service.framing, 0).ending();
        refusal.push("error: too many connections", ending);
        let _ = turn_away(stream, &refusal);
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
