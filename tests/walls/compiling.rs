//! Compiling hostile files: what they do to the compiler, and to nobody else.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use procfs_core::FromRead;
use procfs_core::process::Status;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;

use crate::bombs::{Bomb, bombs, table_fills};
use crate::components::howdy;
use crate::support::{AIRLOCK, Changing, Server, eventually, put, run};

/// Small enough for a test, ample for the greeter in a debug build.
const BOUNDS: [&str; 2] = ["--compile-timeout=3s", "--compile-memory=512MiB"];

/// The bombs as files, and the folder that they are in.
fn bomb_files() -> (TempDir, Vec<(Bomb, PathBuf)>) {
    let folder = tempfile::tempdir().unwrap();
    let files = bombs().into_iter().map(|bomb| {
        let file = folder.path().join(bomb.name.replace(' ', "-") + ".wasm");
        fs::write(&file, &bomb.bytes).unwrap();
        (bomb, file)
    });
    let files = files.collect();
    (folder, files)
}

#[test]
fn a_bomb_for_the_compiler_is_refused_in_one_line() {
    let (folder, bombs) = bomb_files();
    let script = folder.path().join("empty.conv");
    fs::write(&script, "").unwrap();
    for (bomb, file) in &bombs {
        let name = bomb.name;
        // Nobody has compiled it before, with other bounds.
        let cache = folder.path();
        let output =
            |command: &mut Command| run(command.args(BOUNDS).env("XDG_CACHE_HOME", cache), b"");
        let explains = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            bomb.causes.iter().any(|cause| text.contains(cause))
        };
        let check = output(Command::new(AIRLOCK).arg("check").arg(file));
        assert_eq!(check.status.code(), Some(1), "{name}: {check:?}");
        assert!(explains(&check.stdout), "{name}: {check:?}");
        let test = [Path::new("test"), file, &script];
        let start = [
            Path::new("--listen=127.0.0.1:0"),
            Path::new("--guest"),
            file,
        ];
        for command in [test, start] {
            let output = output(Command::new(AIRLOCK).args(command));
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            let complaint = last_line(&output);
            assert!(explains(complaint.as_bytes()), "{name}: {output:?}");
        }
    }
}

/// Before it may stand that something takes its time.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_bomb_through_hot_reload_ends_its_compiler_alone() {
    let Changing { server, file, .. } = &Changing::start_uncached(&BOUNDS);
    let mut client = server.greeted();
    let resident_kib = server.resident_kib();
    for bomb in bombs() {
        let refused = server.log().len();
        put(file, &bomb.bytes);
        eventually(bomb.name, || {
            assert_eq!(client.ask("Ada"), "Hello, Ada!", "{}", bomb.name);
            let log = server.log();
            let mut lines = log[refused..].iter();
            lines.any(|line| {
                let explains = bomb.causes.iter().any(|cause| line.contains(cause));
                line.contains("refused the new guest") && explains
            })
        });
    }
    // What it has read of them is given back; the compiler's memory never was its own.
    let grown_kib = server.resident_kib().saturating_sub(resident_kib);
    assert!(grown_kib < 16 * 1024, "{grown_kib} KiB more");
    put(file, &howdy());
    server.logged(&["new connections get a new version", "version=2"]);
    assert_eq!(server.greeted().ask("Ada"), "Howdy, Ada!");
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}

/// Compiles for as long as it is let.
fn endless() -> Vec<u8> {
    table_fills(300_000)
}

const PATIENT: &str = "--compile-timeout=1h";

#[test]
fn a_newer_file_takes_the_place_of_the_one_that_is_compiled() {
    let changing = Changing::start(&[PATIENT]);
    changing.replace(&endless());
    let compiler = changing.server.compiler();
    changing.replace(&howdy());
    changing.server.logged(&["gave up compiling the new guest"]);
    changing
        .server
        .logged(&["new connections get a new version"]);
    assert_eq!(changing.server.greeted().ask("Ada"), "Howdy, Ada!");
    assert!(!Path::new(&format!("/proc/{compiler}")).exists());
}

