//! Connections beside others that keep a thread busy: nobody waits for somebody else, whether each
//! has a thread of its own or all share a few.

use std::fs;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Server, eventually};

/// The ways to schedule.
const MODES: [&str; 3] = ["--threads=per-connection", "--threads=1", "--threads=2"];

fn ready(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.hear(), "ready\n");
    client
}

/// Has all of them ask at the same time for what takes the guest a while.
fn ask_together(clients: &mut [Client]) {
    for client in &mut *clients {
        client.send("Ada\n");
    }
    for client in clients {
        assert_eq!(client.hear(), "Hello, Ada!\n");
    }
}

#[test]
fn two_hundred_guests_that_wait_do_not_wait_for_each_other() {
    const CLIENTS: u32 = 200;
    for mode in MODES {
        let server = Server::start(&[mode, "-q", "--env=DELAY_MS=1000"]);
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.greeted()).collect();
        let began = Instant::now();
        ask_together(&mut clients);
        let took = began.elapsed();
        eprintln!("{mode}: {CLIENTS} guests that wait for a second took {took:?}");
        assert!(took < Duration::from_secs(4), "{mode}: {took:?}");
    }
}

#[test]
fn guests_that_compute_delay_nobody_else() {
    for mode in MODES {
        // It does not end by itself before the others have been answered.
        let server = Server::with_guest("hostile", &[mode, "--call-timeout=25s"]);
        let mut others: Vec<_> = (0..3).map(|_| ready(&server)).collect();
        let mut spinning = [ready(&server), ready(&server)];
        for client in &mut spinning {
            client.send("announce and spin\n");
        }
        eventually("both spin", || {
            let log = server.log();
            log.iter().filter(|line| line.ends_with("spinning")).count() == spinning.len()
        });
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            for client in &mut others {
                let asked = Instant::now();
                assert_eq!(client.ask("tell"), "secret: ", "{mode}");
                longest = longest.max(asked.elapsed());
            }
            // Who comes meanwhile is greeted.
            ready(&server);
        }
        eprintln!("{mode}: {longest:?} beside guests that compute");
        for client in &mut spinning {
            client.stream.set_nonblocking(true).unwrap();
            let heard = client.stream.read(&mut [0]);
            let still = heard.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            assert!(still, "{mode}: the others had to wait for its end");
        }
    }
}

#[test]
fn who_sends_without_a_pause_and_who_does_not_read_starve_nobody() {
    for mode in MODES {
        let server = Server::start(&[mode, "-q"]);
        let (mut flooding, mut deaf, mut third) =
            (server.greeted(), server.greeted(), server.greeted());
        let (lines, done) = ("\n".repeat(1 << 16), AtomicBool::new(false));
        let began = Instant::now();
        let longest = thread::scope(|scope| {
            let mut replies = flooding.stream.try_clone().unwrap();
            scope.spawn(move || io::copy(&mut replies, &mut io::sink()));
            for sender in [&mut flooding, &mut deaf] {
                let (mut sender, lines, done) = (sender.stream.try_clone().unwrap(), &lines, &done);
                sender
                    .set_write_timeout(Some(Duration::from_millis(100)))
                    .unwrap();
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) && began.elapsed() < PATIENCE {
                        // Whoever does not read cannot send in the end.
                        let _ = sender.write(lines.as_bytes());
                    }
                });
            }
            let mut longest = Duration::ZERO;
            while began.elapsed() < Duration::from_secs(1) {
                let asked = Instant::now();
                assert_eq!(third.ask("Ada"), "Hello, Ada!", "{mode}");
                longest = longest.max(asked.elapsed());
            }
            done.store(true, Ordering::Relaxed);
            flooding.stream.shutdown(std::net::Shutdown::Both).unwrap();
            longest
        });
        eprintln!("{mode}: {longest:?} beside a flood");
    }
}

/// Threads end when they have had nothing to do for 10 s.
#[test]
fn the_threads_of_guests_that_waited_end() {
    const CLIENTS: usize = 100;
    thread::scope(|scope| {
        for mode in MODES {
            scope.spawn(move || {
                let server =
                    Server::start(&[mode, "-q", "--env=DELAY_MS=5000", "--call-timeout=30s"]);
                // WASI's clock has threads too, which stay.
                ask_together(&mut [server.greeted()]);
                let before = server.threads();
                let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.greeted()).collect();
                for client in &mut clients {
                    client.send("Ada\n");
                }
                eventually("each that waits has a thread", || {
                    server.threads() > CLIENTS as u64
                });
                for client in &mut clients {
                    assert_eq!(client.hear(), "Hello, Ada!\n");
                }
                let most = server.threads();
                drop(clients);
                eventually("they end", || server.threads() <= before);
                eprintln!(
                    "{mode}: {before} threads became {most} and {}",
                    server.threads()
                );
            });
        }
    });
}

#[test]
fn connections_are_spread_over_the_threads_that_share_them() {
    const CLIENTS: usize = 60;
    let server = Server::start(&["--threads=2", "-q"]);
    let _clients: Vec<_> = (0..CLIENTS).map(|_| server.greeted()).collect();
    let counts = || {
        let mut counts: Vec<_> = fs::read_dir(format!("/proc/{}/fdinfo", server.id()))
            .unwrap()
            .map(|file| {
                // An epoll descriptor names each of those that it waits for.
                let text = fs::read_to_string(file.unwrap().path()).unwrap();
                text.lines().filter(|line| line.starts_with("tfd:")).count()
            })
            .collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        [counts[0], counts[1]]
    };
    // They are told of their first line when they have been greeted.
    eventually("all wait", || counts().iter().sum::<usize>() >= CLIENTS);
    let [most, fewer] = counts();
    eprintln!("{most} and {fewer}");
    assert!(fewer >= CLIENTS / 3, "{most} and {fewer}");
}
