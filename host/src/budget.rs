//! Bytes that many take from, and no more than there are: the memory of all guests, the recordings
//! on a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What may still be taken.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Arc<Budget> {
        Arc::new(Budget {
            bytes_left: AtomicU64::new(bytes),
        })
    }

    /// Takes all of `bytes`, or nothing and returns false.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        self.take_leaving(bytes, 0)
    }

    /// Takes what is left, and returns how much that was.
    pub(crate) fn take_rest(&self) -> u64 {
        self.bytes_left.swap(0, Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn bytes_left(&self) -> u64 {
        self.bytes_left.load(Ordering::Relaxed)
    }

    /// Takes all of `bytes` if `rest` is left then.
    fn take_leaving(&self, bytes: u64, rest: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes).filter(|&left| left >= rest);
        self.bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.bytes_left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one has taken, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    bytes: u64,
    budget: Arc<Budget>,
}

impl Claim {
    /// Nothing yet.
    pub(crate) fn none(budget: &Arc<Budget>) -> Claim {
        Claim {
            bytes: 0,
            budget: Arc::clone(budget),
        }
    }

    /// How many bytes it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what is missing until it is `bytes` together, or nothing and returns false.
    pub(crate) fn cover(&mut self, bytes: u64) -> bool {
        self.cover_leaving(bytes, 0)
    }

    /// The same, if `rest` is left to others then.
    pub(crate) fn cover_leaving(&mut self, bytes: u64, rest: u64) -> bool {
        let missing = bytes.saturating_sub(self.bytes);
        let covered = missing == 0 || self.budget.take_leaving(missing, rest);
        if covered {
            self.bytes += missing;
        }
        covered
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}
