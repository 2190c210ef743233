//! A ticker: prices of what a client watches, as they change.
//!
//! Each symbol is a topic, and its last price is in the store `default`, if there is one. Only the newest
//! counts: of several prices that came together, and after some were lost, that is what is shown. Prices
//! come from clients too, those of a service that has `FEED` in its environment.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
#[path = "../../chat/src/bindings.rs"]
mod bindings;

use std::cell::RefCell;
use std::collections::BTreeMap;

use bindings::airlock::line::topics::{self, Error};
use bindings::exports::airlock::line::handler::{self, Outcome};
use bindings::exports::airlock::line::subscriber::{self, Message, Pushed};
use bindings::wasi::keyvalue::store;

struct Ticker;
const HELP: &str = "watch SYMBOL, unwatch SYMBOL, or exit";

thread_local! {
    /// What this client watches, with the price that it was told last.
    static WATCHED: RefCell<BTreeMap<String, String>> = RefCell::default();
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
    fn on_messages(messages: Vec<Message>, missed: bool) -> Pushed {
        WATCHED.with_borrow_mut(|watched| {
            let mut prices = BTreeMap::new();
            if missed {
                prices.extend(watched.keys().map(|symbol| (symbol.clone(), last(symbol))));
            }
            for message in messages {
                let price = String::from_utf8_lossy(&message.body).into_owned();
                prices.insert(message.topic, price);
            }
            prices.retain(|symbol, price| watched.get(symbol).is_some_and(|told| told != price));
            let show = |(symbol, price)| format!("{symbol} {price}");
            let lines = prices.iter().map(show).collect();
            watched.extend(prices);
            let close = false;
            Pushed { lines, close }
        })
    }
}

fn watch(symbol: &str) -> Result<String, Error> {
    // Before reading: so no price is missed between the two.
    topics::subscribe(symbol)?;
    let price = last(symbol);
    let reply = format!("{symbol} {price}");
    WATCHED.with_borrow_mut(|watched| watched.insert(symbol.to_owned(), price));
    Ok(reply)
}

fn unwatch(symbol: &str) -> Result<String, Error> {
    topics::unsubscribe(symbol)?;
    WATCHED.with_borrow_mut(|watched| watched.remove(symbol));
    Ok(format!("{symbol} is not watched"))
}

fn feed(symbol: &str, price: &str) -> Result<String, Error> {
    // In this order whoever begins to watch meanwhile has it from the one or the other.
    let kept = store::open("default").and_then(|store| store.set(symbol, price.as_bytes()));
    topics::publish(symbol, price.as_bytes())?;
    Ok(kept.map_or("ok, but not kept", |()| "ok").to_owned())
}

/// The last price there was, or a dash.
fn last(symbol: &str) -> String {
    let price = store::open("default").and_then(|store| store.get(symbol));
    let price = price.ok().flatten().unwrap_or_else(|| b"-".to_vec());
    String::from_utf8_lossy(&price).into_owned()
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Ticker with_types_in super::bindings);
    use super::Ticker;
}
