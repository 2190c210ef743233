//! A store in Redis or Valkey: an entry is a string, at `airlock:PREFIX:KEY`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use redis::{Cmd, FromRedisValue, cmd, from_redis_value};

use crate::limits::guest::STORE_VALUE_BYTES;
use crate::logging::Recurring;
use crate::process::waiting;
use crate::redis::address::{RedisAddress, Target};
use crate::redis::connection::Failure;
use crate::redis::pool::Pool;
use crate::store::backend::{Backend, Error, Page, Swapped};

/// What all keys begin with, so that others may use the same server.
const NAMESPACE: &str = "airlock:";

/// Compares and sets in one go. Without a third argument, there is to be no value yet. What it returns
/// tells a lost swap from one that the server refused, which is an error.
const SWAP: &str = "\
local now = redis.call('GET', KEYS[1])
if now == (ARGV[2] or false) then
    redis.call('SET', KEYS[1], ARGV[1])
    return {1, false}
end
return {0, now}";

/// Entries at a server that others may use too.
pub struct Redis {
    /// What the log calls it.
    name: String,
    pool: Pool,
    misunderstandings: Mutex<Recurring>,
}

impl Redis {
    /// Connects once, to see that all is right.
    ///
    /// # Errors
    /// In words: a file is wrong, the server is not there, or does not let us in.
    pub fn open(address: &RedisAddress) -> Result<Redis, String> {
        let name = address.url.to_string();
        let pool = Pool::new(name.clone(), Target::new(address)?)?;
        Ok(Redis {
            name,
            pool,
            misunderstandings: Mutex::new(Recurring::new()),
        })
    }

    /// The answer to a command, as what it has to be.
    fn ask<T: FromRedisValue>(&self, command: &Cmd, until: Instant) -> Result<T, Error> {
        waiting::begins();
        match self.pool.ask(command, until) {
            Ok(value) => from_redis_value(value).map_err(|error| self.misunderstood(&error)),
            Err(Failure::Refused(words)) => {
                Err(told(&words).unwrap_or_else(|| self.misunderstood(&words)))
            }
            Err(Failure::Timeout) => Err(Error::Timeout),
            Err(Failure::Busy) => Err(Error::Busy),
            Err(Failure::TooLarge) => Err(Error::TooLarge),
            Err(Failure::Unavailable(_)) => Err(Error::Unavailable),
        }
    }

    /// It does not do what every Redis does, or not for us.
    #[cold]
    fn misunderstood(&self, words: &dyn Display) -> Error {
        let said = self.misunderstandings.lock();
        let mut said = said.unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = said.again() {
            tracing::error!(store = %self.name, times, "the store refuses: {words}");
        }
        Error::Unavailable
    }
}

/// What the server's words say about the command, if that is what they are about.
fn told(words: &str) -> Option<Error> {
    if words.contains("would overflow") {
        Some(Error::Overflow)
    } else if words.contains("not an integer") || words.starts_with("WRONGTYPE") {
        Some(Error::NotAnInteger)
    } else if words.starts_with("OOM") {
        Some(Error::Quota)
    } else {
        None
    }
}

fn key_of(key: &str) -> String {
    format!("{NAMESPACE}{key}")
}

impl Backend for Redis {
    fn get(&self, key: &str, until: Instant) -> Result<Option<Vec<u8>>, Error> {
        let value: Option<Vec<u8>> = self.ask(cmd("GET").arg(key_of(key)), until)?;
        // It need not be ours.
        match value {
            Some(value) if value.len() > STORE_VALUE_BYTES => Err(Error::TooLarge),
            value => Ok(value),
        }
    }

    fn exists(&self, key: &str, until: Instant) -> Result<bool, Error> {
        self.ask(cmd("EXISTS").arg(key_of(key)), until)
    }

    fn list(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        most: usize,
        until: Instant,
    ) -> Result<Page, Error> {
        let pattern = format!("{}*", escaped(&key_of(prefix)));
        // One that a guest has made up is as good as none.
        let mut cursor: u64 = cursor.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut keys = BTreeSet::new();
        // A round may meet other keys of the server only.
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern);
            let (next, found): (u64, Vec<Vec<u8>>) =
                self.ask(scan.arg("COUNT").arg(most), until)?;
            let found = found
                .into_iter()
                .filter_map(|key| String::from_utf8(key).ok());
            keys.extend(found.filter_map(|key| key.strip_prefix(NAMESPACE).map(str::to_owned)));
            cursor = next;
            if cursor == 0 || !keys.is_empty() {
                break;
            }
        }
        Ok(Page {
            keys: keys.into_iter().collect(),
            cursor: (cursor != 0).then(|| cursor.to_string()),
        })
    }

    fn get_many(
        &self,
        keys: &[String],
        most_bytes: usize,
        until: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut get = cmd("MGET");
        for key in keys {
            get.arg(key_of(key));
        }
        let values: Vec<Option<Vec<u8>>> = self.ask(&get, until)?;
        match values.iter().flatten().map(Vec::len).sum::<usize>() > most_bytes {
            true => Err(Error::TooLarge),
            false => Ok(values),
        }
    }

    fn set_many(&self, entries: Vec<(String, Vec<u8>)>, until: Instant) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut set = cmd("MSET");
        for (key, value) in entries {
            set.arg(key_of(&key)).arg(value);
        }
        self.ask(&set, until)
    }

    fn delete_many(&self, keys: Vec<String>, until: Instant) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut delete = cmd("DEL");
        for key in keys {
            delete.arg(key_of(&key));
        }
        self.ask(&delete, until)
    }

    fn increment(&self, key: String, delta: i64, until: Instant) -> Result<i64, Error> {
        self.ask(cmd("INCRBY").arg(key_of(&key)).arg(delta), until)
    }

    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        until: Instant,
    ) -> Result<Swapped, Error> {
        let mut eval = cmd("EVAL");
        eval.arg(SWAP).arg(1).arg(key_of(&key)).arg(value);
        let (is_done, current): (bool, Option<Vec<u8>>) = self.ask(eval.arg(expected), until)?;
        Ok(match is_done {
            true => Swapped::Done,
            false => Swapped::Lost(current),
        })
    }
}

/// What a pattern takes literally.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
