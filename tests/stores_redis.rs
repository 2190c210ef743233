//! Stores in a real Redis: what guests are told, and that all works again, when it is slow, full,
//! stopped, killed, refuses, or is at the other end of TLS.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use crate::authority::{Authority, Pair};
use crate::redis_server::RedisServer;
use crate::stores::{keeper, refused, store};
use crate::support::{AIRLOCK, Client, Server, eventually, guest, run};

/// The option that grants a store there.
fn granted(redis: &RedisServer, parameters: &str) -> String {
    let socket = redis.socket();
    format!(
        "--store=default=redis+unix://{}{parameters}",
        socket.display()
    )
}

/// Says something to a Redis itself.
fn tell(redis: &RedisServer, command: &str) -> String {
    redis.command(&command.split(' ').collect::<Vec<_>>())
}

fn works_again(client: &mut Client) {
    eventually("it works again", || {
        client.ask("add again 1").parse::<u64>().is_ok()
    });
}

#[test]
fn a_redis_that_is_stopped_killed_and_started_again_costs_replies_and_no_connection() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let options = [&*granted(&redis, ""), "--store-timeout=200ms"];
    let server = Server::with_guest("keeper", &options);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    let began = Instant::now();
    redis.signal("STOP");
    // A write that was sent may happen later. So it is not sent again.
    assert_eq!(client.ask("add n 1"), "other: timeout");
    assert!(began.elapsed().as_millis() >= 200);
    eventually("nobody waits for it any more", || {
        client.ask("get name") == "other: unavailable"
    });
    server.logged(&["WARN", "is unavailable"]);
    assert_eq!(keeper(&server).ask("get name"), "other: unavailable");
    redis.signal("CONT");
    works_again(&mut client);
    server.logged(&["INFO", "is available again"]);
    assert_eq!(client.ask("get name"), "Ada");
    assert_eq!(client.ask("add n 0"), "1");

    redis.kill();
    assert_eq!(client.ask("get name"), "other: unavailable");
    redis.start_again();
    works_again(&mut client);
    assert_eq!(client.ask("get name"), "none");
    // One that was away while nobody asked: nobody is told.
    redis.kill();
    redis.start_again();
    assert_eq!(client.ask("get name"), "none");
}

#[test]
fn a_redis_that_is_slow_full_or_refuses_is_said_in_the_right_word() {
    let Some(redis) = RedisServer::start(&["--maxmemory", "3mb"]) else {
        return;
    };
    let options = [&*granted(&redis, ""), "--store-timeout=200ms"];
    let server = Server::with_guest("keeper", &options);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");

    let mut word = String::new();
    for start in 0..4096 {
        word = client.ask(&format!("fill {start} {} 1000", start + 1));
        if word != "ok" {
            break;
        }
    }
    assert_eq!(word, "other: quota");
    // Redis refuses it inside the script: that is no lost swap.
    assert_eq!(client.ask("see name"), "Ada");
    assert_eq!(client.ask("swap Grace"), "other: quota");
    assert_eq!(client.ask("get name"), "Ada");
    assert_eq!(tell(&redis, "CONFIG SET maxmemory 0"), "+OK");
    assert_eq!(client.ask("set name Grace"), "ok");

    assert_eq!(tell(&redis, "CLIENT PAUSE 400 ALL"), "+OK");
    let word = client.ask("get name");
    assert!(
        word == "other: timeout" || word == "other: unavailable",
        "{word}"
    );
    works_again(&mut client);

    assert_eq!(tell(&redis, "ACL SETUSER default -incrby"), "+OK");
    assert_eq!(client.ask("add n 1"), "other: unavailable");
    server.logged(&["ERROR", "the store refuses: NOPERM", "incrby"]);
    assert_eq!(client.ask("get name"), "Grace");
    assert_eq!(tell(&redis, "ACL SETUSER default +incrby"), "+OK");
    assert_eq!(client.ask("add n 1"), "1");
}

#[test]
fn keys_have_a_prefix_and_others_of_the_server_are_not_seen() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let own = granted(&redis, "");
    let shared = format!(
        "--store=part=redis+unix://{}?prefix=default",
        redis.socket().display()
    );
    assert_eq!(tell(&redis, "SET airlock:other:name Grace"), "+OK");
    assert_eq!(tell(&redis, "LPUSH airlock:default:list x"), ":1");
    let server = Server::with_guest("keeper", &[&own, &shared]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    assert_eq!(tell(&redis, "GET airlock:default:name"), "$3");
    assert_eq!(client.ask("delete list"), "ok");
    assert_eq!(client.ask("list"), "name end");
    assert_eq!(client.ask("open part"), "ok");
    assert_eq!(client.ask("get name"), "Ada");
}

