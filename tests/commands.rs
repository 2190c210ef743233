//! The commands beside serving: `check`, `test`, and what is recorded for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use airlock::GREETER;
use serde_json::Value;

use crate::components::{
    component, component_that_imports, component_with_memory, doing, greeting_by, howdy,
};
use crate::support::{AIRLOCK, Server, eventually, guest, installed, root, run};

fn airlock(arguments: &[&str]) -> Output {
    run(Command::new(AIRLOCK).args(arguments), b"")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A component in a file.
fn saved(folder: &Path, name: &str, component: &[u8]) -> String {
    let path = folder.join(name).with_extension("wasm");
    fs::write(&path, component).unwrap();
    path.to_str().unwrap().to_owned()
}

fn conversations(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_greeter_converses_as_its_conversations_say() {
    let folder = tempfile::tempdir().unwrap();
    let greeter = saved(folder.path(), "greeter", GREETER);
    let scripts = conversations(&root().join("guest/conversations"));
    let output = run(
        Command::new(AIRLOCK)
            .args(["test", &greeter])
            .args(&scripts),
        b"",
    );
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(scripts.len() >= 2);
    let last = format!("{0} of {0} conversations as expected", scripts.len());
    assert_eq!(stdout.lines().last(), Some(last.as_str()));
}

#[test]
fn a_guest_that_answers_otherwise_is_shown_with_the_difference() {
    let folder = tempfile::tempdir().unwrap();
    let howdy = saved(folder.path(), "howdy", &howdy());
    let script = folder.path().join("ada.conv");
    let play = |conversation: &str| {
        fs::write(&script, conversation).unwrap();
        airlock(&["test", &howdy, script.to_str().unwrap()])
    };
    let output = play("< Welcome!\n> Ada\n< Hello, Ada!\n> exit\n<close\n");
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("FAILED"), "{stdout}");
    assert!(
        stdout.contains("\n-< Hello, Ada!\n+< Howdy, Ada!\n"),
        "{stdout}"
    );
    assert!(
        stdout.ends_with("0 of 1 conversations as expected\n"),
        "{stdout}"
    );

    let wrong = [
        // Something is missing, something is too much, it ends too early, it does not end.
        "> Ada\n< Howdy, Ada!\n",
        "< Welcome!\n> Ada\n",
        "< Welcome!\n> exit\n<close\n> Ada\n< Howdy, Ada!\n",
        "< Welcome!\n> Ada\n< Howdy, Ada!\n<close\n",
        "< Welcome!\n> exit\n",
    ];
    for conversation in wrong {
        assert_eq!(play(conversation).status.code(), Some(1), "{conversation}");
    }
    let output = play("< Welcome!\n> Ada\n< Howdy, Ada!\n");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    // A script that is none has failed, and the others are played.
    let output = play("Hello?");
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(
        stdout.contains("ada.conv\nline 1: it starts with none of"),
        "{stdout}"
    );
    let missing = folder.path().join("missing.conv");
    fs::write(&script, "< Welcome!\n").unwrap();
    let output = airlock(&[
        "test",
        &howdy,
        missing.to_str().unwrap(),
        script.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(
        stdout.ends_with("1 of 2 conversations as expected\n"),
        "{stdout}"
    );
    assert_eq!(airlock(&["test", &howdy]).status.code(), Some(2));
}

#[test]
fn a_guest_that_fails_is_played_as_a_client_would_see_it() {
    let folder = tempfile::tempdir().unwrap();
    let traps = saved(folder.path(), "traps", &component(&doing("unreachable")));
    let script = folder.path().join("trap.conv");
    let script = script.to_str().unwrap();
    fs::write(script, "> Ada\n< error: the guest failed\n<close\n").unwrap();
    assert_eq!(airlock(&["test", &traps, script]).status.code(), Some(0));
    fs::write(script, "> Ada\n< Hello, Ada!\n").unwrap();
    let output = airlock(&["test", &traps, script]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("the guest failed: wasm trap"), "{stdout}");
    // The limits hold here too.
    let spins = saved(
        folder.path(),
        "spins",
        &component(&doing("(loop $l br $l)")),
    );
    let output = airlock(&["test", "--call-timeout=50ms", &spins, script]);
    let stdout = text(&output.stdout);
    assert!(stdout.contains("took longer than 50ms"), "{stdout}");
}

#[test]
fn a_check_says_what_a_guest_is_and_needs() {
    let folder = tempfile::tempdir().unwrap();
    let greeter = saved(folder.path(), "greeter", GREETER);
    let output = airlock(&["check", &greeter]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = text(&output.stdout);
    for words in [
        "airlock:line/handler@0.1.0#handle-line",
        "wasi:io/poll@0.2",
        "greeting     \"Welcome!\"",
        &format!("size         {} bytes", GREETER.len()),
        "compiled in",
        "instance in",
    ] {
        assert!(stdout.contains(words), "{stdout}");
    }
    assert_eq!(stdout.lines().last(), Some("accepted"));

    let output = airlock(&["check", "--json", "--env=GREETING=Hi", &greeter]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["accepted"], true);
    assert_eq!(report["greeting"], "Hi");
    assert_eq!(report["bytes"], GREETER.len());
    // As laid out in guest/build.rs: it did not have to grow. Its table and globals are counted too.
    let memory_bytes = report["memory_bytes"].as_u64().unwrap();
    assert_eq!(memory_bytes / 64 / 1024, 16, "{memory_bytes}");
    assert!(report["compile_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["instantiate_seconds"].as_f64().unwrap() > 0.0);
    let exports = serde_json::json!([
        "airlock:line/batch@0.1.0#handle-lines",
        "airlock:line/handler@0.1.0#greeting",
        "airlock:line/handler@0.1.0#handle-line",
    ]);
    assert_eq!(report["exports"], exports);
}

#[test]
fn variables_of_a_server_do_not_stop_the_commands_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let greeter = saved(folder.path(), "greeter", GREETER);
    let check = |variable: &str, value: &str| {
        let mut command = Command::new(AIRLOCK);
        command.args(["check", &greeter]).env(variable, value);
        run(&mut command, b"")
    };
    for (variable, value) in [
        ("AIRLOCK_MAX_LINE", "lots"),
        ("AIRLOCK_LISTEN", "nowhere"),
        // Needs a guest that is named.
        ("AIRLOCK_CANARY", "10:5m"),
    ] {
        let output = check(variable, value);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    // Those for guests count here too.
    let output = check("AIRLOCK_CALL_TIMEOUT", "soon");
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("--call-timeout"), "{stderr}");
    let output = check("AIRLOCK_ENV", "GREETING=Ahoy");
    let stdout = text(&output.stdout);
    assert!(stdout.contains("greeting     \"Ahoy\""), "{stdout}");
    // And those of a server where there is to be one.
    let mut record = Command::new(AIRLOCK);
    record.arg("record").arg(folder.path());
    let output = run(record.env("AIRLOCK_MAX_LINE", "lots"), b"");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_check_says_why_a_guest_would_be_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (candidate, why) in [
        (b"#!/bin/sh".to_vec(), "it is not a WebAssembly component"),
        (wat::parse_str("(component)").unwrap(), "it does not export"),
        (
            component(&greeting_by("unreachable")),
            "it fails before its first line: wasm trap",
        ),
        (
            component_with_memory(1025, &doing("")),
            "raise --guest-memory",
        ),
        (
            with_another_signature(),
            "its function `airlock:line/handler@0.1.0#greeting` is `func(u32) -> result<string>` \
             and has to be `func() -> option<string>`",
        ),
    ] {
        let file = saved(folder.path(), "candidate", &candidate);
        let output = airlock(&["check", &file]);
        assert_eq!(output.status.code(), Some(1));
        let stdout = text(&output.stdout);
        let last = stdout.lines().last().unwrap();
        assert!(
            last.starts_with("refused") && last.contains(why),
            "{stdout}"
        );
        let output = airlock(&["check", "--json", &file]);
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["accepted"], false);
        assert!(report["reason"].as_str().unwrap().contains(why), "{report}");
    }
    let output = airlock(&["check", "no such file"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("airlock: cannot read the guest"));
    let output = airlock(&["check", "--json", "no such file"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["accepted"], false);
}

#[test]
fn the_last_words_of_a_guest_that_fails_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let says_why = greeting_by(
        "(call $write (call $stderr) (i32.const 256) (i32.const 11) (i32.const 64)) unreachable",
    );
    let says_why = component_that_imports(&format!(
        r#"(data (i32.const 256) "on purpose\n") {says_why}"#
    ));
    let file = saved(folder.path(), "candidate", &says_why);
    let output = airlock(&["check", &file]);
    let stdout = text(&output.stdout);
    let last = stdout.lines().last().unwrap();
    assert!(
        last.contains("unreachable") && last.ends_with("it wrote last: on purpose"),
        "{stdout}"
    );
    let hostile = guest("hostile").display().to_string();
    let script = folder.path().join("panic.conv");
    fs::write(&script, "< ready\n> panic\n< survived\n").unwrap();
    let output = airlock(&["test", &hostile, script.to_str().unwrap()]);
    let stdout = text(&output.stdout);
    let reason = stdout
        .lines()
        .find(|line| line.contains("the guest failed: "));
    let reason = reason.unwrap_or_else(|| panic!("{stdout}"));
    assert!(reason.contains("on purpose"), "{stdout}");
}

/// What takes a number and may fail, where a greeting takes nothing and may be none.
fn with_another_signature() -> Vec<u8> {
    let text = r#"(component
        (core module $code
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)
            (func (export "greeting") (param i32) (result i32) i32.const 0))
        (core instance $code (instantiate $code))
        (func $greeting (param "number" u32) (result (result string))
            (canon lift (core func $code "greeting") (memory (core memory $code "memory"))
                (realloc (core func $code "realloc"))))
        (instance (export "airlock:line/handler@0.1.0") (export "greeting" (func $greeting))))"#;
    wat::parse_str(text).unwrap()
}

#[test]
fn recorded_conversations_can_be_played_against_the_next_guest() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("new/records");
    let mut server = Server::start(&["--record", records.to_str().unwrap()]);
    let mut client = server.greeted();
    let address = client.address();
    client.send("Ada\nGrace\nexit\n");
    client.rest();
    // In `chunks` a message may hold a newline, and one client just leaves.
    let mut client = server.greeted();
    client.send("Bob");
    assert_eq!(client.receive(), b"Hello, Bob!");
    client.send("two\nlines");
    assert_eq!(client.receive(), b"Hello, two\nlines!");
    client.finish();
    client.rest();
    // What is recorded has been written when the server has ended.
    server.signal("TERM");
    server.ended();

    let files = conversations(&records);
    let contents: Vec<_> = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert_eq!(contents.len(), 2);
    let (head, talk) = contents[0].split_at(contents[0].find('<').unwrap());
    assert!(
        head.contains(&format!("connection 1 from {address}")),
        "{head}"
    );
    assert_eq!(
        talk,
        "< Welcome!\n> Ada\n< Hello, Ada!\n> Grace\n< Hello, Grace!\n> exit\n<close\n"
    );
    assert!(
        contents[1].ends_with("\n>\"two\\nlines\"\n< Hello, two\n< lines!\n"),
        "{}",
        contents[1]
    );
    for path in [&records, &files[0]] {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path:?} is for its owner alone");
    }

    let play = |guest: &[u8]| {
        let guest = saved(folder.path(), "next", guest);
        run(
            Command::new(AIRLOCK).args(["test", &guest]).args(&files),
            b"",
        )
    };
    assert_eq!(play(GREETER).status.code(), Some(0));
    assert_eq!(play(&howdy()).status.code(), Some(1));
}

#[test]
fn record_is_serving_with_a_folder_and_what_is_refused_is_not_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = guest("hostile");
    let mut command = Command::new(AIRLOCK);
    command
        .arg("record")
        .arg(folder.path())
        .args(["--max-line=100", "--guest"]);
    let mut server = Server::start_command(command.arg(&hostile));
    let mut client = server.connect();
    client.send("x".repeat(200) + "\ntell\ntrap\n");
    client.rest();
    server.signal("TERM");
    server.ended();
    let files = conversations(folder.path());
    let recorded = fs::read_to_string(&files[0]).unwrap();
    assert!(
        recorded
            .ends_with("< ready\n> tell\n< secret: \n> trap\n< error: the guest failed\n<close\n"),
        "{recorded}"
    );
}

