//! Clients that mean harm.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use airlock::process::capacity::Each;
use airlock::process::room::Need;
use airlock::settings::address::Scheme;

use crate::support::place::tested_door;
use crate::support::{Client, Mode, PATIENCE, Server, eventually, installed};

/// Room for the noise of an allocator, far below what an unbounded buffer would take here.
const BOUND_KIB: u64 = 8 * 1024;

#[test]
fn a_reset_in_any_state_ends_its_own_connection() {
    let server = Server::start(&["--env=DELAY_MS=50"]);
    type Prepare = fn(&mut Client);
    let states: [Prepare; 6] = [
        |_| {},
        |client| assert_eq!(client.hear(), "Welcome!\n"),
        |client| client.send("half a li"),
        |client| client.send("called\n"),
        |client| client.send("line\n".repeat(10_000)),
        |client| {
            client.send("last\n");
            client.finish();
        },
    ];
    for (number, prepare) in states.iter().enumerate() {
        let mut client = server.connect();
        prepare(&mut client);
        client.reset();
        let connection = format!("connection={} ", number + 1);
        server.logged(&["closed", &connection]);
    }
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn five_thousand_connects_and_resets_leave_nothing_behind() {
    let server = Server::start(&["-q"]);
    drop(server.greeted());
    let descriptors = server.descriptors();
    for _ in 0..5000 {
        server.connect().reset();
    }
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    eventually("descriptors are closed", || {
        server.descriptors() <= descriptors
    });
}

#[test]
fn a_flood_over_the_cap_is_turned_away_and_the_connected_are_served() {
    let server = Server::start(&["--max-connections=10", "-q"]);
    let mut members: Vec<_> = (0..10).map(|_| server.greeted()).collect();
    for n in 0..2000 {
        let refusal = server.refusal("error: too many connections\n");
        assert_eq!(server.connect().rest(), refusal);
        let member = &mut members[n % 10];
        assert_eq!(member.ask("Ada"), "Hello, Ada!");
    }
}

#[test]
fn as_many_clients_as_the_kernel_allows_come_back_at_once() {
    // More than a usual default, and no more than there are descriptors.
    const MOST: usize = 3000;
    let allowed = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let count = MOST.min(allowed.trim().parse().unwrap());
    airlock::process::capacity::claim(Each::DEFAULT, 0);
    let server = Server::start(&["-q"]);
    // Nobody accepts; the kernel answers for those who have room in its queue.
    server.signal("STOP");
    let clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    server.signal("CONT");
    for mut client in clients {
        assert_eq!(client.hear(), "Welcome!\n");
    }
}

/// Connections of proxies that do not say whose they are, until they are let go.
#[test]
fn thousands_without_a_header_take_neither_threads_nor_sandboxes() {
    const COUNT: usize = 2000;
    airlock::process::capacity::claim(Each::DEFAULT, 0);
    let door = "--listen=127.0.0.1:0?proxy-protocol=127.0.0.1";
    let server = Server::start(&["-q", door]);
    let connect = || TcpStream::connect_timeout(&server.tcp(), PATIENCE).unwrap();
    let mut first = server.connect();
    first.send("PROXY UNKNOWN\r\n");
    assert_eq!(first.hear(), "Welcome!\n");
    let (threads, memory_kib) = (server.threads(), server.resident_kib());
    let mut waiting: Vec<_> = (0..COUNT).map(|_| connect()).collect();
    for stream in &mut waiting {
        stream.write_all(b"PROXY TCP4 ").unwrap();
    }
    // Whoever has a header is served among them.
    let mut among = server.connect();
    among.send("PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\nAda\n");
    assert_eq!(among.hear(), "Welcome!\n");
    assert_eq!(among.hear(), "Hello, Ada!\n");
    // A thread for that one, and a spare.
    assert!(server.threads() <= threads + 2, "{}", server.threads());
    let grown_kib = server.resident_kib().saturating_sub(memory_kib);
    assert!(grown_kib < BOUND_KIB, "{grown_kib} KiB");
    for mut stream in waiting {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "error: no PROXY header\n");
    }
}

