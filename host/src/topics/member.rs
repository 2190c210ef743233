//! One connection among those that hear each other: its subscriptions, and what it may publish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::limits::guest::{
    BODY_BYTES, CALL_PUBLISHES, PUBLISH_BURST, PUBLISHES_PER_SECOND, SUBSCRIPTIONS, TOPIC_BYTES,
};
use crate::rate::Rate;
use crate::talk::mailbox::{Mailbox, Recipient};
use crate::topics::exchange::{Error, Exchange, Subscription};

/// What one connection has of an exchange, until it is dropped.
pub(crate) struct Member {
    /// Nothing, if no topics were granted.
    exchange: Option<Arc<Exchange>>,
    /// The number of the connection.
    number: u64,
    /// Whether its guest can be told anything.
    hears: bool,
    /// From its first subscription on.
    mailbox: Option<Arc<Mailbox>>,
    subscriptions: BTreeMap<String, Subscription>,
    rate: Option<Rate>,
    /// What the call in progress has published.
    published: u32,
}

impl Member {
    /// The connection of this number. `hears`: its guest can be told what others publish.
    pub(crate) fn new(exchange: Option<Arc<Exchange>>, number: u64, hears: bool) -> Member {
        Member {
            exchange,
            number,
            hears,
            mailbox: None,
            subscriptions: BTreeMap::new(),
            rate: None,
            published: 0,
        }
    }

    /// Another call has begun.
    pub(crate) fn start_call(&mut self) {
        self.published = 0;
    }

    /// Where messages wait for it, once it has subscribed to something.
    pub(crate) fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.mailbox.as_ref()
    }

    /// Has its guest or its client hear what is published from when this returns, which waits until a
    /// given time at most.
    pub(crate) fn subscribe(
        &mut self,
        topic: &str,
        recipient: Recipient,
        until: Instant,
    ) -> Result<(), Error> {
        let can_hear = self.hears || recipient == Recipient::Client;
        let exchange = self.exchange.as_ref().filter(|_| can_hear);
        let exchange = exchange.ok_or(Error::AccessDenied)?;
        check_name(topic)?;
        if let Some(subscription) = self.subscriptions.get(topic) {
            subscription.change(recipient);
            return Ok(());
        }
        if self.subscriptions.len() == SUBSCRIPTIONS {
            return Err(Error::Limit("subscriptions"));
        }
        let new = || Arc::new(Mailbox::new(self.number));
        let mailbox = self.mailbox.get_or_insert_with(new);
        let subscription = exchange.subscribe(topic, mailbox, recipient, until)?;
        self.subscriptions.insert(topic.to_owned(), subscription);
        Ok(())
    }

    /// Has it hear no more of that.
    pub(crate) fn unsubscribe(&mut self, topic: &str) -> Result<(), Error> {
        let exchange = self.exchange.as_ref().ok_or(Error::AccessDenied)?;
        if let Some(subscription) = self.subscriptions.remove(topic) {
            exchange.unsubscribe(subscription);
        }
        Ok(())
    }

    /// Has all hear it that have subscribed.
    pub(crate) fn publish(&mut self, topic: &str, body: Vec<u8>) -> Result<(), Error> {
        let exchange = self.exchange.as_ref().ok_or(Error::AccessDenied)?;
        check_name(topic)?;
        if body.len() > BODY_BYTES {
            return Err(Error::Limit("body bytes"));
        }
        if self.published == CALL_PUBLISHES {
            return Err(Error::Limit("publishes of a call"));
        }
        let rate = self
            .rate
            .get_or_insert_with(|| Rate::new(PUBLISH_BURST, PUBLISHES_PER_SECOND));
        if !rate.take(Instant::now()) {
            return Err(Error::Limit("publishes per second"));
        }
        exchange.publish(topic, body, self.number)?;
        self.published += 1;
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(exchange) = &self.exchange {
            for (_, subscription) in std::mem::take(&mut self.subscriptions) {
                exchange.unsubscribe(subscription);
            }
        }
    }
}

