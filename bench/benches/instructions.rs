//! How many instructions the parts of a connection take: figures that no noise touches, and a gate.
//!
//! ```text
//! cargo bench -p bench --bench instructions
//! ```
//!
//! Each part is run under callgrind (Debian's `valgrind`) a few times and many times; the
//! difference is what it takes. In CI the bench fails when a part takes a tenth more than
//! `instructions.txt` beside this file says, which is what CI's build takes: without link-time
//! optimisation, on x86-64. What that build takes now (another Rust may change it) is written there
//! with
//!
//! ```text
//! CARGO_PROFILE_BENCH_LTO=off AIRLOCK_BLESS=1 cargo bench -p bench --bench instructions
//! ```

#![expect(clippy::print_stdout, reason = "that is where a bench reports")]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, Permissions};
use std::hint::black_box;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use airlock::GREETER;
use airlock::limits::Limits;
use airlock::limits::process::Process;
use airlock::limits::wire::Wire;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::linking::Sandbox;
use airlock::sandbox::runtime::{Grants, Runtime, Scratch};
use airlock::sandbox::session::Session;
use airlock::talk::client::{Client, Endpoint};
use airlock::talk::conversation::{Conversation, End, Event, Turn, Wait};
use airlock::talk::framing::Framing;
use airlock::talk::handler::Handler;
use anyhow::{Context, Result, bail, ensure};
use bench::program;

const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// Says to this program, under callgrind, what to run and how often.
const WORK: &str = "AIRLOCK_BENCH_WORK";

/// Does something so many times.
type Part = fn(&Sandbox, u32);

const PARTS: [(&str, Part); 4] = [
    ("call", call),
    ("batch of 100 lines", batch),
    ("connection", connection),
    (OF_SERVICES, connection),
];

/// The same, where a process has several services.
const OF_SERVICES: &str = "connection of one of three services";

const LINE: &str = "Michael";

/// Compiles guests in place of `airlock`: on the processor that this program sees under valgrind, which
/// is not the one that its children have.
const COMPILER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/compiler-under-valgrind");

/// How much more than expected is too much.
const TOLERANCE: f64 = 1.1;

fn main() -> Result<ExitCode> {
    if let Ok(work) = env::var(WORK) {
        run(&work)?;
        return Ok(ExitCode::SUCCESS);
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        // CI has to count.
        ensure!(env::var_os("CI").is_none(), "there is no valgrind");
        println!("instructions are not counted: install valgrind");
        return Ok(ExitCode::SUCCESS);
    }
    let airlock = program::build("bench")?;
    let airlock = airlock.display();
    let script = format!("#!/bin/sh\nexec valgrind -q --tool=none '{airlock}' \"$@\"\n");
    fs::write(COMPILER, script)?;
    fs::set_permissions(COMPILER, Permissions::from_mode(0o755))?;
    let mut counted = BTreeMap::new();
    for (part, _) in PARTS {
        counted.insert(part.to_owned(), instructions(part)?);
    }
    if env::var_os("AIRLOCK_BLESS").is_some() {
        let lines = counted
            .iter()
            .map(|(part, count)| format!("{count} {part}\n"));
        fs::write(EXPECTED, lines.collect::<String>())?;
    }
    let expected = expected()?;
    let mut status = ExitCode::SUCCESS;
    for (part, count) in counted {
        let expected = *expected
            .get(&part)
            .with_context(|| format!("nothing is expected of `{part}`"))?;
        let ratio = count as f64 / expected as f64;
        let verdict = if ratio > TOLERANCE {
            // Another compiler or processor is no fault.
            if env::var_os("CI").is_some() {
                status = ExitCode::FAILURE;
            }
            "TOO MANY"
        } else {
            "ok"
        };
        println!("{part:36} {count:>9} instructions, {ratio:.2} of {expected:>9}: {verdict}");
    }
    Ok(status)
}

