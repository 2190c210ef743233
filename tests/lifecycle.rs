//! How a server ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::{AIRLOCK, Client, Server, eventually, guest, signal};

#[test]
fn ctrl_c_ends_the_server_with_status_0() {
    let mut server = Server::start(&[]);
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn idle_connections_are_told_that_the_server_ends() {
    let mut server = Server::start(&[]);
    let mut idle = server.greeted();
    let mut halfway = server.greeted();
    assert_eq!(halfway.ask("Ada"), "Hello, Ada!");
    halfway.send("Gra");
    server.logged(&["accepted", "connection=2"]);
    server.signal("TERM");
    assert_eq!(idle.rest(), "error: server is shutting down\n");
    assert_eq!(halfway.rest(), "error: server is shutting down\n");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn the_message_in_progress_is_answered_before_the_server_ends() {
    let mut server = Server::with_guest("hostile", &[]);
    let mut client = server.connect();
    assert_eq!(client.hear(), "ready\n");
    client.send("announce and work\n");
    server.logged(&["working", "connection=1"]);
    server.signal("TERM");
    assert_eq!(client.rest(), "worked\nerror: server is shutting down\n");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = Server::with_guest("hostile", &["--call-timeout=1h"]);
    let mut client = server.connect();
    client.send("announce and spin\n");
    server.logged(&["spinning", "connection=1"]);
    server.signal("INT");
    server.logged(&["shutting down"]);
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(1));
    assert!(client.is_gone());
}

#[test]
fn what_was_logged_before_a_second_signal_is_written() {
    const CLIENTS: usize = 500;
    let mut child = Command::new(AIRLOCK)
        .args(["--listen=127.0.0.1:0", "--call-timeout=1h", "--guest"])
        .arg(guest("hostile"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address: SocketAddr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let greeted = || {
        let mut client = Client::connect(address);
        assert_eq!(client.hear(), "ready\n");
        client
    };
    let mut spinning = greeted();
    spinning.send("spin\n");
    // More than a pipe holds, so that most of the log waits.
    (1..CLIENTS).for_each(|_| drop(greeted()));
    signal(child.id(), "TERM");
    eventually("it drains", || TcpStream::connect(address).is_err());
    signal(child.id(), "TERM");
    let mut log = String::new();
    let mut reader = child.stderr.take().unwrap();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let accepted = log.lines().filter(|line| line.contains("accepted"));
    // And who came only to see whether it drains.
    assert!(accepted.count() >= CLIENTS);
    assert!(log.contains("ending at once"), "{log}");
}

#[test]
fn what_does_not_end_within_the_drain_timeout_is_cut_with_status_1() {
    let options = ["--call-timeout=1h", "--drain-timeout=200ms"];
    let mut server = Server::with_guest("hostile", &options);
    let mut client = server.connect();
    client.send("announce and spin\n");
    server.logged(&["spinning", "connection=1"]);
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(1));
    server.logged(&["cut: they did not end in time", "connections=1"]);
    assert!(client.is_gone());
}

#[test]
fn the_listener_closes_at_once() {
    let mut server = Server::with_guest("hostile", &[]);
    let mut client = server.connect();
    client.send("announce and work\n");
    server.logged(&["working", "connection=1"]);
    server.signal("TERM");
    server.logged(&["shutting down"]);
    assert!(server.is_closed());
    assert_eq!(
        client.rest(),
        "ready\nworked\nerror: server is shutting down\n"
    );
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn the_server_does_not_end_while_a_reply_is_half_written() {
    const BYTES: usize = 32 << 20;
    // Over TLS a debug server takes its time for so much.
    let options = ["--max-reply=64MiB", "--drain-timeout=1m"];
    let mut server = Server::with_guest("hostile", &options);
    let mut client = server.connect();
    assert_eq!(client.hear(), "ready\n");
    // Far more than the kernel takes while nobody reads.
    client.send("reply\n");
    let mut start = [0; 1000];
    client.read_exact(&mut start);
    server.signal("TERM");
    server.logged(&["shutting down"]);
    let rest = client.rest();
    let (reply, goodbye) = rest.split_at(BYTES - start.len());
    assert!(
        start
            .iter()
            .chain(reply.as_bytes())
            .all(|&byte| byte == b'x')
    );
    assert_eq!(goodbye, "\nerror: server is shutting down\n");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_client_that_goes_on_sending_hears_the_goodbye_and_the_end() {
    const LINES: usize = 40;
    // All replies together are less than any kernel takes of a server, and far more than this client's.
    const LINE_BYTES: usize = 8000;
    let lines = format!("{}\n", "x".repeat(LINE_BYTES)).repeat(LINES);
    let replies = format!("unknown: {}\n", "x".repeat(LINE_BYTES)).repeat(LINES);
    let mut server = Server::with_guest("hostile", &["--drain-timeout=1m"]);
    let clients: Vec<_> = (1..=4)
        .map(|number| {
            let client = Client::connect_prepared(server.address.clone(), |socket| {
                socket.set_recv_buffer_size(4096).unwrap();
            });
            let mut sender = client.stream.try_clone().unwrap();
            let first = format!("{lines}announce and work\n");
            let sending = thread::spawn(move || {
                // Then a line without an end, of which nothing is answered that could fill a buffer.
                let mut next = first.as_bytes();
                while sender.write_all(next).is_ok() {
                    next = &[b'x'; 1000];
                }
            });
            server.logged(&["working", &format!("connection={number}")]);
            (client, sending)
        })
        .collect();
    server.signal("TERM");
    // Nobody has read yet, so the last words wait behind many others.
    let is_closed = |line: &String| line.contains("closed");
    eventually("all are closed", || {
        server.log().iter().filter(|line| is_closed(line)).count() == clients.len()
    });
    let readers = clients.into_iter().map(|(mut client, sending)| {
        thread::spawn(move || {
            // Slowly, for longer than one that takes nothing is given to close.
            let mut heard = Vec::new();
            for _ in 0..150 {
                heard.extend(client.receive());
                thread::sleep(Duration::from_millis(10));
            }
            // A reset would be an error.
            heard.extend(client.rest().as_bytes());
            // The server may have closed already.
            let _ = client.stream.shutdown(Shutdown::Both);
            sending.join().unwrap();
            heard
        })
    });
    let replies = format!("ready\n{replies}worked\n");
    // To the line without an end, if there was time for that.
    let refusal = "error: line is longer than 65536 bytes\n";
    for reader in readers.collect::<Vec<_>>() {
        let heard = String::from_utf8(reader.join().unwrap()).unwrap();
        let last = heard.strip_prefix(&replies).unwrap();
        let last = last.strip_prefix(refusal).unwrap_or(last);
        assert_eq!(last, "error: server is shutting down\n");
    }
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_client_that_has_been_told_and_stays_is_not_waited_for_beyond_the_drain() {
    let mut server = Server::start(&["--drain-timeout=1s"]);
    let mut client = server.greeted();
    server.signal("TERM");
    assert_eq!(client.hear(), "error: server is shutting down\n");
    // It does not close, and nothing is lost when the server does.
    assert_eq!(server.ended().code(), Some(0));
    assert_eq!(client.hear(), "");
}
