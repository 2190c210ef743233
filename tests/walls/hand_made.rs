//! Components that no compiler would make.

use std::fs;

use crate::components::{
    NO_GREETING, component, component_for_many_lines, component_that_hears, component_that_imports,
    component_with_memory, doing, greeting_by,
};
use crate::support::{Client, Server};

/// A reply whose text is at `pointer` with `length`, both written at address 64.
fn replying(pointer: u32, length: u32) -> String {
    format!(
        r#"{NO_GREETING}
        (data (i32.const 16) "\ff\fe\fd")
        (func $handle (param i32 i32) (result i32)
            (i32.store (i32.const 68) (i32.const {pointer}))
            (i32.store (i32.const 72) (i32.const {length}))
            i32.const 64)"#
    )
}

fn returning(address: u32) -> String {
    format!(
        "{NO_GREETING}
        (data (i32.const 256) \"\\07\")
        (func $handle (param i32 i32) (result i32) i32.const {address})"
    )
}

fn server(component: &[u8], options: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.wasm");
    fs::write(&path, component).unwrap();
    let guest = format!("--guest={}", path.display());
    Server::start(&[&[guest.as_str()], options].concat())
}

fn assert_fails(component: &[u8], cause: &str) {
    let server = server(component, &["--call-timeout=200ms"]);
    for id in 1..=2 {
        let mut client = server.connect();
        client.send("anything\n");
        assert_eq!(client.rest(), "error: the guest failed\n", "{cause}");
        server.logged(&["the guest failed", &format!("connection={id} "), cause]);
    }
}

fn assert_not_served(component: &[u8], options: &[&str], cause: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.wasm");
    fs::write(&path, component).unwrap();
    let output = crate::support::run(
        std::process::Command::new(crate::support::AIRLOCK)
            .args(["--listen=127.0.0.1:0", "--call-timeout=300ms", "--guest"])
            .arg(path)
            .args(options),
        b"",
    );
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("it fails before its first line: "), "{line}");
    assert_eq!(line.matches(cause).count(), 1, "{line}");
}

#[test]
fn results_that_are_none_fail_the_guest() {
    for (functions, cause) in [
        (replying(16, 3), "invalid utf-8"),
        (replying(0, 1 << 30), "out of bounds"),
        (replying(u32::MAX - 4, 100), "out of bounds"),
        (replying(65_535, 2), "out of bounds"),
        (returning(65_534), "not aligned"),
        (returning(65_536), "out of bounds"),
        (returning(256), "unexpected discriminant"),
    ] {
        assert_fails(&component(&functions), cause);
    }
}

/// Answers several lines with `text`, and says that it has handled this many of them.
fn answering_many(text: &str, handled: u32) -> Vec<u8> {
    let length = text.len();
    component_for_many_lines(&format!(
        r#"{}
        (data (i32.const 256) "{}")
        (func $many (param i32 i32 i32) (result i32)
            (i32.store (i32.const 64) (i32.const 256))
            (i32.store (i32.const 68) (i32.const {length}))
            (i32.store (i32.const 72) (i32.const {handled}))
            i32.const 64)"#,
        doing(""),
        text.replace('\n', "\\0a"),
    ))
}

#[test]
fn answers_to_several_lines_that_are_none_fail_the_guest() {
    let ask = |server: &Server| {
        let mut client = server.connect();
        // The first line decides the framing, and comes alone.
        client.send("a\nb\nc\nd\n");
        client.finish();
        client.rest()
    };
    let right = server(&answering_many("x\ny\nz\n", 3), &[]);
    assert_eq!(ask(&right), "\nx\ny\nz\n");
    let more = server(&answering_many("x\nx\ny\nz\n", 3), &[]);
    assert_eq!(ask(&more), "\nx\nx\ny\nz\n", "a reply may have two lines");
    // It may handle some of them; the last one comes alone again.
    let some = server(&answering_many("x\n", 2), &[]);
    assert_eq!(ask(&some), "\nx\n\n");
    for (text, handled, cause) in [
        ("x\n", 0, "handled 0 of 3 lines"),
        ("x\n", 4, "handled 4 of 3 lines"),
        ("x\ny", 3, "do not end with a line feed"),
    ] {
        let server = server(&answering_many(text, handled), &[]);
        assert_eq!(ask(&server), "\nerror: the guest failed\n", "{cause}");
        server.logged(&["the guest failed", cause]);
    }
    // Together they may be longer than one, and none of them.
    let two = "x".repeat(99) + "\n" + &"y".repeat(99) + "\n";
    let right = server(&answering_many(&two, 3), &["--max-reply=100"]);
    assert_eq!(ask(&right), format!("\n{two}"));
    for long in [
        "x".repeat(101) + "\n",
        "x\n".to_owned() + &"y".repeat(101) + "\n",
    ] {
        let server = server(&answering_many(&long, 3), &["--max-reply=100"]);
        assert_eq!(ask(&server), "\nerror: the guest failed\n");
        server.logged(&["the guest failed", "answered 101 bytes", "--max-reply"]);
    }
}

