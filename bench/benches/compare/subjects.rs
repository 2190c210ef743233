//! The servers that are compared.

use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use airlock::serve::scheduling::Scheduling;
use anyhow::Result;
use bench::door::Door;
use bench::servers::{self, Subject};
use bench::twin::Twin;

use crate::ROOT;

/// Where performance.md says that a newer Go than the installed one is put.
const NEWEST_GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/go/go/bin/go");

/// What these are called. The newest Go comes first.
pub(crate) const GO: [&str; 2] = ["Go", "Go, as installed"];

/// The numbers of ours, which come first: Airlock in both modes, each behind the twin that it is set
/// against, and its shim.
pub(crate) const NATIVE: usize = 0;
pub(crate) const PER_CONNECTION: usize = 1;
pub(crate) const EPOLL: usize = 2;
pub(crate) const FEW: usize = 3;
pub(crate) const OURS: usize = 5;

/// With these options of Airlock's, and for one core.
pub(crate) fn ours<'a>(
    airlock: &'a Path,
    airlock_bench: &'a Path,
    options: &'a [String],
) -> [Subject<'a>; OURS] {
    [
        servers::native(airlock_bench, Twin::Plain, &Door::TCP, &[]),
        servers::airlock(airlock, &Door::TCP, Scheduling::PerConnection, options),
        servers::native(airlock_bench, Twin::Epoll, &Door::TCP, &[]),
        servers::airlock(airlock, &Door::TCP, few(1), options),
        servers::native(airlock_bench, Twin::Shim, &Door::TCP, &[]),
    ]
}

/// So many threads for all connections.
pub(crate) fn few(threads: usize) -> Scheduling {
    Scheduling::Shared(NonZero::new(threads).unwrap_or(NonZero::<usize>::MIN))
}

/// A server in another language.
pub(crate) struct Peer {
    pub(crate) subject: Subject<'static>,
    pub(crate) version: String,
}

/// Those in Go, as far as this machine has it, with this many threads.
pub(crate) fn go(threads: usize) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (name, go) in GO.into_iter().zip([NEWEST_GO, "go"]) {
        let Some(version) = output_of(&[go, "version"]) else {
            continue;
        };
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut build = Command::new(go);
        build.args(["build", "-o"]).arg(&program);
        let source = format!("{ROOT}/bench/peers/greeter.go");
        if !build.arg(source).status()?.success() {
            eprintln!("{name} is left out: its greeter does not build");
            continue;
        }
        let command = Rc::new(move || {
            let mut command = Command::new(&program);
            command.env("GOMAXPROCS", threads.to_string());
            command
        });
        let subject = Subject {
            name,
            address: Door::TCP.address(name),
            command,
        };
        peers.push(Peer { subject, version });
    }
    Ok(peers)
}

/// Those in languages that use one core, as far as this machine has them.
pub(crate) fn scripts() -> Vec<Peer> {
    let mut peers = Vec::new();
    // The program itself: `python3` may be a script that searches for it, which takes longer than
    // it does to start.
    let python = output_of(&["python3", "-c", "import sys; print(sys.executable)"]);
    for (name, program, script) in [
        ("Node", Some("node".to_owned()), "greeter.mjs"),
        ("Python", python, "greeter.py"),
    ] {
        let Some(program) = program else { continue };
        let Some(version) = output_of(&[&program, "--version"]) else {
            continue;
        };
        let command = Rc::new(move || {
            let mut command = Command::new(&program);
            command.arg(format!("{ROOT}/bench/peers/{script}"));
            command
        });
        let subject = Subject {
            name,
            address: Door::TCP.address(name),
            command,
        };
        peers.push(Peer { subject, version });
    }
    peers
}

/// What a program prints, if it is there.
fn output_of(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
