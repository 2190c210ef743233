//! A hundred new versions under load, twenty broken ones among them; and a thousand in a row.
//!
//! ```text
//! cargo test -p host --release --test soak -- --ignored --nocapture --test-threads=1 swaps
//! ```

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use airlock::GREETER;

use crate::components::{component, component_with_memory, doing, greeting_by, howdy, stamped};
use crate::support::{Changing, Client, Server, eventually, put, write_beside};

const CHATTING: usize = 64;
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
const SWAPS: u32 = 100;
const BROKEN_EACH: u32 = 5;

/// The answers to one connection, all from one version: that of its first.
struct Conversation {
    client: Client,
    greeting: Option<String>,
}

impl Conversation {
    fn begin(server: &Server) -> Conversation {
        let mut client = server.connect();
        assert_eq!(client.hear(), "Welcome!\n");
        let greeting = None;
        Conversation { client, greeting }
    }

    /// Returns the word it is greeted with.
    fn ask(&mut self) -> &str {
        let answer = self.client.ask("Ada");
        let (word, name) = answer.split_once(", ").unwrap();
        assert_eq!(name, "Ada!");
        assert!(["Hello", "Howdy"].contains(&word), "{answer}");
        let greeting = self.greeting.get_or_insert_with(|| word.to_owned());
        assert_eq!(greeting, word, "a connection has met two versions");
        greeting
    }
}

fn broken(number: u32) -> Vec<u8> {
    let candidate = match number % 5 {
        0 => GREETER[..GREETER.len() / 2].to_vec(),
        1 => return wat::parse_str(format!("(component (component $n{number}))")).unwrap(),
        2 => component(&greeting_by("unreachable")),
        3 => component(&greeting_by("(loop $l br $l)")),
        _ => component_with_memory(1025, &doing("")),
    };
    // Every one is new.
    stamped(&candidate, number)
}

#[test]
#[ignore = "takes a minute, and its figures are those of a release build"]
fn a_hundred_swaps_and_twenty_broken_candidates_under_load() {
    let changing = Changing::start(&["--call-timeout=1s"]);
    let (server, file) = (&changing.server, &changing.file);
    let (stop, replies, connections) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut times = Vec::new();
    thread::scope(|scope| {
        for _ in 0..CHATTING {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut conversation = Conversation::begin(server);
                    for _ in 0..500 {
                        conversation.ask();
                        replies.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(10));
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                Conversation::begin(server).ask();
                connections.fetch_add(1, Ordering::Relaxed);
                next += CONNECT_PAUSE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 1..=SWAPS {
                if number % BROKEN_EACH == 0 {
                    put(file, &broken(number / BROKEN_EACH));
                    refusals(server, number / BROKEN_EACH);
                }
                // Never a version that the cache of compiled guests has.
                times.push(swap(&changing, number, std::process::id() ^ number));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let log = server.log();
    let count = |words: &str| log.iter().filter(|line| line.contains(words)).count();
    assert_eq!(count("new connections get a new version"), SWAPS as usize);
    assert_eq!(
        count("refused the new guest"),
        (SWAPS / BROKEN_EACH) as usize
    );
    assert_eq!(count("the guest failed"), 0);
    assert_eq!(count("refusing connections"), 0);
    times.sort_unstable();
    eprintln!(
        "{SWAPS} swaps under {CHATTING} chatting connections ({} replies) and {} new connections; \
         from the rename to the first greeting by the new version: median {:?}, longest {:?}",
        replies.into_inner(),
        connections.into_inner(),
        times[times.len() / 2],
        times[times.len() - 1],
    );
}

/// Swaps to the other greeter and returns the time from the rename to its first answer.
fn swap(changing: &Changing, number: u32, stamp: u32) -> Duration {
    let (component, word) = match number % 2 {
        1 => (howdy(), "Howdy"),
        _ => (GREETER.to_vec(), "Hello"),
    };
    let new = write_beside(&changing.file, &stamped(&component, stamp));
    let renamed = Instant::now();
    fs::rename(new, &changing.file).unwrap();
    loop {
        let mut conversation = Conversation::begin(&changing.server);
        let greeted = renamed.elapsed();
        if conversation.ask() == word {
            return greeted;
        }
        assert!(greeted < crate::support::PATIENCE, "never swapped");
        thread::sleep(Duration::from_millis(2));
    }
}

fn refusals(server: &Server, count: u32) {
    let refused = |line: &&String| line.contains("refused the new guest");
    eventually("it is refused", || {
        server.log().iter().filter(refused).count() >= count as usize
    });
}

#[test]
#[ignore = "takes a minute"]
fn memory_after_a_thousand_swaps_is_what_it_was_after_ten() {
    let changing = Changing::start(&["--no-watch"]);
    let server = &changing.server;
    let mut versions = 1;
    let mut swap_to = |component: &[u8]| {
        changing.replace(component);
        server.signal("HUP");
        versions += 1;
        server.logged(&["new connections get", &format!("version={versions} ")]);
        Conversation::begin(server).ask();
        let gone = format!("gone, with its last connection version={}", versions - 1);
        eventually("the old one is gone", || {
            server
                .log()
                .iter()
                .rev()
                .take(20)
                .any(|line| line.ends_with(&gone))
        });
    };
    let guests = [howdy(), GREETER.to_vec()];
    let mut resident = Vec::new();
    for number in 0..1000 {
        swap_to(&guests[number % 2]);
        if [9, 99, 999].contains(&number) {
            resident.push(server.resident_kib());
        }
    }
    eprintln!("KiB resident after 10, 100 and 1000 swaps: {resident:?}");
    assert!(
        resident[2] <= resident[0] + resident[0] / 10,
        "{resident:?}"
    );
}
