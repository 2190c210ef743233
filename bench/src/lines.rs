//! Lines and their replies on open connections: `ping` and `pipeline`, and the end of `hold`.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use rustix::event::epoll::EventFlags as Flags;

use crate::client::Client;
use crate::events::Events;
use crate::fault::Fault;
use crate::measured::Measured;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::talk::CHUNK;

const ANSWER: &str = "an answer";

/// Asks on all these connections until the end of the pace, then waits for the last answers. Each
/// is asked once at least.
///
/// Without a fixed pace, a connection is asked `depth` lines at once, and again when all have been
/// answered.
pub(crate) fn converse(plan: &Plan, pace: Pace, clients: Vec<Client>) -> Result<Measured, Fault> {
    let mut load = Load {
        plan,
        pace,
        events: Events::new(clients.len())?,
        connections: Vec::with_capacity(clients.len()),
        open: clients.len(),
        asked: 0,
        in_flight: 0,
        due: 0,
        room: vec![0; CHUNK],
        measured: Measured::new(),
    };
    for (number, client) in clients.into_iter().enumerate() {
        load.events.add(&client, number, Flags::IN)?;
        load.connections.push(Some(Connection {
            client,
            due: 0,
            asked: 0,
            asked_at: pace.start,
            written: 0,
            heard: 0,
            is_full: false,
        }));
    }
    load.run()?;
    Ok(load.measured)
}

struct Connection {
    client: Client,
    /// Lines that should have been asked by now, at a fixed pace.
    due: u64,
    /// Lines that have been asked; the last of them may not be written yet.
    asked: u64,
    /// When a line was last asked.
    asked_at: Instant,
    /// Bytes of these lines that the connection has taken.
    written: u64,
    /// Bytes of answers.
    heard: u64,
    /// The kernel takes no more, and will say when it does.
    is_full: bool,
}

struct Load<'a> {
    plan: &'a Plan,
    pace: Pace,
    events: Events,
    /// Without those that were given up.
    connections: Vec<Option<Connection>>,
    open: usize,
    /// Lines that have been asked on all connections.
    asked: u64,
    /// Those that have not been answered.
    in_flight: u64,
    /// Lines that have come due, on all connections in turn.
    due: u64,
    room: Vec<u8>,
    measured: Measured,
}

