//! Lets clients in, or turns them away.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError};

use ipnet::IpNet;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::io::Errno;
use slab::Slab;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::logging::Recurring;
use crate::process::connections::Permit;
use crate::process::listener::Listener;
use crate::serve::connection::{Admitted, Handshake, Origin};
use crate::serve::proxy::Proxied;
use crate::serve::service::Service;
use crate::serve::socket::Socket;
use crate::serve::tls::Tls;
use crate::serve::tls::stream::TLS_REFUSAL;
use crate::serve::transport::Transport;
use crate::serve::websocket::frames::Frames;
use crate::serve::websocket::upgrade::{Refusal, Rules};
use crate::talk::client::{Client, Endpoint};
use crate::talk::framing::{Framing, Reader, Writer};

/// Where clients of a service come in.
pub struct Door {
    listener: Arc<Listener>,
    /// What it is bound to.
    address: Endpoint,
    service: Arc<Service>,
    /// Without, what is said is plain.
    tls: Option<Arc<Tls>>,
    /// Without, what is said are bytes.
    websocket: Option<Arc<Rules>>,
    /// Where those proxies are from which alone it takes connections, if there are any.
    proxies: Vec<IpNet>,
}

impl Door {
    /// For the clients of `listener`, through TLS and WebSocket if there are these.
    ///
    /// # Errors
    /// It is no listening socket.
    pub fn new(
        listener: Arc<Listener>,
        service: Arc<Service>,
        tls: Option<Arc<Tls>>,
        websocket: Option<Arc<Rules>>,
    ) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        Ok(Door {
            address: Endpoint::from(&listener.local_addr()?),
            listener,
            service,
            tls,
            websocket,
            proxies: Vec::new(),
        })
    }

    /// The same, for proxies from there alone, which say who their clients are.
    #[must_use]
    pub fn behind(mut self, proxies: Vec<IpNet>) -> Door {
        self.proxies = proxies;
        self
    }

    /// What clients come to.
    pub(crate) fn listener(&self) -> Arc<Listener> {
        Arc::clone(&self.listener)
    }

    /// Says what has become of it.
    fn log(&self, what: &str) {
        let (address, version) = (&self.address, self.service.versions.current());
        let service = self.service.runtime.service();
        tracing::info!(service, %address, version = version.number, sha256 = %version.digest, "{what}");
    }

    /// What comes before a conversation here.
    fn handshake(&self) -> Option<Handshake> {
        (self.tls.is_some() || self.websocket.is_some()).then(|| Handshake {
            tls: self.tls.as_ref().map(|tls| tls.config()),
            websocket: self.websocket.clone(),
        })
    }

    /// The address the client reached; of a listener on all interfaces each socket knows its own.
    fn local(&self, stream: &socket2::Socket) -> Endpoint {
        let is_any = self.address.ip().is_some_and(|ip| ip.is_unspecified());
        let own = is_any.then(|| stream.local_addr());
        match own {
            Some(Ok(own)) => Endpoint::from(&own),
            _ => self.address.clone(),
        }
    }
}

/// What a client reads for whom there is no room.
const FULL: &str = "error: too many connections";

/// Whoever accepts, with what has to be counted for that.
pub(crate) struct Admission {
    doors: Slab<Door>,
    /// How many connections there have been: the id of the last one.
    accepted: u64,
    starved: Recurring,
}

/// How doors have changed.
pub(crate) struct Changed {
    /// The numbers of those that are new.
    pub(crate) opened: Vec<usize>,
    /// What clients came to.
    pub(crate) closed: Vec<Arc<Listener>>,
}

/// What came of accepting once.
pub(crate) enum Accepted {
    /// A client.
    Client(Box<Admitted>),
    /// A proxy, which has to say whose connection this is.
    Expected(Candidate),
    /// A client who was turned away, or has gone again.
    Refused,
    /// Nobody waits.
    Nobody,
    /// Somebody may wait, but there are no resources. Whoever waits stays in the kernel's queue, so
    /// asking again at once would spin.
    Starved,
}

impl Admission {
    /// There is no door yet.
    pub(crate) fn new() -> Admission {
        Admission {
            doors: Slab::new(),
            accepted: 0,
            starved: Recurring::new(),
        }
    }

