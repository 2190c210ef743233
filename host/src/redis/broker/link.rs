//! The thread that has the connections, and makes new ones when they are lost.

use std::time::Instant;

use redis::Value;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::limits::process::{REDIS_ANSWERS_PER_TURN, REDIS_PROBE_TIME, REDIS_RETRY_TIME_MAX};
use crate::logging::Recurring;
use crate::redis::address::Target;
use crate::redis::backoff::Backoff;
use crate::redis::broker::shared::{Answer, Asked, Link, Shared};
use crate::redis::connection::{Connection, Failure};
use crate::redis::pipe::Pipe;

/// Where what the Redis delivers goes. It is called by one thread, which has to come back soon.
pub(crate) trait Inbox: Send + Sync {
    /// Somebody has published this, perhaps this process.
    fn deliver(&self, channel: &[u8], body: Vec<u8>);
    /// All works again, and some messages of any channel may have been lost before.
    fn lost(&self);
}

/// Two connections: a Redis accepts nothing but subscriptions on one that is subscribed.
pub(super) struct Pair {
    publishing: Pipe<()>,
    subscribed: Pipe<Asked>,
}

impl Pair {
    pub(super) fn open(target: &Target) -> Result<Pair, Failure> {
        let (publishing, addresses) = Connection::reach(target)?;
        let until = Instant::now() + REDIS_PROBE_TIME;
        let subscribed = Connection::open(target, &addresses, until)?;
        Ok(Pair {
            publishing: Pipe::new(publishing)?,
            subscribed: Pipe::new(subscribed)?,
        })
    }
}

/// Keeps connections until they are not needed any more.
pub(super) fn keep(shared: &Shared, inbox: &dyn Inbox, first: Pair) {
    let mut backoff = Backoff::new();
    let mut turns = Turns::new(shared, inbox, first, None);
    loop {
        let since = Instant::now();
        let Err(failure) = turns.serve() else {
            return;
        };
        if !shared.lose() {
            return;
        }
        let name = &shared.name;
        tracing::warn!("the topics in {name} are unavailable: {failure}");
        // Whom it lets in and drops again at once is not to ask all the time.
        if since.elapsed() > REDIS_RETRY_TIME_MAX {
            backoff = Backoff::new();
        }
        turns = loop {
            if !shared.rest(backoff.pause()) {
                return;
            }
            match Pair::open(&shared.target) {
                Ok(pair) => match shared.begin_again() {
                    Some(asked) => break Turns::new(shared, inbox, pair, Some(asked)),
                    None => return,
                },
                Err(Failure::Refused(words)) => {
                    tracing::error!("the topics in {name} are refused: {words}");
                }
                Err(_) => {}
            }
        };
    }
}

/// One pair of connections, until it is lost.
struct Turns<'a> {
    shared: &'a Shared,
    inbox: &'a dyn Inbox,
    pair: Pair,
    /// If they are not the first: how many subscriptions are to be confirmed until all works again.
    returning: Option<usize>,
    /// When what is left has to be sent.
    ends: Option<Instant>,
    refusals: Recurring,
}

