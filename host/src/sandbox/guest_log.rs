//! A guest's standard output and error: lines of the server's log, marked with the connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::field::{DisplayValue, display};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::limits;
use crate::limits::guest::{LAST_WORDS_BYTES, LOG_LINE_BYTES};
use crate::limits::process::LOG_PAUSE;
use crate::logging::{self, printable};
use crate::rate::Rate;

/// How much a guest may hand over in one write.
const WRITE_BYTES: usize = 64 * 1024;

/// One output stream of one connection's guest. Clones write to the same stream. It never blocks.
#[derive(Clone)]
pub(super) struct GuestLog(Arc<Mutex<Lines>>);

struct Lines {
    connection: u64,
    stream: &'static str,
    /// The line that has begun, up to its limit.
    pending: Vec<u8>,
    /// What was written last, logged or not.
    last: Vec<u8>,
    rate: Rate,
    all: Arc<LogRate>,
    dropped: u64,
}

/// How much is logged of the guests of one version, or of all: whoever reconnects has a new instance,
/// and a new [`GuestLog`], each time.
pub(crate) struct LogRate {
    /// The service's name, if it has one.
    service: Option<Arc<str>>,
    of: &'static str,
    rate: Mutex<Shared>,
    whole: Option<Arc<LogRate>>,
}

struct Shared {
    rate: Rate,
    dropped: u64,
    said: Option<Instant>,
}

impl LogRate {
    /// What all guests of a service share.
    pub(super) fn of_service(name: Option<Arc<str>>) -> Arc<LogRate> {
        let rate = Rate::new(
            limits::guest::ALL_LOG_BURST_LINES,
            limits::guest::ALL_LOG_LINES_PER_SECOND,
        );
        LogRate::new(name, "all guests", rate, None)
    }

    /// What the instances of a version share.
    pub(super) fn of_version(service: &Arc<LogRate>) -> Arc<LogRate> {
        let rate = Rate::new(
            limits::guest::VERSION_LOG_BURST_LINES,
            limits::guest::VERSION_LOG_LINES_PER_SECOND,
        );
        let name = service.service.clone();
        LogRate::new(name, "a version's guests", rate, Some(Arc::clone(service)))
    }

    fn new(
        service: Option<Arc<str>>,
        of: &'static str,
        rate: Rate,
        whole: Option<Arc<LogRate>>,
    ) -> Arc<LogRate> {
        Arc::new(LogRate {
            service,
            of,
            rate: Mutex::new(Shared {
                rate,
                dropped: 0,
                said: None,
            }),
            whole,
        })
    }

    fn service(&self) -> Option<DisplayValue<&str>> {
        self.service.as_deref().map(display)
    }

    /// Whether a line may be logged that stands for so many. If not, they are counted.
    fn take(&self, now: Instant, lines: u64) -> bool {
        let mut shared = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let may = shared.rate.take(now);
        if !may {
            shared.dropped += lines;
        }
        let pause_is_over = |said| now.saturating_duration_since(said) >= LOG_PAUSE;
        if shared.dropped > 0 && shared.said.is_none_or(pause_is_over) {
            shared.said = Some(now);
            self.say_dropped(&mut shared);
        }
        drop(shared);
        if !may {
            return false;
        }
        self.whole.as_ref().is_none_or(|all| all.take(now, lines))
    }

    fn say_dropped(&self, shared: &mut Shared) {
        tracing::warn!(
            service = self.service(),
            dropped = shared.dropped,
            "lines of output were dropped: {} together print more than {} a second",
            self.of,
            shared.rate.per_second,
        );
        shared.dropped = 0;
    }
}

impl Drop for LogRate {
    fn drop(&mut self) {
        let mut shared = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.dropped > 0 {
            self.say_dropped(&mut shared);
        }
    }
}

impl GuestLog {
    /// `stream` is its name in the log: `stdout` or `stderr`.
    pub(super) fn new(connection: u64, stream: &'static str, all: &Arc<LogRate>) -> GuestLog {
        GuestLog(Arc::new(Mutex::new(Lines {
            connection,
            stream,
            pending: Vec::new(),
            last: Vec::new(),
            rate: Rate::new(
                limits::guest::LOG_BURST_LINES,
                limits::guest::LOG_LINES_PER_SECOND,
            ),
            all: Arc::clone(all),
            dropped: 0,
        })))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines that were written, printable and on one line; none when there has been more
    /// output than is logged.
    pub(super) fn last_words(&self) -> String {
        let lines = self.lines();
        if lines.last.is_empty() || !lines.all.take(Instant::now(), 1) {
            return String::new();
        }
        let mut last = lines.last.as_slice();
        if last.len() > LAST_WORDS_BYTES {
            // The first line is not whole, or may not be, if there is another.
            last = &last[last.len() - LAST_WORDS_BYTES..];
            let whole = memchr::memchr(b'\n', last).filter(|end| end + 1 < last.len());
            last = whole.map_or(last, |end| &last[end + 1..]);
        }
        let text = String::from_utf8_lossy(last);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(printable).collect::<Vec<_>>().join(" | ")
    }
}

impl Lines {
    /// What is dropped is only counted, so that a flood costs next to nothing.
    fn write(&mut self, bytes: &[u8]) {
        self.keep_last(bytes);
        let now = Instant::now();
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if !self.rate.take(now) {
                self.dropped += memchr::memchr_iter(b'\n', rest).count() as u64;
                self.pending.clear();
                let last = memchr::memrchr(b'\n', rest).unwrap_or(end);
                rest = &rest[last + 1..];
                break;
            }
            self.append(&rest[..end]);
            self.log_pending(now);
            rest = &rest[end + 1..];
        }
        self.append(rest);
    }

