//! The thread that writes: takes all that waits, commits it at once, and answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use redb::{Database, ReadableTable, StorageError, Table};

use crate::budget::{Budget, Claim};
use crate::limits::guest::{STORE_SYNC_TIME, STORE_WAITING};
use crate::store::backend::Error;
use crate::store::counter;
use crate::store::redb::file::{ENTRIES, OpenError, SUMS, USED_BYTES};
use crate::store::redb::shared::Shared;
use crate::store::usage::{entry_bytes, replaced};

/// Opens the file, with the bytes that its entries count.
pub(super) type Open = Box<dyn Fn() -> Result<(Database, u64), OpenError> + Send>;

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

/// A write, and who waits for it.
pub(super) struct Job {
    write: Write,
    /// From then on nobody waits for it, and it is not begun.
    until: Option<Instant>,
    /// Bytes of what waits.
    claim: Claim,
    reply: SyncSender<Result<Answer, Error>>,
}

type Entries<'txn> = Table<'txn, &'static str, &'static [u8]>;

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
    fn apply(
        self,
        entries: &mut Entries<'_>,
        used_bytes: &mut u64,
        quota_bytes: u64,
    ) -> Result<Result<Answer, Error>, StorageError> {
        let mut set = |entries: &mut Entries<'_>, key: &str, value: &[u8]| {
            let old = entries.get(key)?;
            let old = old.map_or(0, |old| entry_bytes(key, old.value()));
            match replaced(*used_bytes, quota_bytes, old, entry_bytes(key, value)) {
                Ok(used) => *used_bytes = used,
                Err(error) => return Ok(Err(error)),
            }
            entries.insert(key, value)?;
            Ok::<_, StorageError>(Ok(Answer::Done))
        };
        match self {
            Write::Set(new) => {
                for (key, value) in new {
                    if let Err(error) = set(entries, &key, &value)? {
                        return Ok(Err(error));
                    }
                }
                Ok(Ok(Answer::Done))
            }
            Write::Delete(keys) => {
                for key in keys {
                    if let Some(old) = entries.remove(key.as_str())? {
                        *used_bytes = used_bytes.saturating_sub(entry_bytes(&key, old.value()));
                    }
                }
                Ok(Ok(Answer::Done))
            }
            Write::Increment { key, delta } => {
                let sum = {
                    let old = entries.get(key.as_str())?;
                    counter::sum(old.as_ref().map(|old| old.value()), delta)
                };
                let sum = match sum {
                    Ok(sum) => sum,
                    Err(error) => return Ok(Err(error)),
                };
                let set = set(entries, &key, sum.to_string().as_bytes())?;
                Ok(set.map(|_| Answer::Sum(sum)))
            }
            Write::Swap {
                key,
                expected,
                value,
            } => {
                let current = entries.get(key.as_str())?;
                let current = current.map(|current| current.value().to_vec());
                match current == expected {
                    true => set(entries, &key, &value),
                    false => Ok(Ok(Answer::Lost(current))),
                }
            }
            Write::Close => Ok(Ok(Answer::Done)),
        }
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
    open: Open,
    used_bytes: u64,
    /// Since when there is what is not on the disk.
    unsynced_since: Option<Instant>,
    /// The disk has failed, or the file is closed: nothing is written any more.
    is_over: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, open: Open, used_bytes: u64) -> Writer {
        Writer {
            shared,
            open,
            used_bytes,
            unsynced_since: None,
            is_over: false,
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
            while jobs.len() < STORE_WAITING
                && let Ok(job) = waiting.try_recv()
            {
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
        let answers = match self.is_over {
            true => Vec::new(),
            false => self.commit(writes).unwrap_or_else(|error| {
                self.failed(&error);
                Vec::new()
            }),
        };
        if closes {
            self.close();
        }
        let unavailable = std::iter::repeat_with(|| Err(Error::Unavailable));
        let answers = answers.into_iter().chain(unavailable);
        for ((reply, _claim), answer) in replies.into_iter().zip(answers) {
            // Whoever has waited too long does not hear it.
            let _ = reply.try_send(answer);
        }
    }

    /// Whether what was written has waited for the disk as long as it may.
    fn has_to_sync(&self) -> bool {
        self.unsynced_since
            .is_some_and(|since| since.elapsed() >= STORE_SYNC_TIME)
    }

    /// One transaction for all of them.
    fn commit(&mut self, writes: Vec<Write>) -> Result<Vec<Result<Answer, Error>>, redb::Error> {
        let database = self.shared.database();
        let Some(database) = database.as_ref() else {
            return Err(redb::Error::DatabaseClosed);
        };
        let quota_bytes = self.shared.quota_bytes();
        let closes = writes.iter().any(|write| matches!(write, Write::Close));
        let is_lazy = self.shared.is_relaxed() && !closes && !self.has_to_sync();
        let mut transaction = database.begin_write()?;
        // A write of somebody who knows the file's content, and a crash at the right moment, could
        // otherwise pass for a commit.
        transaction.set_two_phase_commit(true);
        if is_lazy {
            transaction.set_durability(redb::Durability::None)?;
        }
        let mut used_bytes = self.used_bytes;
        let mut answers = Vec::with_capacity(writes.len());
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for write in writes {
                answers.push(write.apply(&mut entries, &mut used_bytes, quota_bytes)?);
            }
            let mut sums = transaction.open_table(SUMS)?;
            sums.insert(USED_BYTES, used_bytes)?;
        }
        transaction.commit()?;
        self.used_bytes = used_bytes;
        self.unsynced_since = match is_lazy {
            true => self.unsynced_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        Ok(answers)
    }

    /// What the disk has of the file is read on; nobody knows what became of the last writes, so no
    /// others may follow.
    #[cold]
    fn failed(&mut self, error: &redb::Error) {
        self.is_over = true;
        self.unsynced_since = None;
        let store = &self.shared.name;
        tracing::error!(
            %store,
            "the store's disk has failed, and writes are refused until the next start: {error}"
        );
        // redb reads nothing more after an error of the disk.
        self.shared.replace(|| {
            let opened = (self.open)();
            let opened = opened.inspect_err(|error| {
                tracing::error!(%store, "nor can the store be read: {error}");
            });
            opened.ok().map(|(database, _)| database)
        });
    }

    /// What is written lazily is brought to the disk by redb as it closes.
    fn close(&mut self) {
        self.is_over = true;
        self.unsynced_since = None;
        self.shared.replace(|| None);
    }
}

fn left_of(time: Duration, since: Instant) -> Duration {
    time.saturating_sub(since.elapsed())
}
