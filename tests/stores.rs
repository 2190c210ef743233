//! Guests that remember, through `wasi:keyvalue`: end to end.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;

use tempfile::TempDir;

use crate::redis_server::RedisServer;
use crate::support::{AIRLOCK, Client, Server, eventually, guest, run};

/// A folder with room for a store.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.path().join("store.db")
    }

    /// The option that grants it.
    pub(crate) fn granted(&self, parameters: &str) -> String {
        format!("--store=default=file:{}{parameters}", self.file().display())
    }
}

/// The ways to keep a store, in a place.
fn each(test: impl Fn(&str)) {
    for parameters in ["", "?durability=relaxed"] {
        test(&Place::new().granted(parameters));
    }
    test("--store=default=memory:");
    if let Some(redis) = RedisServer::start(&[]) {
        let socket = redis.socket();
        test(&format!(
            "--store=default=redis+unix://{}",
            socket.display()
        ));
    }
}

/// Connects, and takes the greeting.
pub(crate) fn keeper(server: &Server) -> Client {
    let mut client = server.connect();
    client.hear();
    client
}

#[test]
fn what_one_connection_stores_another_reads() {
    each(|granted| {
        let server = Server::with_guest("keeper", &[granted]);
        let mut first = keeper(&server);
        assert_eq!(first.ask("get name"), "none");
        assert_eq!(first.ask("set name Ada"), "ok");
        assert_eq!(first.ask("every-byte"), "true");
        drop(first);
        let mut second = keeper(&server);
        assert_eq!(second.ask("open default"), "ok");
        assert_eq!(second.ask("get name"), "Ada");
        assert_eq!(second.ask("exists name"), "true");
        assert_eq!(second.ask("set-many a=1 b=2"), "ok");
        assert_eq!(second.ask("get-many b a c"), "b=2 a=1 c=none");
        assert_eq!(second.ask("delete-many a c"), "ok");
        assert_eq!(second.ask("delete name"), "ok");
        assert_eq!(second.ask("exists name"), "false");
    });
}

#[test]
fn a_store_in_a_file_is_there_after_a_restart() {
    let ways = ["TERM", "KILL"].map(|signal| [("", signal), ("?durability=relaxed", signal)]);
    for (parameters, signal) in ways.concat() {
        let place = Place::new();
        let mut server = Server::with_guest("keeper", &[&place.granted(parameters)]);
        assert_eq!(keeper(&server).ask("set name Ada"), "ok");
        assert_eq!(keeper(&server).ask("add visits 3"), "3");
        server.signal(signal);
        server.ended();
        let server = Server::with_guest("keeper", &[&place.granted("")]);
        assert_eq!(keeper(&server).ask("get name"), "Ada");
        assert_eq!(keeper(&server).ask("add visits 1"), "4");
    }
}

