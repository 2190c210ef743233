//! Good and hostile clients of a hostile guest, together, for a while; then nothing is left of it.
//!
//! ```text
//! AIRLOCK_SOAK_SECONDS=600 cargo test -p host --release --test soak -- --ignored --nocapture
//! ```

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "it reports what it measured")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod authority;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod bombs;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod components;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod tls_client;

#[path = "soak/compiling.rs"]
mod compiling;
#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "walls/process.rs"]
mod process;
#[path = "soak/swaps.rs"]
mod swaps;

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use support::{Client, Mode, Server, eventually};

const GOOD_CLIENTS: u64 = 8;
const HOSTILE_CLIENTS: u64 = 24;

const ATTACKS: [&str; 12] = [
    "spin", "fill", "calls", "sleep", "flood", "recurse", "allocate", "reply", "panic", "trap",
    "abort", "exit",
];

#[test]
#[ignore = "takes as long as AIRLOCK_SOAK_SECONDS says"]
fn nothing_is_left_of_a_long_siege() {
    let seconds = env::var("AIRLOCK_SOAK_SECONDS").map_or(20, |text| text.parse().unwrap());
    // Calls are timed by the clock on the wall, and here all share two cores with spinning guests.
    let options = ["--call-timeout=1s", "--line-timeout=1s", "-qq"];
    let server = Server::with_guest("hostile", &options);
    let quiet = warm_up(&server, Duration::from_secs(seconds.clamp(5, 60)));
    let before = (server.descriptors(), server.resident_kib());
    let (conversations, attacks) = besiege(server.tcp(), Duration::from_secs(seconds));
    threads_have_ended(&server);
    let after = (server.descriptors(), server.resident_kib());
    eprintln!(
        "{seconds} s: {conversations} good conversations, {attacks} hostile ones; descriptors and \
         KiB were {before:?} and are {after:?}; {quiet} threads"
    );
    assert!(conversations > 0 && attacks > 0);
    assert!(after.0 <= before.0, "descriptors");
    assert!(after.1 <= before.1 + before.1 / 20, "memory");
}

/// Besieges until what is kept on purpose, slots of memory and the allocator's arenas, has stopped
/// to grow. A leak never does, and fails here or later.
fn warm_up(server: &Server, siege: Duration) -> u64 {
    let mut resident_kib = 0;
    for _ in 0..10 {
        besiege(server.tcp(), siege);
        let threads = threads_have_ended(server);
        let now_kib = server.resident_kib();
        if now_kib <= resident_kib + resident_kib / 50 {
            return threads;
        }
        resident_kib = now_kib;
    }
    panic!("{resident_kib} KiB and still growing");
}

/// Idle threads of connections end after 10 s.
fn threads_have_ended(server: &Server) -> u64 {
    // The accepting thread, signals, log, ticker, reload and its watch, and Tokio's two for WASI's
    // sleep; compiling starts two more on this machine's first compile, which stay.
    let most = 8 + 2 + Mode::tested().seats();
    eventually("threads end", || server.threads() <= most);
    server.threads()
}

fn besiege(address: SocketAddr, time: Duration) -> (u64, u64) {
    let (conversations, attacks) = (AtomicU64::new(0), AtomicU64::new(0));
    let deadline = Instant::now() + time;
    thread::scope(|scope| {
        for _ in 0..GOOD_CLIENTS {
            scope.spawn(|| {
                while Instant::now() < deadline {
                    converse(address);
                    conversations.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for seed in 0..HOSTILE_CLIENTS {
            let attacks = &attacks;
            scope.spawn(move || {
                let mut number = seed;
                while Instant::now() < deadline {
                    number = number
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    attack(address, (number >> 33) as usize);
                    attacks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (conversations.into_inner(), attacks.into_inner())
}

/// Every reply is right, whatever the others do.
fn converse(address: SocketAddr) {
    let mut client = Client::connect(address);
    assert_eq!(client.hear(), "ready\n");
    for _ in 0..10 {
        assert_eq!(client.ask("tell"), "secret: ");
    }
}

/// What a hostile client hears does not matter, and neither does how its connection ends.
fn attack(address: SocketAddr, number: usize) {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
    let _ = match number % 8 {
        0 => stream.write_all(b"half a line"),
        1 => stream.write_all(&[b'x'; 200_000]),
        2 => stream.write_all(&b"tell\n".repeat(20_000)),
        3 => stream.write_all(&[0xff; 1000]),
        4 => stream.shutdown(Shutdown::Write),
        _ => {
            let line = ATTACKS[number / 8 % ATTACKS.len()];
            let _ = writeln!(stream, "{line}");
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
    };
    if number.is_multiple_of(3) {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}
