//! Files of settings: what they set, what is said about wrong ones, and what the pages say of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use airlock::GREETER;
use airlock::settings::keys::{self, Form, Key, Table};
use serde_json::Value;
use tempfile::TempDir;

use crate::components::howdy;
use crate::support::{AIRLOCK, Server, agrees, root, run};

/// A folder with a file of settings, and the guest `howdy.wasm`.
struct Folder(TempDir);

impl Folder {
    fn with(text: &str) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("howdy.wasm"), howdy()).unwrap();
        fs::write(folder.path().join("airlock.toml"), text).unwrap();
        Folder(folder)
    }

    /// Runs `airlock` there, without the variables of the tests.
    fn airlock(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments), b"")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(AIRLOCK);
        command.args(arguments).current_dir(self.0.path());
        command.env_remove("AIRLOCK_THREADS");
        command
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("airlock.toml")
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What `airlock config` prints in a folder.
fn config(folder: &Folder, arguments: &[&str]) -> String {
    let output = folder.airlock(&[&["config", "--config=airlock.toml"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

/// Files in which one thing is wrong, and what is said about it.
const WRONG: &[(&str, &str)] = &[
    ("", "1:1: it has no service: want a table [service.NAME]"),
    ("[service.a", "1:11: unclosed table, expected `]`"),
    (
        "[service.a]\nlisten = \n",
        "2:10: string values must be quoted, expected literal string",
    ),
    (
        "[service.a]\nmax-line = 3\nmax-line = 4\n",
        "3:1: duplicate key",
    ),
    (
        "[service.a]\nmax-lin = \"4KiB\"\n",
        "2:1: unknown key `max-lin`: did you mean `max-line`?",
    ),
    ("[service.a]\nzzz = 1\n", "2:1: unknown key `zzz`"),
    (
        "[sevice.a]\n",
        "1:2: unknown key `sevice`: did you mean `service`?",
    ),
    (
        "max-lines = 1\n[service.a]\n",
        "1:1: unknown key `max-lines`: did you mean `max-line` in [service.NAME]?",
    ),
    (
        "[limits]\nmax-line = \"4KiB\"\n[service.a]\n",
        "2:1: `max-line` does not stand here: want `max-line` in [service.NAME]",
    ),
    (
        "log-format = \"json\"\n[service.a]\n",
        "1:1: `log-format` does not stand here: want `format` in [log]",
    ),
    (
        "[service.a]\nthreads = 2\n",
        "2:1: `threads` does not stand here: want `threads` before all tables",
    ),
    (
        "threads = 2000\n[service.a]\n",
        "1:11: `threads`: want `per-connection`, `auto`, or a number from 1 to 1024, not `2000`",
    ),
    (
        "[log]\nformat = \"xml\"\n[service.a]\n",
        "2:10: `format`: want one of text, json, not `xml`",
    ),
    (
        "log = \"json\"\n[service.a]\n",
        "1:7: `log`: want a table, not a text",
    ),
    (
        "[service]\na = 3\n",
        "2:1: want a table [service.a], not a whole number",
    ),
    (
        "[service.\"a b\"]\n",
        "1:10: `a b` is not a service's name: want at most 64 letters, digits, `-` and `_`",
    ),
    (
        "[service.\"ä\"]\nmax-line = 1.5 # ä\n",
        "1:10: `ä` is not a service's name: want at most 64 letters, digits, `-` and `_`",
    ),
    (
        "[service.a]\nenv = { \"ä\" = \"ä\" }\nmax-line = \"lots\"\n",
        "3:12: `max-line`: want a size like 64KiB or 65536, not `lots`",
    ),
    (
        "[service.a]\nmax-line = 0\n",
        "2:12: `max-line`: want from 1B to 1GiB, not `0`",
    ),
    (
        "[service.a]\nmax-line = 1.5\n",
        "2:12: `max-line`: want a size like \"64KiB\", from 1B to 1GiB, not a fraction",
    ),
    (
        "[service.a]\ncall-timeout = 5\n",
        "2:16: `call-timeout`: want a time with its unit, like \"30s\" or \"5m\", not a whole number",
    ),
    (
        "[service.a]\ncall-timeout = \"5\"\n",
        "2:16: `call-timeout`: want a time with its unit, like 500ms, 30s or 5m, not `5`",
    ),
    (
        "[service.a]\nmax-connections = \"10\"\n",
        "2:19: `max-connections`: want a number from 1 to 4294967295, not a text",
    ),
    (
        "[service.a]\nmax-connections = -1\n",
        "2:19: `max-connections`: want a number from 1 to 4294967295, not `-1`",
    ),
    (
        "[service.a]\nno-watch = \"yes\"\n",
        "2:12: `no-watch`: want true or false, not a text",
    ),
    (
        "[service.a]\nlisten = []\n",
        "2:10: `listen`: want at least one: an address like \"127.0.0.1:9999\", \"[::1]:9999\" or \
         \"unix:///run/airlock.sock\", with parameters as in \
         \"unix:///run/airlock.sock?mode=0660\"",
    ),
    (
        "[service.a]\nlisten = [\"127.0.0.1:1\", \"::1:2\"]\n",
        "2:26: `listen`: write an IPv6 address in brackets: [::1]:2",
    ),
    (
        "[service.a]\nenv = [\"A=b\"]\n",
        "2:7: `env`: want a table { NAME = \"VALUE\" }, not a list",
    ),
    (
        "[service.a]\nenv = { A = 1 }\n",
        "2:13: `env`: want a text for `A`, not a whole number",
    ),
    (
        "[service.a]\nguest = true\n",
        "2:9: `guest`: want a path, relative to this file, not true",
    ),
    (
        "[service.a]\nframing = \"words\"\n",
        "2:11: `framing`: want one of auto, lines, chunks, not `words`",
    ),
    (
        "[service.a]\ncanary = \"10\"\nguest = \"howdy.wasm\"\n",
        "2:10: `canary`: want PERCENT:DURATION, like 10:5m, not `10`",
    ),
    (
        "[service.a]\ncanary = \"10:5m\"\n",
        "2:1: `canary` is about the file of a guest: name it with `guest`",
    ),
    (
        "[service.a]\n\n  guest-memory = \"64KiB\"\n  max-line = \"1MiB\"\n",
        "3:3: `guest-memory` 64KiB has no room for a line of `max-line` 1MiB: raise the one or \
         lower the other",
    ),
    (
        "[limits]\ntotal-guest-memory = \"1MiB\"\n[service.a]\n",
        "2:1: `total-guest-memory` has to be at least `guest-memory`, which is 64MiB",
    ),
    (
        "[service.a]\nlisten = \"127.0.0.1:7\"\n[service.b]\nlisten = \"127.0.0.1:7\"\n",
        "4:1: `listen`: 127.0.0.1:7 is taken by [service.a]",
    ),
    (
        "[service.a]\nlisten = \"unix:/run/a\"\n[[service.b.door]]\naddress = \"unix:///run/a\"\n",
        "3:1: `listen`: unix:/run/a is taken by [service.a]",
    ),
    (
        "[service.a]\nlisten = \"tcps://127.0.0.1:7\"\n",
        "2:10: `listen`: unknown scheme `tcps://`: did you mean `tcp://`?",
    ),
    (
        "[service.a]\nlisten = \"127.0.0.1:7?mode=0660\"\n",
        "2:10: `listen`: `mode`: is for unix://, not for tcp://",
    ),
    (
        "[service.a]\ndoor = \"127.0.0.1:7\"\n",
        "2:8: want tables [[service.a.door]], not a text",
    ),
    (
        "[service.a]\ndoor = [3]\n",
        "2:9: want tables [[service.a.door]], not a whole number",
    ),
    (
        "[[service.a.door]]\nmode = \"0660\"\n",
        "1:1: the door has no `address`",
    ),
    (
        "[service.a]\nstore = \"memory:\"\n",
        "2:9: `store`: want a table { NAME = \"URL\" }, not a text",
    ),
    (
        "[service.a]\nstore = { a = \"etcd:\" }\n",
        "2:15: want memory:, a file, like file:/var/lib/airlock/book.db, or a Redis, like \
         redis://127.0.0.1:6379",
    ),
    (
        "[service.a.store]\n\"a b\" = \"memory:\"\n",
        "2:1: `a b` is not a store's name: want at most 64 letters, digits, `-` and `_`",
    ),
    (
        "[service.a.store]\na = 3\n",
        "2:5: want a text, or a table [service.a.store.a], not a whole number",
    ),
    (
        "[service.a.store.a]\nquota = \"2MiB\"\n",
        "1:18: the store has no `url`",
    ),
    (
        "[service.a.store.a]\nurl = \"memory:\"\ndurability = \"commit\"\n",
        "3:1: `durability`: is for file:, not for memory:",
    ),
    (
        "[service.a.store.a]\nurl = \"memory:\"\nquoat = \"2MiB\"\n",
        "3:1: unknown key `quoat`: did you mean `quota`?",
    ),
    (
        "[service.a.store]\na = \"file:/a\"\nb = \"file:/a?quota=2MiB\"\n",
        "1:12: `b` is the same file as `a`: want the same durability and quota",
    ),
    (
        "[service.a]\nlisten = \"127.0.0.1:7\"\nstore = { a = \"file:/a\" }\n\
         [service.b]\nstore = { b = \"file:/a?quota=2MiB\" }\n",
        "5:1: `store`: `b` is the same file as one of [service.a]: want the same durability and quota",
    ),
    (
        "[[service.a.door]]\naddress = \"unix:/run/a\"\nmod = \"0660\"\n",
        "3:1: unknown key `mod`: did you mean `mode`?",
    ),
    (
        "[[service.a.door]]\naddress = \"unix:/run/a\"\nmode = \"rw\"\n",
        "3:8: `mode`: want a mode like 0660, not `rw`",
    ),
    (
        "[[service.a.door]]\naddress = \"unix:/run/a\"\nnodelay = true\n",
        "3:1: `nodelay`: is for tcp://, tls://, ws://, wss://, not for unix://",
    ),
    (
        "[[service.a.door]]\naddress = \"unix:/run/a?mode=0660\"\n",
        "2:11: `address`: an address has no parameters here: `mode=0660`",
    ),
    (
        "[[service.a.door]]\naddress = \"127.0.0.1:7\"\nv6only = true\n",
        "3:1: `v6only`: 127.0.0.1:7 is an address of IPv4",
    ),
    (
        "[service.a]\nmode = \"0660\"\n",
        "2:1: `mode` does not stand here: want `mode` in [[service.NAME.door]]",
    ),
    (
        "[service.a]\n[service.b]\n",
        "2:10: `listen`: 127.0.0.1:9999 is taken by [service.a]",
    ),
];

#[test]
fn each_wrong_file_gives_the_one_right_message() {
    for (file, message) in WRONG {
        let folder = Folder::with(file);
        let expected = format!("airlock.toml:{message}");
        let output = folder.airlock(&["--config=airlock.toml"]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert_eq!(
            text(&output.stderr),
            format!("airlock: {expected}\n"),
            "{file}"
        );
        let output = folder.airlock(&["check", "--config=airlock.toml", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{file}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["accepted"], false);
        assert_eq!(report["faults"], serde_json::json!([expected]), "{file}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = Folder::with("");
    let large = "#".repeat((1 << 20) + 1);
    fs::write(folder.0.path().join("large.toml"), large).unwrap();
    fs::write(folder.0.path().join("latin.toml"), b"# \xe4").unwrap();
    for (file, why) in [
        ("missing.toml", "cannot read it: No such file"),
        ("/dev/zero", "it has more than 1048576 bytes"),
        ("large.toml", "it has more than 1048576 bytes"),
        ("latin.toml", "it is not UTF-8, from byte 2 on"),
        (".", "cannot read it: Is a directory"),
    ] {
        let output = folder.airlock(&["--config", file]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with(&format!("airlock: {file}: {why}")),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1);
    }
}

#[test]
fn a_check_says_all_that_is_wrong_with_a_file_and_with_its_guests() {
    let folder = Folder::with(
        r#"
        thread = 3
        [service.good]
        listen = "127.0.0.1:7001"
        guest = "howdy.wasm"
        [service.missing]
        listen = "127.0.0.1:7002"
        guest = "missing.wasm"
        [service.large]
        listen = "127.0.0.1:7003"
        max-connections = 1000000
        [service.wrong]
        max-line = "lots"
        listen = "nowhere"
        "#,
    );
    let output = folder.airlock(&["check", "--config=airlock.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    for words in [
        "airlock.toml:2:9: unknown key `thread`: did you mean `threads`?\n",
        "airlock.toml:13:20: `max-line`: want a size",
        "airlock.toml:14:18: `listen`: want ADDR:PORT",
        "[service.missing]\nrefused      cannot read the guest `missing.wasm`: No such file",
        "[service.large]\nrefused      --max-connections 1000000 is more than the",
        "[service.good]\nsha256",
    ] {
        assert!(stdout.contains(words), "{words}\n{stdout}");
    }
    // A start says the first, and where the others are.
    let output = folder.airlock(&["--config=airlock.toml"]);
    let stderr = text(&output.stderr);
    let more = "(and 2 more: airlock check --config has all)\n";
    assert!(stderr.ends_with(more), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_check_and_a_test_take_the_name_of_a_service() {
    let folder = Folder::with(
        r#"
        [service.greeter]
        env = { GREETING = "Ahoy" }
        [service.howdy]
        listen = "127.0.0.1:7001"
        guest = "howdy.wasm"
        [service.missing]
        listen = "127.0.0.1:7002"
        guest = "missing.wasm"
        "#,
    );
    let output = folder.airlock(&["check", "--config=airlock.toml", "--json", "greeter"]);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["services"]["greeter"]["greeting"], "Ahoy");
    assert_eq!(report["services"].as_object().unwrap().len(), 1);
    let output = folder.airlock(&["check", "--config=airlock.toml", "missing"]);
    assert_eq!(output.status.code(), Some(1));
    let output = folder.airlock(&["check", "--config=airlock.toml", "absent"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("has no service `absent`"), "{stderr}");
    assert!(stderr.contains("greeter, howdy, missing"), "{stderr}");

    let script = folder.0.path().join("ada.conv");
    let play = |service: &str, conversation: &str| {
        fs::write(&script, conversation).unwrap();
        let output = folder.airlock(&["test", "--config=airlock.toml", service, "ada.conv"]);
        output.status.code()
    };
    assert_eq!(play("greeter", "< Ahoy\n> Ada\n< Hello, Ada!\n"), Some(0));
    assert_eq!(play("howdy", "< Welcome!\n> Ada\n< Howdy, Ada!\n"), Some(0));
    assert_eq!(play("howdy", "< Welcome!\n> Ada\n< Hello, Ada!\n"), Some(1));
    // What a guest may do and take stands in the file.
    let output = folder.airlock(&["check", "--config=airlock.toml", "--max-reply=1KiB"]);
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("--max-reply cannot be used with --config"),
        "{stderr}"
    );
}

#[test]
fn a_check_of_one_service_says_what_is_wrong_with_it() {
    let folder = Folder::with("[service.greeter]\nmax-line = \"lots\"\n");
    let output = folder.airlock(&["check", "--config=airlock.toml", "greeter"]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.contains("airlock.toml:2:12: `max-line`"), "{report}");
}

#[test]
fn a_check_says_what_services_cannot_have_together() {
    // Each could be served alone.
    let folder = Folder::with(
        r#"
        [service.many]
        max-connections = 5000
        [service.large]
        listen = "127.0.0.1:7001"
        max-connections = 1
        guest-memory = "4GiB"
        "#,
    );
    let output = folder.airlock(&["check", "--config=airlock.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.ends_with("of all to 2048 together\n"), "{report}");
}

#[test]
fn a_file_with_one_service_is_served_from_whatever_folder() {
    let folder = Folder::with(
        r#"
        [log]
        format = "json"
        [service.howdy]
        listen = "127.0.0.1:0"
        guest = "howdy.wasm"
        max-line = 5
        "#,
    );
    let mut command = Command::new(AIRLOCK);
    let server = Server::start_command(command.arg("--config").arg(folder.path()));
    let mut client = server.greeted();
    client.send("Ada\nElizabeth\n");
    assert_eq!(client.hear(), "Howdy, Ada!\n");
    assert_eq!(client.hear(), "error: line is longer than 5 bytes\n");
    assert!(server.logged(&["waiting for connections"]).starts_with('{'));
    // By the variable too.
    let mut command = Command::new(AIRLOCK);
    let server = Server::start_command(command.env("AIRLOCK_CONFIG", folder.path()));
    server.greeted();
}

#[test]
fn options_win_over_variables_and_both_over_the_file() {
    let folder = Folder::with(
        "threads = 3\n[service.a]\nmax-line = \"1KiB\"\nmax-reply = \"2KiB\"\nidle-timeout = \"3m\"\n\
         env = { A = \"file\" }\n",
    );
    let line = |text: &str, key: &str| {
        let mut lines = text.lines();
        let found = lines.find(|line| line.starts_with(&format!("{key} =")));
        found.unwrap().to_owned()
    };
    let mut command = folder.command(&["config", "--config=airlock.toml", "--max-line=4KiB", "-v"]);
    command.env("AIRLOCK_MAX_LINE", "8KiB");
    command.env("AIRLOCK_MAX_REPLY", "8KiB");
    command.env("AIRLOCK_ENV", "A=variable");
    let output = run(&mut command, b"");
    let shown = text(&output.stdout);
    assert_eq!(line(shown, "threads"), "threads = 3 # airlock.toml:1");
    assert_eq!(line(shown, "max-line"), "max-line = \"4KiB\" # --max-line");
    assert_eq!(
        line(shown, "max-reply"),
        "max-reply = \"8KiB\" # AIRLOCK_MAX_REPLY"
    );
    assert_eq!(
        line(shown, "idle-timeout"),
        "idle-timeout = \"3m\" # airlock.toml:5"
    );
    assert_eq!(
        line(shown, "line-timeout"),
        "line-timeout = \"30s\" # default"
    );
    assert_eq!(
        line(shown, "env"),
        "env = { A = \"variable\" } # AIRLOCK_ENV"
    );
    assert_eq!(line(shown, "level"), "level = \"debug\" # -v, -q");
    let shown = config(&folder, &["--env=A=option", "--log-level=warn"]);
    assert_eq!(line(&shown, "env"), "env = { A = \"option\" } # --env");
    assert_eq!(line(&shown, "level"), "level = \"warn\" # --log-level");
    let shown = config(&folder, &[]);
    assert_eq!(
        line(&shown, "env"),
        "env = { A = \"file\" } # airlock.toml:6"
    );
}

#[test]
fn an_option_of_a_service_is_refused_beside_several() {
    let folder = Folder::with("[service.a]\n[service.b]\nlisten = \"127.0.0.1:7001\"\n");
    let refusal = |command: &mut Command| {
        let output = run(command, b"");
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr).to_owned()
    };
    let belongs = |name: &str, key: &str| {
        format!(
            "airlock: {name} belongs to one service, and `airlock.toml` has several: set `{key}` in \
             the [service.NAME] that is meant (see airlock --help)\n"
        )
    };
    let serve = || folder.command(&["config", "--config=airlock.toml"]);
    assert_eq!(
        refusal(serve().arg("--max-line=1KiB")),
        belongs("--max-line", "max-line")
    );
    assert_eq!(
        refusal(serve().env("AIRLOCK_LISTEN", "127.0.0.1:0")),
        belongs("AIRLOCK_LISTEN", "listen")
    );
    assert_eq!(
        refusal(serve().env("AIRLOCK_ENV", "A=b")),
        belongs("AIRLOCK_ENV", "env")
    );
    let mut record = folder.command(&["record", "recordings", "--config=airlock.toml"]);
    assert_eq!(refusal(&mut record), belongs("DIR", "record"));
    // Those of the process are not.
    let shown = config(&folder, &["--threads=2", "--drain-timeout=1s"]);
    assert!(shown.contains("\nthreads = 2 # --threads\n") || shown.starts_with("threads = 2"));
}

#[test]
fn what_config_prints_sets_the_same() {
    for example in examples() {
        let name = example.display();
        let show = |file: &Path| {
            let mut command = Command::new(AIRLOCK);
            command.arg("config").arg("--config").arg(file);
            let output = run(command.env_remove("AIRLOCK_THREADS"), b"");
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            text(&output.stdout).to_owned()
        };
        let first = show(&example);
        let folder = Folder::with(&first);
        let second = show(&folder.path());
        let settings = |text: &str| -> toml::Table { text.parse().unwrap() };
        assert_eq!(settings(&first), settings(&second), "{name}");
    }
    // Odd texts too.
    let odd = "A=\"quo'te\" \\ \n\u{1b}ä";
    let shown = config(&Folder::with("[service.a]\n"), &["--env", odd]);
    let again = config(&Folder::with(&shown), &[]);
    let of = |text: &str| -> toml::Value {
        let table: toml::Table = text.parse().unwrap();
        table["service"]["a"]["env"]["A"].clone()
    };
    assert_eq!(of(&again).as_str(), odd.strip_prefix("A="));
}

#[test]
fn stores_of_tables_are_stores_of_options() {
    let file = "[service.a.store.f]\nurl = \"file:/a b.db\"\nprefix = \"p\"\nquota = 2097152\n\
         [service.a.store]\nm = \"memory:\"\n";
    let shown = config(&Folder::with(file), &[]);
    let of = |shown: &str| -> toml::Value {
        let table: toml::Table = shown.parse().unwrap();
        table["service"]["a"]["store"].clone()
    };
    let stores = of(&shown);
    assert_eq!(stores["m"].as_str(), Some("memory:"));
    let f = "file:/a b.db?prefix=p&quota=2097152";
    assert_eq!(stores["f"].as_str(), Some(f));
    assert_eq!(of(&config(&Folder::with(&shown), &[])), stores);
    let option = format!("--store=f={f},m=memory:");
    let again = config(&Folder::with("[service.a]\n"), &[&option]);
    assert_eq!(of(&again), stores);
}

/// The files of the pages and of `deploy/`.
fn examples() -> Vec<PathBuf> {
    let file = root().join("deploy/airlock.toml");
    assert!(file.exists());
    vec![file]
}

#[test]
fn the_schema_accepts_right_files_and_refuses_wrong_ones() {
    let schema = run(Command::new(AIRLOCK).args(["config", "--schema"]), b"");
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    // Every key is in it.
    let whole = "threads = 2\n[log]\nformat = \"json\"\n[service.a]\n\
         [service.a.store]\nm = \"memory:?quota=2MiB\"\n\
         r = \"redis+unix:///a?prefix=p\"\n\
         [service.a.store.f]\nurl = \"file:/a\"\nquota = 2097152\nprefix = \"p\"\n\
         [service.a.store.s]\nurl = \"rediss://a:6379\"\nca = \"/a\"\n";
    let all = config(
        &Folder::with(whole),
        &["--env=A=b", "--listen=127.0.0.1:1", "-q"],
    );
    let right = examples()
        .into_iter()
        .map(|path| fs::read_to_string(path).unwrap());
    let right: Vec<String> = right.chain([whole.to_owned(), all]).collect();
    // What is wrong with these is beyond a schema: syntax, bounds of texts, and what does not go
    // together.
    let beyond = [
        "unclosed",
        "must be quoted",
        "duplicate",
        "from 1 to 1024",
        "[::1]:2",
        "has no room",
        "has to be at least",
        "is taken by",
        // Which parameters a scheme has.
        "is for unix://",
        "is for tcp://",
        "is for file:",
        "is the same file as",
        "has no parameters here",
        "is an address of IPv4",
    ];
    let wrong = WRONG
        .iter()
        .filter(|(_, message)| !beyond.iter().any(|part| message.contains(part)))
        .map(|(file, _)| (*file).to_owned());
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.len() > 20, "{}", wrong.len());
    let as_json = |files: &[String]| -> Vec<Value> {
        let parse = |file: &String| -> toml::Table { file.parse().unwrap() };
        let tables = files.iter().map(parse);
        tables
            .map(|table| serde_json::to_value(table).unwrap())
            .collect()
    };
    let input = serde_json::json!([schema, as_json(&right), as_json(&wrong)]);
    let validate = "import json, sys, jsonschema
schema, right, wrong = json.load(sys.stdin)
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
for file in right:
    validator.validate(file)
for file in wrong:
    if validator.is_valid(file):
        sys.exit('accepted: ' + json.dumps(file))";
    let python = |program: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", program]).stderr(Stdio::inherit());
        command
    };
    let has_validator = run(&mut python("import jsonschema"), b"");
    if !has_validator.status.success() {
        assert!(
            std::env::var_os("CI").is_none(),
            "install python3-jsonschema"
        );
        return;
    }
    let output = run(&mut python(validate), input.to_string().as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// `AIRLOCK_BLESS=1 cargo test -p host --test airlock -- settings` writes the tables.
#[test]
fn the_page_has_every_key_as_the_code_has_it() {
    let path = root().join("docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let keys = keys::all();
    let mut current = page.clone();
    for table in Table::ALL {
        let mark = match table {
            Table::Top => "<!-- keys -->\n",
            table => &format!("<!-- keys of {} -->\n", table.header()),
        };
        let (before, rest) = current.split_once(mark).unwrap();
        let end = rest.find("<!-- to here -->").unwrap();
        let rows = keys.iter().filter(|key| key.table == table).map(row);
        let rows: String = rows.collect();
        let head = "\n| key | value | default | |\n| --- | --- | --- | --- |\n";
        current = format!("{before}{mark}{head}{rows}\n{}", &rest[end..]);
    }
    agrees(&path, &page, &current);
}

fn row(key: &Key) -> String {
    let value = match key.form() {
        Form::Flag => "`true` or `false`".to_owned(),
        Form::Choice(choices) => format!("`\"{}\"`", choices.join("\"`, `\"")),
        Form::One(written) => written.what,
        Form::Many(written) => format!("{}; or a list", written.what),
        Form::Variables => "a table `{ NAME = \"VALUE\" }`".to_owned(),
        Form::Stores(_) => "a table `{ NAME = \"URL\" }`, or of tables".to_owned(),
    };
    let default = match key.form() {
        Form::Flag => key.default().or(Some("false".to_owned())),
        _ => key.default(),
    };
    let default = default.unwrap_or_default();
    let mut help = key.help();
    if let Some(reason) = key.reason() {
        help.push_str(&format!(". {reason}"));
    }
    format!("| `{}` | {value} | {default} | {help} |\n", key.name)
}

#[test]
fn doors_of_tables_are_doors_of_listen() {
    let folder = Folder::with(
        r#"
        [[service.a.door]]
        address = "[::1]:7001"
        v6only = true
        backlog = 7

        [[service.a.door]]
        address = "unix:///run/a b.sock"
        mode = "0660"

        [service.a]
        listen = ["127.0.0.1:7001", "unix:/run/b?mode=0600"]
        "#,
    );
    let effective = config(&folder, &[]);
    let line = effective.lines().find(|line| line.starts_with("listen = "));
    assert_eq!(
        line,
        Some(
            "listen = [\"[::1]:7001?backlog=7&v6only=true\", \
             \"unix:///run/a b.sock?mode=0660\", \"127.0.0.1:7001\", \
             \"unix:/run/b?mode=0600\"] # airlock.toml:2"
        )
    );
    // Which is a file again.
    let again = Folder::with(&effective);
    let effective = config(&again, &[]);
    assert!(
        effective.contains("[::1]:7001?backlog=7&v6only=true"),
        "{effective}"
    );
    // And an option wins over all of them.
    let effective = config(&folder, &["--listen=127.0.0.1:7,unix:/run/c"]);
    let listen = "listen = [\"127.0.0.1:7\", \"unix:/run/c\"] # --listen";
    assert!(effective.contains(listen), "{effective}");
}

#[test]
fn the_greeter_is_what_a_service_without_a_guest_serves() {
    let folder = Folder::with("[service.a]\n");
    let output = folder.airlock(&["check", "--config=airlock.toml", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["services"]["a"]["bytes"], GREETER.len());
}
