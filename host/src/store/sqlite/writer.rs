//! The thread that writes: takes all that waits, commits it at once, and answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension};

use crate::budget::{Budget, Claim};
use crate::limits::guest::{STORE_COMMIT_BYTES, STORE_SYNC_TIME, STORE_WAITING};
use crate::logging::Recurring;
use crate::store::backend::Error;
use crate::store::counter;
use crate::store::sqlite::file::{self, APPLICATION_ID, Identity, LOCK_PAUSE, USED_BYTES};
use crate::store::sqlite::shared::Shared;
use crate::store::usage::{entry_bytes, replaced};

/// What is to be done.
pub(super) enum Write {
    Set(Vec<(String, Vec<u8>)>),
    Delete(Vec<String>),
    Increment {
        key: String,
        delta: i64,
    },
    Swap {
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    },
    /// Bring all to the disk, and close the file.
    Close,
}

/// What has become of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Sum(i64),
    /// There was another value.
    Lost(Option<Vec<u8>>),
}

/// The value of a key.
pub(super) const GET: &str = "SELECT value FROM entries WHERE key = ?";

const SET: &str = "INSERT INTO entries VALUES (?, ?) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";

/// How long after it has waited for another process a writer lets others go first, and for how long: one that
/// waits looks once in a [`LOCK_PAUSE`].
const OTHERS_TIME: Duration = Duration::from_secs(1);
const OTHERS_PAUSE: Duration = Duration::from_millis(2);

/// A write, and who waits for it.
pub(super) struct Job {
    write: Write,
    /// From then on nobody waits for it, and it is not begun.
    until: Option<Instant>,
    /// Bytes of what waits.
    claim: Claim,
    reply: SyncSender<Result<Answer, Error>>,
}

impl Write {
    /// What it takes while it waits.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = match self {
            Write::Set(entries) => entries
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum(),
            Write::Delete(keys) => keys.iter().map(String::len).sum(),
            Write::Increment { key, .. } => key.len(),
            Write::Swap {
                key,
                expected,
                value,
            } => key.len() + value.len() + expected.as_ref().map_or(0, Vec::len),
            Write::Close => 0,
        };
        bytes as u64
    }

    /// Changes the entries, and what they count.
    ///
    /// # Errors
    /// The outer one is the disk's.
    fn apply(self, entries: &mut Entries<'_>) -> rusqlite::Result<Result<Answer, Error>> {
        match self {
            Write::Set(new) => {
                for (key, value) in new {
                    if let Err(error) = entries.set(&key, &value)? {
                        return Ok(Err(error));
                    }
                }
            }
            Write::Delete(keys) => {
                for key in keys {
                    entries.remove(&key)?;
                }
            }
            Write::Increment { key, delta } => {
                let sum = match counter::sum(entries.get(&key)?.as_deref(), delta) {
                    Ok(sum) => sum,
                    Err(error) => return Ok(Err(error)),
                };
                let set = entries.set(&key, sum.to_string().as_bytes())?;
                return Ok(set.map(|()| Answer::Sum(sum)));
            }
            Write::Swap {
                key,
                expected,
                value,
            } => {
                let current = entries.get(&key)?;
                if current != expected {
                    return Ok(Ok(Answer::Lost(current)));
                }
                let set = entries.set(&key, &value)?;
                return Ok(set.map(|()| Answer::Done));
            }
            Write::Close => {}
        }
        Ok(Ok(Answer::Done))
    }
}

/// All entries, while they are changed.
struct Entries<'a> {
    get: CachedStatement<'a>,
    length: CachedStatement<'a>,
    set: CachedStatement<'a>,
    remove: CachedStatement<'a>,
    used_bytes: u64,
    quota_bytes: u64,
}

