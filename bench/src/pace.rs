//! When questions are asked.

use std::time::{Duration, Instant};

use crate::plan::Plan;

/// When one thread asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) start: Instant,
    /// Nothing is asked from then on.
    pub(crate) end: Instant,
    /// Between one question and the next; without it, whenever there was an answer.
    gap: Option<Duration>,
}

impl Pace {
    /// Whether questions have their time, whether or not the server is ready for them.
    pub(crate) fn is_fixed(&self) -> bool {
        self.gap.is_some()
    }

    /// When the question with this number, counted from 0, is due.
    pub(crate) fn due(&self, number: u64) -> Instant {
        let gap = self.gap.unwrap_or_default();
        self.start + Duration::from_secs_f64(gap.as_secs_f64() * number as f64)
    }

    /// How many questions are due before the end, at a fixed pace; without one there is no such
    /// number, and 0 is returned.
    pub(crate) fn all(&self) -> u64 {
        let time = self.end.saturating_duration_since(self.start).as_secs_f64();
        self.gap
            .map_or(0, |gap| (time / gap.as_secs_f64()).ceil() as u64)
    }
}

/// A pace for each thread. All have the same rate, and none asks at the same moment as another.
pub(crate) fn paces(plan: &Plan, duration: Duration) -> impl Iterator<Item = Pace> {
    let gap = plan
        .rate
        .map(|rate| Duration::from_secs_f64(1.0 / f64::from(rate)));
    let threads = plan.load_threads.min(plan.connections) as u32;
    let start = Instant::now();
    (0..threads).map(move |number| Pace {
        start: start + gap.unwrap_or_default() * number,
        end: start + duration,
        gap: gap.map(|gap| gap * threads),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_due_whether_or_not_the_ones_before_were_answered() {
        let start = Instant::now();
        let pace = Pace {
            start,
            end: start + Duration::from_secs(1),
            gap: Some(Duration::from_millis(10)),
        };
        assert_eq!(pace.due(0), start);
        assert_eq!(pace.due(50), start + Duration::from_millis(500));
        assert_eq!(pace.all(), 100);
    }
}
