//! The greeter: the guest that `airlock` serves by default.
//!
//! [`greeting`] is the logic, [`settings`] what can be set from outside; the rest of this file
//! only connects them to the world in `wit/world.wit`. One instance of this component serves one
//! connection, so a global belongs to that connection alone.

#![expect(
    clippy::print_stderr,
    reason = "a guest's standard error is the server's log"
)]

pub mod greeting;
pub mod settings;

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;

use std::sync::LazyLock;
use std::thread;

use bindings::exports::airlock::line::handler::{Guest, Outcome};
use greeting::Answer;
use settings::Settings;

/// Read once for each connection, when it is greeted.
static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::from_env);

struct Greeter;

impl Guest for Greeter {
    fn greeting() -> Option<String> {
        Some(SETTINGS.greeting.clone())
    }

    fn handle_line(line: String) -> Outcome {
        if !SETTINGS.delay.is_zero() {
            thread::sleep(SETTINGS.delay);
        }
        match greeting::answer(&line) {
            Answer::Say(text) => Outcome::Reply(text),
            Answer::Goodbye => Outcome::Close(None),
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
