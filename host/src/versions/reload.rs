//! New versions of the guest: notices them, tries them, and makes them current, while the server
//! serves.
//!
//! All of it happens on one thread. A file is read when it has stopped changing, and a version
//! whose file changed while it was read is read again; so a half-written file is never served. What
//! fails its trial is refused, and the version that serves stays. A file that changes while the one
//! before it is compiled is the one that is wanted.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::guest::{
    COMPILE_STACK_BYTES, GUEST_LOOK_TIME, GUEST_RETRY_TIME, GUEST_SETTLE_TIME,
};
use crate::logging::Recurring;
use crate::process::connections::Group;
use crate::process::service_manager::Reloading;
use crate::process::shutdown::Shutdown;
use crate::sandbox::rejection::RejectedGuest;
use crate::sandbox::runtime::Runtime;
use crate::versions::assignment::{Version, Versions};
use crate::versions::canary::{Share, Verdict};
use crate::versions::guest_file::{Digest, Fingerprint, GuestFile};
use crate::versions::trial::{self, Failed, Passed};
use crate::versions::watch::Watch;

/// While a canary is tried its failures are looked at this often.
const CANARY_LOOK_TIME: Duration = Duration::from_millis(100);

/// Where new versions come from, and what becomes of old ones.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The guest's file.
    pub file: PathBuf,
    /// Whether a change of the file is enough, or only an order counts.
    pub watch: bool,
    /// How a new version is tried on connections, if it is.
    pub canary: Option<Share>,
    /// For how long connections may stay on a version that has been replaced.
    pub max_age: Option<Duration>,
}

/// The thread that looks after the guest's file, until it is dropped. A trial that is under way
/// then ends with the process: a guest must not hold up the end of the server.
pub struct Reload(Arc<Orders>);

/// Asks for a reload from elsewhere.
#[derive(Clone)]
pub struct Trigger(Arc<Orders>);

impl Trigger {
    /// Loads the file now, changed or not, as a part of this reload.
    pub fn reload(&self, reloading: Reloading) {
        self.0.give(|pending| pending.reload = Some(reloading));
    }
}

impl Reload {
    /// Starts with what `versions` serves now, which was read from `policy.file` when that was as
    /// `seen`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub(crate) fn start(
        policy: Policy,
        seen: Option<Fingerprint>,
        runtime: Arc<Runtime>,
        versions: Arc<Versions>,
        connections: Arc<Group>,
        shutdown: Shutdown,
    ) -> io::Result<Reload> {
        let orders = Arc::<Orders>::default();
        let watch = policy.watch.then(|| {
            let orders = Arc::clone(&orders);
            Watch::start(move || orders.give(|pending| pending.look = true))
        });
        let watch = watch.and_then(|watch| {
            watch
                .inspect_err(|error| {
                    tracing::warn!(
                        "the guest's file is looked at every {GUEST_LOOK_TIME:?} only: {error}"
                    );
                })
                .ok()
        });
        let loader = Loader {
            policy,
            runtime,
            versions,
            connections,
            shutdown,
            orders: Arc::clone(&orders),
            watch,
            // What was written just before may have been written to since.
            seen: seen.filter(Fingerprint::is_old),
            again: None,
            ordered: None,
            unsettled: None,
            rolled_back: None,
            unchanged: Recurring::new(),
            replaced: Vec::new(),
        };
        thread::Builder::new()
            .name("reload".to_owned())
            .stack_size(2 * COMPILE_STACK_BYTES)
            .spawn(move || loader.run())?;
        Ok(Reload(orders))
    }

    /// For whoever may ask for a reload.
    pub fn trigger(&self) -> Trigger {
        Trigger(Arc::clone(&self.0))
    }
}

impl Drop for Reload {
    fn drop(&mut self) {
        self.0.give(|pending| pending.stop = true);
    }
}

/// What the thread has been asked to do. Asking twice is asking once.
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

    /// Whether the orders that there are include to load the file, and to stop.
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