#[test]
fn a_store_moves_from_a_file_to_a_redis() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}/store.db", folder.path().display());
    let raw = "\u{0}\u{e9}\n";
    for (key, value) in [("name", "Ada"), ("raw", raw)] {
        store(&["set", &file, key], value.as_bytes());
    }
    let exported = store(&["export", &file], b"");
    let there = format!("redis+unix://{}?prefix=default", redis.socket().display());
    store(&["import", &there], exported.as_bytes());
    assert_eq!(store(&["get", &there, "raw"], b""), raw);
    assert!(store(&["stats", &there], b"").starts_with("entries      2\n"));
    let server = Server::with_guest("keeper", &[&granted(&redis, "")]);
    assert_eq!(keeper(&server).ask("get name"), "Ada");
}

#[test]
fn a_redis_that_cannot_be_had_is_said_in_one_line() {
    let Some(redis) = RedisServer::start(&["--requirepass", "secret"]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    let listen = "--listen=127.0.0.1:0";
    let error = refused(&[listen, &granted(&redis, "")]);
    assert!(error.contains("NOAUTH"), "{error}");
    let with = granted(&redis, &format!("?credentials={}", credentials.display()));
    let error = refused(&[listen, &with]);
    assert!(error.contains("cannot read"), "{error}");
    fs::write(&credentials, "wrong\n").unwrap();
    let error = refused(&[listen, &with]);
    assert!(
        error.contains("WRONGPASS") && !error.contains("wrong\n"),
        "{error}"
    );
    let error = refused(&[listen, "--store=a=redis+unix:///nowhere/at/all"]);
    assert!(error.contains("cannot open the store `a`"), "{error}");
    let error = refused(&[listen, "--store=a=redis://me:secret@127.0.0.1"]);
    assert!(error.contains("?credentials=FILE"), "{error}");

    fs::write(&credentials, "default:secret\n").unwrap();
    let server = Server::with_guest("keeper", &[&with]);
    assert_eq!(keeper(&server).ask("set name Ada"), "ok");
}

/// A Redis over TLS, with its port; none, if it is not installed.
pub(crate) fn over_tls(authority: &Authority, pair: &Pair) -> Option<(RedisServer, String)> {
    // Redis takes no port of the system's choice.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let ca = authority.certificate();
    let [chain, key, ca] = [&pair.chain, &pair.key, &ca].map(|file| file.to_str().unwrap());
    let redis = RedisServer::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        chain,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        ca,
        "--tls-auth-clients",
        "no",
    ]);
    Some((redis?, port))
}

#[test]
fn a_redis_is_spoken_to_over_tls_and_only_to_the_right_one() {
    let authority = Authority::new("Redis");
    let pair = authority.issue("redis", &["localhost"]);
    let Some((_redis, port)) = over_tls(&authority, &pair) else {
        return;
    };
    let ca = authority.certificate().display().to_string();
    let listen = "--listen=127.0.0.1:0";
    let at = |host: &str, ca: &str| format!("--store=default=rediss://{host}:{port}?ca={ca}");
    let server = Server::with_guest("keeper", &[&at("localhost", &ca)]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("set name Ada"), "ok");
    assert_eq!(client.ask("get name"), "Ada");
    let error = refused(&[listen, &at("127.0.0.1", &ca)]);
    assert!(error.contains("certificate"), "{error}");
    let other = Authority::new("other");
    let ca = other.certificate().display().to_string();
    let error = refused(&[listen, &at("localhost", &ca)]);
    assert!(error.contains("certificate"), "{error}");
    let error = refused(&[
        listen,
        &format!("--store=default=rediss://localhost:{port}"),
    ]);
    assert!(error.contains("`ca`"), "{error}");
}

#[test]
fn a_trial_asks_no_redis() {
    let mut check = Command::new(AIRLOCK);
    check.arg("check").arg(guest("keeper"));
    check.arg("--store=default=redis+unix:///nowhere/at/all");
    let checked = run(&mut check, b"");
    assert!(checked.status.success(), "{checked:?}");
}
