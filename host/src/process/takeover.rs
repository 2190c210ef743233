//! The next process takes the listening sockets over from this one, and nobody who connects
//! meanwhile notices.
//!
//! The running process waits at a Unix socket. The new one connects and is handed the listeners
//! themselves (`SCM_RIGHTS`), all in one message, so both have the same queues of waiting
//! connections. When the new one is ready,
//!
//! 1. it accepts, beside the old one, and says so (`TAKE`);
//! 2. the old one asks whether it is still there (`STILL`);
//! 3. the new one renames its own Unix socket to the path of the old one's, and says yes (`YES`);
//! 4. the old one stops accepting, and closes.
//!
//! Nobody can know that their last word has arrived. So whoever does not know goes on accepting:
//! the old one until a process that is alive has just told it that it accepts, the new one from its
//! first word on, whatever becomes of the other. The worst that can happen is that both do.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_cookie;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::limits::process::{ACCEPT_PAUSE, LOG_PAUSE, TAKEOVER_TIME};
use crate::logging::Recurring;
use crate::process::listener::{Identity, Listener};
use crate::process::shutdown::Shutdown;

/// Sent along with the listeners: the version of this protocol.
const VERSION: u8 = 4;

/// As many descriptors as the kernel sends along with one message (`SCM_MAX_FD`).
const MOST_LISTENERS: usize = 253;

/// The new process: it accepts.
const TAKE: u8 = 1;

/// The old one: does it still?
const STILL: u8 = 2;

/// The new one: yes.
const YES: u8 = 3;

/// What `sockaddr_un` has room for, without the byte that ends it (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// Processes that may wait until one before them has been dealt with.
const BACKLOG: i32 = 16;

/// How long the other side is left alone when it is busy with another process.
const PAUSE: Duration = Duration::from_millis(50);

/// The running process, as the new one sees it: it has handed its listeners over, and still accepts.
pub struct Predecessor {
    /// Shared with the running process.
    pub listeners: Vec<Arc<Listener>>,
    stream: UnixStream,
}

impl Predecessor {
    /// Asks at `path`, until `shutdown` begins. `None` when no process waits there.
    ///
    /// # Errors
    /// Something is there that is no Airlock of the same user, or it does not answer.
    pub fn ask(path: &Path, shutdown: &Shutdown) -> io::Result<Option<Predecessor>> {
        Predecessor::ask_until(path, &shutdown.wake())
    }

    fn ask_until(path: &Path, stop: &impl AsFd) -> io::Result<Option<Predecessor>> {
        let deadline = Instant::now() + TAKEOVER_TIME;
        loop {
            let error = match Predecessor::ask_once(path, stop) {
                Ok(predecessor) => return Ok(Some(predecessor)),
                Err(error) => error,
            };
            match error.kind() {
                // Left behind by a process that was killed, or just removed.
                ErrorKind::ConnectionRefused | ErrorKind::NotFound => return Ok(None),
                // It has just handed over to another: that one, or nobody, is there next.
                ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                    if Instant::now() < deadline =>
                {
                    pause(stop, PAUSE)?;
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    let message = "the process there does not answer: it may be busy with another";
                    return Err(io::Error::new(ErrorKind::TimedOut, message));
                }
                _ => return Err(error),
            }
        }
    }

    fn ask_once(path: &Path, stop: &impl AsFd) -> io::Result<Predecessor> {
        if !fs::symlink_metadata(path)?.file_type().is_socket() {
            return Err(io::Error::other("there is a file, and it is no socket"));
        }
        // Never waits: not for a queue that is full because nobody looks at it either.
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        let stream = UnixStream::from(socket);
        check_peer(&stream)?;
        wait(&stream, stop, Some(TAKEOVER_TIME))?;
        let listeners = receive(&stream)?.into_iter();
        let listeners = listeners.map(|listener| Arc::new(Listener::handed(listener.into())));
        let listeners: Vec<_> = listeners.collect();
        for listener in &listeners {
            if !listener.is_listener()? {
                return Err(io::Error::other("it handed over what is no listener"));
            }
        }
        Ok(Predecessor { listeners, stream })
    }
}

/// A Unix socket at which this process waits for the next one, until that has come or this is dropped.
pub struct TakeoverSocket {
    /// Where the next process looks for it.
    path: PathBuf,
    /// Where it is until it is this process's turn.
    own_path: PathBuf,
    identity: Identity,
    listeners: Handed,
    stop: OwnedFd,
    state: State,
}

