//! The file of settings changes while the server serves: services come, go and take other settings, and
//! nobody else notices.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

use crate::components::howdy;
use crate::support::{AIRLOCK, Client, PATIENCE, Server, eventually, guest, put};
use airlock::GREETER;

const GOODBYE: &str = "error: server is shutting down";

const FULL: &str = "error: too many connections";

/// A server with a file of settings, and guests beside that.
struct Changing {
    server: Server,
    addresses: Vec<(String, SocketAddr)>,
    folder: TempDir,
    file: PathBuf,
}

impl Changing {
    /// With so many addresses, all of them with port 0.
    fn start(text: &str, count: usize) -> Changing {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shout.wasm"), howdy()).unwrap();
        fs::copy(guest("hostile"), folder.path().join("hostile.wasm")).unwrap();
        fs::copy(guest("counter"), folder.path().join("counter.wasm")).unwrap();
        let file = folder.path().join("airlock.toml");
        fs::write(&file, text).unwrap();
        let (server, addresses) = Server::of_file(&file, count);
        Changing {
            server,
            addresses,
            folder,
            file,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts another file in its place, which is noticed.
    fn change(&self, text: &str) {
        put(&self.file, text.as_bytes());
    }

    /// The first address of a service that has been there from the start.
    fn address(&self, name: &str) -> SocketAddr {
        let mut addresses = self.addresses.iter();
        addresses
            .find(|(service, _)| service == name || service.is_empty())
            .unwrap()
            .1
    }

    /// The address of a service that has come later.
    fn new_address(&self, name: &str) -> SocketAddr {
        let service = format!("service={name} ");
        let line = self.server.logged(&["waiting for connections", &service]);
        address_in(&line)
    }

    /// Its second address.
    fn second_address(&self, name: &str) -> SocketAddr {
        let first = self.address(name);
        let service = format!("service={name} ");
        let is_it = |line: &&String| {
            line.contains("waiting for connections")
                && line.contains(&service)
                && !line.contains(&first.to_string())
        };
        let mut found = None;
        eventually("it has a second address", || {
            found = self
                .server
                .log()
                .iter()
                .find(is_it)
                .map(|line| address_in(line));
            found.is_some()
        });
        found.unwrap()
    }

    /// Connects and hears this.
    fn greeted(&self, name: &str, greeting: &str) -> Client {
        greeted(self.address(name), greeting)
    }

    fn lines_with(&self, words: &str) -> usize {
        let log = self.server.log();
        log.iter().filter(|line| line.contains(words)).count()
    }

    /// What has happened to a service, how much room it has aside.
    fn lines_about(&self, name: &str) -> usize {
        let service = format!("service={name}");
        let log = self.server.log();
        let about = log.iter().filter(|line| line.contains(&service));
        about.filter(|line| !line.contains("room for")).count()
    }

    /// Ends it. Nothing may have gone wrong.
    fn end(mut self) {
        self.server.signal("TERM");
        assert!(self.server.ended().success());
        let log = self.server.whole_log();
        assert!(!log.iter().any(|line| line.contains("panic")));
    }
}

fn mkfifo(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status();
    assert!(status.unwrap().success());
}

fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("address=").unwrap();
    address.split(' ').next().unwrap().parse().unwrap()
}

fn greeted(address: SocketAddr, greeting: &str) -> Client {
    let mut client = Client::connect(address);
    assert_eq!(client.hear(), format!("{greeting}\n"));
    client
}

/// A client that comes again and again, and checks all that it hears.
struct Chat<'a> {
    address: SocketAddr,
    greeting: &'a str,
    /// One of these answers each line.
    answers: &'a [&'a str],
    /// Its service may go.
    goes: &'a AtomicBool,
    stop: &'a AtomicBool,
    replies: &'a AtomicUsize,
}

