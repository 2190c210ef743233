//! New versions of the guest: notices them, tries them, and makes them current, while the server
//! serves.
//!
//! All of it happens on one thread. A file is read when it has stopped changing, and a version
//! whose file changed while it was read is read again; so a half-written file is never served. What
//! fails its trial is refused, and the version that serves stays. A file that changes while the one
//! before it is compiled is the one that is wanted.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::limits::guest::COMPILE_STACK_BYTES;
use crate::logging::Recurring;
use crate::process::connections::Group;
use crate::process::shutdown::Shutdown;
use crate::sandbox::rejection::RejectedGuest;
use crate::sandbox::runtime::Runtime;
use crate::versions::assignment::{Version, Versions};
use crate::versions::canary::{Share, Verdict};
use crate::versions::following::{Following, Trigger};
use crate::versions::guest_file::{Digest, Fingerprint, GuestFile};
use crate::versions::trial::{self, Failed, Passed};

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
pub struct Reload {
    trigger: Trigger,
    thread: Option<JoinHandle<Known>>,
}

/// What is known of a guest's file, and of versions that have been replaced.
#[derive(Default)]
pub struct Known {
    /// The file as it was when it was last read.
    pub seen: Option<Fingerprint>,
    /// What failed on connections; it is not tried again.
    rolled_back: Option<Digest>,
    /// Versions whose connections may have to end, and since when nobody gets them.
    replaced: Vec<(Instant, Weak<Version>)>,
}

impl Known {
    /// Nothing but what the file was like when it was read.
    pub fn of(seen: Option<Fingerprint>) -> Known {
        Known {
            seen,
            ..Known::default()
        }
    }

    /// No new connection gets this version any more.
    pub fn replace(&mut self, version: &Arc<Version>) {
        self.replaced
            .push((Instant::now(), Arc::downgrade(version)));
    }

    /// The guest has another file now.
    pub fn forget_file(&mut self, seen: Option<Fingerprint>) {
        self.seen = seen;
        self.rolled_back = None;
    }
}

impl Reload {
    /// Starts with what `versions` serves now, which was read from `policy.file`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub(crate) fn start(
        policy: Policy,
        known: Known,
        runtime: Arc<Runtime>,
        versions: Arc<Versions>,
        connections: Arc<Group>,
        shutdown: Shutdown,
    ) -> io::Result<Reload> {
        let following = Following::new(policy.file.clone(), known.seen, policy.watch);
        let trigger = following.trigger();
        let loader = Loader {
            policy,
            following,
            known,
            runtime,
            versions,
            connections,
            shutdown,
            unchanged: Recurring::new(),
        };
        let thread = thread::Builder::new()
            .name("reload".to_owned())
            .stack_size(2 * COMPILE_STACK_BYTES)
            .spawn(move || loader.run())?;
        Ok(Reload {
            trigger,
            thread: Some(thread),
        })
    }

    /// For whoever may ask for a reload.
    pub fn trigger(&self) -> Trigger {
        self.trigger.clone()
    }

    /// Ends it, and waits for that: for a call of a guest that is being tried. A version that is being
    /// tried on connections gets no more of them.
    pub fn end(mut self) -> Known {
        self.trigger.stop();
        let thread = self.thread.take().map(JoinHandle::join);
        // A panic there would be a bug of ours, and no reason not to go on.
        thread.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Reload {
    fn drop(&mut self) {
        self.trigger.stop();
    }
}

struct Loader {
    policy: Policy,
    following: Following,
    known: Known,
    runtime: Arc<Runtime>,
    versions: Arc<Versions>,
    connections: Arc<Group>,
    shutdown: Shutdown,
    /// Orders to load the file that is served.
    unchanged: Recurring,
}

impl Loader {
    fn run(mut self) -> Known {
        loop {
            // A server that ends needs nothing new.
            if self.following.is_due() && !self.shutdown.is_draining() {
                self.load();
            }
            self.judge_candidate();
            self.retire_old();
            if !self.following.wait(self.patience()) {
                return self.known();
            }
        }
    }

    /// What the next one has to know.
    fn known(mut self) -> Known {
        self.known.seen = self.following.seen();
        if let Some(candidate) = self.versions.withdraw() {
            self.known.replace(&candidate);
            // It is tried again.
            self.known.seen = None;
            tracing::info!(
                service = self.runtime.service(),
                version = candidate.number,
                "withdrawn: the settings of its service change"
            );
        }
        self.known
    }

    /// How long nothing needs to be done, if nothing happens.
    fn patience(&self) -> Duration {
        let mut time = Duration::MAX;
        if self.versions.candidate().is_some() {
            time = CANARY_LOOK_TIME;
        }
        let Some(age) = self.policy.max_age else {
            return time;
        };
        let oldest = self.known.replaced.iter().map(|(when, _)| *when).min();
        let next = oldest.map(|oldest| age.saturating_sub(oldest.elapsed()));
        time.min(next.unwrap_or(time))
    }

    fn load(&mut self) {
        match GuestFile::read_regular(&self.policy.file) {
            Ok((file, fingerprint)) => {
                if !self.following.was_read(Some(fingerprint)) {
                    return;
                }
                self.consider(&file);
            }
            Err(error) => {
                self.following.was_read(Fingerprint::of(&self.policy.file));
                // It may become readable, and that does not show.
                self.following.try_again();
                let (file, version) = (self.policy.file.display(), self.versions.current().number);
                tracing::error!(service = self.runtime.service(), %file, "cannot read the guest, version {version} stays: {error}");
            }
        }
        self.following.end_order();
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
                self.known.replace(&candidate);
            } else if self.following.is_ordered() && self.unchanged.again().is_some() {
                tracing::info!(service = self.runtime.service(), version = current.number, %sha256, "the guest's file has not changed");
            }
            return;
        }
        if self.known.rolled_back == Some(sha256) {
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
                    self.following.try_again();
                }
                tracing::error!(service = self.runtime.service(), %sha256, "refused the new guest, version {} stays: {error}", current.number);
            }
        }
    }

    /// Whether what is being compiled is still to be served.
    fn is_wanted(&self) -> bool {
        self.following.is_wanted() && !self.shutdown.is_draining()
    }

    fn adopt(&mut self, passed: Passed, sha256: Digest) {
        self.known.rolled_back = None;
        if let Some(earlier) = self.versions.withdraw() {
            tracing::info!(
                service = self.runtime.service(),
                version = earlier.number,
                "withdrawn: there is a newer one"
            );
            self.known.replace(&earlier);
        }
        let compile_time = passed.compile_time;
        match self.policy.canary {
            None => {
                let (new, old) = self.versions.replace(passed, sha256);
                tracing::info!(service = self.runtime.service(), version = new.number, %sha256, ?compile_time, "new connections get a new version");
                new.log_room();
                self.known.replace(&old);
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
                self.known.rolled_back = Some(judged.candidate.digest);
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
        self.known.replace(&judged.replaced);
    }

    /// Ends the connections of versions that were replaced long enough ago.
    fn retire_old(&mut self) {
        let Some(age) = self.policy.max_age else {
            return self.known.replaced.clear();
        };
        let service = self.runtime.service();
        self.known.replaced.retain(|(when, version)| {
            let Some(version) = version.upgrade() else {
                return false;
            };
            if when.elapsed() < age {
                return true;
            }
            let number = version.number;
            tracing::info!(
                service,
                version = number,
                "ending its connections (--max-guest-age)"
            );
            version.retire();
            self.connections.wake_version(number);
            false
        });
    }
}
