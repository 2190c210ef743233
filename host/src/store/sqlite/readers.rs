//! Connections that read, for whoever asks: each serves one at a time.

use std::mem;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::limits::guest::STORE_READERS;
use crate::process::waiting;
use crate::store::sqlite::file;

/// How long a read waits for another process that has the file for itself, whatever its own time and without
/// saying so: that is rare. None that only writes has it so.
const LOCK_TIME: Duration = Duration::from_millis(100);

pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    came_back: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// All, also those that somebody has.
    open: usize,
    is_closed: bool,
}

/// Why nothing was read.
pub(super) enum NotRead {
    Closed,
    /// All were in use for too long.
    Timeout,
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for NotRead {
    fn from(error: rusqlite::Error) -> NotRead {
        NotRead::Failed(error)
    }
}

/// One that is in use: it comes back, or makes room for another if it has failed.
struct Lent<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Readers {
        Readers {
            path,
            pool: Mutex::default(),
            came_back: Condvar::new(),
        }
    }

    pub(super) fn read<T>(
        &self,
        until: Instant,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, NotRead> {
        let mut lent = self.lend(until)?;
        let connection = match lent.connection.take() {
            Some(connection) => connection,
            None => file::connect(&self.path, LOCK_TIME)?,
        };
        let result = read(&connection)?;
        lent.connection = Some(connection);
        Ok(result)
    }

    /// Nobody reads from now on, but those who do.
    pub(super) fn close(&self) {
        let mut pool = self.pool();
        pool.is_closed = true;
        pool.idle.clear();
        self.came_back.notify_all();
    }

    fn lend(&self, until: Instant) -> Result<Lent<'_>, NotRead> {
        let mut pool = self.pool();
        let mut waits = false;
        loop {
            if pool.is_closed {
                return Err(NotRead::Closed);
            }
            let connection = pool.idle.pop();
            if connection.is_some() || pool.open < STORE_READERS {
                pool.open += usize::from(connection.is_none());
                let readers = self;
                return Ok(Lent {
                    readers,
                    connection,
                });
            }
            let time = until.saturating_duration_since(Instant::now());
            if time.is_zero() {
                return Err(NotRead::Timeout);
            }
            if !mem::replace(&mut waits, true) {
                // Whoever is given this thread's seat may want to read, too.
                drop(pool);
                waiting::begins();
                pool = self.pool();
                continue;
            }
            let waited = self.came_back.wait_timeout(pool, time);
            (pool, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A panic while it is held leaves nothing half done.
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.pool();
        match self.connection.take() {
            Some(connection) if !pool.is_closed => pool.idle.push(connection),
            _ => pool.open -= 1,
        }
        self.readers.came_back.notify_one();
    }
}
