//! One whole conversation, driven by a client, a network, others who publish and a guest that follow
//! a script: every order of events that a driver may report. It ends, it says nothing that nobody
//! asked for, and what it counts is what happened.

#![no_main]

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use airlock_fuzz::limits::wire::Wire;
use airlock_fuzz::publish;
use airlock_fuzz::talk::conversation::{Conversation, End, Event, Turn, Wait};
use airlock_fuzz::talk::framing::Framing;
use airlock_fuzz::talk::handler::{Answers, Handler, Outcome, Pushed};
use airlock_fuzz::talk::mailbox::{Mail, Mailbox};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Script {
    framing: u8,
    max_line_bytes: u8,
    /// Whether the guest hears what others publish.
    subscribed: bool,
    greeting: Option<String>,
    reads: Vec<Read>,
    outcomes: Vec<Answer>,
    /// How much each write takes; after them every write takes all.
    writes: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Read {
    Bytes(Vec<u8>),
    Silence,
    Interrupted,
    Reset,
    Drain,
    /// Something is published, and whoever waits is told of it, or not yet.
    Published(String, bool),
}

#[derive(Debug, Arbitrary)]
enum Answer {
    Reply(String),
    NoReply,
    Close(Option<String>),
    Fail,
    /// Time passes, and then there is no reply.
    Work(u16),
}

/// Of all that was sent, it has acknowledged nothing.
const STALLED: Event = Event::Stalled { taken_bytes: 0 };

/// The client and the network.
struct Client {
    reads: VecDeque<Read>,
    writes: VecDeque<u8>,
    sent: u64,
    received: u64,
}

impl Client {
    /// What comes of waiting, if it is not interrupted.
    fn perform(&mut self, wait: Wait, conversation: &mut Conversation<Guest<'_>>) -> Option<Event> {
        match wait {
            Wait::Receive { within } => {
                assert!(!within.is_zero());
                self.receive(conversation)
            }
            Wait::Send => Some(self.send(conversation.output())),
            Wait::Again => None,
            Wait::Room { within } => {
                assert!(!within.is_zero());
                // There is room, or the time is over.
                match self.writes.pop_front() {
                    Some(0) => Some(STALLED),
                    _ => None,
                }
            }
        }
    }

    fn receive(&mut self, conversation: &mut Conversation<Guest<'_>>) -> Option<Event> {
        assert!(!conversation.room().is_empty());
        Some(match self.reads.pop_front() {
            None => Event::Eof,
            Some(Read::Silence) => Event::Deadline,
            Some(Read::Reset) => Event::Broken(ErrorKind::ConnectionReset.into()),
            Some(Read::Drain) => Event::Drain,
            Some(Read::Interrupted) => return None,
            Some(Read::Published(body, told)) => {
                if let Some(mailbox) = conversation.mailbox() {
                    publish(mailbox, &body);
                }
                return told.then_some(Event::Mail);
            }
            Some(Read::Bytes(bytes)) if bytes.is_empty() => return None,
            Some(Read::Bytes(mut bytes)) => {
                let room = conversation.room();
                let count = bytes.len().min(room.len());
                room[..count].copy_from_slice(&bytes[..count]);
                let rest = bytes.split_off(count);
                if !rest.is_empty() {
                    self.reads.push_front(Read::Bytes(rest));
                }
                self.received += count as u64;
                Event::Input(count)
            }
        })
    }

    fn send(&mut self, output: &[u8]) -> Event {
        assert!(!output.is_empty());
        let count = match self.writes.pop_front() {
            None => output.len(),
            Some(0) => return STALLED,
            Some(u8::MAX) => return Event::Drain,
            Some(most) => output.len().min(usize::from(most)),
        };
        self.sent += count as u64;
        Event::Sent(count)
    }
}

/// Follows its script, then repeats what it hears.
struct Guest<'a> {
    greeting: Option<String>,
    outcomes: VecDeque<Answer>,
    mailbox: Option<Arc<Mailbox>>,
    clock: Duration,
    max_line_bytes: usize,
    said: &'a mut usize,
    failed: bool,
}

impl Guest<'_> {
    fn say(&mut self, text: String) -> String {
        *self.said += text.len();
        text
    }
}

