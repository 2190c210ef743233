//! The file of a store: opened, made if there is none, and made smaller.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::limits::guest::{STORE_CACHE_BYTES, STORE_READERS};

/// Says in the file's header that it is a store of Airlock: `Airl`.
const APPLICATION_ID: i32 = 0x4169_726c;

/// The sum of what all entries count.
pub(super) const USED_BYTES: &str = "SELECT bytes FROM used";

/// A file that has so much more than twice what is in it is made smaller when it is opened.
const SLACK_BYTES: u64 = 4 * 1024 * 1024;

/// What is written since the last commit that was brought into the file is beside it, in `-wal`, and no
/// larger than this for long.
const LOG_BYTES: i64 = 16 * 1024 * 1024;

/// How often a connection looks whether another process has finished its write, and how many times.
const LOCK_PAUSE: Duration = Duration::from_millis(1);
const LOCK_TRIES: i32 = 5000;

/// Why a store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It has no place, or may not be opened.
    #[error("it cannot be opened: {0}")]
    Io(#[source] io::Error),
    /// SQLite cannot do with it what it has to.
    #[error("it cannot be used: {0}")]
    Unusable(#[source] rusqlite::Error),
    /// It is a file of another kind.
    #[error("it is no store of Airlock, or is damaged: {0}")]
    NoStore(String),
    /// There is no room for a thread.
    #[error("there is no room for its thread: {0}")]
    NoThread(#[source] io::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> OpenError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                OpenError::NoStore(error.to_string())
            }
            _ => OpenError::Unusable(error),
        }
    }
}

/// Opens it for the thread that writes, and makes it smaller before, if that is worth it.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let connection = open_as_it_is(path)?;
    let used_bytes: i64 = connection.query_row(USED_BYTES, (), |row| row.get(0))?;
    if length(path) <= 2 * used_bytes as u64 + SLACK_BYTES {
        return Ok(connection);
    }
    // It has to be for one alone.
    drop(connection);
    compact(path);
    open_as_it_is(path)
}

fn open_as_it_is(path: &Path) -> Result<Connection, OpenError> {
    make(path).map_err(OpenError::Io)?;
    let mut connection = connect(path)?;
    let is_ours = |connection: &Connection| {
        let id: i32 = connection.query_row("PRAGMA application_id", (), |row| row.get(0))?;
        Ok::<_, rusqlite::Error>(id == APPLICATION_ID)
    };
    if !is_ours(&connection)? {
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = connection.query_row(tables, (), |row| row.get(0))?;
        if tables > 0 {
            let message = "it is the database of another program";
            return Err(OpenError::NoStore(message.to_owned()));
        }
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    // Another process may do the same at this moment.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !is_ours(&transaction)? {
        transaction.execute_batch(
            "CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;
             CREATE TABLE used (bytes INTEGER NOT NULL) STRICT;
             INSERT INTO used VALUES (0);",
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()?;
    Ok(connection)
}

/// Makes it if there is none, for this user alone: it has what clients sent. (SQLite gives the same mode to
/// what it writes beside it.)
fn make(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Whoever opens a file and closes it takes the locks of those who have it in this process.
            match path.metadata()?.is_file() {
                true => Ok(()),
                false => Err(io::Error::other("it is no file")),
            }
        }
        Err(error) => Err(error),
        // Else the file itself could be gone after a crash.
        Ok(_) => File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all(),
    }
}

/// A connection to a file that is there.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // SQLite's own handler waits longer and longer, and so falls behind one who goes on writing.
    connection.busy_handler(Some(|tries| {
        thread::sleep(LOCK_PAUSE);
        tries < LOCK_TRIES
    }))?;
    let cache_bytes = STORE_CACHE_BYTES / (1 + STORE_READERS);
    // In KiB, where it is negative.
    connection.pragma_update(None, "cache_size", -((cache_bytes / 1024) as i64))?;
    Ok(connection)
}

/// What is deleted leaves room behind in the file. That it stays as large is no reason not to serve.
fn compact(path: &Path) {
    let store = path.display();
    let before = length(path);
    match try_compact(path) {
        Ok(()) => tracing::debug!(%store, "compacted, from {before} bytes to {}", length(path)),
        // Another process has it open, and will make it smaller, or not.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
        Err(error) => {
            tracing::warn!(%store, "the store's file stays as large as it is: {error}");
        }
    }
}

fn try_compact(path: &Path) -> rusqlite::Result<()> {
    let connection = connect(path)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}
