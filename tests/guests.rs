//! Which guest is served, and what an instance is to its connection.

use std::fs;
use std::path::Path;

use crate::support::{Client, Server, build_guests, root};
use airlock::settings::address::Address;

#[test]
fn two_connections_never_see_each_others_state() {
    let server = Server::with_guest("counter", &[]);
    let mut first = server.connect();
    let mut second = server.connect();
    assert_eq!(first.ask("count"), "1");
    assert_eq!(first.ask("count"), "2");
    assert_eq!(second.ask("count"), "1");
    assert_eq!(first.ask("count"), "3");
    drop((first, second));
    // Threads and memory are used again; the state is not.
    for _ in 0..20 {
        assert_eq!(server.connect().ask("count"), "1");
    }
}

#[test]
fn a_guest_knows_its_connection() {
    let server = Server::with_guest("counter", &[]);
    let mut first = server.connect();
    let mut second = server.connect();
    assert_eq!(first.ask("id"), "1");
    assert_eq!(second.ask("id"), "2");
    for client in [&mut first, &mut second] {
        let here = client.address();
        assert_eq!(client.ask("peer"), here);
        assert_eq!(client.ask("local"), server.address.to_string());
    }
}

#[test]
fn a_guest_knows_that_plain_text_is_not_encrypted_and_from_nobody() {
    let server = Server::with_guest("counter", &[]);
    let mut client = server.connect();
    assert_eq!(client.ask("encrypted"), "false");
    assert_eq!(client.ask("identity"), "nobody");
}

/// They were built before anything was added to the contract, and are kept as they were.
#[test]
fn guests_of_the_first_release_are_served() {
    let built = |name| format!("{}/tests/guests/built/{name}-0.1.wasm", root().display());
    let server = Server::start(&["--guest", &built("greeter")]);
    let mut client = server.greeted();
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    let server = Server::start(&["--guest", &built("counter")]);
    let mut client = server.connect();
    assert_eq!(client.ask("count"), "1");
    assert_eq!(client.ask("local"), server.address.to_string());
    let here = client.address();
    assert_eq!(client.ask("peer"), here);
}

#[test]
fn a_listener_on_all_interfaces_knows_which_one_was_reached() {
    let server = Server::with_guest("counter", &["--listen=[::]:0"]);
    let port = server.tcp().port();
    for address in [format!("127.0.0.3:{port}"), format!("[::1]:{port}")] {
        let mut client = Client::connect(address.parse::<Address>().unwrap());
        assert_eq!(client.ask("local"), address);
    }
}

#[test]
fn a_guest_may_say_nothing_and_may_close_with_a_word() {
    let server = Server::with_guest("counter", &[]);
    let mut client = server.connect();
    client.send("nothing\ncount\nbye\n");
    assert_eq!(client.rest(), "2\ngoodbye\n");
}

/// The promise of docs/guests.md: edit the guest, build it by hand, and the same server behaves differently.
#[test]
fn a_changed_guest_changes_behaviour_with_the_same_host() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tests")).unwrap();
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "bench",
        "examples",
        "guest",
        "host",
        "wit",
        "tests/guests",
    ] {
        copy(&root().join(part), &folder.path().join(part));
    }
    let logic = folder.path().join("guest/src/greeting.rs");
    let source = fs::read_to_string(&logic).unwrap();
    fs::write(&logic, source.replace("Hello, ", "Goodbye, ")).unwrap();
    let built = build_guests(folder.path(), &["guest"]).join("guest.wasm");
    // Another test may build the original next.
    let changed = folder.path().join("changed.wasm");
    fs::copy(built, &changed).unwrap();

    assert_eq!(Server::start(&[]).greeted().ask("Ada"), "Hello, Ada!");
    let server = Server::start(&["--guest", changed.to_str().unwrap()]);
    assert_eq!(server.greeted().ask("Ada"), "Goodbye, Ada!");
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

#[test]
fn the_greeter_is_small() {
    let bytes = airlock::GREETER.len();
    assert!(bytes < 100_000, "the greeter has {bytes} bytes");
}

#[test]
fn a_guest_that_fails_in_its_greeting_is_ended() {
    for attack in ["spin", "sleep", "panic", "exit"] {
        let attack = format!("--env=ATTACK_IN_GREETING={attack}");
        let server = Server::with_guest("hostile", &["--call-timeout=100ms", &attack]);
        assert_eq!(server.connect().rest(), "error: the guest failed\n");
    }
}

#[test]
fn what_a_guest_prints_goes_to_the_log_with_its_connection() {
    let server = Server::with_guest("hostile", &[]);
    let mut client = server.connect();
    client.send("shout\n");
    assert_eq!(client.hear(), "ready\n");
    assert_eq!(client.hear(), "shouted\n");
    server.logged(&["line 0", "connection=1", "stdout"]);
    client.send("tell\n");
    client.finish();
    client.rest();
    server.logged(&["lines of the guest's output were dropped", "dropped="]);
}
