//! A new version on a share of the new connections first, and the verdict on it.
//!
//! Pure: it is told the time and what happened, so every decision can be tested.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::limits::guest::CANARY_FAILURES;

/// How a new version is tried: `--canary PERCENT:DURATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of the new connections, 1 to 99.
    pub percent: u64,
    /// For how long.
    pub time: Duration,
}

/// Sessions of one version since the canary began, and how many of them the guest failed.
#[derive(Debug, Default)]
pub struct Tally {
    sessions: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    /// A session begins.
    pub fn begin(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A session that began here has failed: trapped, or overran its time, memory or reply size.
    pub fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How many began, and how many of them failed.
    pub fn counts(&self) -> (u64, u64) {
        // A failure is counted after its session, so in this order there are never more of them.
        let failures = self.failures.load(Ordering::Acquire);
        (self.sessions.load(Ordering::Acquire), failures)
    }
}

/// Which of the two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that has been serving.
    Current,
    /// The new one.
    Candidate,
}

/// What is to become of the candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It becomes current.
    Promote,
    /// It failed more often than the current version.
    RollBack,
}

/// One candidate's trial on real connections.
#[derive(Debug)]
pub struct Canary {
    share: Share,
    ends: Instant,
    connections: u64,
    /// What both sides have counted; shared with the sessions, which outlive the trial.
    pub current: Arc<Tally>,
    /// See [`Canary::current`].
    pub candidate: Arc<Tally>,
}

impl Canary {
    /// Begins `now`.
    pub fn new(share: Share, now: Instant) -> Canary {
        Canary {
            share,
            ends: now + share.time,
            connections: 0,
            current: Arc::default(),
            candidate: Arc::default(),
        }
    }

    /// Whose the next connection is: of every 100, evenly spread, the candidate gets its percent.
    pub fn next_side(&mut self) -> Side {
        let before = self.connections * self.share.percent / 100;
        self.connections += 1;
        if self.connections * self.share.percent / 100 > before {
            Side::Candidate
        } else {
            Side::Current
        }
    }

    /// The verdict, once there is one: when the time is over, or when the candidate has failed
    /// often, and far more often than the current version.
    pub fn verdict(&self, now: Instant) -> Option<Verdict> {
        let (sessions, failures) = self.candidate.counts();
        let (current_sessions, current_failures) = self.current.counts();
        // The rates compared, without dividing by the sessions of a side that has had none.
        let rate = u128::from(failures) * u128::from(current_sessions.max(1));
        let current_rate = u128::from(current_failures) * u128::from(sessions.max(1));
        if now >= self.ends {
            return Some(if rate > current_rate {
                Verdict::RollBack
            } else {
                Verdict::Promote
            });
        }
        (failures >= CANARY_FAILURES && rate > 2 * current_rate).then_some(Verdict::RollBack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn canary(percent: u64, begins: Instant) -> Canary {
        let share = Share {
            percent,
            time: MINUTE,
        };
        Canary::new(share, begins)
    }

    fn count(tally: &Tally, sessions: u64, failures: u64) {
        (0..sessions).for_each(|_| tally.begin());
        (0..failures).for_each(|_| tally.fail());
    }

    #[test]
    fn the_candidate_gets_its_share_evenly_spread() {
        for percent in [1, 10, 25, 33, 50, 99] {
            let mut canary = canary(percent, Instant::now());
            for _ in 0..10 {
                let sides: Vec<_> = (0..100).map(|_| canary.next_side()).collect();
                let count = sides
                    .iter()
                    .filter(|&&side| side == Side::Candidate)
                    .count();
                assert_eq!(count as u64, percent);
                let longest = sides.split(|&side| side == Side::Candidate).map(<[_]>::len);
                assert!(longest.max() <= Some(100 / percent as usize));
            }
        }
    }

    #[test]
    fn a_candidate_that_fails_no_more_often_is_promoted_when_its_time_is_over() {
        let begins = Instant::now();
        let end = begins + MINUTE;
        for (current, candidate) in [((0, 0), (0, 0)), ((900, 9), (100, 1)), ((0, 0), (10, 0))] {
            let canary = canary(10, begins);
            count(&canary.current, current.0, current.1);
            count(&canary.candidate, candidate.0, candidate.1);
            assert_eq!(canary.verdict(end - Duration::from_nanos(1)), None);
            assert_eq!(canary.verdict(end), Some(Verdict::Promote));
        }
    }

    #[test]
    fn a_candidate_that_fails_more_often_is_rolled_back_when_its_time_is_over() {
        let begins = Instant::now();
        for (current, candidate) in [((900, 9), (100, 2)), ((0, 0), (1, 1)), ((900, 0), (100, 1))] {
            let canary = canary(10, begins);
            count(&canary.current, current.0, current.1);
            count(&canary.candidate, candidate.0, candidate.1);
            assert_eq!(canary.verdict(begins), None);
            assert_eq!(canary.verdict(begins + MINUTE), Some(Verdict::RollBack));
        }
    }

    #[test]
    fn a_candidate_that_keeps_failing_is_rolled_back_at_once() {
        let begins = Instant::now();
        let mut canary = canary(10, begins);
        count(&canary.current, 1000, 10);
        count(&canary.candidate, CANARY_FAILURES, CANARY_FAILURES - 1);
        assert_eq!(canary.verdict(begins), None);
        canary.candidate.fail();
        assert_eq!(canary.verdict(begins), Some(Verdict::RollBack));
        // Not when the current version does hardly better: then the time decides.
        canary.current = Arc::default();
        count(&canary.current, 100, 60);
        assert_eq!(canary.verdict(begins), None);
    }
}