impl Chat<'_> {
    /// Until it is to stop, or its service has gone.
    fn run(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(error) = self.conversation() {
                let goes = self.goes.load(Ordering::SeqCst);
                assert!(goes, "{} has gone: {error}", self.address);
                return;
            }
        }
    }

    fn conversation(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut hear = || match lines.next() {
            None => Err(io::Error::other("closed")),
            Some(Ok(line)) if line == GOODBYE => Err(io::Error::other(line)),
            Some(line) => line,
        };
        let greeting = hear()?;
        if greeting == FULL {
            return Ok(());
        }
        assert_eq!(greeting, self.greeting);
        for _ in 0..50 {
            stream.write_all(b"Ada\n")?;
            let answer = hear()?;
            assert!(self.answers.contains(&&*answer), "{answer:?}");
            self.replies.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// The issue's own words: three services, one flooded, one swapped, one broken; a fourth comes and the
/// first goes.
#[test]
fn services_come_and_go_while_others_are_flooded_swapped_and_broken() {
    let others = r#"
        [service.second]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        [service.third]
        listen = "127.0.0.1:0"
        guest = "hostile.wasm"
        "#;
    let first = r#"
        [service.first]
        listen = "127.0.0.1:0"
        max-connections = 20
        "#;
    let fourth = r#"
        [service.fourth]
        listen = "127.0.0.1:0"
        guest = "counter.wasm"
        "#;
    let server = Changing::start(&format!("{first}{others}"), 3);
    let (stop, goes, stays) = <(AtomicBool, AtomicBool, AtomicBool)>::default();
    let replies: [AtomicUsize; 3] = Default::default();
    let chat = |number: usize, name, greeting, answers, goes| Chat {
        address: server.address(name),
        greeting,
        answers,
        goes,
        stop: &stop,
        replies: &replies[number],
    };
    let chats = [
        chat(0, "first", "Welcome!", &["Hello, Ada!"], &goes),
        chat(
            1,
            "second",
            "Welcome!",
            &["Howdy, Ada!", "Hello, Ada!"],
            &stays,
        ),
        chat(2, "third", "ready", &["unknown: Ada"], &stays),
    ];
    let more_replies = || {
        let before: Vec<_> = replies
            .iter()
            .map(|one| one.load(Ordering::SeqCst))
            .collect();
        eventually("everybody who is served hears more", || {
            let more = replies.iter().zip(&before);
            // The first is full most of the time.
            more.skip(1)
                .all(|(now, before)| now.load(Ordering::SeqCst) > before + 100)
        });
    };
    let flooded = server.address("first");
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for chat in &chats {
            scope.spawn(|| chat.run());
            scope.spawn(|| chat.run());
        }
        // Whoever finds no room is turned away, and comes again.
        for _ in 0..2 {
            scope.spawn(|| {
                let mut open = VecDeque::new();
                while !stop.load(Ordering::SeqCst) && !goes.load(Ordering::SeqCst) {
                    open.extend(TcpStream::connect_timeout(&flooded, PATIENCE));
                    if open.len() > 16 {
                        open.pop_front();
                    }
                }
            });
        }
        more_replies();
        put(&server.path("shout.wasm"), GREETER);
        put(&server.path("hostile.wasm"), b"no component");
        server
            .server
            .logged(&["new connections get a new version", "service=second"]);
        server
            .server
            .logged(&["refused the new guest", "service=third"]);
        more_replies();
        server.change(&format!("{first}{others}{fourth}"));
        let mut counting = Client::connect(server.new_address("fourth"));
        assert_eq!(counting.ask("count"), "1");
        more_replies();
        goes.store(true, Ordering::SeqCst);
        server.change(&format!("{others}{fourth}"));
        server.server.logged(&["ending", "service=first"]);
        more_replies();
        eventually("the first is closed", || {
            TcpStream::connect(flooded).is_err()
        });
        assert_eq!(counting.ask("count"), "2");
    });
    server.end();
}

