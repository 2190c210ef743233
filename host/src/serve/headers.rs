//! Waits for the PROXY headers of connections that a proxy has opened, before anything is spent on them
//! but their place among the connections: no sandbox, no thread.
//!
//! All of them are on one thread, which waits at an epoll descriptor and starts with the first of them.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

use crate::limits::wire::{HEALTH_CHECK_TIME, PROXY_HEADER_TIME};
use crate::logging::Recurring;
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Candidate};
use crate::serve::proxy::{Header, NoHeader, Proxied};
use crate::serve::waiting_room::{Inside, Queue, WAKE, WaitingRoom};

/// Takes those whose header has come: of whom they are, if the proxy has said that.
type Serve = Arc<dyn Fn(Candidate, Option<Proxied>) + Send + Sync>;

/// Where headers are waited for, in a server that `shutdown` ends. `serve` gets those whose header has
/// come.
pub(crate) fn room(
    shutdown: &Shutdown,
    serve: impl Fn(Candidate, Option<Proxied>) + Send + Sync + 'static,
) -> WaitingRoom<Candidate> {
    let serve: Serve = Arc::new(serve);
    WaitingRoom::new(shutdown, "proxy headers", move |inside| {
        let waiting = Waiting {
            inside,
            serve: Arc::clone(&serve),
            connections: HashMap::new(),
            deadlines: BTreeSet::new(),
            refused: Recurring::new(),
        };
        waiting.run();
    })
}

/// Waits for the header of a connection, which is served then.
pub(crate) fn expect(queue: &Arc<Queue<Candidate>>, candidate: Candidate) {
    if let Err((candidate, error)) = queue.add(candidate) {
        let why = format!("no thread for PROXY headers: {error}");
        admission::refuse_candidate(&candidate, &why);
    }
}

/// What the thread has.
struct Waiting {
    inside: Inside<Candidate>,
    serve: Serve,
    /// By their ids.
    connections: HashMap<u64, Connection>,
    /// Until when each may wait.
    deadlines: BTreeSet<(Instant, u64)>,
    refused: Recurring,
}

struct Connection {
    candidate: Candidate,
    waits: WaitsFor,
    deadline: Instant,
}

enum WaitsFor {
    Header(Header),
    /// The header says that the connection is the proxy's own. If it ends now, that was a health check.
    Word,
}

impl Waiting {
    fn run(mut self) {
        while let Some((events, newcomers)) = self.inside.wait(self.time_left()) {
            for candidate in newcomers {
                self.take_in(candidate);
            }
            for id in events {
                match id {
                    WAKE => self.let_ending_ones_go(),
                    id => self.go_on(id),
                }
            }
            self.look_at_the_time();
        }
    }

    /// How long the one whose time is over first has left.
    fn time_left(&self) -> Option<Duration> {
        let first = self.deadlines.first();
        first.map(|(first, _)| first.saturating_duration_since(Instant::now()))
    }

    /// Nothing has been said that would have to be answered.
    fn let_ending_ones_go(&mut self) {
        let is_draining = self.inside.queue.shutdown.is_draining();
        self.connections.retain(|_, connection| {
            !is_draining && !connection.candidate.service.group.is_ending()
        });
        let connections = &self.connections;
        self.deadlines
            .retain(|(_, id)| connections.contains_key(id));
    }

    fn take_in(&mut self, candidate: Candidate) {
        let id = candidate.id;
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let stream = candidate.permit.stream();
        let data = EventData::new_u64(id);
        if let Err(error) = epoll::add(&self.inside.epoll, stream.as_fd(), data, flags) {
            let why = format!("no room to wait for a PROXY header: {error}");
            admission::refuse_candidate(&candidate, &why);
            return;
        }
        self.put_back(
            candidate,
            WaitsFor::Header(Header::default()),
            PROXY_HEADER_TIME,
        );
        // It may have come before.
        self.go_on(id);
    }

    fn put_back(&mut self, candidate: Candidate, waits: WaitsFor, time: Duration) {
        let deadline = Instant::now() + time;
        self.deadlines.insert((deadline, candidate.id));
        let id = candidate.id;
        let connection = Connection {
            candidate,
            waits,
            deadline,
        };
        self.connections.insert(id, connection);
    }

    /// Goes on with a connection from which something has come.
    fn go_on(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let stream = connection.candidate.permit.stream();
        match &mut connection.waits {
            WaitsFor::Header(header) => match header.receive(stream) {
                Ok(None) => {}
                Ok(Some(Some(proxied))) if proxied.peer != connection.candidate.peer => {
                    self.serve(id, Some(proxied));
                }
                // It names nobody, or, as HAProxy does for its checks in version 1, the proxy itself.
                Ok(Some(_)) => {
                    if let Some(candidate) = self.take_out(id) {
                        self.put_back(candidate, WaitsFor::Word, HEALTH_CHECK_TIME);
                        self.go_on(id);
                    }
                }
                // Some look in this way whether somebody listens.
                Err(NoHeader::Ended) => {
                    if let Some(candidate) = self.take_out(id) {
                        log_end(&candidate, "it ended before its PROXY header had come");
                    }
                }
                Err(why) => self.refuse(id, &why.to_string()),
            },
            WaitsFor::Word => match has_ended(stream) {
                Some(true) => {
                    if let Some(candidate) = self.take_out(id) {
                        log_end(&candidate, "it was a health check");
                    }
                }
                Some(false) => self.serve(id, None),
                None => {}
            },
        }
    }

    fn look_at_the_time(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if now < deadline {
                return;
            }
            let waits = self
                .connections
                .get(&id)
                .map(|connection| &connection.waits);
            match waits {
                Some(WaitsFor::Header(_)) => {
                    let why = format!("no PROXY header has come within {PROXY_HEADER_TIME:?}");
                    self.refuse(id, &why);
                }
                Some(WaitsFor::Word) => self.serve(id, None),
                None => {
                    self.deadlines.remove(&(deadline, id));
                }
            }
        }
    }

    /// Has it served, as one of this client, or of the proxy itself.
    fn serve(&mut self, id: u64, proxied: Option<Proxied>) {
        if let Some(candidate) = self.take_out(id) {
            let _ = epoll::delete(&self.inside.epoll, candidate.permit.stream().as_fd());
            (self.serve)(candidate, proxied);
        }
    }

    fn refuse(&mut self, id: u64, why: &str) {
        let Some(candidate) = self.take_out(id) else {
            return;
        };
        let (service, proxy) = (candidate.service.runtime.service(), &candidate.peer);
        if let Some(times) = self.refused.again() {
            tracing::warn!(service, connection = id, %proxy, times, "refusing connections of a proxy: {why}");
        }
        admission::turn_away(
            &candidate.service,
            candidate.permit.stream(),
            "error: no PROXY header",
        );
    }

    fn take_out(&mut self, id: u64) -> Option<Candidate> {
        let connection = self.connections.remove(&id)?;
        self.deadlines.remove(&(connection.deadline, id));
        Some(connection.candidate)
    }
}

fn log_end(candidate: &Candidate, what: &str) {
    let (service, proxy) = (candidate.service.runtime.service(), &candidate.peer);
    tracing::debug!(service, connection = candidate.id, %proxy, "a connection of a proxy has ended: {what}");
}

/// Whether what has come is the end; nothing, if nothing has.
fn has_ended(socket: &Socket) -> Option<bool> {
    let looked = recv(
        socket,
        &mut [0_u8; 1],
        RecvFlags::PEEK | RecvFlags::DONTWAIT,
    );
    match looked {
        Ok((count, _)) => Some(count == 0),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(_) => Some(true),
    }
}