    fn append(&mut self, text: &[u8]) {
        let room = LOG_LINE_BYTES - self.pending.len();
        self.pending
            .extend_from_slice(&text[..text.len().min(room)]);
    }

    /// Of what goes to standard error: there a failure is explained.
    fn keep_last(&mut self, bytes: &[u8]) {
        if self.stream != "stderr" {
            return;
        }
        // One byte more shows that something stood before.
        const KEPT: usize = LAST_WORDS_BYTES + 1;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.last.len() + bytes.len()).saturating_sub(KEPT);
        self.last.drain(..excess);
        self.last.extend_from_slice(bytes);
    }

    fn log_pending(&mut self, now: Instant) {
        self.log_dropped(now);
        if self.all.take(now, 1) {
            let text = String::from_utf8_lossy(&self.pending);
            let text = printable(text.trim_end_matches('\r'));
            tracing::info!(
                target: logging::GUEST,
                service = self.all.service(),
                connection = self.connection,
                stream = self.stream,
                "{text}"
            );
        }
        self.pending.clear();
    }

    fn log_dropped(&mut self, now: Instant) {
        if self.dropped > 0 && self.all.take(now, self.dropped) {
            tracing::warn!(
                service = self.all.service(),
                connection = self.connection,
                stream = self.stream,
                dropped = self.dropped,
                "lines of the guest's output were dropped: more than {} a second",
                self.rate.per_second,
            );
        }
        self.dropped = 0;
    }
}

/// What the guest has not ended with a newline is logged when its connection ends.
impl Drop for Lines {
    fn drop(&mut self) {
        let now = Instant::now();
        if !self.pending.is_empty() {
            if self.rate.take(now) {
                self.log_pending(now);
            } else {
                self.dropped += 1;
            }
        }
        self.log_dropped(now);
    }
}

impl StdoutStream for GuestLog {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl IsTerminal for GuestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl OutputStream for GuestLog {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES {
            return Err(StreamError::trap(
                "it wrote more at once than `check-write` allows",
            ));
        }
        self.lines().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[async_trait]
impl Pollable for GuestLog {
    async fn ready(&mut self) {}
}

/// For WASI 0.3 guests, which are not linked yet; the trait asks for it.
impl AsyncWrite for GuestLog {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lines().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log(stream: &'static str, all: &Arc<LogRate>) -> GuestLog {
        GuestLog::new(1, stream, all)
    }

    #[test]
    fn a_line_is_cut_at_its_limit() {
        let log = log("stdout", &LogRate::of_service(None));
        log.lines().write(&[b'x'; 10 * LOG_LINE_BYTES]);
        assert_eq!(log.lines().pending.len(), LOG_LINE_BYTES);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let log = log("stdout", &LogRate::of_service(None));
        log.lines().write(&b"x\n".repeat(100_000));
        assert!(log.lines().dropped > 90_000, "{}", log.lines().dropped);
    }

    #[test]
    fn reconnecting_gives_no_right_to_print_more() {
        let service = LogRate::of_service(None);
        let versions = [(); 3].map(|()| LogRate::of_version(&service));
        let now = Instant::now();
        let logged = |version: &Arc<LogRate>| {
            let lines = (0..10_000).filter(|_| version.take(now, 1));
            lines.count()
        };
        // Of which the last one would have its 1 000, if it were alone.
        assert_eq!(versions.each_ref().map(logged), [1000, 1000, 0]);
        let later = now + Duration::from_secs(1);
        let lines = (0..10_000).filter(|_| versions[2].take(later, 1));
        assert_eq!(lines.count(), 100);
    }

    #[test]
    fn the_last_words_are_whole_lines_and_bounded() {
        let all = LogRate::of_service(None);
        let stderr = log("stderr", &all);
        assert_eq!(stderr.last_words(), "");
        stderr.lines().write(b"Traceback:\n  it\x1b[2J failed");
        stderr.lines().write(b" here\n");
        assert_eq!(stderr.last_words(), "Traceback: | it\\u{1b}[2J failed here");
        stderr.lines().write(&b"x".repeat(LAST_WORDS_BYTES - 4));
        stderr.lines().write(b"\nlast");
        assert_eq!(stderr.last_words(), "last");
        stderr.lines().write(&b"y".repeat(10 * LAST_WORDS_BYTES));
        assert_eq!(stderr.last_words(), "y".repeat(LAST_WORDS_BYTES));
        let stdout = log("stdout", &all);
        stdout.lines().write(b"no reason\n");
        assert_eq!(stdout.last_words(), "");
    }
}
