//! End to end: the real binary, real sockets, real components.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "the harness shows it when a test fails"
)]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod authority;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod components;
mod redis_server;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod tls_client;

mod browser;
mod build;
mod chat;
mod client;
mod commands;
mod conversation;
mod deploy;
mod docs;
mod doors;
mod every_door;
mod features;
mod guests;
mod house;
mod lifecycle;
mod limits;
mod log;
mod proxies;
mod refusals;
mod reload;
mod security;
mod services;
mod services_change;
mod settings;
mod stores;
mod stores_disk;
mod stores_redis;
mod systemd;
mod takeover;
mod tls;
mod topics;
mod topics_redis;
mod two_machines;
mod websocket;
