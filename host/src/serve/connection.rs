//! One client from accept to close: its session, what it has taken of the server, and the log of it;
//! for whoever drives it.

use std::io::ErrorKind;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use nix::sys::socket::UnixCredentials;
use rustls::ServerConfig;

use crate::process::connections::Permit;
use crate::process::room::{MemoryClaim, Reservation};
use crate::sandbox::session::{Cause, GuestError, Session};
use crate::serve::recording::Recording;
use crate::serve::service::Service;
use crate::serve::socket::Socket;
use crate::serve::transport::Transport;
use crate::serve::websocket::upgrade::Rules;
use crate::talk::client::{Client, Endpoint};
use crate::talk::conversation::{Conversation, End, Event, Turn, Wait};
use crate::talk::recorder::Recorder;
use crate::versions::assignment::Assignment;

/// A client that has been let in, and what has been taken for it.
pub(crate) struct Admitted {
    pub(crate) service: Arc<Service>,
    pub(crate) permit: Permit,
    pub(crate) assignment: Assignment,
    pub(crate) reservation: Reservation,
    pub(crate) memory: MemoryClaim,
    pub(crate) client: Client,
    pub(crate) origin: Origin,
    pub(crate) transport: Transport,
    /// What has to come first, if anything.
    pub(crate) handshake: Option<Handshake>,
}

/// What comes before a conversation, in this order.
pub(crate) struct Handshake {
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) websocket: Option<Arc<Rules>>,
}

/// What is known of the other end besides the client's address.
#[derive(Debug)]
pub(crate) enum Origin {
    Nothing,
    /// Of a Unix socket: which process it is.
    Process(UnixCredentials),
    /// It is a proxy, which has said who the client is.
    Proxy(Box<Endpoint>),
}

/// A client that is being served.
pub(crate) struct Connection {
    /// What is said.
    pub(crate) conversation: Conversation<Recorder<Session, Recording>>,
    pub(crate) held: Held,
    /// Why it has ended, if it has.
    end: Option<End<GuestError>>,
}

/// What a connection has of the server until it is dropped.
pub(crate) struct Held {
    pub(crate) service: Arc<Service>,
    pub(crate) permit: Permit,
    assignment: Assignment,
    _reservation: Reservation,
    client: Client,
}

impl Held {
    /// Whether it has to end, because the server does, its service, or its version of the guest.
    pub(crate) fn is_draining(&self) -> bool {
        self.permit.is_ending()
            || self.assignment.version.is_retired()
            || self.service.group.is_ending()
    }
}

/// How a TLS client begins: with a record of the handshake.
const CLIENT_HELLO: [u8; 2] = [22, 3];

/// What becomes of the socket of a connection that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    Now,
    /// Nothing that waits in the kernel's buffer is going to be read.
    Reset,
    /// Who is told something unasked may be sending, and so may who has sent more than was read.
    Linger,
}

impl Connection {
    /// Logs it, has its session made, and the client greeted, through `transport`.
    pub(crate) fn start(
        admitted: Box<Admitted>,
        transport: &Transport,
    ) -> (Connection, Option<Wait>) {
        let Admitted {
            service,
            permit,
            assignment,
            reservation,
            memory,
            client,
            origin,
            transport: _,
            handshake: _,
        } = *admitted;
        let version = &assignment.version;
        let (mut pid, mut uid, mut proxy) = (None, None, None);
        match origin {
            Origin::Nothing => {}
            Origin::Process(process) => (pid, uid) = (Some(process.pid()), Some(process.uid())),
            Origin::Proxy(endpoint) => proxy = Some(tracing::field::display(endpoint)),
        }
        tracing::info!(service = service.runtime.service(), connection = client.id, peer = %client.peer, pid, uid, proxy, version = version.number, "accepted");
        let recordings = service.recordings.as_ref();
        let recording = recordings.and_then(|all| all.begin(&client, version));
        let framing = transport.framing(service.framing);
        let mut connection = Connection {
            conversation: Conversation::new(framing, service.runtime.limits.wire),
            held: Held {
                service,
                permit,
                assignment,
                _reservation: reservation,
                client,
            },
            end: None,
        };
        let wait = connection.attempt(|connection| {
            let sandbox = &connection.held.assignment.version.sandbox;
            let client = connection.held.client.clone();
            connection.conversation.start(|| {
                Recorder::start(recording, || Session::start_with(sandbox, client, memory))
            })
        });
        (connection, wait)
    }