#[test]
fn sixty_four_connections_count_and_swap_together() {
    const CONNECTIONS: usize = 64;
    each(|granted| {
        let server = Server::with_guest("keeper", &[granted]);
        let barrier = Arc::new(Barrier::new(CONNECTIONS));
        let clients = (0..CONNECTIONS).map(|_| (keeper(&server), Arc::clone(&barrier)));
        let threads = clients.map(|(mut client, barrier)| {
            thread::spawn(move || {
                barrier.wait();
                for _ in 0..5 {
                    client.ask("add n 2").parse::<i64>().unwrap();
                }
                assert_eq!(client.ask("append all x"), "ok");
            })
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let mut client = keeper(&server);
        assert_eq!(client.ask("add n 0"), (CONNECTIONS * 10).to_string());
        assert_eq!(client.ask("get all"), "x".repeat(CONNECTIONS));
    });
}

#[test]
fn a_swap_that_was_overtaken_has_seen_the_winner() {
    let server = Server::with_guest("keeper", &["--store=default=memory:"]);
    let (mut one, mut other) = (keeper(&server), keeper(&server));
    assert_eq!(one.ask("see seat"), "none");
    assert_eq!(other.ask("set seat other"), "ok");
    assert_eq!(one.ask("swap one"), "lost to other");
    assert_eq!(one.ask("swap one"), "ok");
    assert_eq!(one.ask("swap one"), "nothing seen");
    assert_eq!(other.ask("get seat"), "one");
}

#[test]
fn a_guest_has_the_stores_that_it_was_granted_and_no_others() {
    let server = Server::with_guest("keeper", &[]);
    server.logged(&["WARN", "the guest asks for stores and has none", "--store"]);
    assert_eq!(keeper(&server).ask("get name"), "no such store");
    let server = Server::with_guest("keeper", &["--store=book=memory:"]);
    let mut client = keeper(&server);
    for name in ["default", "Book", "book:", "../book"] {
        assert_eq!(client.ask(&format!("open {name}")), "no such store");
    }
    assert_eq!(client.ask("open book"), "ok");
    let log = server.log();
    assert!(
        log.iter().all(|line| !line.contains("asks for stores")),
        "{log:?}"
    );
}

#[test]
fn services_share_a_file_or_have_a_part_of_it_each() {
    let place = Place::new();
    let (file, keeper_file) = (place.file(), guest("keeper"));
    let (file, keeper_file) = (file.display(), keeper_file.display());
    let text = format!(
        "[service.all]\nlisten = \"127.0.0.1:0\"\nguest = \"{keeper_file}\"\n\
         store = {{ default = \"file:{file}\" }}\n\
         [service.part]\nlisten = \"127.0.0.1:0\"\nguest = \"{keeper_file}\"\n\
         [service.part.store.default]\nurl = \"file:{file}\"\nprefix = \"p\"\n\
         [service.other]\nlisten = \"127.0.0.1:0\"\nguest = \"{keeper_file}\"\n\
         [service.other.store]\ndefault = \"file:{file}?prefix=other\"\n"
    );
    let config = place.0.path().join("airlock.toml");
    fs::write(&config, text).unwrap();
    let (_server, addresses) = Server::of_file(&config, 3);
    let connect = |name| {
        let address = addresses.iter().find(|(known, _)| known == name);
        let mut client = Client::connect(address.unwrap().1);
        client.hear();
        client
    };
    let (mut all, mut part, mut other) = (connect("all"), connect("part"), connect("other"));
    assert_eq!(part.ask("set key of-part"), "ok");
    assert_eq!(other.ask("set key of-other"), "ok");
    assert_eq!(all.ask("set key of-all"), "ok");
    assert_eq!(part.ask("list"), "key end");
    assert_eq!(part.ask("get key"), "of-part");
    assert_eq!(all.ask("list"), "key other:key p:key end");
    assert_eq!(all.ask("set p:key changed"), "ok");
    assert_eq!(part.ask("get key"), "changed");
}

#[test]
fn what_is_asked_too_much_is_told_with_a_word() {
    let granted = "--store=default=memory:?quota=1MiB";
    let server = Server::with_guest("keeper", &[granted, "--max-reply=1KiB"]);
    let mut client = keeper(&server);
    // However small a reply may be.
    assert_eq!(client.ask("size 512 65536"), "ok");
    assert_eq!(client.ask("size 513 1"), "other: too large");
    assert_eq!(client.ask("size 1 65537"), "other: too large");
    assert_eq!(client.ask("fill 0 256 4097"), "other: too large");
    assert_eq!(client.ask("fill 0 256 8000"), "other: too large");
    assert_eq!(client.ask("fill 0 257 1"), "other: too large");
    assert_eq!(client.ask("often 254"), "ok");
    assert_eq!(client.ask("often 257"), "other: busy");
    assert_eq!(client.ask("often 254"), "ok");
    let answers = (0..40).map(|number| client.ask(&format!("size {} 65536", number + 1)));
    assert_eq!(answers.last().as_deref(), Some("other: quota"));
    assert_eq!(client.ask("set n one"), "ok");
    assert_eq!(client.ask("add n 1"), "other: not an integer");
    assert_eq!(client.ask(&format!("set n {}", i64::MAX)), "ok");
    assert_eq!(client.ask("add n 1"), "other: overflow");
}

#[test]
fn handles_are_bounded_and_what_a_swap_has_seen_is_memory() {
    let granted = "--store=default=memory:";
    let server = Server::with_guest("keeper", &[granted]);
    for hold in ["hold-buckets 200", "hold-swaps key 200"] {
        assert_eq!(keeper(&server).ask(hold), "ok");
    }
    let mut client = keeper(&server);
    client.send("hold-buckets 250\nhold-buckets 250\n");
    assert_eq!(client.rest(), "ok\nerror: the guest failed\n");
    // 2 MiB have room for the guest, and not for 100 values of 64 KiB beside it.
    let server = Server::with_guest("keeper", &[granted, "--guest-memory=2MiB"]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("size 1 65536"), "ok");
    assert_eq!(client.ask("hold-swaps k 1"), "ok");
    client.send("hold-swaps k 100\n");
    assert_eq!(client.rest(), "error: the guest failed\n");
    server.logged(&["the guest failed", "--guest-memory"]);
}

#[test]
fn thousands_of_keys_are_listed_page_by_page() {
    each(|granted| {
        let server = Server::with_guest("keeper", &[granted]);
        let mut client = keeper(&server);
        for start in (0..2560).step_by(256) {
            let fill = format!("fill {start} {} 1", start + 256);
            assert_eq!(client.ask(&fill), "ok");
        }
        let count: usize = client.ask("count").parse().unwrap();
        // With the word behind the keys.
        let first = client.ask("list").split(' ').count();
        if granted.contains("redis") {
            // A page has as many as its part of a table, and a key that moves may be on two.
            assert!(
                count >= 2560 && (1001..1100).contains(&first),
                "{count} {first}"
            );
        } else {
            assert_eq!((count, first), (2560, 1001));
        }
    });
}

#[test]
fn guests_of_every_version_of_the_interface_share_a_store() {
    let file = Place::new();
    let granted = file.granted("");
    let guests = ["keeper", "keeper-older", "keeper-draft"];
    for (number, name) in guests.into_iter().enumerate() {
        let server = Server::with_guest(name, &[&granted]);
        let mut client = server.connect();
        if name == "keeper" {
            client.hear();
        }
        assert_eq!(client.ask("add visits 1"), (number + 1).to_string());
        assert_eq!(client.ask(&format!("set {name} here")), "ok");
        let none = if name == "keeper" { "b=none" } else { "none" };
        let many = client.ask("get-many keeper b");
        assert_eq!(many, format!("keeper=here {none}"));
    }
    let server = Server::with_guest("keeper-draft", &["--store=default=memory:"]);
    let mut client = server.connect();
    for start in (0..2500).step_by(250) {
        assert_eq!(client.ask(&format!("fill {start} {}", start + 250)), "ok");
    }
    let pages = "[1000, 1000, 500] Some(\"key-002000\")";
    assert_eq!(client.ask("pages"), pages);
    let overflow = "Error::Other(\"overflow\")";
    assert_eq!(client.ask("add n 9223372036854775808"), overflow);
    assert_eq!(
        client.ask("add n 9223372036854775807"),
        "9223372036854775807"
    );
    assert_eq!(client.ask("add n 1"), overflow);
    // This version has no word for a sum that is negative; it has been added to.
    assert_eq!(client.ask("set m -5"), "ok");
    assert_eq!(client.ask("add m 3"), overflow);
    assert_eq!(client.ask("get-many m"), "m=-2");
}

#[test]
fn a_trial_writes_nothing_that_is_live() {
    let place = Place::new();
    let granted = format!("--store=starts=file:{}", place.file().display());
    let guest = guest("keeper");
    let guest = guest.to_str().unwrap();
    let mut server = Server::with_guest("keeper", &[&granted]);
    // The start has tried it too.
    assert_eq!(server.connect().hear(), "start 1\n");
    let output = run(Command::new(AIRLOCK).args(["check", guest, &granted]), b"");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("\"start 1\""), "{report}");
    let script = place.0.path().join("one.conv");
    fs::write(&script, "< start 1\n> open starts\n< ok\n> add n 1\n< 2\n").unwrap();
    let script = script.to_str().unwrap();
    let test = ["test", guest, script, script, &granted];
    let output = run(Command::new(AIRLOCK).args(test), b"");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert_eq!(server.connect().hear(), "start 2\n");
    server.signal("TERM");
    server.ended();
}

#[test]
fn a_test_begins_each_conversation_with_the_content_that_it_is_given() {
    let place = Place::new();
    let url = format!("file:{}?prefix=p", place.file().display());
    store(&["set", &url, "visits", "3"], b"");
    store(&["set", &url, "name", "Ada"], b"");
    let content = place.0.path().join("content");
    fs::write(&content, store(&["export", &url], b"")).unwrap();
    let script = place.0.path().join("one.conv");
    fs::write(&script, "< hello\n> get name\n< Ada\n> add visits 1\n< 4\n").unwrap();
    let (script, guest) = (script.to_str().unwrap(), guest("keeper"));
    let test = |options: &[&str]| {
        let test = ["test", guest.to_str().unwrap(), script, script];
        run(Command::new(AIRLOCK).args(test).args(options), b"")
    };
    // Where there is no such file, and nobody makes one.
    let granted = "--store=default=file:/nowhere/at/all.db?prefix=other";
    let option = |store: &str| format!("--content={store}={}", content.display());
    let output = test(&[granted, &option("default")]);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("2 of 2"), "{report}");

    let refused = |options: &[&str], why: &str| {
        let output = test(options);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{error}");
    };
    let named = "the guest has no store `other`: it has default";
    refused(&[granted, &option("other")], named);
    refused(&[&option("default")], "grant one with --store");
    refused(&[granted, "--content=content"], "want STORE=FILE");
    fs::write(&content, "{\"key\":\"a\",\"value\":\"1\"}\n{}\n").unwrap();
    refused(&[granted, &option("default")], "line 2 of `");
    let large = format!("{{\"key\":\"a\",\"value\":\"{}\"}}", "x".repeat(65537));
    fs::write(&content, large).unwrap();
    let taken = "the store `default` does not take it: too large";
    refused(&[granted, &option("default")], taken);
}

