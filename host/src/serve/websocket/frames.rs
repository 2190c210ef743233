//! The frames of one WebSocket connection, without a socket: messages out of frames, frames out of
//! messages. What a header means is the library's; in which order frames may come is here (RFC 6455,
//! section 5).
//!
//! Nothing of a message is stored. What has been received is decoded where it lies, and handed on as it
//! comes, with [`MESSAGE_END`] behind each message: so the bounds and the deadlines of lines are those of
//! messages, however they are cut into frames. Of what is to be sent, a piece at a time is encoded, and
//! the next one when the kernel has all of that.

use std::io::{self, Cursor};
use std::mem;

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame as OwnFrame, FrameHeader};

use crate::talk::framing::MESSAGE_END;

/// Encoded at once.
const SEND_BYTES: usize = 64 * 1024;

/// The longest header.
const HEADER_BYTES: usize = 14;

/// The most content a frame of control has.
const CONTROL_BYTES: usize = 125;

/// Takes the place of [`MESSAGE_END`] in what came as text, and is in no UTF-8 either.
const NO_TEXT: u8 = 0xfe;

/// What a client has done that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("binary messages are not taken: send text")]
    Binary,
    #[error("a frame without a mask")]
    Unmasked,
    #[error("a frame of an extension, and none was agreed upon")]
    Extension,
    #[error("a frame of no known kind")]
    Opcode,
    #[error("a fragment of no message")]
    StrayFragment,
    #[error("a message inside of another one")]
    Interleaved,
    #[error("a control frame that is too long, or in fragments")]
    Control,
    #[error("a close frame with a code that is none")]
    Code,
    #[error("a close frame with a reason that is not UTF-8")]
    Reason,
}

impl Violation {
    fn code(self) -> CloseCode {
        match self {
            Violation::Binary => CloseCode::Unsupported,
            Violation::Reason => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        }
    }
}

/// One connection's frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The beginning of a header.
    header: Vec<u8>,
    /// The frame that is being received, after its header.
    frame: Option<Frame>,
    /// A message has begun that has not ended.
    in_message: bool,
    /// The content of the control frame that is being received.
    control: Vec<u8>,
    /// What the client pinged with last, and has no answer to.
    ping: Option<Vec<u8>>,
    /// After that nothing is read.
    end: Option<InputEnd>,

    /// Frames to be sent.
    encoded: Vec<u8>,
    /// How much of them has been sent.
    sent: usize,
    /// How much of the output they are.
    piece_bytes: usize,
    /// What is left of the message that `encoded` ends in the middle of: its header has been encoded.
    reply_left_bytes: Option<usize>,
    /// The close frame has been encoded.
    has_ended: bool,
    /// What the kernel has taken.
    sent_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    left_bytes: u64,
}

/// How the client's frames have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEnd {
    /// By a close frame, with its code if it had one.
    Closed(Option<CloseCode>),
    Violated(Violation),
}

impl Frames {
    /// Decodes `bytes[1..]` in place, and returns how much there is then of the content of text
    /// messages, from the beginning of `bytes`.
    pub(crate) fn decode(&mut self, bytes: &mut [u8]) -> usize {
        // A message's end takes the place of a part of its header, or of that first byte. So what is read
        // is never before what is written.
        let (mut read, mut written) = (1, 0);
        while self.end.is_none() {
            let Some(frame) = &mut self.frame else {
                match self.take_header(&bytes[read..]) {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(violation) => self.end = Some(InputEnd::Violated(violation)),
                }
                continue;
            };
            let there = bytes.len() - read;
            let count = usize::try_from(frame.left_bytes).map_or(there, |left| left.min(there));
            let content = read..read + count;
            unmask(&mut bytes[content.clone()], &mut frame.mask);
            frame.left_bytes -= count as u64;
            let frame = *frame;
            read += count;
            match frame.opcode {
                OpCode::Control(_) => self.control.extend_from_slice(&bytes[content]),
                OpCode::Data(_) => {
                    bytes.copy_within(content, written);
                    replace_ends(&mut bytes[written..written + count]);
                    written += count;
                }
            }
            if frame.left_bytes > 0 {
                break;
            }
            self.frame = None;
            match frame.opcode {
                OpCode::Control(kind) => self.control(kind),
                OpCode::Data(_) if frame.is_final => {
                    bytes[written] = MESSAGE_END;
                    written += 1;
                }
                OpCode::Data(_) => {}
            }
        }
        written
    }

    /// How the client has ended it, if it has.
    pub(crate) fn input_end(&self) -> Option<InputEnd> {
        self.end
    }

    /// Whether a message, or a frame, has begun that has not ended.
    pub(crate) fn is_cut(&self) -> bool {
        self.in_message || self.frame.is_some() || !self.header.is_empty()
    }

    /// Answers the client's last ping, unless `send` does not take that now: then the next one gets the
    /// answer.
    pub(crate) fn answer_ping(
        &mut self,
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.flush(&mut send)?;
        self.encode_pong();
        self.flush(&mut send)
    }

    /// Sends the beginning of `output`, which stays the same until that has succeeded: whole messages, of
    /// which the first may have left in part. It fails until `send` has taken all of that, and counts no
    /// part before.
    pub(crate) fn send(
        &mut self,
        output: &[u8],
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.piece_bytes == 0 {
            self.encode_pong();
            self.encode(output);
        }
        self.flush(&mut send)?;
        Ok(mem::take(&mut self.piece_bytes))
    }

