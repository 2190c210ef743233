//! Bounds the memory of guests: of each instance, and of all together.

use wasmtime::ResourceLimiter;

use crate::limits;
use crate::limits::guest::Guest;
use crate::process::room::MemoryClaim;

/// An element of a table is a pointer.
const ELEMENT_BYTES: u64 = 8;

/// The memory of one instance, its tables, and what Wasmtime keeps for it. It remembers that the
/// instance was refused some: a guest usually aborts then, and its trap does not say why.
pub(crate) struct Memory {
    limit_bytes: usize,
    pub(crate) held_bytes: u64,
    claim: MemoryClaim,
    pub(crate) refused: Option<Refused>,
}

/// Which limit an instance has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// That of one instance.
    #[error("it wanted more memory than its {limit_bytes} bytes (--guest-memory)")]
    Own {
        /// `--guest-memory`.
        limit_bytes: usize,
    },
    /// That of all instances.
    #[error("all guests together hold as much memory as they may (--total-guest-memory)")]
    Total,
}

impl Memory {
    /// None yet; `claim` is what has been taken of that of all for it.
    pub(super) fn new(limits: &Guest, claim: MemoryClaim) -> Memory {
        Memory {
            limit_bytes: limits.memory_bytes,
            held_bytes: 0,
            claim,
            refused: None,
        }
    }

    /// Takes this much more, if it may.
    pub(crate) fn claim(&mut self, bytes: u64) -> Result<(), Refused> {
        let limit_bytes = self.limit_bytes;
        let wanted = self.held_bytes.saturating_add(bytes);
        let refused = if wanted > limit_bytes as u64 {
            Refused::Own { limit_bytes }
        } else if !self.claim.cover(wanted) {
            Refused::Total
        } else {
            self.held_bytes = wanted;
            return Ok(());
        };
        self.refused = Some(refused);
        Err(refused)
    }

    /// Holds so much less. What has been taken of that of all stays taken, for later.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(
        &mut self,
        now: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(now) as u64;
        Ok(self.claim(more).is_ok())
    }

    fn table_growing(
        &mut self,
        now: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(now) as u64;
        Ok(desired <= limits::guest::GUEST_TABLE_ELEMENTS
            && self.claim(more * ELEMENT_BYTES).is_ok())
    }

    fn instances(&self) -> usize {
        limits::guest::GUEST_CORE_INSTANCES as usize
    }

    fn tables(&self) -> usize {
        limits::guest::GUEST_TABLES as usize
    }

    fn memories(&self) -> usize {
        limits::guest::GUEST_MEMORIES as usize
    }
}
