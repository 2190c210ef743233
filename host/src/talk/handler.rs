//! The guest's end of a conversation, as the shim asks it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::talk::mailbox::{Mail, Mailbox};

/// A guest: a session in a sandbox, or native code in its place.
pub trait Handler {
    /// How a guest fails.
    type Error;

    /// What is said before any message, if anything.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn greeting(&mut self) -> Result<Option<String>, Self::Error>;

    /// What to do about one message.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn handle_line(&mut self, line: &str) -> Result<Outcome, Self::Error>;

    /// What to do about lines that have arrived together, where the handler can take more than one
    /// at a time; then `lines` gives them, each with its line feed, if there are such lines. Replies
    /// of `enough` bytes are enough.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn handle_lines<'a>(
        &mut self,
        lines: impl FnOnce() -> Option<&'a str>,
        enough: usize,
    ) -> Result<Option<Answers>, Self::Error> {
        let _ = (lines, enough);
        Ok(None)
    }

    /// Where what others publish waits for it, once it has asked to hear some of that.
    fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        None
    }

    /// What to do about messages from there.
    ///
    /// # Errors
    /// The guest failed; it must not be called again.
    fn hear<'m>(&mut self, mail: &'m Mail) -> Result<Pushed<'m>, Self::Error> {
        let _ = mail;
        Ok(Pushed::default())
    }

    /// Time since some moment, as precise as comes for free.
    fn clock(&self) -> Duration;
}

/// What a guest wants done after a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Send this text.
    Reply(String),
    /// Send nothing.
    NoReply,
    /// Send this text, if there is one, and close.
    Close(Option<String>),
}

/// What a guest has made of several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Its replies, each with its line feed.
    pub replies: String,
    /// How many of the lines it has handled: at least one, and no more than there were.
    pub handled: usize,
    /// Whether it wants to close.
    pub close: bool,
}

/// What a guest wants done about messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed<'m> {
    /// Send these, each as a reply.
    pub lines: Vec<Cow<'m, str>>,
    /// Whether it wants to close.
    pub close: bool,
}
