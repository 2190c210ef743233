//! One turn at a time, in the orders that drivers with many sockets report.

use std::convert::Infallible;

use super::*;
use crate::talk::handler::{Answers, Pushed};
use crate::talk::mailbox::{Mail, Message, Recipient};

/// Repeats what it hears; `exit` closes, and `fail` is a fault.
struct Echo;

impl Handler for Echo {
    type Error = &'static str;

    fn greeting(&mut self) -> Result<Option<String>, &'static str> {
        Ok(Some("hi".to_owned()))
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, &'static str> {
        match line {
            "exit" => Ok(Outcome::Close(Some("bye".to_owned()))),
            "fail" => Err("told to"),
            _ => Ok(Outcome::Reply(line.to_owned())),
        }
    }

    fn clock(&self) -> Duration {
        Duration::ZERO
    }
}

fn started() -> Conversation<Echo> {
    let mut conversation = Conversation::new(Framing::Lines, Wire::DEFAULT);
    let turn = conversation.start(|| Ok(Echo));
    assert_eq!(wait(turn), Wait::Send);
    assert_eq!(conversation.output(), b"hi\n");
    assert_eq!(
        wait(conversation.turn(Event::Sent(3))),
        Wait::Receive {
            within: Wire::DEFAULT.idle_time
        }
    );
    conversation
}

fn wait<E: fmt::Debug>(turn: Turn<E>) -> Wait {
    match turn {
        Turn::Wait(wait) => wait,
        Turn::Ended(end) => panic!("{end:?}"),
    }
}

fn end<E>(turn: Turn<E>) -> End<E> {
    match turn {
        Turn::Ended(end) => end,
        Turn::Wait(wait) => panic!("{wait:?}"),
    }
}

fn input(conversation: &mut Conversation<Echo>, bytes: &[u8]) -> Turn<&'static str> {
    conversation.room()[..bytes.len()].copy_from_slice(bytes);
    conversation.turn(Event::Input(bytes.len()))
}

const STALLED: Event = Event::Stalled { taken_bytes: 0 };

#[test]
fn what_a_write_does_not_take_is_kept_and_sent_before_more_is_read() {
    let mut conversation = started();
    assert_eq!(wait(input(&mut conversation, b"ab\ncd\n")), Wait::Send);
    assert_eq!(conversation.output(), b"ab\ncd\n");
    assert_eq!(wait(conversation.turn(Event::Sent(2))), Wait::Send);
    assert_eq!(conversation.output(), b"\ncd\n");
    assert!(matches!(
        wait(conversation.turn(STALLED)),
        Wait::Room { .. }
    ));
    assert_eq!(wait(conversation.resume()), Wait::Send);
    let after = wait(conversation.turn(Event::Sent(4)));
    assert!(matches!(after, Wait::Receive { .. }));
    assert_eq!((conversation.lines, conversation.bytes_out), (2, 9));
}

#[test]
fn a_drain_that_comes_while_replies_are_sent_waits_for_them() {
    let mut conversation = started();
    assert_eq!(wait(input(&mut conversation, b"ab\n")), Wait::Send);
    assert_eq!(wait(conversation.turn(Event::Drain)), Wait::Send);
    assert_eq!(conversation.output(), b"ab\n");
    let end = end(conversation.turn(Event::Sent(3)));
    assert!(matches!(end, End::ShuttingDown));
    assert_eq!(conversation.goodbye(Event::Sent(0)), Some(Wait::Send));
    assert_eq!(conversation.output(), b"error: server is shutting down\n");
    assert_eq!(conversation.goodbye(Event::Sent(31)), None);
    assert!(conversation.is_heard());
}

#[test]
fn a_goodbye_of_the_guest_is_sent_before_it_is_the_end() {
    let mut conversation = started();
    assert_eq!(
        wait(input(&mut conversation, b"exit\nunread\n")),
        Wait::Send
    );
    assert_eq!(conversation.output(), b"bye\n");
    let end = end(conversation.turn(Event::Sent(4)));
    assert!(matches!(end, End::GuestClosed));
    assert_eq!(conversation.goodbye(Event::Sent(0)), None);
    assert_eq!(conversation.pending_bytes(), 7);
}