#[test]
fn a_reload_gives_and_takes_stores_and_loses_nothing() {
    let place = Place::new();
    let (file, guest) = (place.file(), guest("keeper"));
    let config = place.0.path().join("airlock.toml");
    let write = |stores: &str| {
        let text = format!(
            "[service.a]\nlisten = \"127.0.0.1:0\"\nguest = \"{}\"\n{stores}\n",
            guest.display()
        );
        let new = config.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &config).unwrap();
    };
    let kept = format!("\"file:{}\"", file.display());
    write("store = { m = \"memory:\" }");
    let (server, _) = Server::of_file(&config, 1);
    let mut old = keeper(&server);
    assert_eq!(old.ask("open m"), "ok");
    assert_eq!(old.ask("set name Ada"), "ok");
    assert_eq!(old.ask("open f"), "no such store");

    write(&format!("store = {{ m = \"memory:\", f = {kept} }}"));
    server.logged(&["changed settings", "version=2"]);
    let mut second = keeper(&server);
    assert_eq!(second.ask("open m"), "ok");
    assert_eq!(second.ask("get name"), "Ada");
    assert_eq!(second.ask("open f"), "ok");
    assert_eq!(second.ask("set name Grace"), "ok");
    // Whoever is connected keeps what he began with.
    assert_eq!(old.ask("open f"), "no such store");

    write("");
    server.logged(&["changed settings", "version=3"]);
    assert_eq!(keeper(&server).ask("open f"), "no such store");
    assert_eq!(second.ask("get name"), "Grace");
    drop((old, second));

    write(&format!("store = {{ f = {kept} }}"));
    server.logged(&["changed settings", "version=4"]);
    let mut fourth = keeper(&server);
    assert_eq!(fourth.ask("open f"), "ok");
    assert_eq!(fourth.ask("get name"), "Grace");
}

