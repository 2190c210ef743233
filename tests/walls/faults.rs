//! Faults of the machine around the server.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use airlock::GREETER;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::components::stamped;
use crate::support::{AIRLOCK, Changing, Client, Mode, Server, eventually, installed};
use crate::tls_client::connect;

impl Server {
    /// Sets a limit of the running process.
    fn limit(&self, resource: Resource, limit: Option<u64>) {
        let id = Pid::from_raw(self.id().cast_signed());
        let limit = Rlimit {
            current: limit,
            maximum: None,
        };
        prlimit(id, resource, limit).unwrap();
    }
}

#[test]
fn without_a_usable_cache_directory_the_server_serves() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    for cache in [file.to_str().unwrap(), "/proc/nowhere", "relative"] {
        let mut command = Command::new(AIRLOCK);
        command.env("XDG_CACHE_HOME", cache).current_dir(&folder);
        let server = Server::start_command(&mut command);
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!", "{cache}");
    }
    let mut command = Command::new(AIRLOCK);
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    let server = Server::start_command(&mut command);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn with_a_full_disk_under_the_cache_directory_the_server_serves() {
    if !installed("unshare") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A file system of one page, in a mount namespace of its own.
    let script = r#"mount -t tmpfs -o size=4k none "$XDG_CACHE_HOME"
        head -c 4096 /dev/zero > "$XDG_CACHE_HOME/full" || exit 1
        exec "$0""#;
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-ec", script, AIRLOCK])
        .env("XDG_CACHE_HOME", folder.path());
    let server = Server::start_command(&mut command);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_damaged_cache_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = Command::new(AIRLOCK);
        Server::start_command(command.env("XDG_CACHE_HOME", folder.path()))
    };
    drop(start());
    let mut damaged = 0;
    damage(folder.path(), &mut damaged);
    assert!(damaged > 0, "the cache is not where it was expected");
    assert_eq!(start().greeted().ask("Ada"), "Hello, Ada!");
}

/// Cuts every file below a folder in half.
fn damage(folder: &std::path::Path, damaged: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path, damaged);
        } else {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            *damaged += 1;
        }
    }
}

#[test]
fn a_log_file_that_may_not_grow_stops_no_connection_and_what_is_lost_is_counted() {
    const MOST_BYTES: u64 = 4096;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" 2>>"$1""#, AIRLOCK])
        .arg(&file);
    let server = Server::start_command(&mut command);
    server.limit(Resource::Fsize, Some(MOST_BYTES));
    for _ in 0..100 {
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    }
    eventually("the log is full", || {
        fs::metadata(&file).unwrap().len() == MOST_BYTES
    });
    server.limit(Resource::Fsize, None);
    eventually("what is lost is said", || {
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
        let log = fs::read_to_string(&file).unwrap();
        log.contains("a part of the log is lost") && log.contains("lines=")
    });
    // The line that met the limit is cut, and the next one does not continue it.
    let log = fs::read_to_string(&file).unwrap();
    assert!(log.lines().all(|line| line.matches("INFO").count() <= 1));
}

