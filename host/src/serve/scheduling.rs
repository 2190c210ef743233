//! Which threads serve the connections.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::thread;

/// One of two ways, with the same behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// Each connection has one to itself.
    PerConnection,
    /// So many share all connections, and others take over from those that a guest holds up.
    Shared(NonZero<usize>),
}

/// More than the processors of any machine would only be in each other's way.
pub const MOST: usize = 1024;

impl FromStr for Scheduling {
    type Err = String;

    fn from_str(text: &str) -> Result<Scheduling, String> {
        let count = match text {
            "per-connection" => return Ok(Scheduling::PerConnection),
            "auto" => thread::available_parallelism().ok(),
            number => number.parse().ok(),
        };
        let count = count.filter(|count| count.get() <= MOST);
        count
            .map(Scheduling::Shared)
            .ok_or_else(|| format!("want `per-connection`, `auto`, or a number from 1 to {MOST}"))
    }
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheduling::PerConnection => f.write_str("per-connection"),
            Scheduling::Shared(count) => count.fmt(f),
        }
    }
}