impl Entries<'_> {
    fn of(database: &Connection, quota_bytes: u64) -> rusqlite::Result<Entries<'_>> {
        let used_bytes: i64 = database
            .prepare_cached(USED_BYTES)?
            .query_row((), |row| row.get(0))?;
        Ok(Entries {
            get: database.prepare_cached(GET)?,
            length: database
                .prepare_cached("SELECT octet_length(value) FROM entries WHERE key = ?")?,
            set: database.prepare_cached(SET)?,
            remove: database.prepare_cached("DELETE FROM entries WHERE key = ?")?,
            used_bytes: used_bytes as u64,
            quota_bytes,
        })
    }

    fn get(&mut self, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
        let value = self.get.query_row([key.as_bytes()], |row| row.get(0));
        value.optional()
    }

    /// What the entry counts.
    fn bytes(&mut self, key: &str) -> rusqlite::Result<u64> {
        let length = self.length.query_row([key.as_bytes()], |row| row.get(0));
        let length: Option<i64> = length.optional()?;
        Ok(length.map_or(0, |length| entry_bytes(key, length as usize)))
    }

    fn set(&mut self, key: &str, value: &[u8]) -> rusqlite::Result<Result<(), Error>> {
        let (old, new) = (self.bytes(key)?, entry_bytes(key, value.len()));
        match replaced(self.used_bytes, self.quota_bytes, old, new) {
            Ok(used) => self.used_bytes = used,
            Err(error) => return Ok(Err(error)),
        }
        self.set.execute((key.as_bytes(), value))?;
        Ok(Ok(()))
    }

    fn remove(&mut self, key: &str) -> rusqlite::Result<()> {
        let bytes = self.bytes(key)?;
        self.remove.execute([key.as_bytes()])?;
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
        Ok(())
    }
}

impl Job {
    pub(super) fn new(
        write: Write,
        until: Instant,
        claim: Claim,
        reply: SyncSender<Result<Answer, Error>>,
    ) -> Job {
        Job {
            write,
            until: Some(until),
            claim,
            reply,
        }
    }

    pub(super) fn close(waiting: &Arc<Budget>, reply: SyncSender<Result<Answer, Error>>) -> Job {
        Job {
            write: Write::Close,
            until: None,
            claim: Claim::none(waiting),
            reply,
        }
    }

    fn is_given_up(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Who writes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// What it was when it was opened.
    identity: Identity,
    /// None when the disk has failed, or it is closed: nothing is written any more.
    database: Option<Connection>,
    /// What `synchronous` was last set to: true is `NORMAL`, false is `FULL`; none before the first commit.
    is_lazy: Option<bool>,
    /// Since when there is what is not on the disk.
    unsynced_since: Option<Instant>,
    /// When it last had to wait for another process.
    waited: Option<Instant>,
    failed_writes: Recurring,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        path: &Path,
        identity: Identity,
        database: Connection,
    ) -> Writer {
        Writer {
            shared,
            path: path.to_owned(),
            identity,
            database: Some(database),
            is_lazy: None,
            unsynced_since: None,
            waited: None,
            failed_writes: Recurring::new(),
        }
    }

