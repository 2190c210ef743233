//! One client from accept to close: its session, what it has taken of the server, and the log of it;
//! for whoever drives it.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use crate::process::connections::Permit;
use crate::process::room::{MemoryClaim, Reservation};
use crate::sandbox::session::{Cause, GuestError, Session};
use crate::serve::recording::Recording;
use crate::serve::service::Service;
use crate::talk::client::Client;
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
    permit: Permit,
    assignment: Assignment,
    _reservation: Reservation,
    client: Client,
}

impl Held {
    /// Whether it has to end, because the server does or its version of the guest.
    pub(crate) fn is_draining(&self) -> bool {
        self.permit.is_ending() || self.assignment.version.is_retired()
    }
}

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
    /// Logs it, has its session made, and the client greeted.
    pub(crate) fn start(admitted: Admitted) -> (Connection, Option<Wait>) {
        let Admitted {
            service,
            permit,
            assignment,
            reservation,
            memory,
            client,
        } = admitted;
        let version = &assignment.version;
        tracing::info!(service = service.runtime.service(), connection = client.id, peer = %client.peer, version = version.number, "accepted");
        let recordings = service.recordings.as_ref();
        let recording = recordings.and_then(|all| all.begin(client, version));
        let mut connection = Connection {
            conversation: Conversation::new(service.framing, service.runtime.limits.wire),
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
        let reason = match end {
            End::ShuttingDown if !permit.is_ending() => {
                "its version of the guest was replaced".to_owned()
            }
            _ => end.to_string(),
        };
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
            _ if !self.conversation.is_heard() => Close::Now,
            _ if unread || end.last_word().is_some() || has_unread() => Close::Linger,
            _ => Close::Now,
        }
    }
}
