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
//! whatever they end with on the wire), `<close` its close. `* TOPIC BODY` is what somebody else has
//! published; those that stand together are heard together, and what the guest says to that is `<` too.
//! The text after the mark and one space is taken as it is. A text that would not survive in a text file, with a newline or an escape
//! character in it, stands as a JSON string right after the mark: `>"Michael\nTracy"`.

use std::borrow::Cow;

const CLOSE: &str = "<close";

/// One line of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// A message to the guest.
    Sent(Cow<'a, str>),
    /// What the guest says; one line, or the whole of an answer.
    Said(Cow<'a, str>),
    /// The guest closes.
    Close,
    /// Somebody else has published something.
    Published {
        /// What it is about.
        topic: Cow<'a, str>,
        /// What it says.
        body: Cow<'a, str>,
    },
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
        } else if let Some(rest) = line.strip_prefix('*') {
            let (topic, rest) = topic(rest).map_err(wrong)?;
            let body = value(rest).map_err(wrong)?;
            lines.push(Line::Published { topic, body });
        } else if !line.trim_start().is_empty() && !line.starts_with('#') {
            return Err(wrong(
                "it starts with none of `> `, `< `, `<close`, `* ` and `#`",
            ));
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

/// The topic, and what follows it.
fn topic(rest: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    if rest.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let topic = values.next().and_then(Result::ok);
        let topic = topic.ok_or("what follows the mark is no JSON string")?;
        return Ok((Cow::Owned(topic), &rest[values.byte_offset()..]));
    }
    let rest = rest.strip_prefix(' ');
    let rest = rest.ok_or("the topic has to follow its mark after one space")?;
    let end = rest.find([' ', '"']).unwrap_or(rest.len());
    let (topic, rest) = rest.split_at(end);
    Ok((Cow::Borrowed(topic), rest))
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
            Line::Published { topic, body } => {
                text.push('*');
                // Where it ends has to be seen.
                let is_plain = !topic.contains([' ', '"']);
                push_value(&mut text, topic, is_plain);
                push_value(&mut text, body, true);
                text.push('\n');
            }
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
    push_value(text, value, true);
    text.push('\n');
}

/// `is_plain`: it may be written as it is.
fn push_value(text: &mut String, value: &str, is_plain: bool) {
    if !is_plain || value.chars().any(|char| char.is_control() && char != '\t') {
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_conversation_is_read_as_it_is_written() {
        let text = "# hi\n\n< Welcome!\n> Ada \n>\n<\n>\"a\\nb\"\n> \"quoted\"\n* room Hi there\n\
                    *\"my room\" \"Hi\"\n* room\"a\\nb\"\n* room\n<close\n";
        let published = |topic: &'static str, body: &'static str| Line::Published {
            topic: topic.into(),
            body: body.into(),
        };
        let lines = [
            Line::Said("Welcome!".into()),
            Line::Sent("Ada ".into()),
            Line::Sent("".into()),
            Line::Said("".into()),
            Line::Sent("a\nb".into()),
            Line::Sent("\"quoted\"".into()),
            published("room", "Hi there"),
            published("my room", "\"Hi\""),
            published("room", "a\nb"),
            published("room", ""),
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
        for text in [
            "hello", ">x", "<closed", " > x", ">\"x", "<\"x\" y", "*room", "*\"room",
        ] {
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
        fn anything_published_survives_being_written_and_read(topic in ".+", body in any::<String>()) {
            let lines = [Line::Published { topic: topic.into(), body: body.into() }];
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
}
