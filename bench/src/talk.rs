//! What is said to the server, what it has to answer, and the comparison of the two.

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::{Bytes, Utf8Bytes};

use crate::fault::Fault;

/// Bytes that are written or read at once.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Of what a server wrongly said, this many bytes are shown.
const SHOWN_BYTES: usize = 200;

/// The conversation that all connections have.
#[derive(Debug)]
pub struct Talk {
    /// What comes first, encoded; empty where the client speaks first.
    pub greeting: Vec<u8>,
    /// The line, asked again and again.
    pub line: Endless,
    /// What has to come for each.
    pub reply: Endless,
    /// What ends a conversation, encoded; empty where it ends without a word.
    pub leave: Vec<u8>,
    /// What comes after that.
    pub goodbye: Vec<u8>,
}

/// How what is said becomes bytes.
#[derive(Debug, Clone, Copy)]
pub enum Encoding {
    /// Lines, with this ending.
    Lines(&'static str),
    /// Text messages of WebSocket.
    Messages,
}

impl Talk {
    /// Of texts, and how they are encoded.
    pub fn new(
        greeting: Option<&str>,
        line: &str,
        reply: &str,
        leave: Option<&str>,
        encoding: Encoding,
    ) -> Talk {
        let by_client = |text| encoding.bytes(text, Some(MASK));
        let by_server = |text| encoding.bytes(text, None);
        Talk {
            greeting: greeting.map(by_server).unwrap_or_default(),
            line: Endless::new(&by_client(line)),
            reply: Endless::new(&by_server(reply)),
            leave: leave.map(by_client).unwrap_or_default(),
            goodbye: match encoding {
                Encoding::Lines(_) => Vec::new(),
                Encoding::Messages => bytes(Frame::close(Some(GOODBYE))),
            },
        }
    }
}

/// Clients have to mask what they send. With the same mask each time, a line has the same bytes.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What WebSocket says when the guest ends a conversation.
pub(crate) const GOODBYE: CloseFrame = CloseFrame {
    code: CloseCode::Normal,
    reason: Utf8Bytes::from_static(""),
};

impl Encoding {
    fn bytes(self, text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
        match self {
            Encoding::Lines(ending) => [text, ending].concat().into_bytes(),
            Encoding::Messages => {
                let text = Bytes::copy_from_slice(text.as_bytes());
                let mut frame = Frame::message(text, OpCode::Data(Data::Text), true);
                frame.header_mut().mask = mask;
                bytes(frame)
            }
        }
    }
}

fn bytes(frame: Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Infallible: a vector takes everything.
    let _ = frame.format(&mut bytes);
    bytes
}

/// A line that is repeated without end. A comparison with it is one of memory, whatever was read,
/// so that the check of every reply does not slow the load down.
#[derive(Debug)]
pub struct Endless {
    repeated: Vec<u8>,
    period: usize,
}

impl Endless {
    fn new(line: &[u8]) -> Endless {
        Endless {
            repeated: line.repeat(CHUNK.div_ceil(line.len()) + 1),
            period: line.len(),
        }
    }

    /// Bytes of one line.
    pub(crate) fn period(&self) -> u64 {
        self.period as u64
    }

    /// At least [`CHUNK`] bytes of the repetition, from this position on.
    pub(crate) fn from(&self, position: u64) -> &[u8] {
        &self.repeated[self.phase(position)..]
    }

    fn phase(&self, position: u64) -> usize {
        (position % self.period()) as usize
    }

    /// Compares at most [`CHUNK`] bytes that were heard from this position on.
    pub(crate) fn check(&self, position: u64, heard: &[u8]) -> Result<(), Fault> {
        let wanted = self.from(position);
        if wanted[..heard.len()] == *heard {
            return Ok(());
        }
        let same = heard.iter().zip(wanted).take_while(|(a, b)| a == b);
        let (at, phase) = (same.count(), self.phase(position));
        // The line in which they part began this far before it, some of it in an earlier read.
        let before = (phase + at) % self.period;
        let line = [&self.repeated[..before], &heard[at..]].concat();
        Err(wrong("a reply", &line, &self.repeated[..self.period]))
    }
}

/// A fault that shows the first line of what was heard.
pub(crate) fn wrong(what: &'static str, heard: &[u8], wanted: &[u8]) -> Fault {
    let lines = (first_line(heard), first_line(wanted));
    // When they differ in their ending alone, that is to be seen.
    let (heard, wanted) = if lines.0 == lines.1 {
        (shown(heard), shown(wanted))
    } else {
        lines
    };
    Fault::Wrong {
        what,
        heard,
        wanted,
    }
}

/// The first line, if it is short enough to be shown, without its ending.
fn first_line(text: &[u8]) -> String {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    shown(line)
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_shown_where_it_is_all_that_differs() {
        let fault = wrong("the greeting", b"Hi\n", b"Hi\r\n").to_string();
        assert_eq!(fault, "the greeting is `Hi\n`, not `Hi\r\n`");
    }

    fn heard_instead(position: u64, heard: &str) -> Option<String> {
        let replies = Endless::new(b"Hello, Ada!\n");
        match replies.check(position, heard.as_bytes()) {
            Err(Fault::Wrong { heard, wanted, .. }) => {
                assert_eq!(wanted, "Hello, Ada!");
                Some(heard)
            }
            _ => None,
        }
    }

    #[test]
    fn replies_are_checked_however_they_are_cut() {
        let all = "Hello, Ada!\n".repeat(3);
        for start in 0..all.len() {
            for end in start..all.len() {
                assert_eq!(heard_instead(start as u64, &all[start..end]), None);
            }
        }
        assert_eq!(heard_instead(12_000_000_005, ", Ada!\nHello"), None);
    }

    #[test]
    fn the_wrong_reply_is_shown_from_its_beginning() {
        let instead = |position, heard| heard_instead(position, heard).unwrap_or_default();
        assert_eq!(instead(0, "Hello, Eve!\nHello"), "Hello, Eve!");
        assert_eq!(instead(7, "Eve!\r\nHello, Ada!\n"), "Hello, Eve!");
        assert_eq!(instead(12, "Hello, Ada!\nerror: no\n"), "error: no");
        assert_eq!(instead(33, "a!!\n"), "Hello, Ada!!");
    }
}
