//! A store in a file, by redb: what was acknowledged is found again after a crash.
//!
//! Reads run on the thread of whoever asks. All writes go to one thread, which commits what has come
//! together at once, for a commit waits for the disk (`redb/writer.rs`).

mod file;
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

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use crate::budget::{Budget, Claim};
use crate::limits::guest::{STORE_END_TIME, STORE_WAITING, STORE_WAITING_BYTES};
use crate::process::waiting;
use crate::store::backend::{Backend, Error, Page, Swapped};
use crate::store::redb::file::ENTRIES;
pub use crate::store::redb::file::OpenError;
use crate::store::redb::shared::Shared;
pub use crate::store::redb::shared::{Durability, Options};
use crate::store::redb::writer::{Answer, Job, Open, Write, Writer};

/// How long the end of a store rests when more waits for it than may.
const CLOSE_PAUSE: Duration = Duration::from_millis(10);

/// A store in a file. Dropping it closes the file, and waits for the disk as long as that may take. (A
/// disk that is stuck keeps its thread until the process ends.)
pub struct Redb {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    waiting_bytes: Arc<Budget>,
    /// Nothing comes, but the end of the thread that writes.
    ended: Mutex<Receiver<()>>,
}

impl Redb {
    /// Opens the file at `path`, or makes it, for this user alone.
    ///
    /// # Errors
    /// Another process has it, it is something else, or the disk fails.
    pub fn open(path: &Path, options: Options) -> Result<Redb, OpenError> {
        let path = path.to_owned();
        let name = path.display().to_string();
        let (mut database, used_bytes) = file::open(&path)?;
        file::compact(&path, &mut database, used_bytes);
        let again = move || file::open(&path);
        Redb::start(name, options, (database, used_bytes), Box::new(again))
    }

    /// `open` opens it again after an error of the disk.
    fn start(
        name: String,
        options: Options,
        (database, used_bytes): (Database, u64),
        open: Open,
    ) -> Result<Redb, OpenError> {
        let shared = Arc::new(Shared::new(name, database, options));
        let (jobs, waiting) = mpsc::sync_channel(STORE_WAITING);
        let writer = Writer::new(Arc::clone(&shared), open, used_bytes);
        let (ends, ended) = mpsc::sync_channel(0);
        let thread = thread::Builder::new().name("store".to_owned());
        let thread = thread.spawn(move || {
            let _ends: SyncSender<()> = ends;
            writer.run(&waiting);
        });
        thread.map_err(OpenError::NoThread)?;
        Ok(Redb {
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
        read: impl FnOnce(&ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let database = self.shared.database();
        let database = database.as_ref().ok_or(Error::Unavailable)?;
        let result = (|| read(&database.begin_read()?.open_table(ENTRIES)?))();
        result.map_err(|error| {
            self.shared.read_failed(&error);
            Error::Unavailable
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

impl Drop for Redb {
    fn drop(&mut self) {
        self.jobs = None;
        let ended = self.ended.get_mut();
        let ended = ended.unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(STORE_END_TIME);
    }
}

impl Backend for Redb {
    fn get(&self, key: &str, _: Instant) -> Result<Option<Vec<u8>>, Error> {
        self.read(|entries| Ok(entries.get(key)?.map(|value| value.value().to_vec())))
    }

    fn exists(&self, key: &str, _: Instant) -> Result<bool, Error> {
        self.read(|entries| Ok(entries.get(key)?.is_some()))
    }

    fn list(
        &self,
        prefix: &str,
        cursor: Option<&str>,
        most: usize,
        _: Instant,
    ) -> Result<Page, Error> {
        self.read(|entries| {
            let mut failed = None;
            let start = Page::start(prefix, cursor);
            let start = start.as_ref().map(String::as_str);
            let entries = entries.range::<&str>((start, Bound::Unbounded))?;
            let keys = entries.map_while(|entry| match entry {
                Ok((key, _)) => Some(key.value().to_owned()),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            });
            let page = Page::of(keys, prefix, most);
            failed.map_or(Ok(page), |error| Err(error.into()))
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
