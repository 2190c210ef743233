//! Every limit that a client can run into, and what it is told.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Client, Server, eventually};

#[test]
fn a_line_over_the_limit_is_refused_and_the_next_one_served() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    let most = "x".repeat(64 * 1024);
    assert_eq!(client.ask(&most), format!("Hello, {most}!"));
    let refusal = "error: line is longer than 65536 bytes";
    assert_eq!(client.ask(&format!("{most}x")), refusal);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    client.send("y".repeat(1_000_000));
    // The answer does not wait for the end of the line.
    assert_eq!(client.hear(), format!("{refusal}\n"));
    client.send("\nAda\n");
    assert_eq!(client.hear(), "Hello, Ada!\n");
}

#[test]
fn a_line_that_is_not_utf8_is_refused_and_the_next_one_served() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    client.send(b"\xff\xfe\nAda\n");
    assert_eq!(client.hear(), "error: line is not valid UTF-8\n");
    assert_eq!(client.hear(), "Hello, Ada!\n");
}

#[test]
fn a_connection_over_the_cap_is_told_so_and_has_room_later() {
    let server = Server::start(&["--max-connections=2"]);
    let first = server.greeted();
    let _second = server.greeted();
    let mut third = server.connect();
    assert_eq!(
        third.rest(),
        server.refusal("error: too many connections\n")
    );
    drop(first);
    eventually("there is room again", || {
        server.connect().hear() == "Welcome!\n"
    });
    server.logged(&["refusing connections", "all 2 connections are taken"]);
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let server = Server::start(&["--idle-timeout=100ms"]);
    let mut client = server.greeted();
    assert_eq!(client.rest(), "error: timed out waiting for a line\n");
}

#[test]
fn a_line_that_is_not_finished_in_its_time_ends_the_connection() {
    let server = Server::start(&["--line-timeout=500ms", "--framing=lines"]);
    let mut client = server.greeted();
    // A byte now and then keeps a connection from being idle, but not from being late.
    let mut trickle = client.stream.try_clone().unwrap();
    let trickling = thread::spawn(move || {
        while std::io::Write::write_all(&mut trickle, b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(client.hear(), "error: timed out waiting for a line\n");
    assert!(client.is_gone());
    trickling.join().unwrap();
}

#[test]
fn the_time_of_a_refused_line_is_not_counted_against_the_next() {
    let server = Server::start(&["--line-timeout=3s", "--max-line=10"]);
    let mut client = server.greeted();
    client.send("y".repeat(20));
    assert_eq!(client.hear(), "error: line is longer than 10 bytes\n");
    client.send("y\n");
    // The next line begins after the time of the last one has passed.
    thread::sleep(Duration::from_millis(3200));
    client.send("A");
    thread::sleep(Duration::from_millis(100));
    client.send("da\n");
    assert_eq!(client.hear(), "Hello, Ada!\n");
}

#[test]
fn a_long_stream_of_whole_lines_is_never_late() {
    let server = Server::start(&["--line-timeout=2s"]);
    let mut client = server.greeted();
    // Every read ends in the middle of a line, for much longer than one line may take.
    client.send("a\nb");
    assert_eq!(client.hear(), "Hello, a!\n");
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(200));
        client.send("c\nb");
        assert_eq!(client.hear(), "Hello, bc!\n");
    }
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let server = Server::start(&["--write-timeout=300ms"]);
    let client = server.greeted();
    let mut sender = client.stream.try_clone().unwrap();
    // Until both kernels' buffers are full and the server stops reading too.
    let sending = thread::spawn(move || {
        let lines = "x".repeat(1000) + "\n";
        while std::io::Write::write_all(&mut sender, lines.repeat(100).as_bytes()).is_ok() {}
    });
    server.logged(&["closed", "the client does not read"]);
    sending.join().unwrap();
}

/// A client with little room, for which a large reply waits.
fn reader_of_a_large_reply(server: &Server) -> Client {
    let mut client = Client::connect_prepared(server.address.clone(), |socket| {
        // It lasts for the connection, so that each read makes room that the server hears of.
        socket.set_recv_buffer_size(4096).unwrap();
    });
    client.send("reply\n");
    client
}

/// For replies that no buffer takes, and clients that are waited for two seconds.
const LARGE_REPLIES: [&str; 3] = [
    "--write-timeout=2s",
    "--max-reply=64MiB",
    "--guest-memory=128MiB",
];

#[test]
fn a_client_that_reads_slowly_and_steadily_is_not_let_go() {
    let server = Server::with_guest("hostile", &LARGE_REPLIES);
    let mut client = reader_of_a_large_reply(&server);
    // 25 kB a second, for much longer than the limit, of far more than any buffer takes.
    for _ in 0..60 {
        client.read_exact(&mut [0; 2500]);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(!server.log().iter().any(|line| line.contains("closed")));
    // When it stops, it is.
    server.logged(&["closed", "the client does not read"]);
}

#[test]
fn a_client_that_reads_a_byte_now_and_then_is_let_go() {
    let server = Server::with_guest("hostile", &LARGE_REPLIES);
    let mut client = reader_of_a_large_reply(&server);
    let closed = Arc::new(AtomicBool::new(false));
    let dripping = thread::spawn({
        let closed = Arc::clone(&closed);
        move || {
            while !closed.load(Ordering::SeqCst) && client.stream.read_exact(&mut [0]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    server.logged(&["closed", "the client does not read"]);
    closed.store(true, Ordering::SeqCst);
    dripping.join().unwrap();
}

#[test]
fn a_reply_over_the_limit_fails_the_guest() {
    let server = Server::start(&["--max-reply=1KiB"]);
    let mut client = server.greeted();
    let name = "x".repeat(1024 - "Hello, !".len());
    assert_eq!(client.ask(&name), format!("Hello, {name}!"));
    assert_eq!(client.ask(&format!("{name}x")), "error: the guest failed");
    server.logged(&["closed", "it answered 1025 bytes and the limit is 1024"]);
}

#[test]
fn a_chunk_client_is_refused_in_its_own_framing() {
    let server = Server::start(&["--framing=chunks", "--max-connections=1"]);
    let mut client = server.connect();
    assert_eq!(client.receive(), b"Welcome!");
    let refusal = server.refusal("error: too many connections");
    assert_eq!(server.connect().rest(), refusal);
    client.send(b"\xff");
    assert_eq!(client.receive(), b"error: line is not valid UTF-8");
}

#[test]
fn a_flood_of_connections_and_resets_leaves_the_server_serving() {
    let server = Server::start(&["-q"]);
    for _ in 0..1000 {
        server.connect().reset();
    }
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}
