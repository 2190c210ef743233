//! A thread for each connection, which has nothing else to do and blocks on its socket.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::process::{
    ACCEPT_PAUSE, ACCEPTS_PER_ROUND, THREAD_IDLE_TIME, THREAD_STACK_BYTES,
};
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Accepted, Admission, Candidate, Door, Telling};
use crate::serve::bell::Bell;
use crate::serve::connection::{Admitted, Close, Connection, Held};
use crate::serve::handshakes::{self, Newcomer};
use crate::serve::headers;
use crate::serve::lingering::Lingering;
use crate::serve::socket::Socket;
use crate::serve::threads::Threads;
use crate::serve::transport::Transport;
use crate::serve::waiting_room::{Queue, WaitingRoom};
use crate::talk::conversation::{Conversation, Event, Wait};
use crate::talk::handler::Handler;
use crate::talk::mailbox::Mailbox;

/// Lets clients in, and has a thread for each.
pub(crate) struct Blocking {
    admission: Admission,
    headers: WaitingRoom<Candidate>,
    handshakes: WaitingRoom<Newcomer>,
    threads: Arc<Threads<Box<Admitted>>>,
}

impl Blocking {
    /// No door and no client yet, and never more than `most` at once.
    pub(crate) fn new(most: usize, shutdown: &Shutdown) -> Blocking {
        let threads = Threads::new(most, THREAD_STACK_BYTES, THREAD_IDLE_TIME, serve);
        let threads = Arc::new(threads);
        let handshakes = handshakes::room(shutdown, {
            let threads = Arc::clone(&threads);
            move |admitted| start(&threads, admitted)
        });
        let headers = headers::room(shutdown, {
            let (threads, queue) = (Arc::clone(&threads), Arc::clone(handshakes.queue()));
            move |candidate, proxied| {
                let admitted = admission::admit(candidate, proxied, threads.live());
                if let Some(admitted) = admitted {
                    go_on(&threads, &queue, admitted);
                }
            }
        });
        Blocking {
            admission: Admission::new(),
            headers,
            handshakes,
            threads,
        }
    }

    /// Lets clients in at these doors from now on, and at no others.
    pub(crate) fn change(&mut self, doors: Vec<Door>) {
        self.admission.change(doors);
    }

    /// What clients come to, by the numbers of the doors.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
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
                    go_on(&self.threads, self.handshakes.queue(), admitted);
                }
                Accepted::Expected(candidate) => headers::expect(self.headers.queue(), candidate),
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

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.admission.count()
    }
}

/// Has a client shake hands, if that has to come first, and then gives it a thread.
fn go_on(
    threads: &Threads<Box<Admitted>>,
    queue: &Arc<Queue<Newcomer>>,
    mut admitted: Box<Admitted>,
) {
    match admitted.handshake.take() {
        Some(config) => handshakes::shake(queue, admitted, config),
        None => start(threads, admitted),
    }
}

/// Gives a client a thread.
fn start(threads: &Threads<Box<Admitted>>, admitted: Box<Admitted>) {
    let stream = Arc::clone(admitted.permit.stream());
    let service = Arc::clone(&admitted.service);
    let telling = Telling::through(&admitted.transport);
    if let Err(error) = threads.run(admitted) {
        let why = format!("no thread: {error}");
        admission::refuse(&service, &stream, telling, &why);
    }
}

/// Serves one client to the end.
fn serve(mut admitted: Box<Admitted>) {
    admitted.permit.begin();
    let stream = Arc::clone(admitted.permit.stream());
    let mut socket = Socket::new(&stream);
    let mut transport = mem::take(&mut admitted.transport);
    let (mut connection, mut wait) = Connection::start(admitted, &transport);
    let mut ear = None;
    while let Some(next) = wait.or_else(|| connection.say_end(&socket, &mut transport)) {
        let Connection {
            conversation, held, ..
        } = &mut connection;
        let is_draining = || held.is_draining();
        let event = match (next, conversation.mailbox()) {
            (Wait::Receive { within }, Some(mailbox)) => match ear_of(&mut ear, mailbox, held) {
                Ok(ear) => ear.receive(within, conversation, &socket, &mut transport, &is_draining),
                Err(error) => Some(Event::Broken(error)),
            },
            _ => perform(
                next,
                conversation,
                &mut socket,
                &mut transport,
                &is_draining,
            ),
        };
        wait = match event {
            Some(event) => connection.turn(event),
            None => connection.resume(),
        };
    }
    match connection.close(|| transport.has_unread(&socket)) {
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

/// How a thread waits whose guest hears others: for its socket and for them.
struct Ear {
    bell: Bell,
    /// There may be input of which the kernel does not tell again.
    unread: bool,
}

/// It is there from the first message that may come.
fn ear_of<'a>(ear: &'a mut Option<Ear>, mailbox: &Mailbox, held: &Held) -> io::Result<&'a mut Ear> {
    match ear {
        Some(ear) => Ok(ear),
        None => Ok(ear.insert(Ear {
            bell: Bell::new(mailbox, &held.permit)?,
            unread: true,
        })),
    }
}

