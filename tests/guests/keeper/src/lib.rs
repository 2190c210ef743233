//! A guest for the tests: does to stores what its lines say.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[path = "../../../../examples/guestbook/src/bindings.rs"]
#[rustfmt::skip]
mod bindings;

use std::cell::RefCell;

use bindings::exports::airlock::line::handler::{Guest, Outcome};
use bindings::wasi::keyvalue::atomics::{self, Cas, CasError};
use bindings::wasi::keyvalue::batch;
use bindings::wasi::keyvalue::store::{self, Bucket, Error};

thread_local! {
    static NAME: RefCell<String> = const { RefCell::new(String::new()) };
    static HELD: RefCell<(Vec<Bucket>, Vec<Cas>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

struct Keeper;

impl Guest for Keeper {
    /// What a trial writes, if it may.
    fn greeting() -> Option<String> {
        let starts = store::open("starts").and_then(|starts| atomics::increment(&starts, "n", 1));
        Some(match starts {
            Ok(starts) => format!("start {starts}"),
            Err(_) => "hello".to_owned(),
        })
    }

    fn handle_line(line: String) -> Outcome {
        let words: Vec<_> = line.split(' ').collect();
        Outcome::Reply(answer(&words).unwrap_or_else(|error| told(&error)))
    }
}

fn told(error: &Error) -> String {
    match error {
        Error::NoSuchStore => "no such store".to_owned(),
        Error::AccessDenied => "access denied".to_owned(),
        Error::Other(text) => format!("other: {text}"),
    }
}

fn bucket() -> Result<Bucket, Error> {
    NAME.with_borrow(|name| store::open(name))
}

fn shown(value: Option<Vec<u8>>) -> String {
    match value {
        Some(value) => String::from_utf8_lossy(&value).into_owned(),
        None => "none".to_owned(),
    }
}

fn answer(words: &[&str]) -> Result<String, Error> {
    match *words {
        ["open", name] => {
            NAME.set(name.to_owned());
            bucket()?;
        }
        ["get", key] => return bucket()?.get(key).map(shown),
        ["set", key, value] => bucket()?.set(key, value.as_bytes())?,
        ["delete", key] => bucket()?.delete(key)?,
        ["exists", key] => return Ok(bucket()?.exists(key)?.to_string()),
        ["list", ref cursor @ ..] => {
            let page = bucket()?.list_keys(cursor.first().copied())?;
            let cursor = page.cursor.unwrap_or_else(|| "end".to_owned());
            return Ok(format!("{} {cursor}", page.keys.join(" ")));
        }
        ["count"] => return Ok(count()?.to_string()),
        ["add", key, delta] => {
            let delta = delta.parse().unwrap_or_default();
            return Ok(atomics::increment(&bucket()?, key, delta)?.to_string());
        }
        // Whoever writes between gets its turn by `swap` after `see`.
        ["see", key] => {
            let cas = Cas::new(&bucket()?, key)?;
            let current = shown(cas.current()?);
            HELD.with_borrow_mut(|held| held.1.push(cas));
            return Ok(current);
        }
        ["swap", value] => {
            let cas = HELD.with_borrow_mut(|held| held.1.pop());
            let Some(cas) = cas else {
                return Ok("nothing seen".to_owned());
            };
            match atomics::swap(cas, value.as_bytes()) {
                Ok(()) => {}
                Err(CasError::StoreError(error)) => return Err(error),
                Err(CasError::CasFailed(next)) => {
                    let current = shown(next.current()?);
                    HELD.with_borrow_mut(|held| held.1.push(next));
                    return Ok(format!("lost to {current}"));
                }
            }
        }
        ["append", key, value] => return append(key, value),
        ["get-many", ref keys @ ..] => {
            let values = batch::get_many(&bucket()?, &owned(keys))?;
            let values = values.into_iter();
            let values = values.map(|(key, value)| format!("{key}={}", shown(value)));
            return Ok(values.collect::<Vec<_>>().join(" "));
        }
        ["set-many", ref entries @ ..] => {
            let entries = entries.iter().filter_map(|entry| entry.split_once('='));
            let entries = entries.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
            batch::set_many(&bucket()?, &entries.collect::<Vec<_>>())?;
        }
        ["delete-many", ref keys @ ..] => batch::delete_many(&bucket()?, &owned(keys))?,
        ["fill", from, to, bytes] => {
            let [from, to, bytes] = [from, to, bytes].map(|text| text.parse().unwrap_or(0));
            let entries = (from..to).map(|number| (format!("key-{number:06}"), vec![b'x'; bytes]));
            batch::set_many(&bucket()?, &entries.collect::<Vec<_>>())?;
        }
        ["size", key, bytes] => {
            let (key, bytes) = [key, bytes].map(|text| text.parse().unwrap_or(0)).into();
            bucket()?.set(&"k".repeat(key), &vec![b'x'; bytes])?;
        }
        ["every-byte"] => return every_byte(),
        ["often", times] => {
            let bucket = bucket()?;
            for _ in 0..times.parse().unwrap_or(0) {
                bucket.exists("key")?;
            }
        }
        ["hold-buckets", times] => {
            for _ in 0..times.parse().unwrap_or(0) {
                let bucket = bucket()?;
                HELD.with_borrow_mut(|held| held.0.push(bucket));
            }
        }
        ["hold-swaps", key, times] => {
            for _ in 0..times.parse().unwrap_or(0) {
                let cas = Cas::new(&bucket()?, key)?;
                HELD.with_borrow_mut(|held| held.1.push(cas));
            }
        }
        _ => return Ok(format!("what is {words:?}?")),
    }
    Ok("ok".to_owned())
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

fn count() -> Result<usize, Error> {
    let bucket = bucket()?;
    let (mut count, mut cursor) = (0, None);
    loop {
        let page = bucket.list_keys(cursor.as_deref())?;
        count += page.keys.len();
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(count);
        }
    }
}

/// Swaps until it has appended.
fn append(key: &str, value: &str) -> Result<String, Error> {
    let mut cas = Cas::new(&bucket()?, key)?;
    loop {
        let mut text = cas.current()?.unwrap_or_default();
        text.extend_from_slice(value.as_bytes());
        match atomics::swap(cas, &text) {
            Ok(()) => return Ok("ok".to_owned()),
            Err(CasError::StoreError(error)) => return Err(error),
            Err(CasError::CasFailed(next)) => cas = next,
        }
    }
}

/// Whether a value with every byte, under a key with every character of one byte and some of more, is
/// what is read again.
fn every_byte() -> Result<String, Error> {
    let bucket = bucket()?;
    let key: String = (0..128).map(char::from).chain("äß€😀".chars()).collect();
    let value: Vec<u8> = (0..=255).collect();
    bucket.set(&key, &value)?;
    let is_same = bucket.get(&key)? == Some(value) && bucket.list_keys(None)?.keys.contains(&key);
    Ok(is_same.to_string())
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Keeper with_types_in super::bindings);
    use super::Keeper;
}
