//! A guest for the tests: counts its lines in a plain global and tells what it knows of its
//! connection. It greets nobody: the client speaks first.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[path = "../../bindings.rs"]
#[rustfmt::skip]
mod bindings;

use std::sync::atomic::{AtomicU32, Ordering};

use bindings::airlock::line::connection;
use bindings::exports::airlock::line::handler::{Guest, Outcome};

static LINES: AtomicU32 = AtomicU32::new(0);

struct Counter;

impl Guest for Counter {
    fn greeting() -> Option<String> {
        None
    }

    fn handle_line(line: String) -> Outcome {
        let count = LINES.fetch_add(1, Ordering::Relaxed) + 1;
        match line.as_str() {
            "count" => Outcome::Reply(count.to_string()),
            "id" => Outcome::Reply(connection::id().to_string()),
            "peer" => Outcome::Reply(connection::peer_address()),
            "local" => Outcome::Reply(connection::local_address()),
            "encrypted" => Outcome::Reply(connection::is_encrypted().to_string()),
            "identity" => Outcome::Reply(match connection::peer_identity() {
                Some(identity) => {
                    format!("{} {}", identity.subject, identity.dns_names.join(" "))
                }
                None => "nobody".to_owned(),
            }),
            "nothing" => Outcome::NoReply,
            "bye" => Outcome::Close(Some("goodbye".to_owned())),
            _ => Outcome::Close(None),
        }
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Counter with_types_in super::bindings);
    use super::Counter;
}
