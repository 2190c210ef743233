//! Faults of the machine around the server.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use airlock::GREETER;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::components::stamped;
use crate::support::{AIRLOCK, Changing, Client, Server, eventually, installed};

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
    // As who keeps it small does.
    fs::File::create(&file).unwrap();
    eventually("what is lost is said", || {
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
        let log = fs::read_to_string(&file).unwrap();
        log.contains("a part of the log is lost") && log.contains("lines=")
    });
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