/// What is handed over, if it has not changed meanwhile.
type Handed = Arc<Mutex<Vec<Arc<Listener>>>>;

enum State {
    NotStarted(Waiting),
    /// The thread returns whether the next process has come.
    Running(JoinHandle<bool>),
    /// The thread could not be started, or has been joined.
    Ended,
}

impl TakeoverSocket {
    /// Makes a socket for `path`, where `before` waits if there is such a process. When the next
    /// process has taken the `listeners` over, `shutdown` is told.
    ///
    /// # Errors
    /// No socket can be made there, or there are too many listeners.
    pub fn prepare(
        path: &Path,
        listeners: Vec<Arc<Listener>>,
        before: Option<Predecessor>,
        shutdown: Shutdown,
    ) -> io::Result<TakeoverSocket> {
        check_count(listeners.len())?;
        let listeners = Arc::new(Mutex::new(listeners));
        let mut own_path = path.as_os_str().to_owned();
        own_path.push(format!(".{}", std::process::id()));
        if own_path.len() > SOCKET_PATH_BYTES {
            let most = SOCKET_PATH_BYTES - (own_path.len() - path.as_os_str().len());
            let message = format!("a path of a Unix socket may have {most} bytes here");
            return Err(io::Error::new(ErrorKind::InvalidFilename, message));
        }
        let own_path = PathBuf::from(own_path);
        // Of a process that was killed and had the same number.
        let _ = fs::remove_file(&own_path);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // What it will have in the file system: nobody else has any business there.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&SockAddr::unix(&own_path)?)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let is_first = before.is_none();
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let takeover = TakeoverSocket {
            path: path.to_owned(),
            own_path: own_path.clone(),
            identity: Identity::of(&own_path)?,
            listeners: Arc::clone(&listeners),
            state: State::NotStarted(Waiting {
                socket: socket.into(),
                own_path,
                path: path.to_owned(),
                listeners,
                before,
                stop: stop.try_clone()?,
                shutdown,
                failed: Recurring::new(),
            }),
            stop,
        };
        if is_first {
            fs::rename(&takeover.own_path, &takeover.path)?;
        }
        Ok(takeover)
    }

    /// Takes the listeners over from the process before this one, and lets the next one in. To be
    /// called when this process accepts.
    ///
    /// # Errors
    /// There is no room for a thread. The process before goes on.
    pub fn start(mut self) -> io::Result<TakeoverSocket> {
        if let State::NotStarted(waiting) = std::mem::replace(&mut self.state, State::Ended) {
            let thread = thread::Builder::new()
                .name("takeover".to_owned())
                .spawn(move || waiting.run())?;
            self.state = State::Running(thread);
        }
        Ok(self)
    }

    /// Hands over these from now on.
    pub(crate) fn change(&self, listeners: Vec<Arc<Listener>>) {
        *lock(&self.listeners) = listeners;
    }
}

impl Drop for TakeoverSocket {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let has_come = match std::mem::replace(&mut self.state, State::Ended) {
            // It cannot panic, and nothing could be done about it here.
            State::Running(thread) => thread.join().unwrap_or(false),
            State::NotStarted(_) | State::Ended => false,
        };
        self.identity.remove(&self.own_path);
        // The next process renames its own to it, maybe just now: it is not ours to remove.
        if !has_come {
            self.identity.remove(&self.path);
        }
    }
}

struct Waiting {
    socket: UnixListener,
    own_path: PathBuf,
    path: PathBuf,
    listeners: Handed,
    before: Option<Predecessor>,
    stop: OwnedFd,
    shutdown: Shutdown,
    failed: Recurring,
}

