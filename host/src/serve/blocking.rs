//! A thread for each connection, which has nothing else to do and blocks on its socket.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::process::{
    ACCEPT_PAUSE, ACCEPTS_PER_ROUND, THREAD_IDLE_TIME, THREAD_STACK_BYTES,
};
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Accepted, Admission};
use crate::serve::connection::{Admitted, Close, Connection};
use crate::serve::lingering::Lingering;
use crate::serve::socket::Socket;
use crate::serve::threads::Threads;
use crate::talk::conversation::{Conversation, Event, Wait};
use crate::talk::handler::Handler;

/// Lets clients in, and has a thread for each.
pub(crate) struct Blocking {
    admission: Admission,
    threads: Threads<Admitted>,
}

impl Blocking {
    /// No client yet, and never more than `most` at once.
    pub(crate) fn new(admission: Admission, most: usize) -> Blocking {
        Blocking {
            admission,
            threads: Threads::new(most, THREAD_STACK_BYTES, THREAD_IDLE_TIME, serve),
        }
    }

    /// What clients come to, in the order of the doors' numbers.
    pub(crate) fn listeners(&self) -> Vec<BorrowedFd<'_>> {
        self.admission.listeners()
    }

    /// Accepts at the door of this number until nobody waits there, others have to have their turn,
    /// or `shutdown` begins.
    ///
    /// # Errors
    /// The listener is broken.
    pub(crate) fn accept_at(&mut self, door: usize, shutdown: &Shutdown) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_ROUND {
            if !shutdown.is_accepting() {
                break;
            }
            match self.admission.accept(door, self.threads.live())? {
                Accepted::Client(admitted) => {
                    let stream = Arc::clone(admitted.permit.stream());
                    let service = Arc::clone(&admitted.service);
                    if let Err(error) = self.threads.run(admitted) {
                        admission::refuse(&service, &stream, &format!("no thread: {error}"));
                    }
                }
                Accepted::Refused => {}
                Accepted::Nobody => break,
                Accepted::Starved => {
                    shutdown.wait(&[], Some(ACCEPT_PAUSE))?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Nobody is let in any more.
    pub(crate) fn stop_accepting(&mut self) {
        self.admission.close();
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.admission.count()
    }
}

/// Serves one client to the end.
fn serve(admitted: Admitted) {
    admitted.permit.begin();
    let stream = Arc::clone(admitted.permit.stream());
    let mut socket = Socket::new(&stream);
    let (mut connection, mut wait) = Connection::start(admitted);
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
        Close::Linger => {
            let limits = &connection.held.service.runtime.limits;
            linger(&mut socket, limits.wire.write_time);
        }
    }
}

/// Has the client take note of the end.
fn linger(socket: &mut Socket<'_>, write_time: Duration) {
    let Some(mut lingering) = Lingering::begin(socket, write_time) else {
        return;
    };
    while let Some(time_left) = lingering.time_left(socket) {
        if socket.set_read_time(time_left).is_err()
            || !lingering.discard(|sink| socket.receive(sink))
        {
            return;
        }
        // A drain may have shortened it.
        socket.forget_read_time();
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
        Wait::Again => return None,
        Wait::Send => match socket.send(conversation.output()) {
            Ok(count) => Event::Sent(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => socket.stalled(),
                ErrorKind::Interrupted => return None,
                _ => Event::Broken(error),
            },
        },
        Wait::Room { within } => match socket.wait_for_room(within) {
            Ok(true) => return None,
            Ok(false) => socket.stalled(),
            Err(error) => Event::Broken(error),
        },
    };
    Some(event)
}