struct Loader {
    policy: Policy,
    runtime: Arc<Runtime>,
    versions: Arc<Versions>,
    connections: Arc<Group>,
    shutdown: Shutdown,
    orders: Arc<Orders>,
    watch: Option<Watch>,
    /// The file as it was when it was last loaded, whatever came of it.
    seen: Option<Fingerprint>,
    /// When the file is to be loaded again though it has not changed.
    again: Option<Instant>,
    /// A load was asked for and has not been done.
    ordered: Option<Reloading>,
    /// The file as it is while it changes, and since when it is like that.
    unsettled: Option<(Fingerprint, Instant)>,
    /// What failed on connections; it is not tried again.
    rolled_back: Option<Digest>,
    /// Orders to load the file that is served.
    unchanged: Recurring,
    /// Versions whose connections may have to end, and when.
    replaced: Vec<(Instant, Weak<Version>)>,
}

impl Loader {
    fn run(mut self) {
        loop {
            if let Some(watch) = &mut self.watch {
                watch.follow(&self.policy.file);
            }
            // A server that ends needs nothing new.
            if !self.shutdown.is_draining() {
                self.look(Instant::now());
            }
            self.judge_candidate();
            self.retire_old();
            let orders = self.orders.wait(self.patience());
            if orders.stop {
                return;
            }
            self.ordered = orders.reload.or(self.ordered.take());
        }
    }

    /// How long nothing needs to be done, if nothing happens.
    fn patience(&self) -> Duration {
        let mut time = GUEST_LOOK_TIME;
        if self.unsettled.is_some() || self.ordered.is_some() {
            time = time.min(GUEST_SETTLE_TIME);
        }
        if self.versions.candidate().is_some() {
            time = time.min(CANARY_LOOK_TIME);
        }
        let now = Instant::now();
        let next = self.replaced.iter().map(|(when, _)| *when - now).min();
        time.min(next.unwrap_or(time))
    }

    /// Loads the file if there is a reason to, and if it has stopped changing.
    fn look(&mut self, now: Instant) {
        if self.again.is_some_and(|again| now >= again) {
            self.again = None;
            self.seen = None;
        }
        let file = Fingerprint::of(&self.policy.file);
        // Whoever removed a file is about to put another there.
        let changed = self.policy.watch && file.is_some() && file != self.seen;
        if self.ordered.is_none() && !changed {
            self.unsettled = None;
        } else if file.is_none_or(|file| self.has_settled(file, now)) {
            self.load();
        }
    }

    fn has_settled(&mut self, file: Fingerprint, now: Instant) -> bool {
        let since = match self.unsettled {
            Some((same, since)) if same == file => since,
            _ => now,
        };
        self.unsettled = Some((file, since));
        now - since >= GUEST_SETTLE_TIME || file.is_old()
    }

    fn load(&mut self) {
        let result = GuestFile::read_regular(&self.policy.file);
        if let Ok((_, before)) = result
            && Some(before) != Fingerprint::of(&self.policy.file)
        {
            // It is being changed: soon again, when it has settled.
            return;
        }
        self.unsettled = None;
        self.again = None;
        match result {
            Ok((file, fingerprint)) => {
                self.seen = Some(fingerprint);
                self.consider(&file);
            }
            Err(error) => {
                self.seen = Fingerprint::of(&self.policy.file);
                // It may become readable, and that does not show.
                self.try_again();
                let (file, version) = (self.policy.file.display(), self.versions.current().number);
                tracing::error!(service = self.runtime.service(), %file, "cannot read the guest, version {version} stays: {error}");
            }
        }
        self.ordered = None;
    }

    /// What went wrong may go right later, with the same file.
    fn try_again(&mut self) {
        self.again = Some(Instant::now() + GUEST_RETRY_TIME);
    }

