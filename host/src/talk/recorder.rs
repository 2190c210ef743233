//! Writes a conversation down while it is held.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::talk::conversation::GUEST_FAILED;
use crate::talk::handler::{Answers, Handler, Outcome, Pushed};
use crate::talk::mailbox::{Mail, Mailbox};
use crate::talk::transcript::{Line, write};

/// Stands at the end of what is not complete.
pub(crate) const CUT: &str = "# the rest is not recorded\n";

/// A handler that writes down what passes through it, if there is something to write to: in one write
/// for each message. An error ends the writing and nothing else.
pub struct Recorder<H, W> {
    handler: H,
    output: Output<W>,
}

struct Output<W>(Option<W>);

impl<W: Write> Output<W> {
    fn write(&mut self, lines: &[Line<'_>]) {
        if let Some(output) = &mut self.0
            && output.write_all(write(lines).as_bytes()).is_err()
        {
            self.0 = None;
        }
    }

    /// What a client makes of a failed guest.
    fn write_failure(&mut self, message: Option<&str>) {
        let message = message.map(|text| Line::Sent(text.into()));
        let failure = [Line::Said(GUEST_FAILED.into()), Line::Close];
        self.write(&message.into_iter().chain(failure).collect::<Vec<_>>());
    }
}

impl<H: Handler, W: Write> Recorder<H, W> {
    /// Makes the handler that is recorded.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn start(
        output: Option<W>,
        start: impl FnOnce() -> Result<H, H::Error>,
    ) -> Result<Recorder<H, W>, H::Error> {
        let mut output = Output(output);
        match start() {
            Ok(handler) => Ok(Recorder { handler, output }),
            Err(error) => {
                output.write_failure(None);
                Err(error)
            }
        }
    }
}

impl<H: Handler, W: Write> Handler for Recorder<H, W> {
    type Error = H::Error;

    fn greeting(&mut self) -> Result<Option<String>, H::Error> {
        match self.handler.greeting() {
            Ok(text) => {
                if let Some(text) = &text {
                    self.output.write(&[Line::Said(text.into())]);
                }
                Ok(text)
            }
            Err(error) => {
                self.output.write_failure(None);
                Err(error)
            }
        }
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, H::Error> {
        if self.output.0.is_none() {
            return self.handler.handle_line(line);
        }
        let sent = || Line::Sent(line.into());
        match self.handler.handle_line(line) {
            Ok(outcome) => {
                match &outcome {
                    Outcome::Reply(text) => {
                        self.output.write(&[sent(), Line::Said(text.into())]);
                    }
                    Outcome::NoReply => self.output.write(&[sent()]),
                    Outcome::Close(None) => self.output.write(&[sent(), Line::Close]),
                    Outcome::Close(Some(text)) => {
                        let lines = [sent(), Line::Said(text.into()), Line::Close];
                        self.output.write(&lines);
                    }
                }
                Ok(outcome)
            }
            Err(error) => {
                self.output.write_failure(Some(line));
                Err(error)
            }
        }
    }

    /// Only what is not written down may stay together.
    fn handle_lines<'a>(
        &mut self,
        lines: impl FnOnce() -> Option<&'a str>,
        enough: usize,
    ) -> Result<Option<Answers>, H::Error> {
        match self.output.0 {
            None => self.handler.handle_lines(lines, enough),
            Some(_) => Ok(None),
        }
    }

    fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.handler.mailbox()
    }

    /// What the guest has published itself is not written down: it does that again when it is played to.
    fn hear<'m>(&mut self, mail: &'m Mail) -> Result<Pushed<'m>, H::Error> {
        if self.output.0.is_none() {
            return self.handler.hear(mail);
        }
        let published = mail.of_others().map(|message| Line::Published {
            topic: (*message.topic).into(),
            body: String::from_utf8_lossy(&message.body),
        });
        let mut lines: Vec<_> = published.collect();
        match self.handler.hear(mail) {
            Ok(pushed) => {
                let said = pushed.lines.iter();
                lines.extend(said.map(|line| Line::Said((&**line).into())));
                lines.extend(pushed.close.then_some(Line::Close));
                self.output.write(&lines);
                Ok(pushed)
            }
            Err(error) => {
                self.output.write(&lines);
                self.output.write_failure(None);
                Err(error)
            }
        }
    }

    fn clock(&self) -> Duration {
        self.handler.clock()
    }
}

/// A file that takes no more than its share, and says so where it ends.
pub struct Capped<W> {
    output: W,
    bytes_left: u64,
}

impl<W: Write> Capped<W> {
    /// Takes `bytes`, and a comment after them.
    pub fn new(output: W, bytes: u64) -> Capped<W> {
        Capped {
            output,
            bytes_left: bytes,
        }
    }
}

impl<W: Write> Write for Capped<W> {
    /// Whole exchanges or nothing.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.bytes_left.checked_sub(bytes.len() as u64) else {
            self.output.write_all(CUT.as_bytes())?;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.bytes_left = left;
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_ends_at_its_cap_with_whole_exchanges() {
        let mut text = Vec::new();
        let mut output = Output(Some(Capped::new(&mut text, 20)));
        for _ in 0..10 {
            output.write(&[Line::Sent("Ada".into()), Line::Said("x".into())]);
        }
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text, "> Ada\n< x\n> Ada\n< x\n# the rest is not recorded\n");
    }
}
