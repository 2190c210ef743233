//! What an operator can see.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::{AIRLOCK, Client, Server};

#[test]
fn the_log_tells_of_waiting_accepting_and_closing() {
    let server = Server::start(&[]);
    server.logged(&["waiting for connections", &server.address.to_string()]);
    let mut client = server.greeted();
    let peer = format!("peer={}", client.address());
    server.logged(&["INFO", "accepted", "connection=1", &peer]);
    client.send("Ada\nexit\n");
    client.rest();
    server.logged(&[
        "INFO",
        "closed",
        "connection=1",
        &peer,
        "lines=2",
        "bytes_in=9",
        "bytes_out=21",
        "the guest closed",
    ]);
}

#[test]
fn the_json_log_has_one_object_a_line() {
    let server = Server::start(&["--log-format=json"]);
    server.greeted();
    let line = server.logged(&[r#""message":"closed""#, r#""connection":1"#]);
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert!(line.contains(r#""reason":"the client closed""#), "{line}");
}

#[test]
fn quiet_is_quiet_and_verbose_is_not() {
    for (options, levels) in [
        (["-q"].as_slice(), [].as_slice()),
        (&[], &[" INFO "]),
        (&["-v"], &[" INFO ", "DEBUG "]),
    ] {
        let mut server = Server::start(options);
        server.greeted();
        drop(server.greeted());
        server.signal("TERM");
        assert!(server.ended().success());
        let log = server.whole_log();
        assert_eq!(log.is_empty(), levels.is_empty(), "{options:?}: {log:?}");
        for level in levels {
            let has = log.iter().any(|line| line.contains(level));
            assert!(has, "{options:?}: {log:?}");
        }
        let debug = log.iter().any(|line| line.contains("DEBUG "));
        assert_eq!(debug, options == ["-v"], "{options:?}: {log:?}");
    }
}

#[test]
fn the_reason_of_a_failure_stands_in_its_line() {
    let server = Server::with_guest("hostile", &["-q"]);
    for attack in ["panic", "exit"] {
        server.connect().send(format!("{attack}\n"));
    }
    server.logged(&[
        "WARN closed",
        "unreachable",
        "it wrote last: ",
        "on purpose",
    ]);
    // This one had nothing to say.
    let line = server.logged(&["WARN closed", "it called exit with status 1"]);
    assert!(!line.contains("it wrote last"), "{line}");
}

#[test]
fn a_guest_forges_no_line_of_the_log() {
    let server = Server::with_guest("hostile", &[]);
    server.connect().send("forge\n");
    server.logged(&["INFO closed connection=1 "]);
    let closed: Vec<_> = server
        .log()
        .into_iter()
        .filter(|line| line.contains("closed connection="))
        .collect();
    let [out, err, real] = closed.as_slice() else {
        panic!("{closed:?}");
    };
    // After the time, whose every line has one.
    let marked = |line: &str, mark: &str| line[27..].starts_with(mark);
    assert!(
        marked(out, "  INFO guest connection=1 stdout: closed "),
        "{out}"
    );
    let escaped = r"  INFO guest connection=1 stderr: \u{2028}\u{202e}INFO closed ";
    assert!(marked(err, escaped), "{err}");
    assert!(marked(real, "  INFO closed connection=1 "), "{real}");

    let server = Server::with_guest("hostile", &["--log-format=json"]);
    server.connect().send("forge\n");
    let line = server.logged(&[r#""target":"guest""#, r#""stream":"stderr""#]);
    assert!(line.contains(r"\\u{2028}\\u{202e}INFO"), "{line}");
    assert!(line.is_ascii(), "{line}");
}

#[test]
fn a_guest_that_is_called_again_and_again_does_not_flood_the_log() {
    let mut server = Server::with_guest("hostile", &[]);
    // Each of them could print 100 lines at once, if it were alone.
    for _ in 0..60 {
        let mut client = server.connect();
        assert_eq!(client.hear(), "ready\n");
        assert_eq!(client.ask("shout"), "shouted");
    }
    server.signal("TERM");
    assert!(server.ended().success());
    let log = server.whole_log();
    let printed = log.iter().filter(|line| line.contains(" INFO guest "));
    let printed = printed.count();
    assert!((1000..3000).contains(&printed), "{printed} lines");
    let said = log
        .iter()
        .any(|line| line.contains("a version's guests together print more than 100 a second"));
    assert!(said, "nothing is said of what was dropped");
}

#[test]
fn a_log_that_nobody_reads_or_that_has_gone_stops_no_connection() {
    for closed in [false, true] {
        let mut child = Command::new(AIRLOCK)
            .args(["--listen=127.0.0.1:0", "--max-connections=100"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take();
        // A full pipe (64 KiB) blocks its writer; one without a reader is an error.
        let unread = (!closed).then_some(stderr);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address: SocketAddr = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        for n in 0..1000 {
            let mut client = Client::connect(address);
            client.hear();
            assert_eq!(client.ask(&n.to_string()), format!("Hello, {n}!"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(unread);
    }
}
