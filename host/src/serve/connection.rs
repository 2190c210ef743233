//! One client from accept to close: its socket, its session, and the log of both.

use std::panic::{self, AssertUnwindSafe};

use crate::budget::Claim;
use crate::process::connections::Permit;
use crate::process::room::Reservation;
use crate::sandbox::session::{Cause, Session};
use crate::serve::blocking;
use crate::serve::service::Service;
use crate::serve::socket::Socket;
use crate::talk::client::Client;
use crate::talk::conversation::{Conversation, End};
use crate::talk::recorder::Recorder;
use crate::versions::assignment::Assignment;

/// One connection, for its thread.
pub(crate) struct Job {
    pub(crate) permit: Permit,
    pub(crate) assignment: Assignment,
    pub(crate) reservation: Reservation,
    pub(crate) memory: Claim,
    pub(crate) client: Client,
}

/// Serves one client to the end, and logs the beginning and the end of it.
pub(crate) fn serve(job: Job, service: &Service) {
    let Job {
        permit,
        assignment,
        reservation: _reservation,
        memory,
        client,
    } = job;
    permit.begin();
    let id = client.id;
    let version = &*assignment.version;
    tracing::info!(connection = id, peer = %client.peer, version = version.number, "accepted");
    let limits = service.runtime.limits.wire;
    let is_draining = || permit.is_ending() || version.is_retired();
    let recordings = service.recordings.as_ref();
    let recording = recordings.and_then(|all| all.begin(client, version));
    let start = || {
        Recorder::start(recording, || {
            Session::start_with(&version.sandbox, client, memory)
        })
    };
    let mut socket = Socket::new(permit.stream());
    let mut conversation = Conversation::new(service.framing, limits);
    // A panic would be a bug of ours. It must not cost the client its answer, or the log its line.
    let talk = || blocking::converse(&mut conversation, &mut socket, &is_draining, start);
    let end = panic::catch_unwind(AssertUnwindSafe(talk))
        .unwrap_or_else(|_| conversation.fail(Cause::Panic.into()));
    if matches!(&end, End::GuestFailed(error) if !matches!(error.cause, Cause::Panic)) {
        assignment.fail();
    }

    let listening = blocking::say_goodbye(&mut conversation, &mut socket);
    permit.finish();

    let reason = match &end {
        End::ShuttingDown if !permit.is_ending() => {
            "its version of the guest was replaced".to_owned()
        }
        _ => end.to_string(),
    };
    let Conversation {
        lines,
        bytes_in,
        bytes_out,
        ..
    } = conversation;
    if let End::GuestFailed(error) = &end {
        tracing::warn!(
            connection = id, peer = %client.peer, version = version.number, lines, bytes_in, bytes_out,
            %reason, %error, "closed"
        );
    } else {
        tracing::info!(
            connection = id, peer = %client.peer, version = version.number, lines, bytes_in, bytes_out,
            %reason, "closed"
        );
    }

    let unread = conversation.pending_bytes() > 0;
    match end {
        // Nothing that waits in the kernel's buffer is going to be read.
        End::NotReading => socket.reset(),
        // Who is told something unasked may be sending.
        _ if listening && (unread || end.last_word().is_some() || socket.has_unread()) => {
            socket.linger(limits.write_time);
        }
        _ => {}
    }
}
