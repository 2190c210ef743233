//! A listening socket, and the file that it has if it is a Unix socket.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::Socket;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    file: Option<SocketFile>,
    /// It is the service manager's.
    pub is_lent: bool,
}

impl Listener {
    /// One that this process has bound, whose file is to be removed at its end.
    pub fn bound(socket: Socket) -> Listener {
        Listener {
            file: SocketFile::of(&socket, true),
            socket,
            is_lent: false,
        }
    }

    /// One of the process before this one, which still has it.
    pub(crate) fn handed(socket: Socket) -> Listener {
        Listener {
            file: SocketFile::of(&socket, false),
            socket,
            is_lent: false,
        }
    }

    /// One of the service manager's, to which its file belongs.
    pub fn lent(socket: Socket) -> Listener {
        Listener {
            socket,
            file: None,
            is_lent: true,
        }
    }

    /// No other process has it any more.
    pub(crate) fn is_ours(&self) {
        self.set_ours(true);
    }

    /// Another process has it from now on.
    pub(crate) fn is_anothers(&self) {
        self.set_ours(false);
    }

    fn set_ours(&self, ours: bool) {
        if let Some(file) = &self.file {
            file.ours.store(ours, Ordering::SeqCst);
        }
    }
}

impl Deref for Listener {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where a Unix socket is in the file system. It is removed with this, if it is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: Identity,
    ours: AtomicBool,
}

impl SocketFile {
    fn of(socket: &Socket, ours: bool) -> Option<SocketFile> {
        let address = socket.local_addr().ok()?;
        let path = address.as_pathname()?;
        Some(SocketFile {
            identity: Identity::of(path).ok()?,
            path: path.to_owned(),
            ours: AtomicBool::new(ours),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.ours.load(Ordering::SeqCst) {
            self.identity.remove(&self.path);
        }
    }
}

/// Which file it is, whatever is at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of the file that is there.
    pub(crate) fn of(path: &Path) -> io::Result<Identity> {
        let file = fs::symlink_metadata(path)?;
        Ok(Identity {
            device: file.dev(),
            inode: file.ino(),
        })
    }

    /// Removes the file, unless somebody else has put another there.
    pub(crate) fn remove(self, path: &Path) {
        if Identity::of(path).is_ok_and(|there| there == self) {
            let _ = fs::remove_file(path);
        }
    }
}
