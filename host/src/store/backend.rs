//! What a store has to be able to do, and how it may fail.

use std::ops::Bound;
use std::time::Instant;

/// Why an operation has failed, in words that guests get to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It took too long. A write may still have happened, or happen.
    #[error("timeout")]
    Timeout,
    /// The store is down, its disk has failed or is full, or its file is gone. A write may have happened.
    #[error("unavailable")]
    Unavailable,
    /// Too much is asked of the store at once, or another process writes to it for too long. Nothing has
    /// happened.
    #[error("busy")]
    Busy,
    /// The store may hold no more.
    #[error("quota")]
    Quota,
    /// A key, a value or a batch is larger than it may be.
    #[error("too large")]
    TooLarge,
    /// What is to be incremented is no decimal number of 64 bits.
    #[error("not an integer")]
    NotAnInteger,
    /// The sum has no room in 64 bits.
    #[error("overflow")]
    Overflow,
}

/// Some of the keys of a store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In no order that anybody may rely on.
    pub keys: Vec<String>,
    /// Where the next page begins, in words of the backend; none, if this was the last.
    pub cursor: Option<String>,
}

/// What has become of a swap.
#[derive(Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The new value is there.
    Done,
    /// There was another value than was expected, this one, and it stays.
    Lost(Option<Vec<u8>>),
}

/// The entries of one store, for all who use it. Each operation but those of several keys happens
/// whole or not at all, also among others of other threads; and whoever has been answered reads what
/// was written.
///
/// None waits beyond `until`. Whoever waits says so first (`waiting::begins`). How large keys, values and
/// batches may be is looked at before.
pub trait Backend: Send + Sync {
    /// The value of a key, if there is one.
    fn get(&self, key: &str, until: Instant) -> Result<Option<Vec<u8>>, Error>;

    /// Whether the key has a value.
    fn exists(&self, key: &str, until: Instant) -> Result<bool, Error>;

    /// About `most` of the keys that begin with `prefix`: the first, or those from a `cursor` on that an
    /// earlier page had, or a guest has made up. A key that is there from the first page to the last is
    /// on one of them, whatever is written meanwhile; in a Redis it may be on two.
    fn list(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        most: usize,
        until: Instant,
    ) -> Result<Page, Error>;

    /// The values of several keys, in their order, if they have no more than `most_bytes` together. For
    /// a backend to which every way is long, one way for all.
    fn get_many(
        &self,
        keys: &[String],
        most_bytes: usize,
        until: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut bytes = 0;
        let values = keys.iter().map(|key| {
            let value = self.get(key, until)?;
            bytes += value.as_ref().map_or(0, Vec::len);
            match bytes > most_bytes {
                true => Err(Error::TooLarge),
                false => Ok(value),
            }
        });
        values.collect()
    }

    /// Sets several values. When it fails some of them may be set.
    fn set_many(&self, entries: Vec<(String, Vec<u8>)>, until: Instant) -> Result<(), Error>;

    /// Deletes several keys. One that is not there is none to delete.
    fn delete_many(&self, keys: Vec<String>, until: Instant) -> Result<(), Error>;

    /// Adds to a number, which begins as 0, and returns the sum.
    fn increment(&self, key: String, delta: i64, until: Instant) -> Result<i64, Error>;

    /// Sets the value of a key that still has the one that is `expected`.
    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        until: Instant,
    ) -> Result<Swapped, Error>;
}

/// The pages of a backend whose keys are sorted: each begins behind the last key of the one before,
/// which is its cursor, without the prefix.
impl Page {
    /// Where it begins.
    pub(super) fn start(prefix: &str, cursor: Option<&str>) -> Bound<String> {
        match cursor {
            Some(last) => Bound::Excluded(format!("{prefix}{last}")),
            None => Bound::Included(prefix.to_owned()),
        }
    }

    /// The first `most` of the keys from there on.
    pub(super) fn of(keys: impl Iterator<Item = String>, prefix: &str, most: usize) -> Page {
        let mut keys = keys.take_while(|key| key.starts_with(prefix));
        let page: Vec<_> = keys.by_ref().take(most).collect();
        let last = page.last().map(|last| last[prefix.len()..].to_owned());
        Page {
            cursor: keys.next().and(last),
            keys: page,
        }
    }
}
