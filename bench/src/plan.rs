//! What a run of load is to do.

use std::time::Duration;

use clap::ValueEnum;

use crate::talk::{Encoding, Talk};
use crate::twin::HELLO;

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

/// What each line has `keeper` do to its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Read one of 64 values of 100 bytes
    Get,
    /// Write it
    Set,
    /// Add to a number: 0, so that every answer is the same
    Increment,
}

/// What there is to be read.
const FILL: &str = "fill 0 64 100";

const KEY: &str = "key-000032";

impl Operation {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Set => "set",
            Operation::Increment => "increment",
        }
    }

    pub(crate) fn talk(self, encoding: Encoding) -> Talk {
        let value = "x".repeat(100);
        let (line, reply) = match self {
            Operation::Get => (format!("get {KEY}"), value),
            Operation::Set => (format!("set {KEY} {value}"), "ok".to_owned()),
            Operation::Increment => ("add n 0".to_owned(), "0".to_owned()),
        };
        Talk::new(Some(HELLO), &line, &reply, None, encoding)
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
    /// What that does to a store, if there is one.
    pub operation: Option<Operation>,
}

impl Plan {
    /// What is done once before the load: a line that fills the store.
    pub(crate) fn before(&self) -> Option<Plan> {
        self.operation.map(|_| Plan {
            mode: Mode::Hold,
            connections: 1,
            depth: 1,
            duration: Duration::ZERO,
            load_threads: 1,
            rate: None,
            timeout: self.timeout,
            talk: Talk::new(Some(HELLO), FILL, "ok", None, Encoding::Lines("\n")),
            operation: None,
        })
    }
}
