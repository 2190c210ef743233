//! Drives a conversation by a thread that has nothing else to do and blocks on its socket.

use std::io::{self, ErrorKind};

use crate::serve::socket::Socket;
use crate::talk::conversation::{Conversation, End, Event, Turn, Wait};
use crate::talk::handler::Handler;

/// Converses to the end with a guest that `start` makes. `is_draining` tells whether the server, or
/// this connection's version of the guest, has begun to end; when that begins, a read that waits is
/// interrupted.
pub fn converse<H: Handler>(
    conversation: &mut Conversation<H>,
    socket: &mut Socket<'_>,
    is_draining: &impl Fn() -> bool,
    start: impl FnOnce() -> Result<H, H::Error>,
) -> End<H::Error> {
    let mut turn = conversation.start(start);
    loop {
        turn = match turn {
            Turn::Ended(end) => return end,
            Turn::Wait(wait) => match perform(wait, conversation, socket, is_draining) {
                Some(event) => conversation.turn(event),
                None => conversation.resume(),
            },
        };
    }
}

/// Has the client hear what is still to be said. Returns whether it may still be listening.
pub fn say_goodbye<H: Handler>(
    conversation: &mut Conversation<H>,
    socket: &mut Socket<'_>,
) -> bool {
    let mut event = Event::Sent(0);
    while let Some(wait) = conversation.goodbye(event) {
        let next = perform(wait, conversation, socket, &|| false);
        event = next.unwrap_or(Event::Sent(0));
    }
    conversation.is_heard()
}

/// Does what is waited for, and says what came of it; nothing, if that was interrupted.
fn perform<H: Handler>(
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
    let unacknowledged: io::Result<u64> = socket.unacknowledged_bytes();
    match unacknowledged {
        Ok(unacknowledged_bytes) => Event::Stalled {
            unacknowledged_bytes,
        },
        Err(error) => Event::Broken(error),
    }
}
