//! How a connection ends whose client may still be sending.
//!
//! Closing while input comes in resets the connection, and a reset may overtake the last reply. So the
//! output is ended first, and what comes is read until the client ends its side, or has had its time
//! for that: a while from when its kernel has everything, for which it has the time of a write.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::limits::wire::LINGER_TIME;
use crate::serve::socket::Socket;

/// Read at once, and thrown away; it is on the stack of a connection's thread.
const SINK_BYTES: usize = 2 * 1024;

/// A connection that has ended, and waits for its client to take note.
#[derive(Debug)]
pub(crate) struct Lingering {
    began: Instant,
    deadline: Instant,
    write_time: Duration,
}

impl Lingering {
    /// Ends the output. Returns nothing if there is nobody any more.
    pub(crate) fn begin(socket: &Socket<'_>, write_time: Duration) -> Option<Lingering> {
        socket.end_output().ok()?;
        let began = Instant::now();
        Some(Lingering {
            began,
            deadline: began + LINGER_TIME,
            write_time,
        })
    }

    /// How long to wait for the client's end, at most; nothing when that was long enough.
    pub(crate) fn time_left(&mut self, socket: &Socket<'_>) -> Option<Duration> {
        let now = Instant::now();
        let waiting_bytes = socket.unacknowledged_bytes().unwrap_or(0);
        if waiting_bytes > 0 && now - self.began < self.write_time {
            self.deadline = now + LINGER_TIME;
        }
        let left = self.deadline.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Reads some of what has come, by `receive`. Returns whether more may come.
    ///
    /// Not inlined: the buffer would be on the stack of every connection, all the time.
    #[inline(never)]
    pub(crate) fn discard(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> std::io::Result<usize>,
    ) -> bool {
        match receive(&mut [0; SINK_BYTES]) {
            Ok(count) => count > 0,
            // A drain that begins now shortens a read, not the lingering.
            Err(error) => {
                matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
            }
        }
    }
}
