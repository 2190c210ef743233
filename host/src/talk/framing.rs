//! Cuts bytes into messages, and joins replies into bytes.
//!
//! The rules are those of docs/wire.md. Everything is bounded before it is stored: a line that is
//! too long is refused when its first byte too many arrives, and the rest of it is dropped as it
//! comes in. Nothing here knows sockets, clocks or guests: how long to wait for more bytes is the
//! caller's business, and [`Reader::waiting`] says what for.

use clap::ValueEnum;

/// The most bytes one message has in `chunks` framing, as of a server that calls `recv(1024)`.
pub const CHUNK_BYTES: usize = 1024;

/// A connection starts with a buffer of this size: enough for a person typing, and little for each
/// of thousands of connections that wait.
const FIRST_BUFFER_BYTES: usize = 1024;

/// A buffer that one read has filled is doubled, up to this size. More does not pay: a read that
/// returns this much spreads the cost of its system call over thousands of lines.
const READ_BYTES: usize = 64 * 1024;

/// Lines that are handed over at once. More would not make them cheaper, and this much is looked at
/// again for each line that cannot be handed over with others.
const BATCH_BYTES: usize = 16 * 1024;

/// Ends a message where messages are not text with endings in it: a byte that is in no UTF-8. The
/// transport puts it behind each that comes, and takes it from each that goes.
pub const MESSAGE_END: u8 = 0xff;

/// Replies are handed to the writer when this much has been gathered.
pub const WRITE_BYTES: usize = 64 * 1024;

/// How a connection's bytes become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// Lines if a newline comes first; chunks if bytes stay without one for 200 ms.
    Auto,
    /// A message is a line.
    Lines,
    /// A message is what one read returned, at most 1024 bytes.
    Chunks,
    /// The door's protocol has messages, which [`MESSAGE_END`] ends here. A line ending at the end of one
    /// is dropped; others stay in it, as in a chunk.
    #[value(skip)]
    Messages,
}

/// What is written behind each line of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing: the reply to a chunk.
    None,
    /// LF.
    Lf,
    /// CR LF, as the line that is answered had it.
    CrLf,
    /// The end of a message.
    Message,
}

impl Ending {
    fn bytes(self) -> &'static [u8] {
        match self {
            Ending::None => b"",
            Ending::Lf => b"\n",
            Ending::CrLf => b"\r\n",
            Ending::Message => &[MESSAGE_END],
        }
    }
}

/// One message of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The text without its line ending, or why the guest must not see it.
    pub text: Result<&'a str, Refusal>,
    /// What the reply to it ends with.
    pub ending: Ending,
}

/// Why a message is answered by the shim. The `Display` text is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The line had more bytes than the limit.
    #[error("error: line is longer than {limit_bytes} bytes")]
    TooLong {
        /// The limit, without the line ending.
        limit_bytes: usize,
    },
    /// The message was not UTF-8.
    #[error("error: line is not valid UTF-8")]
    NotUtf8,
}

/// What a reader with no message to give is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The first byte of a message.
    ForMessage,
    /// The rest of a line that has begun.
    ForRestOfLine,
    /// A newline, which would decide the framing. When none comes within the settle time, the
    /// caller says so with [`Reader::settle`].
    ForFraming,
}

/// Gathers bytes and gives messages, in bounded memory.
#[derive(Debug)]
pub struct Reader {
    framing: Framing,
    /// What the shim's own words, and the replies to messages without an ending of their own, end
    /// with: the ending of the last line.
    ending: Ending,
    max_line_bytes: usize,
    buffer: Vec<u8>,
    /// `buffer[start..end]` has been read and not been given out; no newline is before `scanned`.
    start: usize,
    scanned: usize,
    end: usize,
    last_read_bytes: usize,
    /// How many lines have ended.
    lines: u64,
    /// Inside a line that has been refused.
    discarding: bool,
    ended: bool,
    /// Of all that was read, if anything was; 0, if that was less.
    first_bytes: Option<[u8; 2]>,
}

impl Reader {
    /// A reader for one connection. `max_line_bytes` does not count the line ending.
    pub fn new(framing: Framing, max_line_bytes: usize) -> Reader {
        Reader {
            framing,
            ending: match framing {
                Framing::Auto | Framing::Lines => Ending::Lf,
                Framing::Chunks => Ending::None,
                Framing::Messages => Ending::Message,
            },
            max_line_bytes,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            end: 0,
            last_read_bytes: 0,
            lines: 0,
            discarding: false,
            ended: false,
            first_bytes: None,
        }
    }