/// What a guest makes of messages is a list of texts at `list`, with this many in it; the first is at
/// `pointer`, with `length`.
fn hearing(list: u32, count: u32, [pointer, length]: [u32; 2]) -> Vec<u8> {
    component_that_hears(&format!(
        r#"(data (i32.const 16) "\ff\fe\fd")
        (func $hear (param i32 i32 i32) (result i32)
            (i32.store (i32.const 64) (i32.const {list}))
            (i32.store (i32.const 68) (i32.const {count}))
            (i32.store (i32.const 256) (i32.const {pointer}))
            (i32.store (i32.const 260) (i32.const {length}))
            i32.const 64)"#
    ))
}

#[test]
fn what_a_guest_makes_of_messages_that_is_none_fails_it() {
    let ask = |component: &[u8]| {
        let server = server(component, &["--topics=memory:", "--call-timeout=200ms"]);
        let mut client = server.connect();
        client.send("anything\n");
        (client, server)
    };
    let (mut client, _server) = ask(&hearing(256, 1, [512, 5]));
    assert_eq!(client.hear(), "\n");
    assert_eq!(client.hear(), "topic\n");
    for (component, cause) in [
        (hearing(256, 1, [16, 3]), "invalid utf-8"),
        (hearing(256, 1, [0, 1 << 30]), "out of bounds"),
        (hearing(65_532, 1, [0, 0]), "out of bounds"),
        (hearing(258, 1, [0, 0]), "not aligned"),
        (hearing(256, u32::MAX, [0, 0]), "out of bounds"),
        (
            component_that_hears(
                "(func $hear (param i32 i32 i32) (result i32) (loop $l br $l) i32.const 0)",
            ),
            "took longer",
        ),
    ] {
        let (mut client, server) = ask(&component);
        assert_eq!(client.rest(), "\nerror: the guest failed\n", "{cause}");
        server.logged(&["the guest failed", "connection=1 ", cause]);
    }
}

#[test]
fn code_that_does_harm_fails_the_guest() {
    for (code, cause) in [
        ("unreachable", "unreachable"),
        ("(loop $l br $l)", "took longer"),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            "divide by zero",
        ),
        ("(drop (i32.load (i32.const 65536)))", "out of bounds"),
        (
            "(drop (call $handle (i32.const 0) (i32.const 0)))",
            "call stack exhausted",
        ),
        (
            "(call_indirect $table (i32.const 0))",
            "uninitialized element",
        ),
        (
            "(loop $l (drop (memory.grow (i32.const 1))) br $l)",
            "took longer",
        ),
        (
            "(loop $l (drop (table.grow $table (ref.null func) (i32.const 1))) br $l)",
            "took longer",
        ),
    ] {
        assert_fails(&component(&doing(code)), cause);
    }
}

/// Nothing of the guest begins between two of these calls, so Wasmtime never looks at its clock: one
/// after the other takes a minute, and is cut.
#[test]
fn calls_of_the_host_in_a_row_end_with_the_time() {
    let calls = "(call $random (i64.const 65536) (i32.const 64))".repeat(20_000);
    assert_fails(&component_that_imports(&doing(&calls)), "took longer");
    let greets = component_that_imports(&greeting_by(&calls));
    assert_not_served(&greets, &[], "took longer");
}

/// What a guest prints is copied before its size can be looked at, and then costs next to nothing.
#[test]
fn output_that_is_not_logged_costs_next_to_nothing() {
    let prints = |bytes: u32, times| {
        let write = format!(
            "(call $write (local.get $stream) (i32.const 65536) (i32.const {bytes}) (i32.const 64))"
        );
        component_that_imports(&doing(&format!(
            "(local $stream i32)
            (local.set $stream (call $stderr))
            (memory.fill (i32.const 65536) (i32.const 10) (i32.const 131072))
            {}",
            write.repeat(times)
        )))
    };
    // 65 million empty lines: seconds, if each were looked at.
    let server = server(&prints(65_536, 1000), &[]);
    let mut client = server.connect();
    assert_eq!(client.ask("print"), "");
    client.finish();
    client.rest();
    server.logged(&["lines of the guest's output were dropped", "connection=1 "]);
    assert_fails(&prints(65_537, 1), "more at once than `check-write` allows");
}

#[test]
fn a_trap_is_said_with_the_functions_it_was_in() {
    let divide = "(func $divide (param i32) (result i32)
        (i32.div_u (i32.const 1) (local.get 0)))";
    let functions = format!("{divide} {}", doing("(drop (call $divide (i32.const 0)))"));
    assert_fails(
        &component(&functions),
        "integer divide by zero, in divide, called by handle",
    );
}