    /// Until nobody has the store any more.
    pub(super) fn run(mut self, waiting: &Receiver<Job>) {
        loop {
            let first = match self.unsynced_since {
                None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => waiting.recv_timeout(left_of(STORE_SYNC_TIME, since)),
            };
            let mut jobs = match first {
                Ok(job) => vec![job],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut bytes: u64 = jobs.iter().map(|job| job.write.bytes()).sum();
            // Whoever waits behind more than that may give up before it is begun, and not after it is done.
            while bytes < STORE_COMMIT_BYTES
                && jobs.len() < STORE_WAITING
                && let Ok(job) = waiting.try_recv()
            {
                bytes += job.write.bytes();
                jobs.push(job);
            }
            self.handle(jobs);
        }
        self.close();
    }

    fn handle(&mut self, mut jobs: Vec<Job>) {
        let now = Instant::now();
        jobs.retain(|job| !job.is_given_up(now));
        if jobs.is_empty() && !self.has_to_sync() {
            return;
        }
        let closes = jobs.iter().any(|job| matches!(job.write, Write::Close));
        let jobs = jobs.into_iter();
        let jobs = jobs.map(|job| (job.write, (job.reply, job.claim)));
        let (writes, replies): (Vec<_>, Vec<_>) = jobs.unzip();
        self.look_for_the_file();
        let (answers, otherwise) = match self.commit(writes) {
            Ok(answers) => (answers, Error::Unavailable),
            Err(error) => (Vec::new(), self.failed(&error)),
        };
        if closes {
            self.close();
        }
        let otherwise = std::iter::repeat_with(|| Err(otherwise));
        let answers = answers.into_iter().chain(otherwise);
        for ((reply, _claim), answer) in replies.into_iter().zip(answers) {
            // Whoever has waited too long does not hear it.
            let _ = reply.try_send(answer);
        }
    }

    /// What is written to a file that has been removed, or has another in its place, is lost.
    fn look_for_the_file(&mut self) {
        if self.database.is_none() {
            return;
        }
        if !file::identity(&self.path).is_ok_and(|now| now == self.identity) {
            let store = &self.shared.name;
            tracing::error!(
                %store,
                "the store's file was removed or replaced: the store is not used until the next start"
            );
            self.let_go();
            self.shared.readers.close();
        }
    }

    /// Whether what was written has waited for the disk as long as it may.
    fn has_to_sync(&self) -> bool {
        self.unsynced_since
            .is_some_and(|since| since.elapsed() >= STORE_SYNC_TIME)
    }

    /// One transaction for all of them. Without a database, there are no answers.
    fn commit(&mut self, writes: Vec<Write>) -> rusqlite::Result<Vec<Result<Answer, Error>>> {
        let Some(database) = &self.database else {
            return Ok(Vec::new());
        };
        let closes = writes.iter().any(|write| matches!(write, Write::Close));
        let is_lazy = self.shared.is_relaxed() && !closes && !self.has_to_sync();
        // What an earlier commit has not brought to the disk, one that waits for the disk brings there too.
        if self.is_lazy != Some(is_lazy) {
            let synchronous = if is_lazy { "NORMAL" } else { "FULL" };
            database.pragma_update(None, "synchronous", synchronous)?;
            self.is_lazy = Some(is_lazy);
        }
        if self
            .waited
            .is_some_and(|waited| waited.elapsed() < OTHERS_TIME)
        {
            // Whoever has just written would otherwise be the first again.
            thread::sleep(OTHERS_PAUSE);
        }
        let asked = Instant::now();
        let transaction = Transaction::begin(database)?;
        if asked.elapsed() > LOCK_PAUSE {
            self.waited = Some(Instant::now());
        }
        if !is_lazy && self.unsynced_since.is_some() {
            // A commit that changes nothing would not wait for the disk. This changes the first page.
            database.pragma_update(None, "application_id", APPLICATION_ID)?;
        }
        let mut entries = Entries::of(database, self.shared.quota_bytes())?;
        let answers = writes.into_iter().map(|write| write.apply(&mut entries));
        let answers = answers.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut sum = database.prepare_cached("UPDATE used SET bytes = ?")?;
        sum.execute([entries.used_bytes as i64])?;
        transaction.commit()?;
        self.unsynced_since = match is_lazy {
            true => self.unsynced_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        Ok(answers)
    }

    /// Says what to tell those who wait. Nobody knows what became of writes that the disk has failed, so no
    /// others may follow; what was there before is read on.
    #[cold]
    fn failed(&mut self, error: &rusqlite::Error) -> Error {
        let store = &self.shared.name;
        // Nothing was changed, and there may be room again, or another process have finished.
        let passing = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Some(Error::Busy),
            Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => Some(Error::Unavailable),
            _ => None,
        };
        if let Some(answer) = passing {
            if let Some(times) = self.failed_writes.again() {
                tracing::warn!(%store, times, "the store cannot be written now: {error}");
            }
            // What is still to be synced is tried again, and not at once.
            self.unsynced_since = self.unsynced_since.map(|_| Instant::now());
            return answer;
        }
        tracing::error!(
            %store,
            "the store's disk has failed, and writes are refused until the next start: {error}"
        );
        self.let_go();
        Error::Unavailable
    }

    fn close(&mut self) {
        if self.unsynced_since.is_some()
            && let Err(error) = self.commit(vec![Write::Close])
        {
            self.failed(&error);
        }
        // Whoever is the last to close the file brings what is beside it into it.
        self.shared.readers.close();
        self.let_go();
    }

    /// Nothing is written any more.
    fn let_go(&mut self) {
        self.database = None;
        self.unsynced_since = None;
    }
}

/// Changes that are taken back when it is dropped without a commit.
struct Transaction<'a>(&'a Connection);

impl Transaction<'_> {
    fn begin(database: &Connection) -> rusqlite::Result<Transaction<'_>> {
        database.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        Ok(Transaction(database))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute(())?;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // What it does not take back, whoever opens the file next does not find.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

fn left_of(time: Duration, since: Instant) -> Duration {
    time.saturating_sub(since.elapsed())
}