    /// Where the next bytes belong: always two at least, and no more than may be received at once. Ask for it
    /// when [`Reader::next_message`] has nothing left, and say with [`Reader::add`] how much of it
    /// has been filled.
    pub fn room(&mut self) -> &mut [u8] {
        self.make_room();
        let room = match self.framing {
            Framing::Chunks => self.buffer.len().min(self.end + CHUNK_BYTES),
            Framing::Auto | Framing::Lines | Framing::Messages => self.buffer.len(),
        };
        &mut self.buffer[self.end..room]
    }

    /// So many bytes have been put into the room.
    pub fn add(&mut self, count: usize) {
        self.end = self.buffer.len().min(self.end + count);
        self.last_read_bytes = count;
        if self.first_bytes.is_none() {
            let first = self.buffer[..self.end].first_chunk();
            self.first_bytes = Some(first.copied().unwrap_or_default());
        }
    }

    /// No bytes come any more, which completes a last line that has no newline.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether that has been said.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next complete message, if the bytes read so far hold one.
    pub fn next_message(&mut self) -> Option<Message<'_>> {
        if self.framing == Framing::Chunks {
            return self.next_chunk();
        }
        let delimiter = match self.framing {
            Framing::Messages => MESSAGE_END,
            _ => b'\n',
        };
        while let Some(newline) = memchr::memchr(delimiter, &self.buffer[self.scanned..self.end]) {
            if self.framing == Framing::Auto {
                self.framing = Framing::Lines;
            }
            let line = self.start..self.scanned + newline;
            self.start = line.end + 1;
            self.scanned = self.start;
            self.lines += 1;
            if self.discarding {
                self.discarding = false;
                continue;
            }
            return Some(self.line(line.start, line.end));
        }
        self.scanned = self.end;
        self.unfinished_line()
    }

    /// Complete lines that have been read, with their line feeds, if there are two at least, one
    /// after the other, that need nothing but to be handed on: they end in LF alone, are UTF-8, and
    /// cannot be too long. They stay until [`Reader::take_lines`].
    pub fn lines_at_hand(&self) -> Option<&str> {
        if self.framing != Framing::Lines || self.discarding {
            return None;
        }
        let most = self.max_line_bytes.min(BATCH_BYTES);
        let bytes = &self.buffer[self.start..self.end.min(self.start.saturating_add(most))];
        // The way of most lines: one alone.
        let first = memchr::memchr(b'\n', bytes)?;
        if first + 1 == bytes.len() {
            return None;
        }
        let bytes = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        };
        let last = memchr::memrchr(b'\n', text.as_bytes())?;
        (first < last).then_some(&text[..=last])
    }

    /// Counts the first `count` of the lines at hand as given out; fewer if there are fewer. Returns
    /// how many that were.
    pub fn take_lines(&mut self, count: usize) -> usize {
        let bytes = &self.buffer[self.start..self.end];
        let (mut taken, mut length) = (0, 0);
        for newline in memchr::memchr_iter(b'\n', bytes).take(count) {
            taken += 1;
            length = newline + 1;
        }
        self.start += length;
        self.scanned = self.scanned.max(self.start);
        self.lines += taken as u64;
        if taken > 0 {
            self.ending = Ending::Lf;
        }
        taken
    }

    /// What the bytes that were read wait for. Only the caller knows for how long.
    pub fn waiting(&self) -> Waiting {
        match self.framing {
            _ if self.start == self.end && !self.discarding => Waiting::ForMessage,
            Framing::Auto => Waiting::ForFraming,
            Framing::Lines | Framing::Chunks | Framing::Messages => Waiting::ForRestOfLine,
        }
    }

    /// Decides for `chunks`: the settle time has passed without a newline.
    pub fn settle(&mut self) {
        self.framing = Framing::Chunks;
        self.ending = Ending::None;
    }

    /// What a text ends with that answers no message: a greeting, a time-out.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// How many lines have ended, including those that were refused. While it stays the same, what
    /// is being received is the same line.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// How many bytes have been read that no message was made of.
    pub fn pending_bytes(&self) -> usize {
        self.end - self.start
    }

    /// The first two bytes that were read, if there were as many at once.
    pub fn first_bytes(&self) -> [u8; 2] {
        self.first_bytes.unwrap_or_default()
    }

    fn next_chunk(&mut self) -> Option<Message<'_>> {
        if self.start == self.end {
            return None;
        }
        let from = self.start;
        self.start = self.end.min(from + CHUNK_BYTES);
        self.scanned = self.start;
        Some(message(&self.buffer[from..self.start], Ending::None))
    }

    /// A line whose newline, or a message whose end, is at `newline`.
    fn line(&mut self, start: usize, newline: usize) -> Message<'_> {
        let text = &self.buffer[start..newline];
        let (end, ending) = match self.framing {
            Framing::Messages => (start + without_ending(text).len(), Ending::Message),
            _ if text.ends_with(b"\r") => (newline - 1, Ending::CrLf),
            _ => (newline, Ending::Lf),
        };
        if end - start > self.max_line_bytes {
            return self.too_long();
        }
        self.ending = ending;
        message(&self.buffer[start..end], ending)
    }

    /// What to make of bytes that no newline follows.
    fn unfinished_line(&mut self) -> Option<Message<'_>> {
        let (start, end) = (self.start, self.end);
        if self.discarding || start == end {
            self.start = end;
            return None;
        }
        let is_message = self.framing == Framing::Messages;
        let ending_bytes = match self.buffer[end - 1] {
            // What may turn out to be the ending of a line in a message.
            _ if is_message => 2,
            // Or half of one.
            b'\r' if !self.ended => 1,
            _ => 0,
        };
        if end - start > self.max_line_bytes + ending_bytes {
            self.start = end;
            if !is_message {
                self.framing = Framing::Lines;
            }
            self.discarding = true;
            return Some(self.too_long());
        }
        // A part of a message is none.
        if !self.ended || is_message {
            return None;
        }
        self.start = end;
        Some(message(&self.buffer[start..end], self.ending))
    }

    /// The refusal ends as the line before it did: it goes out before its own ending is known.
    fn too_long(&self) -> Message<'static> {
        Message {
            text: Err(Refusal::TooLong {
                limit_bytes: self.max_line_bytes,
            }),
            ending: self.ending,
        }
    }

    /// Makes `buffer[end..]` two bytes at least, and gives memory back that a burst has left behind.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.scanned -= self.start;
        self.start = 0;

        let len = self.buffer.len();
        if len == 0 {
            self.buffer.resize(FIRST_BUFFER_BYTES, 0);
        } else if len - self.end < 2 {
            // A line that fills the buffer: room for the longest one, its ending and two bytes more.
            let longest = self.max_line_bytes.saturating_add(4);
            self.buffer
                .resize((len * 2).min(longest.max(READ_BYTES)), 0);
        } else if self.end == 0 && self.last_read_bytes == len && len < READ_BYTES {
            self.buffer.resize(len * 2, 0);
        } else if self.end == 0 && self.last_read_bytes < len / 4 && len > FIRST_BUFFER_BYTES {
            self.buffer.truncate(FIRST_BUFFER_BYTES);
            self.buffer.shrink_to_fit();
        }
    }
}