/// Has threads end, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_changed_service_takes_its_settings_for_new_connections() {
    let other = r#"
        [service.other]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        "#;
    let server = Changing::start(
        &format!(
            r#"{other}
            [service.changing]
            listen = "127.0.0.1:0"
            guest = "hostile.wasm"
            max-line = 20
            env = {{ OF = "before" }}
            "#
        ),
        2,
    );
    let mut other_client = server.greeted("other", "Welcome!");
    let mut before = server.greeted("changing", "ready");
    assert!(before.ask("environment").contains("before"));
    let long = "a line of more than 20 bytes";
    assert_eq!(before.ask(long), "error: line is longer than 20 bytes");
    server.change(&format!(
        r#"{other}
        [service.changing]
        listen = ["127.0.0.1:0", "127.0.0.1:0"]
        guest = "hostile.wasm"
        max-connections = 2
        env = {{ OF = "after" }}
        "#
    ));
    let changed = "new connections get the changed settings";
    let line = server.server.logged(&[changed, "service=changing"]);
    // It is the same guest, and has a number of its own.
    assert!(line.contains("version=2"), "{line}");
    let mut after = server.greeted("changing", "ready");
    assert!(after.ask("environment").contains("after"));
    assert_eq!(after.ask(long), format!("unknown: {long}"));
    // Those who were there keep what they had, and count.
    assert!(before.ask("environment").contains("before"));
    assert_eq!(before.ask(long), "error: line is longer than 20 bytes");
    let mut refused = Client::connect(server.address("changing"));
    assert_eq!(refused.rest(), format!("{FULL}\n"));
    drop((before, after));
    let second = server.second_address("changing");
    eventually("there is room at its second address", || {
        Client::connect(second).hear() == "ready\n"
    });
    // Its guest is still looked after, and nothing was said of the other service.
    put(&server.path("hostile.wasm"), GREETER);
    let adopted = "new connections get a new version";
    let line = server.server.logged(&[adopted, "service=changing"]);
    assert!(line.contains("version=3"), "{line}");
    greeted(second, "Welcome!");
    assert_eq!(other_client.ask("Ada"), "Howdy, Ada!");
    assert_eq!(server.lines_about("other"), 2, "waiting and accepted");
    server.end();
}

#[test]
fn a_faulty_file_changes_nothing_and_is_one_line_of_the_log() {
    let sound = r#"
        [service.one]
        listen = "127.0.0.1:0"
        [service.two]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        "#;
    let server = Changing::start(sound, 2);
    let mut one = server.greeted("one", "Welcome!");
    let refused = "the settings stay as they were";
    server.change("[service.one]\nlisten = \"127.0.0.1:0\"\nmax-lin = 7\n[service.two");
    let line = server.server.logged(&[refused, "airlock.toml:3:1: "]);
    assert!(line.contains("did you mean `max-line`"), "{line}");
    assert!(line.contains("ERROR"), "{line}");
    assert_eq!(server.lines_with(refused), 1);
    // Nor is more asked for than there is.
    let more = "max-connections = 60000\nguest-memory = \"4GiB\"";
    server.change(&format!("{sound}{more}"));
    server.server.logged(&[refused, "service `two`"]);
    // A pipe is not waited for.
    fs::remove_file(&server.file).unwrap();
    mkfifo(&server.file);
    server.server.signal("HUP");
    server.server.logged(&[refused, "is no regular file"]);
    // It may go, and come back.
    fs::remove_file(&server.file).unwrap();
    server.server.signal("HUP");
    server.server.logged(&[refused, "cannot read it"]);
    assert_eq!(server.lines_with(refused), 4);
    assert_eq!(one.ask("Ada"), "Hello, Ada!");
    server.greeted("two", "Welcome!");
    server.change(&sound.replace("[service.two]", "[service.two]\nmax-line = 10"));
    server.server.logged(&["changed settings", "service=two"]);
    assert_eq!(server.lines_about("one"), 2, "waiting and accepted");
    server.end();
}

#[test]
fn a_service_whose_port_is_taken_keeps_what_it_had_and_the_others_go_on() {
    let server = Changing::start(
        r#"
        [service.one]
        listen = "127.0.0.1:0"
        [service.two]
        listen = "127.0.0.1:0"
        "#,
        2,
    );
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [first, second] = [0, 1].map(|number: usize| taken[number].local_addr().unwrap());
    server.change(&format!(
        r#"
        [service.one]
        listen = ["127.0.0.1:0", "{first}"]
        max-line = 10
        [service.two]
        listen = "127.0.0.1:0"
        max-line = 10
        [service.three]
        listen = "{second}"
        "#
    ));
    let words = ["it stays as it was", "service=one", "in use"];
    server.server.logged(&words);
    let words = ["it is not served", "service=three", "in use"];
    server.server.logged(&words);
    server.server.logged(&["changed settings", "service=two"]);
    let line = "a line of 18 bytes";
    let refusal = "error: line is longer than 10 bytes";
    let answer = format!("Hello, {line}!");
    assert_eq!(server.greeted("one", "Welcome!").ask(line), answer);
    assert_eq!(server.greeted("two", "Welcome!").ask(line), refusal);
    // Once there is room, it is enough to ask again.
    drop(taken);
    server.server.signal("HUP");
    server.server.logged(&["changed settings", "service=one"]);
    assert_eq!(server.new_address("three"), second);
    assert_eq!(greeted(first, "Welcome!").ask(line), refusal);
    assert_eq!(greeted(second, "Welcome!").ask(line), answer);
    server.end();
}

