//! Many lines in one call: [`answer`] for each of them, and nothing else. It spares a client that
//! sends ahead the cost of a call for each line; a guest can do without.

use crate::greeting::{Answer, answer};

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
    for line in lines.split_terminator('\n') {
        batch.handled += 1;
        match answer(line) {
            Answer::Say(text) => {
                batch.replies.push_str(&text);
                batch.replies.push('\n');
            }
            Answer::Goodbye => {
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
