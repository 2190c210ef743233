//! A bar on standard error that shows how far a run is, where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often it moves.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// Since the beginning, of all rounds together.
pub struct Progress {
    bar: ProgressBar,
    all: Duration,
}

impl Progress {
    /// Of a run that takes this long if all goes well.
    pub fn new(all: Duration) -> Progress {
        let bar = ProgressBar::new(milliseconds(all));
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Progress { bar, all }
    }

    /// Says what is loaded now.
    pub(crate) fn now(&self, name: &'static str) {
        self.bar.set_message(name);
    }

    pub(crate) fn tick(&self) {
        self.bar
            .set_position(milliseconds(self.bar.elapsed().min(self.all)));
    }
}

impl Drop for Progress {
    /// What is printed next starts on an empty line.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
