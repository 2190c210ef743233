//! Where events go: standard error, through a queue that never makes a connection wait.

use clap::ValueEnum;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::limits::LOG_PAUSE;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Events that wait for a slow reader; more are dropped. Most have 200 bytes; a guest that prints
/// nothing but control characters can make them 30 times as long.
const QUEUED_EVENTS: usize = 4 * 1024;

/// Something that may happen thousands of times a second, and is logged at most once in one.
#[derive(Debug)]
pub(crate) struct Recurring {
    logged: Option<Instant>,
    count: u64,
}

impl Recurring {
    /// It has not happened yet.
    pub(crate) const fn new() -> Recurring {
        Recurring {
            logged: None,
            count: 0,
        }
    }

    /// Counts once more. Returns how often it has happened since that was last logged, if it is
    /// time to log it again.
    pub(crate) fn again(&mut self) -> Option<u64> {
        self.count += 1;
        let now = Instant::now();
        if self.logged.is_some_and(|logged| now - logged < LOG_PAUSE) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// Text that can be shown on a terminal and cannot forge a log line.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() && char != '\t' {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Standard error, whatever becomes of it: a file that may not grow, a disk that is full for a while.
#[derive(Default)]
struct Output {
    /// Lines that could not be written since the last that could.
    lost: u64,
    /// A line was written in part.
    torn: bool,
}

impl Write for Output {
    /// One line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.write_line(line) {
            self.lost += 1;
            return Err(error);
        }
        if self.lost > 0 {
            let lines = std::mem::take(&mut self.lost);
            tracing::warn!(lines, "a part of the log is lost: it could not be written");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn write_line(&mut self, mut rest: &[u8]) -> io::Result<()> {
        let mut output = io::stderr().lock();
        if self.torn {
            output.write_all(b"\n")?;
            self.torn = false;
        }
        while !rest.is_empty() {
            match output.write(rest) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                written => {
                    rest = &rest[written?..];
                    self.torn = !rest.is_empty();
                }
            }
        }
        Ok(())
    }
}

/// Writes what is queued when it is dropped.
static QUEUE: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// The log of this process, which ends when this is dropped.
pub struct Log(());

impl Drop for Log {
    fn drop(&mut self) {
        end();
    }
}

/// Writes what is queued, and no more after that. A reader that does not read is waited for a second
/// at most. To be called when the process ends otherwise than by returning from `main`.
pub fn end() {
    // Kept locked: who comes second, and may be about to end the process, waits too.
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    // Where it does not get through it says so on standard output, which panics if that has gone.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(queue.take())));
}

/// Starts the log of this process.
///
/// `level` holds for Airlock and for what guests print; libraries are heard from warnings up.
pub fn start(format: LogFormat, level: LevelFilter) -> Log {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_EVENTS)
        .finish(Output::default());
    let layer = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => layer
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let levels = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("airlock", level)
        .with_target("guest", level);
    registry().with(layer.with_filter(levels)).init();

    // A panic is a bug of ours; it ends its connection only, and is reported like everything else.
    panic::set_hook(Box::new(|panic| tracing::error!("panicked: {panic}")));
    *QUEUE.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    Log(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("\x1b[2J\tAda\n\0é"), "\\u{1b}[2J\tAda\\n\\u{0}é");
    }
}
