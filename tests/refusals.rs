//! Servers that must not start: one line on standard error, a status that is not 0, no listener.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

use crate::support::{AIRLOCK, installed, root, run};

/// Runs `airlock` with options it must refuse, and returns its one line.
fn refusal(options: &[&str]) -> String {
    refused(Command::new(AIRLOCK).args(options))
}

fn refused(command: &mut Command) -> String {
    let output = run(command, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(output.stdout, b"", "{stderr}");
    stderr
}

fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

#[test]
fn a_port_that_is_none() {
    for port in ["9999999", "65536", "-1", "", "http"] {
        let line = refusal(&["--listen", &format!("127.0.0.1:{port}")]);
        assert_says(
            &line,
            &["--listen", &format!("`{port}` is not a port"), "65535"],
        );
    }
}

#[test]
fn an_address_that_is_none() {
    assert_says(&refusal(&["--listen=9999"]), &["want ADDR:PORT"]);
    assert_says(&refusal(&["--listen=::1:9999"]), &["[::1]:9999"]);
    assert_says(
        &refusal(&["--listen=300.0.0.1:0"]),
        &["`300.0.0.1` is not an address"],
    );
    assert_says(&refusal(&["--listen=192.0.2.1:0"]), &["no interface"]);
}

#[test]
fn values_that_make_no_sense() {
    for (option, words) in [
        ("--max-line=0", "from 1B to 1GiB"),
        ("--max-line=lots", "want a size like 64KiB"),
        ("--idle-timeout=5", "want a time with its unit"),
        ("--call-timeout=0s", "more than no time"),
        ("--guest-memory=1KiB", "from 64KiB to 4GiB"),
        ("--max-connections=0", "a number from 1 to"),
        ("--max-connections=1000000", "more than the"),
        ("--guest-memory=4GiB", "lower it, or --max-connections to"),
        ("--total-guest-memory=1MiB", "at least --guest-memory"),
        ("--max-line=65MiB", "no room for a line of --max-line 65MiB"),
        ("--backlog=0", "a number from 1 to"),
        ("--framing=words", "auto, lines, chunks"),
        ("--env=GREETING", "NAME=VALUE"),
        ("--no-such-option", "--no-such-option"),
        ("surprise", "surprise"),
    ] {
        assert_says(&refusal(&[option]), &[words]);
    }
}

#[test]
fn a_value_in_the_environment_is_checked_like_one_on_the_command_line() {
    let line = refused(Command::new(AIRLOCK).env("AIRLOCK_MAX_LINE", "lots"));
    assert_says(&line, &["lots", "--max-line", "want a size like 64KiB"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = refusal(&["--listen", &address]);
    assert_says(&line, &[&address, "in use", "--listen"]);
}

#[test]
fn a_port_that_needs_privileges() {
    if !installed("setpriv") {
        return;
    }
    // The test may run as root, so the server gives up the one privilege that matters.
    let line = refused(
        Command::new("setpriv")
            .args(["--bounding-set=-net_bind_service", "--inh-caps=-all"])
            .args([AIRLOCK, "--listen=127.0.0.1:81"]),
    );
    assert_says(&line, &["127.0.0.1:81", "need privileges", "--listen"]);
}

#[test]
fn files_that_are_no_component() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let component = airlock::GREETER;
    let half = &component[..component.len() / 2];
    let native = wasmtime_precompiled(component);
    for (path, words) in [
        (file("empty.wasm", b""), "not a WebAssembly component"),
        (
            file("text.wasm", b"(component)"),
            "not a WebAssembly component",
        ),
        (
            file("random.wasm", &[7; 4096]),
            "not a WebAssembly component",
        ),
        (file("native.cwasm", &native), "not a WebAssembly component"),
        (
            file("module.wasm", &wat::parse_str("(module)").unwrap()),
            "core WebAssembly module",
        ),
        (file("truncated.wasm", half), "cannot be compiled"),
        (
            file("other.wasm", &wat::parse_str("(component)").unwrap()),
            "does not export `airlock:line/handler@0.1.0`",
        ),
        (
            file(
                "asking.wasm",
                &wat::parse_str(r#"(component (import "a:b/c" (instance (export "d" (func)))))"#)
                    .unwrap(),
            ),
            "asks for what Airlock does not offer",
        ),
        ("/nowhere/guest.wasm".to_owned(), "No such file"),
        ("/dev/zero".to_owned(), "more than"),
        ("/".to_owned(), "directory"),
    ] {
        let line = refusal(&["--listen=127.0.0.1:0", "--guest", &path]);
        assert_says(&line, &[&path, words]);
    }
}

/// Code that Wasmtime has compiled already; loading it would be running it.
fn wasmtime_precompiled(component: &[u8]) -> Vec<u8> {
    let engine = wasmtime::Engine::default();
    engine.precompile_component(component).unwrap()
}

#[test]
fn a_name_with_a_newline_still_makes_one_line() {
    let line = refusal(&["--guest", "two\nlines\x1b[31m"]);
    assert_says(&line, &["two\\nlines\\u{1b}[31m"]);
}

#[test]
fn the_guests_environment_is_checked_in_the_servers() {
    let line = refused(Command::new(AIRLOCK).env("AIRLOCK_ENV", "GREETING=a\nDELAY"));
    assert_says(&line, &["AIRLOCK_ENV", "`DELAY`", "NAME=VALUE"]);
}

#[test]
fn a_guest_that_starts_with_more_memory_than_it_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.wasm");
    let component = r"(component
        (core module $m (memory 8000))
        (core instance (instantiate $m)))";
    fs::write(&path, wat::parse_str(component).unwrap()).unwrap();
    let line = refusal(&["--guest", path.to_str().unwrap()]);
    assert_says(&line, &["524288000", "--guest-memory"]);
}

#[test]
fn the_help_names_every_option_with_its_variable_and_its_default() {
    let output = run(Command::new(AIRLOCK).arg("--help"), b"");
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let mut options = options(&help);
    for own in ["help", "version"] {
        assert!(options.remove(own).is_some(), "{own}");
    }

    // The reference has the same, in two tables: `| `--name VALUE` | default | … |`.
    let reference = fs::read_to_string(root().join("docs/reference.md")).unwrap();
    let mut known = Vec::new();
    for row in reference.lines().filter(|line| line.starts_with("| `-")) {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (names, default) = (cells.next().unwrap(), cells.next().unwrap());
        // `-v`, `-q`.
        let names = names
            .replace("-v`", "--verbose`")
            .replace("-q`", "--quiet`");
        for name in names.split("--").skip(1) {
            let name = name.split([' ', '`']).next().unwrap().to_owned();
            let text = &options[name.as_str()];
            let variable = format!("AIRLOCK_{}", name.to_uppercase().replace('-', "_"));
            assert!(text.contains(&format!("[env: {variable}")), "{text}");
            let shown = text.lines().find_map(|line| {
                let default = line.trim().strip_prefix("[default: ")?;
                default.strip_suffix(']')
            });
            if let Some(shown) = shown {
                assert_eq!(default.trim_matches('`'), shown, "--{name}");
            }
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if let Some((_, reason)) = words.split_once("Protects ") {
                let (reason, _) = reason.split_once(". [").unwrap();
                assert_eq!(cells.next(), Some(reason), "--{name}");
            }
            known.push(name);
        }
    }
    known.sort();
    let named: Vec<_> = options.into_keys().collect();
    assert_eq!(named, known);
}

/// The options in a help text, each with what is said about it.
fn options(help: &str) -> BTreeMap<&str, String> {
    let mut options = BTreeMap::new();
    let mut name = "";
    for line in help.lines() {
        let is_option = line.trim_start().starts_with('-') && !line.starts_with("          ");
        if is_option && let Some((_, rest)) = line.split_once("--") {
            name = rest.split([' ', '.']).next().unwrap();
        }
        if !name.is_empty() {
            let text: &mut String = options.entry(name).or_default();
            text.push_str(line);
            text.push('\n');
        }
    }
    options
}
