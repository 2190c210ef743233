//! Handshakes of TLS and of WebSocket: before anything is spent on a client but its place among the connections.
//!
//! All of them are on one thread, which waits at an epoll descriptor and starts with the first of them.
//! Whoever is done goes on to where connections are served; whoever fails costs no sandbox, and no thread.
//! The signatures are made here too, so they hold up nobody who is served.
//!
//! No more than [`HANDSHAKES`] are under way. The others wait for their turn, with nothing taken for them,
//! and as many places as that takes they get from clients that keep us waiting. Who waits for us is let
//! go for that at no time.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::mem;
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::limits::process::{CROWDED_HANDSHAKE_TIME, HANDSHAKE_TIME, HANDSHAKES, UPGRADE_BYTES};
use crate::logging::Recurring;
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Telling};
use crate::serve::connection::{self, Admitted};
use crate::serve::socket::Socket;
use crate::serve::tls::certificate;
use crate::serve::tls::failure;
use crate::serve::tls::stream::{Handshake, HandshakeError, TlsStream};
use crate::serve::transport::Transport;
use crate::serve::waiting_room::{Inside, Queue, WaitingRoom};
use crate::serve::websocket::upgrade::{Refusal, Upgrade, Verdict};
use crate::talk::conversation::End;

/// Reasons of failures that are told apart.
const MOST_REASONS: usize = 64;

/// A client, and what comes before its conversation.
pub(crate) type Newcomer = (Box<Admitted>, connection::Handshake);

/// Takes those that are done.
type Serve = Arc<dyn Fn(Box<Admitted>) + Send + Sync>;

/// Where handshakes are made, for a server that `shutdown` ends. `serve` gets who is done.
pub(crate) fn room(
    shutdown: &Shutdown,
    serve: impl Fn(Box<Admitted>) + Send + Sync + 'static,
) -> WaitingRoom<Newcomer> {
    let serve: Serve = Arc::new(serve);
    WaitingRoom::new(shutdown, "handshakes", move |inside| {
        let stage = Stage {
            inside,
            serve: Arc::clone(&serve),
            clients: BTreeMap::new(),
            next: 0,
            begun: 0,
            under_way: 0,
            failed: HashMap::new(),
        };
        stage.run();
    })
}

/// Shakes hands with a client, who is served then.
pub(crate) fn shake(
    queue: &Arc<Queue<Newcomer>>,
    admitted: Box<Admitted>,
    handshake: connection::Handshake,
) {
    if let Err(((admitted, handshake), error)) = queue.add((admitted, handshake)) {
        let why = format!("no thread for handshakes: {error}");
        let stream = admitted.permit.stream();
        let telling = Telling::before(Some(&handshake));
        admission::refuse(&admitted.service, stream, telling, &why);
    }
}

/// What the thread has.
struct Stage {
    inside: Inside<Newcomer>,
    serve: Serve,
    /// By their number, the first come first. The first so many are under way.
    clients: BTreeMap<u64, Client>,
    next: u64,
    /// Those below this number have had their turn to begin.
    begun: u64,
    under_way: usize,
    /// By what it is that failed.
    failed: HashMap<String, Recurring>,
}

struct Client {
    admitted: Box<Admitted>,
    /// What is still to come.
    handshake: connection::Handshake,
    /// Under way.
    tls: Option<Box<TlsStream>>,
    upgrade: Upgrade,
    /// How often that has been received of.
    reads: usize,
    /// The answer to that, with what comes after it.
    answer: Option<Answer>,
    /// Nothing while it waits for its turn; and since when it has that.
    began: Option<Instant>,
    /// When its turn began or it was last told something: since then we wait for it.
    awaited: Instant,
    came: Instant,
}

/// What an HTTP request is answered.
struct Answer {
    unsent: Vec<u8>,
    /// What has come of the WebSocket, or why there is none.
    then: Result<Vec<u8>, Refusal>,
}

/// How a handshake has ended without a connection.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{}", failure::describe(.0))]
    Tls(rustls::Error),
    #[error(transparent)]
    Other(HandshakeError),
    #[error(transparent)]
    Refused(Refusal),
    #[error("the client's certificate cannot be read")]
    Identity,
    #[error("it took longer than {0:?}")]
    Slow(Duration),
    #[error("the client took longer than {0:?} for an answer, and others wait")]
    Crowded(Duration),
}

impl From<HandshakeError> for Failed {
    fn from(error: HandshakeError) -> Failed {
        match error {
            HandshakeError::Tls(error) => Failed::Tls(error),
            other => Failed::Other(other),
        }
    }
}

