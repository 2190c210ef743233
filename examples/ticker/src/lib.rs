//! A ticker: prices of what a client watches, as they change.
//!
//! Each symbol is a topic, and its last price is in the store `default`, if there is one. All who watch a
//! symbol read the same: so they get what is published as it is, and this guest is asked only when some
//! of it was lost. Prices come from clients too, those of a service that has `FEED` in its environment.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
#[path = "../../chat/src/bindings.rs"]
mod bindings;

use std::cell::RefCell;
use std::collections::BTreeSet;

use bindings::airlock::line::topics::{self, Error};
use bindings::exports::airlock::line::handler::{self, Outcome};
use bindings::exports::airlock::line::subscriber::{self, Message, Pushed};
use bindings::wasi::keyvalue::store;

struct Ticker;
const HELP: &str = "watch SYMBOL, unwatch SYMBOL, or exit";

thread_local! {
    /// What this client watches.
    static WATCHED: RefCell<BTreeSet<String>> = RefCell::default();
}

impl handler::Guest for Ticker {
    fn greeting() -> Option<String> {
        Some(HELP.to_owned())
    }

    fn handle_line(line: String) -> Outcome {
        let reply = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["exit"] => return Outcome::Close(None),
            ["watch", symbol] => watch(symbol),
            ["unwatch", symbol] => unwatch(symbol),
            [symbol, price] if std::env::var_os("FEED").is_some() => feed(symbol, price),
            _ => Ok(HELP.to_owned()),
        };
        Outcome::Reply(reply.unwrap_or_else(|error| format!("sorry: {error:?}")))
    }
}

impl subscriber::Guest for Ticker {
    /// Some were lost, whichever. Prices that still wait come behind these, up to the newest again.
    fn on_messages(_: Vec<Message>, _: bool) -> Pushed {
        let lines = WATCHED.with_borrow(|watched| watched.iter().map(|one| last(one)).collect());
        let close = false;
        Pushed { lines, close }
    }
}

fn watch(symbol: &str) -> Result<String, Error> {
    // Before reading: so no price is missed between the two.
    topics::relay(symbol)?;
    WATCHED.with_borrow_mut(|watched| watched.insert(symbol.to_owned()));
    Ok(last(symbol))
}

fn unwatch(symbol: &str) -> Result<String, Error> {
    topics::unsubscribe(symbol)?;
    WATCHED.with_borrow_mut(|watched| watched.remove(symbol));
    Ok(format!("{symbol} is not watched"))
}

fn feed(symbol: &str, price: &str) -> Result<String, Error> {
    // In this order whoever begins to watch meanwhile has it from the one or the other.
    let kept = store::open("default").and_then(|store| store.set(symbol, price.as_bytes()));
    topics::publish(symbol, format!("{symbol} {price}").as_bytes())?;
    Ok(kept.map_or("ok, but not kept", |()| "ok").to_owned())
}

/// A symbol with the last price there was, or a dash.
fn last(symbol: &str) -> String {
    let price = store::open("default").and_then(|store| store.get(symbol));
    let price = price.ok().flatten().unwrap_or_else(|| b"-".to_vec());
    format!("{symbol} {}", String::from_utf8_lossy(&price))
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Ticker with_types_in super::bindings);
    use super::Ticker;
}