pub(crate) fn refused(options: &[&str]) -> String {
    let output = run(Command::new(AIRLOCK).args(options), b"");
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines = stderr.lines().filter(|line| line.starts_with("airlock: "));
    assert_eq!(lines.count(), 1, "{stderr}");
    stderr
}

#[test]
fn a_store_that_cannot_be_had_is_said_in_one_line() {
    let place = Place::new();
    let granted = place.granted("");
    let listen = "--listen=127.0.0.1:0";
    let other = place.0.path().join("letter.txt");
    fs::write(&other, "Dear reader,".repeat(1000)).unwrap();
    let error = refused(&[listen, &format!("--store=a=file:{}", other.display())]);
    assert!(error.contains("it is no store of Airlock"), "{error}");
    let error = refused(&[listen, "--store=a=file:/nowhere/at/all.db"]);
    assert!(
        error.contains("cannot open the store `a`: file:/nowhere/at/all.db"),
        "{error}"
    );
    let error = refused(&[listen, "--store=a=memory:", "--store=a=memory:"]);
    assert!(error.contains("--store grants `a` twice"), "{error}");
    let same = format!("--store=b=file:{}?quota=2MiB", place.file().display());
    let error = refused(&[listen, &granted, &same]);
    assert!(
        error.contains("`b` is the same file as `default`"),
        "{error}"
    );
}

