//! Topics through a real Redis: servers that hear each other by it, and what happens when it is stopped,
//! killed, or refuses.

use std::process::Command;

use crate::authority::Authority;
use crate::redis_server::RedisServer;
use crate::stores::refused;
use crate::stores_redis::over_tls;
use crate::support::{AIRLOCK, Client, Server, eventually, guest, run};

/// The option that grants topics there.
fn granted(redis: &RedisServer, parameters: &str) -> String {
    let socket = redis.socket();
    format!("--topics=redis+unix://{}{parameters}", socket.display())
}

fn server(option: &str) -> Server {
    Server::with_guest("speaker", &[option])
}

fn hearer(server: &Server, topic: &str) -> Client {
    let mut client = server.connect();
    assert_eq!(client.hear(), "hello\n");
    assert_eq!(client.ask(&format!("hear {topic}")), "ok");
    client
}

/// Asks until it is told this.
fn is_told(client: &mut Client, line: &str, answer: &str) {
    eventually(answer, || {
        client.send(format!("{line}\n"));
        // What it hears meanwhile does not matter.
        loop {
            match client.hear() {
                other if other.contains(": ") && !other.starts_with("limit") => {}
                told => return told == format!("{answer}\n"),
            }
        }
    });
}

#[test]
fn servers_at_one_redis_hear_each_other() {
    // Of all together no more than may wait for one.
    const LINES: usize = 30;
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let servers = [(); 2].map(|()| server(&granted(&redis, "")));
    let mut clients: Vec<_> = (0..8)
        .map(|number| hearer(&servers[number % 2], "t"))
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let lines = (0..LINES).map(|line| format!("say t {number}.{line}\n"));
        client.send(lines.collect::<String>());
    }
    let count = clients.len();
    let heard: Vec<Vec<String>> = clients
        .iter_mut()
        .map(|client| {
            let mut heard = Vec::new();
            while heard.len() < count * LINES {
                // Its own replies are between.
                let line = client.hear();
                heard.extend(line.strip_prefix("t: ").map(str::to_owned));
            }
            heard
        })
        .collect();
    // Each of them once, all in one order, and those of each client in its own.
    assert!(heard.iter().all(|lines| *lines == heard[0]));
    for number in 0..count {
        let start = format!("{number}.");
        let own = heard[0].iter().filter_map(|line| line.strip_prefix(&start));
        let own: Vec<usize> = own.map(|line| line.trim_end().parse().unwrap()).collect();
        assert_eq!(own, (0..LINES).collect::<Vec<_>>());
    }
}

#[test]
fn topics_of_another_name_and_those_of_nobody_are_not_heard() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let [one, same, other] =
        ["?name=a", "?name=a", "?name=b"].map(|name| server(&granted(&redis, name)));
    let mut one = hearer(&one, "t");
    let mut same = hearer(&same, "t");
    let mut other = hearer(&other, "t");
    assert_eq!(other.ask("say t apart"), "ok");
    assert_eq!(other.hear(), "t: apart\n");
    assert_eq!(one.ask("say t together"), "ok");
    for client in [&mut one, &mut same] {
        assert_eq!(client.hear(), "t: together\n");
    }
    // Whoever else uses the Redis may speak too; what is too large, or no text, is none of ours.
    let large = "x".repeat(65_537);
    for (channel, body) in [
        ("airlock:a:t", &*large),
        ("airlock:a", "no topic"),
        ("t", "no namespace"),
        ("airlock:a:t", "from outside"),
    ] {
        redis.command(&["PUBLISH", channel, body]);
    }
    for client in [&mut one, &mut same] {
        assert_eq!(client.hear(), "t: from outside\n");
    }
    assert_eq!(one.ask("forget t"), "ok");
    assert_eq!(same.ask("forget t"), "ok");
    eventually("nobody is subscribed", || {
        redis.command(&["PUBLISH", "airlock:a:t", "x"]) == ":0"
    });
}

#[test]
fn what_others_publish_is_relayed_as_text_that_is_no_longer_than_a_reply() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let server = Server::with_guest(
        "speaker",
        &[&granted(&redis, "?name=a"), "--max-reply=1KiB"],
    );
    let mut client = server.connect();
    assert_eq!(client.hear(), "hello\n");
    assert_eq!(client.ask("relay t"), "ok");
    let publish = |body: &[u8]| redis.command(&[b"PUBLISH", b"airlock:a:t".as_slice(), body]);
    // As text it has three times as many bytes.
    publish(&[0xff; 1024]);
    assert_eq!(client.hear(), "missed\n");
    publish(b"not \xff");
    assert_eq!(client.hear(), "not \u{fffd}\n");
}

