//! So many at once, and then so many a second.

use std::time::Instant;

/// What one may still do.
#[derive(Debug)]
pub(crate) struct Rate {
    burst: f64,
    pub(crate) per_second: f64,
    allowance: f64,
    refilled: Instant,
}

impl Rate {
    pub(crate) fn new(burst: f64, per_second: f64) -> Rate {
        Rate {
            burst,
            per_second,
            allowance: burst,
            refilled: Instant::now(),
        }
    }

    /// Whether one more may be done, which it is then.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.refilled).as_secs_f64() * self.per_second;
        self.allowance = (self.allowance + earned).min(self.burst);
        self.refilled = self.refilled.max(now);
        let has = self.allowance >= 1.0;
        if has {
            self.allowance -= 1.0;
        }
        has
    }
}
