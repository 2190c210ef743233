//! What a client notices while a bomb is compiled, and how soon a good version follows.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bombs::bombs;
use crate::components::{howdy, stamped};
use crate::support::{Changing, Client, PATIENCE, put, write_beside};

/// Half of them are replaced in the middle, the others end by themselves. None is to be compiled: it
/// would be in the cache of whoever runs the tests.
const BOUNDS: [&str; 2] = ["--compile-timeout=6s", "--compile-memory=512MiB"];

#[test]
#[ignore = "takes a minute, and its figures are those of a release build"]
fn bombs_through_hot_reload_beside_a_chatting_client() {
    let changing = Changing::start(&BOUNDS);
    let server = &changing.server;
    let stop = AtomicBool::new(false);
    let usual = chat(&mut server.greeted(), || false, Duration::from_secs(2));
    let resident_kib = server.resident_kib();
    let mut client = server.greeted();
    let waits = thread::scope(|scope| {
        let chatter = scope.spawn(|| {
            let stopped = || stop.load(Ordering::Relaxed);
            chat(&mut client, stopped, Duration::MAX)
        });
        let mut waits = Vec::new();
        for (number, bomb) in bombs().into_iter().enumerate() {
            for ends in [true, false] {
                put(&changing.file, &bomb.bytes);
                if ends {
                    refused(&changing, waits.len());
                } else {
                    // In the middle of most of them.
                    thread::sleep(Duration::from_millis(1500));
                }
                let stamp = (2 * number + usize::from(ends)) as u32 ^ std::process::id();
                waits.push(replace(&changing, stamp));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let worst = chatter.join().unwrap();
        eprintln!("worst wait of a chatting client: {worst:?}, usually {usual:?}");
        waits
    });
    let grown_kib = server.resident_kib().saturating_sub(resident_kib);
    eprintln!("a good version greets after a bomb's end, or in its place, within {waits:?}");
    eprintln!("{resident_kib} KiB resident before, {grown_kib} more after");
}

/// Asks without a pause, and returns the longest wait for an answer.
fn chat(client: &mut Client, done: impl Fn() -> bool, time: Duration) -> Duration {
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while !done() && began.elapsed() < time {
        let asked = Instant::now();
        assert!(client.ask("Ada").ends_with(", Ada!"));
        longest = longest.max(asked.elapsed());
    }
    longest
}

fn refused(changing: &Changing, swaps: usize) {
    let count = |words: &str| {
        let log = changing.server.log();
        log.iter().filter(|line| line.contains(words)).count()
    };
    crate::support::eventually("the bomb is refused", || {
        // Of two bombs the second was replaced, if it took long enough.
        count("refused the new guest") + count("gave up compiling") > swaps
    });
}

/// From the rename to the first greeted connection of the new version.
fn replace(changing: &Changing, stamp: u32) -> Duration {
    let seen = new_versions(changing);
    let new = write_beside(&changing.file, &stamped(&howdy(), stamp));
    let renamed = Instant::now();
    fs::rename(new, &changing.file).unwrap();
    while new_versions(changing) == seen {
        assert!(renamed.elapsed() < PATIENCE, "never swapped");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(changing.server.greeted().ask("Ada"), "Howdy, Ada!");
    renamed.elapsed()
}

fn new_versions(changing: &Changing) -> usize {
    let log = changing.server.log();
    let new = |line: &&String| line.contains("new connections get a new version");
    log.iter().filter(new).count()
}
