//! Lets clients in, or turns them away.

use std::io::{self, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError};

use rustix::io::Errno;
use socket2::SockRef;

use crate::logging::Recurring;
use crate::serve::connection::Admitted;
use crate::serve::service::Service;
use crate::talk::client::Client;
use crate::talk::framing::{Reader, Writer};

/// Where clients of a service come in.
pub struct Door {
    listener: TcpListener,
    /// What it is bound to.
    address: SocketAddr,
    service: Arc<Service>,
}

impl Door {
    /// For the clients of `listener`.
    ///
    /// # Errors
    /// It is no listening socket.
    pub fn new(listener: TcpListener, service: Arc<Service>) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        // Replies are gathered already; waiting for more would only delay them. Sockets that are
        // accepted inherit it.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        Ok(Door {
            address: listener.local_addr()?,
            listener,
            service,
        })
    }

    /// Says who waits where.
    fn log(&self) {
        let (address, version) = (self.address, self.service.versions.current());
        let service = self.service.runtime.service();
        tracing::info!(service, %address, version = version.number, sha256 = %version.digest, "waiting for connections");
    }

    /// The address the client reached; of a listener on all interfaces each socket knows its own.
    fn local_address(&self, stream: &TcpStream) -> SocketAddr {
        if self.address.ip().is_unspecified() {
            stream.local_addr().unwrap_or(self.address)
        } else {
            self.address
        }
    }
}

/// Whoever accepts, with what has to be counted for that.
pub(crate) struct Admission {
    doors: Vec<Door>,
    /// How many connections there have been: the id of the last one.
    accepted: u64,
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
    /// For the clients at these doors.
    pub(crate) fn new(doors: Vec<Door>) -> Admission {
        for (number, door) in doors.iter().enumerate() {
            door.log();
            let same = |before: &Door| Arc::ptr_eq(&before.service, &door.service);
            if !doors[..number].iter().any(same) {
                door.service.versions.current().log_room();
            }
        }
        Admission {
            doors,
            accepted: 0,
            starved: Recurring::new(),
        }
    }

    /// What clients come to, in the order of the doors' numbers.
    pub(crate) fn listeners(&self) -> Vec<BorrowedFd<'_>> {
        let doors = self.doors.iter();
        doors.map(|door| door.listener.as_fd()).collect()
    }

    /// Nobody is let in any more.
    pub(crate) fn close(&mut self) {
        self.doors.clear();
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.accepted
    }

    /// Accepts one client at the door of this number, where there are so many `threads`.
    ///
    /// # Errors
    /// The listener is broken.
    pub(crate) fn accept(&mut self, door: usize, threads: usize) -> io::Result<Accepted> {
        let Some(door) = self.doors.get(door) else {
            return Ok(Accepted::Nobody);
        };
        let error = match door.listener.accept() {
            Ok((stream, peer)) => {
                let admitted = admit(door, self.accepted + 1, stream, peer, threads);
                self.accepted += u64::from(admitted.is_some());
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
}

/// What there is room for, or nothing, and the client has been told.
fn admit(
    door: &Door,
    id: u64,
    stream: TcpStream,
    peer: SocketAddr,
    threads: usize,
) -> Option<Admitted> {
    let stream = Arc::new(stream);
    let service = &door.service;
    let assignment = service.versions.assign();
    let version = assignment.version.number;
    let admitted = service.group.admit(id, &stream, peer.ip(), version);
    let (permit, leaves) = match admitted {
        Ok(admitted) => admitted,
        Err(full) => {
            refuse(service, &stream, &full.to_string());
            return None;
        }
    };
    let room = &service.runtime.room;
    let taken = room.take(assignment.version.need, threads, leaves);
    let (reservation, memory) = match taken {
        Ok(taken) => taken,
        Err(none) => {
            // A new version that needs more than there is has failed whom it was given.
            assignment.begin();
            assignment.fail();
            refuse(service, &stream, &none.to_string());
            return None;
        }
    };
    assignment.begin();
    let client = Client {
        id,
        peer: canonical(peer),
        local: canonical(door.local_address(&stream)),
    };
    Some(Admitted {
        service: Arc::clone(service),
        permit,
        assignment,
        reservation,
        memory,
        client,
    })
}

/// Turns a client away, without a thread, a sandbox, or a wait.
pub(crate) fn refuse(service: &Service, stream: &TcpStream, why: &str) {
    let refused = service.refused.lock();
    if let Some(times) = refused.unwrap_or_else(PoisonError::into_inner).again() {
        tracing::warn!(
            service = service.runtime.service(),
            times,
            "refusing connections: {why}"
        );
    }
    let mut refusal = Writer::default();
    let ending = Reader::new(service.framing, 0).ending();
    refusal.push("error: too many connections", ending);
    let _ = turn_away(stream, &refusal);
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
