//! A guest for the tests: stores by `wasi:keyvalue@0.2.0-draft2`, as it was before `get-many` changed.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;

use bindings::exports::airlock::line::handler::{Guest, Outcome};
use bindings::wasi::keyvalue::store::{self, Error};
use bindings::wasi::keyvalue::{atomics, batch};

struct Keeper;

impl Guest for Keeper {
    fn greeting() -> Option<String> {
        None
    }

    fn handle_line(line: String) -> Outcome {
        let words: Vec<_> = line.split(' ').collect();
        Outcome::Reply(answer(&words).unwrap_or_else(|error| format!("{error:?}")))
    }
}

fn answer(words: &[&str]) -> Result<String, Error> {
    let bucket = store::open("")?;
    match *words {
        ["set", key, value] => bucket.set(key, value.as_bytes())?,
        ["add", key, delta] => {
            let delta = delta.parse().unwrap_or_default();
            return Ok(atomics::increment(&bucket, key, delta)?.to_string());
        }
        ["get-many", ref keys @ ..] => {
            let keys: Vec<_> = keys.iter().map(|&key| key.to_owned()).collect();
            let entries = batch::get_many(&bucket, &keys)?.into_iter();
            let entries = entries.map(|entry| match entry {
                Some((key, value)) => format!("{key}={}", String::from_utf8_lossy(&value)),
                None => "none".to_owned(),
            });
            return Ok(entries.collect::<Vec<_>>().join(" "));
        }
        _ => return Ok(format!("what is {words:?}?")),
    }
    Ok("ok".to_owned())
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Keeper with_types_in super::bindings);
    use super::Keeper;
}
