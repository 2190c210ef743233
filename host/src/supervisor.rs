//! What the service manager is told, by systemd's `sd_notify`. Where there is none, nothing happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// Between being ready and stopping. A reload is not spoken of before and after: to have finished
/// one means to be ready.
static SERVING: AtomicBool = AtomicBool::new(false);

/// The server accepts connections.
pub(crate) fn ready() {
    SERVING.store(true, Ordering::SeqCst);
    tell(&[NotifyState::Ready]);
}

/// A reload that was asked for begins.
pub fn reloading() {
    if SERVING.load(Ordering::SeqCst) {
        // The time is what tells systemd that this belongs to the reload it asked for.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }
}

/// It has ended, whatever came of it.
pub fn reloaded() {
    if SERVING.load(Ordering::SeqCst) {
        tell(&[NotifyState::Ready]);
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
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("cannot tell the service manager: {error}");
    }
}
