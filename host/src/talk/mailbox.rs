//! What others have published and a conversation has not heard yet.
//!
//! Whoever publishes never waits for whoever hears: a mailbox that is full loses its oldest message,
//! and says so to the one that it belongs to.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::budget::Claim;
use crate::limits::guest::{HEARD_BYTES, HEARD_MESSAGES, MAILBOX_BYTES, MAILBOX_MESSAGES};

/// What somebody has published: once, however many mailboxes it is in.
#[derive(Debug)]
pub struct Message {
    /// What it is about.
    pub topic: Arc<str>,
    /// What it says.
    pub body: Vec<u8>,
    /// The number of the connection that published it, if that is one of this process.
    pub publisher: Option<u64>,
    /// Of the bytes that may wait in this process.
    pub(crate) _claim: Option<Claim>,
}

/// Who gets the messages of a topic, of a connection that has subscribed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Recipient {
    /// The guest, which says what its client gets.
    #[default]
    Guest,
    /// The client, as they are.
    Client,
}

/// What is taken from a mailbox at once.
#[derive(Debug, Default)]
pub struct Mail {
    /// The oldest first.
    pub messages: Vec<Arc<Message>>,
    /// Who gets all of them.
    pub recipient: Recipient,
    /// Whether some before these were lost.
    pub missed: bool,
    /// The number of the connection that hears them.
    pub hearer: u64,
}

/// The messages that wait for one conversation. One takes them, and many put them in.
pub struct Mailbox {
    /// The number of its connection.
    hearer: u64,
    waiting: Mutex<Waiting>,
    /// Something is to be heard, and whoever hears has been told or is going to look.
    has_mail: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<(Arc<Message>, Recipient)>,
    bytes: usize,
    missed: bool,
}

impl Mailbox {
    /// An empty one of the connection of this number.
    pub fn new(hearer: u64) -> Mailbox {
        Mailbox {
            hearer,
            waiting: Mutex::default(),
            has_mail: AtomicBool::new(false),
            bell: OnceLock::new(),
        }
    }

    /// Whether something is to be heard.
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    /// Takes what fits into one call, for one recipient.
    pub fn take(&self) -> Mail {
        let mut waiting = self.waiting();
        let recipient = waiting.messages.front().map(|(_, recipient)| *recipient);
        let recipient = recipient.unwrap_or_default();
        let mut bytes = 0;
        let fitting = waiting.messages.iter().take(HEARD_MESSAGES);
        let fitting = fitting.take_while(|(message, own_recipient)| {
            bytes += message.body.len();
            bytes <= HEARD_BYTES && *own_recipient == recipient
        });
        let count = fitting.count().max(1).min(waiting.messages.len());
        let messages = waiting.messages.drain(..count);
        let messages: Vec<_> = messages.map(|(message, _)| message).collect();
        let taken: usize = messages.iter().map(|message| message.bytes()).sum();
        waiting.bytes -= taken;
        let missed = mem::take(&mut waiting.missed);
        if waiting.messages.is_empty() {
            self.has_mail.store(false, Ordering::Release);
        }
        Mail {
            messages,
            recipient,
            missed,
            hearer: self.hearer,
        }
    }

    /// Has `bell` called whenever there is something to be heard and there was nothing before, by
    /// whoever publishes it: it must not wait. Only the first one is taken. What came before has to be
    /// looked for with [`Mailbox::has_mail`].
    pub(crate) fn ring(&self, bell: impl Fn() + Send + Sync + 'static) {
        let _ = self.bell.set(Box::new(bell));
    }

    /// Whether it has a bell.
    pub(crate) fn has_bell(&self) -> bool {
        self.bell.get().is_some()
    }

    /// Puts a message in, which is small enough.
    pub(crate) fn put(&self, message: &Arc<Message>, recipient: Recipient) {
        let mut waiting = self.waiting();
        while waiting.messages.len() == MAILBOX_MESSAGES
            || waiting.bytes + message.bytes() > MAILBOX_BYTES
        {
            let Some((oldest, _)) = waiting.messages.pop_front() else {
                break;
            };
            waiting.bytes -= oldest.bytes();
            waiting.missed = true;
        }
        waiting.bytes += message.bytes();
        let letter = (Arc::clone(message), recipient);
        waiting.messages.push_back(letter);
        self.tell(waiting);
    }

    /// A message was lost before it came here.
    pub(crate) fn miss(&self) {
        let mut waiting = self.waiting();
        waiting.missed = true;
        self.tell(waiting);
    }

    fn tell(&self, waiting: MutexGuard<'_, Waiting>) {
        let knows = self.has_mail.swap(true, Ordering::AcqRel);
        drop(waiting);
        if !knows && let Some(bell) = self.bell.get() {
            bell();
        }
    }