/// Comes from another address of this machine.
fn connect_from(last: u8, server: &Server) -> Client {
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    Client::connect_prepared(server.address.clone(), |socket| {
        socket.bind(&source.into()).unwrap();
    })
}

#[test]
fn one_address_has_no_more_than_its_share() {
    let server = Server::start(&["--max-connections-per-ip=2"]);
    let from = |last| {
        let mut client = connect_from(last, &server);
        let answer = client.hear();
        (client, answer)
    };
    let first = from(2);
    let second = from(2);
    assert_eq!([&first.1, &second.1], ["Welcome!\n"; 2]);
    let refusal = server.refusal("error: too many connections\n");
    assert_eq!(from(2).1, refusal);
    assert_eq!(from(3).1, "Welcome!\n");
    server.logged(&[
        "refusing connections",
        "127.0.0.2",
        "--max-connections-per-ip",
    ]);
    drop(first);
    eventually("there is room again", || from(2).1 == "Welcome!\n");
}

#[test]
fn a_million_newlines_in_one_write_are_a_million_lines() {
    const LINES: usize = 1_000_000;
    let server = Server::start(&[]);
    let mut client = server.greeted();
    let mut sender = client.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![b'\n'; LINES]).unwrap());
        let mut replies = vec![0; LINES * "Hello, !\n".len()];
        client.read_exact(&mut replies);
        assert!(replies.chunks(9).all(|reply| reply == b"Hello, !\n"));
    });
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_line_of_a_gibibyte_is_refused_and_never_stored() {
    // Time enough to take the mask from so much.
    let server = Server::start(&["--line-timeout=5m"]);
    let mut client = server.greeted();
    let before_kib = server.resident_kib();
    let block = vec![b'x'; 1 << 20];
    // Elsewhere a debug server takes minutes for what says no more than this.
    let blocks = if tested_door() == Scheme::Tcp {
        1024
    } else {
        128
    };
    for _ in 0..blocks {
        client.send(&block);
    }
    let after_kib = server.resident_kib();
    assert!(
        after_kib < before_kib + BOUND_KIB,
        "{before_kib} KiB became {after_kib} KiB"
    );
    client.send("\nAda\n");
    assert_eq!(client.hear(), "error: line is longer than 65536 bytes\n");
    assert_eq!(client.hear(), "Hello, Ada!\n");
}

#[test]
fn reading_stops_while_a_client_does_not_read_and_memory_stays_bounded() {
    let server = Server::start(&["--write-timeout=5s"]);
    let mut client = server.greeted();
    let before_kib = server.resident_kib();
    let mut sender = client.stream.try_clone().unwrap();
    let lines = "x".repeat(999) + "\n";
    let block = lines.repeat(1000);
    thread::scope(|scope| {
        // 100 MB, of which the kernels' buffers take a few. The rest is never sent.
        let sending = scope.spawn(move || {
            for _ in 0..100 {
                if sender.write_all(block.as_bytes()).is_err() {
                    return false;
                }
            }
            true
        });
        // Slowly: a reply now and then keeps the connection from being cut.
        for _ in 0..100 {
            let reply = client.hear();
            assert_eq!(reply.len(), "Hello, !\n".len() + 999);
            thread::sleep(Duration::from_millis(5));
        }
        let after_kib = server.resident_kib();
        assert!(
            after_kib < before_kib + BOUND_KIB,
            "{before_kib} KiB became {after_kib} KiB"
        );
        assert!(!sending.is_finished());
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(!sending.join().unwrap());
    });
}

#[test]
fn every_byte_is_taken_for_what_it_is() {
    let server = Server::start(&["--framing=lines"]);
    let mut client = server.greeted();
    for byte in 0..=255_u8 {
        client.send([byte, b'\n']);
        let expected = match byte {
            b'\n' => "Hello, !\n".to_owned(),
            b'\r' => "Hello, !\r\n".to_owned(),
            0x80.. => "error: line is not valid UTF-8\n".to_owned(),
            _ => format!("Hello, {}!\n", char::from(byte)),
        };
        assert_eq!(client.hear(), expected, "{byte:#x}");
        if byte == b'\n' {
            assert_eq!(client.hear(), expected);
        }
    }
    // A carriage return alone ends nothing.
    client.send("a\rb\n");
    assert_eq!(client.hear(), "Hello, a\rb!\n");
}

