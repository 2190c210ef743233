//! The greeter's conversation with every kind of client.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::components::{NO_GREETING, component};
use crate::support::{AIRLOCK, CLIENT, Program, Server, installed, run};

#[test]
fn nc_is_greeted_answered_and_let_go() {
    if !installed("nc") {
        return;
    }
    let server = Server::start(&[]);
    let output = run(
        Command::new("nc").args(["127.0.0.1", &server.tcp().port().to_string()]),
        b"Michael\nTracy\nexit\n",
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Welcome!\nHello, Michael!\nHello, Tracy!\n"
    );
}

#[test]
fn telnet_is_greeted_answered_and_let_go() {
    if !installed("telnet") {
        return;
    }
    let server = Server::start(&[]);
    let port = server.tcp().port().to_string();
    let mut telnet = Program::start(Command::new("telnet").args(["127.0.0.1", &port]));
    telnet.shows("Welcome!");
    telnet.type_in("Michael\n");
    telnet.shows("Hello, Michael!");
    telnet.type_in("exit\n");
    telnet.ended();
    server.logged(&["closed", "the guest closed", "lines=2"]);
}

#[test]
fn the_client_binary_prints_every_reply() {
    let server = Server::start(&[]);
    let output = run(server.client().args(["Michael", "Tracy", "Sarah"]), b"");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Welcome!\nHello, Michael!\nHello, Tracy!\nHello, Sarah!\n"
    );
    let output = run(&mut server.client(), b"Michael\nTracy\n");
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Welcome!\nHello, Michael!\nHello, Tracy!\n"
    );
}

#[test]
fn the_client_binary_fails_when_a_name_is_not_answered() {
    let server = Server::start(&["--max-line=8"]);
    let output = run(server.client().arg("Maximiliane"), b"");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        complaint,
        "client: `Maximiliane` was not answered: the server refused: line is longer than 8 bytes\n"
    );
}

#[test]
fn crlf_is_answered_with_crlf() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    client.send("Michael\r\nTracy\nSarah\r\nexit\r\n");
    assert_eq!(
        client.rest(),
        "Hello, Michael!\r\nHello, Tracy!\nHello, Sarah!\r\n"
    );
}

#[test]
fn a_reply_of_several_lines_has_the_ending_of_the_line_it_answers() {
    // `reply`, and where its text is; of the text all but the line feed is the guest's business.
    let guest = component(&format!(
        r#"{NO_GREETING}
        (data (i32.const 256) "one\0atwo\00\0dthree")
        (data (i32.const 68) "\00\01\00\00\0e\00\00\00")
        (func $handle (param i32 i32) (result i32) i32.const 64)"#
    ));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.wasm");
    fs::write(&file, guest).unwrap();
    let guest = format!("--guest={}", file.display());
    let records = folder.path().join("records");
    let record = format!("--record={}", records.display());
    let mut server = Server::start(&[&guest, &record]);
    let mut client = server.connect();
    client.send("a\nb\r\nc");
    client.finish();
    assert_eq!(
        client.rest(),
        "one\ntwo\0\rthree\none\r\ntwo\0\rthree\r\none\r\ntwo\0\rthree\r\n"
    );
    // As it was said it is written down, and can be played.
    server.signal("TERM");
    server.ended();
    let recorded = fs::read_dir(&records).unwrap().next().unwrap();
    let recorded = recorded.unwrap().path();
    let text = fs::read_to_string(&recorded).unwrap();
    let exchange = |line| format!("> {line}\n< one\n<\"two\\u0000\\rthree\"\n");
    let exchanges = ["a", "b", "c"].map(exchange).concat();
    assert!(text.ends_with(&exchanges), "{text}");
    let output = run(
        Command::new(AIRLOCK).arg("test").args([&file, &recorded]),
        b"",
    );
    assert!(output.status.success(), "{output:?}");

    let server = Server::start(&[&guest, "--framing=chunks"]);
    let mut client = server.connect();
    client.send("a\r\n");
    client.finish();
    assert_eq!(client.rest(), "one\ntwo\0\rthree");
    // So may a greeting.
    let server = Server::start(&["--env=GREETING=Welcome!\nHelp: exit"]);
    let mut client = server.connect();
    client.send("exit\r\n");
    assert_eq!(client.rest(), "Welcome!\nHelp: exit\n");
}

#[test]
fn bytes_that_come_one_at_a_time_are_one_line() {
    let server = Server::start(&["--framing=lines"]);
    let mut client = server.greeted();
    for byte in "Michael\nTra".bytes() {
        client.send([byte]);
    }
    assert_eq!(client.hear(), "Hello, Michael!\n");
    client.send("cy\n");
    assert_eq!(client.hear(), "Hello, Tracy!\n");
}