impl Waiting {
    /// Until the next process has come, or this one ends. Returns whether it has come, or is about
    /// to.
    fn run(mut self) -> bool {
        if let Some(before) = self.before.take() {
            if self.take_over(before).is_err() {
                return false;
            }
            lock(&self.listeners).iter().for_each(|one| one.is_ours());
        }
        while wait(&self.socket, &self.stop, None).is_ok() {
            let error = match self.socket.accept() {
                Ok((stream, _)) => match self.hand_over(&stream) {
                    Ok(()) | Err(Kept::Ending) => {
                        lock(&self.listeners)
                            .iter()
                            .for_each(|one| one.is_anothers());
                        return true;
                    }
                    Err(Kept::Because(error)) => error,
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => {
                    // Out of descriptors or memory, most likely: later there may be some.
                    if pause(&self.stop, ACCEPT_PAUSE).is_err() {
                        break;
                    }
                    error
                }
            };
            if let Some(times) = self.failed.again() {
                tracing::warn!(times, "the listeners were not handed over: {error}");
            }
        }
        false
    }

    /// Has the process before this one stop accepting, or learns that it has ended. Waits for it as
    /// long as it takes: both accept.
    ///
    /// # Errors
    /// This process ends.
    fn take_over(&mut self, mut before: Predecessor) -> io::Result<()> {
        loop {
            if self.replace(&before.stream)? {
                tracing::info!("took the listeners over");
                return Ok(());
            }
            // It has died. Or it has not waited, since this process was stopped for a while.
            pause(&self.stop, PAUSE)?;
            before = loop {
                match Predecessor::ask_until(&self.path, &self.stop) {
                    Ok(Some(found)) if same_sockets(&found.listeners, &lock(&self.listeners)) => {
                        break found;
                    }
                    Ok(Some(_)) => {
                        self.say("another process waits there, with other listeners");
                    }
                    Ok(None) => {
                        self.move_in();
                        tracing::info!("took the listeners over: the process before has ended");
                        return Ok(());
                    }
                    Err(error) => self.say(&error.to_string()),
                }
                pause(&self.stop, LOG_PAUSE)?;
            };
        }
    }

    fn say(&mut self, error: &str) {
        if let Some(times) = self.failed.again() {
            tracing::warn!(
                times,
                "the process before this one may still accept, and goes on being asked: {error}"
            );
        }
    }

    /// The new one's part. Returns whether this process waits where the other one did, which has
    /// ended or stopped accepting; otherwise the other one has not waited, or has ended.
    ///
    /// # Errors
    /// This process ends.
    fn replace(&self, mut stream: &UnixStream) -> io::Result<bool> {
        let (mut moved, mut patience) = (false, Some(TAKEOVER_TIME));
        let mut word = TAKE;
        loop {
            if stream.write_all(&[word]).is_err() {
                return Ok(moved);
            }
            match wait(stream, &self.stop, patience) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    tracing::warn!(
                        "the process before this one does not answer: both have the listeners until \
                         it does, or ends"
                    );
                    patience = None;
                    wait(stream, &self.stop, None)?;
                }
                waited => waited?,
            }
            let mut question = [0];
            match stream.read(&mut question) {
                Ok(1) if question == [STILL] => {}
                // Whatever it says or does: it does not ask.
                _ => return Ok(moved),
            }
            if !self.shutdown.is_accepting() {
                return Err(told_to_end());
            }
            if !moved {
                self.move_in();
                moved = true;
            }
            word = YES;
        }
    }

    /// Puts our socket where the next process looks for it, by a rename, so that there is one at any
    /// time.
    fn move_in(&self) {
        if let Err(error) = fs::rename(&self.own_path, &self.path) {
            let path = self.path.display();
            tracing::error!("no process can take over from this one at `{path}`: {error}");
        }
    }

    /// The old one's part.
    fn hand_over(&self, mut stream: &UnixStream) -> Result<(), Kept> {
        check_peer(stream)?;
        stream.set_nonblocking(true)?;
        let sent = lock(&self.listeners).clone();
        send(stream, &sent)?;
        wait(stream, &self.stop, Some(TAKEOVER_TIME)).map_err(|error| match error.kind() {
            ErrorKind::TimedOut => left(),
            _ => error,
        })?;
        hear(stream, TAKE)?;
        if !same(&lock(&self.listeners), &sent) {
            return Err(io::Error::other("they have changed meanwhile").into());
        }
        loop {
            let asked = Instant::now();
            stream.write_all(&[STILL])?;
            match wait(stream, &self.stop, Some(TAKEOVER_TIME)) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    tracing::warn!("a process accepts beside this one and does not answer");
                    wait(stream, &self.stop, None).map_err(|_| Kept::Ending)?;
                }
                waited => waited.map_err(|_| Kept::Ending)?,
            }
            hear(stream, YES)?;
            // What is there after its last word is its end.
            if wait(stream, &self.stop, Some(Duration::ZERO)).is_ok() {
                return Err(left().into());
            }
            // One of the two may have been stopped in between: then this says nothing of now.
            if asked.elapsed() < TAKEOVER_TIME {
                break;
            }
        }
        self.shutdown.hand_over();
        Ok(())
    }
}

