//! How a server ends.

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
