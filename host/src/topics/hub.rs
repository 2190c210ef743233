//! Topics of several processes, through a Redis: each exchange has a name there, and a topic is the channel
//! `airlock:NAME:TOPIC`. What is published goes there and comes back from there, to whoever has published
//! it too; so all hear one order.

use std::collections::HashMap;
use std::str;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::limits::guest::{BODY_BYTES, TOPIC_BYTES};
use crate::redis::address::{RedisAddress, Target};
use crate::redis::broker::{Broker, Inbox};
use crate::redis::connection::Failure;

/// What all channels begin with, so that others may use the same server.
const NAMESPACE: &str = "airlock:";

/// Where messages come to that were published anywhere.
pub(super) trait Local: Send + Sync {
    /// To whoever has subscribed here.
    fn deliver(&self, topic: &str, body: Vec<u8>);
    /// Some may have been lost, of any topic.
    fn miss(&self);
}

/// The connections of this process to one Redis, for all exchanges that are there.
pub struct Hub {
    broker: Broker,
    exchanges: Arc<Exchanges>,
}

/// By their names.
#[derive(Default)]
struct Exchanges(Mutex<HashMap<String, Weak<dyn Local>>>);

impl Hub {
    /// Connects, to see that all is right.
    ///
    /// # Errors
    /// In words: a file is wrong, the server is not there, or does not let us in.
    pub fn open(address: &RedisAddress) -> Result<Arc<Hub>, String> {
        let exchanges = Arc::<Exchanges>::default();
        let inbox = Arc::clone(&exchanges);
        let broker = Broker::start(address.url.to_string(), Target::new(address)?, inbox)?;
        Ok(Arc::new(Hub { broker, exchanges }))
    }

    /// Has the exchange of this name get its messages.
    pub(super) fn join(&self, name: &str, exchange: Weak<dyn Local>) {
        let mut exchanges = self.exchanges.lock();
        exchanges.retain(|_, known| known.strong_count() > 0);
        exchanges.insert(name.to_owned(), exchange);
    }

    /// Has it get those of this topic, from when this returns. Waits for that until a given time. Each that
    /// succeeds is followed by one [`Hub::unsubscribe`].
    pub(super) fn subscribe(&self, name: &str, topic: &str, until: Instant) -> Result<(), Failure> {
        self.broker.subscribe(&channel(name, topic), until)
    }

    pub(super) fn unsubscribe(&self, name: &str, topic: &str) {
        self.broker.unsubscribe(&channel(name, topic));
    }

    /// Waits for nothing.
    pub(super) fn publish(&self, name: &str, topic: &str, body: &[u8]) -> Result<(), Failure> {
        self.broker.publish(&channel(name, topic), body)
    }
}

fn channel(name: &str, topic: &str) -> Vec<u8> {
    [NAMESPACE, name, ":", topic].concat().into_bytes()
}

impl Exchanges {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<dyn Local>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for Exchanges {
    /// What other programs publish that is none of ours is not delivered.
    fn deliver(&self, channel: &[u8], body: Vec<u8>) {
        let names = str::from_utf8(channel).ok();
        let names = names.and_then(|channel| channel.strip_prefix(NAMESPACE)?.split_once(':'));
        let Some((name, topic)) = names else {
            return;
        };
        if topic.len() > TOPIC_BYTES || body.len() > BODY_BYTES {
            return;
        }
        let exchange = self.lock().get(name).and_then(Weak::upgrade);
        if let Some(exchange) = exchange {
            exchange.deliver(topic, body);
        }
    }

    fn lost(&self) {
        let exchanges: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        for exchange in exchanges {
            exchange.miss();
        }
    }
}
