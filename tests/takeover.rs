//! The next process takes over, and no client notices.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use airlock::limits::process::TAKEOVER_TIME;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socket2::Socket;
use tempfile::TempDir;

use crate::stores::keeper;
use crate::support::place::Place;
use crate::support::{AIRLOCK, Client, PATIENCE, Server, eventually, guest, run, signal};

/// Where two processes meet: a folder for as long as the test lasts, the path in it, and the option
/// that names it. Both are to listen at one place.
struct Meeting {
    folder: TempDir,
    path: PathBuf,
    option: String,
    place: Place,
}

impl Meeting {
    fn new() -> Meeting {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("airlock.sock");
        let option = format!("--takeover={}", path.display());
        Meeting {
            folder,
            path,
            option,
            place: Place::new(),
        }
    }

    /// Starts a server that comes there.
    fn start(&self) -> Server {
        self.start_with(&[])
    }

    fn start_with(&self, options: &[&str]) -> Server {
        let mut command = Command::new(AIRLOCK);
        Server::start_at(&self.place, command.arg(&self.option).args(options))
    }
}

/// What the two say to each other (`host/src/process/takeover.rs`).
const OFFER: u8 = 4;
const TAKE: u8 = 1;
const STILL: u8 = 2;
const YES: u8 = 3;

/// One side of a takeover, played by hand. It is as good as stopped until it says the next word,
/// and dropping it is its death.
struct Player(UnixStream);

impl Player {
    /// A new process, which comes to the one that waits at `path`.
    fn come(path: &Path) -> Player {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Player(stream)
    }

    fn say(&mut self, word: u8) {
        self.0.write_all(&[word]).unwrap();
    }

