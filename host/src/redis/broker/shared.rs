//! What those who publish and subscribe share with the thread that has the connections.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::cmd;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::limits::process::{REDIS_PUBLISH_BYTES, REDIS_SUBSCRIBING};
use crate::redis::address::Target;
use crate::redis::connection::Failure;
use crate::redis::pipe::Pipe;

pub(super) struct Shared {
    /// What it is called in the log.
    pub(super) name: String,
    pub(super) target: Target,
    state: Mutex<State>,
    /// A subscription is confirmed or refused, or all is lost.
    answered: Condvar,
    /// Bytes of what the thread has taken to publish, and not sent.
    unsent_bytes: AtomicUsize,
    /// Readable when the thread has something to do.
    wake: OwnedFd,
}

struct State {
    link: Link,
    /// The thread has been woken, and has not looked yet.
    woken: bool,
    /// Commands that publish, and how many.
    publishes: Vec<u8>,
    published: usize,
    /// Those with subscribers.
    channels: HashMap<Arc<[u8]>, Channel>,
    /// Commands that subscribe and unsubscribe, and what each is.
    changes: Vec<u8>,
    changed: Vec<Asked>,
    /// Subscriptions that are not answered.
    subscribing: usize,
    last_ticket: u64,
}

/// What is known of the connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// There are new ones, and not all subscriptions are confirmed yet.
    Returning,
    Down,
    /// They are not needed any more.
    Over,
}

struct Channel {
    subscribers: usize,
    /// Of the last command that subscribed to it: it may have been left and subscribed to again before
    /// the first answer.
    ticket: u64,
    standing: Standing,
}

enum Standing {
    Asked,
    InForce,
    Refused(String),
}

/// A command on the connection that is subscribed.
pub(super) enum Asked {
    Subscribe { channel: Arc<[u8]>, ticket: u64 },
    Unsubscribe,
    Ping,
}

/// What became of a subscription.
pub(super) struct Answer {
    pub(super) channel: Arc<[u8]>,
    pub(super) ticket: u64,
    /// In the server's words, why not.
    pub(super) refused: Option<String>,
}

