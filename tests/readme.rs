//! Every command of the README works, in its order, as it is written.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, eventually, installed, root};

const DEFAULT_ADDRESS: &str = "127.0.0.1:9999";
/// Where the README has its reader write a guest. The test takes another place.
const OWN_GUEST: &str = "/tmp/shout";
/// Where it has its reader record conversations. The same.
const RECORDS: &str = "/tmp/conversations";

/// Commands that take long, or would start this test again; CI runs them as they stand here
/// (`bench/compare` with options that make it short).
const RUN_BY_CI: [&str; 6] = [
    "cargo test --workspace",
    "bench/compare",
    "cargo run -p bench --release",
    "cargo run -p bench --release -- --mode pipeline",
    "cargo run -p bench --release -- --mode churn",
    "cargo test -p host --release --test walls -- --ignored ten_thousand --nocapture",
];

#[test]
fn every_command_works_as_written() {
    if !installed("nc") {
        return;
    }
    assert!(
        TcpStream::connect(DEFAULT_ADDRESS).is_err(),
        "stop the server on {DEFAULT_ADDRESS}: the README's commands start their own"
    );
    let folder = tempfile::tempdir().unwrap();
    let own_guest = folder.path().join("shout");
    let own_guest = own_guest.to_str().unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let readme = readme.replace(OWN_GUEST, own_guest);
    let records = folder.path().join("conversations");
    let records = records.to_str().unwrap();
    let readme = readme.replace(RECORDS, records);
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let mut server: Option<Running> = None;
    let mut heard = Vec::new();
    for (language, text) in blocks(&readme) {
        match language {
            "sh" => {
                for command in text.lines() {
                    if RUN_BY_CI.contains(&command) {
                        assert!(ci.contains(command), "{command}");
                    } else if is_server(command) {
                        // The old one has to leave the port first.
                        drop(server.take());
                        server = Some(Running::start(command));
                        heard.push(converse());
                    } else {
                        if command.contains(records) {
                            eventually("a conversation is recorded", || !is_empty(records));
                        }
                        run(command);
                    }
                }
            }
            "toml" => {
                let path = format!("{own_guest}/Cargo.toml");
                let manifest = fs::read_to_string(&path).unwrap();
                fs::write(path, format!("{manifest}\n{text}")).unwrap();
            }
            "rust" => fs::write(format!("{own_guest}/src/lib.rs"), text).unwrap(),
            _ => {}
        }
    }
    let greeter = "Welcome!\nHello, Ada!\n";
    let polite = "Hi\nHello, Ada!\n";
    let shout = "Say something.\nADA\n";
    assert_eq!(heard, [greeter, greeter, polite, shout, greeter]);
}

#[test]
fn its_figures_are_those_that_were_measured() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let measured = fs::read_to_string(root().join("docs/performance.md")).unwrap();
    let (_, section) = readme.split_once("## How fast it is").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.skip(2).collect();
    assert_eq!(rows.len(), 7);
    for row in rows {
        assert!(measured.contains(row), "{row}");
    }
}

/// The fenced blocks of a Markdown text, with their languages.
fn blocks(markdown: &str) -> Vec<(&str, &str)> {
    let fenced = markdown.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

fn is_empty(folder: &str) -> bool {
    fs::read_dir(folder).map_or(true, |mut files| files.next().is_none())
}

fn is_server(command: &str) -> bool {
    let aside = ["--bin ", "-- check ", "-- test "];
    command.starts_with("cargo run -p host") && !aside.iter().any(|word| command.contains(word))
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(root());
    shell
}

/// Runs a command, and sees that a client hears what the README promises; soon, when that takes the
/// time of a reload.
fn run(command: &str) {
    let promise = match command {
        _ if command.contains("quit") => "Louder, please!\nHELLO\nBye!\n",
        _ if command.contains("-p bench ") => "ping: 64 connections",
        _ if command.contains("9999") || command.contains("--bin client") => {
            "Welcome!\nHello, Michael!\nHello, Tracy!\n"
        }
        _ => "",
    };
    eventually(command, || output_of(command).starts_with(promise));
}

fn output_of(command: &str) -> String {
    let output = shell(command).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// A server that a command of the README has started.
struct Running(Child);

impl Running {
    fn start(command: &str) -> Running {
        // `exec` twice, by the shell and by cargo: the child is the server itself.
        let child = shell(&format!("exec {command}")).spawn().unwrap();
        let mut running = Running(child);
        let deadline = Instant::now() + Duration::from_secs(600);
        while TcpStream::connect(DEFAULT_ADDRESS).is_err() {
            assert!(
                running.0.try_wait().unwrap().is_none(),
                "{command} has ended"
            );
            assert!(Instant::now() < deadline, "{command} does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn converse() -> String {
    let mut client = Client::connect(DEFAULT_ADDRESS.parse().unwrap());
    client.send("Ada\n");
    format!("{}{}", client.hear(), client.hear())
}