impl Load<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        if !self.pace.is_fixed() {
            for number in 0..self.connections.len() {
                self.attempt(number, |load, connection| {
                    let depth = load.plan.depth as u64;
                    load.ask(number, connection, depth)
                });
            }
        }
        while self.open > 0 {
            let now = Instant::now();
            if now >= self.pace.end {
                if self.in_flight == 0 {
                    break;
                }
                if now >= self.pace.end + self.plan.timeout {
                    self.give_up_the_silent();
                    break;
                }
            }
            let next = self.ask_what_is_due(now);
            for event in 0..self.events.wait_at(self.pace, next)? {
                let number = self.events.number(event);
                self.attempt(number, |load, connection| load.go_on(number, connection));
            }
        }
        self.measured.unsent = self.pace.all().saturating_sub(self.asked);
        Ok(())
    }

    /// Does something with a connection, and gives it up if that fails.
    fn attempt(
        &mut self,
        number: usize,
        what: impl FnOnce(&mut Self, &mut Connection) -> Result<(), Fault>,
    ) {
        let Some(mut connection) = self.connections[number].take() else {
            return;
        };
        match what(self, &mut connection) {
            Ok(()) => self.connections[number] = Some(connection),
            Err(fault) => self.give_up(&connection, fault),
        }
    }

    fn give_up(&mut self, connection: &Connection, fault: Fault) {
        self.measured.give_up(fault);
        self.open -= 1;
        self.in_flight -= connection.asked - self.answered(connection);
    }

    fn give_up_the_silent(&mut self) {
        for number in 0..self.connections.len() {
            self.attempt(number, |load, connection| {
                if connection.asked == load.answered(connection) {
                    return Ok(());
                }
                Err(Fault::Silent(ANSWER, load.plan.timeout))
            });
        }
    }

    fn answered(&self, connection: &Connection) -> u64 {
        connection.heard / self.plan.talk.reply.period()
    }

    /// Asks what has come due at a fixed pace, and returns when there is something to do again.
    fn ask_what_is_due(&mut self, now: Instant) -> Instant {
        if now >= self.pace.end {
            return self.pace.end + self.plan.timeout;
        }
        if !self.pace.is_fixed() {
            return self.pace.end;
        }
        loop {
            let next = self.pace.due(self.due);
            if next > now {
                return next.min(self.pace.end);
            }
            let number = (self.due % self.connections.len() as u64) as usize;
            self.due += 1;
            self.attempt(number, |load, connection| {
                connection.due += 1;
                load.ask_if_due(number, connection)
            });
        }
    }

    /// Asks the lines that are due on this connection, as far as it may have them in flight.
    fn ask_if_due(&mut self, number: usize, connection: &mut Connection) -> Result<(), Fault> {
        let in_flight = connection.asked - self.answered(connection);
        let may = self.plan.depth as u64 - in_flight;
        let lines = may.min(connection.due - connection.asked);
        self.ask(number, connection, lines)
    }

    fn ask(&mut self, number: usize, connection: &mut Connection, lines: u64) -> Result<(), Fault> {
        connection.asked += lines;
        connection.asked_at = Instant::now();
        self.asked += lines;
        self.in_flight += lines;
        self.write(number, connection)
    }

    /// Writes what is asked, as far as the kernel takes it.
    fn write(&mut self, number: usize, connection: &mut Connection) -> Result<(), Fault> {
        let line = &self.plan.talk.line;
        let all = connection.asked * line.period();
        let mut is_full = false;
        while connection.written < all && !is_full {
            let lines = line.from(connection.written);
            let left = usize::try_from(all - connection.written).unwrap_or(usize::MAX);
            match connection.client.write(&lines[..left.min(lines.len())]) {
                Ok(count) => connection.written += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => is_full = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It may have said why: that is read first.
                Err(_) => break,
            }
        }
        is_full |= connection.client.stream.has_unsent();
        if is_full != connection.is_full {
            connection.is_full = is_full;
            let flags = if is_full {
                Flags::IN | Flags::OUT
            } else {
                Flags::IN
            };
            self.events.change(&connection.client, number, flags)?;
        }
        Ok(())
    }

    /// Reads what there is, and asks and writes what may follow it.
    fn go_on(&mut self, number: usize, connection: &mut Connection) -> Result<(), Fault> {
        match connection.client.read(&mut self.room) {
            Ok(0) => return Err(Fault::Closed(ANSWER)),
            Ok(count) => self.hear(number, connection, count)?,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                _ => return Err(Fault::Broken(ANSWER, error)),
            },
        }
        if Instant::now() < self.pace.end {
            if self.pace.is_fixed() {
                return self.ask_if_due(number, connection);
            }
            if self.answered(connection) == connection.asked {
                return self.ask(number, connection, self.plan.depth as u64);
            }
        }
        self.write(number, connection)
    }

    fn hear(
        &mut self,
        number: usize,
        connection: &mut Connection,
        count: usize,
    ) -> Result<(), Fault> {
        let now = Instant::now();
        let heard = &self.room[..count];
        let before = self.answered(connection);
        self.plan.talk.reply.check(connection.heard, heard)?;
        if connection.heard + count as u64 > connection.asked * self.plan.talk.reply.period() {
            return Err(Fault::Unasked);
        }
        connection.heard += count as u64;
        let after = self.answered(connection);
        self.in_flight -= after - before;
        self.measured.time = now.saturating_duration_since(self.pace.start);
        if !self.pace.is_fixed() {
            self.measured
                .note(after - before, now - connection.asked_at);
            return Ok(());
        }
        let all = self.connections.len() as u64;
        for line in before..after {
            // Counted from when it should have been asked: when the server stalls, those that have
            // to wait for it count too, not only the one that it stalls on.
            let due = self.pace.due(number as u64 + line * all);
            self.measured.note(1, now.saturating_duration_since(due));
        }
        Ok(())
    }
}