#[test]
fn a_connection_that_has_sent_a_newline_is_never_split_by_timing() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    assert_eq!(client.ask("Michael"), "Hello, Michael!");
    client.send("Tra");
    // Longer than the settle time; that is the point.
    thread::sleep(Duration::from_millis(400));
    client.send("cy\n");
    assert_eq!(client.hear(), "Hello, Tracy!\n");
}

#[test]
fn pipelined_lines_are_all_answered_in_order() {
    const LINES: usize = 50_000;
    let server = Server::start(&[]);
    let mut client = server.greeted();
    let mut sender = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let lines: String = (0..LINES).map(|n| format!("{n}\n")).collect();
        std::io::Write::write_all(&mut sender, lines.as_bytes()).unwrap();
    });
    for n in 0..LINES {
        assert_eq!(client.hear(), format!("Hello, {n}!\n"));
    }
    sending.join().unwrap();
}

#[test]
fn replies_to_lines_that_came_together_leave_together() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    server.send_at_once(&mut client, "a\nb\nc\n");
    assert_eq!(client.receive(), b"Hello, a!\nHello, b!\nHello, c!\n");
}

#[test]
fn replies_do_not_wait_for_a_slow_guest_although_their_lines_came_together() {
    // The second takes far longer than the first does to arrive.
    let server = Server::start(&["--env=DELAY_MS=1500"]);
    let mut client = server.greeted();
    server.send_at_once(&mut client, "a\nb\n");
    for name in ["a", "b"] {
        let reply = client.receive();
        assert_eq!(
            String::from_utf8(reply).unwrap(),
            format!("Hello, {name}!\n")
        );
    }
}

#[test]
fn a_client_that_ends_its_side_still_gets_every_reply() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    client.send("Michael\nTracy\nSarah");
    client.finish();
    assert_eq!(
        client.rest(),
        "Hello, Michael!\nHello, Tracy!\nHello, Sarah!\n"
    );
    server.logged(&["closed", "the client closed", "lines=3"]);
}

#[test]
fn the_last_reply_arrives_although_the_client_keeps_sending() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    client.send(format!("Michael\nexit\n{}", "more\n".repeat(10_000)));
    assert_eq!(client.rest(), "Hello, Michael!\n");
}

#[test]
fn the_tutorials_client_works_against_the_default_server() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    assert_eq!(client.receive(), b"Welcome!\n");
    for name in ["Michael", "Tracy", "Sarah"] {
        client.send(name);
        assert_eq!(client.receive(), format!("Hello, {name}!").as_bytes());
    }
    client.send("exit");
    assert_eq!(client.receive(), b"");
    server.logged(&["closed", "the guest closed", "lines=4"]);
}

#[test]
fn chunks_need_no_newline_and_lines_need_one() {
    let server = Server::start(&["--framing=chunks"]);
    let mut client = server.connect();
    assert_eq!(client.receive(), b"Welcome!");
    client.send("Michael\n");
    assert_eq!(client.receive(), b"Hello, Michael\n!");
}

#[test]
fn names_of_every_script_are_answered() {
    let server = Server::start(&[]);
    let mut client = server.greeted();
    for name in [
        "Søren",
        "Αθηνά",
        "Иван",
        "महात्मा",
        "محمد",
        "美咲",
        "지민",
        "🦀",
        "",
    ] {
        assert_eq!(client.ask(name), format!("Hello, {name}!"));
    }
}

#[test]
fn the_guests_settings_come_from_the_command_line() {
    let server = Server::start(&["--env=GREETING=Guten Tag = hallo"]);
    assert_eq!(server.connect().hear(), "Guten Tag = hallo\n");
    let variables = "\nGREETING=Hi\nDELAY_MS=0\n";
    let server = Server::start_command(Command::new(AIRLOCK).env("AIRLOCK_ENV", variables));
    assert_eq!(server.connect().hear(), "Hi\n");
}

#[test]
fn two_hundred_slow_clients_do_not_wait_for_each_other() {
    let server = Server::start(&["--env=DELAY_MS=1000"]);
    let started = Instant::now();
    thread::scope(|scope| {
        for n in 0..200 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.greeted();
                assert_eq!(client.ask(&n.to_string()), format!("Hello, {n}!"));
            });
        }
    });
    // One after another they would take 200 s.
    assert!(started.elapsed() < Duration::from_secs(100));
}

#[test]
fn every_address_form_can_be_listened_on() {
    for (listen, connect) in [
        ("0.0.0.0:0", "127.0.0.1"),
        ("127.0.0.2:0", "127.0.0.2"),
        ("[::1]:0", "[::1]"),
        ("localhost:0", "localhost"),
    ] {
        let server = Server::start_command(Command::new(AIRLOCK).args(["--listen", listen]));
        let output = run(
            Command::new(CLIENT).args([
                "--connect",
                &format!("{connect}:{}", server.tcp().port()),
                "Ada",
            ]),
            b"",
        );
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "Welcome!\nHello, Ada!\n",
            "{listen}"
        );
    }
}
