//! The next process takes the listening socket over from this one, and nobody who connects
//! meanwhile notices.
//!
//! The running process waits at a Unix socket. The new one, when all of it is ready, connects and
//! is handed the listener itself (`SCM_RIGHTS`). It makes a Unix socket of its own, and says that
//! it takes over; the old one stops accepting, and says that it has. Both hold the same queue of
//! waiting connections, so none is lost; and until the old one has stopped nothing has changed for
//! it, so whatever fails before that, it goes on. After it, the new one only moves its Unix socket
//! to that place.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use socket2::SockRef;

use crate::limits::{ACCEPT_PAUSE, TAKEOVER_TIME};
use crate::shutdown::Shutdown;

/// Sent along with the listener: the version of this protocol.
const OFFER: u8 = 2;

/// Sent back: the new process is ready to accept.
const TAKE: u8 = 1;

/// And the last word of the old one: it has stopped.
const TAKEN: u8 = 1;

/// What `sockaddr_un` has room for, without the byte that ends it (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// How long the other side is left alone when it is busy with another process.
const PAUSE: Duration = Duration::from_millis(50);

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
        let deadline = Instant::now() + TAKEOVER_TIME;
        loop {
            let error = match Offer::ask_once(path) {
                Ok(offer) => return Ok(Some(offer)),
                Err(error) => error,
            };
            match error.kind() {
                // Left behind by a process that was killed, or just removed.
                ErrorKind::ConnectionRefused | ErrorKind::NotFound => return Ok(None),
                // It has just handed over to another: that one, or nobody, is there next.
                ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                    if Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                ErrorKind::WouldBlock => {
                    let message = "the process there does not answer: it may be busy with another";
                    return Err(io::Error::new(ErrorKind::TimedOut, message));
                }
                _ => return Err(error),
            }
        }
    }

    fn ask_once(path: &Path) -> io::Result<Offer> {
        if !fs::symlink_metadata(path)?.file_type().is_socket() {
            return Err(io::Error::other("there is a file, and it is no socket"));
        }
        let stream = UnixStream::connect(path)?;
        check_peer(&stream)?;
        stream.set_read_timeout(Some(TAKEOVER_TIME))?;
        stream.set_write_timeout(Some(TAKEOVER_TIME))?;
        let listener = TcpListener::from(receive(&stream)?);
        if !SockRef::from(&listener).is_listener()? {
            return Err(io::Error::other("it handed over what is no listener"));
        }
        Ok(Offer { listener, stream })
    }

    /// Has the running process stop accepting.
    ///
    /// # Errors
    /// It has not: it goes on, or it has died.
    pub fn take(mut self) -> io::Result<()> {
        let mut answer = [0];
        self.stream.write_all(&[TAKE])?;
        self.stream.read_exact(&mut answer)?;
        if answer == [TAKEN] {
            Ok(())
        } else {
            Err(io::Error::other("its answer is not understood"))
        }
    }
}

/// Waits for the next process, until it has come or this is dropped.
pub struct Door {
    path: PathBuf,
    /// Device and inode of our socket in the file system.
    identity: (u64, u64),
    stop: OwnedFd,
    /// Returns whether the next process has come.
    thread: Option<JoinHandle<bool>>,
}

/// A door that is not yet in its place.
pub struct Ajar {
    door: Door,
    place: PathBuf,
}

impl Ajar {
    /// Puts the door in place of the one that may be there.
    ///
    /// # Errors
    /// The folder does not allow it.
    pub fn open(self) -> io::Result<Door> {
        let Ajar { mut door, place } = self;
        // By a rename, so that there is a socket at any time for whoever comes next.
        fs::rename(&door.path, &place)?;
        door.path = place;
        Ok(door)
    }
}

impl Door {
    /// Makes a door for `path`. When the next process has taken `listener` over, `shutdown` is
    /// told.
    ///
    /// # Errors
    /// No socket can be made there, or no thread.
    pub fn prepare(path: &Path, listener: &TcpListener, shutdown: Shutdown) -> io::Result<Ajar> {
        let mut ours = path.as_os_str().to_owned();
        ours.push(format!(".{}", std::process::id()));
        if ours.len() > SOCKET_PATH_BYTES {
            let most = SOCKET_PATH_BYTES - (ours.len() - path.as_os_str().len());
            let message = format!("a path of a Unix socket may have {most} bytes here");
            return Err(io::Error::new(ErrorKind::InvalidFilename, message));
        }
        let ours = PathBuf::from(ours);
        // Of a process that was killed and had the same number.
        let _ = fs::remove_file(&ours);
        let door = UnixListener::bind(&ours)?;
        let file = fs::symlink_metadata(&ours)?;
        door.set_nonblocking(true)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let waiting = Waiting {
            door,
            listener: listener.try_clone()?,
            stop: stop.try_clone()?,
            shutdown,
        };
        let thread = thread::Builder::new()
            .name("takeover".to_owned())
            .spawn(move || waiting.wait())?;
        let door = Door {
            path: ours,
            identity: (file.dev(), file.ino()),
            stop,
            thread: Some(thread),
        };
        let place = path.to_owned();
        Ok(Ajar { door, place })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        // It cannot panic, and nothing could be done about it here.
        let handed_over = self.thread.take().and_then(|thread| thread.join().ok());
        if handed_over == Some(true) {
            // The next process moves its own there, maybe just now: it is not ours to remove.
            return;
        }
        // Unless somebody else has put another there.
        let there = fs::symlink_metadata(&self.path).map(|file| (file.dev(), file.ino()));
        if there.is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

struct Waiting {
    door: UnixListener,
    listener: TcpListener,
    stop: OwnedFd,
    shutdown: Shutdown,
}

impl Waiting {
    /// Until the next process has come, or this one ends. Returns whether it has come.
    fn wait(&self) -> bool {
        while self.readable(&self.door, None) {
            match self.door.accept() {
                Ok((stream, _)) => match self.offer(&stream) {
                    Ok(true) => return true,
                    Ok(false) => tracing::warn!("a process asked for the listener and left it"),
                    Err(error) => tracing::warn!("cannot hand the listener over: {error}"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Out of descriptors or memory, most likely: later there may be some.
                Err(error) => {
                    tracing::error!("cannot answer a process that wants to take over: {error}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        false
    }

    /// Whether the other process has taken the listener.
    fn offer(&self, mut stream: &UnixStream) -> io::Result<bool> {
        check_peer(stream)?;
        // A byte and a descriptor fit the buffer of a new socket.
        stream.set_nonblocking(true)?;
        send(stream, &self.listener)?;
        let time = Timespec::try_from(TAKEOVER_TIME).ok();
        let mut answer = [0];
        if !self.readable(stream, time.as_ref())
            || stream.read(&mut answer)? == 0
            || answer != [TAKE]
        {
            return Ok(false);
        }
        self.shutdown.hand_over();
        // If it has died just now, nobody accepts; its own supervisor has to know.
        stream.write_all(&[TAKEN])?;
        Ok(true)
    }

    /// Waits until there is something to read, and not the end of waiting, or of `time`.
    fn readable(&self, source: &impl AsFd, time: Option<&Timespec>) -> bool {
        let mut waits = [
            PollFd::new(source, PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        let ready = retry_on_intr(|| poll(&mut waits, time));
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
        Err(io::Error::new(ErrorKind::PermissionDenied, message))
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

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = retry_on_intr(|| {
        let room = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(stream, room, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    match descriptors.by_ref().flatten().next() {
        Some(descriptor) if byte == [OFFER] => Ok(descriptor),
        _ => Err(io::Error::other(
            "it is no Airlock, or another version of it",
        )),
    }
}