impl Ear {
    /// The client first, and then the others: the conversation has heard them before it waits, if it was
    /// their turn.
    fn receive<H: Handler>(
        &mut self,
        within: Duration,
        conversation: &mut Conversation<H>,
        socket: &Socket<'_>,
        transport: &mut Transport,
        is_draining: &impl Fn() -> bool,
    ) -> Option<Event> {
        if is_draining() {
            return Some(Event::Drain);
        }
        let within = transport.time_left(within);
        let is_there = self.unread || conversation.has_mail();
        let time = if is_there { Duration::ZERO } else { within };
        let woken = match self.bell.wait(socket, time) {
            Ok(woken) => woken,
            Err(error) if error.kind() == ErrorKind::Interrupted => return None,
            Err(error) => return Some(Event::Broken(error)),
        };
        if self.unread || woken == Some(true) {
            let room = conversation.room();
            let room_bytes = room.len();
            let received = transport.receive_now(socket, room);
            self.unread = match &received {
                Ok(count) => transport.may_have_more(*count == room_bytes),
                Err(error) => error.kind() == ErrorKind::Interrupted,
            };
            match received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                received => return heard(received, transport, is_draining),
            }
        }
        if conversation.has_mail() {
            return Some(Event::Mail);
        }
        (!is_there && woken.is_none()).then(|| {
            transport.end_wait();
            Event::Deadline
        })
    }
}

/// What has happened when this came of a read; nothing, if it was interrupted.
fn heard(
    received: io::Result<usize>,
    transport: &mut Transport,
    is_draining: &impl Fn() -> bool,
) -> Option<Event> {
    let event = match received {
        // A drain may end the input, or the wait.
        Ok(0) if is_draining() => Event::Drain,
        Ok(0) => Event::Eof,
        Ok(count) => Event::Input(count),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::UnexpectedEof if is_draining() => Event::Drain,
            ErrorKind::WouldBlock => Event::Deadline,
            ErrorKind::Interrupted if transport.is_overdue() => Event::Deadline,
            ErrorKind::Interrupted => return None,
            _ => Event::Broken(error),
        },
    };
    transport.end_wait();
    Some(event)
}

/// Does what is waited for, and says what came of it; nothing, if that was interrupted. `is_draining`
/// tells whether the server, or this connection's version of the guest, has begun to end; when that
/// begins, a read that waits is interrupted.
pub fn perform<H: Handler>(
    wait: Wait,
    conversation: &mut Conversation<H>,
    socket: &mut Socket<'_>,
    transport: &mut Transport,
    is_draining: &impl Fn() -> bool,
) -> Option<Event> {
    let event = match wait {
        Wait::Receive { within } => {
            if let Err(error) = socket.set_read_time(transport.time_left(within)) {
                return Some(Event::Broken(error));
            }
            // After the time has been set, which a drain that begins sets too.
            if is_draining() {
                return Some(Event::Drain);
            }
            let received = transport.receive(socket, conversation.room());
            return heard(received, transport, is_draining);
        }
        Wait::Again => return None,
        Wait::Send => match transport.send(socket, conversation.output()) {
            Ok(count) => Event::Sent(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => transport.stalled(socket, conversation.bytes_out),
                ErrorKind::Interrupted => return None,
                _ => Event::Broken(error),
            },
        },
        Wait::Room { within } => match socket.wait_for_room(within) {
            Ok(true) => return None,
            Ok(false) => transport.stalled(socket, conversation.bytes_out),
            Err(error) => Event::Broken(error),
        },
    };
    Some(event)
}
