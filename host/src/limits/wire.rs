//! What clients may take on the wire: of lines, and of time.

use std::time::Duration;

/// The bounds of one service's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Bytes of one line, without its ending.
    pub line_bytes: usize,
    /// How long a client may send nothing between two messages.
    pub idle_time: Duration,
    /// How long a client may take from the first byte of a line to its last.
    pub line_time: Duration,
    /// How long a client may take nothing of its replies once the kernel's buffer is full.
    pub write_time: Duration,
}

impl Wire {
    /// All of them as they are when nothing else is asked for.
    pub const DEFAULT: Wire = Wire {
        line_bytes: LINE_BYTES,
        idle_time: IDLE_TIME,
        line_time: LINE_TIME,
        write_time: WRITE_TIME,
    };
}

/// Far above any line a person or a line protocol sends, far below what hurts when each of 10 000
/// clients does it. Protects the server's memory from clients.
pub const LINE_BYTES: usize = 64 * 1024;

/// A person may think for minutes; a client that vanished is gone after five. Protects the
/// connection cap from idle clients.
pub const IDLE_TIME: Duration = Duration::from_secs(5 * 60);

/// Ample for 64 KiB over a bad line. Protects the connection cap from slow senders (slowloris),
/// who would otherwise count as never idle.
pub const LINE_TIME: Duration = Duration::from_secs(30);

/// As for a line, the other way: protects the connection cap from clients that do not read.
pub const WRITE_TIME: Duration = Duration::from_secs(30);

/// Bytes a second that a client has to take of what waits for it, or it is let go when it has been
/// behind for the write time. Slower than any line still in use, so only who means to stay takes less;
/// a reply of 1 MiB is read within 18 minutes. Protects the connection cap from slow readers.
pub const LEAST_WRITE_BYTES_PER_SECOND: u64 = 1024;

/// How long bytes without a newline wait before they make a connection `chunks`. Longer than the
/// gaps inside one line, shorter than a client's patience.
pub const SETTLE_TIME: Duration = Duration::from_millis(200);

/// Messages of one connection that are answered before others have their turn: a read of 64 KiB may
/// have as many lines, and each takes the guest half a microsecond or more. Protects the others of a
/// thread that serves many.
pub const LINES_PER_TURN: u64 = 2048;

/// How long a closed connection waits for the client to take note, from when its kernel has
/// everything. Without it, bytes that the client still sends would make the kernel reset the
/// connection, and the last reply could be lost.
pub const LINGER_TIME: Duration = Duration::from_secs(1);

/// Bytes of one line that `client` takes from a server: far above the default of --max-reply.
/// Protects the client's memory from the server.
pub const ANSWER_BYTES: u64 = 16 * 1024 * 1024;

/// Replies do not wait for the rest of their batch longer than this, when the guest is slow.
pub const BATCH_TIME: Duration = Duration::from_millis(100);

/// How long a proxy may take for its PROXY header, from when it has connected: it is the first that it
/// sends. Protects the connection cap from proxies that send none.
pub const PROXY_HEADER_TIME: Duration = Duration::from_secs(5);

/// Bytes of a PROXY header: 232 with addresses of every kind, and room for what a proxy may add.
/// Protects the server's memory from proxies.
pub const PROXY_HEADER_BYTES: usize = 2048;

/// How long a connection that is a proxy's own has to end to count as a health check, for which no
/// guest is started. Longer than a way there and back in one network; a proxy that waits for the
/// greeting waits for so much more.
pub const HEALTH_CHECK_TIME: Duration = Duration::from_millis(100);
