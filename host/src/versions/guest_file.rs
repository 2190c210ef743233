//! The file a guest comes from: read whole and bounded, and known by its digest.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::limits::guest::{COMPONENT_BYTES, GUEST_SETTLE_TIME};

/// A component, not yet looked into.
pub struct GuestFile {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Of those bytes.
    pub digest: Digest,
}

impl GuestFile {
    /// Reads a file. Bounded: the name may be that of a device or an endless pipe.
    ///
    /// # Errors
    /// It cannot be read, or has more than [`COMPONENT_BYTES`].
    pub fn read(path: &Path) -> io::Result<GuestFile> {
        GuestFile::read_from(&File::open(path)?)
    }

    /// Reads a regular file, and nothing that would have to be waited for. Returns what it was like
    /// before.
    ///
    /// # Errors
    /// As above, and when it is no regular file.
    pub(crate) fn read_regular(path: &Path) -> io::Result<(GuestFile, Fingerprint)> {
        // Opening a pipe would wait for whoever writes to it.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let fingerprint = Fingerprint::new(&file.metadata()?)
            .ok_or_else(|| io::Error::other("it is no regular file"))?;
        Ok((GuestFile::read_from(&file)?, fingerprint))
    }

    fn read_from(file: &File) -> io::Result<GuestFile> {
        let mut bytes = Vec::new();
        file.take(COMPONENT_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > COMPONENT_BYTES {
            let message = format!("it has more than {COMPONENT_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(GuestFile::from(bytes))
    }
}

impl From<Vec<u8>> for GuestFile {
    fn from(bytes: Vec<u8>) -> GuestFile {
        let digest = Digest::of(&bytes);
        GuestFile { bytes, digest }
    }
}

/// The SHA-256 of a component: what `sha256sum` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What changes when a file is written to, replaced, or when a link on the way to it is repointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also when the time above was set by hand.
    changed: (i64, i64),
}

impl Fingerprint {
    /// `None` where there is no regular file now.
    pub fn of(path: &Path) -> Option<Fingerprint> {
        Fingerprint::new(&fs::metadata(path).ok()?)
    }

    fn new(file: &fs::Metadata) -> Option<Fingerprint> {
        file.is_file().then(|| Fingerprint {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }

    /// Whether the file was last written to so long ago that its writer has ended. One whose time
    /// lies in the future is not old.
    pub(crate) fn is_old(&self) -> bool {
        let (seconds, nanos) = self.modified;
        let modified = u64::try_from(seconds).map_or(SystemTime::UNIX_EPOCH, |seconds| {
            SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos as u32)
        });
        modified.elapsed().is_ok_and(|age| age >= GUEST_SETTLE_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_sha256sum() {
        let digest = GuestFile::from(b"abc".to_vec()).digest.to_string();
        // The example of FIPS 180-2, appendix B.1.
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
