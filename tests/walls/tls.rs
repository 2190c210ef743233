//! Clients that mean harm, at a door for TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use airlock::limits::process::CROWDED_HANDSHAKE_TIME;
use rustls::version::TLS13;

use crate::authority::Authority;
use crate::support::eventually;
use crate::tls_client::{Trust, VERSIONS, connect, greeted, started};

/// The beginning of a handshake, up to the server's turn.
fn client_hello(authority: &Authority) -> Vec<u8> {
    Trust::new(authority).client_hello()
}

#[test]
fn slow_handshakes_cost_no_thread_and_keep_nobody_out() {
    // More than are under way at once.
    const SLOW: usize = 1500;
    airlock::process::capacity::raise_open_files();
    let (server, authority) = started(&["-q"]);
    let trust = Trust::new(&authority);
    let mut inside = greeted(&trust, &server);
    let (threads, before_kib) = (server.threads(), server.resident_kib());
    let hello = client_hello(&authority);
    let slow: Vec<TcpStream> = (0..SLOW)
        .map(|number| {
            let mut stream = connect(server.tcp());
            // Nothing, half of it, or all but the rest of the handshake.
            let bytes = [0, hello.len() / 2, hello.len()][number % 3];
            stream.write_all(&hello[..bytes]).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(greeted(&trust, &server).ask("Ada"), "Hello, Ada!");
        assert_eq!(inside.ask("Eve"), "Hello, Eve!");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    // One of those that came in between.
    assert!(server.threads() <= threads + 2, "{}", server.threads());
    let grown_kib = server.resident_kib().saturating_sub(before_kib);
    assert!(grown_kib < SLOW as u64 * 64, "{grown_kib} KiB");
    for mut stream in slow {
        let mut heard = Vec::new();
        // Closed or reset, and in the time of a handshake.
        let _ = stream.read_to_end(&mut heard);
    }
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(inside.ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_slow_handshake_is_not_hurried_while_there_is_room_for_others() {
    let (server, authority) = started(&[]);
    let trust = Trust::new(&authority);
    let (slow, began) = (connect(server.tcp()), Instant::now());
    while began.elapsed() < 2 * CROWDED_HANDSHAKE_TIME {
        assert_eq!(greeted(&trust, &server).ask("Ada"), "Hello, Ada!");
    }
    let mut slow = trust.shake_hands(slow, "localhost").unwrap();
    assert_eq!(slow.hear(), "Welcome!\n");
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let (server, authority) = started(&[]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], None);
        let mut client = trust.connect_byte_by_byte(server.tcp());
        assert_eq!(client.hear(), "Welcome!\n");
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
}

#[test]
fn garbage_in_place_of_a_handshake_ends_its_own_connection() {
    let (server, authority) = started(&[]);
    let trust = Trust::new(&authority);
    let mut inside = greeted(&trust, &server);
    let hello = client_hello(&authority);
    let mut torn = hello.clone();
    torn[9..60].fill(0xa5);
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    endless.resize(200_000, 0);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 70_000],
        vec![0xff; 70_000],
        [hello.clone(), vec![0xa5; 5000]].concat(),
        [hello.clone(), hello].concat(),
        torn,
        endless,
        // Alerts, and an empty record, again and again.
        [21, 3, 3, 0, 2, 1, 0].repeat(1000),
        [22, 3, 3, 0, 0].repeat(1000),
    ] {
        let mut stream = connect(server.tcp());
        // It may be gone in the middle.
        let _ = stream.write_all(&bytes);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert_eq!(inside.ask("Ada"), "Hello, Ada!");
    }
}

#[test]
fn garbage_after_the_handshake_ends_its_own_connection() {
    let (server, authority) = started(&[]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], None);
        for garbage in [&b"Ada\n"[..], &[23, 3, 3, 0, 20], &[0xff; 20_000]] {
            let mut client = greeted(&trust, &server);
            assert_eq!(client.ask("Ada"), "Hello, Ada!");
            let mut socket = client.socket();
            socket.write_all(garbage).unwrap();
            // The rest of a record.
            let _ = socket.write_all(&[0; 20]);
            assert!(client.try_rest().is_err());
        }
    }
    server.logged(&["closed", "the connection broke", "lines=1"]);
}

/// As a client that sends a byte of a line now and then does not.
#[test]
fn records_without_content_do_not_count_as_being_heard() {
    let (server, authority) = started(&["--idle-timeout=1s", "--line-timeout=1s"]);
    let trust = Trust::with(&authority, &[&TLS13], None);
    for begin in ["", "half a li"] {
        let mut client = greeted(&trust, &server);
        client.send(begin);
        let began = Instant::now();
        let error = loop {
            // An update of keys is a record, and no content.
            let updated = client.connection().refresh_traffic_keys();
            if let Err(error) = updated
                .map_err(|_| ErrorKind::Other.into())
                .and_then(|()| client.flush())
            {
                break error;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it is heard");
            thread::sleep(Duration::from_millis(50));
        };
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(900), "{took:?}: {error}");
    }
    server.logged(&["closed", "timed out waiting for a line"]);
}

#[test]
fn a_line_in_a_hundred_thousand_records_is_one_line() {
    const RECORDS: usize = 100_000;
    let (server, authority) = started(&["--max-line=1MiB"]);
    let trust = Trust::new(&authority);
    let mut beside = greeted(&trust, &server);
    let mut client = greeted(&trust, &server);
    let before_kib = server.resident_kib();
    for part in 0..RECORDS / 1000 {
        for _ in 0..1000 {
            client.send("x");
        }
        assert_eq!(beside.ask("Ada"), "Hello, Ada!", "{part}");
    }
    client.send("\n");
    assert_eq!(client.hear().len(), "Hello, !\n".len() + RECORDS);
    let grown_kib = server.resident_kib().saturating_sub(before_kib);
    assert!(grown_kib < 8 * 1024, "{grown_kib} KiB");
}

#[test]
fn a_tls_client_that_does_not_read_is_let_go() {
    let (server, authority) = started(&["--write-timeout=1s", "--max-reply=16MiB"]);
    let trust = Trust::new(&authority);
    let mut client = greeted(&trust, &server);
    let line = format!("{}\n", "x".repeat(60_000));
    client.send_until_stalled(line.as_bytes());
    server.logged(&["closed", "the client does not read"]);
    eventually("its memory comes back", || server.threads() < 40);
}
