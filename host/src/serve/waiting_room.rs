//! Where clients wait before they are served: for all of them one thread, which waits at an epoll
//! descriptor and starts with the first of them.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::limits::process::{ACCEPT_PAUSE, EVENTS_PER_ROUND};
use crate::process::shutdown::Shutdown;

/// What an event is about, where it is no client.
pub(crate) const WAKE: u64 = u64::MAX;

/// The room, until this is dropped. Who waits there then is let go.
pub(crate) struct WaitingRoom<T>(Arc<Queue<T>>);

/// How clients get there.
pub(crate) struct Queue<T> {
    pub(crate) shutdown: Shutdown,
    thread_name: &'static str,
    /// What the thread does.
    run: Box<dyn Fn(Inside<T>) + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    newcomers: Vec<T>,
    /// Since the first of them.
    thread: Option<(JoinHandle<()>, Arc<OwnedFd>)>,
    stopping: bool,
}

/// What the thread has.
pub(crate) struct Inside<T> {
    pub(crate) queue: Arc<Queue<T>>,
    pub(crate) epoll: OwnedFd,
    wake: Arc<OwnedFd>,
}

impl<T: Send + 'static> WaitingRoom<T> {
    /// For a server that `shutdown` ends. `run` looks after those inside until there is nothing more to
    /// do ([`Inside::wait`]).
    pub(crate) fn new(
        shutdown: &Shutdown,
        thread_name: &'static str,
        run: impl Fn(Inside<T>) + Send + Sync + 'static,
    ) -> WaitingRoom<T> {
        WaitingRoom(Arc::new(Queue {
            shutdown: shutdown.clone(),
            thread_name,
            run: Box::new(run),
            state: Mutex::new(State {
                newcomers: Vec::new(),
                thread: None,
                stopping: false,
            }),
        }))
    }

    /// For whoever accepts.
    pub(crate) fn queue(&self) -> &Arc<Queue<T>> {
        &self.0
    }
}

impl<T> Drop for WaitingRoom<T> {
    fn drop(&mut self) {
        let thread = {
            let mut state = self.0.lock();
            state.stopping = true;
            state.thread.take()
        };
        if let Some((thread, wake)) = thread {
            wake_up(&wake);
            let _ = thread.join();
        }
    }
}

impl<T> Queue<T> {
    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Queue<T> {
    /// Has a client wait.
    ///
    /// # Errors
    /// It is the first, and there is no thread; it comes back.
    pub(crate) fn add(self: &Arc<Queue<T>>, newcomer: T) -> Result<(), (T, io::Error)> {
        let mut state = self.lock();
        if state.thread.is_none() {
            match self.start() {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => return Err((newcomer, error)),
            }
        }
        state.newcomers.push(newcomer);
        if let Some((_, wake)) = &state.thread {
            wake_up(wake);
        }
        Ok(())
    }

    fn start(self: &Arc<Queue<T>>) -> io::Result<(JoinHandle<()>, Arc<OwnedFd>)> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        self.shutdown.connections().add_waker(wake.try_clone()?);
        let wake = Arc::new(wake);
        let queue = Arc::clone(self);
        let inside = Inside {
            queue: Arc::clone(self),
            epoll,
            wake: Arc::clone(&wake),
        };
        let thread = thread::Builder::new()
            .name(self.thread_name.to_owned())
            .spawn(move || (queue.run)(inside))?;
        Ok((thread, wake))
    }
}

impl<T> Inside<T> {
    /// Waits until something has to be done, or for `time`. Returns what the events are about and who has
    /// come; nothing when that was all.
    pub(crate) fn wait(&self, time: Option<Duration>) -> Option<(Vec<u64>, Vec<T>)> {
        let events = self.events(time);
        let mut state = self.queue.lock();
        (!state.stopping).then(|| (events, mem::take(&mut state.newcomers)))
    }

    fn events(&self, time: Option<Duration>) -> Vec<u64> {
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let mut room = [const { MaybeUninit::uninit() }; EVENTS_PER_ROUND];
        match epoll::wait(&self.epoll, &mut room, time.as_ref()) {
            Ok((events, _)) => {
                let about: Vec<_> = events.iter().map(|event| event.data.u64()).collect();
                // Before the newcomers are taken: whoever comes after that wakes this thread again.
                if about.contains(&WAKE) {
                    let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
                }
                about
            }
            Err(Errno::INTR) => Vec::new(),
            // It cannot fail otherwise, and must not spin if it does.
            Err(_) => {
                thread::sleep(ACCEPT_PAUSE);
                Vec::new()
            }
        }
    }
}

fn wake_up(wake: &OwnedFd) {
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}
