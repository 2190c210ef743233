//! Conversations with real clients, written to files: one for each connection, as [`transcript`]
//! has them.
//!
//! Off unless `--record` names a folder. The files hold what clients sent, so they are for the
//! server's user alone.
//!
//! [`transcript`]: crate::talk::transcript

pub mod disk;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::budget::Budget;
use crate::limits::process::{ALL_RECORDINGS_BYTES, RECORDING_BYTES, RECORDING_QUEUE_BYTES};
use crate::serve::recording::disk::{Disk, Queue, cannot_record};
use crate::talk::client::Client;
use crate::talk::recorder::{CUT, Capped};
use crate::versions::assignment::Version;

/// What a small file takes on most file systems.
const BLOCK_BYTES: u64 = 4096;

/// The folder, and how much may still be written to it.
pub struct Recordings {
    folder: PathBuf,
    /// What no other process, and no earlier one, calls its files.
    prefix: String,
    bytes_left: Arc<Budget>,
    queue: Queue,
}

/// One connection's file.
pub type Recording = Capped<Queued>;

impl Recordings {
    /// Makes the folder if there is none, and starts the thread that writes; what is recorded has been
    /// written when that is dropped.
    ///
    /// # Errors
    /// The folder cannot be made, or not be written to.
    pub fn new(folder: PathBuf) -> io::Result<(Recordings, Disk)> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let prefix = format!("{}-{}", now.replace([':', '-'], ""), std::process::id());
        let disk = Disk::start()?;
        let recordings = Recordings {
            folder,
            prefix,
            bytes_left: Budget::new(ALL_RECORDINGS_BYTES),
            queue: disk.queue(),
        };
        // Better said at the start than at the first connection.
        let attempt = recordings
            .folder
            .join(format!("{}.attempt", recordings.prefix));
        File::create_new(&attempt)?;
        fs::remove_file(attempt)?;
        Ok((recordings, disk))
    }

    /// A file for this connection, if there may be one more. Whether it can be written shows later.
    pub(crate) fn begin(&self, client: &Client, version: &Version) -> Option<Recording> {
        let id = client.id;
        if !take(&self.bytes_left, BLOCK_BYTES) {
            return None;
        }
        let path = self.folder.join(format!("{}-{id:08}.conv", self.prefix));
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let (peer, local) = (&client.peer, &client.local);
        let head = format!(
            "# {now} connection {id} from {peer} to {local}\n# guest version {} sha256 {}\n",
            version.number, version.digest
        );
        let recording = Queued {
            number: id,
            queue: self.queue.clone(),
            // What may be said at its end is paid for.
            bytes: (head.len() + CUT.len()) as u64,
            bytes_paid: BLOCK_BYTES,
            all_left: Arc::clone(&self.bytes_left),
            failed: Arc::default(),
            cut: false,
        };
        let failed = Arc::clone(&recording.failed);
        if !self.queue.begin(id, path, head, failed) {
            self.bytes_left.give_back(BLOCK_BYTES);
            disk_is_slow();
            return None;
        }
        Some(Capped::new(recording, RECORDING_BYTES))
    }
}

/// A file on its way to the disk, whose bytes count against those of all.
pub struct Queued {
    /// The connection's.
    number: u64,
    queue: Queue,
    bytes: u64,
    /// Counted against all.
    bytes_paid: u64,
    all_left: Arc<Budget>,
    /// It can no longer be written.
    failed: Arc<AtomicBool>,
    /// It ends before its conversation does.
    cut: bool,
}

impl Write for Queued {
    /// All of them or none: a conversation that is cut in the middle of a line is none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let after = self.bytes + bytes.len() as u64;
        let unpaid = after.saturating_sub(self.bytes_paid);
        if unpaid > 0 && !take(&self.all_left, unpaid) {
            self.cut = true;
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.bytes_paid += unpaid;
        if !self.queue.append(self.number, bytes) {
            disk_is_slow();
            self.cut = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.bytes = after;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.queue.end(self.number, self.cut);
    }
}

fn disk_is_slow() {
    cannot_record(&format_args!(
        "the disk is too slow, {RECORDING_QUEUE_BYTES} bytes wait for it"
    ));
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
