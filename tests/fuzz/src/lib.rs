//! The host's modules that face the network, without Wasmtime: it would make each build minutes
//! longer and is fuzzed by its own project.

// What drivers need of them is not needed here.
#![allow(dead_code)]

#[path = "../../../host/src/budget.rs"]
mod budget;

#[path = "../../../host/src/limits"]
pub mod limits {
    pub mod guest;
    pub mod process;
    pub mod wire;
}

#[path = "../../../host/src/talk"]
pub mod talk {
    pub mod client;
    pub mod conversation;
    pub mod framing;
    pub mod handler;
    pub mod mailbox;
    mod patience;
}

/// Publishes `body` to the owner of `mailbox`.
pub fn publish(mailbox: &talk::mailbox::Mailbox, body: &str) {
    let message = std::sync::Arc::new(talk::mailbox::Message {
        topic: "t".into(),
        body: body.into(),
        publisher: None,
        _claim: None,
    });
    mailbox.put(&message, talk::mailbox::Recipient::Guest);
}
