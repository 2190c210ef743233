//! Connections that have heard the greeting.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

use airlock::process::capacity;
use rustix::event::epoll::EventFlags as Flags;

use crate::client::Client;
use crate::connect::Connector;
use crate::events::Events;
use crate::fault::Fault;
use crate::plan::{Mode, Plan};
use crate::talk::{CHUNK, wrong};

/// Connections that are on their way at once where it is not the coming that is measured: then no
/// backlog overflows, which costs seconds.
const BATCH: usize = 64;

/// How long the end of a wrong greeting may take.
const REST_TIME: Duration = Duration::from_millis(100);

const GREETING: &str = "the greeting";

/// Raises the limit of open files, of the servers that are started too.
///
/// # Errors
/// There is no room for so many connections.
pub fn make_room(connections: usize) -> Result<(), Fault> {
    let room = capacity::raise_open_files();
    if connections as u64 > room {
        return Err(Fault::Descriptors { connections, room });
    }
    Ok(())
}

/// Opens the connections with these numbers, which do not block. Those that will be held come all at
/// once.
pub(crate) fn open(
    plan: &Plan,
    connector: &Connector,
    numbers: Range<usize>,
) -> Result<Vec<Client>, Fault> {
    let most = match plan.mode {
        Mode::Hold => numbers.len(),
        Mode::Ping | Mode::Pipeline | Mode::Churn => BATCH,
    };
    let mut opening = Opening {
        plan,
        connector,
        events: Events::new(most)?,
        arrivals: Vec::with_capacity(numbers.len()),
        greeted: 0,
        room: vec![0; plan.talk.greeting.len()],
    };
    opening.run(numbers, most)?;
    let clients = opening.arrivals.into_iter().map(|arrival| arrival.client);
    Ok(clients.collect())
}

/// A connection on its way.
struct Arrival {
    client: Client,
    /// Bytes of the greeting.
    heard: usize,
    is_greeted: bool,
}

struct Opening<'a> {
    plan: &'a Plan,
    connector: &'a Connector,
    events: Events,
    arrivals: Vec<Arrival>,
    greeted: usize,
    room: Vec<u8>,
}

impl Opening<'_> {
    /// Has at most so many on their way.
    fn run(&mut self, mut numbers: Range<usize>, most: usize) -> Result<(), Fault> {
        loop {
            let free = most - (self.arrivals.len() - self.greeted);
            for number in numbers.by_ref().take(free) {
                self.begin(number)?;
            }
            if self.greeted == self.arrivals.len() {
                return Ok(());
            }
            let until = Instant::now() + self.plan.timeout;
            let count = self.events.wait(until)?;
            if count == 0 && Instant::now() >= until {
                return Err(self.silence());
            }
            for event in 0..count {
                self.go_on(self.events.number(event))?;
            }
        }
    }

    fn begin(&mut self, number: usize) -> Result<(), Fault> {
        let client = self.connector.begin(number)?;
        // Without a greeting, to be connected is all.
        let what = client.first_flags(!self.plan.talk.greeting.is_empty());
        // Once for what is new, so that one that has been greeted is quiet.
        self.events
            .add(&client, self.arrivals.len(), what | Flags::ET)?;
        self.arrivals.push(Arrival {
            client,
            heard: 0,
            is_greeted: false,
        });
        Ok(())
    }

    fn go_on(&mut self, place: usize) -> Result<(), Fault> {
        let arrival = &mut self.arrivals[place];
        if arrival.is_greeted {
            return Ok(());
        }
        let greeting = &self.plan.talk.greeting;
        if let Some(error) = arrival.hear(greeting, &mut self.room)? {
            return Err(match error.kind() {
                ErrorKind::ConnectionReset => Fault::Broken(GREETING, error),
                _ => Fault::Connect(self.connector.address.clone(), error),
            });
        }
        if arrival.heard == greeting.len() {
            arrival.is_greeted = true;
            self.greeted += 1;
        }
        Ok(())
    }

    /// Of one of those that nothing has happened to.
    fn silence(&self) -> Fault {
        let timeout = self.plan.timeout;
        let is_connected = |arrival: &Arrival| arrival.client.stream.socket.peer_addr().is_ok();
        let silent = self.arrivals.iter().find(|arrival| !arrival.is_greeted);
        if silent.is_some_and(is_connected) {
            Fault::Silent(GREETING, timeout)
        } else {
            Fault::Connect(self.connector.address.clone(), ErrorKind::TimedOut.into())
        }
    }
}

impl Arrival {
    /// Hears what there is of the greeting, or how the connection has failed.
    fn hear(&mut self, greeting: &[u8], room: &mut [u8]) -> Result<Option<io::Error>, Fault> {
        if greeting.is_empty() {
            return Ok(self.client.stream.socket.take_error()?);
        }
        while self.heard < greeting.len() {
            let before = self.heard;
            self.heard += match self.client.read(&mut room[before..]) {
                Ok(0) => return Err(Fault::Closed(GREETING)),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Ok(Some(error)),
            };
            // At once: a wrong one may be shorter, and the rest would never come.
            let heard = &room[before..self.heard];
            if greeting[before..self.heard] != *heard {
                let line = [&greeting[..before], heard, &self.rest_of_line(heard)].concat();
                return Err(wrong(GREETING, &line, greeting));
            }
        }
        Ok(None)
    }

    /// What a wrong greeting has beyond the length of the right one, so that it is shown whole.
    fn rest_of_line(&mut self, heard: &[u8]) -> Vec<u8> {
        let mut rest = Vec::new();
        let socket = &self.client.stream.socket;
        let waits = socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_read_timeout(Some(REST_TIME)));
        if !heard.contains(&b'\n') && waits.is_ok() {
            rest.resize(CHUNK, 0);
            // No more is as good as an error here.
            let count = self.client.read(&mut rest).unwrap_or_default();
            rest.truncate(count);
        }
        rest
    }
}
