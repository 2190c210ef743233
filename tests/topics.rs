//! Connections that hear each other.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::{AIRLOCK, Client, Server, eventually, guest, put, run};

const GRANTED: &str = "--topics=memory:";

/// A server whose clients hear each other.
fn server(options: &[&str]) -> Server {
    Server::with_guest("speaker", &[&[GRANTED], options].concat())
}

fn connected(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.hear(), "hello\n");
    client
}

/// One that hears of this topic.
fn hearer(server: &Server, topic: &str) -> Client {
    let mut client = connected(server);
    assert_eq!(client.ask(&format!("hear {topic}")), "ok");
    client
}

#[test]
fn whoever_has_subscribed_hears_what_is_said_and_nobody_else() {
    let server = server(&[]);
    let mut ada = hearer(&server, "a");
    let mut bob = hearer(&server, "a");
    let mut eve = hearer(&server, "b");
    assert_eq!(eve.ask("say a one"), "ok");
    assert_eq!(ada.hear(), "a: one\n");
    assert_eq!(bob.hear(), "a: one\n");
    // Its own words come after its own reply.
    assert_eq!(ada.ask("say a two"), "ok");
    assert_eq!(ada.hear(), "a: two\n");
    assert_eq!(bob.hear(), "a: two\n");
    assert_eq!(bob.ask("forget a"), "ok");
    assert_eq!(eve.ask("say a three"), "ok");
    assert_eq!(ada.hear(), "a: three\n");
    assert_eq!(bob.ask("say b four"), "ok");
    assert_eq!(eve.hear(), "b: four\n");
    assert_eq!(bob.ask("heard"), "2");
    // What is silent is heard, and a goodbye from there is one.
    assert_eq!(eve.ask("say a be silent"), "ok");
    eventually("it is heard", || ada.ask("heard") == "4");
    assert_eq!(eve.ask("say a close"), "ok");
    assert_eq!(ada.rest(), "");
}

#[test]
fn all_hear_the_same_in_the_same_order() {
    const SPEAKERS: usize = 4;
    const LINES: usize = 45;
    let server = server(&[]);
    let hearers: Vec<_> = (0..8).map(|_| hearer(&server, "t")).collect();
    let mut speakers: Vec<_> = (0..SPEAKERS).map(|_| connected(&server)).collect();
    for (number, speaker) in speakers.iter_mut().enumerate() {
        let lines = (0..LINES).map(|line| format!("say t {number}.{line}\n"));
        speaker.send(lines.collect::<String>());
    }
    let heard = hearers.into_iter().map(|mut client| {
        let heard = move || {
            let lines = (0..SPEAKERS * LINES).map(|_| client.hear());
            lines.collect::<Vec<_>>()
        };
        thread::spawn(heard)
    });
    let heard = heard.collect::<Vec<_>>().into_iter();
    let heard: Vec<_> = heard.map(|one| one.join().unwrap()).collect();
    assert!(heard.iter().all(|one| *one == heard[0]));
    for number in 0..SPEAKERS {
        let start = format!("t: {number}.");
        let own = heard[0].iter().filter_map(|line| line.strip_prefix(&start));
        let own: Vec<_> = own
            .map(|line| line.trim_end().parse::<usize>().unwrap())
            .collect();
        assert_eq!(own, (0..LINES).collect::<Vec<_>>());
    }
}

#[test]
fn a_client_may_get_what_is_published_as_it_is() {
    let server = server(&["--max-reply=1KiB"]);
    let mut ada = connected(&server);
    let mut eve = connected(&server);
    assert_eq!(ada.ask("relay a"), "ok");
    assert_eq!(eve.ask("tell a one"), "ok");
    assert_eq!(ada.hear(), "a: one\n");
    assert_eq!(ada.ask("heard"), "0");
    // What the guest is asked about stays in its order between that.
    assert_eq!(ada.ask("hear b"), "ok");
    eve.send("say a 1\nsay b 2\nsay a 3\n");
    for line in ["1\n", "b: 2\n", "3\n"] {
        assert_eq!(ada.hear(), line);
    }
    // The last word counts.
    for (verb, line) in [("hear", "a: x\n"), ("relay", "x\n"), ("relay", "x\n")] {
        assert_eq!(ada.ask(&format!("{verb} a")), "ok");
        assert_eq!(eve.ask("say a x"), "ok");
        assert_eq!(ada.hear(), line);
    }
    // One that is longer than a reply may be is as good as lost, and those around it are not.
    eve.send("say a before\nflood a 1x1025\nflood a 1x1024\n");
    let heard: Vec<_> = (0..3).map(|_| ada.hear()).collect();
    let full = format!("{}\n", "x".repeat(1024));
    for line in ["before\n", "missed\n", &full] {
        assert!(heard.iter().any(|one| one == line), "{heard:?}");
    }
    assert_eq!(ada.ask("forget a"), "ok");
    assert_eq!(eve.ask("say a nobody"), "ok");
    assert_eq!(eve.ask("say b the end"), "ok");
    assert_eq!(ada.hear(), "b: the end\n");
}