#[test]
fn a_guest_that_fails_is_gone_before_the_client_has_heard_of_it() {
    let mut conversation = started();
    let end = end(input(&mut conversation, b"ab\nfail\ncd\n"));
    assert!(matches!(end, End::GuestFailed("told to")));
    assert!(conversation.handler.is_none());
    assert_eq!(conversation.goodbye(Event::Sent(0)), Some(Wait::Send));
    assert_eq!(conversation.output(), b"ab\nerror: the guest failed\n");
    assert!(conversation.goodbye(STALLED).is_some());
    let broken = Event::Broken(io::ErrorKind::BrokenPipe.into());
    assert_eq!(conversation.goodbye(broken), None);
    assert!(!conversation.is_heard());
}

#[test]
fn a_fault_outside_the_guest_ends_it_the_same_way() {
    let mut conversation = started();
    assert!(matches!(conversation.fail("a bug"), End::GuestFailed(_)));
    assert_eq!(conversation.goodbye(Event::Sent(0)), Some(Wait::Send));
    assert_eq!(conversation.output(), b"error: the guest failed\n");
}

#[test]
fn the_end_of_input_completes_the_last_line_and_is_the_end_when_it_is_answered() {
    let mut conversation = started();
    let unfinished = wait(input(&mut conversation, b"ab"));
    assert!(matches!(unfinished, Wait::Receive { within } if within <= Wire::DEFAULT.line_time));
    assert_eq!(wait(conversation.turn(Event::Eof)), Wait::Send);
    assert_eq!(conversation.output(), b"ab\n");
    let end = end(conversation.turn(Event::Sent(3)));
    assert!(matches!(end, End::ClientClosed));
}

#[test]
fn silence_decides_for_chunks_once_and_ends_a_conversation_otherwise() {
    let mut conversation = Conversation::new(Framing::Auto, Wire::DEFAULT);
    let turn = conversation.start(|| Ok(Echo));
    assert_eq!(wait(turn), Wait::Send);
    conversation.turn(Event::Sent(3));
    let settling = Wait::Receive {
        within: wire::SETTLE_TIME,
    };
    assert_eq!(wait(input(&mut conversation, b"ab")), settling);
    assert_eq!(wait(conversation.turn(Event::Deadline)), Wait::Send);
    assert_eq!(conversation.output(), b"ab");
    conversation.turn(Event::Sent(2));
    let end = end(conversation.turn(Event::Deadline));
    assert!(matches!(end, End::TimedOut));
}

#[test]
fn a_client_that_takes_nothing_is_let_go_and_told_nothing() {
    let limits = Wire {
        write_time: Duration::ZERO,
        ..Wire::DEFAULT
    };
    let mut conversation = Conversation::new(Framing::Lines, limits);
    assert_eq!(wait(conversation.start(|| Ok(Echo))), Wait::Send);
    let end = end(conversation.turn(STALLED));
    assert!(matches!(end, End::NotReading));
    assert_eq!(conversation.goodbye(Event::Sent(0)), None);
    assert!(!conversation.is_heard());
}

/// Answers a few lines at once, as many bytes as are enough.
struct Verbose;

impl Handler for Verbose {
    type Error = Infallible;

    fn greeting(&mut self) -> Result<Option<String>, Infallible> {
        Ok(None)
    }

    fn handle_line(&mut self, _: &str) -> Result<Outcome, Infallible> {
        Ok(Outcome::NoReply)
    }

    fn handle_lines<'a>(
        &mut self,
        lines: impl FnOnce() -> Option<&'a str>,
        enough: usize,
    ) -> Result<Option<Answers>, Infallible> {
        Ok(lines().map(|_| Answers {
            replies: format!("{}\n", "x".repeat(enough - 1)),
            handled: 1,
            close: false,
        }))
    }

    fn clock(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn large_replies_leave_before_the_next_message_is_answered() {
    let mut conversation = Conversation::new(Framing::Lines, Wire::DEFAULT);
    conversation.start(|| Ok(Verbose));
    conversation.room()[..6].copy_from_slice(b"a\nb\nc\n");
    assert_eq!(wait(conversation.turn(Event::Input(6))), Wait::Send);
    assert_eq!(conversation.output().len(), WRITE_BYTES);
    assert_eq!(conversation.lines, 1);
    assert_eq!(
        wait(conversation.turn(Event::Sent(WRITE_BYTES))),
        Wait::Send
    );
    assert_eq!(conversation.lines, 2);
    let last = wait(conversation.turn(Event::Sent(WRITE_BYTES)));
    assert!(matches!(last, Wait::Receive { .. }));
    assert_eq!(conversation.lines, 3);
}

/// Pushes what it hears, and answers lines.
struct Listener {
    mailbox: Arc<Mailbox>,
}

impl Handler for Listener {
    type Error = &'static str;

    fn greeting(&mut self) -> Result<Option<String>, &'static str> {
        Ok(None)
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, &'static str> {
        Ok(Outcome::Reply(line.to_owned()))
    }

    fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        Some(&self.mailbox)
    }

    fn hear<'m>(&mut self, mail: &'m Mail) -> Result<Pushed<'m>, &'static str> {
        let bodies = mail.messages.iter().map(|message| &*message.body);
        let lines = bodies.map(String::from_utf8_lossy);
        let lines: Vec<_> = lines.collect();
        if lines.iter().any(|line| line == "fail") {
            return Err("told to");
        }
        let close = lines.iter().any(|line| line == "close");
        Ok(Pushed { lines, close })
    }

    fn clock(&self) -> Duration {
        Duration::ZERO
    }
}

