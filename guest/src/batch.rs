//! Many lines in one call: [`answer`] for each of them, and nothing else. It spares a client that
//! sends ahead the cost of a call for each line; a guest can do without.

use crate::greeting::{Next, answer};

/// What has become of the lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The replies, each with its line feed.
    pub replies: String,
    /// How many lines have been handled.
    pub handled: u32,
    /// Whether the last of those was a goodbye.
    pub close: bool,
}

/// Answers `lines`, each with its line feed, until the replies have `enough` bytes.
pub fn answer_all(lines: &str, enough: usize) -> Batch {
    let mut batch = Batch {
        // A guess that saves growing.
        replies: String::with_capacity(3 * lines.len()),
        ..Batch::default()
    };
    let mut rest = lines;
    while let Some((line, after)) = split_line(rest) {
        rest = after;
        batch.handled += 1;
        match answer(line, &mut batch.replies) {
            Next::GoOn => batch.replies.push('\n'),
            Next::Goodbye => {
                batch.close = true;
                break;
            }
        }
        if batch.replies.len() >= enough {
            break;
        }
    }
    batch
}

/// The first line, and what follows its line feed. Most lines are short: looking at each byte beats the
/// search of `str`, which prepares for more.
fn split_line(lines: &str) -> Option<(&str, &str)> {
    let end = lines.bytes().position(|byte| byte == b'\n')?;
    Some((lines.get(..end)?, lines.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(replies: &str, handled: u32, close: bool) -> Batch {
        Batch {
            replies: replies.to_owned(),
            handled,
            close,
        }
    }

    #[test]
    fn every_line_is_answered_in_order() {
        let answers = "Hello, Ada!\nHello, !\nHello, Grace!\n";
        assert_eq!(answer_all("Ada\n\nGrace\n", 1000), batch(answers, 3, false));
    }

    #[test]
    fn a_goodbye_is_the_last_line() {
        assert_eq!(
            answer_all("Ada\nexit\nGrace\n", 1000),
            batch("Hello, Ada!\n", 2, true)
        );
    }

    #[test]
    fn it_stops_when_it_is_enough_and_never_before_the_first() {
        assert_eq!(
            answer_all("Ada\nGrace\n", 0),
            batch("Hello, Ada!\n", 1, false)
        );
        assert_eq!(answer_all("Ada\nGrace\nEve\n", 13).handled, 2);
    }
}