#[test]
fn nothing_is_granted_by_default() {
    let server = Server::with_guest("speaker", &[]);
    server.logged(&[
        "WARN",
        "the guest asks for topics and has none",
        "--topics memory:",
    ]);
    let mut client = server.connect();
    assert_eq!(client.hear(), "access denied\n");
    for line in ["hear a", "relay a", "forget a", "say a b"] {
        assert_eq!(client.ask(line), "access denied", "{line}");
    }
}

#[test]
fn a_guest_without_topics_is_served_as_before() {
    let server = Server::start(&[GRANTED]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

/// A server whose guest's file can be changed.
fn changing() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.wasm");
    fs::copy(guest("speaker"), &file).unwrap();
    let server = Server::start(&[GRANTED, "--guest", file.to_str().unwrap()]);
    (folder, server)
}

/// Puts another version in its place that does the same, and waits until that serves.
fn change(folder: &tempfile::TempDir, server: &Server) {
    let file = folder.path().join("guest.wasm");
    let mut other = fs::read(&file).unwrap();
    // A custom section.
    other.extend([0, 2, 1, b'x']);
    put(&file, &other);
    server.logged(&["version=2"]);
}

#[test]
fn what_a_trial_says_is_heard_by_nobody() {
    let (folder, server) = changing();
    let mut hearer = hearer(&server, "starts");
    change(&folder, &server);
    let mut client = connected(&server);
    assert_eq!(client.ask("say starts end"), "ok");
    // The one that has connected, whose greeting is no trial.
    assert_eq!(hearer.hear(), "starts: one more\n");
    assert_eq!(hearer.hear(), "starts: end\n");
}

#[test]
fn names_are_any_text_and_none_is_another() {
    let server = server(&[]);
    let names = (1..=127_u8)
        .map(char::from)
        .filter(|char| !char.is_whitespace());
    let names = names
        .chain(['ß', '𝄞', '\u{85}', '\u{202e}'])
        .map(String::from);
    let names: Vec<_> = names.chain(["x".repeat(255)]).collect();
    let mut speaker = connected(&server);
    for part in names.chunks(40) {
        let mut hearer = connected(&server);
        for name in part {
            assert_eq!(hearer.ask(&format!("hear {name}")), "ok", "{name:?}");
        }
        for name in part {
            assert_eq!(speaker.ask(&format!("say {name} it")), "ok", "{name:?}");
            assert_eq!(hearer.hear(), format!("{name}: it\n"));
        }
    }
}

#[test]
fn every_bound_is_told_by_its_name() {
    let server = server(&[]);
    let mut client = connected(&server);
    let long = "x".repeat(256);
    for (line, limit) in [
        (format!("hear {long}"), "topic bytes"),
        ("hear ".to_owned(), "topic bytes"),
        (format!("say {long} x"), "topic bytes"),
        ("flood t 1x65537".to_owned(), "body bytes"),
        ("flood t 65x1".to_owned(), "publishes of a call"),
        ("hear-many 65".to_owned(), "subscriptions"),
    ] {
        assert_eq!(client.ask(&line), format!("limit: {limit}"), "{line}");
    }
    assert_eq!(client.ask("hear 1"), "ok");
    assert_eq!(client.ask("flood t 64x65536"), "ok");
    let mut fast = connected(&server);
    eventually("it is too fast", || {
        fast.ask("flood t 64x1") == "limit: publishes per second"
    });
    // Others are not.
    assert_eq!(client.ask("say t x"), "ok");
}

#[test]
fn a_guest_that_misses_messages_is_told_so() {
    let server = server(&[]);
    let mut client = hearer(&server, "t");
    // Before it hears any of them: no more than 256 KiB wait for it.
    assert_eq!(client.ask("flood t 64x65000"), "ok");
    assert_eq!(client.hear(), "missed\n");
    for _ in 0..4 {
        assert_eq!(client.hear(), "t: 65000 bytes\n");
    }
    assert_eq!(client.ask("say t and on"), "ok");
    assert_eq!(client.hear(), "t: and on\n");
}

/// Messages do not keep a client that says nothing, and a client that talks is not silent.
#[test]
fn the_time_of_silence_is_the_clients() {
    let server = server(&["--idle-timeout=2s"]);
    let mut silent = hearer(&server, "t");
    let mut speaker = hearer(&server, "t");
    let mut said = 0;
    let end = loop {
        assert_eq!(speaker.ask(&format!("say t {said}")), "ok");
        assert_eq!(speaker.hear(), format!("t: {said}\n"));
        match silent.hear() {
            line if line == format!("t: {said}\n") => said += 1,
            line => break line,
        }
        assert!(said < 100_000, "it is never let go");
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(end, "error: timed out waiting for a line\n");
    assert_eq!(silent.rest(), "");
    assert!(said > 0);
}

#[test]
fn those_that_wait_for_others_hear_of_the_end() {
    let mut server = server(&["--drain-timeout=60s"]);
    let mut clients: Vec<_> = (0..20).map(|_| hearer(&server, "t")).collect();
    server.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.rest(), "error: server is shutting down\n");
    }
    assert!(server.ended().success());
}

