//! Where events go: standard error, through a queue that never makes a connection wait.

use clap::ValueEnum;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

use crate::limits::process::LOG_PAUSE;

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

/// The target of what guests print, and of nothing else.
pub(crate) const GUEST: &str = "guest";

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

/// Text that can be shown on a terminal and cannot forge a log line, nor look like another: control
/// characters are escaped, and what has no shape of its own (separators of lines, signs that turn
/// the direction of text, spaces of no width).
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_shown(char) {
            shown.push(char);
        } else {
            shown.extend(char.escape_default());
        }
    }
    shown
}

fn is_shown(char: char) -> bool {
    if char.is_ascii() {
        return !char.is_ascii_control() || char == '\t';
    }
    // The standard library knows what is printable, and says so only here. After another letter,
    // accents are.
    let mut pair = *b"x\0\0\0\0";
    let length = 1 + char.encode_utf8(&mut pair[1..]).len();
    let pair = str::from_utf8(&pair[..length]).unwrap_or_default();
    pair.escape_debug().nth(1) == Some(char)
}

/// Text for people. The mark of what a guest prints comes first, so that no line of it looks like one
/// of the server's.
struct Text(Format<Full, SystemTime>);

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() != GUEST {
            return self.0.format_event(context, writer, event);
        }
        let mut printed = Printed::default();
        event.record(&mut printed);
        SystemTime.format_time(&mut writer)?;
        let level = event.metadata().level();
        let Printed {
            service,
            connection,
            stream,
            text,
        } = printed;
        write!(writer, " {level:>5} {GUEST} ")?;
        if let Some(service) = service {
            write!(writer, "service={service} ")?;
        }
        writeln!(writer, "connection={connection} {stream}: {text}")
    }
}

/// The fields of what a guest prints.
#[derive(Default)]
struct Printed {
    service: Option<String>,
    connection: u64,
    stream: String,
    text: String,
}

impl Visit for Printed {
    fn record_u64(&mut self, _: &Field, value: u64) {
        self.connection = value;
    }

    fn record_str(&mut self, _: &Field, value: &str) {
        value.clone_into(&mut self.stream);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "service" => self.service = Some(value),
            _ => self.text = value,
        }
    }
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
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => layer
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .map_event_format(Text)
            .boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let levels = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("airlock", level)
        .with_target(GUEST, level);
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

    #[test]
    fn what_only_changes_how_a_line_looks_is_shown_and_not_sent() {
        // Both separators of lines, three that turn its direction, and two of no width.
        let invisible = "\u{2028}\u{2029}\u{202e}\u{2066}\u{61c}\u{200b}\u{feff}";
        for char in invisible.chars() {
            let escaped = format!("a\\u{{{:x}}}b", u32::from(char));
            assert_eq!(printable(&format!("a{char}b")), escaped);
        }
        let names = "Zoë, Zoe\u{308}, 李, Ирина, שרה, \"O'Brien\" \\ 😀";
        assert_eq!(printable(names), names);
    }
}
