//! A guest book: every line that a client writes stays in it, for all who come later.
//!
//! The lines are in the bucket `default`, under their numbers; `lines` says how many there are.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;

use bindings::exports::airlock::line::handler::{Guest, Outcome};
use bindings::wasi::keyvalue::store::{self, Bucket, Error};
use bindings::wasi::keyvalue::{atomics, batch};

/// How many of the last lines are read out.
const SHOWN: i64 = 10;

struct GuestBook;

impl Guest for GuestBook {
    fn greeting() -> Option<String> {
        Some(match count() {
            Ok(0) => "The guest book is empty. Write the first line!".to_owned(),
            Ok(count) => format!("Lines in the guest book: {count}. Write one, or `read` them."),
            Err(error) => sorry(&error),
        })
    }

    fn handle_line(line: String) -> Outcome {
        let reply = match line.as_str() {
            "exit" => return Outcome::Close(Some("Goodbye!".to_owned())),
            "read" => read(),
            line => write(line),
        };
        Outcome::Reply(reply.unwrap_or_else(|error| sorry(&error)))
    }
}

fn book() -> Result<Bucket, Error> {
    store::open("default")
}

fn count() -> Result<i64, Error> {
    // As much as nothing is added, and nothing is there to be read wrongly.
    atomics::increment(&book()?, "lines", 0)
}

/// Two clients at once get two numbers. Whoever fails between number and line leaves a gap.
fn write(line: &str) -> Result<String, Error> {
    let book = book()?;
    let number = atomics::increment(&book, "lines", 1)?;
    book.set(&key(number), line.as_bytes())?;
    Ok(format!("Thank you, that is line {number}."))
}

fn read() -> Result<String, Error> {
    let last = count()?;
    let first = (last - SHOWN).max(0) + 1;
    let keys: Vec<_> = (first..=last).map(key).collect();
    let lines = batch::get_many(&book()?, &keys)?;
    let lines = lines.into_iter().filter_map(|(_, line)| line);
    let lines: Vec<_> = lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect();
    match lines[..] {
        [] => Ok("Nothing yet.".to_owned()),
        _ => Ok(lines.join("\n")),
    }
}

fn key(number: i64) -> String {
    format!("line:{number}")
}

fn sorry(error: &Error) -> String {
    match error {
        Error::NoSuchStore => "There is no guest book here: start me with --store.".to_owned(),
        error => format!("The guest book cannot be used just now ({error:?})."),
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(GuestBook with_types_in super::bindings);
    use super::GuestBook;
}
