//! What an operator can see.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{AIRLOCK, Client, Server};

#[test]
fn the_log_tells_of_waiting_accepting_and_closing() {
    let server = Server::start(&[]);
    server.logged(&["waiting for connections", &server.address.to_string()]);
    let mut client = server.greeted();
    let peer = format!("peer={}", client.stream.local_addr().unwrap());
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
    let server = Server::start(&["-q"]);
    server.greeted();
    drop(server.greeted());
    assert_eq!(server.log(), Vec::<String>::new());
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
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
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
