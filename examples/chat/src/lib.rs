//! A chat: rooms, nicknames, and for those who come later the last lines of a room.
//!
//! What is said goes under a number into the store `default`, if there is one, and with that number to
//! the room's topic: so nobody is shown a line twice, and who has missed some can read them. Who is in a
//! room is written nowhere, since nobody would cross out those who are gone with their server: `/who`
//! asks the room, and whoever is there answers.
//!
//! Lines of people begin with `<nickname>`, those of the chat with `*`: neither can look like the other.

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[rustfmt::skip]
mod bindings;
mod history;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bindings::airlock::line::topics::{self, Error};
use bindings::exports::airlock::line::handler::{self, Outcome};
use bindings::exports::airlock::line::subscriber::{self, Message, Pushed};

/// The most characters of a name, and of what is said.
const NAME: usize = 20;
const TEXT: usize = 1000;
/// How often a second a client answers `/who`: that takes of what it may publish.
const ANSWERS: u32 = 10;
const HELP: &str = "* /nick NAME, /join ROOM (up to 20 letters, digits, - and _), /who, exit";

struct Chat;

/// The client of this connection.
struct Member {
    nick: String,
    /// Also the name of its topic.
    room: String,
    /// The topic for answers to this client. (No room has an `@`.)
    own: String,
    /// The numbers of the last lines that were shown.
    shown: BTreeSet<i64>,
    /// Since when it has answered `/who` how often.
    answered: (Instant, u32),
}

thread_local! {
    static MEMBER: RefCell<Member> = {
        let random = RandomState::new().hash_one(());
        RefCell::new(Member {
            nick: format!("guest-{:04x}", random as u16),
            room: String::new(),
            own: format!("@{random:016x}"),
            shown: BTreeSet::new(),
            answered: (Instant::now(), 0),
        })
    };
}

impl handler::Guest for Chat {
    fn greeting() -> Option<String> {
        let here = MEMBER.with_borrow_mut(|member| member.enter("lobby"));
        let here = here.unwrap_or_else(sorry);
        Some(format!("* Welcome! /help says what you can do.\n{here}"))
    }

    fn handle_line(line: String) -> Outcome {
        match MEMBER.with_borrow_mut(|member| member.answer(&clean(&line))) {
            _ if line == "exit" => Outcome::Close(Some("* Goodbye!".to_owned())),
            Ok(None) => Outcome::NoReply,
            Ok(Some(reply)) => Outcome::Reply(reply),
            Err(error) => Outcome::Reply(sorry(error)),
        }
    }
}

impl subscriber::Guest for Chat {
    fn on_messages(messages: Vec<Message>, missed: bool) -> Pushed {
        MEMBER.with_borrow_mut(|member| {
            let heard = messages.iter().filter_map(|message| member.hear(message));
            let mut lines: Vec<_> = heard.collect();
            if missed {
                lines.push("* Something was lost on its way here.".to_owned());
                lines.extend(member.read());
            }
            let close = false;
            Pushed { lines, close }
        })
    }
}

impl Member {
    /// Goes to a room. Returns what was said there.
    fn enter(&mut self, room: &str) -> Result<String, Error> {
        let _ = topics::unsubscribe(&self.room);
        self.room = room.to_owned();
        self.shown.clear();
        // Before reading: so nothing is said between the two.
        topics::subscribe(room)?;
        let mut lines = vec![format!("* You are {} in {room}.", self.nick)];
        lines.extend(self.read());
        Ok(lines.join("\n"))
    }

    fn answer(&mut self, line: &str) -> Result<Option<String>, Error> {
        let nick = &self.nick;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", "") => {}
            ("exit", "") => self.tell(&format!("* {nick} has left."))?,
            ("/who", "") => {
                topics::subscribe(&self.own)?;
                self.tell(&format!("? {}", self.own))?;
            }
            ("/nick", name) if is_name(name) => {
                self.tell(&format!("* {nick} is now {name}."))?;
                self.nick = name.to_owned();
            }
            ("/join", room) if is_name(room) => {
                self.tell(&format!("* {nick} has left."))?;
                let here = self.enter(&room.to_lowercase())?;
                self.tell(&format!("* {} has come.", self.nick))?;
                return Ok(Some(here));
            }
            _ if line.starts_with('/') => return Ok(Some(HELP.to_owned())),
            _ if line.chars().count() > TEXT => return Ok(Some("* That is too long.".to_owned())),
            _ => {
                let said = |number| format!("{number} <{nick}> {line}");
                self.tell(&said(history::keep(&self.room, said).unwrap_or(0)))?;
            }
        }
        Ok(None)
    }

    fn tell(&self, text: &str) -> Result<(), Error> {
        // Again, for whoever came when the topics could not be reached.
        topics::subscribe(&self.room)?;
        topics::publish(&self.room, text.as_bytes())
    }

    fn hear(&mut self, message: &Message) -> Option<String> {
        let body = String::from_utf8_lossy(&message.body);
        match body.split_once(' ')? {
            ("@", nick) => Some(format!("* {nick} is here.")),
            // Late, from one that was left.
            _ if message.topic != self.room => None,
            ("*", _) => Some(body.into_owned()),
            ("?", asker) => {
                if self.answered.0.elapsed() > Duration::from_secs(1) {
                    self.answered = (Instant::now(), 0);
                }
                self.answered.1 += 1;
                if self.answered.1 <= ANSWERS {
                    let _ = topics::publish(asker, format!("@ {}", self.nick).as_bytes());
                }
                None
            }
            _ => self.show(&body),
        }
    }

    /// Of the last lines those that have not been shown. Without a store there are none.
    fn read(&mut self) -> Vec<String> {
        let lines = history::read(&self.room).unwrap_or_default();
        lines.iter().filter_map(|line| self.show(line)).collect()
    }

    /// A line without its number, the first time. (A line that is not kept has number 0.)
    fn show(&mut self, line: &str) -> Option<String> {
        let (number, said) = line.split_once(' ')?;
        let number = number.parse().ok()?;
        let is_new = number == 0 || self.shown.insert(number);
        if self.shown.len() > history::LINES as usize {
            self.shown.pop_first();
        }
        is_new.then(|| said.to_owned())
    }
}

fn is_name(text: &str) -> bool {
    let is_good = |char: char| char.is_alphanumeric() || "-_".contains(char);
    (1..=NAME).contains(&text.chars().count()) && text.chars().all(is_good)
}

/// Without what moves a cursor, begins a line, or turns the direction of what follows.
fn clean(line: &str) -> String {
    let is_bad = |char: char| match char {
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            true
        }
        char => char.is_control(),
    };
    line.replace(is_bad, " ")
}

fn sorry(error: Error) -> String {
    match error {
        Error::AccessDenied => "* Nobody hears you: start me with --topics memory:".to_owned(),
        Error::Limit(what) => format!("* That was too much ({what})."),
        Error::Unavailable => "* Nobody can be reached just now.".to_owned(),
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Chat with_types_in super::bindings);
    use super::Chat;
}