/// A limit on the size of files is to SQLite a disk that fails, and no full one: in the middle of a commit.
#[test]
fn a_file_that_may_not_grow_ends_writes_and_neither_reads_nor_the_server() {
    let place = Place::new();
    let mut command = Command::new("sh");
    // In units of 512 bytes: room for a store of 4 MiB.
    command.args(["-c", "ulimit -f 8192; exec \"$@\"", "sh", AIRLOCK]);
    command.arg("--guest").arg(guest("keeper"));
    command.arg(place.granted(""));
    let server = Server::start_command(&mut command);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    let mut word = String::new();
    for start in (0..2560).step_by(16) {
        word = client.ask(&format!("fill {start} {} 60000", start + 16));
        if word != "ok" {
            break;
        }
    }
    assert_eq!(word, "other: unavailable");
    server.logged(&["ERROR", "writes are refused until the next start"]);
    assert_eq!(client.ask("get name"), "Ada");
    assert_eq!(client.ask("set name Grace"), "other: unavailable");
    drop(client);
    assert_eq!(keeper(&server).ask("get name"), "Ada");
    drop(server);
    let server = Server::with_guest("keeper", &[&place.granted("")]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("get name"), "Ada");
    assert_eq!(client.ask("set name Grace"), "ok");
}

#[test]
fn the_guest_book_keeps_its_lines_over_a_restart() {
    let place = Place::new();
    let granted = place.granted("");
    let mut server = Server::with_guest("guestbook", &[&granted]);
    let mut client = server.connect();
    assert_eq!(
        client.hear(),
        "The guest book is empty. Write the first line!\n"
    );
    assert_eq!(client.ask("read"), "Nothing yet.");
    assert_eq!(client.ask("Ada was here"), "Thank you, that is line 1.");
    server.signal("TERM");
    server.ended();
    let server = Server::with_guest("guestbook", &[&granted]);
    let mut client = server.connect();
    assert_eq!(
        client.hear(),
        "Lines in the guest book: 1. Write one, or `read` them.\n"
    );
    assert_eq!(client.ask("So was Grace"), "Thank you, that is line 2.");
    client.send("read\nexit\n");
    assert_eq!(client.rest(), "Ada was here\nSo was Grace\nGoodbye!\n");
    let path: &Path = &place.file();
    assert!(path.exists());
}

