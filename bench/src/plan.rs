//! What a run of load is to do.

use std::time::Duration;

use clap::ValueEnum;

use crate::talk::Talk;

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
    pub load_threads: usize,
    /// Lines, or connections, a second over all connections; without it as many as are answered.
    pub rate: Option<u32>,
    /// How long an answer may take, and a connection to open.
    pub timeout: Duration,
    /// What is said and what has to be answered.
    pub talk: Talk,
}
