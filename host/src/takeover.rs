//! The next process takes the listening socket over from this one, and nobody who connects
//! meanwhile notices.
//!
//! The running process waits at a Unix socket. The new one, when all of it is ready, connects and
//! is handed the listener itself (`SCM_RIGHTS`); it moves a Unix socket of its own to that place,
//! and sends a byte. Only then the old one stops accepting. Both hold the same queue of waiting
//! connections, so none is lost; and when either fails before that byte, the old one goes on.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use socket2::SockRef;

use crate::limits::TAKEOVER_TIME;
use crate::shutdown::Shutdown;

/// Sent along with the listener: the version of this protocol.
const OFFER: u8 = 1;

/// Sent back: the new process accepts connections from now on.
const TAKEN: u8 = 1;

/// The running process's listener, in the hands of the new one.
pub struct Offer {
    /// Shared with the running process until [`Offer::take`].
    pub listener: TcpListener,
    stream: UnixStream,
}

impl Offer {
    /// Asks at `path`. `None` when no process waits there.
    ///
    /// # Errors
    /// Something is there that is no Airlock of the same user, or it does not answer.
    pub fn ask(path: &Path) -> io::Result<Option<Offer>> {
        match fs::symlink_metadata(path) {
            Ok(file) if file.file_type().is_socket() => {}
            Ok(_) => return Err(io::Error::other("there is a file, and it is no socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Left behind by a process that was killed, or just removed.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        check_peer(&stream)?;
        stream.set_read_timeout(Some(TAKEOVER_TIME))?;
        stream.set_write_timeout(Some(TAKEOVER_TIME))?;
        let listener = receive(&stream)?.map(TcpListener::from);
        match listener {
            Some(listener) if SockRef::from(&listener).is_listener()? => {
                Ok(Some(Offer { listener, stream }))
            }
            // It has closed without a word: it is about to end, and so is its listener.
            None => Ok(None),
            Some(_) => Err(io::Error::other("it handed over what is no listener")),
        }
    }

    /// Has the running process stop accepting.
    ///
    /// # Errors
    /// It has gone meanwhile, which is as good.
    pub fn take(mut self) -> io::Result<()> {
        self.stream.write_all(&[TAKEN])
    }
}

/// Waits for the next process, until it has come or this is dropped.
pub struct Door {
    path: PathBuf,
    /// Device and inode of our socket in the file system.
    place: (u64, u64),
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens at `path`, in place of the socket that may be there. When the next process has taken
    /// `listener` over, `shutdown` is told.
    ///
    /// # Errors
    /// No socket can be made there, or no thread.
    pub fn open(path: &Path, listener: &TcpListener, shutdown: Shutdown) -> io::Result<Door> {
        // By a rename, so that there is a socket at any time for whoever comes next.
        let mut ours = path.as_os_str().to_owned();
        ours.push(format!(".{}", std::process::id()));
        let ours = PathBuf::from(ours);
        let door = UnixListener::bind(&ours)?;
        let file = fs::symlink_metadata(&ours)?;
        fs::rename(&ours, path)?;
        door.set_nonblocking(true)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let waiting = Waiting {
            door,
            listener: listener.try_clone()?,
            stop: stop.try_clone()?,
        };
        let thread = thread::Builder::new()
            .name("takeover".to_owned())
            .spawn(move || {
                if waiting.until_taken() {
                    shutdown.hand_over();
                }
            })?;
        Ok(Door {
            path: path.to_owned(),
            place: (file.dev(), file.ino()),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Unless the next process has put its own there.
        let there = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        if there.is_ok_and(|place| place == self.place) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and nothing could be done about it here.
            let _ = thread.join();
        }
    }
}

struct Waiting {
    door: UnixListener,
    listener: TcpListener,
    stop: OwnedFd,
}

impl Waiting {
    /// Whether the next process has come, or this one ends.
    fn until_taken(&self) -> bool {
        while self.readable(&self.door, None) {
            match self.door.accept() {
                Ok((stream, _)) => match self.offer(&stream) {
                    Ok(true) => return true,
                    Ok(false) => tracing::warn!("a process asked for the listener and left it"),
                    Err(error) => tracing::warn!("cannot hand the listener over: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::error!("no takeover is possible any more: {error}");
                    return false;
                }
            }
        }
        false
    }

    fn offer(&self, mut stream: &UnixStream) -> io::Result<bool> {
        check_peer(stream)?;
        // A byte and a descriptor fit the buffer of a new socket.
        stream.set_nonblocking(true)?;
        send(stream, &self.listener)?;
        let time = Timespec::try_from(TAKEOVER_TIME).ok();
        if !self.readable(stream, time.as_ref()) {
            return Ok(false);
        }
        let mut answer = [0];
        Ok(stream.read(&mut answer)? == 1 && answer == [TAKEN])
    }

    /// Waits until there is something to read, and not the end of waiting, or of `time`.
    fn readable(&self, source: &impl AsFd, time: Option<&Timespec>) -> bool {
        let mut waits = [
            PollFd::new(source, PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        let ready = rustix::io::retry_on_intr(|| poll(&mut waits, time));
        ready.is_ok() && !waits[0].revents().is_empty() && waits[1].revents().is_empty()
    }
}

/// The other side has to be this user, or root: whoever has the listener has the connections.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let user = socket_peercred(stream)?.uid;
    if user == geteuid() || user.is_root() {
        Ok(())
    } else {
        let message = format!(
            "the process there belongs to another user ({})",
            user.as_raw()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }
}

fn send(stream: &UnixStream, listener: &TcpListener) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL;
    sendmsg(stream, &[IoSlice::new(&[OFFER])], &mut control, flags)?;
    Ok(())
}

/// `None` at the end of input.
fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let room = &mut [IoSliceMut::new(&mut byte)];
    let received = recvmsg(stream, room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.by_ref().flatten().next();
    match descriptor {
        Some(descriptor) if byte == [OFFER] => Ok(Some(descriptor)),
        _ => Err(io::Error::other(
            "it is no Airlock, or another version of it",
        )),
    }
}
