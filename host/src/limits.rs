//! Every bound of the server: its unit, its default, why, and whom it protects from whom. Each is one
//! service's, or of the whole process.
//!
//! All are finite. Those that an operator may want to move have an option on the command line; the
//! others are constants. SECURITY.md, "Limits", shows the same table.

pub mod guest;
pub mod process;
pub mod wire;

use guest::Guest;
use wire::Wire;

/// The bounds of one service. Those of the process around it are [`process::Process`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of its clients.
    pub wire: Wire,
    /// Of its guest.
    pub guest: Guest,
    /// Connections served at once; one more is answered `error: too many connections`.
    pub connections: usize,
    /// Connections served at once from one address (of IPv6: from one /64 network).
    pub connections_per_ip: usize,
}

impl Limits {
    /// All of them as they are when nothing else is asked for, in a process that has room for
    /// `connections`.
    pub const fn new(connections: usize) -> Limits {
        Limits {
            wire: Wire::DEFAULT,
            guest: Guest::DEFAULT,
            connections,
            connections_per_ip: connections,
        }
    }
}
