//! The client, against servers that mean it no good.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use crate::support::{CLIENT, run};

/// Runs the client, which asks for Ada, against a server that does this with the connection.
fn against(serve: impl FnOnce(TcpStream) + Send, options: &[&str]) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        scope.spawn(|| serve(listener.accept().unwrap().0));
        let mut client = Command::new(CLIENT);
        client
            .args(["--connect", &address])
            .args(options)
            .arg("Ada");
        run(&mut client, b"")
    })
}

fn assert_fails(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(words), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_client_does_not_store_an_endless_line() {
    let endless = |mut stream: TcpStream| while stream.write_all(&[b'x'; 1 << 16]).is_ok() {};
    let output = against(endless, &["--timeout=1h"]);
    assert_fails(&output, "a line is longer than 16777216 bytes");
}

#[test]
fn a_client_leaves_a_server_that_drips() {
    let drip = |mut stream: TcpStream| {
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    };
    let output = against(drip, &["--timeout=300ms"]);
    assert_fails(&output, "does not finish its line");
    // And one that drips when it should close, a line each time.
    let drip = |mut stream: TcpStream| {
        while stream.write_all(b"Hello!\n").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    };
    let output = against(drip, &["--timeout=300ms"]);
    assert_fails(&output, "the server does not close");
}

#[test]
fn a_client_shows_control_characters_and_does_not_send_them_to_the_terminal() {
    let colourful = |mut stream: TcpStream| {
        stream.write_all(b"\x1b[31mWelcome\x07!\r\n").unwrap();
        stream.write_all(b"Hello, \xff!\nBye\x1b[2J\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    let output = against(colourful, &[]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "\\u{1b}[31mWelcome\\u{7}!\nHello, \u{fffd}!\nBye\\u{1b}[2J\n"
    );
    assert_eq!(output.status.code(), Some(0));
    let refusing = |mut stream: TcpStream| {
        stream.write_all(b"error: \x1b[2Jno\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    assert_fails(&against(refusing, &[]), "the server refused: \\u{1b}[2Jno");
}
