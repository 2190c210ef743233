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
        let take = |left: u64| left.checked_sub(bytes);
        self.bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Takes what is left, and returns how much that was.
    pub(crate) fn take_rest(&self) -> u64 {
        self.bytes_left.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.bytes_left.fetch_add(bytes, Ordering::Relaxed);
    }
}