#[test]
fn connections_of_a_version_that_is_replaced_are_heard_until_they_end() {
    let (folder, server) = changing();
    let mut before = hearer(&server, "t");
    change(&folder, &server);
    let mut after = hearer(&server, "t");
    assert_eq!(after.ask("say t new"), "ok");
    assert_eq!(before.hear(), "t: new\n");
    assert_eq!(before.ask("say t old"), "ok");
    assert_eq!(after.hear(), "t: new\n");
    assert_eq!(after.hear(), "t: old\n");
}

#[test]
fn topics_belong_to_a_service_unless_they_have_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let guest = guest("speaker");
    let service = |name: &str, topics: &str| {
        format!(
            "[service.{name}]\nlisten = \"127.0.0.1:0\"\nguest = \"{}\"\ntopics = \"{topics}\"\n",
            guest.display()
        )
    };
    let file = folder.path().join("airlock.toml");
    let text = [
        service("one", "memory:"),
        service("two", "memory:"),
        service("three", "memory:?name=one"),
    ];
    fs::write(&file, text.concat()).unwrap();
    let (_server, addresses) = Server::of_file(&file, 3);
    let at = |name: &str| {
        let (_, address) = addresses.iter().find(|(other, _)| other == name).unwrap();
        let mut client = Client::connect(*address);
        assert_eq!(client.hear(), "hello\n");
        assert_eq!(client.ask("hear t"), "ok");
        client
    };
    let (mut one, mut two, mut three) = (at("one"), at("two"), at("three"));
    assert_eq!(two.ask("say t apart"), "ok");
    assert_eq!(two.hear(), "t: apart\n");
    assert_eq!(three.ask("say t together"), "ok");
    assert_eq!(three.hear(), "t: together\n");
    assert_eq!(one.hear(), "t: together\n");
    assert_eq!(one.ask("heard"), "1");
}

#[test]
fn what_was_heard_is_recorded_and_can_be_played() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records");
    let mut server = server(&["--record", records.to_str().unwrap()]);
    let mut ada = hearer(&server, "my");
    let mut bob = connected(&server);
    assert_eq!(bob.ask("say my two words"), "ok");
    assert_eq!(ada.hear(), "my: two words\n");
    assert_eq!(ada.ask("say my own words"), "ok");
    assert_eq!(ada.hear(), "my: own words\n");
    assert_eq!(ada.ask("relay its"), "ok");
    assert_eq!(bob.ask("say its words"), "ok");
    assert_eq!(ada.hear(), "words\n");
    bob.send("say my close\n");
    assert_eq!(ada.rest(), "");
    server.signal("TERM");
    assert!(server.ended().success());
    let entries = fs::read_dir(&records).unwrap();
    let conversations = entries.map(|entry| entry.unwrap().path());
    let mut conversations: Vec<_> = conversations.collect();
    conversations.sort();
    let text = fs::read_to_string(&conversations[0]).unwrap();
    let said: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        said,
        [
            "< hello",
            "> hear my",
            "< ok",
            "* my two words",
            "< my: two words",
            "> say my own words",
            "< ok",
            "< my: own words",
            "> relay its",
            "< ok",
            "* its words",
            "< words",
            "* my close",
            "<close",
        ]
    );
    let mut test = Command::new(AIRLOCK);
    test.args(["test", GRANTED]).arg(guest("speaker"));
    let played = run(test.arg(&conversations[0]), b"");
    let shown = String::from_utf8_lossy(&played.stdout);
    assert!(played.status.success(), "{shown}");
    // Without a subscription nobody hears it, and the difference shows that.
    let script = folder.path().join("deaf");
    fs::write(&script, "< hello\n* my two words\n< my: two words\n").unwrap();
    let mut test = Command::new(AIRLOCK);
    test.args(["test", GRANTED]).arg(guest("speaker"));
    let played = run(test.arg(&script), b"");
    let shown = String::from_utf8_lossy(&played.stdout);
    assert!(shown.contains("-* my two words\n"), "{shown}");
}

/// In the default mode each has a thread that waits for two descriptors; the others are woken by a seat.
#[test]
fn many_hear_one() {
    const HEARERS: usize = 500;
    let server = server(&["-q"]);
    let mut hearers: Vec<_> = (0..HEARERS).map(|_| hearer(&server, "t")).collect();
    let mut speaker = connected(&server);
    for number in 0..10 {
        assert_eq!(speaker.ask(&format!("say t {number}")), "ok");
    }
    for client in &mut hearers {
        for number in 0..10 {
            assert_eq!(client.hear(), format!("t: {number}\n"));
        }
    }
    drop(hearers);
    assert_eq!(speaker.ask("say t nobody"), "ok");
}