impl<'a> Turns<'a> {
    fn new(
        shared: &'a Shared,
        inbox: &'a dyn Inbox,
        pair: Pair,
        returning: Option<usize>,
    ) -> Turns<'a> {
        Turns {
            shared,
            inbox,
            pair,
            returning,
            ends: None,
            refusals: Recurring::new(),
        }
    }

    /// Until it is lost, which is an error, or not needed any more.
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            let now = Instant::now();
            let Pair {
                publishing,
                subscribed,
            } = &mut self.pair;
            let link = self.shared.take(publishing, subscribed);
            if link == Link::Over {
                let ends = *self.ends.get_or_insert(now + REDIS_PROBE_TIME);
                // Until it is answered it may not have been read, and a close would take it back.
                if publishing.is_quiet() || ends <= now {
                    return Ok(());
                }
            }
            let more_answers = self.hear_answers()?;
            let more_messages = self.hear_messages()?;
            if self.returning == Some(0) {
                self.is_back();
            }
            let Pair {
                publishing,
                subscribed,
            } = &mut self.pair;
            if publishing.is_overdue(now) || subscribed.is_overdue(now) {
                return Err(Failure::Timeout);
            }
            publishing.ask_if_quiet(now, ());
            subscribed.ask_if_quiet(now, Asked::Ping);
            publishing.send()?;
            subscribed.send()?;
            self.shared.has_sent(publishing);
            if !more_answers && !more_messages {
                self.wait()?;
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<(), Failure> {
        let Pair {
            publishing,
            subscribed,
        } = &self.pair;
        let mut due = publishing.due().min(subscribed.due());
        due = self.ends.map_or(due, |ends| ends.min(due));
        let wake = self.shared.wake();
        let mut waits = [
            PollFd::new(&wake, PollFlags::IN),
            PollFd::new(publishing, publishing.events()),
            PollFd::new(subscribed, subscribed.events()),
        ];
        let time = due.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(time).ok();
        match poll(&mut waits, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Failure::Unavailable(error.to_string())),
        }
    }

    /// Hears what the server says to what was published. Whether there may be more.
    fn hear_answers(&mut self) -> Result<bool, Failure> {
        for _ in 0..REDIS_ANSWERS_PER_TURN {
            let Some(answer) = self.pair.publishing.receive()? else {
                return Ok(false);
            };
            if self.pair.publishing.answered().is_none() {
                return Err(misunderstood());
            }
            if let Value::ServerError(error) = answer
                && let Some(times) = self.refusals.again()
            {
                let name = &self.shared.name;
                let refused = Failure::from(error);
                tracing::error!(times, "{name} refuses what is published: {refused}");
            }
        }
        Ok(true)
    }

    /// Hears messages, and what the server says to subscriptions. Whether there may be more.
    fn hear_messages(&mut self) -> Result<bool, Failure> {
        let mut answers = Vec::new();
        let mut more = true;
        for _ in 0..REDIS_ANSWERS_PER_TURN {
            let Some(said) = self.pair.subscribed.receive()? else {
                more = false;
                break;
            };
            if let Some(answer) = self.hear(said)? {
                answers.push(answer);
            }
        }
        if !answers.is_empty() {
            if let Some(asked) = &mut self.returning {
                *asked = asked.saturating_sub(answers.len());
            }
            self.shared.answer(answers);
        }
        Ok(more)
    }

    /// Hands a message over. What is said to a subscription is returned.
    fn hear(&mut self, said: Value) -> Result<Option<Answer>, Failure> {
        match said {
            Value::Array(parts) => match <[Value; 3]>::try_from(parts) {
                Ok([Value::BulkString(kind), Value::BulkString(channel), last]) => {
                    match (&kind[..], last) {
                        (b"message", Value::BulkString(body)) => {
                            // Those of the time before are missed as well, in whatever order.
                            if self.returning.is_none() {
                                self.inbox.deliver(&channel, body);
                            }
                            Ok(None)
                        }
                        (b"subscribe" | b"unsubscribe", _) => self.answered(None),
                        _ => Err(misunderstood()),
                    }
                }
                Ok(_) => Err(misunderstood()),
                // `pong`, as it is said to whoever is subscribed.
                Err(_) => self.answered(None),
            },
            Value::SimpleString(_) => self.answered(None),
            Value::ServerError(error) => self.answered(Some(error.into())),
            _ => Err(misunderstood()),
        }
    }

    fn answered(&mut self, refused: Option<Failure>) -> Result<Option<Answer>, Failure> {
        match (self.pair.subscribed.answered(), refused) {
            (Some(Asked::Subscribe { channel, ticket }), refused) => match refused {
                // It was in force before: without it, not all would work.
                Some(refused) if self.returning.is_some() => Err(refused),
                refused => Ok(Some(Answer {
                    channel,
                    ticket,
                    refused: refused.map(|refused| refused.to_string()),
                })),
            },
            (Some(Asked::Unsubscribe | Asked::Ping), None) => Ok(None),
            (Some(_), Some(refused)) => Err(refused),
            (None, _) => Err(misunderstood()),
        }
    }

    fn is_back(&mut self) {
        self.returning = None;
        self.shared.is_back();
        self.inbox.lost();
        let name = &self.shared.name;
        tracing::info!("the topics in {name} are available again");
    }
}

fn misunderstood() -> Failure {
    Failure::Unavailable("it says what it was not asked for".to_owned())
}
