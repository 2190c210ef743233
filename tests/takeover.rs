//! The next process takes over, and no client notices.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use airlock::shutdown::Shutdown;
use airlock::takeover::{Door, Offer};
use tempfile::TempDir;

use crate::support::{AIRLOCK, Client, PATIENCE, Server, eventually, run};

/// Where two processes meet: a folder for as long as the test lasts, the path in it, and the option
/// that names it.
fn meeting_place() -> (TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("airlock.sock");
    let option = format!("--takeover={}", path.display());
    (folder, path, option)
}

#[test]
fn nobody_is_refused_while_one_process_takes_over_from_another() {
    const PAUSE: Duration = Duration::from_millis(20);
    let (_folder, path, option) = meeting_place();
    let mut server = Server::start(&[&option]);
    let address = server.address;
    let (stop, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // 50 a second, each on time, whatever became of the one before.
        scope.spawn(|| {
            let mut next = Instant::now();
            let deadline = next + PATIENCE;
            while !stop.load(Ordering::Relaxed) && next < deadline {
                begun.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    assert_eq!(client.hear(), "Welcome!\n");
                    for name in ["Ada", "Grace"] {
                        assert_eq!(client.ask(name), format!("Hello, {name}!"));
                    }
                    client.send("exit\n");
                    assert_eq!(client.rest(), "");
                });
                next += PAUSE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        for round in 1..=5 {
            eventually("clients come and go", || {
                begun.load(Ordering::Relaxed) > round * 25
            });
            let next = Server::start(&[&option]);
            assert_eq!(next.address, address);
            assert_eq!(server.ended().code(), Some(0));
            server = next;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(path.exists(), "the next one can come");
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    assert!(!path.exists(), "nothing is left behind");
}

/// What is at the path when it ends may be the next process's already, since a moment ago.
#[test]
fn a_process_that_has_handed_over_leaves_the_path_alone() {
    let (_folder, path, _) = meeting_place();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let shutdown = Shutdown::new().unwrap();
    let door = Door::prepare(&path, &listener, shutdown).unwrap();
    let door = door.open().unwrap();
    Offer::ask(&path).unwrap().unwrap().take().unwrap();
    drop(door);
    assert!(path.exists());
}

#[test]
fn open_connections_finish_on_the_old_process_and_are_then_told() {
    let (_folder, _, option) = meeting_place();
    let mut old = Server::start(&[&option, "--drain-timeout=1s"]);
    let mut talking = old.greeted();
    let mut idle = old.greeted();
    let new = Server::start(&[&option]);
    old.logged(&["handed over"]);
    assert_eq!(talking.ask("Ada"), "Hello, Ada!");
    talking.send("exit\n");
    assert_eq!(talking.rest(), "");
    assert_eq!(idle.rest(), "error: server is shutting down\n");
    assert_eq!(old.ended().code(), Some(0));
    assert_eq!(new.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn whoever_asks_and_goes_away_takes_nothing() {
    let (_folder, path, option) = meeting_place();
    let server = Server::start(&[&option]);
    let mut curious = UnixStream::connect(&path).unwrap();
    curious.read_exact(&mut [0]).unwrap();
    drop(curious);
    server.logged(&["a process asked for the listener and left it"]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    // And the next one that means it gets it.
    let next = Server::start(&[&option]);
    server.logged(&["handed over"]);
    assert_eq!(next.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn the_socket_of_a_process_that_was_killed_is_no_obstacle() {
    let (_folder, path, option) = meeting_place();
    let mut server = Server::start(&[&option]);
    server.signal("KILL");
    server.ended();
    assert!(path.exists());
    let server = Server::start(&[&option]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn what_cannot_be_taken_over_is_said_in_one_line() {
    let (_folder, path, option) = meeting_place();
    let refusal = |listen: &str| {
        let output = run(Command::new(AIRLOCK).args([listen, &option]), b"");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    fs::write(&path, "precious").unwrap();
    let line = refusal("--listen=127.0.0.1:0");
    assert!(line.contains("it is no socket"), "{line}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    let server = Server::start(&[&option]);
    let line = refusal("--listen=127.0.0.2:0");
    let words = format!("listens on {} and --listen says", server.address);
    assert!(line.contains(&words), "{line}");
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn processes_that_share_a_port_all_serve() {
    let first = Server::start(&["--reuse-port"]);
    let second = Server::start_beside(&first, &["--reuse-port"]);
    // The kernel chooses by the client's port.
    let mut clients = Vec::new();
    let serving = |server: &Server| server.log().iter().any(|line| line.contains("accepted"));
    while !(serving(&first) && serving(&second)) {
        assert!(clients.len() < 1000, "one of them gets nobody");
        let mut client = first.greeted();
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
        clients.push(client);
    }
}

#[test]
fn a_signal_after_the_takeover_drains_at_once() {
    let (_folder, _, option) = meeting_place();
    let mut old = Server::start(&[&option, "--drain-timeout=1h"]);
    let mut idle = old.greeted();
    let _new = Server::start(&[&option]);
    old.logged(&["handed over"]);
    old.signal("TERM");
    assert_eq!(idle.rest(), "error: server is shutting down\n");
    assert_eq!(old.ended().code(), Some(0));
}

#[test]
fn a_path_that_is_too_long_is_said_with_the_limit() {
    let path = format!("--takeover=/tmp/{}", "x".repeat(100));
    let output = run(
        Command::new(AIRLOCK).args(["--listen=127.0.0.1:0", &path]),
        b"",
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("may have ") && text.contains(" bytes here"),
        "{text}"
    );
}
