//! The greeter's logic: what it answers to a line. This is the file to edit first.
//!
//! Nothing here knows WebAssembly, WIT or sockets, so it is tested natively.

/// What to do after a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this text.
    Say(String),
    /// Close the connection without another word.
    Goodbye,
}

/// The greeting of a new connection, unless the setting `GREETING` names another.
pub const WELCOME: &str = "Welcome!";

/// Answers one `line`, which comes without its line ending.
pub fn answer(line: &str) -> Answer {
    match line {
        "exit" => Answer::Goodbye,
        name => Answer::Say(["Hello, ", name, "!"].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Answer {
        Answer::Say(text.to_owned())
    }

    #[test]
    fn a_name_is_greeted() {
        assert_eq!(answer("Michael"), say("Hello, Michael!"));
        assert_eq!(answer("Αθηνά"), say("Hello, Αθηνά!"));
    }

    #[test]
    fn an_empty_line_is_a_name_like_any_other() {
        assert_eq!(answer(""), say("Hello, !"));
    }

    #[test]
    fn exit_closes_and_nothing_like_it_does() {
        assert_eq!(answer("exit"), Answer::Goodbye);
        assert_eq!(answer("Exit"), say("Hello, Exit!"));
        assert_eq!(answer("exit "), say("Hello, exit !"));
    }
}