fn without_ending(text: &[u8]) -> &[u8] {
    let line = text.strip_suffix(b"\n");
    line.map_or(text, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn message(bytes: &[u8], ending: Ending) -> Message<'_> {
    Message {
        text: std::str::from_utf8(bytes).map_err(|_| Refusal::NotUtf8),
        ending,
    }
}

/// Gathers replies, so that those to a batch of messages leave in one write.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
    /// How much of it has left.
    sent: usize,
}

impl Writer {
    /// Adds one reply, of one line or several: each goes out with `ending`, but for chunks, of which
    /// every byte is the guest's.
    pub fn push(&mut self, text: &str, ending: Ending) {
        let mut rest = text.as_bytes();
        if ending == Ending::CrLf {
            while let Some(newline) = memchr::memchr(b'\n', rest) {
                self.buffer.extend_from_slice(&rest[..newline]);
                self.buffer.extend_from_slice(ending.bytes());
                rest = &rest[newline + 1..];
            }
        }
        self.buffer.extend_from_slice(rest);
        self.buffer.extend_from_slice(ending.bytes());
    }

    /// Adds replies that have their endings.
    pub fn push_lines(&mut self, lines: &str) {
        self.buffer.extend_from_slice(lines.as_bytes());
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether enough has been gathered that it should be written before more is added.
    pub fn is_full(&self) -> bool {
        self.output().len() >= WRITE_BYTES
    }

    /// What waits to be written.
    pub fn output(&self) -> &[u8] {
        &self.buffer[self.sent..]
    }

    /// So many bytes of that have been written.
    pub fn remove(&mut self, count: usize) {
        self.sent = self.buffer.len().min(self.sent + count);
        if self.sent == self.buffer.len() {
            self.clear();
        }
    }

    /// Nothing waits any more.
    pub fn clear(&mut self) {
        let count = self.buffer.len();
        self.buffer.clear();
        self.sent = 0;
        // As much as last time may come again; what a burst took is given back.
        self.buffer.shrink_to((count * 2).max(FIRST_BUFFER_BYTES));
    }
}

#[cfg(test)]
mod tests;