impl Stage {
    fn run(mut self) {
        while let Some((events, newcomers)) = self.inside.wait(self.time_left()) {
            if self.inside.queue.shutdown.is_draining() {
                // Nothing has been said that would have to be answered.
                self.clients.clear();
                self.under_way = 0;
                continue;
            }
            for (admitted, handshake) in newcomers {
                self.take_in(admitted, handshake);
            }
            for number in events {
                self.go_on(number);
            }
            // Whoever still waits then, waits for one of those to go.
            self.begin_more();
            self.let_slow_ones_go();
            self.begin_more();
        }
    }

    /// How long it is until somebody is let go.
    fn time_left(&self) -> Option<Duration> {
        let (_, first) = self.clients.first_key_value()?;
        let mut deadline = first.began? + HANDSHAKE_TIME;
        if self.waiting() > 0 {
            let awaited = self.begun().map(|(_, client)| client.awaited);
            deadline = deadline.min(awaited.min()? + CROWDED_HANDSHAKE_TIME);
        }
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Those whose handshakes are under way.
    fn begun(&self) -> impl Iterator<Item = (u64, &Client)> {
        let begun = self.clients.range(..self.begun);
        begun.map(|(&number, client)| (number, client))
    }

    /// How many wait for their turn.
    fn waiting(&self) -> usize {
        self.clients.len() - self.under_way
    }

    fn take_in(&mut self, admitted: Box<Admitted>, handshake: connection::Handshake) {
        let number = self.next;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let stream = admitted.permit.stream();
        let added = epoll::add(
            &self.inside.epoll,
            stream.as_fd(),
            EventData::new_u64(number),
            flags,
        );
        if let Err(error) = added {
            let why = format!("no room to wait for a handshake: {error}");
            let telling = Telling::before(Some(&handshake));
            admission::refuse(&admitted.service, stream, telling, &why);
            return;
        }
        self.next += 1;
        let now = Instant::now();
        let client = Client {
            admitted,
            handshake,
            tls: None,
            upgrade: Upgrade::default(),
            reads: 0,
            answer: None,
            began: None,
            awaited: now,
            came: now,
        };
        self.clients.insert(number, client);
    }

    /// Begins with those whose turn it is.
    fn begin_more(&mut self) {
        while self.under_way < HANDSHAKES {
            let waiting = self.clients.range_mut(self.begun..).next();
            let Some((&number, client)) = waiting else {
                return;
            };
            self.begun = number + 1;
            client.awaited = Instant::now();
            client.began = Some(client.awaited);
            self.under_way += 1;
            self.go_on(number);
        }
    }

    /// Goes on with a handshake, if it has begun.
    fn go_on(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.began.is_none() {
            return;
        }
        let told_bytes = client.told_bytes();
        // A panic would be a bug, of ours or the library's. It must not cost all the others.
        let step = panic::catch_unwind(AssertUnwindSafe(|| client.go_on()));
        if client.told_bytes() != told_bytes {
            client.awaited = Instant::now();
        }
        match step {
            Ok(Ok(Handshake::UnderWay)) => {}
            Ok(Ok(Handshake::Done)) => self.finish(number),
            Ok(Err(error)) => self.fail(number, &error),
            Err(_) => drop(self.remove(number)),
        }
    }

    /// Has a client served.
    fn finish(&mut self, number: u64) {
        let Some(Client { admitted, .. }) = self.remove(number) else {
            return;
        };
        let _ = epoll::delete(&self.inside.epoll, admitted.permit.stream().as_fd());
        (self.serve)(admitted);
    }

    fn fail(&mut self, number: u64, why: &Failed) {
        if let Some(mut client) = self.remove(number) {
            self.log(&client, why);
            let admitted = &mut *client.admitted;
            let socket = Socket::new(admitted.permit.stream());
            let _ = admitted.transport.end(&socket, None::<&End<()>>);
            socket.turn_away();
        }
    }

    fn log(&mut self, client: &Client, why: &Failed) {
        let admitted = &client.admitted;
        let protocol = match client.handshake.tls.is_some() || client.tls.is_some() {
            true => "TLS",
            false => "WebSocket",
        };
        let (connection, why) = (admitted.client.id, why.to_string());
        // A few, unless clients find more reasons than there are; then none of them is a flood yet.
        if self.failed.len() > MOST_REASONS {
            self.failed.clear();
        }
        let failed = self
            .failed
            .entry(why.clone())
            .or_insert_with(Recurring::new);
        let Some(times) = failed.again() else {
            tracing::debug!(connection, "a {protocol} handshake failed: {why}");
            return;
        };
        let (service, peer) = (admitted.service.runtime.service(), &admitted.client.peer);
        tracing::info!(service, connection, %peer, times, "a {protocol} handshake failed: {why}");
    }

    fn remove(&mut self, number: u64) -> Option<Client> {
        let client = self.clients.remove(&number)?;
        if client.began.is_some() {
            self.under_way -= 1;
        }
        Some(client)
    }

    /// Lets go who has had the time of a handshake; and while others wait for their turn, as many as that
    /// takes of those who keep us waiting, the slowest first.
    fn let_slow_ones_go(&mut self) {
        let now = Instant::now();
        while let Some((&number, first)) = self.clients.first_key_value()
            && first
                .began
                .is_some_and(|began| now - began >= HANDSHAKE_TIME)
        {
            self.fail(number, &Failed::Slow(HANDSHAKE_TIME));
        }
        let mut wanted = self.waiting();
        if wanted == 0 {
            return;
        }
        let late = self
            .begun()
            .filter(|(_, client)| now - client.awaited >= CROWDED_HANDSHAKE_TIME);
        let mut late: Vec<_> = late
            .map(|(number, client)| (client.awaited, number))
            .collect();
        late.sort_unstable();
        for (awaited, number) in late {
            if wanted == 0 {
                return;
            }
            // What it is waited for may have come while this thread was busy.
            self.go_on(number);
            if let Some(client) = self.clients.get(&number) {
                if client.awaited != awaited {
                    continue;
                }
                self.fail(number, &Failed::Crowded(CROWDED_HANDSHAKE_TIME));
            }
            wanted -= 1;
        }
    }
}

impl Client {
    /// How much it has been told in a TLS handshake that is under way.
    fn told_bytes(&self) -> Option<u64> {
        self.tls.as_ref().map(|tls| tls.sent_bytes())
    }