impl Shared {
    pub(super) fn new(name: String, target: Target) -> io::Result<Shared> {
        Ok(Shared {
            name,
            target,
            state: Mutex::new(State {
                link: Link::Up,
                woken: false,
                publishes: Vec::new(),
                published: 0,
                channels: HashMap::new(),
                changes: Vec::new(),
                changed: Vec::new(),
                subscribing: 0,
                last_ticket: 0,
            }),
            answered: Condvar::new(),
            unsent_bytes: AtomicUsize::new(0),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, channel: &[u8], body: &[u8]) -> Result<(), Failure> {
        let mut publish = cmd("PUBLISH");
        publish.arg(channel).arg(body);
        let packed = publish.get_packed_command();
        let mut state = self.state();
        state.check_up()?;
        let waiting = state.publishes.len() + self.unsent_bytes.load(Ordering::Relaxed);
        if waiting + packed.len() > REDIS_PUBLISH_BYTES {
            return Err(Failure::Busy);
        }
        state.publishes.extend_from_slice(&packed);
        state.published += 1;
        self.wake_up(&mut state);
        Ok(())
    }

    /// Counts one more subscriber, and whether the channel is in force already.
    pub(super) fn hold(&self, channel: &[u8]) -> Result<bool, Failure> {
        let mut state = self.state();
        state.check_up()?;
        if let Some(known) = state.channels.get_mut(channel) {
            known.subscribers += 1;
            return Ok(matches!(known.standing, Standing::InForce));
        }
        if state.subscribing >= REDIS_SUBSCRIBING {
            return Err(Failure::Busy);
        }
        let channel = Arc::from(channel);
        let ticket = state.subscribe(&channel);
        let new = Channel {
            subscribers: 1,
            ticket,
            standing: Standing::Asked,
        };
        state.channels.insert(channel, new);
        self.wake_up(&mut state);
        Ok(false)
    }

    /// Waits until the channel, which is held, is in force.
    pub(super) fn wait_for(&self, channel: &[u8], until: Instant) -> Result<(), Failure> {
        let mut state = self.state();
        loop {
            state.check_up()?;
            match state.channels.get(channel).map(|known| &known.standing) {
                Some(Standing::InForce) => return Ok(()),
                Some(Standing::Refused(words)) => return Err(Failure::Refused(words.clone())),
                Some(Standing::Asked) | None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Timeout);
            }
            let waited = self.answered.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts one subscriber less, and leaves the channel with the last.
    pub(super) fn release(&self, channel: &[u8]) {
        let mut state = self.state();
        let Some(known) = state.channels.get_mut(channel) else {
            return;
        };
        known.subscribers -= 1;
        if known.subscribers > 0 {
            return;
        }
        let is_refused = matches!(known.standing, Standing::Refused(_));
        state.channels.remove(channel);
        if !is_refused && matches!(state.link, Link::Up | Link::Returning) {
            state.ask(cmd("UNSUBSCRIBE").arg(channel), Asked::Unsubscribe);
            self.wake_up(&mut state);
        }
    }

    /// Has the thread end, when what was published before is sent.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.link = Link::Over;
        self.wake_up(&mut state);
    }

    fn wake_up(&self, state: &mut State) {
        if !state.woken {
            state.woken = true;
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn forget_wake(&self, state: &mut State) {
        if std::mem::take(&mut state.woken) {
            let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        }
    }

    // What follows is for the thread.

    /// Readable when there is something to take.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Hands all that is to be sent to the connections.
    pub(super) fn take(&self, publishing: &mut Pipe<()>, subscribed: &mut Pipe<Asked>) -> Link {
        let mut state = self.state();
        let state = &mut *state;
        self.forget_wake(state);
        let published = std::mem::take(&mut state.published);
        publishing.ask(&mut state.publishes, std::iter::repeat_n((), published));
        self.has_sent(publishing);
        subscribed.ask(&mut state.changes, state.changed.drain(..));
        state.link
    }

    /// Whoever publishes may know what is left of it.
    pub(super) fn has_sent(&self, publishing: &Pipe<()>) {
        let unsent_bytes = publishing.unsent_bytes();
        self.unsent_bytes.store(unsent_bytes, Ordering::Relaxed);
    }

    /// What the server says to subscriptions.
    pub(super) fn answer(&self, answers: Vec<Answer>) {
        let mut state = self.state();
        for answer in answers {
            state.subscribing = state.subscribing.saturating_sub(1);
            if let Some(known) = state.channels.get_mut(&answer.channel)
                && known.ticket == answer.ticket
            {
                known.standing = match answer.refused {
                    Some(words) => Standing::Refused(words),
                    None => Standing::InForce,
                };
            }
        }
        drop(state);
        self.answered.notify_all();
    }

    /// The connections are gone, and with them all that was to be sent. Whether they are still needed.
    pub(super) fn lose(&self) -> bool {
        let mut state = self.state();
        self.forget_wake(&mut state);
        if state.link == Link::Over {
            return false;
        }
        state.link = Link::Down;
        state.publishes = Vec::new();
        state.published = 0;
        state.changes = Vec::new();
        state.changed = Vec::new();
        state.subscribing = 0;
        self.unsent_bytes.store(0, Ordering::Relaxed);
        drop(state);
        self.answered.notify_all();
        true
    }

    /// Waits for so long. Whether connections are still needed.
    pub(super) fn rest(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).ok();
        let mut wake = [PollFd::new(&self.wake, PollFlags::IN)];
        let _ = poll(&mut wake, time.as_ref());
        self.state().link != Link::Over
    }

    /// There are new connections: asks for all subscriptions again. Returns for how many, if they are
    /// still needed.
    pub(super) fn begin_again(&self) -> Option<usize> {
        let mut state = self.state();
        if state.link == Link::Over {
            return None;
        }
        state.link = Link::Returning;
        let channels: Vec<_> = state.channels.keys().cloned().collect();
        for channel in &channels {
            let ticket = state.subscribe(channel);
            if let Some(known) = state.channels.get_mut(channel) {
                known.ticket = ticket;
                known.standing = Standing::Asked;
            }
        }
        Some(channels.len())
    }

    /// All subscriptions are in force again.
    pub(super) fn is_back(&self) {
        let mut state = self.state();
        if state.link == Link::Returning {
            state.link = Link::Up;
        }
    }
}

impl State {
    fn check_up(&self) -> Result<(), Failure> {
        match self.link {
            Link::Up => Ok(()),
            Link::Returning | Link::Down | Link::Over => {
                Err(Failure::Unavailable("there is no connection".to_owned()))
            }
        }
    }

    fn subscribe(&mut self, channel: &Arc<[u8]>) -> u64 {
        self.last_ticket += 1;
        self.subscribing += 1;
        let asked = Asked::Subscribe {
            channel: Arc::clone(channel),
            ticket: self.last_ticket,
        };
        self.ask(cmd("SUBSCRIBE").arg(&channel[..]), asked);
        self.last_ticket
    }

    fn ask(&mut self, command: &redis::Cmd, asked: Asked) {
        command.write_packed_command(&mut self.changes);
        self.changed.push(asked);
    }
}