#[test]
fn a_guest_that_cannot_be_served_leaves_its_service_as_it_was() {
    let text = r#"
        [service.one]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        "#;
    let server = Changing::start(text, 1);
    fs::write(server.path("broken.wasm"), "no component").unwrap();
    server.change(&text.replace("shout", "broken"));
    let stays = "it stays as it was: cannot serve";
    server.server.logged(&[stays, "broken.wasm", "service=one"]);
    assert_eq!(server.greeted("one", "Welcome!").ask("Ada"), "Howdy, Ada!");
    // What it had is looked after as before.
    put(&server.path("shout.wasm"), GREETER);
    server
        .server
        .logged(&["new connections get a new version", "service=one"]);
    assert_eq!(server.greeted("one", "Welcome!").ask("Ada"), "Hello, Ada!");
    // A guest that runs may be too large for the new settings.
    server.change(&format!("{text}guest-memory = \"64KiB\"\nmax-line = 10"));
    server.server.logged(&[stays, "it starts with"]);
    // And it may be another one.
    server.change(&text.replace("shout", "counter"));
    server.server.logged(&["changed settings", "service=one"]);
    assert_eq!(Client::connect(server.address("one")).ask("count"), "1");
    put(&server.path("counter.wasm"), &howdy());
    server
        .server
        .logged(&["new connections get a new version", "version=4"]);
    assert_eq!(server.greeted("one", "Welcome!").ask("Ada"), "Howdy, Ada!");
    server.end();
}

/// The port is open all the time.
#[test]
fn a_port_can_go_from_one_service_to_another() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap();
    drop(free);
    let text = |one: &str, two: &str| {
        format!(
            r#"
            [service.one]
            listen = ["127.0.0.1:0", {one}]
            [service.two]
            listen = ["127.0.0.1:0", {two}]
            guest = "shout.wasm"
            "#
        )
    };
    let named = format!("\"{port}\"");
    let server = Changing::start(&text(&named, ""), 2);
    let mut open = greeted(port, "Welcome!");
    let (stop, goes) = <(AtomicBool, AtomicBool)>::default();
    let replies = AtomicUsize::new(0);
    let chat = Chat {
        address: port,
        greeting: "Welcome!",
        answers: &["Hello, Ada!", "Howdy, Ada!"],
        goes: &goes,
        stop: &stop,
        replies: &replies,
    };
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| chat.run());
        for (one, two, answer) in [("", &*named, "Howdy, Ada!"), (&named, "", "Hello, Ada!")] {
            server.change(&text(one, two));
            eventually("the other one has it", || {
                greeted(port, "Welcome!").ask("Ada") == answer
            });
        }
    });
    assert_eq!(open.ask("Ada"), "Hello, Ada!");
    server.end();
}

#[test]
fn a_service_that_goes_answers_what_is_in_progress_and_is_cut_after_its_time() {
    let one = r#"
        [service.one]
        listen = "127.0.0.1:0"
        "#;
    let both = format!(
        r#"
        limits.drain-timeout = "1s"
        {one}
        [service.two]
        listen = "127.0.0.1:0"
        guest = "hostile.wasm"
        call-timeout = "1h"
        record = "recorded"
        "#
    );
    let server = Changing::start(&both, 2);
    // One who keeps the settings before, and is of the service all the same.
    let mut earlier = server.greeted("two", "ready");
    server.change(&format!("{both}\nmax-line = 20"));
    server
        .server
        .logged(&["the changed settings", "service=two"]);
    let mut idle = server.greeted("two", "ready");
    let mut working = server.greeted("two", "ready");
    let mut asleep = server.greeted("two", "ready");
    working.send("announce and work\n");
    asleep.send("sleep\n");
    server.server.logged(&["working"]);
    server.change(&format!("limits.drain-timeout = \"2s\"\n{one}"));
    let at_start = "the next start obeys";
    server.server.logged(&[at_start, "drain-timeout"]);
    server.server.logged(&["ending", "service=two"]);
    assert_eq!(idle.rest(), format!("{GOODBYE}\n"));
    assert_eq!(earlier.rest(), format!("{GOODBYE}\n"));
    assert_eq!(working.rest(), format!("worked\n{GOODBYE}\n"));
    let reason = "reason=its service has ended";
    server.server.logged(&["closed", "service=two", reason]);
    server
        .server
        .logged(&["cut", "service=two", "connections=1"]);
    assert!(asleep.is_gone());
    // All of it was recorded, though nobody records any more.
    let recorded = || {
        let files = fs::read_dir(server.path("recorded")).unwrap();
        let files = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        files.filter(|text| text.contains("< worked")).count()
    };
    eventually("it is recorded", || recorded() == 1);
    assert_eq!(server.greeted("one", "Welcome!").ask("Ada"), "Hello, Ada!");
}

