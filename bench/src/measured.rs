//! What one run measured, or one thread of it.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::fault::Fault;

/// A day: what takes longer counts as a day.
const MOST_NANOSECONDS: u64 = 24 * 60 * 60 * 1_000_000_000;

/// What one run measured.
#[derive(Debug)]
pub struct Measured {
    /// Right answers, or whole conversations.
    pub answered: u64,
    /// From the first question to the last answer.
    pub time: Duration,
    /// How long answers took, in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Lines that were due and never sent: the server was slower than the rate.
    pub unsent: u64,
    /// Connections that were given up.
    pub errors: u64,
    /// Why the first of them was.
    pub fault: Option<Fault>,
    /// From when the first connection was begun until all had heard the greeting, if they came at
    /// once to be held.
    pub greeted: Option<Duration>,
    /// What the server's resident memory grew by for each held connection.
    pub resident_bytes: Option<f64>,
}

impl Measured {
    pub(crate) fn new() -> Measured {
        Measured {
            answered: 0,
            time: Duration::ZERO,
            latencies: Histogram::new_with_max(MOST_NANOSECONDS, 3)
                .expect("these are bounds and digits that it can keep"),
            unsent: 0,
            errors: 0,
            fault: None,
            greeted: None,
            resident_bytes: None,
        }
    }

    /// Answers a second.
    pub fn per_second(&self) -> f64 {
        self.answered as f64 / self.time.as_secs_f64().max(f64::EPSILON)
    }

    /// The time within which this part of the answers came, 1 being all of them.
    pub fn latency(&self, part: f64) -> Duration {
        Duration::from_nanos(self.latencies.value_at_quantile(part))
    }

    /// Notes so many answers that took this long.
    pub(crate) fn note(&mut self, answers: u64, latency: Duration) {
        if answers == 0 {
            return;
        }
        self.answered += answers;
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies.saturating_record_n(nanoseconds, answers);
    }

    pub(crate) fn give_up(&mut self, fault: Fault) {
        self.errors += 1;
        self.fault.get_or_insert(fault);
    }

    pub(crate) fn add(&mut self, other: Measured) {
        self.answered += other.answered;
        self.time = self.time.max(other.time);
        self.latencies += other.latencies;
        self.unsent += other.unsent;
        self.errors += other.errors;
        self.fault = self.fault.take().or(other.fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_three_digits_up_to_a_day() {
        let mut measured = Measured::new();
        for (answers, milliseconds) in [(0, 9), (90, 1), (10, 1000), (1, u64::MAX)] {
            measured.note(answers, Duration::from_millis(milliseconds));
        }
        let near = |part, milliseconds: u64| {
            let latency = measured.latency(part).as_secs_f64() * 1000.0;
            (latency / milliseconds as f64 - 1.0).abs() < 0.001
        };
        assert_eq!(measured.answered, 101);
        assert!(near(0.5, 1) && near(0.95, 1000) && near(1.0, 24 * 60 * 60 * 1000));
    }
}
