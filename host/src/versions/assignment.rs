//! The versions of the guest: which one a new connection gets, and until when the others last.
//!
//! A connection holds the version it began with. When a replaced version's last connection ends,
//! nothing holds it any more, and it is gone, compiled code and all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::process::room::Need;
use crate::sandbox::linking::Sandbox;
use crate::versions::canary::{Canary, Share, Side, Tally, Verdict};
use crate::versions::guest_file::Digest;
use crate::versions::trial::Passed;

/// One build of the guest.
pub struct Version {
    /// Counted from 1 since the server started.
    pub number: u64,
    /// Of the component.
    pub digest: Digest,
    /// The guest itself.
    pub sandbox: Sandbox,
    /// What each of its connections takes.
    pub(crate) need: Need,
    /// No new connection gets it.
    replaced: AtomicBool,
    /// Its connections have to end.
    retired: AtomicBool,
}

impl Version {
    /// Whether its connections have to end.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Says so when there is room for fewer of its connections than there may be.
    pub(crate) fn log_room(&self) {
        let Need {
            memories,
            memory_bytes,
            ..
        } = self.need;
        let runtime = &self.sandbox.runtime;
        let (connections, bound) = runtime.room.most(self.need);
        let most = runtime.limits.connections;
        if connections < most {
            tracing::info!(
                service = runtime.service(),
                "room for {connections} connections instead of {most}: each begins with \
                 {memory_bytes} bytes in {memories} memories ({bound})"
            );
        }
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        if *self.replaced.get_mut() {
            let service = self.sandbox.runtime.service();
            tracing::info!(
                service,
                version = self.number,
                "gone, with its last connection"
            );
        }
    }
}

/// The versions that new connections get: one, or two while there is a canary.
pub struct Versions(Mutex<State>);

struct State {
    /// How many versions there have been: the number of the last one.
    count: u64,
    current: Arc<Version>,
    canary: Option<(Arc<Version>, Canary)>,
}

/// What one connection holds of its version.
pub(crate) struct Assignment {
    pub(crate) version: Arc<Version>,
    /// Where a failure counts while there is a canary.
    tally: Option<Arc<Tally>>,
}

impl Assignment {
    /// There is room for the connection.
    pub(crate) fn begin(&self) {
        if let Some(tally) = &self.tally {
            tally.begin();
        }
    }

    /// The guest has failed this connection.
    pub(crate) fn fail(&self) {
        if let Some(tally) = &self.tally {
            tally.fail();
        }
    }
}

/// How a canary ended: what became of which version, and the sessions and failures of both sides.
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    pub(crate) candidate: Arc<Version>,
    pub(crate) replaced: Arc<Version>,
    pub(crate) candidate_counts: (u64, u64),
    pub(crate) current_counts: (u64, u64),
}

impl Versions {
    /// The first version.
    pub fn new(passed: Passed, digest: Digest) -> Versions {
        Versions(Mutex::new(State {
            count: 1,
            current: version(1, passed, digest),
            canary: None,
        }))
    }

    /// The first version of a service that takes the place of the one with these: it is counted on, and
    /// replaces theirs.
    pub(crate) fn after(before: &Versions, passed: Passed, digest: Digest) -> Versions {
        let mut state = before.lock();
        let current = state.add(passed, digest);
        state.current.replaced.store(true, Ordering::SeqCst);
        Versions(Mutex::new(State {
            count: state.count,
            current,
            canary: None,
        }))
    }

    /// The version that serves, a canary aside.
    pub fn current(&self) -> Arc<Version> {
        Arc::clone(&self.lock().current)
    }

    /// The version that is being tried on a share of the connections.
    pub(crate) fn candidate(&self) -> Option<Arc<Version>> {
        let state = self.lock();
        state
            .canary
            .as_ref()
            .map(|(version, _)| Arc::clone(version))
    }

    /// The version for one more connection.
    pub(crate) fn assign(&self) -> Assignment {
        let mut state = self.lock();
        let State {
            current, canary, ..
        } = &mut *state;
        let Some((candidate, canary)) = canary else {
            return Assignment {
                version: Arc::clone(current),
                tally: None,
            };
        };
        let (version, tally) = match canary.next_side() {
            Side::Current => (current, &canary.current),
            Side::Candidate => (candidate, &canary.candidate),
        };
        Assignment {
            version: Arc::clone(version),
            tally: Some(Arc::clone(tally)),
        }
    }

    /// Makes a new version current. Returns it, and the one it replaces.
    pub(crate) fn replace(&self, passed: Passed, digest: Digest) -> (Arc<Version>, Arc<Version>) {
        let mut state = self.lock();
        let new = state.add(passed, digest);
        let old = state.make_current(Arc::clone(&new));
        (new, old)
    }

    /// Gives a new version its share of the connections first.
    pub(crate) fn try_out(
        &self,
        passed: Passed,
        digest: Digest,
        share: Share,
        now: Instant,
    ) -> Arc<Version> {
        let mut state = self.lock();
        let new = state.add(passed, digest);
        let canary = Canary::new(share, now);
        state.canary = Some((Arc::clone(&new), canary));
        new
    }

    /// Ends the canary without a verdict. Returns its version.
    pub(crate) fn withdraw(&self) -> Option<Arc<Version>> {
        let (candidate, _) = self.lock().canary.take()?;
        candidate.replaced.store(true, Ordering::SeqCst);
        Some(candidate)
    }

    /// Ends the canary if there is a verdict `now`.
    pub(crate) fn judge(&self, now: Instant) -> Option<Judged> {
        let mut state = self.lock();
        let verdict = state.canary.as_ref()?.1.verdict(now)?;
        let (candidate, canary) = state.canary.take()?;
        let replaced = match verdict {
            Verdict::Promote => state.make_current(Arc::clone(&candidate)),
            Verdict::RollBack => {
                candidate.replaced.store(true, Ordering::SeqCst);
                Arc::clone(&candidate)
            }
        };
        Some(Judged {
            verdict,
            candidate,
            replaced,
            candidate_counts: canary.candidate.counts(),
            current_counts: canary.current.counts(),
        })
    }

    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, passed: Passed, digest: Digest) -> Arc<Version> {
        self.count += 1;
        version(self.count, passed, digest)
    }

    fn make_current(&mut self, version: Arc<Version>) -> Arc<Version> {
        let old = std::mem::replace(&mut self.current, version);
        old.replaced.store(true, Ordering::SeqCst);
        old
    }
}

fn version(number: u64, passed: Passed, digest: Digest) -> Arc<Version> {
    let need = passed.need();
    Arc::new(Version {
        number,
        digest,
        sandbox: passed.sandbox,
        need,
        replaced: AtomicBool::new(false),
        retired: AtomicBool::new(false),
    })
}
