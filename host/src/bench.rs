//! `airlock bench`: load on a line server, and what it took.
//!
//! One run opens connections to one server, loads it in one [`Mode`] and has every answer checked.
//! [`compare`] runs this server and its native twin in turn, A B A B, because machines differ and
//! are shared: the ratio is what counts. What is printed of it is [`report`]'s and [`plot`]'s.

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
pub use servers::{Server, airlock, native_twin};
use talk::Talk;

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
    #[error("cannot start {0}")]
    Server(&'static str, #[source] io::Error),
    /// One of the two that are compared.
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

/// Both servers under the same load, round for round.
#[derive(Debug, Default)]
pub struct Comparison {
    /// A thread per connection and the greeter's logic compiled in.
    pub native: Vec<Measured>,
    /// The embedded server, with its default limits and the greeter in its sandbox.
    pub airlock: Vec<Measured>,
}

/// Starts `program`, which is this program, as a server and as its native twin, and loads them in
/// turn. `variables` are not for these servers.
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
    make_room(plan.connections)?;
    let cores = Cores::split()?;
    let cores = cores.as_ref();
    let mut servers = None;
    let mut comparison = Comparison::default();
    for _ in 0..rounds {
        // What a server keeps of connections that have ended would be missing in the next measure
        // of its memory.
        if plan.mode == Mode::Hold {
            servers = None;
        }
        let [native, airlock] = match &servers {
            Some(servers) => servers,
            None => servers.insert([
                Server::start("the native twin", native_twin(program, variables), cores)?,
                Server::start("the embedded server", airlock(program, variables), cores)?,
            ]),
        };
        comparison.native.push(round(plan, native, progress)?);
        comparison.airlock.push(round(plan, airlock, progress)?);
    }
    Ok(comparison)
}

/// Loads a server of ours once.
///
/// # Errors
/// One of its answers was wrong, or did not come.
pub fn round(plan: &Plan, server: &Server, progress: &Progress) -> Result<Measured, Fault> {
    let name = server.name;
    let of = |fault| Fault::Of(name, Box::new(fault));
    progress.now(name);
    let mut measured = load::run(plan, &server.target(), progress).map_err(of)?;
    match measured.fault.take() {
        Some(fault) => Err(of(fault)),
        None => Ok(measured),
    }
}