    /// Lets clients in at these doors from now on, and at no others. A listener that there is already
    /// keeps its number.
    pub(crate) fn change(&mut self, doors: Vec<Door>) -> Changed {
        let same = |one: &Door, other: &Door| Arc::ptr_eq(&one.listener, &other.listener);
        let mut closed = Vec::new();
        self.doors.retain(|_, door| {
            let stays = doors.iter().any(|wanted| same(wanted, door));
            if !stays {
                closed.push(Arc::clone(&door.listener));
            }
            stays
        });
        let mut opened = Vec::new();
        let mut before: Vec<_> = Vec::new();
        for door in doors {
            let service = Arc::clone(&door.service);
            let is_new = !before.iter().any(|before| Arc::ptr_eq(before, &service));
            match self.doors.iter_mut().find(|(_, there)| same(there, &door)) {
                Some((_, there)) if Arc::ptr_eq(&there.service, &service) => continue,
                Some((_, there)) => {
                    *there = door;
                    if is_new {
                        there.log("new connections get the changed settings");
                    }
                }
                None => {
                    door.log("waiting for connections");
                    opened.push(self.doors.insert(door));
                }
            }
            if is_new {
                service.versions.current().log_room();
                before.push(service);
            }
        }
        Changed { opened, closed }
    }

    /// What clients come to, by the numbers of the doors.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let doors = self.doors.iter();
        doors.map(|(number, door)| (number, door.listener.as_fd()))
    }

    /// What clients come to at the door of this number.
    pub(crate) fn listener(&self, door: usize) -> Option<BorrowedFd<'_>> {
        self.doors.get(door).map(|door| door.listener.as_fd())
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
                let let_in = let_in(door, self.accepted + 1, stream, (&peer).into(), threads);
                self.accepted += u64::from(!matches!(let_in, Accepted::Refused));
                return Ok(let_in);
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

/// What comes of one that has connected.
fn let_in(
    door: &Door,
    id: u64,
    stream: socket2::Socket,
    peer: Endpoint,
    threads: usize,
) -> Accepted {
    let by_proxy = !door.proxies.is_empty();
    if by_proxy
        && !peer
            .ip()
            .is_some_and(|ip| door.proxies.iter().any(|one| one.contains(&ip)))
    {
        refuse_stranger(&door.service, &stream, &peer);
        return Accepted::Refused;
    }
    match count(door, id, stream, peer, by_proxy) {
        None => Accepted::Refused,
        Some(candidate) if by_proxy => Accepted::Expected(candidate),
        Some(candidate) => {
            admit(candidate, None, threads).map_or(Accepted::Refused, Accepted::Client)
        }
    }
}

/// A client that counts among the connections, and has nothing else yet.
pub(crate) struct Candidate {
    pub(crate) id: u64,
    pub(crate) service: Arc<Service>,
    pub(crate) permit: Permit,
    /// How many connections of other services have to stay possible beside it.
    leaves: usize,
    /// The other end of its connection: the client's, or a proxy's.
    pub(crate) peer: Endpoint,
    local: Endpoint,
    /// What has to come before its conversation, if anything.
    handshake: Option<Handshake>,
}

/// Counts a client, if there is room, or else it has been told. One of a proxy takes of no address's
/// share before it is known whose it is.
fn count(
    door: &Door,
    id: u64,
    stream: socket2::Socket,
    peer: Endpoint,
    by_proxy: bool,
) -> Option<Candidate> {
    let stream = Arc::new(stream);
    let service = &door.service;
    let address = peer.ip().filter(|_| !by_proxy);
    let handshake = door.handshake();
    match service.group.admit(id, &stream, address) {
        Ok((permit, leaves)) => Some(Candidate {
            id,
            service: Arc::clone(service),
            local: door.local(&stream),
            permit,
            leaves,
            peer,
            handshake,
        }),
        Err(full) => {
            // A proxy has said nothing yet that its client would understand an answer to.
            let telling = match by_proxy {
                true => Telling::Words,
                false => Telling::before(handshake.as_ref()),
            };
            refuse(service, &stream, telling, &full.to_string());
            None
        }
    }
}

