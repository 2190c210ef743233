//! A store in a file, by SQLite: what was acknowledged is found again after a crash.
//!
//! Reads run on the thread of whoever asks, with one of several connections (`sqlite/readers.rs`). All
//! writes go to one thread, which commits what has come together at once, for a commit waits for the disk
//! (`sqlite/writer.rs`). Other processes may have the file too.

mod file;
mod readers;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::Bound;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension};

use crate::budget::{Budget, Claim};
use crate::limits::guest::{STORE_END_TIME, STORE_WAITING, STORE_WAITING_BYTES};
use crate::process::waiting;
use crate::store::backend::{Backend, Error, Page, Swapped};
pub use crate::store::sqlite::file::OpenError;
use crate::store::sqlite::readers::NotRead;
use crate::store::sqlite::shared::Shared;
pub use crate::store::sqlite::shared::{Durability, Options};
use crate::store::sqlite::writer::{Answer, GET, Job, Write, Writer};

/// How long [`Sqlite::close`] rests before it tries again when the queue of writes is full.
const CLOSE_PAUSE: Duration = Duration::from_millis(10);

/// A store in a file. Dropping it closes the file, and waits for the disk, but no longer than
/// [`STORE_END_TIME`]. (A
/// disk that is stuck keeps its thread until the process ends.)
pub struct Sqlite {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    waiting_bytes: Arc<Budget>,
    /// Nothing comes, but the end of the thread that writes.
    ended: Mutex<Receiver<()>>,
}

impl Sqlite {
    /// Opens the file at `path`, or makes it, for this user alone.
    ///
    /// # Errors
    /// It is something else, or the disk fails.
    pub fn open(path: &Path, options: Options) -> Result<Sqlite, OpenError> {
        let database = file::open(path)?;
        let identity = file::identity(path).map_err(OpenError::Io)?;
        let shared = Arc::new(Shared::new(path, options));
        let (jobs, waiting) = mpsc::sync_channel(STORE_WAITING);
        let writer = Writer::new(Arc::clone(&shared), path, identity, database);
        let (ends, ended) = mpsc::sync_channel(0);
        let thread = thread::Builder::new().name("store".to_owned());
        let thread = thread.spawn(move || {
            let _ends: SyncSender<()> = ends;
            writer.run(&waiting);
        });
        thread.map_err(OpenError::NoThread)?;
        Ok(Sqlite {
            shared,
            jobs: Some(jobs),
            waiting_bytes: Budget::new(STORE_WAITING_BYTES),
            ended: Mutex::new(ended),
        })
    }

    /// It is kept like this from now on.
    pub fn change(&self, options: Options) {
        self.shared.change(options);
    }

    /// Brings all to the disk and closes the file, also for those who still have it.
    pub fn close(&self) {
        let end = Instant::now() + STORE_END_TIME;
        let (reply, closed) = mpsc::sync_channel(1);
        let mut job = Job::close(&self.waiting_bytes, reply);
        // It waits its turn behind other writes. A writer that has gone has closed it.
        while let Some(jobs) = &self.jobs
            && let Err(TrySendError::Full(waits)) = jobs.try_send(job)
        {
            if Instant::now() > end {
                return;
            }
            thread::sleep(CLOSE_PAUSE);
            job = waits;
        }
        let _ = closed.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    fn read<T>(
        &self,
        until: Instant,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let result = self.shared.readers.read(until, read);
        result.map_err(|error| match error {
            NotRead::Closed => Error::Unavailable,
            NotRead::Timeout => Error::Timeout,
            // Another process has it for itself.
            NotRead::Failed(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                Error::Timeout
            }
            NotRead::Failed(error) => {
                self.shared.read_failed(&error);
                Error::Unavailable
            }
        })
    }

    /// Has the writer do it, and waits for that.
    fn write(&self, write: Write, until: Instant) -> Result<Answer, Error> {
        let mut claim = Claim::none(&self.waiting_bytes);
        if !claim.cover(write.bytes()) {
            return Err(Error::Busy);
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let job = Job::new(write, until, claim, reply);
        let jobs = self.jobs.as_ref().ok_or(Error::Unavailable)?;
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy,
            TrySendError::Disconnected(_) => Error::Unavailable,
        })?;
        waiting::begins();
        let time = until.saturating_duration_since(Instant::now());
        answer.recv_timeout(time).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => Error::Timeout,
                RecvTimeoutError::Disconnected => Error::Unavailable,
            })
        })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.jobs = None;
        let ended = self.ended.get_mut();
        let ended = ended.unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(STORE_END_TIME);
    }
}

impl Backend for Sqlite {
    fn get(&self, key: &str, until: Instant) -> Result<Option<Vec<u8>>, Error> {
        self.read(until, |database| {
            let mut get = database.prepare_cached(GET)?;
            get.query_row([key.as_bytes()], |row| row.get(0)).optional()
        })
    }

    fn exists(&self, key: &str, until: Instant) -> Result<bool, Error> {
        self.read(until, |database| {
            let mut find = database.prepare_cached("SELECT 1 FROM entries WHERE key = ?")?;
            find.exists([key.as_bytes()])
        })
    }

    fn list(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        most: usize,
        until: Instant,
    ) -> Result<Page, Error> {
        let (after, start) = match Page::start(prefix, cursor) {
            Bound::Excluded(last) => (">", last),
            Bound::Included(first) => (">=", first),
            Bound::Unbounded => (">=", prefix.to_owned()),
        };
        self.read(until, |database| {
            let keys = format!("SELECT key FROM entries WHERE key {after} ? ORDER BY key LIMIT ?");
            let mut keys = database.prepare_cached(&keys)?;
            let keys = keys.query_map((start.as_bytes(), most as i64 + 1), |row| {
                let key: Vec<u8> = row.get(0)?;
                // Those of guests are text.
                String::from_utf8(key).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error))
                })
            })?;
            let keys: Vec<_> = keys.collect::<rusqlite::Result<_>>()?;
            Ok(Page::of(keys.into_iter(), prefix, most))
        })
    }

    fn set_many(&self, entries: Vec<(String, Vec<u8>)>, until: Instant) -> Result<(), Error> {
        self.write(Write::Set(entries), until).map(|_| ())
    }

    fn delete_many(&self, keys: Vec<String>, until: Instant) -> Result<(), Error> {
        self.write(Write::Delete(keys), until).map(|_| ())
    }

    fn increment(&self, key: String, delta: i64, until: Instant) -> Result<i64, Error> {
        match self.write(Write::Increment { key, delta }, until)? {
            Answer::Sum(sum) => Ok(sum),
            // The writer answers what it was asked.
            _ => Err(Error::Unavailable),
        }
    }

    fn swap(
        &self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        until: Instant,
    ) -> Result<Swapped, Error> {
        let swap = Write::Swap {
            key,
            expected,
            value,
        };
        match self.write(swap, until)? {
            Answer::Lost(current) => Ok(Swapped::Lost(current)),
            _ => Ok(Swapped::Done),
        }
    }
}
