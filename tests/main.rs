//! End to end: the real binary, real sockets, real components.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "the harness shows it when a test fails"
)]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod components;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;

mod build;
mod client;
mod commands;
mod conversation;
mod docs;
mod features;
mod guests;
mod house;
mod lifecycle;
mod limits;
mod log;
mod refusals;
mod reload;
mod security;
mod services;
mod settings;
mod systemd;
mod takeover;