    /// Goes on as far as that needs no waiting.
    fn go_on(&mut self) -> Result<Handshake, Failed> {
        if let Some(config) = self.handshake.tls.take() {
            let tls = TlsStream::new(config).map_err(Failed::Tls)?;
            self.tls = Some(Box::new(tls));
        }
        if self.shake_hands()? == Handshake::UnderWay {
            return Ok(Handshake::UnderWay);
        }
        self.upgrade()
    }

    /// Goes on with TLS.
    fn shake_hands(&mut self) -> Result<Handshake, Failed> {
        let Some(tls) = &mut self.tls else {
            return Ok(Handshake::Done);
        };
        let admitted = &mut *self.admitted;
        let socket = Socket::new(admitted.permit.stream());
        if tls.shake_hands(&socket)? == Handshake::UnderWay {
            return Ok(Handshake::UnderWay);
        }
        let (id, took) = (admitted.client.id, self.came.elapsed());
        tracing::debug!(connection = id, ?took, "TLS: {}", tls.describe());
        if let Some(own) = tls.client_certificates().first() {
            let identity = certificate::identity(own).ok_or(Failed::Identity)?;
            admitted.client.identity = Some(Arc::new(identity));
        }
        admitted.client.is_encrypted = true;
        if let Some(tls) = self.tls.take() {
            admitted.transport = Transport::Tls(tls);
        }
        Ok(Handshake::Done)
    }

    /// Goes on with the request for a WebSocket.
    fn upgrade(&mut self) -> Result<Handshake, Failed> {
        let Some(rules) = &self.handshake.websocket else {
            return Ok(Handshake::Done);
        };
        let Admitted {
            permit, transport, ..
        } = &mut *self.admitted;
        let socket = Socket::new(permit.stream());
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => loop {
                // Records without content bring nothing, and count too.
                if self.reads > UPGRADE_BYTES {
                    return Err(Failed::Refused(Refusal::TooLong));
                }
                self.reads += 1;
                let mut room = [0; 2048];
                let count = match transport.receive_now(&socket, &mut room) {
                    Ok(0) => return Err(HandshakeError::Ended.into()),
                    Ok(count) => count,
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => return Ok(Handshake::UnderWay),
                        ErrorKind::Interrupted => continue,
                        _ => return Err(HandshakeError::Broken(error).into()),
                    },
                };
                match self.upgrade.receive(&room[..count], rules) {
                    Verdict::Wait => {}
                    Verdict::Accept { response, early } => {
                        break Answer {
                            unsent: response,
                            then: Ok(early),
                        };
                    }
                    Verdict::Refuse(refusal) => {
                        break Answer {
                            unsent: refusal.response(),
                            then: Err(refusal),
                        };
                    }
                }
            },
        };
        while !answer.unsent.is_empty() {
            match transport.send(&socket, &answer.unsent) {
                Ok(count) => drop(answer.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.answer = Some(answer);
                    return Ok(Handshake::UnderWay);
                }
                Err(error) => return Err(HandshakeError::Broken(error).into()),
            }
        }
        let early = answer.then.map_err(Failed::Refused)?;
        *transport = mem::take(transport).upgraded(early);
        Ok(Handshake::Done)
    }
}