    /// Says that nothing more is sent, for this reason, or for the client's. It fails until `send` has
    /// taken that.
    pub(crate) fn end(
        &mut self,
        code: CloseCode,
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        if !self.has_ended {
            self.has_ended = true;
            let close = match self.end {
                Some(InputEnd::Closed(None)) => None,
                Some(InputEnd::Closed(Some(code))) => Some((code, String::new())),
                Some(InputEnd::Violated(violation)) => {
                    Some((violation.code(), violation.to_string()))
                }
                None => Some((code, String::new())),
            };
            let close = close.map(|(code, reason)| CloseFrame {
                code,
                reason: reason.into(),
            });
            // Inside of a reply that was given up, it would be a part of that.
            if self.reply_left_bytes.is_none() {
                self.encode_control(OwnFrame::close(close));
            }
        }
        self.flush(&mut send)
    }

    /// What has been sent, of frames.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Takes what there is of a header, and returns how much that was.
    fn take_header(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let before = self.header.len();
        let count = bytes.len().min(HEADER_BYTES - before);
        self.header.extend_from_slice(&bytes[..count]);
        let mut cursor = Cursor::new(&self.header);
        let parsed = FrameHeader::parse(&mut cursor);
        let Some((header, left_bytes)) = parsed.map_err(|_| Violation::Opcode)? else {
            return Ok(count);
        };
        let header_bytes = usize::try_from(cursor.position()).unwrap_or(HEADER_BYTES);
        self.header.clear();
        self.begin(&header, left_bytes)?;
        Ok(header_bytes - before)
    }

    /// Whether a frame may come now, and what it means for the next.
    fn begin(&mut self, header: &FrameHeader, left_bytes: u64) -> Result<(), Violation> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::Extension);
        }
        let mask = header.mask.ok_or(Violation::Unmasked)?;
        match header.opcode {
            OpCode::Control(_) if !header.is_final || left_bytes > CONTROL_BYTES as u64 => {
                return Err(Violation::Control);
            }
            OpCode::Control(_) => {}
            OpCode::Data(kind) => {
                match (kind, self.in_message) {
                    (Data::Continue, false) => return Err(Violation::StrayFragment),
                    (Data::Text | Data::Binary, true) => return Err(Violation::Interleaved),
                    (Data::Binary, false) => return Err(Violation::Binary),
                    (Data::Reserved(_), _) => return Err(Violation::Opcode),
                    (Data::Continue, true) | (Data::Text, false) => {}
                }
                self.in_message = !header.is_final;
            }
        }
        self.frame = Some(Frame {
            opcode: header.opcode,
            is_final: header.is_final,
            mask,
            left_bytes,
        });
        Ok(())
    }

    /// A control frame has come.
    fn control(&mut self, kind: Control) {
        let content = mem::take(&mut self.control);
        match kind {
            Control::Ping => self.ping = Some(content),
            Control::Close => {
                self.end = Some(match close_code(&content) {
                    Ok(code) => InputEnd::Closed(code),
                    Err(violation) => InputEnd::Violated(violation),
                });
            }
            Control::Pong | Control::Reserved(_) => {}
        }
    }

    /// Never inside of a reply, and one at a time.
    fn encode_pong(&mut self) {
        if self.reply_left_bytes.is_none()
            && self.encoded.is_empty()
            && let Some(content) = self.ping.take()
        {
            self.encode_control(OwnFrame::pong(content));
        }
    }

    fn encode_control(&mut self, frame: OwnFrame) {
        // A vector takes everything.
        let _ = frame.format(&mut self.encoded);
    }

    fn encode(&mut self, output: &[u8]) {
        self.piece_bytes = output.len().min(SEND_BYTES);
        let mut at = 0;
        while at < self.piece_bytes {
            let rest = &output[at..];
            let left_bytes = self.reply_left_bytes.take().unwrap_or_else(|| {
                let bytes = memchr::memchr(MESSAGE_END, rest).unwrap_or(rest.len());
                let header = FrameHeader {
                    is_final: true,
                    opcode: OpCode::Data(Data::Text),
                    ..FrameHeader::default()
                };
                let _ = header.format(bytes as u64, &mut self.encoded);
                bytes
            });
            let count = left_bytes.min(self.piece_bytes - at);
            self.encoded.extend_from_slice(&rest[..count]);
            at += count;
            if at == self.piece_bytes {
                // At least its end.
                self.reply_left_bytes = Some(left_bytes - count);
            } else {
                at += 1;
            }
        }
    }

    fn flush(&mut self, send: &mut impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        while self.sent < self.encoded.len() {
            let count = send(&self.encoded[self.sent..])?;
            self.sent += count;
            self.sent_bytes += count as u64;
        }
        // Nothing is kept for connections that wait.
        self.encoded = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

/// The code of a close frame.
fn close_code(content: &[u8]) -> Result<Option<CloseCode>, Violation> {
    let Some((code, reason)) = content.split_first_chunk() else {
        return match content.is_empty() {
            true => Ok(None),
            false => Err(Violation::Code),
        };
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    if !code.is_allowed() {
        return Err(Violation::Code);
    }
    std::str::from_utf8(reason).map_err(|_| Violation::Reason)?;
    Ok(Some(code))
}

/// Takes the mask from a part of a frame's content, and turns it to the next part.
fn unmask(content: &mut [u8], mask: &mut [u8; 4]) {
    let (words, rest) = content.as_chunks_mut();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(*mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(&*mask) {
        *byte ^= mask;
    }
    let turn = rest.len();
    mask.rotate_left(turn);
}

/// What is no end of a message does not look like one.
fn replace_ends(text: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = memchr::memchr(MESSAGE_END, &text[at..]) {
        at += found;
        text[at] = NO_TEXT;
    }
}

#[cfg(test)]
mod tests;
