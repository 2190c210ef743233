//! A guest's standard output and error: lines of the server's log, marked with the connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::limits::{LOG_BURST_LINES, LOG_LINE_BYTES, LOG_LINES_PER_SECOND};
use crate::logging::printable;

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
    allowance: f64,
    refilled: Instant,
    dropped: u64,
}

impl GuestLog {
    /// `stream` is its name in the log: `stdout` or `stderr`.
    pub(super) fn new(connection: u64, stream: &'static str) -> GuestLog {
        GuestLog(Arc::new(Mutex::new(Lines {
            connection,
            stream,
            pending: Vec::new(),
            allowance: LOG_BURST_LINES,
            refilled: Instant::now(),
            dropped: 0,
        })))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LOG_LINE_BYTES - self.pending.len();
            self.pending
                .extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.log_pending();
            }
        }
    }

    fn log_pending(&mut self) {
        let now = Instant::now();
        let earned = (now - self.refilled).as_secs_f64() * LOG_LINES_PER_SECOND;
        self.allowance = (self.allowance + earned).min(LOG_BURST_LINES);
        self.refilled = now;
        if self.allowance < 1.0 {
            self.dropped += 1;
        } else {
            self.allowance -= 1.0;
            self.log_dropped();
            let text = String::from_utf8_lossy(&self.pending);
            let text = printable(text.trim_end_matches('\r'));
            tracing::info!(target: "guest", connection = self.connection, stream = self.stream, "{text}");
        }
        self.pending.clear();
    }

    fn log_dropped(&mut self) {
        if self.dropped > 0 {
            tracing::warn!(
                target: "guest",
                connection = self.connection,
                stream = self.stream,
                dropped = self.dropped,
                "lines of the guest's output were dropped: more than {LOG_LINES_PER_SECOND} a second",
            );
            self.dropped = 0;
        }
    }
}

/// What the guest has not ended with a newline is logged when its connection ends.
impl Drop for Lines {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.log_pending();
        }
        self.log_dropped();
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
    use super::*;

    #[test]
    fn a_line_is_cut_at_its_limit() {
        let log = GuestLog::new(1, "stdout");
        log.lines().write(&[b'x'; 10 * LOG_LINE_BYTES]);
        assert_eq!(log.lines().pending.len(), LOG_LINE_BYTES);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let log = GuestLog::new(1, "stdout");
        log.lines().write(&b"x\n".repeat(100_000));
        assert!(log.lines().dropped > 90_000, "{}", log.lines().dropped);
    }
}
