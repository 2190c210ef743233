//! One connection at a seat: driven as far as it gets without waiting, and what it waits for then.

use std::io::ErrorKind;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::process::{PORTIONS_PER_TURN, SENDS_PER_TURN};
use crate::serve::connection::{Admitted, Close, Connection};
use crate::serve::lingering::Lingering;
use crate::serve::socket::Socket;
use crate::serve::transport::Transport;
use crate::talk::conversation::{Event, Wait};
use crate::talk::mailbox::Mailbox;

/// A connection that nobody drives now.
pub(super) struct Parked {
    connection: Connection,
    stream: Arc<socket2::Socket>,
    transport: Transport,
    /// That it has to end has been told.
    draining: bool,
    /// There may be input of which the kernel does not tell again.
    unread: bool,
    /// What there is now is the last.
    is_last: bool,
    /// It has ended, and its client has to take note.
    lingering: Option<Lingering>,
    pub(super) waits: Waits,
}

/// What it waits for, and for how long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Input(Duration),
    Room(Duration),
    /// The client's end.
    End(Duration),
    /// That others have had their turn.
    Turn,
}

/// Why it is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The kernel tells that there is what it waits for.
    Told(Told),
    TimeUp,
    Turn,
    /// There may be mail.
    Mail,
    /// It has to end.
    Drain,
}

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// There is something.
    More,
    /// There is something, and nothing will come after it: the client has ended its side, or the
    /// connection is no more.
    Last,
}

impl Parked {
    /// Has the client greeted. Returns nothing when it is over already.
    pub(super) fn start(mut admitted: Box<Admitted>) -> Option<Box<Parked>> {
        let stream = Arc::clone(admitted.permit.stream());
        let transport = mem::take(&mut admitted.transport);
        let (connection, wait) = Connection::start(admitted, &transport);
        let parked = Box::new(Parked {
            connection,
            stream,
            draining: false,
            unread: transport.may_have_more(false),
            transport,
            is_last: false,
            lingering: None,
            waits: Waits::Turn,
        });
        parked.go_on(wait, false)
    }

    /// Whether this is what it waits for.
    pub(super) fn waits_for(&self, occasion: Occasion) -> bool {
        match occasion {
            Occasion::Turn => self.waits == Waits::Turn,
            Occasion::Mail => self.has_mail_to_hear(),
            Occasion::Told(_) | Occasion::TimeUp | Occasion::Drain => self.waits != Waits::Turn,
        }
    }

    /// Drives it. Returns nothing when it is over.
    pub(super) fn advance(mut self: Box<Parked>, occasion: Occasion) -> Option<Box<Parked>> {
        if self.lingering.is_some() {
            return self.linger(matches!(occasion, Occasion::Told(_)));
        }
        let mut received = false;
        let wait = match (occasion, self.waits) {
            (Occasion::Drain, _) => {
                self.draining = true;
                self.connection.turn(Event::Drain)
            }
            (Occasion::Told(told), Waits::Input(_)) => {
                self.is_last |= told == Told::Last;
                received = true;
                self.receive(None)
            }
            // What has come in time and was not looked at yet counts.
            (Occasion::TimeUp, Waits::Input(_)) => self.receive(Some(Event::Deadline)),
            (Occasion::TimeUp, Waits::Room(_)) => {
                let stalled = self.stalled();
                self.connection.turn(stalled)
            }
            _ => self.connection.resume(),
        };
        self.go_on(wait, received)
    }

    /// The kernel has told something that could not be acted upon.
    pub(super) fn hear(&mut self, told: Told) {
        self.is_last |= told == Told::Last;
        self.unread = true;
        self.waits = Waits::Turn;
    }

