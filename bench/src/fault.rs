//! What can go wrong with the load, or with a server under it.

use std::io;
use std::time::Duration;

use airlock::settings::address::Address;
use thiserror::Error;

/// What went wrong with a connection, or with the whole run.
#[derive(Debug, Error)]
pub enum Fault {
    /// Nobody listens, or not on this network.
    #[error("cannot connect to {0}")]
    Connect(Address, #[source] io::Error),
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
