//! The file of a store: opened, made if there is none, and made smaller.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{
    Builder, CompactionError, Database, DatabaseError, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition, TableError,
};

use crate::limits::guest::STORE_CACHE_BYTES;
use crate::store::usage::entry_bytes;

/// The keys and values.
pub(super) const ENTRIES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("entries");

/// What is known of them: the bytes that they count.
pub(super) const SUMS: TableDefinition<'static, &str, u64> = TableDefinition::new("sums");

/// The sum of all that entries count.
pub(super) const USED_BYTES: &str = "used-bytes";

/// A file that has so much more than twice what is in it is made smaller when it is opened.
const SLACK_BYTES: u64 = 4 * 1024 * 1024;

/// Why a store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Two cannot have it.
    #[error("another process has it open: end that one first")]
    InUse,
    /// It has no place, or may not be opened.
    #[error("it cannot be opened: {0}")]
    Io(#[source] io::Error),
    /// It is a file of another kind.
    #[error("it is no store of Airlock, or is damaged: {0}")]
    NoStore(String),
    /// There is no room for a thread.
    #[error("there is no room for its thread: {0}")]
    NoThread(#[source] io::Error),
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> OpenError {
        match error {
            redb::Error::DatabaseAlreadyOpen => OpenError::InUse,
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                OpenError::NoStore(error.to_string())
            }
            redb::Error::Io(error) => OpenError::Io(error),
            error => OpenError::NoStore(error.to_string()),
        }
    }
}

/// Opens it, with the bytes that its entries count.
pub(super) fn open(path: &Path) -> Result<(Database, u64), OpenError> {
    let mut options = OpenOptions::new();
    // It has what clients sent.
    options.read(true).write(true).create(true).mode(0o600);
    let is_new = !path.exists();
    let file = options.open(path).map_err(OpenError::Io)?;
    if is_new && let Some(folder) = path.parent() {
        // Else the file itself could be gone after a crash.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(OpenError::Io)?;
    }
    let backend = FileBackend::new(file).map_err(redb::Error::from)?;
    open_with(backend)
}

/// The same for whatever keeps the bytes.
pub(super) fn open_with(backend: impl StorageBackend) -> Result<(Database, u64), OpenError> {
    // A file that somebody else has changed may make redb panic.
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut builder = Builder::new();
        builder.set_cache_size(STORE_CACHE_BYTES);
        let database = builder.create_with_backend(backend)?;
        let used_bytes = used_bytes(&database)?;
        Ok::<_, redb::Error>((database, used_bytes))
    }));
    match opened {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(OpenError::NoStore("redb panicked over it".to_owned())),
    }
}

fn used_bytes(database: &Database) -> Result<u64, redb::Error> {
    let read = database.begin_read()?;
    let sums = match read.open_table(SUMS) {
        Err(TableError::TableDoesNotExist(_)) => None,
        sums => sums?.get(USED_BYTES)?.map(|sum| sum.value()),
    };
    if let Some(sum) = sums {
        return Ok(sum);
    }
    // New, or somebody else's.
    let mut write = database.begin_write()?;
    write.set_two_phase_commit(true);
    let mut sum = 0;
    {
        let entries = write.open_table(ENTRIES)?;
        for entry in entries.iter()? {
            let (key, value) = entry?;
            sum += entry_bytes(key.value(), value.value());
        }
        write.open_table(SUMS)?.insert(USED_BYTES, sum)?;
    }
    write.commit()?;
    Ok(sum)
}

/// Copies on write leave room behind in the file. That it stays as large is no reason not to serve.
pub(super) fn compact(path: &Path, database: &mut Database, used_bytes: u64) {
    let length = path.metadata().map_or(0, |file| file.len());
    if length <= 2 * used_bytes + SLACK_BYTES {
        return;
    }
    let store = path.display();
    match database.compact() {
        Ok(_) => {
            let now = path.metadata().map_or(0, |file| file.len());
            tracing::debug!(%store, "compacted, from {length} bytes to {now}");
        }
        Err(error) => compaction_failed(path, &error),
    }
}

#[cold]
fn compaction_failed(path: &Path, error: &CompactionError) {
    let store = path.display();
    tracing::warn!(%store, "the store's file stays as large as it is: {error}");
}

impl From<DatabaseError> for OpenError {
    fn from(error: DatabaseError) -> OpenError {
        redb::Error::from(error).into()
    }
}
