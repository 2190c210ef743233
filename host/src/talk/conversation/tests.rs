//! One turn at a time, in the orders that drivers with many sockets report.

use std::convert::Infallible;

use super::*;
use crate::talk::handler::Answers;

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

const STALLED: Event = Event::Stalled {
    unacknowledged_bytes: 0,
};

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
