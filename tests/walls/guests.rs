//! A hostile guest beside a good connection of the same server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Mode, Server, eventually};

/// What the guest is told to do, and what the log must say of it. `tests/guests/hostile` has the
/// attacks themselves.
const ATTACKS: [(&str, &str); 15] = [
    ("spin", "took longer"),
    ("fill", "took longer"),
    ("calls", "took longer"),
    ("clocks", "took longer"),
    ("flood", "took longer"),
    ("sleep", "took longer"),
    ("poll", "took longer"),
    (
        "recurse",
        "out of bounds memory access, in hostile::recurse",
    ),
    ("allocate", "more memory than"),
    (
        "reply",
        "more than 2097152 bytes at once (twice --max-reply)",
    ),
    ("random", "exceeds limit"),
    ("panic", "on purpose"),
    ("trap", "unreachable"),
    ("abort", "unreachable"),
    ("exit", "called exit"),
];

/// The promise is that another connection waits at most this much longer.
const MOST_DELAY: Duration = Duration::from_millis(100);

fn ready(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.hear(), "ready\n");
    client
}

/// Asks without a pause until `done`, and returns the longest wait for an answer.
fn chat(client: &mut Client, done: impl Fn() -> bool) -> Duration {
    let mut longest = Duration::ZERO;
    while !done() {
        let asked = Instant::now();
        assert_eq!(client.ask("tell"), "secret: ");
        longest = longest.max(asked.elapsed());
    }
    longest
}

#[test]
fn an_attack_ends_its_own_connection_and_delays_no_other() {
    let server = Server::with_guest("hostile", &["--call-timeout=1s"]);
    let mut chatter = ready(&server);
    let began = Instant::now();
    let usual = chat(&mut chatter, || {
        began.elapsed() > Duration::from_millis(500)
    });
    for (number, (attack, cause)) in ATTACKS.iter().enumerate() {
        let longest = chat_beside(&server, attack, &mut chatter);
        let connection = format!("connection={} ", number + 2);
        server.logged(&["closed", "the guest failed", &connection, cause]);
        let causes = server
            .log()
            .into_iter()
            .filter(|line| line.contains(&connection) && line.contains("the guest failed"));
        assert_eq!(causes.count(), 1, "{attack}");
        assert!(
            longest <= usual + MOST_DELAY,
            "{attack}: {longest:?} and usually {usual:?}"
        );
    }
}

/// Runs an attack to its end, and returns the longest wait of the connection beside it.
fn chat_beside(server: &Server, attack: &str, chatter: &mut Client) -> Duration {
    let mut victim = ready(server);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            victim.send(format!("{attack}\nnever answered\n"));
            let answer = victim.rest();
            over.store(true, Ordering::Relaxed);
            assert_eq!(answer, "error: the guest failed\n", "{attack}");
        });
        chat(chatter, || over.load(Ordering::Relaxed))
    })
}

/// A figure, not a promise: `cargo test -p host --release --test walls -- --ignored attacks_take_turns
/// --nocapture` prints it. At most 25 ms longer are wanted.
#[test]
#[ignore = "only prints how long a connection waits beside each attack, which takes half a minute"]
fn attacks_take_turns_with_quiet_times_of_their_length() {
    const ROUNDS: usize = 7;
    let server = Server::with_guest("hostile", &["--call-timeout=300ms", "-qq"]);
    let mut chatter = ready(&server);
    let mut waits = ATTACKS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for ((attack, _), [beside, without]) in ATTACKS.iter().zip(&mut waits) {
            let began = Instant::now();
            beside.push(chat_beside(&server, attack, &mut chatter));
            // The longer, the more likely that something else on the machine is in the way.
            let (length, began) = (began.elapsed(), Instant::now());
            without.push(chat(&mut chatter, || began.elapsed() >= length));
        }
    }
    let median = |mut waits: Vec<Duration>| {
        waits.sort_unstable();
        waits[ROUNDS / 2].as_secs_f64() * 1e3
    };
    eprintln!("longest waits, medians of {ROUNDS}, ms: beside the attack, without, difference");
    for ((attack, _), waits) in ATTACKS.iter().zip(waits) {
        let [beside, without] = waits.map(median);
        let longer = beside - without;
        eprintln!("{attack:10}{beside:8.2}{without:8.2}{longer:+8.2}");
    }
}

#[test]
fn threads_memory_and_descriptors_come_back_after_attacks() {
    let server = Server::with_guest("hostile", &["--call-timeout=100ms", "-qq"]);
    let round = || {
        thread::scope(|scope| {
            for (attack, _) in ATTACKS.iter().cycle().take(3 * ATTACKS.len()) {
                let mut client = server.connect();
                scope.spawn(move || {
                    client.send(format!("{attack}\n"));
                    // So many share two cores that even the greeting can take too long.
                    let answer = client.rest();
                    assert!(answer.ends_with("error: the guest failed\n"), "{answer}");
                });
            }
        });
    };
    drop(ready(&server));
    let descriptors = server.descriptors();
    round();
    let resident_kib = server.resident_kib();
    for _ in 0..4 {
        round();
    }
    // A server that kept what one round took would be at five times as much.
    let after_kib = server.resident_kib();
    assert!(
        after_kib < resident_kib * 3 / 2,
        "{resident_kib} KiB became {after_kib} KiB"
    );
    // WASI's sleep has started an epoll and its wake-up, once.
    eventually("descriptors are closed", || {
        server.descriptors() <= descriptors + 4
    });
    let most = 10 + Mode::tested().seats();
    eventually("threads end", || server.threads() <= most);
}

#[test]
fn a_new_connection_never_sees_what_an_earlier_one_wrote() {
    // One connection at a time, so that every one gets the same slot of memory.
    let server = Server::with_guest("hostile", &["--max-connections=1", "-qq"]);
    for size in ["keep 1000", "keep 60000", "keep 1000000", "keep 20000000"] {
        let mut client = Client::until_greeted(&server, "ready\n");
        assert_eq!(client.ask("search"), "found 0");
        assert_eq!(client.ask(size), "kept");
        assert_ne!(client.ask("search"), "found 0");
    }
    let mut client = Client::until_greeted(&server, "ready\n");
    assert_eq!(client.ask("search"), "found 0");
    assert_eq!(client.ask("tell"), "secret: ");
}

impl Client {
    /// Connects again and again until the last client's connection is counted no more.
    fn until_greeted(server: &Server, greeting: &str) -> Client {
        loop {
            let mut client = server.connect();
            if client.hear() == greeting {
                return client;
            }
        }
    }
}

#[test]
fn nothing_of_the_machine_is_in_reach() {
    let server = Server::with_guest("hostile", &["--env=GIVEN=1"]);
    let mut client = ready(&server);
    for reach in ["files", "sockets"] {
        assert_eq!(client.ask(reach), "0 of 4 allowed");
    }
    assert_eq!(client.ask("stdin"), "Ok(0)");
    let seen = client.ask("environment");
    assert_eq!(seen, r#"[("GIVEN", "1")] Args { inner: [] }"#);
}

#[test]
fn a_flood_of_output_is_cut_and_counted() {
    let server = Server::with_guest("hostile", &["--call-timeout=300ms"]);
    let mut client = ready(&server);
    client.send("flood\n");
    assert_eq!(client.rest(), "error: the guest failed\n");
    server.logged(&["lines of the guest's output were dropped", "connection=1"]);
    let lines = server.log().len();
    // 100 lines at once for each of two streams, and a few more.
    assert!((200..300).contains(&lines), "{lines} lines");
}
