//! A thread for each connection, which has nothing else to do and blocks on its socket.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::process::{ACCEPT_PAUSE, THREAD_IDLE_TIME, THREAD_STACK_BYTES};
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{Accepted, Admission};
use crate::serve::connection::{Admitted, Close, Connection};
use crate::serve::lingering::Lingering;
use crate::serve::service::Service;
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
    /// No client yet.
    pub(crate) fn new(admission: Admission, service: &Arc<Service>) -> Blocking {
        let most = service.runtime.host.limits.connections;
        let service = Arc::clone(service);
        let work = move |admitted: Admitted| serve(admitted, &service);
        Blocking {
            admission,
            threads: Threads::new(most, THREAD_STACK_BYTES, THREAD_IDLE_TIME, work),
        }
    }

    /// Accepts until nobody waits, or `shutdown` begins; `each` is called now and then.
    ///
    /// # Errors
    /// The listener is broken.
    pub(crate) fn accept_all(
        &mut self,
        listener: &TcpListener,
        shutdown: &Shutdown,
        mut each: impl FnMut(),
    ) -> io::Result<()> {
        while shutdown.is_accepting() {
            each();
            match self.admission.accept(listener, self.threads.live())? {
                Accepted::Client(admitted) => {
                    let stream = Arc::clone(admitted.permit.stream());
                    if let Err(error) = self.threads.run(admitted) {
                        let why = format!("no thread: {error}");
                        self.admission.refuse(&stream, &why);
                    }
                }
                Accepted::Refused => {}
                Accepted::Nobody => break,
                Accepted::Starved => shutdown.wait(None, Some(ACCEPT_PAUSE))?,
            }
        }
        Ok(())
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.admission.count()
    }
}

/// Serves one client to the end.
fn serve(admitted: Admitted, service: &Service) {
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
        Close::Linger => linger(&mut socket, service.runtime.limits.wire.write_time),
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
