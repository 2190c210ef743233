//! One whole connection over an in-memory stream, with a client and a guest that follow a script.
//! It ends, it says nothing that nobody asked for, and what it counts is what happened.

#![no_main]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use airlock_fuzz::talk::conversation::{Answers, Conversation, End, Handler, Outcome, Peer};
use airlock_fuzz::talk::framing::Framing;
use airlock_fuzz::limits::Limits;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Script {
    framing: u8,
    max_line_bytes: u8,
    greeting: Option<String>,
    reads: Vec<Event>,
    outcomes: Vec<Answer>,
    /// How much each write takes; after them every write takes all.
    writes: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Bytes(Vec<u8>),
    Silence,
    Interrupted,
    Reset,
    Drain,
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

struct Client {
    reads: VecDeque<Event>,
    writes: VecDeque<u8>,
    sent: Vec<u8>,
    received: u64,
    draining: bool,
}

impl Peer for Client {
    fn set_read_time(&mut self, time: Duration) -> io::Result<()> {
        assert!(!time.is_zero());
        Ok(())
    }

    fn is_draining(&self) -> bool {
        self.draining
    }
}

impl Read for Client {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        assert!(!room.is_empty());
        match self.reads.pop_front() {
            None => Ok(0),
            Some(Event::Silence) => Err(ErrorKind::WouldBlock.into()),
            Some(Event::Interrupted) => Err(ErrorKind::Interrupted.into()),
            Some(Event::Reset) => Err(ErrorKind::ConnectionReset.into()),
            Some(Event::Drain) => {
                self.draining = true;
                Err(ErrorKind::Interrupted.into())
            }
            Some(Event::Bytes(bytes)) if bytes.is_empty() => Err(ErrorKind::Interrupted.into()),
            Some(Event::Bytes(mut bytes)) => {
                let count = bytes.len().min(room.len());
                room[..count].copy_from_slice(&bytes[..count]);
                let rest = bytes.split_off(count);
                if !rest.is_empty() {
                    self.reads.push_front(Event::Bytes(rest));
                }
                self.received += count as u64;
                Ok(count)
            }
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match self.writes.pop_front() {
            None => bytes.len(),
            Some(0) => return Err(ErrorKind::WouldBlock.into()),
            Some(most) => bytes.len().min(usize::from(most)),
        };
        self.sent.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows its script, then repeats what it hears.
struct Guest<'a> {
    greeting: Option<String>,
    outcomes: VecDeque<Answer>,
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

    fn clock(&self) -> Duration {
        self.clock
    }
}

fuzz_target!(|script: Script| {
    let framings = [Framing::Auto, Framing::Lines, Framing::Chunks];
    let framing = framings[usize::from(script.framing) % framings.len()];
    let mut limits = Limits::new(1, 0);
    limits.line_bytes = usize::from(script.max_line_bytes);
    let client = Client {
        reads: script.reads.into(),
        writes: script.writes.into(),
        sent: Vec::new(),
        received: 0,
        draining: false,
    };
    let mut said = 0;
    let mut conversation = Conversation::new(client, framing, &limits);
    let (Ok(end) | Err(end)) = conversation.run(|| {
        Ok(Guest {
            greeting: script.greeting,
            outcomes: script.outcomes.into(),
            clock: Duration::ZERO,
            max_line_bytes: limits.line_bytes,
            said: &mut said,
            failed: false,
        })
    });
    let listening = conversation.say_goodbye(&end);

    let client = &conversation.peer;
    assert_eq!(conversation.bytes_in, client.received);
    assert!(conversation.bytes_out <= client.sent.len() as u64);
    if listening {
        // Everything the guest has said has left, with at most a line ending behind each text.
        assert_eq!(conversation.bytes_out, client.sent.len() as u64);
        assert!(client.sent.len() >= said);
    }
    if matches!(end, End::ClientClosed) {
        assert!(client.reads.is_empty());
        assert_eq!(conversation.pending_bytes(), 0);
    }
});
