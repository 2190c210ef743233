//! What those who read have in common with the thread that writes, and how a store is kept.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;

use crate::logging::Recurring;
use crate::store::sqlite::readers::Readers;

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// When it is on the disk.
    Commit,
    /// At once: what was written in the last second is lost when the machine dies.
    Relaxed,
}

/// How a store in a file is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Bytes that it may hold.
    pub quota_bytes: u64,
}

/// A store that is open.
pub(super) struct Shared {
    /// What the log calls it.
    pub(super) name: String,
    pub(super) readers: Readers,
    is_relaxed: AtomicBool,
    quota_bytes: AtomicU64,
    failed_reads: Mutex<Recurring>,
}

impl Shared {
    pub(super) fn new(path: &Path, options: Options) -> Shared {
        let shared = Shared {
            name: path.display().to_string(),
            readers: Readers::new(path.to_owned()),
            is_relaxed: AtomicBool::default(),
            quota_bytes: AtomicU64::default(),
            failed_reads: Mutex::new(Recurring::new()),
        };
        shared.change(options);
        shared
    }

    pub(super) fn change(&self, options: Options) {
        let is_relaxed = options.durability == Durability::Relaxed;
        self.is_relaxed.store(is_relaxed, Ordering::Relaxed);
        let quota_bytes = options.quota_bytes;
        self.quota_bytes.store(quota_bytes, Ordering::Relaxed);
    }

    pub(super) fn is_relaxed(&self) -> bool {
        self.is_relaxed.load(Ordering::Relaxed)
    }

    pub(super) fn quota_bytes(&self) -> u64 {
        self.quota_bytes.load(Ordering::Relaxed)
    }

    #[cold]
    pub(super) fn read_failed(&self, error: &rusqlite::Error) {
        let failed = self.failed_reads.lock();
        let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = failed.again() {
            tracing::error!(store = %self.name, times, "the store cannot be read: {error}");
        }
    }
}