#[test]
fn a_recording_that_may_not_grow_is_not_recorded_and_stops_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--record", folder.path().to_str().unwrap()]);
    server.limit(Resource::Fsize, Some(2000));
    let mut client = server.greeted();
    let name = "x".repeat(1000);
    for _ in 0..3 {
        assert_eq!(client.ask(&name).len(), name.len() + "Hello, !".len());
    }
    server.logged(&["a conversation is not recorded", "File too large"]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

/// Who is served of so many who come, and how many are turned away.
fn come(server: &Server, clients: usize) -> (Vec<Client>, usize) {
    let mut served = Vec::new();
    for _ in 0..clients {
        let mut client = server.connect();
        match client.hear().as_str() {
            "Welcome!\n" => served.push(client),
            "error: too many connections\n" => {}
            other => panic!("{other:?}"),
        }
    }
    let refused = clients - served.len();
    (served, refused)
}

#[test]
fn without_addresses_connections_are_refused_and_those_inside_are_served() {
    let mut all_served = 0;
    for mib in [20, 30, 40, 60, 200] {
        let server = Server::start(&[]);
        // So that the threads of the start have what they reserve.
        let inside = server.greeted();
        let limit = (server.address_kib() << 10) + (mib << 20);
        server.limit(Resource::As, Some(limit));
        let (mut served, refused) = come(&server, 60);
        assert!(refused > 0, "{mib}");
        all_served += served.len();
        served.push(inside);
        let name = "x".repeat(60_000);
        for client in &mut served {
            assert_eq!(client.ask(&name).len(), name.len() + "Hello, !".len());
        }
        server.logged(&["refusing connections", "address space"]);
        server.limit(Resource::As, None);
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    }
    assert!(all_served > 0);
}

/// In the words of WebSocket: it has been told already that it has one.
#[test]
fn whoever_has_shaken_hands_and_gets_no_thread_is_told_to_come_again() {
    if Mode::tested() != Mode::PerConnection {
        return;
    }
    let server = Server::start(&["--listen=ws://127.0.0.1:0"]);
    let come = || {
        let url = format!("ws://{}", server.tcp());
        let (client, _) = tungstenite::client(url, connect(server.tcp())).unwrap();
        client
    };
    let mut inside = come();
    assert_eq!(inside.read().unwrap(), Message::text("Welcome!"));
    // Less than a thread takes, and enough for a handshake.
    let limit = (server.address_kib() << 10) + (10 << 20);
    server.limit(Resource::As, Some(limit));
    let mut client = come();
    let word = Message::text("error: too many connections");
    assert_eq!(client.read().unwrap(), word);
    let close = client.read().unwrap();
    assert!(matches!(close, Message::Close(Some(close)) if close.code == CloseCode::Again));
    server.logged(&["refusing connections", "no thread"]);
    inside.send(Message::text("Ada")).unwrap();
    assert_eq!(inside.read().unwrap(), Message::text("Hello, Ada!"));
    server.limit(Resource::As, None);
    assert_eq!(come().read().unwrap(), Message::text("Welcome!"));
}

#[test]
fn a_limit_of_address_space_is_reckoned_with_at_the_start() {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -v 8388608; exec "$0""#, AIRLOCK]);
    let server = Server::start_command(&mut command);
    let (mut served, refused) = come(&server, 30);
    assert!(refused > 0 && !served.is_empty());
    for client in &mut served {
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
    server.logged(&["refusing connections", "--max-connections"]);
}

#[test]
fn noise_in_the_guests_folder_takes_no_processor() {
    let guest = Changing::start(&[]);
    let noisy = guest.file.with_extension("noise");
    let noise = |time| {
        let began = Instant::now();
        let mut events = 0;
        while began.elapsed() < time {
            fs::write(&noisy, "").unwrap();
            fs::remove_file(&noisy).unwrap();
            // Made, opened, closed, removed.
            events += 4;
        }
        events
    };
    let before = guest.server.processor_time();
    let events = noise(Duration::from_secs(2));
    let took = guest.server.processor_time() - before;
    // Reading each event and looking for each takes twice as much.
    assert!(
        took < Duration::from_millis(400),
        "{took:?} for {events} events"
    );
    // And it is no cover for a new guest.
    guest.replace(&stamped(GREETER, 2));
    while !guest
        .server
        .log()
        .iter()
        .any(|line| line.contains("version=2"))
    {
        noise(Duration::from_millis(10));
    }
}

/// The thread that writes a server's recordings, stopped where it is, as if its disk were stuck.
struct Stuck(libc::pid_t);

impl Stuck {
    fn stop(server: &Server) -> Stuck {
        let is_writer = |task: &std::path::PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "recordings")
        };
        let mut task = None;
        // A thread names itself when it first runs.
        eventually("the writer has begun", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
            task = tasks.map(|task| task.unwrap().path()).find(is_writer);
            task.is_some()
        });
        let task = task.unwrap();
        let thread = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert!(ptrace(libc::PTRACE_SEIZE, thread));
        assert!(ptrace(libc::PTRACE_INTERRUPT, thread));
        let stat = task.join("stat");
        eventually("the thread has stopped", || {
            fs::read_to_string(&stat).unwrap().contains(") t ")
        });
        Stuck(thread)
    }

    /// Whether it has ended, as a part of its process.
    #[expect(
        unsafe_code,
        reason = "there is no safe interface to waitpid for a thread"
    )]
    fn has_ended(&self) -> bool {
        let mut status = 0;
        let options = libc::__WALL | libc::WNOHANG;
        // SAFETY: the status is an int.
        let changed = unsafe { libc::waitpid(self.0, &raw mut status, options) };
        changed == self.0 && (libc::WIFEXITED(status) || libc::WIFSIGNALED(status))
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // It goes on, or has ended.
        let _ = ptrace(libc::PTRACE_DETACH, self.0);
    }
}

#[expect(unsafe_code, reason = "there is no safe interface to ptrace")]
fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> bool {
    // SAFETY: none of these requests touches memory of this process.
    let result = unsafe { libc::ptrace(request, thread, 0, 0) };
    result == 0
}

/// Has 50 MB of conversations recorded, more than there is room for in the queue.
fn talk_at_length(server: &Server) {
    let name = "x".repeat(60_000);
    for _ in 0..60 {
        let mut client = server.greeted();
        for _ in 0..7 {
            assert_eq!(client.ask(&name).len(), name.len() + "Hello, !".len());
        }
    }
}

fn recorded(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn a_stuck_disk_ends_recordings_and_makes_no_client_wait() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--record", folder.path().to_str().unwrap()]);
    let mut client = server.greeted();
    client.ask("Ada");
    let before_kib = server.resident_kib();
    let stuck = Stuck::stop(&server);
    talk_at_length(&server);
    server.logged(&["not recorded, or not to its end: the disk is too slow"]);
    assert_eq!(client.ask("Grace"), "Hello, Grace!");
    let grown_kib = server.resident_kib() - before_kib;
    assert!(grown_kib < 48 * 1024, "{grown_kib} KiB more");

    drop(stuck);
    // The conversation in which the queue became full says so, and all are whole.
    eventually("it is written down", || {
        let recorded = recorded(folder.path());
        recorded.len() > 10
            && recorded
                .iter()
                .any(|text| text.ends_with("# the rest is not recorded\n"))
    });
    for text in recorded(folder.path()) {
        assert!(text.ends_with('\n'));
        assert!(!text.lines().last().unwrap().starts_with('>'));
    }
    let mut client = server.greeted();
    client.send("exit\n");
    client.rest();
    eventually("recording has gone on", || {
        recorded(folder.path())
            .iter()
            .any(|text| text.ends_with("> exit\n<close\n"))
    });
}

#[test]
fn a_stuck_disk_does_not_hold_up_the_end_of_the_server_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&["--record", folder.path().to_str().unwrap()]);
    let mut client = server.greeted();
    let stuck = Stuck::stop(&server);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    server.signal("TERM");
    assert_eq!(client.rest(), "error: server is shutting down\n");
    server.logged(&["the end of the recordings is lost"]);
    eventually("it ends", || stuck.has_ended());
    assert_eq!(server.ended().code(), Some(0));
}
