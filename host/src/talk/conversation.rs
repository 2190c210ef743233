//! THE loop, as a machine without I/O: messages in, the guest asked, replies out, until somebody
//! ends it. All rules of the wire and all limits of clients are here, once.
//!
//! Whoever drives it has the socket, reads and writes what it is told to, and reports each time what
//! came of that as an [`Event`]; the answer is what to do next. A thread that blocks on the socket
//! can do that (`serve::blocking`), and so can one that waits for many sockets: a conversation owns
//! all that belongs to it, and may move from thread to thread between two turns.
//!
//! ```text
//! start -> Receive -> Input(n) -> Send -> Sent(n) -> Receive -> … -> Ended, then goodbye
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits::wire::{self, Wire};
use crate::talk::framing::{Ending, Framing, Reader, Refusal, WRITE_BYTES, Waiting, Writer};
use crate::talk::handler::{Handler, Outcome};
use crate::talk::mailbox::Mailbox;
use crate::talk::patience::Patience;

/// What a client hears when the guest fails, and all it hears about it.
pub const GUEST_FAILED: &str = "error: the guest failed";

/// What has happened at the client's end.
#[derive(Debug)]
pub enum Event {
    /// So many bytes, more than none, have been read into [`Conversation::room`].
    Input(usize),
    /// The client has ended its side.
    Eof,
    /// So many bytes of [`Conversation::output`] have been written.
    Sent(usize),
    /// The socket takes nothing now. The client's kernel has acknowledged this many bytes since the
    /// client came.
    Stalled {
        /// See above.
        taken_bytes: u64,
    },
    /// Nothing was there to read for as long as was to be waited.
    Deadline,
    /// There may be something in [`Conversation::mailbox`].
    Mail,
    /// The server has begun to end, or this connection's version of the guest has. Once is enough.
    Drain,
    /// The connection is no more.
    Broken(io::Error),
}

/// What a conversation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Bytes into [`Conversation::room`], or the client's end; or, if there is nothing of that,
    /// something in [`Conversation::mailbox`].
    Receive {
        /// Then it is [`Event::Deadline`].
        within: Duration,
    },
    /// [`Conversation::output`] to be written, at once: [`Event::Sent`], or [`Event::Stalled`].
    Send,
    /// Others to have had their turn: there is more to do, and nothing to wait for.
    Again,
    /// Room for output. When there is some, write.
    Room {
        /// Then it is [`Event::Stalled`], once more.
        within: Duration,
    },
}

/// What to do next.
#[derive(Debug)]
pub enum Turn<E> {
    /// Wait for this.
    Wait(Wait),
    /// It is over, and this is why. What is left to be said is for [`Conversation::goodbye`].
    Ended(End<E>),
}

/// Why a conversation ended.
#[derive(Debug)]
pub enum End<E> {
    /// The client ended its side, and has every reply.
    ClientClosed,
    /// The guest said goodbye, and the client has that.
    GuestClosed,
    /// The guest failed.
    GuestFailed(E),
    /// The client sent a message that was to be text and is not, where that ends a connection.
    NotText,
    /// The client did not send a whole line in time.
    TimedOut,
    /// The client did not read its replies in time.
    NotReading,
    /// The server ends.
    ShuttingDown,
    /// The connection is no more.
    Broken(io::Error),
}

/// One conversation, and the count of what went through it.
#[derive(Debug)]
pub struct Conversation<H> {
    limits: Wire,
    reader: Reader,
    writer: Writer,
    patience: Patience,
    /// Until it has ended.
    handler: Option<H>,
    /// The handler's, once it has one: at hand, since it is looked into far more often than the handler
    /// is called.
    mailbox: Option<Arc<Mailbox>>,
    /// What follows when all output has been sent.
    next: Next,
    draining: bool,
    /// The wait that was last asked for is for the newline that would decide the framing.
    settling: bool,
    /// The client has had its turn since messages were heard last.
    mail_is_due: bool,
    /// When it began to wait for the client, if messages may interrupt that.
    silent_since: Option<Instant>,
    /// Which line is being received, by [`Reader::lines`], and since when.
    line_started: Option<(u64, Instant)>,
    /// Whether the client may still hear what is said.
    heard: bool,
    /// Messages that were received, including those that were refused.
    pub lines: u64,
    /// Bytes that were received.
    pub bytes_in: u64,
    /// Bytes that were sent.
    pub bytes_out: u64,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Receive,
    /// There may be more messages at hand.
    Answer,
    Close,
    /// What came last was no text.
    Refuse,
}