    /// Where what others publish waits for it, once its guest has asked to hear some of that.
    pub(super) fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.connection.conversation.mailbox()
    }

    /// There may be mail, of which nobody tells again.
    pub(super) fn look_for_mail(&mut self) {
        if self.has_mail_to_hear() {
            self.waits = Waits::Turn;
        }
    }

    /// Whoever waits for something else looks for mail afterwards.
    fn has_mail_to_hear(&self) -> bool {
        matches!(self.waits, Waits::Input(_)) && self.has_mail()
    }

    fn has_mail(&self) -> bool {
        self.connection.conversation.has_mail()
    }

    pub(super) fn has_to_drain(&self) -> bool {
        !self.draining && self.lingering.is_none() && self.connection.held.is_draining()
    }

    fn stalled(&self) -> Event {
        let sent_bytes = self.connection.conversation.bytes_out;
        self.transport
            .stalled(&Socket::new(&self.stream), sent_bytes)
    }

    /// Reads what there is. If that is nothing, `otherwise` has happened, or nothing has.
    fn receive(&mut self, otherwise: Option<Event>) -> Option<Wait> {
        let room = self.connection.conversation.room();
        let room_bytes = room.len();
        let socket = Socket::new(&self.stream);
        let received = self.transport.receive_now(&socket, room);
        self.unread = match &received {
            Ok(count) => self.is_last || self.transport.may_have_more(*count == room_bytes),
            Err(error) => error.kind() == ErrorKind::Interrupted,
        };
        let event = match received {
            // It was cut.
            Ok(0) if self.connection.held.is_draining() => Event::Drain,
            Ok(0) => Event::Eof,
            Ok(count) => Event::Input(count),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted if self.transport.is_overdue() => Event::Deadline,
                ErrorKind::WouldBlock | ErrorKind::Interrupted => match otherwise {
                    Some(event) => event,
                    None => return self.connection.resume(),
                },
                // It was cut.
                ErrorKind::UnexpectedEof if self.connection.held.is_draining() => Event::Drain,
                _ => Event::Broken(error),
            },
        };
        self.transport.end_wait();
        self.connection.turn(event)
    }

    /// Does what can be done at once; `received`, if input has had its part in this turn.
    fn go_on(
        mut self: Box<Parked>,
        mut wait: Option<Wait>,
        mut received: bool,
    ) -> Option<Box<Parked>> {
        let (mut sends, mut portions) = (0, 0);
        self.waits = loop {
            wait = match wait {
                None => {
                    let socket = Socket::new(&self.stream);
                    match self.connection.say_end(&socket, &mut self.transport) {
                        Some(wait) => Some(wait),
                        None => return self.close(),
                    }
                }
                Some(Wait::Receive { .. }) if self.has_to_drain() => {
                    self.draining = true;
                    self.connection.turn(Event::Drain)
                }
                Some(Wait::Receive { .. }) if self.unread && !received => {
                    received = true;
                    self.receive(None)
                }
                Some(Wait::Receive { within }) if self.has_mail() => {
                    if portions == PORTIONS_PER_TURN {
                        self.transport.time_left(within);
                        break Waits::Turn;
                    }
                    portions += 1;
                    self.connection.turn(Event::Mail)
                }
                Some(Wait::Receive { within }) => {
                    // The time of the wait runs while others have their turns.
                    let within = self.transport.time_left(within);
                    break match self.unread {
                        true => Waits::Turn,
                        false => Waits::Input(within),
                    };
                }
                Some(Wait::Room { within }) => break Waits::Room(within),
                Some(Wait::Again) => break Waits::Turn,
                Some(Wait::Send) if sends == SENDS_PER_TURN => break Waits::Turn,
                Some(Wait::Send) => {
                    sends += 1;
                    let socket = Socket::new(&self.stream);
                    let output = self.connection.conversation.output();
                    let event = match self.transport.send(&socket, output) {
                        Ok(count) => Event::Sent(count),
                        Err(error) => match error.kind() {
                            ErrorKind::WouldBlock => self.stalled(),
                            ErrorKind::Interrupted => Event::Sent(0),
                            _ => Event::Broken(error),
                        },
                    };
                    self.connection.turn(event)
                }
            };
        };
        Some(self)
    }

    fn close(mut self: Box<Parked>) -> Option<Box<Parked>> {
        let socket = Socket::new(&self.stream);
        let close = self.connection.close(|| self.transport.has_unread(&socket));
        match close {
            Close::Now => None,
            Close::Reset => {
                socket.reset();
                None
            }
            Close::Linger => {
                let limits = &self.connection.held.service.runtime.limits;
                let write_time = limits.wire.write_time;
                self.lingering = Some(Lingering::begin(&socket, write_time)?);
                self.linger(false)
            }
        }
    }

    /// Reads on until the client has taken note.
    fn linger(mut self: Box<Parked>, reads: bool) -> Option<Box<Parked>> {
        let socket = Socket::new(&self.stream);
        let lingering = self.lingering.as_mut()?;
        if reads && !lingering.discard(|sink| socket.receive_now(sink)) {
            return None;
        }
        self.waits = Waits::End(lingering.time_left(&socket)?);
        Some(self)
    }
}
