//! How a server ends.

use std::io::ErrorKind;
use std::net::TcpStream;

use crate::support::Server;

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
    let refused = TcpStream::connect(server.address).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    assert_eq!(
        client.rest(),
        "ready\nworked\nerror: server is shutting down\n"
    );
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn the_server_does_not_end_while_a_reply_is_half_written() {
    const BYTES: usize = 32 << 20;
    let options = ["--max-reply=64MiB"];
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
