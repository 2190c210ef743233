//! What a service was granted of stores, by the names that its guests know; and the bounds of every
//! operation, whatever keeps the entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::limits::guest::{
    STORE_BATCH, STORE_BATCH_BYTES, STORE_KEY_BYTES, STORE_PAGE_KEYS, STORE_SCRATCH_BYTES,
    STORE_TIME, STORE_VALUE_BYTES,
};
use crate::store::backend::{Backend, Error, Page, Swapped};
use crate::store::journal::Journal;
use crate::store::memory::Memory;

/// The name of the bucket that a guest opens without one.
const DEFAULT_NAME: &str = "default";

/// The buckets of a service, by their names.
#[derive(Clone, Default)]
pub struct Buckets(Arc<BTreeMap<String, Bucket>>);

impl Buckets {
    /// These.
    pub fn new(buckets: impl IntoIterator<Item = (String, Bucket)>) -> Buckets {
        Buckets(Arc::new(buckets.into_iter().collect()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of the same names and prefixes, empty and in memory. Which stores are the same is told by
    /// `which`.
    pub fn in_memory<'a, Which: PartialEq>(
        stores: impl IntoIterator<Item = (&'a str, Option<&'a str>, Which)>,
    ) -> Buckets {
        let mut known: Vec<(Which, Arc<Memory>)> = Vec::new();
        let buckets = stores.into_iter().map(|(name, prefix, which)| {
            let same = known.iter().find(|(known, _)| *known == which);
            let memory = match same {
                Some((_, memory)) => Arc::clone(memory),
                None => Arc::new(Memory::new(STORE_SCRATCH_BYTES)),
            };
            known.push((which, Arc::clone(&memory)));
            (name.to_owned(), Bucket::new(memory, prefix))
        });
        Buckets::new(buckets.collect::<Vec<_>>())
    }

    /// Sets a value, as a guest does. Of one that was not granted, nothing is kept.
    ///
    /// # Errors
    /// What the store says, or a bound.
    pub fn set(&self, name: &str, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let until = Instant::now() + STORE_TIME;
        match self.open(name) {
            Some(bucket) => bucket.set(key, value, until),
            None => Ok(()),
        }
    }

    /// That of this name, if it was granted.
    pub(crate) fn open(&self, name: &str) -> Option<Bucket> {
        let name = if name.is_empty() { DEFAULT_NAME } else { name };
        self.0.get(name).cloned()
    }

    /// The same for trials, empty, of which nothing is kept.
    pub(crate) fn scratch(&self) -> Buckets {
        Buckets::in_memory(self.0.iter().map(|(name, bucket)| {
            let which = Arc::as_ptr(&bucket.backend).cast::<()>();
            (&**name, bucket.prefix.strip_suffix(':'), which)
        }))
    }
}

/// A store, or those of its entries whose keys begin with a prefix, which a guest does not see.
#[derive(Clone)]
pub struct Bucket {
    backend: Arc<dyn Backend>,
    prefix: Arc<str>,
    /// A trial has none.
    journal: Option<Arc<Journal>>,
}

impl Bucket {
    /// All of a store; or the keys that begin with `prefix` and a colon.
    pub fn new(backend: Arc<dyn Backend>, prefix: Option<&str>) -> Bucket {
        let prefix = prefix.map(|prefix| format!("{prefix}:"));
        Bucket {
            backend,
            prefix: prefix.unwrap_or_default().into(),
            journal: None,
        }
    }

    /// The same, with its use written to the log under these names.
    pub fn noted(self, journal: Arc<Journal>) -> Bucket {
        let journal = Some(journal);
        Bucket { journal, ..self }
    }

    fn note<T>(
        &self,
        operation: &'static str,
        bytes: usize,
        act: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.journal {
            Some(journal) => journal.note(operation, bytes, act),
            None => act(),
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// As those of all that follow: what the store says, or a bound.
    pub(crate) fn get(&self, key: &str, until: Instant) -> Result<Option<Vec<u8>>, Error> {
        self.note("get", 0, || self.backend.get(&self.key(key)?, until))
    }

    /// Whether the key has a value.
    pub(crate) fn exists(&self, key: &str, until: Instant) -> Result<bool, Error> {
        self.note("exists", 0, || self.backend.exists(&self.key(key)?, until))
    }

    /// Sets a value.
    pub(crate) fn set(&self, key: &str, value: Vec<u8>, until: Instant) -> Result<(), Error> {
        self.note("set", value.len(), || {
            self.backend.set_many(vec![self.entry(key, value)?], until)
        })
    }

    /// Deletes a key.
    pub(crate) fn delete(&self, key: &str, until: Instant) -> Result<(), Error> {
        self.note("delete", 0, || {
            self.backend.delete_many(vec![self.key(key)?], until)
        })
    }

    /// A page of at most `most` keys.
    pub(crate) fn list(
        &self,
        cursor: Option<&str>,
        most: usize,
        until: Instant,
    ) -> Result<Page, Error> {
        let most = most.min(STORE_PAGE_KEYS);
        let list = || self.backend.list(&self.prefix, cursor, most, until);
        let mut page = self.note("list", 0, list)?;
        for key in &mut page.keys {
            key.drain(..self.prefix.len());
        }
        Ok(page)
    }

    /// The values of several keys.
    pub(crate) fn get_many(
        &self,
        keys: &[String],
        until: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.note("get-many", 0, || {
            let keys = self.keys(keys)?;
            self.backend.get_many(&keys, STORE_BATCH_BYTES, until)
        })
    }

    /// Sets several values.
    pub(crate) fn set_many(
        &self,
        entries: Vec<(String, Vec<u8>)>,
        until: Instant,
    ) -> Result<(), Error> {
        let bytes = entries.iter().map(|(_, value)| value.len()).sum();
        self.note("set-many", bytes, || {
            check(entries.len(), STORE_BATCH)?;
            check(bytes, STORE_BATCH_BYTES)?;
            let entries = entries.into_iter();
            let entries = entries.map(|(key, value)| self.entry(&key, value));
            let entries = entries.collect::<Result<_, _>>()?;
            self.backend.set_many(entries, until)
        })
    }

    /// Deletes several keys.
    pub(crate) fn delete_many(&self, keys: &[String], until: Instant) -> Result<(), Error> {
        self.note("delete-many", 0, || {
            self.backend.delete_many(self.keys(keys)?, until)
        })
    }

    /// Adds to a number.
    pub(crate) fn increment(&self, key: &str, delta: i64, until: Instant) -> Result<i64, Error> {
        self.note("increment", 0, || {
            self.backend.increment(self.key(key)?, delta, until)
        })
    }

    /// Sets the value of a key that still has the one that is `expected`.
    pub(crate) fn swap(
        &self,
        key: &str,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        until: Instant,
    ) -> Result<Swapped, Error> {
        self.note("swap", value.len(), || {
            let (key, value) = self.entry(key, value)?;
            self.backend.swap(key, expected, value, until)
        })
    }

    /// As the store has it.
    fn key(&self, key: &str) -> Result<String, Error> {
        check(key.len(), STORE_KEY_BYTES)?;
        Ok(format!("{}{key}", self.prefix))
    }

    fn keys(&self, keys: &[String]) -> Result<Vec<String>, Error> {
        check(keys.len(), STORE_BATCH)?;
        keys.iter().map(|key| self.key(key)).collect()
    }

    fn entry(&self, key: &str, value: Vec<u8>) -> Result<(String, Vec<u8>), Error> {
        check(value.len(), STORE_VALUE_BYTES)?;
        Ok((self.key(key)?, value))
    }
}

fn check(has: usize, most: usize) -> Result<(), Error> {
    match has > most {
        true => Err(Error::TooLarge),
        false => Ok(()),
    }
}