/// Lowers the limit of open files under a running server, and raises it again.
fn limit_descriptors(server: &Server, most: usize) {
    let status = Command::new("prlimit")
        .arg(format!("--pid={}", server.id()))
        .arg(format!("--nofile={most}:"))
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_server_out_of_descriptors_waits_without_spinning_and_recovers() {
    if !installed("prlimit") {
        return;
    }
    let server = Server::start(&[]);
    let mut connected = server.greeted();
    let most = server.descriptors();
    limit_descriptors(&server, most);
    // The kernel completes the connection; the server cannot take it.
    let mut waiting = server.connect();
    server.logged(&["cannot accept for want of resources"]);
    let (began, before) = (Instant::now(), server.processor_time());
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(connected.ask("Ada"), "Hello, Ada!");
        thread::sleep(Duration::from_millis(50));
    }
    // A loop without a pause would have taken about all of it.
    let spent = server.processor_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of a second");
    limit_descriptors(&server, 1000);
    assert_eq!(waiting.hear(), "Welcome!\n");
    assert_eq!(waiting.ask("Ada"), "Hello, Ada!");
}

/// Among them is the signal stack that Wasmtime makes for a thread whose own is smaller than it needs
/// (`signal_stack.rs`): should it ever need more, each connection takes two mappings more.
#[test]
fn a_connection_takes_no_more_mappings_than_are_reckoned() {
    const CLIENTS: u64 = 200;
    let server = Server::start(&["-q"]);
    let hold = |count| -> Vec<_> {
        (0..count)
            .map(|_| {
                let mut client = server.greeted();
                assert_eq!(client.ask("Ada"), "Hello, Ada!");
                client
            })
            .collect()
    };
    let first = hold(20);
    let before = server.mappings();
    let others = hold(CLIENTS);
    let mappings = server.mappings() - before;
    drop((first, others));
    let need = Need {
        memories: 1,
        images: false,
        memory_bytes: 0,
    };
    let reckoned = CLIENTS * need.mappings();
    eprintln!("{mappings} mappings; {reckoned} are reckoned");
    // Heaps of threads come and go.
    assert!(mappings <= reckoned + 20, "{mappings} and {reckoned}");
}

/// `cargo test -p host --release --test walls -- --ignored thousands --nocapture` prints the figures.
#[test]
#[ignore = "needs 20 000 descriptors, and most of the machine"]
fn thousands_of_connections_are_held_and_served() {
    let (most, thread, options) = match Mode::tested() {
        Mode::PerConnection => (10_000, true, &["-qq"][..]),
        // What so many guests might use is more than half of a usual machine's memory.
        Mode::Shared(_) => (19_000, false, &["-qq", "--total-guest-memory=24GiB"][..]),
    };
    // One descriptor each: this process has as few as the server.
    let room = airlock::process::capacity::claim(Each { files: 1, thread }, 0);
    let count = room.connections.min(most);
    let server = Server::start(options);
    for _ in 0..100 {
        drop(server.greeted());
    }
    let (before_kib, began) = (server.resident_kib(), Instant::now());
    let hear = |mut stream: &TcpStream, text: &str| {
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, text.as_bytes());
    };
    let clients: Vec<_> = (0..count)
        .map(|number| {
            // An address has ports for 28 000, and a kernel takes its time to find the last of them.
            let mut client = connect_from(1 + (number / 5000) as u8, &server);
            assert_eq!(client.hear(), "Welcome!\n");
            TcpStream::from(client.stream)
        })
        .collect();
    let (held_kib, connected) = (server.resident_kib(), began.elapsed());
    let began = Instant::now();
    for mut client in &clients {
        client.write_all(b"Ada\n").unwrap();
    }
    for client in &clients {
        hear(client, "Hello, Ada!\n");
    }
    let answered = began.elapsed();
    eprintln!(
        "{count} connections (there is room for {}, bounded by {}) in {connected:?}; {} KiB resident \
         for each; a line for each was answered in {answered:?}",
        room.connections,
        room.bound,
        (held_kib - before_kib) / count as u64
    );
    assert!(answered < Duration::from_secs(5));
}
