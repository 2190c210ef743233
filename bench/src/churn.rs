//! Short conversations, one after the other: connect, hear the greeting, leave, hear the close.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use rustix::event::epoll::EventFlags as Flags;

use crate::client::Client;
use crate::connect::Connector;
use crate::events::Events;
use crate::fault::Fault;
use crate::measured::Measured;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::talk::{CHUNK, wrong};

const GREETING: &str = "the greeting";
const CLOSE: &str = "the close";

/// Has so many conversations at once, until the end of the pace, and waits for the last to end. One
/// that goes wrong has no other in its place.
pub(crate) fn visit(
    plan: &Plan,
    connector: &Connector,
    pace: Pace,
    count: usize,
) -> Result<Measured, Fault> {
    let mut load = Load {
        plan,
        connector,
        pace,
        events: Events::new(count)?,
        visits: (0..count).map(|_| None).collect(),
        idle: (0..count).rev().collect(),
        under_way: 0,
        begun: 0,
        room: vec![0; CHUNK],
        measured: Measured::new(),
    };
    load.run()?;
    Ok(load.measured)
}

/// One conversation.
struct Visit {
    client: Client,
    /// It waits only for the server.
    is_begun: bool,
    /// When it began, or should have.
    since: Instant,
    /// Bytes of the greeting; of the goodbye, once it has left.
    heard: usize,
    has_left: bool,
}

struct Load<'a> {
    plan: &'a Plan,
    connector: &'a Connector,
    pace: Pace,
    events: Events,
    visits: Vec<Option<Visit>>,
    /// Places in `visits` for the next ones.
    idle: Vec<usize>,
    under_way: usize,
    /// How many have begun.
    begun: u64,
    room: Vec<u8>,
    measured: Measured,
}

impl Load<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        while self.under_way + self.idle.len() > 0 {
            let now = Instant::now();
            let until = if now < self.pace.end {
                self.begin_what_is_due(now)?
            } else if self.under_way == 0 {
                break;
            } else if now < self.pace.end + self.plan.timeout {
                self.pace.end + self.plan.timeout
            } else {
                self.give_up_the_silent();
                break;
            };
            for event in 0..self.events.wait_at(self.pace, until)? {
                self.go_on(self.events.number(event))?;
            }
        }
        self.measured.unsent = self.pace.all().saturating_sub(self.begun);
        Ok(())
    }

    /// Begins conversations, and returns when there is something to do again.
    fn begin_what_is_due(&mut self, now: Instant) -> Result<Instant, Fault> {
        while let Some(&place) = self.idle.last() {
            let due = self.pace.due(self.begun);
            if due > now {
                return Ok(due.min(self.pace.end));
            }
            let since = if self.pace.is_fixed() {
                due
            } else {
                Instant::now()
            };
            self.begun += 1;
            self.idle.pop();
            match self.begin(place, since) {
                Ok(visit) => {
                    self.visits[place] = Some(visit);
                    self.under_way += 1;
                }
                Err(fault) => self.give_up(fault)?,
            }
        }
        Ok(self.pace.end)
    }

    fn begin(&self, place: usize, since: Instant) -> Result<Visit, Fault> {
        let client = self.connector.begin(place)?;
        // Without a greeting, it is the client's turn as soon as it is connected.
        let flags = client.first_flags(!self.plan.talk.greeting.is_empty());
        self.events.add(&client, place, flags)?;
        Ok(Visit {
            client,
            is_begun: !flags.contains(Flags::OUT),
            since,
            heard: 0,
            has_left: false,
        })
    }

    fn go_on(&mut self, place: usize) -> Result<(), Fault> {
        let Some(mut visit) = self.visits[place].take() else {
            return Ok(());
        };
        match self.advance(place, &mut visit) {
            Ok(false) => {
                self.visits[place] = Some(visit);
                return Ok(());
            }
            Ok(true) => {
                let now = Instant::now();
                let latency = now.saturating_duration_since(visit.since);
                self.measured.note(1, latency);
                self.measured.time = now.saturating_duration_since(self.pace.start);
                self.idle.push(place);
            }
            Err(fault) => self.give_up(fault)?,
        }
        self.under_way -= 1;
        Ok(())
    }

    /// Counts a conversation that went wrong.
    fn give_up(&mut self, fault: Fault) -> Result<(), Fault> {
        // Nobody listens, and that is all there is to say.
        if matches!(fault, Fault::Connect(..)) && self.measured.answered == 0 {
            return Err(fault);
        }
        self.measured.give_up(fault);
        Ok(())
    }

    /// Takes the next step, and returns whether it was the last one.
    fn advance(&mut self, place: usize, visit: &mut Visit) -> Result<bool, Fault> {
        let talk = &self.plan.talk;
        if !visit.is_begun {
            visit.is_begun = true;
            self.events.change(&visit.client, place, Flags::IN)?;
            if talk.greeting.is_empty() {
                self.leave(visit)?;
                return Ok(false);
            }
        }
        let what = if visit.has_left { CLOSE } else { GREETING };
        let count = match visit.client.read(&mut self.room) {
            Ok(0) if visit.has_left => return Ok(true),
            Ok(0) => return Err(Fault::Closed(GREETING)),
            Ok(count) => count,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(false),
                    ErrorKind::ConnectionRefused => {
                        Err(Fault::Connect(self.connector.address.clone(), error))
                    }
                    _ => Err(Fault::Broken(what, error)),
                };
            }
        };
        let heard = &self.room[..count];
        let (what, wanted) = if visit.has_left {
            ("the answer to the leave", &talk.goodbye)
        } else {
            (GREETING, &talk.greeting)
        };
        if !wanted[visit.heard..].starts_with(heard) {
            let line = [&wanted[..visit.heard], heard].concat();
            return Err(wrong(what, &line, wanted));
        }
        visit.heard += count;
        if !visit.has_left && visit.heard == talk.greeting.len() {
            self.leave(visit)?;
        }
        Ok(false)
    }

    fn leave(&self, visit: &mut Visit) -> Result<(), Fault> {
        visit.has_left = true;
        visit.heard = 0;
        let leave = &self.plan.talk.leave;
        let left = if leave.is_empty() {
            visit.client.stream.end_output()
        } else {
            // Into the empty buffer of a new socket.
            visit.client.write_all(leave)
        };
        left.map_err(|error| Fault::Broken(CLOSE, error))
    }

    fn give_up_the_silent(&mut self) {
        for visit in self.visits.iter_mut().filter_map(Option::take) {
            let what = if visit.has_left { CLOSE } else { GREETING };
            self.measured
                .give_up(Fault::Silent(what, self.plan.timeout));
        }
    }
}