/// Fifty times, on one file: what each client was told is there, and at most the one more that it had
/// asked for.
#[test]
fn a_server_that_is_killed_under_load_has_kept_what_it_acknowledged() {
    const CLIENTS: usize = 4;
    let place = Place::new();
    let granted = place.granted("");
    let mut told = [0_u64; CLIENTS];
    for round in 0..50 {
        let mut server = Server::with_guest("keeper", &[&granted]);
        let clients = told.iter().enumerate().map(|(number, &told)| {
            let mut client = keeper(&server);
            let add = move |delta| format!("add n{number} {delta}\n");
            let found = client.ask(add(0).trim_end()).parse().unwrap();
            assert!(
                (told..=told + 1).contains(&found),
                "round {round}: {found} of {told}"
            );
            thread::spawn(move || {
                let mut told = found;
                loop {
                    if client.stream.write_all(add(1).as_bytes()).is_err() {
                        break told;
                    }
                    match client.try_hear().as_deref().map(str::trim_end) {
                        Some(sum) => told = sum.parse().unwrap(),
                        None => break told,
                    }
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        // At another moment each time, and when something has been written.
        let enough = 5 + 7 * round % 40;
        let mut watcher = keeper(&server);
        eventually("clients are served", || {
            let sum = watcher.ask("add n0 0").parse::<u64>().unwrap();
            sum >= told[0] + enough
        });
        server.signal("KILL");
        server.ended();
        for (told, client) in told.iter_mut().zip(clients) {
            *told = client.join().unwrap();
        }
    }
}

/// Runs `airlock store`, and returns what it prints.
pub(crate) fn store(arguments: &[&str], input: &[u8]) -> String {
    let output = run(Command::new(AIRLOCK).arg("store").args(arguments), input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_operator_looks_into_a_store_and_takes_it_elsewhere() {
    let place = Place::new();
    let url = format!("file:{}", place.file().display());
    let mut server = Server::with_guest("keeper", &[&place.granted("")]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    assert_eq!(client.ask("every-byte"), "true");
    // While it is served.
    assert_eq!(store(&["get", &url, "name"], b""), "Ada");
    assert_eq!(store(&["set", &url, "name", "Grace"], b""), "");
    assert_eq!(client.ask("get name"), "Grace");
    assert_eq!(client.ask("set name Ada"), "ok");
    server.signal("TERM");
    server.ended();

    assert_eq!(store(&["get", &url, "name"], b""), "Ada");
    assert_eq!(store(&["set", &url, "p:of-part", "there"], b""), "");
    assert_eq!(store(&["set", &url, "raw"], b"\0\xff"), "");
    let part = format!("{url}?prefix=p");
    assert_eq!(store(&["list", &part], b""), "of-part\n");
    assert_eq!(store(&["get", &part, "of-part"], b""), "there");
    let list = store(&["list", &url], b"");
    // Of one key each, whatever is in it.
    assert_eq!(list.lines().count(), 4, "{list}");
    let stats = store(&["stats", &url], b"");
    assert!(stats.starts_with("entries      4\n"), "{stats}");

    let exported = store(&["export", &url], b"");
    let other = format!("{url}.other");
    assert_eq!(store(&["import", &other], exported.as_bytes()), "");
    assert_eq!(store(&["export", &other], b""), exported);
    let granted = format!("--store=default={other}");
    let server = Server::with_guest("keeper", &[&granted]);
    assert_eq!(keeper(&server).ask("get name"), "Ada");

    let link = place.0.path().join("link.db");
    std::os::unix::fs::symlink(place.file(), &link).unwrap();
    let link = format!("file:{}", link.display());
    assert_eq!(store(&["set", &link, "name", "Grace"], b""), "");
    assert_eq!(store(&["get", &url, "name"], b""), "Grace");

    let nowhere = format!("{url}.nowhere");
    let error = refused(&["store", "list", &nowhere]);
    assert!(error.contains("there is none"), "{error}");
    assert!(!Path::new(nowhere.trim_start_matches("file:")).exists());
    let output = run(
        Command::new(AIRLOCK).args(["store", "get", &url, "none"]),
        b"",
    );
    assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()));
    let output = run(
        Command::new(AIRLOCK).args(["store", "import", &url]),
        b"{\"key\": \"a\", \"value\": \"1\"}\n{\"key\": 1}\n",
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("line 2 of standard input: want"), "{error}");
}

#[test]
fn the_log_says_what_is_asked_of_stores_and_what_they_refuse() {
    let granted = "--store=default=memory:?quota=1MiB";
    let mut server = Server::with_guest("keeper", &["-v", granted]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    server.logged(&["DEBUG", "store: set", "store=default", "bytes=3", "micros="]);
    let answers = (1..40).map(|number| client.ask(&format!("size {number} 65536")));
    assert_eq!(answers.last().as_deref(), Some("other: quota"));
    server.logged(&["WARN", "last `set`: quota", "store=default"]);
    server.signal("TERM");
    server.ended();
    let counts = ["operations=40", "errors=24", "bytes=2555907", "millis="];
    server.logged(
        &[
            &["INFO", "the store was used", "store=default"],
            &counts[..],
        ]
        .concat(),
    );
}