    /// Goes on after an event. Returns what it waits for, or nothing when all has been said.
    pub(crate) fn turn(&mut self, event: Event) -> Option<Wait> {
        if self.end.is_some() {
            return self.conversation.goodbye(event);
        }
        self.attempt(|connection| connection.conversation.turn(event))
    }

    /// What it waits for now: the same again, if the last wait was interrupted.
    pub(crate) fn resume(&mut self) -> Option<Wait> {
        if self.end.is_some() {
            return self.conversation.goodbye(Event::Sent(0));
        }
        self.attempt(|connection| connection.conversation.resume())
    }

    /// A panic would be a bug of ours. It must not cost the client its answer, or the log its line.
    fn attempt(&mut self, turn: impl FnOnce(&mut Connection) -> Turn<GuestError>) -> Option<Wait> {
        let turn = panic::catch_unwind(AssertUnwindSafe(|| turn(self)))
            .unwrap_or_else(|_| Turn::Ended(self.conversation.fail(Cause::Panic.into())));
        match turn {
            Turn::Wait(wait) => Some(wait),
            Turn::Ended(end) => {
                if matches!(&end, End::GuestFailed(error) if !matches!(error.cause, Cause::Panic)) {
                    self.held.assignment.fail();
                }
                self.end = Some(end);
                self.conversation.goodbye(Event::Sent(0))
            }
        }
    }

    /// Tells the client that all has been said. Returns what it waits for, if there is no room for that.
    pub(crate) fn say_end(
        &mut self,
        socket: &Socket<'_>,
        transport: &mut Transport,
    ) -> Option<Wait> {
        let conversation = &mut self.conversation;
        match transport.end(socket, self.end.as_ref()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && conversation.is_heard() => {
                conversation.goodbye(transport.stalled(socket, conversation.bytes_out))
            }
            _ => None,
        }
    }

    /// Logs its end, when all has been said. `has_unread`: the kernel has input that was not read.
    pub(crate) fn close(&self, has_unread: impl FnOnce() -> bool) -> Close {
        let Held {
            service,
            permit,
            assignment,
            client,
            ..
        } = &self.held;
        permit.finish();
        let Some(end) = &self.end else {
            return Close::Now;
        };
        let mut reason = match end {
            End::ShuttingDown if permit.is_ending() => end.to_string(),
            End::ShuttingDown if service.group.is_ending() => "its service has ended".to_owned(),
            End::ShuttingDown => "its version of the guest was replaced".to_owned(),
            _ => end.to_string(),
        };
        if self.conversation.first_bytes() == CLIENT_HELLO {
            reason.push_str(" (what came is TLS: does the client speak it to a plain port?)");
        }
        let Client { id, peer, .. } = client;
        let service = service.runtime.service();
        let version = assignment.version.number;
        let Conversation {
            lines,
            bytes_in,
            bytes_out,
            ..
        } = self.conversation;
        if let End::GuestFailed(error) = end {
            tracing::warn!(
                service, connection = id, %peer, version, lines, bytes_in, bytes_out,
                %reason, %error, "closed"
            );
        } else {
            tracing::info!(
                service, connection = id, %peer, version, lines, bytes_in, bytes_out,
                %reason, "closed"
            );
        }
        let unread = self.conversation.pending_bytes() > 0;
        match end {
            End::NotReading => Close::Reset,
            // It was told why.
            End::Broken(error) if error.kind() == ErrorKind::InvalidData => Close::Linger,
            _ if !self.conversation.is_heard() => Close::Now,
            _ if unread || end.last_word().is_some() || has_unread() => Close::Linger,
            _ => Close::Now,
        }
    }
}