fn put(mailbox: &Mailbox, body: &str) {
    let message = Arc::new(Message {
        topic: "t".into(),
        body: body.into(),
        publisher: None,
        _claim: None,
    });
    mailbox.put(&message, Recipient::Guest);
}

fn listening() -> (Conversation<Listener>, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::new(1));
    let mut conversation = Conversation::new(Framing::Lines, Wire::DEFAULT);
    let handler = Listener {
        mailbox: Arc::clone(&mailbox),
    };
    let turn = conversation.start(|| Ok(handler));
    assert!(matches!(wait(turn), Wait::Receive { .. }));
    (conversation, mailbox)
}

/// What is sent in one piece, and what comes after that.
fn sent(conversation: &mut Conversation<Listener>) -> (String, Turn<&'static str>) {
    let output = String::from_utf8(conversation.output().to_vec()).expect("text");
    let turn = conversation.turn(Event::Sent(output.len()));
    (output, turn)
}

#[test]
fn what_is_heard_leaves_in_one_write() {
    let (mut conversation, mailbox) = listening();
    put(&mailbox, "a");
    put(&mailbox, "b");
    assert_eq!(wait(conversation.turn(Event::Mail)), Wait::Send);
    let (output, turn) = sent(&mut conversation);
    assert_eq!(output, "a\nb\n");
    assert!(matches!(wait(turn), Wait::Receive { .. }));
    // There may have been nothing.
    assert!(matches!(
        wait(conversation.turn(Event::Mail)),
        Wait::Receive { .. }
    ));
    put(&mailbox, "close");
    put(&mailbox, "never heard");
    assert_eq!(wait(conversation.turn(Event::Mail)), Wait::Send);
    let (output, turn) = sent(&mut conversation);
    assert_eq!(output, "close\nnever heard\n");
    assert!(matches!(end(turn), End::GuestClosed));
}

#[test]
fn a_guest_that_fails_over_a_message_has_failed() {
    let (mut conversation, mailbox) = listening();
    put(&mailbox, "fail");
    let turn = conversation.turn(Event::Mail);
    assert!(matches!(end(turn), End::GuestFailed("told to")));
    assert!(conversation.mailbox().is_none());
}

#[test]
fn a_busy_client_and_busy_topics_take_turns() {
    let (mut conversation, mailbox) = listening();
    // Each is answered by itself, since it fills what leaves in one write.
    let line = format!("{}\n", "x".repeat(WRITE_BYTES - 1));
    let mut received = 0;
    let mut order = String::new();
    let mut turn = Turn::Wait(Wait::Receive {
        within: Duration::ZERO,
    });
    while order.len() < 12 {
        put(&mailbox, "m");
        turn = match wait(turn) {
            // As a driver does: the client first.
            Wait::Receive { .. } => {
                let room = conversation.room();
                let count = room.len().min(line.len() - received % line.len());
                room[..count].copy_from_slice(&line.as_bytes()[received % line.len()..][..count]);
                received += count;
                conversation.turn(Event::Input(count))
            }
            Wait::Send => {
                let (output, turn) = sent(&mut conversation);
                order.push(if output.starts_with('m') { 'm' } else { 'x' });
                turn
            }
            _ => conversation.resume(),
        };
    }
    // A line may take several reads, and messages have their turn after each.
    assert!(
        !order.contains("xx") && order.matches('x').count() > 1,
        "{order}"
    );
}
