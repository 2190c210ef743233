//! Serves a connection by a thread that has nothing else to do and blocks on its socket.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::serve::connection::{Admitted, Close, Connection};
use crate::serve::service::Service;
use crate::serve::socket::Socket;
use crate::talk::conversation::{Conversation, Event, Wait};
use crate::talk::handler::Handler;

/// Serves one client to the end.
pub(crate) fn serve(admitted: Admitted, service: &Service) {
    admitted.permit.begin();
    let stream = Arc::clone(admitted.permit.stream());
    let mut socket = Socket::new(&stream);
    let (mut connection, mut wait) = Connection::start(admitted, service);
    while let Some(next) = wait {
        let Connection {
            conversation, held, ..
        } = &mut connection;
        wait = match perform(next, conversation, &mut socket, &|| held.is_draining()) {
            Some(event) => connection.turn(event),
            None => connection.resume(),
        };
    }
    match connection.close(|| socket.has_unread()) {
        Close::Now => {}
        Close::Reset => socket.reset(),
        Close::Linger => socket.linger(service.runtime.limits.wire.write_time),
    }
}

/// Does what is waited for, and says what came of it; nothing, if that was interrupted. `is_draining`
/// tells whether the server, or this connection's version of the guest, has begun to end; when that
/// begins, a read that waits is interrupted.
pub fn perform<H: Handler>(
    wait: Wait,
    conversation: &mut Conversation<H>,
    socket: &mut Socket<'_>,
    is_draining: &impl Fn() -> bool,
) -> Option<Event> {
    let event = match wait {
        Wait::Receive { within } => {
            if let Err(error) = socket.set_read_time(within) {
                return Some(Event::Broken(error));
            }
            // After the time has been set, which a drain that begins sets too.
            if is_draining() {
                return Some(Event::Drain);
            }
            match socket.receive(conversation.room()) {
                // A drain may end the input, or the wait.
                Ok(0) if is_draining() => Event::Drain,
                Err(error) if error.kind() == ErrorKind::WouldBlock && is_draining() => {
                    Event::Drain
                }
                Ok(0) => Event::Eof,
                Ok(count) => Event::Input(count),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => Event::Deadline,
                    ErrorKind::Interrupted => return None,
                    _ => Event::Broken(error),
                },
            }
        }
        Wait::Send => match socket.send(conversation.output()) {
            Ok(count) => Event::Sent(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => stalled(socket),
                ErrorKind::Interrupted => return None,
                _ => Event::Broken(error),
            },
        },
        Wait::Room { within } => match socket.wait_for_room(within) {
            Ok(true) => return None,
            Ok(false) => stalled(socket),
            Err(error) => Event::Broken(error),
        },
    };
    Some(event)
}

fn stalled(socket: &Socket<'_>) -> Event {
    match socket.unacknowledged_bytes() {
        Ok(unacknowledged_bytes) => Event::Stalled {
            unacknowledged_bytes,
        },
        Err(error) => Event::Broken(error),
    }
}