#[test]
fn a_guest_that_misbehaves_before_its_first_line_is_not_served() {
    let quiet = "(func $handle (param i32 i32) (result i32) i32.const 0)";
    let greetings = "(func $greeting (result i32) (loop $l br $l) i32.const 0)";
    let traps = "(func $greeting (result i32) unreachable)";
    let starts = "(func $start (loop $l br $l)) (start $start)";
    for (functions, cause) in [
        (format!("{quiet} {greetings}"), "took longer"),
        (format!("{quiet} {traps}"), "unreachable"),
        (format!("{quiet} {NO_GREETING} {starts}"), "took longer"),
    ] {
        assert_not_served(&component(&functions), &[], cause);
    }
}

#[test]
fn several_memories_share_the_limit_of_one_guest() {
    let grows =
        "(if (i32.eq (memory.grow $more (i32.const 160)) (i32.const -1)) (then unreachable))";
    let functions = format!("(memory $more 0) {}", doing(grows));
    let server = server(&component(&functions), &["--guest-memory=20MiB"]);
    let mut client = server.connect();
    assert_eq!(client.ask("10 MiB"), "");
    client.send("10 MiB more, beside the first page of the other memory\n");
    assert_eq!(client.rest(), "error: the guest failed\n");
    server.logged(&["the guest failed", "--guest-memory"]);
}

#[test]
fn a_growing_table_stops_at_its_limit() {
    let grows = "(drop (table.grow $table (ref.null func) (i32.const 19999)))
        (if (i32.ne (table.grow $table (ref.null func) (i32.const 1)) (i32.const -1))
            (then unreachable))";
    let server = server(&component(&doing(grows)), &[]);
    let mut client = server.connect();
    // The reply is the text of length 0 at address 0.
    assert_eq!(client.ask("grow"), "");
}

#[test]
fn handles_tables_globals_and_elements_are_memory_too() {
    let handles = |count| {
        component_that_imports(&doing(&format!(
            "(local $n i32)
            (loop $l
                (drop (call $thing (i32.const 7)))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $l (i32.lt_u (local.get $n) (i32.const {count}))))"
        )))
    };
    let few = server(&handles(1000), &[]);
    assert_eq!(few.connect().ask("1000 handles"), "");
    assert_fails(&handles(2000), "store handle limit exceeded");

    // Each asks for a MiB or two, of which 64 KiB are linear memory.
    let tables = "(table 20000 funcref)".repeat(7);
    let globals = "(global i32 (i32.const 1))".repeat(60_000);
    let elements = format!("(elem func {})", "$handle ".repeat(60_000));
    for part in [&tables, &globals, &elements] {
        let component = component(&format!("{part} {}", doing("")));
        assert_not_served(&component, &["--guest-memory=1MiB"], "--guest-memory");
        let options = ["--guest-memory=2MiB", "--total-guest-memory=2MiB"];
        let server = server(&component, &options);
        let mut first = server.connect();
        assert_eq!(first.ask("fits"), "");
        assert_eq!(server.connect().rest(), "error: too many connections\n");
        server.logged(&["refusing connections", "--total-guest-memory"]);
    }
}

#[test]
fn a_guest_without_room_for_a_line_is_spoken_of_at_the_start() {
    let component = component_with_memory(16, &doing(""));
    let tight = server(&component, &["--guest-memory=1088KiB"]);
    tight.logged(&["WARN", "65536 bytes (--max-line) may not fit", "1114112"]);
    let wide = server(&component, &["--guest-memory=1200KiB"]);
    wide.logged(&["waiting for connections"]);
    assert!(!wide.log().iter().any(|line| line.contains("may not fit")));
}

#[test]
fn all_guests_together_stay_within_their_memory() {
    let grows = "(if (i32.eq (memory.grow (i32.const 160)) (i32.const -1)) (then unreachable))";
    let server = server(
        &component(&doing(grows)),
        &["--guest-memory=20MiB", "--total-guest-memory=25MiB"],
    );
    let ask = |client: &mut Client| {
        client.send("10 MiB\n");
        client.hear()
    };
    let (mut first, mut second) = (server.connect(), server.connect());
    assert_eq!([ask(&mut first), ask(&mut second)], ["\n", "\n"]);
    assert_eq!(ask(&mut server.connect()), "error: the guest failed\n");
    server.logged(&["the guest failed", "--total-guest-memory"]);
    drop(first);
    // What an instance held comes back with its end.
    crate::support::eventually("there is memory again", || {
        ask(&mut server.connect()) == "\n"
    });
}

#[test]
fn ten_thousand_imports_that_nobody_offers_are_refused_in_one_line() {
    use std::fmt::Write;

    let mut text = String::from("(component");
    for n in 0..10_000 {
        write!(text, "(import \"i{n}\" (func))").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("asking.wasm");
    fs::write(&path, wat::parse_str(text + ")").unwrap()).unwrap();
    let output = crate::support::run(
        std::process::Command::new(crate::support::AIRLOCK)
            .arg("--listen=127.0.0.1:0")
            .arg("--guest")
            .arg(path),
        b"",
    );
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.len() < 500 && line.contains("does not offer"),
        "{line}"
    );
}
