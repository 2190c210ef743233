//! A guest for the tests that attacks its host in the way that the line names. Each attack that is
//! allowed, or returns, is reported as an answer, which is what the tests then fail on.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a guest's output is the server's log"
)]

#[allow(warnings, reason = "generated: see guest/tests/bindings.rs")]
#[path = "../../bindings.rs"]
#[rustfmt::skip]
mod bindings;

use std::hint::black_box;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, io, net, process, thread};

use bindings::airlock::line::connection;
use bindings::exports::airlock::line::handler::{Guest, Outcome};

/// Kept from one line to the next; another connection must never see it.
static SECRET: Mutex<String> = Mutex::new(String::new());

/// What the server says of a connection.
const FORGED: &str = "closed connection=7 peer=192.0.2.1:7 reason=the guest closed";

struct Hostile;

impl Guest for Hostile {
    fn greeting() -> Option<String> {
        match env::var("ATTACK_IN_GREETING") {
            // Not in its trial, which it has to pass.
            Ok(attack) if connection::id() > 0 => Some(perform(&attack)),
            _ => Some("ready".to_owned()),
        }
    }

    fn handle_line(line: String) -> Outcome {
        Outcome::Reply(perform(&line))
    }
}

fn perform(attack: &str) -> String {
    match attack {
        "spin" => loop {
            black_box(());
        },
        "announce and spin" => {
            println!("spinning");
            perform("spin")
        }
        "announce and work" => {
            println!("working");
            thread::sleep(Duration::from_millis(500));
            "worked".to_owned()
        }
        "fill" => {
            let mut block = vec![0_u8; 32 << 20];
            loop {
                black_box(&mut block).fill(1);
            }
        }
        "recurse" => recurse(0).to_string(),
        "sleep" => {
            thread::sleep(Duration::from_secs(3600));
            "slept".to_owned()
        }
        "poll" => loop {
            thread::sleep(Duration::from_millis(5));
        },
        "random" => random(60_000_000),
        "stdin" => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            format!("{read:?}")
        }
        "calls" => loop {
            black_box(connection::id());
        },
        "clocks" => loop {
            black_box(Instant::now());
        },
        "allocate" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(black_box(vec![1; 1 << 20]));
            }
        }
        "reply" => "x".repeat(32 << 20),
        "panic" => panic!("on purpose"),
        "exit" => process::exit(7),
        "abort" => process::abort(),
        "trap" => {
            let nothing: &[u8] = black_box(&[]);
            nothing[attack.len()].to_string()
        }
        "flood" => loop {
            println!("flood");
            eprintln!("flood");
        },
        "forge" => {
            println!("{FORGED}");
            eprintln!("\u{2028}\u{202e}INFO {FORGED}");
            "forged".to_owned()
        }
        "shout" => {
            for number in 0..1000 {
                println!("line {number}");
            }
            "shouted".to_owned()
        }
        "files" => report(&[
            fs::read_dir("/").map(drop),
            fs::read("/etc/hostname").map(drop),
            fs::write("/tmp/escaped", "x"),
            fs::create_dir("escaped"),
        ]),
        "sockets" => report(&[
            net::TcpStream::connect("127.0.0.1:9").map(drop),
            net::TcpListener::bind("127.0.0.1:0").map(drop),
            net::UdpSocket::bind("127.0.0.1:0").map(drop),
            net::ToSocketAddrs::to_socket_addrs("localhost:80").map(drop),
        ]),
        "environment" => format!("{:?} {:?}", env::vars().collect::<Vec<_>>(), env::args()),
        "tell" => format!("secret: {}", kept()),
        "search" => format!("found {}", search()),
        _ => match attack.strip_prefix("keep ").map(str::parse) {
            Some(Ok::<usize, _>(count)) => {
                let pattern = (0..PATTERN_BYTES).map(pattern).map(char::from);
                *kept() = pattern.cycle().take(count).collect();
                "kept".to_owned()
            }
            _ => format!("unknown: {attack}"),
        },
    }
}

#[cfg(target_family = "wasm")]
fn random(count: u64) -> String {
    let bytes = wasip2::random::random::get_random_bytes(count);
    format!("{} random bytes", bytes.len())
}

#[cfg(not(target_family = "wasm"))]
fn random(_: u64) -> String {
    String::new()
}

fn kept() -> MutexGuard<'static, String> {
    SECRET.lock().unwrap_or_else(PoisonError::into_inner)
}

const PATTERN_BYTES: usize = 16;

/// A byte of a pattern that stands nowhere in the component: it is computed.
fn pattern(n: usize) -> u8 {
    b'a' + black_box(n * 7 % 26) as u8
}

/// How often the pattern stands in all of this instance's memory, and in what it can still get.
#[cfg(target_family = "wasm")]
#[expect(unsafe_code, reason = "it looks where no reference leads")]
fn search() -> usize {
    use core::arch::wasm32::{memory_grow, memory_size};
    const PAGE_BYTES: usize = 65536;

    memory_grow::<0>(256);
    let (start, end) = (1024, memory_size::<0>() * PAGE_BYTES);
    // SAFETY: all of linear memory can be read, and nothing writes to it meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, end - start) };
    let found = bytes.windows(PATTERN_BYTES).filter(|window| {
        let mut bytes = window.iter().enumerate();
        bytes.all(|(n, &byte)| byte == pattern(n))
    });
    found.count()
}

#[cfg(not(target_family = "wasm"))]
fn search() -> usize {
    0
}

#[expect(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    black_box([depth; 64]);
    black_box(recurse(black_box(depth + 1))) + 1
}

/// Says which of the attempts were allowed.
fn report(attempts: &[io::Result<()>]) -> String {
    let allowed = attempts.iter().filter(|attempt| attempt.is_ok()).count();
    format!("{allowed} of {} allowed", attempts.len())
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "the generated exports are")]
mod component {
    super::bindings::export!(Hostile with_types_in super::bindings);
    use super::Hostile;
}