#[test]
fn a_server_ends_in_the_middle_of_a_compilation_and_its_compiler_with_it() {
    for signal in ["TERM", "KILL"] {
        let mut changing = Changing::start(&[PATIENT]);
        changing.replace(&endless());
        let compiler = changing.server.compiler();
        changing.server.signal(signal);
        changing.server.ended();
        eventually("the compiler has ended", || {
            let status = Status::from_file(format!("/proc/{compiler}/status"));
            // Whoever adopted it may not have waited for it yet.
            status.map_or(true, |status| status.state.starts_with('Z'))
        });
    }
}

#[test]
fn a_compiler_has_its_three_streams_and_nothing_else() {
    // As a careless parent of the server leaves them behind.
    let folder = tempfile::tempdir().unwrap();
    let guest = folder.path().join("guest.wasm");
    fs::write(&guest, airlock::GREETER).unwrap();
    let server = Server::start_command(
        Command::new("sh")
            .args([
                "-c",
                "exec 7</etc/passwd; exec \"$@\"",
                "sh",
                AIRLOCK,
                PATIENT,
            ])
            .arg("--guest")
            .arg(&guest),
    );
    put(&guest, &endless());
    let process = PathBuf::from(format!("/proc/{}", server.compiler()));
    let confined = || {
        let status = Status::from_file(process.join("status")).unwrap();
        status.seccomp == Some(2) && status.nonewprivs == Some(1)
    };
    eventually("it is confined", confined);
    let mut descriptors: Vec<_> = fs::read_dir(process.join("fd"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), fs::read_link(entry.path()).unwrap()))
        .collect();
    descriptors.sort();
    let numbers: Vec<_> = descriptors.iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, ["0", "1", "2"]);
    let pipes = descriptors
        .iter()
        .filter(|(_, to)| to.to_string_lossy().starts_with("pipe:"));
    assert_eq!(pipes.count(), 3, "{descriptors:?}");
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    for (name, value) in [
        ("Max address space", "2147483648"),
        ("Max cpu time", "14401"),
        ("Max core file size", "0"),
        ("Max file size", "0"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let mut values = line[name.len()..].split_whitespace();
        assert_eq!([values.next(), values.next()], [Some(value); 2], "{line}");
    }
    let environment = fs::read_to_string(process.join("environ")).unwrap();
    assert_eq!(environment, "RAYON_NUM_THREADS=4\0");
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // The 19th field of proc(5), of which two stand before that parenthesis.
    assert_eq!(fields.split_whitespace().nth(16), Some("19"), "{stat}");
}

#[test]
fn a_compilation_that_takes_its_time_is_spoken_of() {
    let changing = Changing::start(&[PATIENT]);
    let bomb = endless();
    changing.replace(&bomb);
    let bytes = format!("bytes={}", bomb.len());
    changing.server.logged(&["compiling the guest", &bytes]);
}

/// As units of systemd and containers have it.
#[test]
#[expect(
    unsafe_code,
    reason = "there is no safe way to put a filter around a program"
)]
fn a_filter_of_system_calls_around_the_server_stops_no_compiler() {
    let denied = [libc::SYS_seccomp, libc::SYS_setpriority];
    let filter: BpfProgram = SeccompFilter::new(
        denied.map(|call| (call, Vec::new())).into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap()
    .try_into()
    .unwrap();
    let mut command = Command::new(AIRLOCK);
    // SAFETY: between fork and exec it only makes two system calls.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&filter).map_err(io::Error::other))
    };
    // Nothing has been compiled before.
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start_command(command.env("XDG_CACHE_HOME", cache.path()));
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_limit_below_the_compilers_bounds_stops_no_compiler() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -t 60; exec \"$@\"", "sh", AIRLOCK]);
    let server = Server::start_command(command.env("XDG_CACHE_HOME", cache.path()));
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}
