//! How long a client is waited for that does not take its replies.
//!
//! The kernel makes room in large steps, some 100 KiB each, so that there is none says little about
//! the client: what counts is what its own kernel has acknowledged.

use std::time::{Duration, Instant};

use crate::limits::wire::LEAST_WRITE_BYTES_PER_SECOND;

/// Looking more often would tell nothing new.
const LEAST_LOOK_TIME: Duration = Duration::from_millis(10);

/// How long a client may still make the server wait: time that passes while it waits, and that comes
/// back, up to the whole, with what the client takes. So a client is let go that takes nothing for
/// the whole time, or less than the least rate for longer; one that is faster never is, however long
/// it takes.
#[derive(Debug)]
pub(crate) struct Patience {
    whole: Duration,
    left: Duration,
    taken_bytes: u64,
    /// Since when it has been waited for room, if it is.
    since: Option<Instant>,
    /// Time that has been waited since the last look.
    waited: Duration,
}

impl Patience {
    pub(crate) fn new(whole: Duration) -> Patience {
        Patience {
            whole,
            left: whole,
            taken_bytes: 0,
            since: None,
            waited: Duration::ZERO,
        }
    }

    /// There is no room. How long to wait for some, unless that has been long enough; the client has
    /// taken this much since it came.
    pub(crate) fn wait(&mut self, taken_bytes: u64) -> Option<Duration> {
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            self.waited += now - since;
        }
        let waited = std::mem::take(&mut self.waited);
        self.look(waited, taken_bytes);
        (!self.is_over()).then(|| self.next_look())
    }

    /// There is room again.
    pub(crate) fn go_on(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// `waited` has passed since the last look, and the client has taken this much since it came.
    fn look(&mut self, waited: Duration, taken_bytes: u64) {
        let bytes = taken_bytes.saturating_sub(self.taken_bytes);
        self.taken_bytes = self.taken_bytes.max(taken_bytes);
        let earned = Duration::from_secs_f64(bytes as f64 / LEAST_WRITE_BYTES_PER_SECOND as f64);
        let left = self.left.saturating_add(earned).saturating_sub(waited);
        self.left = left.min(self.whole);
    }

    fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// How long to wait at most before it is time to look again: often enough that a client gets an
    /// eighth more than the whole time at most.
    fn next_look(&self) -> Duration {
        self.left.min(self.whole / 8).max(LEAST_LOOK_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Duration = Duration::from_secs(30);

    /// How long a client that takes `bytes` every `pause` is waited for, if not for a day.
    fn waited(bytes: u64, pause: Duration) -> Option<Duration> {
        let mut patience = Patience::new(WHOLE);
        let (mut time, mut taken_bytes) = (Duration::ZERO, 0);
        while time < Duration::from_secs(24 * 60 * 60) {
            time += pause;
            taken_bytes += bytes;
            patience.look(pause, taken_bytes);
            if patience.is_over() {
                return Some(time);
            }
        }
        None
    }

    #[test]
    fn a_client_is_let_go_for_taking_nothing_or_too_little_and_not_for_being_slow() {
        let second = Duration::from_secs(1);
        assert_eq!(waited(0, second), Some(WHOLE));
        let drip = waited(1, second).expect("a byte a second is no way to stay");
        assert!(drip < WHOLE + 2 * second, "{drip:?}");
        let late = waited(100, WHOLE - second).expect("nor are a few bytes, just in time");
        assert!(late < 2 * WHOLE, "{late:?}");

        assert_eq!(waited(LEAST_WRITE_BYTES_PER_SECOND, second), None);
        assert_eq!(waited(2500, second / 10), None);
        // Kernels make room for much at a time.
        assert_eq!(waited(400 * 1024, WHOLE / 2), None);
    }

    #[test]
    fn what_was_taken_in_time_is_no_credit_beyond_the_whole_time() {
        let mut patience = Patience::new(WHOLE);
        patience.look(Duration::from_secs(1), 1 << 40);
        assert_eq!(patience.left, WHOLE);
        patience.look(WHOLE, 1 << 40);
        assert!(patience.is_over());
    }
}