    fn hear(&mut self, word: u8) {
        let mut heard = [0];
        self.0.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [word]);
    }

    fn hear_the_end(&mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

/// An old process, played by hand: it has listeners and waits at a path.
struct Old {
    listeners: Vec<Socket>,
    door: UnixListener,
}

impl Old {
    fn wait_at(meeting: &Meeting) -> Old {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = meeting.place.unix_path();
        let unix = unix.map(|path| UnixListener::bind(path).unwrap().into());
        Old {
            listeners: [port.into()].into_iter().chain(unix).collect(),
            door: UnixListener::bind(&meeting.path).unwrap(),
        }
    }

    fn port(&self) -> SocketAddr {
        self.listeners[0].local_addr().unwrap().as_socket().unwrap()
    }

    /// Hands the listeners to whoever comes.
    fn offer(&self) -> Player {
        let (stream, _) = self.door.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let word = [IoSlice::new(&[OFFER])];
        sendmsg(&stream, &word, &mut control, SendFlags::empty()).unwrap();
        Player(stream)
    }
}

#[test]
fn nobody_is_refused_while_one_process_takes_over_from_another() {
    const PAUSE: Duration = Duration::from_millis(20);
    // On a slow machine they queue up.
    let start = |meeting: &Meeting| meeting.start_with(&["--drain-timeout=1m"]);
    let meeting = Meeting::new();
    let mut server = start(&meeting);
    let address = server.address.clone();
    let (stop, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // 50 a second, each on time, whatever became of the one before.
        scope.spawn(|| {
            let mut next = Instant::now();
            let deadline = next + PATIENCE;
            while !stop.load(Ordering::Relaxed) && next < deadline {
                begun.fetch_add(1, Ordering::Relaxed);
                let mut client = Client::connect(address.clone());
                scope.spawn(move || {
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
            let next = start(&meeting);
            assert_eq!(next.address, address);
            assert_eq!(server.ended().code(), Some(0));
            server = next;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(meeting.path.exists(), "the next one can come");
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    assert!(!meeting.path.exists(), "nothing is left behind");
}

#[test]
fn open_connections_finish_on_the_old_process_and_are_then_told() {
    let meeting = Meeting::new();
    let mut old = meeting.start_with(&["--drain-timeout=3s"]);
    let mut talking = old.greeted();
    let mut idle = old.greeted();
    let new = meeting.start();
    old.logged(&["handed over"]);
    assert_eq!(talking.ask("Ada"), "Hello, Ada!");
    talking.send("exit\n");
    assert_eq!(talking.rest(), "");
    assert_eq!(idle.rest(), "error: server is shutting down\n");
    assert_eq!(old.ended().code(), Some(0));
    assert_eq!(new.greeted().ask("Ada"), "Hello, Ada!");
}

/// While the old process lets its connections finish, what those write the new one reads, and the other way
/// round.
#[test]
fn both_processes_have_a_store_in_a_file() {
    let meeting = Meeting::new();
    let file = meeting.folder.path().join("store.db");
    let granted = format!("--store=default=file:{}", file.display());
    let guest = format!("--guest={}", guest("keeper").display());
    let options = [&*granted, &guest, "--drain-timeout=1m"];
    let mut old = meeting.start_with(&options);
    let mut first = keeper(&old);
    assert_eq!(first.ask("add n 1"), "1");
    let new = meeting.start_with(&options);
    old.logged(&["handed over"]);
    let mut second = keeper(&new);
    assert_eq!(second.ask("add n 1"), "2");
    assert_eq!(first.ask("add n 1"), "3");
    assert_eq!(first.ask("set name Ada"), "ok");
    assert_eq!(second.ask("get name"), "Ada");
    drop(first);
    assert_eq!(old.ended().code(), Some(0));
    assert_eq!(second.ask("add n 1"), "4");
    assert_eq!(second.ask("get name"), "Ada");
}

/// How far a takeover has come when one of the two stops or dies.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Step {
    Come,
    Offered,
    Taken,
    Asked,
    Answered,
}

const STEPS: [Step; 5] = [
    Step::Come,
    Step::Offered,
    Step::Taken,
    Step::Asked,
    Step::Answered,
];

#[test]
fn a_new_process_that_stops_or_dies_at_any_step_has_not_taken_over() {
    let meeting = Meeting::new();
    let mut old = meeting.start();
    let serves = |server: &Server| assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    let go = |step: Step| {
        let mut new = Player::come(&meeting.path);
        if step >= Step::Offered {
            new.hear(OFFER);
        }
        if step >= Step::Taken {
            new.say(TAKE);
        }
        if step >= Step::Asked {
            new.hear(STILL);
        }
        new
    };
    for step in &STEPS[..4] {
        let stopped = go(*step);
        serves(&old);
        drop(stopped);
        serves(&old);
    }
    // The old one reads the last word of the new one when that is dead already.
    for (step, word) in [
        (Step::Come, TAKE),
        (Step::Offered, TAKE),
        (Step::Asked, YES),
    ] {
        let mut new = go(step);
        old.pause();
        new.say(word);
        drop(new);
        old.signal("CONT");
        serves(&old);
        // It waits for the next one: it has not handed over.
        drop(go(Step::Offered));
        serves(&old);
    }
    let new = meeting.start();
    assert_eq!(old.ended().code(), Some(0));
    serves(&new);
}

/// It would be old by the time one of the two is stopped, and the other goes on.
#[test]
fn an_answer_that_is_not_fresh_is_asked_for_again() {
    let meeting = Meeting::new();
    let old = meeting.start();
    let mut new = Player::come(&meeting.path);
    new.hear(OFFER);
    new.say(TAKE);
    new.hear(STILL);
    old.pause();
    new.say(YES);
    thread::sleep(TAKEOVER_TIME + Duration::from_millis(500));
    old.signal("CONT");
    new.hear(STILL);
    assert_eq!(old.greeted().ask("Ada"), "Hello, Ada!");
    new.say(YES);
    new.hear_the_end();
    old.logged(&["handed over"]);
}

#[test]
fn the_new_process_serves_when_the_old_one_stops_or_dies_at_any_step() {
    for step in &STEPS[1..] {
        for dies in [false, true] {
            let meeting = Meeting::new();
            let old = Old::wait_at(&meeting);
            let port = old.port();
            let (new, old) = thread::scope(|scope| {
                let new = scope.spawn(|| meeting.start());
                let mut player = old.offer();
                if *step >= Step::Taken {
                    player.hear(TAKE);
                }
                if *step >= Step::Asked {
                    player.say(STILL);
                }
                if *step >= Step::Answered {
                    player.hear(YES);
                }
                // A stopped process has the listener and its end of the connection still.
                let old = (!dies).then_some((player, old));
                (new.join().unwrap(), old)
            });
            assert_eq!(new.tcp(), port, "{step:?}");
            assert_eq!(new.greeted().ask("Ada"), "Hello, Ada!", "{step:?}");
            drop(old);
            new.logged(&["took the listeners over"]);
            Player::come(&meeting.path).hear(OFFER);
            assert_eq!(new.greeted().ask("Ada"), "Hello, Ada!", "{step:?}");
        }
    }
}

#[test]
fn an_old_process_that_has_not_waited_is_asked_again() {
    let meeting = Meeting::new();
    let old = Old::wait_at(&meeting);
    thread::scope(|scope| {
        let new = scope.spawn(|| meeting.start());
        drop(old.offer());
        let mut player = old.offer();
        player.hear(TAKE);
        let new = new.join().unwrap();
        let taken = |line: &String| line.contains("took the listeners over");
        assert!(!new.log().iter().any(taken));
        player.say(STILL);
        player.hear(YES);
        drop(player);
        new.logged(&["took the listeners over"]);
        assert_eq!(new.greeted().ask("Ada"), "Hello, Ada!");
    });
}

#[test]
fn a_new_process_that_is_told_to_end_leaves_the_old_one_in_its_place() {
    let meeting = Meeting::new();
    let old = Old::wait_at(&meeting);
    thread::scope(|scope| {
        let new = scope.spawn(|| meeting.start());
        let mut player = old.offer();
        player.hear(TAKE);
        let mut new = new.join().unwrap();
        new.signal("TERM");
        assert_eq!(new.ended().code(), Some(0));
        player.hear_the_end();
    });
    let left: Vec<_> = fs::read_dir(meeting.folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    Player::come(&meeting.path);
}

/// The socket is the old one's until the new one has taken it over.
#[test]
fn a_new_process_that_ends_leaves_the_unix_sockets_of_the_old_one() {
    let meeting = Meeting::new();
    let shared = meeting.folder.path().join("door.sock");
    let old = Old {
        listeners: vec![UnixListener::bind(&shared).unwrap().into()],
        door: UnixListener::bind(&meeting.path).unwrap(),
    };
    let listen = format!("--listen=unix://{}", shared.display());
    let mut command = Command::new(AIRLOCK);
    let mut new = command.args([&listen, &meeting.option]).spawn().unwrap();
    let mut player = old.offer();
    player.hear(TAKE);
    UnixStream::connect(&shared).unwrap();
    signal(new.id(), "TERM");
    assert_eq!(new.wait().unwrap().code(), Some(0));
    player.hear_the_end();
    assert!(shared.exists());
}

#[test]
fn whoever_knocks_all_the_time_is_counted() {
    let meeting = Meeting::new();
    let server = meeting.start();
    let began = Instant::now();
    for _ in 0..300 {
        Player::come(&meeting.path).hear(OFFER);
    }
    Player::come(&meeting.path).hear(OFFER);
    server.logged(&["not handed over"]);
    let log = server.log();
    let lines = log.iter().filter(|line| line.contains("not handed over"));
    let lines: Vec<_> = lines.collect();
    assert!(lines[0].contains("times=1"), "{lines:?}");
    // One a second.
    assert!(
        lines.len() as u64 <= began.elapsed().as_secs() + 1,
        "{lines:?}"
    );
}

#[test]
fn the_socket_is_its_users_alone_whatever_the_umask() {
    let meeting = Meeting::new();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        r#"umask 000; exec "$0" "$@""#,
        AIRLOCK,
        &meeting.option,
    ]);
    let _server = Server::start_at(&meeting.place, &mut command);
    let mode = fs::metadata(&meeting.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn whoever_asks_and_goes_away_takes_nothing() {
    let meeting = Meeting::new();
    let server = meeting.start();
    let mut curious = UnixStream::connect(&meeting.path).unwrap();
    curious.read_exact(&mut [0]).unwrap();
    drop(curious);
    server.logged(&["a process asked for the listener and left it"]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    // And the next one that means it gets it.
    let next = meeting.start();
    server.logged(&["handed over"]);
    assert_eq!(next.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn the_socket_of_a_process_that_was_killed_is_no_obstacle() {
    let meeting = Meeting::new();
    let mut server = meeting.start();
    server.signal("KILL");
    server.ended();
    assert!(meeting.path.exists());
    let server = meeting.start();
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn what_cannot_be_taken_over_is_said_in_one_line() {
    let meeting = Meeting::new();
    let refusal = |listen: &str| {
        let output = run(Command::new(AIRLOCK).args([listen, &meeting.option]), b"");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    fs::write(&meeting.path, "precious").unwrap();
    let line = refusal("--listen=127.0.0.1:0");
    assert!(line.contains("it is no socket"), "{line}");
    assert_eq!(fs::read(&meeting.path).unwrap(), b"precious");
    fs::remove_file(&meeting.path).unwrap();

    let server = meeting.start();
    let line = refusal("--listen=127.0.0.2:0");
    let words = format!(
        "listens on {} and this one is to listen on 127.0.0.2:0",
        server.address
    );
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
    let meeting = Meeting::new();
    let mut old = meeting.start_with(&["--drain-timeout=1h"]);
    let mut idle = old.greeted();
    let _new = meeting.start();
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
