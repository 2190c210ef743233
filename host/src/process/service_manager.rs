//! What the service manager is told, in the words of systemd's `sd_notify`. Where there is none,
//! nothing happens.
//!
//! To tell it something never blocks. When its socket has no room for a notice, the notice is kept, and
//! a thread tries again until it has been sent.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::limits::process::UNTOLD_NOTICES;

/// How long a service manager that has no room for a notice is left alone.
const PAUSE: Duration = Duration::from_millis(100);

static MANAGER: Mutex<Option<Manager>> = Mutex::new(None);

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// What it had no room for yet, oldest first.
    untold: VecDeque<String>,
    /// Whether the thread that tries again runs.
    trying: bool,
}

/// Has everything told to the service manager that listens at `path`.
///
/// # Errors
/// The process is out of descriptors.
pub fn tell_at(path: PathBuf) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    *manager() = Some(Manager {
        socket,
        path,
        untold: VecDeque::new(),
        trying: false,
    });
    Ok(())
}

/// Between being ready and stopping. A reload is not spoken of before and after: to have finished
/// one means to be ready.
static SERVING: AtomicBool = AtomicBool::new(false);

/// Parts of reloads that have not ended.
static RELOADING: AtomicUsize = AtomicUsize::new(0);

/// The server accepts connections.
pub(crate) fn ready() {
    SERVING.store(true, Ordering::SeqCst);
    tell(&[NotifyState::Ready]);
}

/// A reload that was asked for. It has ended, whatever came of it, when this and all its clones are
/// dropped; and if no other one is under way, that is told.
#[derive(Debug)]
pub struct Reloading(());

impl Reloading {
    /// It begins.
    pub fn begin() -> Reloading {
        RELOADING.fetch_add(1, Ordering::SeqCst);
        if SERVING.load(Ordering::SeqCst) {
            // The time is what tells systemd that this belongs to the reload it asked for.
            match NotifyState::monotonic_usec_now() {
                Ok(now) => tell(&[NotifyState::Reloading, now]),
                Err(_) => tell(&[NotifyState::Reloading]),
            }
        }
        Reloading(())
    }
}

impl Clone for Reloading {
    fn clone(&self) -> Reloading {
        RELOADING.fetch_add(1, Ordering::SeqCst);
        Reloading(())
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        if RELOADING.fetch_sub(1, Ordering::SeqCst) == 1 && SERVING.load(Ordering::SeqCst) {
            tell(&[NotifyState::Ready]);
        }
    }
}

/// The server drains.
pub(crate) fn stopping() {
    SERVING.store(false, Ordering::SeqCst);
    tell(&[NotifyState::Stopping]);
}

/// The thread that accepts is alive.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often the service manager has to hear that the server is alive: twice in the time after which
/// systemd gives it up.
pub fn watchdog_pause() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|time| time / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    let mut manager = manager();
    let Some(manager) = manager.as_mut() else {
        return;
    };
    let notice = state.iter().map(|line| format!("{line}\n")).collect();
    manager.keep(notice);
    manager.tell();
    if !manager.untold.is_empty() && !manager.trying {
        let thread = thread::Builder::new().name("service manager".to_owned());
        manager.trying = thread.spawn(try_again).is_ok();
    }
}

fn try_again() {
    loop {
        thread::sleep(PAUSE);
        let mut manager = manager();
        let Some(manager) = manager.as_mut() else {
            return;
        };
        manager.tell();
        manager.trying = !manager.untold.is_empty();
        if !manager.trying {
            return;
        }
    }
}

impl Manager {
    fn keep(&mut self, notice: String) {
        // Twice the same in a row says no more than once.
        if self.untold.back() == Some(&notice) {
            return;
        }
        if self.untold.len() == UNTOLD_NOTICES {
            self.untold.pop_front();
        }
        self.untold.push_back(notice);
    }

    /// As much as there is room for.
    fn tell(&mut self) {
        while let Some(notice) = self.untold.front() {
            match self.socket.send_to(notice.as_bytes(), &self.path) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => tracing::debug!("cannot tell the service manager: {error}"),
                Ok(_) => {}
            }
            self.untold.pop_front();
        }
    }
}

/// Nothing panics while it holds this lock, so a poisoned one is as good as any.
fn manager() -> MutexGuard<'static, Option<Manager>> {
    MANAGER.lock().unwrap_or_else(PoisonError::into_inner)
}