/// Lets a client in, if there is room for its guest, or else it has been told; where there are so many
/// `threads`. What a proxy says of a client holds.
pub(crate) fn admit(
    candidate: Candidate,
    proxied: Option<Proxied>,
    threads: usize,
) -> Option<Box<Admitted>> {
    let Candidate {
        id,
        service,
        mut permit,
        leaves,
        mut peer,
        mut local,
        handshake,
    } = candidate;
    let telling = Telling::before(handshake.as_ref());
    let stream = Arc::clone(permit.stream());
    let mut origin = match peer {
        Endpoint::Unix(_) => {
            getsockopt(&stream, PeerCredentials).map_or(Origin::Nothing, Origin::Process)
        }
        Endpoint::Ip(_) => Origin::Nothing,
    };
    if let Some(proxied) = proxied {
        origin = Origin::Proxy(Box::new(mem::replace(&mut peer, proxied.peer)));
        local = proxied.local;
    }
    if let Err(full) = permit.set_peer(peer.ip()) {
        refuse(&service, &stream, telling, &full.to_string());
        return None;
    }
    let assignment = service.versions.assign();
    permit.set_version(assignment.version.number);
    let room = &service.runtime.room;
    let taken = room.take(assignment.version.need, threads, leaves);
    let (reservation, memory) = match taken {
        Ok(taken) => taken,
        Err(none) => {
            // A new version that needs more than there is has failed whom it was given.
            assignment.begin();
            assignment.fail();
            refuse(&service, &stream, telling, &none.to_string());
            return None;
        }
    };
    assignment.begin();
    Some(Box::new(Admitted {
        service,
        permit,
        assignment,
        reservation,
        memory,
        client: Client {
            id,
            peer,
            local,
            is_encrypted: false,
            identity: None,
        },
        origin,
        transport: Transport::Plain,
        handshake,
    }))
}

/// How a client learns that it is turned away: in what it speaks at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Words,
    /// Of TLS. What is encrypted is lost with its keys.
    Alert,
    /// Of HTTP, to its request.
    Response,
    /// Of WebSocket.
    Frames,
}

impl Telling {
    /// Before a handshake, if there is to be one.
    pub(crate) fn before(handshake: Option<&Handshake>) -> Telling {
        match handshake {
            None => Telling::Words,
            Some(Handshake { tls: Some(_), .. }) => Telling::Alert,
            Some(_) => Telling::Response,
        }
    }

    /// After it.
    pub(crate) fn through(transport: &Transport) -> Telling {
        match transport {
            Transport::Plain => Telling::Words,
            Transport::WebSocket(websocket) if !websocket.is_encrypted() => Telling::Frames,
            Transport::Tls(_) | Transport::WebSocket(_) => Telling::Alert,
        }
    }
}

/// Turns a client away, without a thread, a sandbox, or a wait.
pub(crate) fn refuse(service: &Service, stream: &socket2::Socket, telling: Telling, why: &str) {
    log_refusal(service, why);
    // What is written into the empty buffer of a new socket has room.
    let socket = Socket::new(stream);
    let words = |framing| words(framing, FULL);
    let _ = match telling {
        Telling::Words => socket.send(words(service.framing).output()).map(|_| ()),
        Telling::Alert => socket.send(&TLS_REFUSAL).map(|_| ()),
        Telling::Response => socket.send(&Refusal::Full.response()).map(|_| ()),
        Telling::Frames => {
            let mut frames = Frames::default();
            let sent = frames.send(words(Framing::Messages).output(), |bytes| {
                socket.send(bytes)
            });
            sent.and_then(|_| frames.end(CloseCode::Again, |bytes| socket.send(bytes)))
        }
    };
    socket.turn_away();
}

fn words(framing: Framing, why: &str) -> Writer {
    let mut refusal = Writer::default();
    refusal.push(why, Reader::new(framing, 0).ending());
    refusal
}

/// The same of one that a proxy has opened and has said nothing of.
pub(crate) fn refuse_candidate(candidate: &Candidate, why: &str) {
    let (service, stream) = (&candidate.service, candidate.permit.stream());
    refuse(service, stream, Telling::Words, why);
}

fn refuse_stranger(service: &Service, stream: &socket2::Socket, peer: &Endpoint) {
    log_refusal(
        service,
        &format!("{peer} is none of the proxies of this door"),
    );
    turn_away(service, stream, "error: only proxies may connect here");
}

fn log_refusal(service: &Service, why: &str) {
    let refused = service.refused.lock();
    if let Some(times) = refused.unwrap_or_else(PoisonError::into_inner).again() {
        tracing::warn!(
            service = service.runtime.service(),
            times,
            "refusing connections: {why}"
        );
    }
}

/// Tells a proxy why it is not served.
pub(crate) fn turn_away(service: &Service, stream: &socket2::Socket, why: &str) {
    let socket = Socket::new(stream);
    let _ = socket.send(words(service.framing, why).output());
    socket.turn_away();
}