impl<H: Handler> Conversation<H> {
    /// Nothing has been said yet: [`Conversation::start`] it.
    pub fn new(framing: Framing, limits: Wire) -> Conversation<H> {
        Conversation {
            limits,
            reader: Reader::new(framing, limits.line_bytes),
            writer: Writer::default(),
            patience: Patience::new(limits.write_time),
            handler: None,
            mailbox: None,
            next: Next::Receive,
            draining: false,
            settling: false,
            mail_is_due: true,
            silent_since: None,
            line_started: None,
            heard: true,
            lines: 0,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Lets the handler, which `start` makes, greet the client.
    pub fn start(&mut self, start: impl FnOnce() -> Result<H, H::Error>) -> Turn<H::Error> {
        let greeting = start().and_then(|handler| self.handler.insert(handler).greeting());
        match greeting {
            Ok(text) => {
                self.look_for_mailbox();
                if let Some(text) = text {
                    self.writer.push(&text, self.reader.ending());
                }
                self.resume()
            }
            Err(error) => self.end(End::GuestFailed(error)),
        }
    }

    /// Goes on after an event, until there is something to wait for.
    pub fn turn(&mut self, event: Event) -> Turn<H::Error> {
        match event {
            Event::Input(count) => {
                self.bytes_in += count as u64;
                self.silent_since = None;
                self.reader.add(count);
                self.answer()
            }
            Event::Sent(count) => {
                self.sent(count);
                self.resume()
            }
            Event::Eof => {
                self.reader.end();
                self.answer()
            }
            Event::Deadline if self.settling => {
                self.reader.settle();
                self.answer()
            }
            Event::Deadline => self.end(End::TimedOut),
            Event::Mail => self.hear(),
            Event::Stalled { taken_bytes } => match self.stalled(taken_bytes) {
                Some(wait) => Turn::Wait(wait),
                None => self.end(End::NotReading),
            },
            Event::Drain => {
                self.draining = true;
                self.resume()
            }
            Event::Broken(error) => self.end(End::Broken(error)),
        }
    }

    /// What it waits for now: the same again, if the last wait was interrupted.
    pub fn resume(&mut self) -> Turn<H::Error> {
        if !self.writer.is_empty() {
            return Turn::Wait(Wait::Send);
        }
        match self.next {
            // The client and the others take turns.
            Next::Receive | Next::Answer if self.mail_is_due && self.has_mail() => self.hear(),
            Next::Receive => self.receive(),
            Next::Answer => self.answer(),
            Next::Close => self.end(End::GuestClosed),
            Next::Refuse => self.end(End::NotText),
        }
    }

    /// Ends it for a fault that the handler has not reported itself.
    pub fn fail(&mut self, error: H::Error) -> End<H::Error> {
        self.over(End::GuestFailed(error))
    }

    /// The same as [`Conversation::turn`] when it has ended, beginning with `Sent(0)`: what there is
    /// still to do so that the client has heard all, the shim's own word about the end too.
    pub fn goodbye(&mut self, event: Event) -> Option<Wait> {
        match event {
            Event::Sent(count) => self.sent(count),
            Event::Stalled { taken_bytes } => match self.stalled(taken_bytes) {
                Some(wait) => return Some(wait),
                None => self.give_up(),
            },
            Event::Broken(_) => self.give_up(),
            Event::Input(_) | Event::Eof | Event::Deadline | Event::Mail | Event::Drain => {}
        }
        (!self.writer.is_empty()).then_some(Wait::Send)
    }

    /// Whether the client may still be listening, after a goodbye.
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// Where what others publish waits for it, once its guest has asked to hear some of that.
    pub fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.mailbox.as_ref()
    }

    /// It may have one since it was called.
    fn look_for_mailbox(&mut self) {
        if self.mailbox.is_none() {
            self.mailbox = self.handler.as_ref().and_then(H::mailbox).cloned();
        }
    }

    /// Whether something is there.
    pub fn has_mail(&self) -> bool {
        self.mailbox().is_some_and(|mailbox| mailbox.has_mail())
    }

    /// Where bytes that are received belong; never empty.
    pub fn room(&mut self) -> &mut [u8] {
        self.reader.room()
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        self.writer.output()
    }

    /// How many bytes were received that nothing was made of.
    pub fn pending_bytes(&self) -> usize {
        self.reader.pending_bytes()
    }

    /// The first two bytes that were received, if they came together.
    pub fn first_bytes(&self) -> [u8; 2] {
        self.reader.first_bytes()
    }

    /// Waits until there may be a message.
    fn receive(&mut self) -> Turn<H::Error> {
        if self.reader.has_ended() {
            return self.end(End::ClientClosed);
        }
        if self.draining {
            return self.end(End::ShuttingDown);
        }
        let waiting = self.reader.waiting();
        let silence = self.silence();
        let time_left = self.time_left(waiting, silence);
        if time_left.is_zero() {
            return self.end(End::TimedOut);
        }
        self.settling = waiting == Waiting::ForFraming && wire::SETTLE_TIME < time_left;
        let within = if self.settling {
            wire::SETTLE_TIME.saturating_sub(silence)
        } else {
            time_left
        };
        if within.is_zero() {
            return self.turn(Event::Deadline);
        }
        Turn::Wait(Wait::Receive { within })
    }

    /// How long the client has been waited for already. Only messages interrupt such a wait; where none
    /// come, each begins with input.
    fn silence(&mut self) -> Duration {
        if self.mailbox().is_none() {
            return Duration::ZERO;
        }
        let since = self.silent_since.get_or_insert_with(Instant::now);
        since.elapsed()
    }

    /// How long the client may take for what the reader waits for, when it has been silent for so long.
    fn time_left(&mut self, waiting: Waiting, silence: Duration) -> Duration {
        match waiting {
            Waiting::ForMessage => self.limits.idle_time.saturating_sub(silence),
            Waiting::ForRestOfLine | Waiting::ForFraming => {
                let line = self.reader.lines();
                let started = match self.line_started {
                    Some((same, started)) if same == line => started,
                    _ => Instant::now(),
                };
                self.line_started = Some((line, started));
                self.limits.line_time.saturating_sub(started.elapsed())
            }
        }
    }

    /// Has the handler hear what others have published.
    fn hear(&mut self) -> Turn<H::Error> {
        self.mail_is_due = false;
        let Conversation {
            reader,
            writer,
            handler: Some(handler),
            mailbox: Some(mailbox),
            ..
        } = self
        else {
            return self.resume();
        };
        let mail = mailbox.take();
        match handler.hear(&mail) {
            Ok(pushed) => {
                for line in &pushed.lines {
                    writer.push(line, reader.ending());
                }
                if pushed.close {
                    self.next = Next::Close;
                }
                self.resume()
            }
            Err(error) => self.end(End::GuestFailed(error)),
        }
    }

    /// Answers the messages at hand, as far as their replies are to leave in one write.
    fn answer(&mut self) -> Turn<H::Error> {
        self.mail_is_due = true;
        let Conversation {
            reader,
            writer,
            handler: Some(handler),
            lines,
            ..
        } = self
        else {
            return self.resume();
        };
        let began = handler.clock();
        let most_lines = *lines + wire::LINES_PER_TURN;
        let answered = loop {
            match answer_next(handler, reader, writer, lines) {
                // The replies to one read leave in one write, unless they grow large, there are
                // many, or the guest takes its time.
                Ok(Next::Answer)
                    if !writer.is_full()
                        && *lines < most_lines
                        && handler.clock() - began <= wire::BATCH_TIME => {}
                answered => break answered,
            }
        };
        self.look_for_mailbox();
        match answered {
            Ok(Next::Answer) if self.writer.is_empty() => {
                self.next = Next::Answer;
                Turn::Wait(Wait::Again)
            }
            Ok(next) => {
                self.next = next;
                self.resume()
            }
            Err(error) => self.end(End::GuestFailed(error)),
        }
    }

    fn end(&mut self, end: End<H::Error>) -> Turn<H::Error> {
        Turn::Ended(self.over(end))
    }

    fn over(&mut self, end: End<H::Error>) -> End<H::Error> {
        self.handler = None;
        self.mailbox = None;
        if matches!(end, End::Broken(_) | End::NotReading) {
            self.give_up();
        }
        if let Some(text) = end.last_word() {
            self.writer.push(text, self.reader.ending());
        }
        end
    }

    /// Nobody hears any more.
    fn give_up(&mut self) {
        self.heard = false;
        self.writer.clear();
    }

    fn sent(&mut self, count: usize) {
        self.bytes_out += count as u64;
        self.writer.remove(count);
        self.patience.go_on();
    }

    /// How to wait for room, unless the client has been waited for long enough.
    fn stalled(&mut self, taken_bytes: u64) -> Option<Wait> {
        let within = self.patience.wait(taken_bytes)?;
        Some(Wait::Room { within })
    }
}

/// Answers one message or, where the handler can, as many lines as have arrived; and counts them.
fn answer_next<H: Handler>(
    handler: &mut H,
    reader: &mut Reader,
    writer: &mut Writer,
    count: &mut u64,
) -> Result<Next, H::Error> {
    let answers = handler.handle_lines(|| reader.lines_at_hand(), WRITE_BYTES)?;
    if let Some(answers) = answers {
        *count += reader.take_lines(answers.handled) as u64;
        writer.push_lines(&answers.replies);
        return Ok(next(answers.close));
    }
    let Some(message) = reader.next_message() else {
        return Ok(Next::Receive);
    };
    *count += 1;
    let ending = message.ending;
    let outcome = match message.text {
        Ok(line) => handler.handle_line(line)?,
        // So do the rules of WebSocket, the only ones that have messages (RFC 6455, section 8.1).
        Err(Refusal::NotUtf8) if ending == Ending::Message => return Ok(Next::Refuse),
        Err(refusal) => Outcome::Reply(refusal.to_string()),
    };
    let (text, close) = match outcome {
        Outcome::Reply(text) => (Some(text), false),
        Outcome::NoReply => (None, false),
        Outcome::Close(text) => (text, true),
    };
    if let Some(text) = text {
        writer.push(&text, ending);
    }
    Ok(next(close))
}

fn next(close: bool) -> Next {
    if close { Next::Close } else { Next::Answer }
}

impl<E> End<E> {
    /// What the shim itself has to say about it.
    pub fn last_word(&self) -> Option<&'static str> {
        match self {
            End::GuestFailed(_) => Some(GUEST_FAILED),
            End::NotText => Some("error: line is not valid UTF-8"),
            End::TimedOut => Some("error: timed out waiting for a line"),
            End::ShuttingDown => Some("error: server is shutting down"),
            End::ClientClosed | End::GuestClosed | End::NotReading | End::Broken(_) => None,
        }
    }
}

impl<E> fmt::Display for End<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ClientClosed => f.write_str("the client closed"),
            End::GuestClosed => f.write_str("the guest closed"),
            End::GuestFailed(_) => f.write_str("the guest failed"),
            End::NotText => f.write_str("a message was not UTF-8"),
            End::TimedOut => f.write_str("timed out waiting for a line"),
            End::NotReading => f.write_str("the client does not read"),
            End::ShuttingDown => f.write_str("the server is shutting down"),
            End::Broken(error) => write!(f, "the connection broke: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
