//! The file of a store: opened, made if there is none, and made smaller.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionBehavior};

use crate::limits::guest::{STORE_CACHE_BYTES, STORE_READERS};

/// Says in the file's header that it is a store of Airlock: `Airl`.
pub(super) const APPLICATION_ID: i32 = 0x4169_726c;

/// The sum of what all entries count.
pub(super) const USED_BYTES: &str = "SELECT bytes FROM used";

/// A file of which half is free, and so much, is made smaller when it is opened.
const SLACK_BYTES: i64 = 4 * 1024 * 1024;

/// What is written since the last commit that was brought into the file is beside it, in `-wal`, and no
/// larger than this for long.
const LOG_BYTES: i64 = 16 * 1024 * 1024;

/// How long whoever writes waits for another process that does.
const LOCK_TIME: Duration = Duration::from_secs(5);

/// How often it looks whether that has finished.
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Why a store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It has no place, or may not be opened.
    #[error("it cannot be opened")]
    Io(#[source] io::Error),
    /// SQLite cannot do with it what it has to.
    #[error("it cannot be used")]
    Unusable(#[source] rusqlite::Error),
    /// It is a file of another kind.
    #[error("it is no store of Airlock, or is damaged: {0}")]
    NoStore(String),
    /// There is no room for a thread.
    #[error("there is no room for its thread")]
    NoThread(#[source] io::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> OpenError {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                OpenError::NoStore(error.to_string())
            }
            // A table that should be there is not, or has something else in it.
            Some(ErrorCode::Unknown) | None => OpenError::NoStore(error.to_string()),
            _ => OpenError::Unusable(error),
        }
    }
}

/// Opens it for the thread that writes, and makes it smaller before, if that is worth it.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let connection = open_as_it_is(path)?;
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (pages, free) = (number("page_count")?, number("freelist_count")?);
    let free_bytes = free * number("page_size")?;
    if 2 * free < pages || free_bytes < SLACK_BYTES {
        return Ok(connection);
    }
    // It has to be for one alone.
    drop(connection);
    compact(path);
    open_as_it_is(path)
}

fn open_as_it_is(path: &Path) -> Result<Connection, OpenError> {
    make(path).map_err(OpenError::Io)?;
    let mut connection = connect(path, LOCK_TIME)?;
    if connection.is_readonly(MAIN_DB)? {
        return Err(OpenError::Io(io::ErrorKind::PermissionDenied.into()));
    }
    if !is_ours(&connection)? {
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = connection.query_row(tables, (), |row| row.get(0))?;
        if tables > 0 {
            let message = "it is the database of another program";
            return Err(OpenError::NoStore(message.to_owned()));
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        fill(&mut connection)?;
    }
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    let used: i64 = connection.query_row(USED_BYTES, (), |row| row.get(0))?;
    if used < 0 {
        return Err(OpenError::NoStore(format!("{used} bytes are used")));
    }
    Ok(connection)
}

fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok(id == APPLICATION_ID)
}

/// Makes a store of an empty database. (Without an index of its own, a row of more than a thousand bytes would
/// take a page or two more.)
fn fill(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have done so at this moment.
    if !is_ours(&transaction)? {
        transaction.execute_batch(
            "CREATE TABLE entries (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT;
             CREATE TABLE used (bytes INTEGER NOT NULL) STRICT;
             INSERT INTO used VALUES (0);",
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()
}

/// Makes it if there is none, for this user alone: it has what clients sent. (SQLite gives the same mode to
/// what it writes beside it.)
fn make(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // It is not opened: whoever closes a file takes the locks of all who have it in this process.
            let file = path.metadata()?;
            match (file.is_file(), file.nlink()) {
                (true, 1) => Ok(()),
                // SQLite's second file is beside one of them.
                (true, _) => Err(io::Error::other("it has several names")),
                (false, _) => Err(io::Error::other("it is no file")),
            }
        }
        Err(error) => Err(error),
        // Else the file itself could be gone after a crash.
        Ok(_) => File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all(),
    }
}

/// A connection to a file that is there, which waits for other processes for as long.
pub(super) fn connect(path: &Path, lock_time: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // SQLite's own handler waits longer and longer, and so falls behind one who goes on writing.
    let most_pauses = lock_time.div_duration_f64(LOCK_PAUSE) as i32;
    connection.busy_handler(Some(move |pauses| {
        thread::sleep(LOCK_PAUSE);
        pauses < most_pauses
    }))?;
    let cache_bytes = STORE_CACHE_BYTES / (1 + STORE_READERS);
    // In KiB, where it is negative.
    connection.pragma_update(None, "cache_size", -((cache_bytes / 1024) as i64))?;
    Ok(connection)
}

/// Which files a store is: its own, and the one with what has not been brought into that.
pub(super) type Identity = [(u64, u64); 2];

/// # Errors
/// One of them is not there.
pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let of = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
    Ok([of(path)?, of(log.as_ref())?])
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
    let connection = connect(path, Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}
