//! The greeter's logic: what it answers to a line. This is the file to edit first.
//!
//! Nothing here knows WebAssembly, WIT or sockets, so it is tested natively.

/// What to do after a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the reply, and wait for the next line.
    GoOn,
    /// Close the connection without another word.
    Goodbye,
}

/// The greeting of a new connection, unless the setting `GREETING` names another.
pub const WELCOME: &str = "Welcome!";

/// Answers one `line`, which comes without its line ending. The answer is written behind what is in
/// `reply` already.
pub fn answer(line: &str, reply: &mut String) -> Next {
    if line == "exit" {
        return Next::Goodbye;
    }
    // One allocation, of what is written.
    reply.reserve("Hello, !".len() + line.len());
    reply.push_str("Hello, ");
    reply.push_str(line);
    reply.push('!');
    Next::GoOn
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said to a line, if it is no goodbye.
    fn said(line: &str) -> Option<String> {
        let mut reply = String::new();
        (answer(line, &mut reply) == Next::GoOn).then_some(reply)
    }

    #[test]
    fn a_name_is_greeted() {
        assert_eq!(said("Michael").as_deref(), Some("Hello, Michael!"));
        assert_eq!(said("Αθηνά").as_deref(), Some("Hello, Αθηνά!"));
    }

    #[test]
    fn an_empty_line_is_a_name_like_any_other() {
        assert_eq!(said("").as_deref(), Some("Hello, !"));
    }

    #[test]
    fn exit_closes_and_nothing_like_it_does() {
        assert_eq!(said("exit"), None);
        assert_eq!(said("Exit").as_deref(), Some("Hello, Exit!"));
        assert_eq!(said("exit ").as_deref(), Some("Hello, exit !"));
    }

    #[test]
    fn an_answer_goes_behind_what_is_there() {
        let mut replies = "Hello, Ada!\n".to_owned();
        assert_eq!(answer("Grace", &mut replies), Next::GoOn);
        assert_eq!(replies, "Hello, Ada!\nHello, Grace!");
    }
}
