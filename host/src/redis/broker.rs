//! Messages through a Redis: over two connections, one to publish and one that is subscribed to channels,
//! with one thread for both. Nobody else touches a socket.
//!
//! A message is sent once at most. One that is lost is not said to be: with a connection, everything may
//! have been lost, and then the inbox is told so when all works again.

mod link;
mod shared;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::process::waiting;
use crate::redis::address::Target;
pub(crate) use crate::redis::broker::link::Inbox;
use crate::redis::broker::link::Pair;
use crate::redis::broker::shared::Shared;
use crate::redis::connection::Failure;

/// Whoever publishes and subscribes at one Redis, until it is dropped.
pub(crate) struct Broker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Connects, to see that all is right. `name` is what the log calls the Redis.
    ///
    /// # Errors
    /// In words: the server is not there, or does not let us in; or the process is out of threads or
    /// descriptors.
    pub(crate) fn start(
        name: String,
        target: Target,
        inbox: Arc<dyn Inbox>,
    ) -> Result<Broker, String> {
        let pair = Pair::open(&target).map_err(|failure| failure.to_string())?;
        let shared = Shared::new(name, target).map_err(|error| error.to_string())?;
        let shared = Arc::new(shared);
        let linked = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("broker".to_owned())
            .spawn(move || link::keep(&linked, &*inbox, pair))
            .map_err(|error| error.to_string())?;
        Ok(Broker {
            shared,
            thread: Some(thread),
        })
    }

    /// Has what is published on the channel from now on delivered. Waits until that is certain, so
    /// nothing is missed of what is published after this has returned. Each that succeeds is to be
    /// followed by one [`Broker::unsubscribe`], and the channel is left with the last of these.
    ///
    /// # Errors
    /// It is not subscribed: the Redis is gone, refuses, or does not confirm it in time.
    pub(crate) fn subscribe(&self, channel: &[u8], until: Instant) -> Result<(), Failure> {
        if self.shared.hold(channel)? {
            return Ok(());
        }
        waiting::begins();
        let confirmed = self.shared.wait_for(channel, until);
        if confirmed.is_err() {
            self.shared.release(channel);
        }
        confirmed
    }

    /// Takes one subscription back, without waiting. What was published before may still be delivered.
    pub(crate) fn unsubscribe(&self, channel: &[u8]) {
        self.shared.release(channel);
    }

    /// Has this sent to all who are subscribed to the channel, after all that was published before,
    /// without waiting.
    ///
    /// # Errors
    /// It is not sent: the Redis is gone, or too much waits for it.
    pub(crate) fn publish(&self, channel: &[u8], body: &[u8]) -> Result<(), Failure> {
        self.shared.publish(channel, body)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.shared.end();
        // What it delivers to may be dropped by it last.
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|one| one.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}