    fn consider(&mut self, file: &GuestFile) {
        let sha256 = file.digest;
        if self
            .versions
            .candidate()
            .is_some_and(|version| version.digest == sha256)
        {
            tracing::info!(service = self.runtime.service(), %sha256, "the guest's file is the version that is being tried");
            return;
        }
        let current = self.versions.current();
        if current.digest == sha256 {
            if let Some(candidate) = self.versions.withdraw() {
                tracing::info!(
                    service = self.runtime.service(),
                    version = candidate.number,
                    "withdrawn: the file is the current version's again"
                );
                self.grow_old(&candidate);
            } else if self.ordered.is_some() && self.unchanged.again().is_some() {
                tracing::info!(service = self.runtime.service(), version = current.number, %sha256, "the guest's file has not changed");
            }
            return;
        }
        if self.rolled_back == Some(sha256) {
            tracing::warn!(service = self.runtime.service(), %sha256, "refused the new guest, version {} stays: it has been rolled back", current.number);
            return;
        }
        match trial::run(&self.runtime, &file.bytes, &|| self.is_wanted()) {
            Ok(passed) => self.adopt(passed, sha256),
            Err(Failed::Rejected(RejectedGuest::NotWanted)) => {
                tracing::info!(service = self.runtime.service(), %sha256, "gave up compiling the new guest: it is not wanted any more");
            }
            Err(error) => {
                if error.may_pass() {
                    self.try_again();
                }
                tracing::error!(service = self.runtime.service(), %sha256, "refused the new guest, version {} stays: {error}", current.number);
            }
        }
    }

    /// Whether what is being compiled is still to be served.
    fn is_wanted(&self) -> bool {
        let (reload, stop) = self.orders.peek();
        if stop || self.shutdown.is_draining() {
            return false;
        }
        let file = Fingerprint::of(&self.policy.file);
        let looks = self.policy.watch || reload;
        !looks || file.is_none() || file == self.seen
    }

    fn adopt(&mut self, passed: Passed, sha256: Digest) {
        self.rolled_back = None;
        if let Some(earlier) = self.versions.withdraw() {
            tracing::info!(
                service = self.runtime.service(),
                version = earlier.number,
                "withdrawn: there is a newer one"
            );
            self.grow_old(&earlier);
        }
        let compile_time = passed.compile_time;
        match self.policy.canary {
            None => {
                let (new, old) = self.versions.replace(passed, sha256);
                tracing::info!(service = self.runtime.service(), version = new.number, %sha256, ?compile_time, "new connections get a new version");
                new.log_room();
                self.grow_old(&old);
            }
            Some(share) => {
                let new = self.versions.try_out(passed, sha256, share, Instant::now());
                tracing::info!(service = self.runtime.service(), version = new.number, %sha256, ?compile_time, percent = share.percent, time = ?share.time, "trying a new version on a share of the new connections");
                new.log_room();
            }
        }
    }

    fn judge_candidate(&mut self) {
        let Some(judged) = self.versions.judge(Instant::now()) else {
            return;
        };
        let version = judged.candidate.number;
        let (sessions, failures) = judged.candidate_counts;
        let (current_sessions, current_failures) = judged.current_counts;
        match judged.verdict {
            Verdict::Promote => tracing::info!(
                service = self.runtime.service(),
                version,
                sessions,
                failures,
                current_sessions,
                current_failures,
                "promoted: all new connections get it"
            ),
            Verdict::RollBack => {
                self.rolled_back = Some(judged.candidate.digest);
                tracing::error!(
                    service = self.runtime.service(),
                    version,
                    sessions,
                    failures,
                    current_sessions,
                    current_failures,
                    "rolled back: it fails more often than the current version"
                );
            }
        }
        self.grow_old(&judged.replaced);
    }

    /// Starts the clock of a version that no new connection gets.
    fn grow_old(&mut self, version: &Arc<Version>) {
        if let Some(age) = self.policy.max_age {
            self.replaced
                .push((Instant::now() + age, Arc::downgrade(version)));
        }
    }

    /// Ends the connections of versions that were replaced long enough ago.
    fn retire_old(&mut self) {
        let now = Instant::now();
        let Loader {
            replaced,
            connections,
            ..
        } = self;
        replaced.retain(|(when, version)| {
            let Some(version) = version.upgrade() else {
                return false;
            };
            if now < *when {
                return true;
            }
            tracing::info!(
                service = self.runtime.service(),
                version = version.number,
                "ending its connections (--max-guest-age)"
            );
            version.retire();
            connections.wake_version(version.number);
            false
        });
    }
}
