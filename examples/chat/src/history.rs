//! The last lines of each room, in the store `default`.

use crate::bindings::wasi::keyvalue::{atomics, batch, store};

/// How many lines of a room are kept.
pub(crate) const LINES: i64 = 20;

/// Keeps a line under the next number of its room, and returns that.
pub(crate) fn keep(room: &str, said: impl Fn(i64) -> String) -> Result<i64, store::Error> {
    let store = store::open("default")?;
    let number = atomics::increment(&store, &format!("{room}:last"), 1)?;
    store.set(&format!("{room}:{number}"), said(number).as_bytes())?;
    store.delete(&format!("{room}:{}", number - LINES))?;
    Ok(number)
}

/// The last lines of a room, each with its number.
pub(crate) fn read(room: &str) -> Result<Vec<String>, store::Error> {
    let store = store::open("default")?;
    let last = atomics::increment(&store, &format!("{room}:last"), 0)?;
    let numbers = (last - LINES).max(0) + 1..=last;
    let keys: Vec<_> = numbers.map(|number| format!("{room}:{number}")).collect();
    let lines = batch::get_many(&store, &keys)?.into_iter();
    let lines = lines.filter_map(|(_, line)| String::from_utf8(line?).ok());
    Ok(lines.collect())
}
