//! A store in memory, which is empty at every start.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use crate::store::backend::{Backend, Error, Page, Swapped};
use crate::store::counter;
use crate::store::usage::{entry_bytes, replaced};

/// The entries, and what bounds them.
#[derive(Default)]
pub struct Memory {
    entries: RwLock<Entries>,
    quota_bytes: AtomicU64,
}

#[derive(Default)]
struct Entries {
    values: BTreeMap<String, Vec<u8>>,
    used_bytes: u64,
}

impl Memory {
    /// Empty, for so much.
    pub fn new(quota_bytes: u64) -> Memory {
        Memory {
            entries: RwLock::default(),
            quota_bytes: quota_bytes.into(),
        }
    }

    /// It may hold so much from now on.
    pub fn change(&self, quota_bytes: u64) {
        self.quota_bytes.store(quota_bytes, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn quota_bytes(&self) -> u64 {
        self.quota_bytes.load(Ordering::Relaxed)
    }
}

impl Entries {
    fn set(&mut self, key: String, value: Vec<u8>, quota_bytes: u64) -> Result<(), Error> {
        let old = self.values.get(&key);
        let old = old.map_or(0, |old| entry_bytes(&key, old.len()));
        let new = entry_bytes(&key, value.len());
        self.used_bytes = replaced(self.used_bytes, quota_bytes, old, new)?;
        self.values.insert(key, value);
        Ok(())
    }
}

/// Nobody waits for it longer than others take to read or write in memory.
impl Backend for Memory {
    fn get(&self, key: &str, _: Instant) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.read().values.get(key).cloned())
    }

    fn exists(&self, key: &str, _: Instant) -> Result<bool, Error> {
        Ok(self.read().values.contains_key(key))
    }

    fn list(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        most: usize,
        _: Instant,
    ) -> Result<Page, Error> {
        let entries = self.read();
        let start = Page::start(prefix, cursor);
        let keys = entries.values.range((start, Bound::Unbounded));
        Ok(Page::of(keys.map(|(key, _)| key.clone()), prefix, most))
    }

    fn set_many(&self, new: Vec<(String, Vec<u8>)>, _: Instant) -> Result<(), Error> {
        let mut entries = self.write();
        for (key, value) in new {
            entries.set(key, value, self.quota_bytes())?;
        }
        Ok(())
    }

    fn delete_many(&self, keys: Vec<String>, _: Instant) -> Result<(), Error> {
        let mut entries = self.write();
        for key in keys {
            if let Some(old) = entries.values.remove(&key) {
                entries.used_bytes -= entry_bytes(&key, old.len());
            }
        }
        Ok(())
    }

    fn increment(&self, key: String, delta: i64, _: Instant) -> Result<i64, Error> {
        let mut entries = self.write();
        let sum = counter::sum(entries.values.get(&key).map(Vec::as_slice), delta)?;
        entries.set(key, sum.to_string().into_bytes(), self.quota_bytes())?;
        Ok(sum)
    }

    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        _: Instant,
    ) -> Result<Swapped, Error> {
        let mut entries = self.write();
        let current = entries.values.get(&key);
        if current != expected.as_ref() {
            return Ok(Swapped::Lost(current.cloned()));
        }
        entries.set(key, value, self.quota_bytes())?;
        Ok(Swapped::Done)
    }
}