/// Why a process keeps its listener.
enum Kept {
    /// It ends, in the middle of handing over.
    Ending,
    /// The other one has gone, or is none to hand it to.
    Because(io::Error),
}

impl From<io::Error> for Kept {
    fn from(error: io::Error) -> Kept {
        Kept::Because(error)
    }
}

fn told_to_end() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "told to end meanwhile")
}

fn left() -> io::Error {
    io::Error::other("a process asked for the listener and left it")
}

/// Takes one byte, which has to be this one.
fn hear(mut stream: &UnixStream, word: u8) -> io::Result<()> {
    let mut heard = [0];
    match stream.read(&mut heard)? {
        1 if heard == [word] => Ok(()),
        _ => Err(left()),
    }
}

/// As many as the kernel hands over at once.
///
/// # Errors
/// There are more.
pub fn check_count(listeners: usize) -> io::Result<()> {
    if listeners > MOST_LISTENERS {
        let message = format!("no more than {MOST_LISTENERS} listeners can be handed over");
        return Err(io::Error::other(message));
    }
    Ok(())
}

/// Nothing panics while it holds this lock, so a poisoned one is as good as any.
fn lock(listeners: &Handed) -> MutexGuard<'_, Vec<Arc<Listener>>> {
    listeners.lock().unwrap_or_else(PoisonError::into_inner)
}

fn same(some: &[Arc<Listener>], others: &[Arc<Listener>]) -> bool {
    some.iter()
        .map(Arc::as_ptr)
        .eq(others.iter().map(Arc::as_ptr))
}

fn same_sockets(some: &[Arc<Listener>], others: &[Arc<Listener>]) -> bool {
    fn cookies<T: AsFd>(listeners: &[T]) -> Option<BTreeSet<u64>> {
        let cookies = listeners.iter().map(socket_cookie);
        cookies.collect::<Result<_, _>>().ok()
    }
    let known = cookies(some);
    known.is_some() && known == cookies(others)
}

/// Waits until there is something to read, or the other side has ended.
///
/// # Errors
/// `TimedOut` after `time`, and `Interrupted` when `stop` is readable.
fn wait(source: &impl AsFd, stop: &impl AsFd, time: Option<Duration>) -> io::Result<()> {
    let mut waits = [
        PollFd::new(source, PollFlags::IN),
        PollFd::new(stop, PollFlags::IN),
    ];
    poll_for(&mut waits, time)?;
    if !waits[1].revents().is_empty() {
        return Err(told_to_end());
    }
    Ok(())
}

/// Lets some time pass.
///
/// # Errors
/// `Interrupted` when `stop` is readable.
fn pause(stop: &impl AsFd, time: Duration) -> io::Result<()> {
    match poll_for(&mut [PollFd::new(stop, PollFlags::IN)], Some(time)) {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(told_to_end()),
    }
}

fn poll_for(waits: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    match retry_on_intr(|| poll(waits, time.as_ref()))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// The other side has to be this user, or root: whoever has the listener has the connections.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    // Not rustix's: it has no number for a process that is in another namespace.
    let user = getsockopt(stream, PeerCredentials)?.uid();
    if user == geteuid().as_raw() || user == 0 {
        Ok(())
    } else {
        let message = format!("the process there belongs to another user ({user})");
        Err(io::Error::new(ErrorKind::PermissionDenied, message))
    }
}

/// Room for all listeners of a process.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MOST_LISTENERS));

fn send(stream: &UnixStream, listeners: &[Arc<Listener>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = listeners.iter().map(|one| one.as_fd()).collect();
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL;
    sendmsg(stream, &[IoSlice::new(&[VERSION])], &mut control, flags)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = retry_on_intr(|| {
        let room = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(stream, room, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<_> = descriptors.flatten().collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "there are too few descriptors for its listeners (`ulimit -n`)",
        ));
    }
    if descriptors.is_empty() || byte != [VERSION] {
        return Err(io::Error::other(
            "it is no Airlock, or another version of it",
        ));
    }
    Ok(descriptors)
}
