//! A guest for the tests: subscribes and publishes as its lines say, and does to what it hears what
//! that says.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;

use std::cell::Cell;
use std::time::Duration;

use bindings::airlock::line::topics::{self, Error};
use bindings::exports::airlock::line::handler::{self, Outcome};
use bindings::exports::airlock::line::subscriber::{self, Message, Pushed};

thread_local! {
    static HEARD: Cell<u64> = const { Cell::new(0) };
}

struct Speaker;

impl handler::Guest for Speaker {
    /// What a trial says, if it may.
    fn greeting() -> Option<String> {
        let said = topics::publish("starts", b"one more");
        Some(said.map_or_else(|error| told(&error), |()| "hello".to_owned()))
    }

    fn handle_line(line: String) -> Outcome {
        let words: Vec<_> = line.splitn(3, ' ').collect();
        let done = match *words {
            ["hear", topic] => topics::subscribe(topic),
            ["relay", topic] => topics::relay(topic),
            ["forget", topic] => topics::unsubscribe(topic),
            ["say", topic, body] => topics::publish(topic, body.as_bytes()),
            // What those who hear it as it is are to read.
            ["tell", topic, body] => topics::publish(topic, format!("{topic}: {body}").as_bytes()),
            // So many messages of so many bytes; those of a shout are repeated whole.
            [word @ ("flood" | "shout"), topic, size] => {
                let (count, bytes) = size.split_once('x').expect("COUNTxBYTES");
                let filling = if word == "flood" { b'x' } else { b'y' };
                let body = vec![filling; bytes.parse().expect("a number")];
                let count: u32 = count.parse().expect("a number");
                (0..count).try_for_each(|_| topics::publish(topic, &body))
            }
            ["hear-many", count] => {
                let count: u32 = count.parse().expect("a number");
                (0..count).try_for_each(|number| topics::subscribe(&number.to_string()))
            }
            ["heard"] => return Outcome::Reply(HEARD.get().to_string()),
            ["spin"] => spin(),
            ["exit"] => return Outcome::Close(None),
            _ => return Outcome::NoReply,
        };
        Outcome::Reply(done.map_or_else(|error| told(&error), |()| "ok".to_owned()))
    }
}

impl subscriber::Guest for Speaker {
    fn on_messages(messages: Vec<Message>, missed: bool) -> Pushed {
        HEARD.set(HEARD.get() + messages.len() as u64);
        let mut pushed = Pushed {
            lines: Vec::new(),
            close: false,
        };
        if missed {
            pushed.lines.push("missed".to_owned());
        }
        for message in messages {
            match &*message.body {
                b"be silent" => {}
                b"close" => pushed.close = true,
                b"trap" => panic!("told to"),
                b"spin" => spin(),
                b"sleep" => std::thread::sleep(Duration::from_secs(3600)),
                b"a gigabyte" => pushed.lines.push("x".repeat(1 << 30)),
                b"a million lines" => pushed.lines = vec![String::new(); 1_000_000],
                b"answer" => drop(topics::publish(&message.topic, b"answer")),
                body if body.first() == Some(&b'x') && body.len() > 1000 => {
                    pushed
                        .lines
                        .push(format!("{}: {} bytes", message.topic, body.len()));
                }
                body => {
                    let body = String::from_utf8_lossy(body);
                    pushed.lines.push(format!("{}: {body}", message.topic));
                }
            }
        }
        pushed
    }
}

fn told(error: &Error) -> String {
    match error {
        Error::AccessDenied => "access denied".to_owned(),
        Error::Limit(what) => format!("limit: {what}"),
        Error::Unavailable => "unavailable".to_owned(),
    }
}

fn spin() -> ! {
    loop {
        std::hint::black_box(());
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Speaker with_types_in super::bindings);
    use super::Speaker;
}