/// What cannot be kept in a pool that was made at the start is said, and nothing changes.
#[test]
fn more_than_the_process_was_started_for_is_refused() {
    let text = "[service.one]\nlisten = \"127.0.0.1:0\"\n";
    let server = Changing::start(text, 1);
    server.change(&format!(
        "{text}guest-memory = \"512MiB\"\nmax-connections = 9"
    ));
    let stays = "it stays as it was: guest-memory is more than the 64MiB";
    server.server.logged(&[stays, "service=one", "start again"]);
    // Many more services are not too many.
    let more = (0..40).map(|number| format!("[service.s{number}]\nlisten = \"127.0.0.1:0\"\n"));
    server.change(&format!("{text}{}", more.collect::<String>()));
    for number in 0..40 {
        let mut client = greeted(server.new_address(&format!("s{number}")), "Welcome!");
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
    server.change(text);
    server.server.logged(&["ending", "service=s39"]);
    assert_eq!(server.greeted("one", "Welcome!").ask("Ada"), "Hello, Ada!");
    server.end();
}

#[test]
fn an_order_loads_the_guests_of_all_services_that_stay() {
    let text = r#"
        [service.one]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        no-watch = true
        [service.two]
        listen = "127.0.0.1:0"
        guest = "hostile.wasm"
        no-watch = true
        "#;
    let server = Changing::start(text, 2);
    put(&server.path("shout.wasm"), GREETER);
    server.server.signal("HUP");
    server
        .server
        .logged(&["new connections get a new version", "service=one"]);
    server.server.logged(&["has not changed", "service=two"]);
    assert_eq!(server.lines_with("the changed settings"), 0);
    // Also those of which more has changed than the guest.
    fs::rename(server.path("counter.wasm"), server.path("hostile.wasm")).unwrap();
    fs::write(&server.file, format!("{text}max-line = 100")).unwrap();
    server.server.signal("HUP");
    server
        .server
        .logged(&["new connections get a new version", "service=two"]);
    server.end();
}

/// A pipe is read once: the shell's `<(…)`, say.
#[test]
fn a_file_that_cannot_be_read_again_is_not() {
    let text = "[service.one]\nlisten = \"127.0.0.1:0\"";
    let script = format!("exec {AIRLOCK} --config <(printf '%s' '{text}')");
    let server = Server::start_command(Command::new("bash").args(["-c", &script]));
    server.signal("HUP");
    server.logged(&["nothing to reload"]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn the_next_process_takes_over_what_has_changed() {
    let one = r#"
        [service.one]
        listen = "127.0.0.1:0"
        "#;
    let two = r#"
        [service.two]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        "#;
    let server = Changing::start(&format!("takeover = \"next.sock\"\n{one}"), 1);
    server.change(&format!("takeover = \"next.sock\"\n{two}{one}"));
    let address = server.new_address("two");
    let (mut next, addresses) = Server::of_file(&server.file, 2);
    assert_eq!(
        addresses,
        [
            ("one".to_owned(), server.address("one")),
            ("two".to_owned(), address)
        ]
    );
    next.logged(&["took the listeners over"]);
    server.server.logged(&["handed over"]);
    assert_eq!(greeted(address, "Welcome!").ask("Ada"), "Howdy, Ada!");
    // It follows the file too.
    server.change(&format!("takeover = \"next.sock\"\n{two}"));
    next.logged(&["ending", "service=one"]);
    next.signal("TERM");
    assert!(next.ended().success());
}
