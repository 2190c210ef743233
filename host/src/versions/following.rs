//! When a file has to be read again: it has changed, or that was asked for. A file is due when it has
//! stopped changing, so a half-written one is never read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::guest::{GUEST_LOOK_TIME, GUEST_RETRY_TIME, GUEST_SETTLE_TIME};
use crate::process::service_manager::Reloading;
use crate::versions::guest_file::Fingerprint;
use crate::versions::watch::Watch;

/// Follows one file, for one thread.
pub struct Following {
    file: PathBuf,
    /// Whether a change of the file is enough, or only an order counts.
    watches: bool,
    watch: Option<Watch>,
    orders: Arc<Orders>,
    /// The file as it was when it was last read, whatever came of it.
    seen: Option<Fingerprint>,
    /// When the file is to be read again though it has not changed.
    again: Option<Instant>,
    /// A reload was asked for and has not been done.
    ordered: Option<Reloading>,
    /// The file as it is while it changes, and since when it is like that.
    unsettled: Option<(Fingerprint, Instant)>,
}

/// Asks whoever follows a file for something, from elsewhere.
#[derive(Clone)]
pub struct Trigger(Arc<Orders>);

impl Trigger {
    /// Reads the file now, changed or not, as a part of this reload.
    pub fn reload(&self, reloading: Reloading) {
        self.0.give(|pending| pending.reload = Some(reloading));
    }

    /// Has the thread end.
    pub fn stop(&self) {
        self.0.give(|pending| pending.stop = true);
    }
}

impl Following {
    /// Follows a file that was as `seen` when it was read. `watches`: a change of it is enough.
    pub fn new(file: PathBuf, seen: Option<Fingerprint>, watches: bool) -> Following {
        let orders = Arc::<Orders>::default();
        let watch = watches.then(|| {
            let orders = Arc::clone(&orders);
            Watch::start(move || orders.give(|pending| pending.look = true))
        });
        let watch = watch.and_then(|watch| {
            let failed = watch.as_ref().err();
            if let Some(error) = failed {
                let file = file.display();
                tracing::warn!(%file, "it is looked at every {GUEST_LOOK_TIME:?} only: {error}");
            }
            watch.ok()
        });
        Following {
            file,
            watches,
            watch,
            orders,
            // What was written just before may have been written to since.
            seen: seen.filter(Fingerprint::is_old),
            again: None,
            ordered: None,
            unsettled: None,
        }
    }

    /// For whoever may ask for a reload.
    pub fn trigger(&self) -> Trigger {
        Trigger(Arc::clone(&self.orders))
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether the file is to be read: there is a reason to, and it has stopped changing.
    pub fn is_due(&mut self) -> bool {
        if let Some(watch) = &mut self.watch {
            watch.follow([self.file.as_path()]);
        }
        let now = Instant::now();
        if self.again.is_some_and(|again| now >= again) {
            self.again = None;
            self.seen = None;
        }
        let file = Fingerprint::of(&self.file);
        // Whoever removed a file is about to put another there.
        let changed = self.watches && file.is_some() && file != self.seen;
        if self.ordered.is_none() && !changed {
            self.unsettled = None;
            return false;
        }
        file.is_none_or(|file| self.has_settled(file, now))
    }

    fn has_settled(&mut self, file: Fingerprint, now: Instant) -> bool {
        let since = match self.unsettled {
            Some((same, since)) if same == file => since,
            _ => now,
        };
        self.unsettled = Some((file, since));
        now - since >= GUEST_SETTLE_TIME || file.is_old()
    }

    /// The file was read when it was like this. Returns whether it still is: if not, it is being
    /// changed, and is due again soon.
    pub fn was_read(&mut self, fingerprint: Option<Fingerprint>) -> bool {
        let is_same = fingerprint == Fingerprint::of(&self.file);
        if is_same {
            self.unsettled = None;
            self.again = None;
            self.seen = fingerprint;
        }
        is_same
    }

    /// Reads it again after a while, though it has not changed: what went wrong may go right later.
    pub(crate) fn try_again(&mut self) {
        self.again = Some(Instant::now() + GUEST_RETRY_TIME);
    }

    /// The reload that was asked for, if one was.
    pub fn order(&self) -> Option<Reloading> {
        self.ordered.clone()
    }

    /// Whether a reload was asked for.
    pub(crate) fn is_ordered(&self) -> bool {
        self.ordered.is_some()
    }

    /// What was asked for has been done.
    pub fn end_order(&mut self) {
        self.ordered = None;
    }

    /// What the file was like when it was last read.
    pub(crate) fn seen(&self) -> Option<Fingerprint> {
        self.seen
    }

    /// Whether what was read last is still what is wanted.
    pub fn is_wanted(&self) -> bool {
        let (reload, stop) = self.orders.peek();
        if stop {
            return false;
        }
        let file = Fingerprint::of(&self.file);
        let looks = self.watches || reload;
        !looks || file.is_none() || file == self.seen
    }

    /// Waits until something may have changed, or for `time`. Returns false when the thread is to end.
    pub fn wait(&mut self, time: Duration) -> bool {
        let mut time = time.min(GUEST_LOOK_TIME);
        if self.unsettled.is_some() || self.ordered.is_some() {
            time = time.min(GUEST_SETTLE_TIME);
        }
        let orders = self.orders.wait(time);
        self.ordered = orders.reload.or(self.ordered.take());
        !orders.stop
    }
}

/// What a thread has been asked to do. Asking twice is asking once.
#[derive(Default)]
struct Orders {
    pending: Mutex<Pending>,
    given: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    look: bool,
    reload: Option<Reloading>,
    stop: bool,
}

impl Pending {
    fn is_nothing(&self) -> bool {
        !self.look && self.reload.is_none() && !self.stop
    }
}

impl Orders {
    fn give(&self, order: impl FnOnce(&mut Pending)) {
        order(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.given.notify_one();
    }

    /// Whether the orders that there are include to read the file, and to stop.
    fn peek(&self) -> (bool, bool) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        (pending.reload.is_some(), pending.stop)
    }

    /// Takes the orders that there are, or those that come within `time`.
    fn wait(&self, time: Duration) -> Pending {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut pending, _) = self
            .given
            .wait_timeout_while(pending, time, |pending| pending.is_nothing())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pending)
    }
}
