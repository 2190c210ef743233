//! Conversations as text: what `--record` writes, `airlock test` plays, and people write by hand.
//!
//! ```text
//! # a comment
//! < Welcome!
//! > Michael
//! < Hello, Michael!
//! > exit
//! <close
//! ```
//!
//! `>` is a message to the guest, `<` a line that it answers (a reply of two lines is two of them,
//! whatever they end with on the wire), `<close` its close. The text after the mark and one space is taken as it is. A text that would
//! not survive in a text file, with a newline or an escape character in it, stands as a JSON string
//! right after the mark: `>"Michael\nTracy"`.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use crate::limits::SCRIPT_BYTES;
use crate::talk::conversation::{GUEST_FAILED, Handler, Outcome};

const CLOSE: &str = "<close";

/// Stands at the end of what is not complete.
pub(crate) const CUT: &str = "# the rest is not recorded\n";

/// One line of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// A message to the guest.
    Sent(Cow<'a, str>),
    /// What the guest says; one line, or the whole of an answer.
    Said(Cow<'a, str>),
    /// The guest closes.
    Close,
}

/// Where a text is no conversation, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct NoTranscript {
    /// Counted from 1.
    pub line: usize,
    what: &'static str,
}

/// Reads a conversation.
///
/// # Errors
/// The first line that is none of the kinds above.
pub fn parse(text: &str) -> Result<Vec<Line<'_>>, NoTranscript> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what| NoTranscript {
            line: number + 1,
            what,
        };
        if line == CLOSE {
            lines.push(Line::Close);
        } else if let Some(rest) = line.strip_prefix('>') {
            lines.push(Line::Sent(value(rest).map_err(wrong)?));
        } else if let Some(rest) = line.strip_prefix('<') {
            lines.push(Line::Said(value(rest).map_err(wrong)?));
        } else if !line.trim_start().is_empty() && !line.starts_with('#') {
            return Err(wrong("it starts with none of `> `, `< `, `<close` and `#`"));
        }
    }
    Ok(lines)
}

fn value(rest: &str) -> Result<Cow<'_, str>, &'static str> {
    if rest.starts_with('"') {
        let text = serde_json::from_str(rest);
        text.map(Cow::Owned)
            .map_err(|_| "what follows the mark is no JSON string")
    } else if rest.is_empty() {
        // Editors remove the space at the end of an empty message.
        Ok(Cow::Borrowed(""))
    } else {
        rest.strip_prefix(' ')
            .map(Cow::Borrowed)
            .ok_or("the text has to follow its mark after one space")
    }
}

/// The lines as text, as [`parse`] reads it. An answer of several lines becomes several lines.
pub fn write(lines: &[Line<'_>]) -> String {
    let mut text = String::new();
    for line in lines {
        match line {
            Line::Sent(message) => push(&mut text, '>', message),
            Line::Said(answer) => answer
                .split('\n')
                .for_each(|line| push(&mut text, '<', line)),
            Line::Close => {
                text.push_str(CLOSE);
                text.push('\n');
            }
        }
    }
    text
}

fn push(text: &mut String, mark: char, value: &str) {
    text.push(mark);
    if value.chars().any(|char| char.is_control() && char != '\t') {
        // JSON leaves the later control characters as they are, and some terminals obey them.
        for char in serde_json::Value::from(value).to_string().chars() {
            if char.is_control() {
                text.push_str(&format!("\\u{:04x}", u32::from(char)));
            } else {
                text.push(char);
            }
        }
    } else if !value.is_empty() {
        text.push(' ');
        text.push_str(value);
    }
    text.push('\n');
}

/// Plays the messages of a conversation to a guest that `start` makes, without a network, until they
/// are over or the guest closes or fails. Returns what was said on both sides, as text, and how the
/// guest failed, if it has.
pub fn play<H: Handler>(
    script: &[Line<'_>],
    start: impl FnOnce() -> Result<H, H::Error>,
) -> (String, Option<H::Error>) {
    let mut played = Vec::new();
    let failure = converse(script, start, &mut played).err();
    // What is played is text.
    (String::from_utf8_lossy(&played).into_owned(), failure)
}

fn converse<H: Handler>(
    script: &[Line<'_>],
    start: impl FnOnce() -> Result<H, H::Error>,
    played: &mut Vec<u8>,
) -> Result<(), H::Error> {
    let mut guest = Recorder::start(Capped::new(played, SCRIPT_BYTES), start)?;
    guest.greeting()?;
    for line in script {
        if let Line::Sent(message) = line
            && let Outcome::Close(_) = guest.handle_line(message)?
        {
            break;
        }
    }
    Ok(())
}

/// A handler that writes down what passes through it, in one write for each message. An error ends
/// the writing and nothing else.
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
        output: W,
        start: impl FnOnce() -> Result<H, H::Error>,
    ) -> Result<Recorder<H, W>, H::Error> {
        let mut output = Output(Some(output));
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_conversation_is_read_as_it_is_written() {
        let text = "# hi\n\n< Welcome!\n> Ada \n>\n<\n>\"a\\nb\"\n> \"quoted\"\n<close\n";
        let lines = [
            Line::Said("Welcome!".into()),
            Line::Sent("Ada ".into()),
            Line::Sent("".into()),
            Line::Said("".into()),
            Line::Sent("a\nb".into()),
            Line::Sent("\"quoted\"".into()),
            Line::Close,
        ];
        assert_eq!(parse(text), Ok(lines.to_vec()));
        assert_eq!(write(&lines), text.replace("# hi\n\n", ""));
        assert_eq!(parse(&text.replace('\n', "\r\n")), Ok(lines.to_vec()));
    }

    #[test]
    fn no_control_character_reaches_a_terminal() {
        let text = write(&[Line::Sent("a\u{9b}31m\u{7f}\x1b".into())]);
        assert_eq!(text, ">\"a\\u009b31m\\u007f\\u001b\"\n");
    }

    #[test]
    fn what_is_no_conversation_is_named_by_its_line() {
        for text in ["hello", ">x", "<closed", " > x", ">\"x", "<\"x\" y"] {
            let error = parse(&format!("> fine\n{text}\n")).expect_err(text);
            assert_eq!(error.line, 2, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_message_survives_being_written_and_read(message in any::<String>()) {
            let lines = [Line::Sent(message.into())];
            let text = write(&lines);
            prop_assert_eq!(parse(&text), Ok(lines.to_vec()));
        }

        #[test]
        fn any_answer_survives_line_by_line(answer in any::<String>()) {
            let text = write(&[Line::Said(answer.as_str().into())]);
            let parts: Vec<_> = answer.split('\n').map(|line| Line::Said(line.into())).collect();
            prop_assert_eq!(parse(&text), Ok(parts));
        }
    }

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
