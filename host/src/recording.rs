//! Conversations with real clients, written to files: one for each connection, as [`transcript`]
//! has them.
//!
//! Off unless `--record` names a folder. The files hold what clients sent, so they are for the
//! server's user alone.
//!
//! [`transcript`]: crate::transcript

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::budget::Budget;
use crate::limits::{ALL_RECORDINGS_BYTES, RECORDING_BYTES};
use crate::logging::Recurring;
use crate::server::Client;
use crate::transcript::Capped;
use crate::versions::Version;

/// What a small file takes on most file systems.
const BLOCK_BYTES: u64 = 4096;

/// The folder, and how much may still be written to it.
pub struct Recordings {
    folder: PathBuf,
    /// What no other process, and no earlier one, calls its files.
    prefix: String,
    bytes_left: Arc<Budget>,
}

/// One connection's file.
pub type Recording = Capped<Accounted>;

impl Recordings {
    /// Makes the folder if there is none.
    ///
    /// # Errors
    /// The folder cannot be made, or not be written to.
    pub fn new(folder: PathBuf) -> io::Result<Recordings> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let prefix = format!("{}-{}", now.replace([':', '-'], ""), std::process::id());
        let recordings = Recordings {
            folder,
            prefix,
            bytes_left: Budget::new(ALL_RECORDINGS_BYTES),
        };
        // Better said at the start than at the first connection.
        let attempt = recordings
            .folder
            .join(format!("{}.attempt", recordings.prefix));
        File::create_new(&attempt)?;
        fs::remove_file(attempt)?;
        Ok(recordings)
    }

    /// A file for this connection, if there may be one more.
    pub(crate) fn begin(&self, client: Client, version: &Version) -> Option<Recording> {
        let id = client.id;
        if !take(&self.bytes_left, BLOCK_BYTES) {
            return None;
        }
        let path = self.folder.join(format!("{}-{id:08}.conv", self.prefix));
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let (peer, local) = (client.peer, client.local);
        let header = format!(
            "# {now} connection {id} from {peer} to {local}\n# guest version {} sha256 {}\n",
            version.number, version.digest
        );
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let mut file = match file {
            Ok(file) => Accounted {
                file,
                bytes: 0,
                bytes_paid: BLOCK_BYTES,
                all_left: Arc::clone(&self.bytes_left),
            },
            Err(error) => {
                self.bytes_left.give_back(BLOCK_BYTES);
                cannot_record(&error);
                return None;
            }
        };
        if file.write_all(header.as_bytes()).is_err() {
            // Better none than an empty one.
            let _ = fs::remove_file(path);
            return None;
        }
        Some(Capped::new(file, RECORDING_BYTES))
    }
}

/// A file whose bytes count against those of all.
pub struct Accounted {
    file: File,
    bytes: u64,
    /// Counted against all.
    bytes_paid: u64,
    all_left: Arc<Budget>,
}

impl Write for Accounted {
    /// All of them or none: a conversation that is cut in the middle of a line is none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.bytes + bytes.len() as u64;
        let unpaid = after.saturating_sub(self.bytes_paid);
        if unpaid > 0 && !take(&self.all_left, unpaid) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.bytes_paid += unpaid;
        if let Err(error) = self.file.write_all(bytes) {
            let _ = self.file.set_len(self.bytes);
            cannot_record(&error);
            return Err(error);
        }
        self.bytes = after;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reason is the same for every connection, a full disk for instance: said once in a while.
fn cannot_record(error: &io::Error) {
    static SAID: Mutex<Recurring> = Mutex::new(Recurring::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.again().is_some() {
        tracing::warn!("a conversation is not recorded, or not to its end: {error}");
    }
}

fn take(all: &Budget, bytes: u64) -> bool {
    let taken = all.take(bytes);
    // Said once: what is left is given up.
    if !taken && all.take_rest() > 0 {
        tracing::warn!("recording ends: {ALL_RECORDINGS_BYTES} bytes have been written");
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_files_take_is_bounded() {
        let left = Budget::new(10);
        assert!(take(&left, 6));
        assert!(!take(&left, 6));
        assert!(!take(&left, 1), "it has ended");
    }
}
