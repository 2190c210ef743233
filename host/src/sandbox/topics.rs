//! What a guest asks of topics.

use std::time::Instant;

use wasmtime::component::{HasSelf, Linker};

use crate::limits::guest::SUBSCRIBE_TIME;
use crate::sandbox::bindings::topical::airlock::line::topics;
use crate::sandbox::wasi::State;
use crate::talk::mailbox::Recipient;
use crate::topics::exchange::Error;

pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    topics::add_to_linker::<State, HasSelf<State>>(linker, State::in_time)
}

impl topics::Host for State {
    fn subscribe(&mut self, topic: String) -> Result<(), topics::Error> {
        self.subscribe_for(&topic, Recipient::Guest)
    }

    fn relay(&mut self, topic: String) -> Result<(), topics::Error> {
        self.subscribe_for(&topic, Recipient::Client)
    }

    fn unsubscribe(&mut self, topic: String) -> Result<(), topics::Error> {
        Ok(self.topics.unsubscribe(&topic)?)
    }

    fn publish(&mut self, topic: String, body: Vec<u8>) -> Result<(), topics::Error> {
        Ok(self.topics.publish(&topic, body)?)
    }
}

impl State {
    fn subscribe_for(&mut self, topic: &str, recipient: Recipient) -> Result<(), topics::Error> {
        let until = Instant::now() + SUBSCRIBE_TIME.min(self.time_left());
        Ok(self.topics.subscribe(topic, recipient, until)?)
    }
}

impl From<Error> for topics::Error {
    fn from(error: Error) -> topics::Error {
        match error {
            Error::AccessDenied => topics::Error::AccessDenied,
            Error::Limit(what) => topics::Error::Limit(what.to_owned()),
            Error::Unavailable => topics::Error::Unavailable,
        }
    }
}