/// What one run of `part` takes.
fn instructions(part: &str) -> Result<u64> {
    const FEW: u32 = 100;
    const MANY: u32 = 600;
    let (few, many) = (least(part, FEW)?, least(part, MANY)?);
    let more = many.checked_sub(few).context("more runs took less")?;
    Ok(more / u64::from(MANY - FEW))
}

/// Of three counts. The first one has to compile the guest, which is then kept; and now and then
/// Wasmtime packs what it keeps better.
fn least(part: &str, times: u32) -> Result<u64> {
    let counts = (0..3).map(|_| callgrind(part, times));
    let counts = counts.collect::<Result<Vec<_>>>()?;
    counts.into_iter().min().context("nothing was counted")
}

/// What this program takes for `times` runs of `part`.
fn callgrind(part: &str, times: u32) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .env(WORK, format!("{times} {part}"))
        .output()
        .context("cannot run valgrind")?;
    let report = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "callgrind failed:\n{report}");
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .with_context(|| format!("callgrind counted nothing:\n{report}"))?;
    Ok(collected.1.trim().parse()?)
}

fn expected() -> Result<BTreeMap<String, u64>> {
    let lines = fs::read_to_string(EXPECTED).with_context(|| EXPECTED)?;
    let entry = |line: &str| {
        let (count, part) = line.split_once(' ').context("want a number and a part")?;
        Ok((part.to_owned(), count.parse()?))
    };
    lines.lines().map(entry).collect()
}

fn run(work: &str) -> Result<()> {
    let (times, name) = work.split_once(' ').context("want a number and a part")?;
    let Some((_, part)) = PARTS.into_iter().find(|(part, _)| *part == name) else {
        bail!("there is no part `{name}`");
    };
    // Small: callgrind has less room for addresses than a process has.
    let services = if name == OF_SERVICES { 3 } else { 1 };
    let process = Process {
        services,
        ..Process::new(1, 1 << 30)
    };
    let host = Host::new(process, Compiler::new(COMPILER, false))?;
    let runtime = || Runtime::new(&host, None, Grants::default(), Limits::new(1));
    let _others: Vec<_> = (1..services).map(|_| runtime()).collect();
    let runtime = runtime();
    part(&Sandbox::new(&runtime, GREETER, &|| true)?, times.parse()?);
    Ok(())
}

/// One line.
fn call(sandbox: &Sandbox, times: u32) {
    let mut session = start(sandbox);
    for _ in 0..times {
        black_box(session.handle_line(LINE).expect("an answer"));
    }
}

/// Lines that have arrived together.
fn batch(sandbox: &Sandbox, times: u32) {
    let lines = format!("{LINE}\n").repeat(100);
    let mut session = start(sandbox);
    for _ in 0..times {
        let answers = session.handle_lines(|| Some(&lines), usize::MAX);
        black_box(answers.expect("answers").expect("a guest that takes many"));
    }
}

/// All of the shim's loop and a sandbox: greeting, a line, goodbye.
fn connection(sandbox: &Sandbox, times: u32) {
    for _ in 0..times {
        // The last first.
        let mut unsaid = vec!["exit\n", "Michael\n"];
        let mut conversation = Conversation::new(Framing::Auto, Wire::DEFAULT);
        let mut turn = conversation.start(|| Ok(start(sandbox)));
        let end = loop {
            let event = match turn {
                Turn::Ended(end) => break end,
                Turn::Wait(Wait::Receive { .. }) => {
                    let line = unsaid.pop().unwrap_or_default();
                    conversation.room()[..line.len()].copy_from_slice(line.as_bytes());
                    Event::Input(line.len())
                }
                Turn::Wait(_) => Event::Sent(black_box(conversation.output()).len()),
            };
            turn = conversation.turn(event);
        };
        assert!(matches!(end, End::GuestClosed), "{end:?}");
    }
}

fn start(sandbox: &Sandbox) -> Session {
    let address = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 9999)));
    let client = Client {
        id: 1,
        peer: address.clone(),
        local: address,
        ..Client::NOBODY
    };
    Session::start(sandbox, client, Scratch::default()).expect("an instance")
}