impl Handler for Guest<'_> {
    type Error = ();

    fn greeting(&mut self) -> Result<Option<String>, ()> {
        let text = self.greeting.take();
        Ok(text.map(|text| self.say(text)))
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, ()> {
        assert!(!self.failed, "a guest that has failed is called again");
        assert!(line.len() <= self.max_line_bytes.max(1024));
        Ok(match self.outcomes.pop_front() {
            None => Outcome::Reply(self.say(line.to_owned())),
            Some(Answer::Reply(text)) => Outcome::Reply(self.say(text)),
            Some(Answer::NoReply) => Outcome::NoReply,
            Some(Answer::Work(milliseconds)) => {
                self.clock += Duration::from_millis(u64::from(milliseconds));
                Outcome::NoReply
            }
            Some(Answer::Close(text)) => {
                self.failed = true;
                Outcome::Close(text.map(|text| self.say(text)))
            }
            Some(Answer::Fail) => {
                self.failed = true;
                return Err(());
            }
        })
    }

    /// Repeats some of them too, at least one.
    fn handle_lines<'a>(
        &mut self,
        lines: impl FnOnce() -> Option<&'a str>,
        enough: usize,
    ) -> Result<Option<Answers>, ()> {
        assert!(!self.failed, "a guest that has failed is called again");
        if !self.outcomes.is_empty() {
            return Ok(None);
        }
        let Some(lines) = lines() else {
            return Ok(None);
        };
        let all = lines.split_inclusive('\n').count();
        assert!(all >= 2 && lines.ends_with('\n') && !lines.contains('\r') && enough > 0);
        let handled = 1 + lines.len() % all;
        let replies = lines.split_inclusive('\n').take(handled).collect();
        Ok(Some(Answers {
            replies: self.say(replies),
            handled,
            close: false,
        }))
    }

    fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.mailbox.as_ref()
    }

    /// Repeats what it hears; what is said of a failure or an end there is said of it here.
    fn hear<'m>(&mut self, mail: &'m Mail) -> Result<Pushed<'m>, ()> {
        assert!(!self.failed, "a guest that has failed is called again");
        let close = matches!(self.outcomes.front(), Some(Answer::Close(_)));
        self.failed = close || matches!(self.outcomes.front(), Some(Answer::Fail));
        if self.failed && !close {
            return Err(());
        }
        let bodies = mail.messages.iter().map(|message| &message.body);
        let lines: Vec<_> = bodies.map(|body| String::from_utf8_lossy(body)).collect();
        *self.said += lines.iter().map(|line| line.len()).sum::<usize>();
        Ok(Pushed { lines, close })
    }

    fn clock(&self) -> Duration {
        self.clock
    }
}

fuzz_target!(|script: Script| {
    let framings = [
        Framing::Auto,
        Framing::Lines,
        Framing::Chunks,
        Framing::Messages,
    ];
    let framing = framings[usize::from(script.framing) % framings.len()];
    let limits = Wire {
        line_bytes: usize::from(script.max_line_bytes),
        ..Wire::DEFAULT
    };
    let mut client = Client {
        reads: script.reads.into(),
        writes: script.writes.into(),
        sent: 0,
        received: 0,
    };
    let mut said = 0;
    let mut conversation = Conversation::new(framing, limits);
    let mut turn = conversation.start(|| {
        Ok(Guest {
            greeting: script.greeting,
            outcomes: script.outcomes.into(),
            mailbox: script.subscribed.then(|| Arc::new(Mailbox::new(1))),
            clock: Duration::ZERO,
            max_line_bytes: limits.line_bytes,
            said: &mut said,
            failed: false,
        })
    });
    let end = loop {
        turn = match turn {
            Turn::Ended(end) => break end,
            Turn::Wait(wait) => match client.perform(wait, &mut conversation) {
                Some(event) => conversation.turn(event),
                None => conversation.resume(),
            },
        };
    };
    let mut event = Event::Sent(0);
    while let Some(wait) = conversation.goodbye(event) {
        assert!(!matches!(wait, Wait::Receive { .. }));
        let next = client.perform(wait, &mut conversation);
        event = next.unwrap_or(Event::Sent(0));
    }

    assert_eq!(conversation.bytes_in, client.received);
    assert_eq!(conversation.bytes_out, client.sent);
    assert!(conversation.output().is_empty());
    let (heard, pending) = (conversation.is_heard(), conversation.pending_bytes());
    drop(conversation);
    if heard {
        // Everything the guest has said has left, with at most a line ending behind each text.
        assert!(client.sent >= said as u64);
    }
    if matches!(end, End::ClientClosed) {
        assert!(client.reads.is_empty());
        // A part of a message is none; there the door's protocol tells that it was cut off.
        assert!(pending == 0 || framing == Framing::Messages);
    }
});
