//! The greeter: the guest that `airlock` serves by default.
//!
//! [`greeting`] is the logic, [`settings`] what can be set from outside; the rest of this file
//! only connects them to the world in `wit/world.wit`. One instance of this component serves one
//! connection, so a global belongs to that connection alone.

#![expect(
    clippy::print_stderr,
    reason = "a guest's standard error is the server's log"
)]

pub mod batch;
pub mod greeting;
pub mod settings;

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;

use std::sync::OnceLock;
use std::thread;

use bindings::exports::airlock::line::batch::{self as many, Answers};
use bindings::exports::airlock::line::handler::{Guest, Outcome};
use greeting::Next;
use settings::Settings;

/// Read once for each connection, when it is greeted. (Not a `LazyLock`: that would call a function
/// pointer, the only one on the way of a line, and the table of those is a page for each connection.)
fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(Settings::from_env)
}

struct Greeter;

impl Guest for Greeter {
    fn greeting() -> Option<String> {
        Some(settings().greeting.clone())
    }

    fn handle_line(line: String) -> Outcome {
        if !settings().delay.is_zero() {
            thread::sleep(settings().delay);
        }
        let mut reply = String::new();
        match greeting::answer(&line, &mut reply) {
            Next::GoOn => Outcome::Reply(reply),
            Next::Goodbye => Outcome::Close(None),
        }
    }
}

/// The same for lines that have arrived together, in one call.
impl many::Guest for Greeter {
    fn handle_lines(lines: String, enough: u32) -> Answers {
        let mut enough = enough as usize;
        if !settings().delay.is_zero() {
            // That is a while: the reply to one line leaves before the next is worked on.
            thread::sleep(settings().delay);
            enough = 0;
        }
        let batch = batch::answer_all(&lines, enough);
        Answers {
            replies: batch.replies,
            handled: batch.handled,
            close: batch.close,
        }
    }
}

/// The export names mean something to the linker of wasm only.
#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Greeter with_types_in super::bindings);
    use super::Greeter;
}
