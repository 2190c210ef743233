//! The connections to one Redis: as many as are used at once, and no more than a few. When the server
//! is gone, nobody waits for it but one thread, which tries until it is back.

use std::sync::{Arc, Condvar, LockResult, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use redis::{Cmd, Value};
use socket2::SockAddr;

use crate::limits::guest::STORE_WAITING;
use crate::limits::process::REDIS_CONNECTIONS;
use crate::redis::address::Target;
use crate::redis::backoff::Backoff;
use crate::redis::connection::{Connection, Failure};

/// Connections to one server, until it is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    prober: Option<JoinHandle<()>>,
}

struct Shared {
    /// What it is called in the log.
    name: String,
    target: Target,
    state: Mutex<State>,
    /// A connection has come back, or all is lost, or over.
    returned: Condvar,
    /// The prober has something to do.
    doubted: Condvar,
}

struct State {
    addresses: Vec<SockAddr>,
    idle: Vec<Connection>,
    /// All, with those that are in use or on their way.
    open: usize,
    waiting: usize,
    server: Server,
}

/// What is known of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Up,
    /// Somebody had no answer. Whether others get one is to be seen.
    Doubtful,
    Down,
    /// It is not needed any more.
    Over,
}

enum Taken {
    Idle(Connection),
    /// One more may be opened, to one of these.
    Place(Vec<SockAddr>),
}

impl Pool {
    /// Connects once, to see that all is right.
    ///
    /// # Errors
    /// In words: the server is not there, or does not let us in.
    pub(crate) fn new(name: String, target: Target) -> Result<Pool, String> {
        let (first, addresses) =
            Connection::reach(&target).map_err(|failure| failure.to_string())?;
        let state = State {
            addresses,
            idle: vec![first],
            open: 1,
            waiting: 0,
            server: Server::Up,
        };
        let shared = Arc::new(Shared {
            name,
            target,
            state: Mutex::new(state),
            returned: Condvar::new(),
            doubted: Condvar::new(),
        });
        let probed = Arc::clone(&shared);
        let prober = thread::Builder::new()
            .name("redis".to_owned())
            .spawn(move || probed.probe())
            .map_err(|error| error.to_string())?;
        Ok(Pool {
            shared,
            prober: Some(prober),
        })
    }

    /// The answer to a command, which is sent once at most.
    pub(crate) fn ask(&self, command: &Cmd, until: Instant) -> Result<Value, Failure> {
        let mut connection = match self.shared.take(until)? {
            Taken::Idle(connection) => connection,
            Taken::Place(addresses) => {
                let opened = Connection::open(&self.shared.target, &addresses, until);
                opened.inspect_err(|failure| self.shared.lose(failure))?
            }
        };
        let answer = connection.ask(command, until);
        match &answer {
            Ok(_) | Err(Failure::Refused(_)) => self.shared.give_back(connection),
            Err(failure) => self.shared.lose(failure),
        }
        answer
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().server = Server::Over;
        self.shared.doubted.notify_one();
        if let Some(prober) = self.prober.take() {
            let _ = prober.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    /// A connection or room for one, if there is either in time.
    fn take(&self, until: Instant) -> Result<Taken, Failure> {
        let mut state = self.state();
        loop {
            if state.server == Server::Down {
                return Err(Failure::Unavailable("there is no connection".to_owned()));
            }
            if let Some(mut connection) = state.idle.pop() {
                if connection.is_quiet() {
                    return Ok(Taken::Idle(connection));
                }
                state.open -= 1;
                continue;
            }
            if state.open < REDIS_CONNECTIONS {
                state.open += 1;
                return Ok(Taken::Place(state.addresses.clone()));
            }
            if state.waiting >= STORE_WAITING {
                return Err(Failure::Busy);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Timeout);
            }
            state.waiting += 1;
            (state, _) = unpoisoned(self.returned.wait_timeout(state, left));
            state.waiting -= 1;
        }
    }

    fn give_back(&self, connection: Connection) {
        let mut state = self.state();
        if state.server == Server::Down {
            state.open -= 1;
        } else {
            state.idle.push(connection);
        }
        drop(state);
        self.returned.notify_one();
    }

    /// There is one connection less. A guest that had hardly any time left says nothing about the
    /// server, so the prober is to see whether it is there.
    fn lose(&self, failure: &Failure) {
        let mut state = self.state();
        state.open -= 1;
        if state.server == Server::Up && !matches!(failure, Failure::TooLarge) {
            state.server = Server::Doubtful;
            self.doubted.notify_one();
        }
        drop(state);
        self.returned.notify_one();
    }

    /// Looks for the server whenever it is in doubt, and then until it is back.
    fn probe(&self) {
        let mut backoff = Backoff::new();
        let mut state = self.state();
        while state.server != Server::Over {
            if state.server == Server::Up {
                state = unpoisoned(self.doubted.wait(state));
                continue;
            }
            drop(state);
            let reached = Connection::reach(&self.target);
            state = self.state();
            if state.server == Server::Over {
                return;
            }
            match reached {
                Ok((connection, addresses)) => {
                    if state.server == Server::Down {
                        tracing::info!("{} is available again", self.name);
                    }
                    state.addresses = addresses;
                    state.open += 1;
                    state.idle.push(connection);
                    state.server = Server::Up;
                    backoff = Backoff::new();
                    self.returned.notify_one();
                }
                Err(failure) => {
                    if state.server == Server::Doubtful {
                        tracing::warn!("{} is unavailable: {failure}", self.name);
                    }
                    state.open -= state.idle.len();
                    state.idle.clear();
                    state.server = Server::Down;
                    self.returned.notify_all();
                    // Nobody doubts what is down: only the end cuts it short.
                    (state, _) = unpoisoned(self.doubted.wait_timeout(state, backoff.pause()));
                }
            }
        }
    }
}

fn unpoisoned<T>(waited: LockResult<T>) -> T {
    waited.unwrap_or_else(PoisonError::into_inner)
}