    /// A panic while it is held leaves nothing half done that matters.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mail {
    /// Those that others than the one who hears them have published.
    pub(crate) fn of_others(&self) -> impl Iterator<Item = &Message> {
        let hearer = self.hearer;
        let messages = self.messages.iter().map(|message| &**message);
        messages.filter(move |message| message.publisher != Some(hearer))
    }
}

impl Message {
    /// What it counts.
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn message(body: &[u8]) -> Arc<Message> {
        Arc::new(Message {
            topic: "t".into(),
            body: body.to_vec(),
            publisher: None,
            _claim: None,
        })
    }

    fn put(mailbox: &Mailbox, body: &[u8]) {
        mailbox.put(&message(body), Recipient::Guest);
    }

    fn bodies(mail: &Mail) -> Vec<&[u8]> {
        mail.messages.iter().map(|one| &*one.body).collect()
    }

    #[test]
    fn messages_come_in_their_order_and_in_portions() {
        let mailbox = Mailbox::new(1);
        for number in 0..=HEARD_MESSAGES as u8 {
            put(&mailbox, &[number]);
        }
        let first = mailbox.take();
        assert_eq!(
            (first.messages.len(), first.missed),
            (HEARD_MESSAGES, false)
        );
        assert_eq!(bodies(&first)[1], [1]);
        assert!(mailbox.has_mail());
        assert_eq!(bodies(&mailbox.take()), [[HEARD_MESSAGES as u8]]);
        assert!(!mailbox.has_mail());
        assert!(mailbox.take().messages.is_empty());
    }

    #[test]
    fn each_portion_is_for_one_recipient() {
        use Recipient::{Client, Guest};

        let mailbox = Mailbox::new(1);
        for (body, recipient) in [
            (b"1", Client),
            (b"2", Client),
            (b"3", Guest),
            (b"4", Client),
        ] {
            mailbox.put(&message(body), recipient);
        }
        mailbox.miss();
        let portions = [
            (vec![b"1", b"2"], Client),
            (vec![b"3"], Guest),
            (vec![b"4"], Client),
        ];
        for (number, (expected, recipient)) in portions.into_iter().enumerate() {
            assert!(mailbox.has_mail());
            let mail = mailbox.take();
            assert_eq!(bodies(&mail), expected);
            assert_eq!((mail.recipient, mail.missed), (recipient, number == 0));
        }
        assert!(!mailbox.has_mail());
    }

    #[test]
    fn large_ones_come_alone() {
        let mailbox = Mailbox::new(1);
        let large = vec![0; HEARD_BYTES];
        put(&mailbox, &large);
        put(&mailbox, b"small");
        put(&mailbox, &large);
        assert_eq!(bodies(&mailbox.take()), [&large]);
        assert_eq!(bodies(&mailbox.take()), [b"small"]);
        assert_eq!(bodies(&mailbox.take()), [&large]);
    }

    #[test]
    fn a_full_one_loses_the_oldest_and_says_so_once() {
        let mailbox = Mailbox::new(1);
        for number in 0..MAILBOX_MESSAGES + 2 {
            put(&mailbox, &number.to_le_bytes());
        }
        let mail = mailbox.take();
        assert!(mail.missed);
        assert_eq!(bodies(&mail)[0], 2_usize.to_le_bytes());
        assert!(!mailbox.take().missed);

        let mailbox = Mailbox::new(1);
        let body = vec![1; MAILBOX_BYTES / 4 - 1];
        for _ in 0..4 {
            put(&mailbox, &body);
        }
        put(&mailbox, b"x");
        let mut count = 0;
        let mut missed = Vec::new();
        while mailbox.has_mail() {
            let mail = mailbox.take();
            count += mail.messages.len();
            missed.push(mail.missed);
        }
        assert_eq!((count, missed), (4, vec![true, false, false]));
    }

    #[test]
    fn the_bell_rings_when_there_is_something_and_there_was_nothing() {
        let mailbox = Mailbox::new(1);
        let rung = Arc::new(AtomicUsize::new(0));
        let rings = {
            let rung = Arc::clone(&rung);
            move || {
                rung.fetch_add(1, Ordering::SeqCst);
            }
        };
        put(&mailbox, b"before");
        mailbox.ring(rings);
        assert!(mailbox.has_mail() && mailbox.has_bell());
        put(&mailbox, b"again");
        assert_eq!(rung.load(Ordering::SeqCst), 0);
        mailbox.take();
        mailbox.miss();
        put(&mailbox, b"again");
        assert_eq!(rung.load(Ordering::SeqCst), 1);
        let mail = mailbox.take();
        assert!(mail.missed && mail.messages.len() == 1);
    }
}