#[test]
fn a_recording_stops_at_its_limit_and_the_conversation_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&["--record", folder.path().to_str().unwrap()]);
    let mut client = server.greeted();
    let name = "x".repeat(60_000);
    for _ in 0..20 {
        assert_eq!(client.ask(&name).len(), name.len() + "Hello, !".len());
    }
    client.send("exit\n");
    client.rest();
    server.signal("TERM");
    server.ended();
    let recorded = fs::read_to_string(&conversations(folder.path())[0]).unwrap();
    assert!(recorded.len() <= (1 << 20) + 1000, "{}", recorded.len());
    assert_eq!(recorded.lines().last(), Some("# the rest is not recorded"));
    assert!(
        recorded
            .lines()
            .filter(|line| line.starts_with('>'))
            .count()
            >= 8
    );
}

#[test]
fn a_folder_that_cannot_be_recorded_into_is_said_at_the_start() {
    let output = airlock(&["-q", "--listen=127.0.0.1:0", "--record=/dev/null/records"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("cannot record into `/dev/null/records`"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn on_a_full_disk_only_whole_exchanges_are_recorded() {
    if !installed("unshare") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A file system of three pages, in a mount namespace of its own.
    let script = r#"mount -t tmpfs -o size=12k none "$1"
        exec "$0" --record "$1""#;
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-ec", script, AIRLOCK])
        .arg(folder.path());
    let server = Server::start_command(&mut command);
    for _ in 0..4 {
        let mut client = server.greeted();
        for _ in 0..4 {
            client.ask(&"x".repeat(1000));
        }
        client.send("exit\n");
        client.rest();
    }
    server.logged(&["closed", "connection=4 "]);
    server.logged(&["a conversation is not recorded, or not to its end"]);
    let inside = format!("/proc/{}/root{}", server.id(), folder.path().display());
    let files = conversations(Path::new(&inside));
    assert!(!files.is_empty());
    let is_whole = |file: &PathBuf| {
        let recorded = fs::read_to_string(file).unwrap();
        let last = recorded.lines().last().unwrap_or(">");
        recorded.ends_with('\n') && !last.starts_with('>')
    };
    eventually("only whole exchanges are left", || {
        files.iter().all(is_whole)
    });
}
