//! Who has subscribed to which topics, of all connections of a service, and of all services that have
//! their topics in common.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use slab::Slab;

use crate::budget::{Budget, Claim};
use crate::limits::process::QUEUED_MESSAGE_BYTES;
use crate::talk::mailbox::{Mailbox, Message, Recipient};
use crate::topics::hub::{Hub, Local};

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    /// No topics were granted, or the guest cannot hear.
    AccessDenied,
    /// It would be more than there may be, of this.
    Limit(&'static str),
    /// What brings messages around cannot be reached.
    Unavailable,
}

/// Brings what is published to whoever has subscribed to it.
pub struct Exchange {
    topics: Mutex<HashMap<Arc<str>, Known>>,
    queued: Arc<Budget>,
    /// Through which all messages go, and its name there, if it is one of several processes.
    hub: Option<(Arc<Hub>, String)>,
}

/// Bytes of messages that may wait in this process. Clones are of the same.
#[derive(Debug, Clone)]
pub struct Queued(Arc<Budget>);

impl Default for Queued {
    fn default() -> Queued {
        Queued(Budget::new(QUEUED_MESSAGE_BYTES))
    }
}

/// A topic that somebody has subscribed to, or is about to.
#[derive(Debug)]
struct Known {
    topic: Arc<Topic>,
    subscriptions: usize,
}

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    /// Held while a message is put into all their mailboxes, so that all see one order.
    subscribers: Mutex<Slab<Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    mailbox: Arc<Mailbox>,
    recipient: Recipient,
}

/// One subscriber of one topic, until it is given back to [`Exchange::unsubscribe`].
#[derive(Debug)]
pub(super) struct Subscription {
    topic: Arc<Topic>,
    place: usize,
}

impl Exchange {
    /// Nobody has subscribed to anything.
    pub fn new(queued: &Queued) -> Arc<Exchange> {
        Arc::new(Exchange {
            topics: Mutex::default(),
            queued: Arc::clone(&queued.0),
            hub: None,
        })
    }

    /// The same, and what is published is heard by all processes that have one of this name there.
    pub fn through(hub: &Arc<Hub>, name: &str, queued: &Queued) -> Arc<Exchange> {
        let exchange = Arc::new(Exchange {
            topics: Mutex::default(),
            queued: Arc::clone(&queued.0),
            hub: Some((Arc::clone(hub), name.to_owned())),
        });
        let local: Weak<Exchange> = Arc::downgrade(&exchange);
        hub.join(name, local);
        exchange
    }

    /// Has a mailbox get what is published from when this returns; what has to be waited for takes until
    /// a given time at most.
    pub(super) fn subscribe(
        &self,
        name: &str,
        mailbox: &Arc<Mailbox>,
        recipient: Recipient,
        until: Instant,
    ) -> Result<Subscription, Error> {
        let mailbox = Arc::clone(mailbox);
        let subscription = self.subscribe_here(name, Subscriber { mailbox, recipient });
        if let Some((hub, own_name)) = &self.hub
            && hub.subscribe(own_name, name, until).is_err()
        {
            self.unsubscribe_here(subscription);
            return Err(Error::Unavailable);
        }
        Ok(subscription)
    }

    pub(super) fn unsubscribe(&self, subscription: Subscription) {
        if let Some((hub, own_name)) = &self.hub {
            hub.unsubscribe(own_name, &subscription.topic.name);
        }
        self.unsubscribe_here(subscription);
    }

    fn subscribe_here(&self, name: &str, subscriber: Subscriber) -> Subscription {
        let topic = {
            let mut topics = lock(&self.topics);
            match topics.get_mut(name) {
                Some(known) => {
                    known.subscriptions += 1;
                    Arc::clone(&known.topic)
                }
                None => {
                    let topic = Arc::new(Topic {
                        name: name.into(),
                        subscribers: Mutex::default(),
                    });
                    let known = Known {
                        topic: Arc::clone(&topic),
                        subscriptions: 1,
                    };
                    topics.insert(Arc::clone(&topic.name), known);
                    topic
                }
            }
        };
        // Not before the topics are let go: whoever publishes to this one may take a while.
        let place = lock(&topic.subscribers).insert(subscriber);
        Subscription { topic, place }
    }

    fn unsubscribe_here(&self, Subscription { topic, place }: Subscription) {
        lock(&topic.subscribers).remove(place);
        let mut topics = lock(&self.topics);
        if let Some(known) = topics.get_mut(&topic.name) {
            known.subscriptions -= 1;
            if known.subscriptions == 0 {
                topics.remove(&topic.name);
            }
        }
    }

    /// Has all get a message that have subscribed.
    pub(super) fn publish(&self, name: &str, body: Vec<u8>, publisher: u64) -> Result<(), Error> {
        match &self.hub {
            Some((hub, own_name)) => hub
                .publish(own_name, name, &body)
                .map_err(|_| Error::Unavailable),
            None => self.put(name, body, Some(publisher)),
        }
    }

    /// Puts a message into the mailboxes of all that have subscribed here.
    fn put(&self, name: &str, body: Vec<u8>, publisher: Option<u64>) -> Result<(), Error> {
        let Some(topic) = self.topic(name) else {
            return Ok(());
        };
        let mut claim = Claim::none(&self.queued);
        if !claim.cover(body.len() as u64) {
            return Err(Error::Limit("queued bytes"));
        }
        let message = Arc::new(Message {
            topic: Arc::clone(&topic.name),
            body,
            publisher,
            _claim: Some(claim),
        });
        for (_, subscriber) in &*lock(&topic.subscribers) {
            subscriber.mailbox.put(&message, subscriber.recipient);
        }
        Ok(())
    }

    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = lock(&self.topics);
        topics.get(name).map(|known| Arc::clone(&known.topic))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.topics).is_empty()
    }

    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> u64 {
        QUEUED_MESSAGE_BYTES - self.queued.bytes_left()
    }

    /// Publishes for somebody who is no connection: a conversation that is played.
    pub fn publish_from_outside(&self, topic: &str, body: &[u8]) {
        // Nothing waits that would leave no room for one more.
        let _ = self.put(topic, body.to_vec(), None);
    }
}

impl Local for Exchange {
    fn deliver(&self, topic: &str, body: Vec<u8>) {
        if self.put(topic, body, None).is_err()
            && let Some(topic) = self.topic(topic)
        {
            topic.miss();
        }
    }

    fn miss(&self) {
        let topics = lock(&self.topics);
        let topics: Vec<_> = topics
            .values()
            .map(|known| Arc::clone(&known.topic))
            .collect();
        topics.iter().for_each(|topic| topic.miss());
    }
}

impl Subscription {
    /// Of messages that are published from now on.
    pub(super) fn change(&self, recipient: Recipient) {
        if let Some(subscriber) = lock(&self.topic.subscribers).get_mut(self.place) {
            subscriber.recipient = recipient;
        }
    }
}

impl Topic {
    /// All that have subscribed are told that they have missed something.
    fn miss(&self) {
        for (_, subscriber) in &*lock(&self.subscribers) {
            subscriber.mailbox.miss();
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

/// A panic while one of these is held leaves nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
