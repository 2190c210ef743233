//! Guests that hear each other, and some that mean harm by it, beside a good connection of the same server.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Server, eventually};

/// The promise is that another connection waits at most this much longer.
const MOST_DELAY: Duration = Duration::from_millis(100);

fn server(options: &[&str]) -> Server {
    Server::with_guest("speaker", &[&["--topics=memory:"], options].concat())
}

/// One that hears of this topic.
fn hearer(server: &Server, topic: &str) -> Client {
    let mut client = server.connect();
    assert_eq!(client.hear(), "hello\n");
    assert_eq!(client.ask(&format!("hear {topic}")), "ok");
    client
}

/// Two that talk about what concerns nobody else.
struct Pair([Client; 2]);

impl Pair {
    fn of(server: &Server) -> Pair {
        Pair([(); 2].map(|()| hearer(server, "pair")))
    }

    /// Talks until `done`, no faster than anybody may, and returns the longest time that something took
    /// from the one to the other.
    fn talk(&mut self, done: impl Fn() -> bool) -> Duration {
        let Pair([one, other]) = self;
        let mut longest = Duration::ZERO;
        while !done() {
            let said = Instant::now();
            assert_eq!(one.ask("say pair word"), "ok");
            assert_eq!(other.hear(), "pair: word\n");
            longest = longest.max(said.elapsed());
            assert_eq!(one.hear(), "pair: word\n");
            thread::sleep(Duration::from_millis(15));
        }
        longest
    }

    fn usual(&mut self) -> Duration {
        let began = Instant::now();
        self.talk(|| began.elapsed() > Duration::from_millis(500))
    }
}

#[test]
fn what_a_guest_does_to_messages_ends_its_own_connection_and_delays_no_other() {
    let server = server(&["--call-timeout=1s"]);
    let mut pair = Pair::of(&server);
    let usual = pair.usual();
    let mut speaker = hearer(&server, "nothing");
    for (number, (attack, cause)) in [
        ("trap", "told to"),
        ("spin", "took longer"),
        ("sleep", "took longer"),
        ("a gigabyte", "more memory than"),
        ("a million lines", "twice --max-reply"),
    ]
    .iter()
    .enumerate()
    {
        let topic = format!("attack-{number}");
        let mut victim = hearer(&server, &topic);
        let over = AtomicBool::new(false);
        let longest = thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(speaker.ask(&format!("say {topic} {attack}")), "ok");
                let answer = victim.rest();
                over.store(true, Ordering::Relaxed);
                assert_eq!(answer, "error: the guest failed\n", "{attack}");
            });
            pair.talk(|| over.load(Ordering::Relaxed))
        });
        let connection = format!("connection={} ", number + 4);
        server.logged(&["closed", "the guest failed", &connection, cause]);
        assert!(
            longest <= usual + MOST_DELAY,
            "{attack}: {longest:?} and usually {usual:?}"
        );
        // Nobody is there any more.
        assert_eq!(speaker.ask(&format!("say {topic} {attack}")), "ok");
    }
}

#[test]
fn a_flood_of_messages_and_those_that_do_not_read_starve_nobody() {
    let server = server(&["--write-timeout=2s", "-q"]);
    let mut pair = Pair::of(&server);
    let usual = pair.usual();
    let deaf: Vec<_> = (0..8).map(|_| hearer(&server, "flood")).collect();
    let mut floods: Vec<_> = (0..4).map(|_| hearer(&server, "flood")).collect();
    let longest = thread::scope(|scope| {
        for client in &mut floods {
            let mut sender = client.stream.try_clone().unwrap();
            let mut receiver = client.stream.try_clone().unwrap();
            scope.spawn(move || while sender.write_all(b"flood flood 64x4000\n").is_ok() {});
            scope.spawn(move || {
                let mut room = vec![0; 65536];
                while receiver.read(&mut room).is_ok_and(|count| count > 0) {}
            });
        }
        let began = Instant::now();
        let longest = pair.talk(|| began.elapsed() > Duration::from_secs(5));
        for client in &floods {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        eprintln!("the longest wait was {longest:?}");
        longest
    });
    // The processors are busy: with the flood, and with those who make it.
    assert!(
        longest <= usual + 10 * MOST_DELAY,
        "{longest:?} and usually {usual:?}"
    );
    drop(deaf);
    // What they had is given back: somebody may publish as much as ever.
    drop(floods);
    let mut client = hearer(&server, "after");
    assert_eq!(client.ask("flood after 4x65000"), "ok");
    for _ in 0..4 {
        assert_eq!(client.hear(), "after: 65000 bytes\n");
    }
}

#[test]
fn whoever_does_not_read_what_others_say_is_let_go() {
    let server = server(&["--write-timeout=1s"]);
    let _deaf = hearer(&server, "t");
    let mut relayed = hearer(&server, "nothing");
    assert_eq!(relayed.ask("relay t"), "ok");
    // As much as it may say at once, more than the kernel takes for a client that does not read.
    let mut count = 0;
    eventually("they are let go", || {
        let mut speaker = server.connect();
        assert_eq!(speaker.hear(), "hello\n");
        for _ in 0..3 {
            assert_eq!(speaker.ask("shout t 64x60000"), "ok");
            count += 64;
        }
        let log = server.log();
        [1, 2].iter().all(|number| {
            let connection = format!("connection={number} ");
            log.iter()
                .any(|line| line.contains(&connection) && line.contains("does not read"))
        })
    });
    eprintln!("after {count} messages");
}

#[test]
fn a_thousand_topics_are_told_from_each_other() {
    const HEARERS: usize = 16;
    let server = server(&["-q"]);
    let mut hearers: Vec<_> = (0..HEARERS).map(|_| hearer(&server, "all")).collect();
    for (number, client) in hearers.iter_mut().enumerate() {
        let topics = (1..64).map(|topic| format!("hear {number}.{topic}\n"));
        client.send(topics.collect::<String>());
        for _ in 1..64 {
            assert_eq!(client.hear(), "ok\n");
        }
    }
    for (number, client) in hearers.iter_mut().enumerate() {
        for topic in 1..64 {
            assert_eq!(client.ask(&format!("say {number}.{topic} x")), "ok");
            assert_eq!(client.hear(), format!("{number}.{topic}: x\n"));
        }
    }
    assert_eq!(hearers[0].ask("say all end"), "ok");
    for client in &mut hearers {
        assert_eq!(client.hear(), "all: end\n");
    }
}
