//! How long to wait before a server that is gone is tried again.

use std::time::{Duration, SystemTime};

use crate::limits::process::{REDIS_RETRY_TIME, REDIS_RETRY_TIME_MAX};

/// Twice as long each time, up to a bound.
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// It has just gone.
    pub(crate) const fn new() -> Backoff {
        Backoff {
            pause: REDIS_RETRY_TIME,
        }
    }

    /// The next time to wait.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(REDIS_RETRY_TIME_MAX);
        jittered(pause)
    }
}

/// Half of it to all of it, so that those whom one server has left do not come back together.
fn jittered(pause: Duration) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let chance = now.map_or(0, |now| now.subsec_nanos() % 1000);
    pause / 2 + pause / 2 * chance / 1000
}