#[test]
fn a_redis_that_is_killed_and_started_again_is_told_of_and_costs_no_connection() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let server = server(&granted(&redis, ""));
    let mut client = hearer(&server, "t");
    let mut quiet = hearer(&server, "t");
    redis.kill();
    is_told(&mut client, "say t x", "unavailable");
    server.logged(&["WARN", "the topics in", "are unavailable"]);
    // Lines are answered meanwhile, and who comes is told too.
    let mut late = server.connect();
    assert_eq!(late.hear(), "unavailable\n");
    assert_eq!(late.ask("hear t"), "unavailable");
    assert_eq!(late.ask("heard"), "0");
    redis.start_again();
    assert_eq!(quiet.hear(), "missed\n");
    server.logged(&["INFO", "are available again"]);
    assert_eq!(quiet.ask("say t back"), "ok");
    assert_eq!(quiet.hear(), "t: back\n");
    eventually("it hears", || client.hear() == "t: back\n");
    assert_eq!(late.ask("hear t"), "ok");
    assert_eq!(quiet.ask("say t all"), "ok");
    for client in [&mut quiet, &mut client, &mut late] {
        assert_eq!(client.hear(), "t: all\n");
    }
}

#[test]
fn a_redis_that_is_stopped_or_refuses_holds_nobody_up() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let server = server(&granted(&redis, ""));
    let mut client = hearer(&server, "t");
    redis.signal("STOP");
    // It is not known to be gone. Nobody hears this, and whoever wants to hear more waits a second.
    assert_eq!(client.ask("say t x"), "ok");
    assert_eq!(client.ask("hear more"), "unavailable");
    is_told(&mut client, "say t x", "unavailable");
    redis.signal("CONT");
    is_told(&mut client, "hear more", "ok");
    // What waited in it may be heard late, and what was lost is told.
    client.send("say more again\n");
    eventually("it hears", || client.hear() == "more: again\n");

    // Of the channels that are subscribed to, none is taken away: that would end the connection.
    let acl = [
        "ACL",
        "SETUSER",
        "default",
        "resetchannels",
        "&airlock:*:t",
        "&airlock:*:more",
    ];
    assert_eq!(redis.command(&acl), "+OK");
    let mut refused = server.connect();
    assert_eq!(refused.hear(), "hello\n");
    assert_eq!(refused.ask("hear other"), "unavailable");
    assert_eq!(refused.ask("heard"), "0");
}

#[test]
fn topics_that_cannot_be_had_are_said_in_one_line() {
    let listen = "--listen=127.0.0.1:0";
    let error = refused(&[listen, "--topics=redis+unix:///nowhere/at/all"]);
    assert!(
        error.contains("cannot have topics at redis+unix:///nowhere/at/all"),
        "{error}"
    );
    let error = refused(&[listen, "--topics=redis://me:secret@127.0.0.1"]);
    assert!(error.contains("?credentials=FILE"), "{error}");
    let mut check = Command::new(AIRLOCK);
    check.arg("check").arg(guest("speaker"));
    let checked = run(check.arg("--topics=redis+unix:///nowhere/at/all"), b"");
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn topics_go_through_tls_and_only_to_the_right_redis() {
    let authority = Authority::new("Redis");
    let pair = authority.issue("redis", &["localhost"]);
    let Some((_redis, port)) = over_tls(&authority, &pair) else {
        return;
    };
    let ca = authority.certificate().display().to_string();
    let at = |host: &str, ca: &str| format!("--topics=rediss://{host}:{port}?ca={ca}");
    let server = server(&at("localhost", &ca));
    let mut client = hearer(&server, "t");
    // More than one record.
    assert_eq!(client.ask("flood t 4x60000"), "ok");
    for _ in 0..4 {
        assert_eq!(client.hear(), "t: 60000 bytes\n");
    }
    let error = refused(&["--listen=127.0.0.1:0", &at("127.0.0.1", &ca)]);
    assert!(error.contains("certificate"), "{error}");
}