fn check_name(topic: &str) -> Result<(), Error> {
    match topic.len() {
        1..=TOPIC_BYTES => Ok(()),
        _ => Err(Error::Limit("topic bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::process::QUEUED_MESSAGE_BYTES;
    use crate::topics::exchange::Queued;

    fn member(exchange: &Arc<Exchange>, number: u64) -> Member {
        Member::new(Some(Arc::clone(exchange)), number, true)
    }

    fn subscribe(member: &mut Member, topic: &str) -> Result<(), Error> {
        member.subscribe(topic, Recipient::Guest, Instant::now())
    }

    fn heard(member: &Member) -> Vec<(String, Vec<u8>)> {
        let mailbox = member.mailbox().expect("it has subscribed");
        let mut heard = Vec::new();
        while mailbox.has_mail() {
            let mail = mailbox.take();
            assert!(!mail.missed);
            let messages = mail.messages.iter();
            heard.extend(messages.map(|one| (one.topic.to_string(), one.body.clone())));
        }
        heard
    }

    fn said(topic: &str, body: &[u8]) -> (String, Vec<u8>) {
        (topic.to_owned(), body.to_vec())
    }

    #[test]
    fn all_that_have_subscribed_hear_what_is_published_from_then_on() {
        let exchange = Exchange::new(&Queued::default());
        let (mut ada, mut bob) = (member(&exchange, 1), member(&exchange, 2));
        assert_eq!(ada.publish("a", b"nobody".to_vec()), Ok(()));
        for topic in ["a", "a", "b"] {
            assert_eq!(subscribe(&mut ada, topic), Ok(()));
        }
        assert_eq!(subscribe(&mut bob, "a"), Ok(()));
        assert_eq!(ada.publish("a", b"1".to_vec()), Ok(()));
        assert_eq!(bob.publish("b", b"2".to_vec()), Ok(()));
        assert_eq!(ada.unsubscribe("a"), Ok(()));
        assert_eq!(bob.publish("a", b"3".to_vec()), Ok(()));
        assert_eq!(heard(&ada), [said("a", b"1"), said("b", b"2")]);
        assert_eq!(heard(&bob), [said("a", b"1"), said("a", b"3")]);
    }

    #[test]
    fn the_recipient_is_the_one_that_was_named_last() {
        let exchange = Exchange::new(&Queued::default());
        let mut ada = Member::new(Some(exchange), 1, false);
        let relay = |ada: &mut Member, recipient| ada.subscribe("a", recipient, Instant::now());
        assert_eq!(relay(&mut ada, Recipient::Guest), Err(Error::AccessDenied));
        assert_eq!(relay(&mut ada, Recipient::Client), Ok(()));
        ada.hears = true;
        for recipient in [Recipient::Client, Recipient::Guest, Recipient::Client] {
            assert_eq!(relay(&mut ada, recipient), Ok(()));
            assert_eq!(ada.publish("a", b"1".to_vec()), Ok(()));
            let mail = ada.mailbox().expect("it has subscribed").take();
            assert_eq!((mail.messages.len(), mail.recipient), (1, recipient));
        }
    }

    #[test]
    fn whoever_is_dropped_leaves_nothing_behind() {
        let exchange = Exchange::new(&Queued::default());
        let mut ada = member(&exchange, 1);
        let mut bob = member(&exchange, 2);
        assert_eq!(subscribe(&mut ada, "a"), Ok(()));
        assert_eq!(subscribe(&mut bob, "a"), Ok(()));
        let mailbox = Arc::downgrade(ada.mailbox().expect("it has subscribed"));
        assert_eq!(bob.publish("a", vec![0; BODY_BYTES]), Ok(()));
        drop(ada);
        assert!(mailbox.upgrade().is_none());
        assert_eq!(heard(&bob).len(), 1);
        assert_eq!(bob.unsubscribe("a"), Ok(()));
        assert!(exchange.is_empty());
        assert_eq!(exchange.queued_bytes(), 0);
    }

    #[test]
    fn everything_has_its_bound() {
        let exchange = Exchange::new(&Queued::default());
        let mut ada = member(&exchange, 1);
        let limit = |what| Err(Error::Limit(what));
        assert_eq!(subscribe(&mut ada, ""), limit("topic bytes"));
        assert_eq!(
            ada.publish(&"x".repeat(256), Vec::new()),
            limit("topic bytes")
        );
        assert_eq!(subscribe(&mut ada, &"x".repeat(255)), Ok(()));
        for number in 1..SUBSCRIPTIONS {
            assert_eq!(subscribe(&mut ada, &number.to_string()), Ok(()));
        }
        assert_eq!(subscribe(&mut ada, "one more"), limit("subscriptions"));
        assert_eq!(subscribe(&mut ada, "1"), Ok(()));
        let large = vec![0; BODY_BYTES + 1];
        assert_eq!(ada.publish("1", large), limit("body bytes"));
        for _ in 0..CALL_PUBLISHES {
            assert_eq!(ada.publish("nobody", Vec::new()), Ok(()));
        }
        assert_eq!(ada.publish("1", Vec::new()), limit("publishes of a call"));
        let more = (0..).find(|_| {
            ada.start_call();
            ada.publish("nobody", Vec::new()).is_err()
        });
        assert!(more >= Some(PUBLISH_BURST as u32 - CALL_PUBLISHES));
        assert_eq!(ada.publish("1", Vec::new()), limit("publishes per second"));
    }

    #[test]
    fn no_more_bytes_wait_than_there_is_room_for() {
        let exchange = Exchange::new(&Queued::default());
        let mut subscribers = Vec::new();
        let refused = (0_u64..).find(|&number| {
            let mut next = member(&exchange, number);
            let topic = number.to_string();
            assert_eq!(subscribe(&mut next, &topic), Ok(()));
            let published = (0..4).try_for_each(|_| next.publish(&topic, vec![0; BODY_BYTES - 8]));
            subscribers.push(next);
            published == Err(Error::Limit("queued bytes"))
        });
        assert!(refused >= Some(QUEUED_MESSAGE_BYTES / (4 * BODY_BYTES as u64)));
        subscribers.clear();
        assert_eq!(exchange.queued_bytes(), 0);
    }

    #[test]
    fn what_was_not_granted_is_denied() {
        let mut nobody = Member::new(None, 1, true);
        assert_eq!(subscribe(&mut nobody, "a"), Err(Error::AccessDenied));
        assert_eq!(nobody.unsubscribe("a"), Err(Error::AccessDenied));
        assert_eq!(nobody.publish("a", Vec::new()), Err(Error::AccessDenied));
        let exchange = Exchange::new(&Queued::default());
        let mut deaf = Member::new(Some(exchange), 1, false);
        assert_eq!(subscribe(&mut deaf, "a"), Err(Error::AccessDenied));
        assert_eq!(deaf.publish("a", Vec::new()), Ok(()));
    }
}
