//! Walls that hold: hostile guests and hostile clients against the real server.
//!
//! SECURITY.md says which promise each of these tests keeps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "the harness shows it when a test fails"
)]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod authority;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod bombs;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod components;
mod every_door;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod tls_client;

#[path = "walls/clients.rs"]
mod clients;
#[path = "walls/compiling.rs"]
mod compiling;
#[path = "walls/faults.rs"]
mod faults;
#[path = "walls/guests.rs"]
mod guests;
#[path = "walls/hand_made.rs"]
mod hand_made;
#[path = "walls/memory.rs"]
mod memory;
#[path = "walls/process.rs"]
mod process;
#[path = "walls/sharing.rs"]
mod sharing;
#[path = "walls/tls.rs"]
mod tls;
#[path = "walls/topics.rs"]
mod topics;
