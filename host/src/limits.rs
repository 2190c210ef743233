//! Every bound of the server: its unit, its default, why, and whom it protects from whom.
//!
//! All are finite. Those that an operator may want to move have an option on the command line; the
//! others are constants. SECURITY.md, "Limits", shows the same table.

pub mod guest;
pub mod process;
pub mod wire;

use guest::Guest;
use process::Process;
use wire::Wire;

/// The bounds of one server, by whom they serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of clients.
    pub wire: Wire,
    /// Of guests.
    pub guest: Guest,
    /// Of all together.
    pub process: Process,
}

impl Limits {
    /// The defaults, for a machine that has room for `connections` and may give guests
    /// `total_guest_memory_bytes`.
    pub const fn new(connections: usize, total_guest_memory_bytes: u64) -> Limits {
        Limits {
            wire: Wire::DEFAULT,
            guest: Guest::DEFAULT,
            process: Process::new(connections, total_guest_memory_bytes),
        }
    }
}
