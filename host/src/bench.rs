//! `airlock bench`: load on a line server, and what it took.
//!
//! One run opens connections to one server, loads it in one [`Mode`] and has every answer checked.
//! [`load_in_turn`] loads several servers, such as this one and its native twin, A B A B, because
//! machines differ and are shared: the ratio is what counts. What is printed of it is [`report`]'s
//! and [`plot`]'s.

mod churn;
mod cores;
mod events;
mod lines;
mod load;
mod measured;
mod open;
mod pace;
pub mod plot;
pub mod progress;
pub mod report;
mod servers;
pub mod talk;
pub mod twin;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use thiserror::Error;

pub use cores::Cores;
use load::Target;
pub use measured::Measured;
pub use open::make_room;
use progress::Progress;
pub use servers::{Server, Subject, airlock, native};
use talk::Talk;
use twin::Twin;

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One line in flight on each connection
    Ping,
    /// Many lines in flight on each connection
    Pipeline,
    /// Connect, hear the greeting, leave, again and again
    Churn,
    /// Stay connected and silent, then one line on each connection
    Hold,
}

impl Mode {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Ping => "ping",
            Mode::Pipeline => "pipeline",
            Mode::Churn => "churn",
            Mode::Hold => "hold",
        }
    }

    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Mode::Churn => "connections",
            Mode::Ping | Mode::Pipeline | Mode::Hold => "lines",
        }
    }
}

/// One run of load.
#[derive(Debug)]
pub struct Plan {
    /// What the connections do.
    pub mode: Mode,
    /// How many there are at once.
    pub connections: usize,
    /// The most lines in flight on one of them.
    pub depth: usize,
    /// How long the load lasts, or the connections are held.
    pub duration: Duration,
    /// How many threads make the load.
    pub threads: usize,
    /// Lines, or connections, a second over all connections; without it as many as are answered.
    pub rate: Option<u32>,
    /// How long an answer may take, and a connection to open.
    pub timeout: Duration,
    /// What is said and what has to be answered.
    pub talk: Talk,
}

/// What went wrong with a connection, or with the whole run.
#[derive(Debug, Error)]
pub enum Fault {
    /// Nobody listens, or not on this network.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// This process may not open so many.
    #[error("cannot open {connections} connections: the limit of open files leaves {room}")]
    Descriptors {
        /// Wanted.
        connections: usize,
        /// Possible.
        room: u64,
    },
    /// Something else was said than what was expected.
    #[error("{what} is `{heard}`, not `{wanted}`")]
    Wrong {
        /// Which part of the conversation.
        what: &'static str,
        /// What the server said.
        heard: String,
        /// What it should have said.
        wanted: String,
    },
    /// It answered what nobody had asked.
    #[error("the server has sent more replies than it was sent lines")]
    Unasked,
    /// It closed a connection too early.
    #[error("the server closed a connection before {0}")]
    Closed(&'static str),
    /// The network, or the server, cut a connection.
    #[error("a connection broke before {0}")]
    Broken(&'static str, #[source] io::Error),
    /// It did not say, or do, what was expected in the time there is.
    #[error("the server is silent: {0} did not come within {1:?}")]
    Silent(&'static str, Duration),
    /// A server of our own does not start.
    #[error("cannot start the server `{0}`")]
    Server(&'static str, #[source] io::Error),
    /// One of those that are compared.
    #[error("{0}")]
    Of(&'static str, #[source] Box<Fault>),
    /// This machine is short of something.
    #[error("cannot make load")]
    Load(#[from] io::Error),
}

/// Loads the server at `address`.
///
/// # Errors
/// The connections could not be opened. What goes wrong after that is counted in the result.
pub fn measure(plan: &Plan, address: SocketAddr, progress: &Progress) -> Result<Measured, Fault> {
    let target = Target {
        address,
        cores: &[],
        process: None,
    };
    make_room(plan.connections)?;
    load::run(plan, &target, progress)
}

/// Two servers under the same load, round for round.
#[derive(Debug)]
pub struct Comparison {
    /// A thread per connection and the greeter's logic compiled in.
    pub native: Vec<Measured>,
    /// This server, with its default limits and the greeter in its sandbox.
    pub airlock: Vec<Measured>,
}

/// Starts `program`, which is this program, as a server and as its native twin, and loads them [in
/// turn](load_in_turn). `variables` are not for these servers.
///
/// # Errors
/// A server did not start, or one of its answers was wrong.
pub fn compare(
    plan: &Plan,
    rounds: u32,
    program: &Path,
    variables: &[OsString],
    progress: &Progress,
) -> Result<Comparison, Fault> {
    let subjects = [
        native(program, variables, Twin::Plain),
        airlock(program, variables),
    ];
    let cores = Cores::split()?;
    let turns = load_in_turn(plan, rounds, &subjects, 2, cores.as_ref(), progress)?;
    let runs: Result<Vec<_>, _> = turns.into_iter().collect();
    // Two servers, two results.
    let [native, airlock] = runs?.try_into().unwrap_or_default();
    Ok(Comparison { native, airlock })
}

/// What came of it for one server: of all rounds, or why it could not go on.
pub type Turns<T> = Result<Vec<T>, Fault>;

/// Gives every server its turn in every round, and returns what came of it in the order of the
/// servers. One that fails gets no more turns.
///
/// # Errors
/// One of the first `needed` servers has failed.
pub fn in_turn<T>(
    subjects: &[Subject],
    needed: usize,
    rounds: u32,
    mut turn: impl FnMut(usize, &Subject) -> Result<T, Fault>,
) -> Result<Vec<Turns<T>>, Fault> {
    let mut results: Vec<Turns<T>> = subjects.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..rounds {
        for (number, subject) in subjects.iter().enumerate() {
            if let Ok(values) = &mut results[number] {
                match turn(number, subject) {
                    Ok(value) => values.push(value),
                    Err(fault) if number < needed => return Err(fault),
                    Err(fault) => results[number] = Err(fault),
                }
            }
        }
    }
    Ok(results)
}

/// Loads the servers [in turn](in_turn), each on its core and the load on the others.
///
/// # Errors
/// One of the first `needed` servers has failed, or this process may not open so many connections.
pub fn load_in_turn(
    plan: &Plan,
    rounds: u32,
    subjects: &[Subject],
    needed: usize,
    cores: Option<&Cores>,
    progress: &Progress,
) -> Result<Vec<Turns<Measured>>, Fault> {
    make_room(plan.connections)?;
    // What a server keeps of connections that have ended would be missing in the next measure of its
    // memory: then there is a new one for each turn.
    let keep = plan.mode != Mode::Hold;
    let start = |subject: &Subject| Server::start(subject, cores);
    let mut running: Vec<_> = subjects
        .iter()
        .map(|subject| keep.then(|| start(subject)))
        .collect();
    in_turn(subjects, needed, rounds, |number, subject| {
        let server = running[number].take().unwrap_or_else(|| start(subject))?;
        let measured = round(plan, &server, progress)?;
        running[number] = keep.then_some(Ok(server));
        Ok(measured)
    })
}

/// Loads a server of ours once.
fn round(plan: &Plan, server: &Server, progress: &Progress) -> Result<Measured, Fault> {
    let name = server.name;
    let of = |fault| Fault::Of(name, Box::new(fault));
    progress.now(name);
    let mut measured = load::run(plan, &server.target(), progress).map_err(of)?;
    match measured.fault.take() {
        Some(fault) => Err(of(fault)),
        None => Ok(measured),
    }
}
