//! Doors for TLS: real clients, certificates, and ends of connections.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustls::HandshakeKind;

use crate::authority::{Authority, Pair, shown};
use crate::support::{AIRLOCK, CLIENT, Program, Server, eventually, run};
use crate::tls_client::{Trust, VERSIONS, connect, greeted, started};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `openssl s_client`, which trusts this authority.
fn s_client(server: &Server, authority: &Authority, options: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &server.address.to_string()])
        .args([
            "-servername",
            "localhost",
            "-verify_return_error",
            "-CAfile",
        ])
        .arg(authority.certificate())
        .args(options);
    command
}

#[test]
fn openssl_is_greeted_answered_and_let_go_over_both_versions() {
    let (server, authority) = started(&[]);
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = s_client(&server, &authority, &[version, "-quiet"]);
        let output = run(&mut command, b"Michael\nTracy\nexit\n");
        let heard = String::from_utf8_lossy(&output.stdout);
        assert_eq!(heard, "Welcome!\nHello, Michael!\nHello, Tracy!\n");
        // It has heard `close_notify`.
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn the_client_binary_speaks_tls_and_shows_its_certificate() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let ca = authority.certificate();
    let server = Server::start(&[&pair.listen(&format!("&client-ca={}", ca.display()))]);
    let own = authority.issue("ada", &["ada.example.org"]);
    let connect = format!("tls://localhost:{}", server.tcp().port());
    let talk = |options: &[&str], name: &str| {
        let mut client = Command::new(CLIENT);
        run(
            client.args(["--connect", &connect]).args(options).arg(name),
            b"",
        )
    };
    let [ca, cert, key] = [&ca, &own.chain, &own.key].map(|path| shown(path));
    let output = talk(&["--ca", &ca, "--cert", &cert, "--key", &key], "Ada");
    assert!(output.status.success(), "{output:?}");
    let heard = String::from_utf8_lossy(&output.stdout);
    assert_eq!(heard, "Welcome!\nHello, Ada!\n");
    server.logged(&["closed", "the guest closed", "lines=2"]);
    let stranger = Authority::new("Other CA");
    let other = shown(&stranger.certificate());
    for (options, reason) in [
        (&[][..], "with --ca FILE"),
        (&["--ca", &ca], "CertificateRequired"),
        (&["--ca", &other], "UnknownIssuer"),
    ] {
        let output = talk(options, "Ada");
        assert!(!output.status.success());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(reason), "{errors}");
        assert_eq!(errors.trim().lines().count(), 1, "{errors}");
    }
}

#[test]
fn openssl_resumes_its_session_over_both_versions() {
    let (server, authority) = started(&[]);
    let session = shown(&authority.path("session"));
    for version in ["-tls1_2", "-tls1_3"] {
        for (option, wanted) in [("-sess_out", "New, TLSv1"), ("-sess_in", "Reused, TLSv1")] {
            let options = [version, option, &session, "-ign_eof"];
            let output = run(&mut s_client(&server, &authority, &options), b"Ada\nexit\n");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(wanted), "{version} {option}: {text}");
            assert!(text.contains("Hello, Ada!"), "{text}");
        }
    }
}

#[test]
fn lines_are_the_same_however_they_are_cut_into_records() {
    let (server, authority) = started(&[]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], None);
        let mut client = greeted(&trust, &server);
        for byte in "Ada\nEve\r\n".bytes() {
            client.send([byte]);
        }
        assert_eq!(
            client.hear() + &client.hear(),
            "Hello, Ada!\nHello, Eve!\r\n"
        );
        // Several records, and several lines in one.
        let long = "x".repeat(60_000);
        client.send(format!("{long}\na\nb\n"));
        assert_eq!(client.hear(), format!("Hello, {long}!\n"));
        assert_eq!(client.hear() + &client.hear(), "Hello, a!\nHello, b!\n");
    }
}

#[test]
fn more_lines_than_any_buffer_holds_are_answered_in_their_order() {
    const LINES: usize = 100_000;
    let (server, authority) = started(&[]);
    let mut client = greeted(&Trust::new(&authority), &server);
    // More than the kernels have room for: the server has to wait for this client in between.
    for part in 0..LINES / 1000 {
        let lines: String = (0..1000).map(|line| format!("{part} {line}\n")).collect();
        client.send(lines);
        for line in 0..1000 {
            assert_eq!(client.hear(), format!("Hello, {part} {line}!\n"));
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_waited_for_and_hears_all() {
    let (server, authority) = started(&[]);
    for version in VERSIONS {
        let mut client = greeted(&Trust::with(&authority, &[version], None), &server);
        let line = format!("{}\n", "x".repeat(999));
        let sent = client.send_until_stalled(line.as_bytes());
        let reply = format!("Hello, {}!\n", "x".repeat(999));
        let heard = client.hear_while_sending(sent * reply.len());
        assert!(heard == reply.repeat(sent).as_bytes());
        client.close_notify();
        assert_eq!(client.rest(), "");
    }
}

/// It may still listen.
#[test]
fn a_client_that_says_it_has_ended_hears_its_replies_and_the_end() {
    let (server, authority) = started(&[]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], None);
        let mut client = greeted(&trust, &server);
        client.send("Ada\nEve");
        client.close_notify();
        assert_eq!(client.rest(), "Hello, Ada!\nHello, Eve!\n");
        server.logged(&["closed", "the client closed", "lines=2"]);
    }
}

#[test]
fn a_line_that_may_have_been_cut_off_is_not_answered() {
    let (server, authority) = started(&[]);
    let mut client = greeted(&Trust::new(&authority), &server);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    client.send("transfer 10");
    client.cut();
    server.logged(&["closed", "lines=1", "without a `close_notify`"]);
}

#[test]
fn every_end_that_the_server_makes_is_told_from_a_cut() {
    let (server, authority) = started(&["--idle-timeout=300ms"]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], None);
        let mut client = greeted(&trust, &server);
        client.send("exit\n");
        assert_eq!(client.rest(), "");
        let mut silent = greeted(&trust, &server);
        assert_eq!(silent.rest(), "error: timed out waiting for a line\n");
    }
}

#[test]
fn a_server_that_ends_says_so_through_tls() {
    let (mut server, authority) = started(&[]);
    let mut client = greeted(&Trust::new(&authority), &server);
    // One that has not finished its handshake holds nothing up.
    let half = connect(server.tcp());
    server.signal("TERM");
    assert_eq!(client.rest(), "error: server is shutting down\n");
    drop(client);
    assert!(server.ended().success());
    drop(half);
}

#[test]
fn the_certificate_is_the_one_for_the_host_that_the_client_names() {
    let authority = Authority::new("Test CA");
    let first = authority.issue("first", &["localhost"]);
    let second = authority.issue("second", &["*.example.org", "example.net"]);
    let more = format!(
        "&cert={}&key={}",
        second.chain.display(),
        second.key.display()
    );
    let server = Server::start(&[&first.listen(&more)]);
    let trust = Trust::new(&authority);
    for host in ["localhost", "a.example.org", "example.net"] {
        let mut client = trust.try_connect(server.tcp(), host).unwrap();
        assert_eq!(client.hear(), "Welcome!\n", "{host}");
    }
    for host in ["example.org", "a.b.example.org", "elsewhere.net"] {
        let error = trust.try_connect(server.tcp(), host).err().unwrap();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
}

/// Asks the guest who it thinks the client is.
fn identified(trust: &Trust, server: &Server) -> String {
    let mut client = trust.connect(server.tcp());
    assert_eq!(client.ask("encrypted"), "true");
    client.ask("identity")
}

#[test]
fn a_guest_knows_who_has_shown_a_certificate() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let ca = authority.certificate();
    let listen = pair.listen(&format!("&client-ca={}&client-auth=optional", ca.display()));
    let server = Server::with_guest("counter", &[&listen]);
    let ada = authority.issue("ada", &["ada.example.org", "ada.example.net"]);
    for version in VERSIONS {
        let trust = Trust::with(&authority, &[version], Some(&ada));
        let identity = identified(&trust, &server);
        assert_eq!(identity, "CN=ada,O=Example ada.example.org ada.example.net");
        // A resumed session is the same client's.
        let mut client = trust.connect(server.tcp());
        assert_eq!(
            client.connection().handshake_kind(),
            Some(HandshakeKind::Resumed)
        );
        assert_eq!(client.ask("identity"), identity);
        let nobody = Trust::with(&authority, &[version], None);
        assert_eq!(identified(&nobody, &server), "nobody");
    }
}

#[test]
fn who_shows_no_certificate_or_a_wrong_one_is_turned_away() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let listen = pair.listen(&format!("&client-ca={}", authority.certificate().display()));
    let server = Server::start(&[&listen]);
    let other = Authority::new("Other CA");
    let ada = authority.issue("ada", &["ada.example.org"]);
    let eve = other.issue("eve", &["eve.example.org"]);
    let old = authority.issue_until("old", &["old.example.org"], SystemTime::now() - DAY);
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |own: Option<&Pair>| {
            let mut command = s_client(&server, &authority, &[version, "-quiet"]);
            if let Some(own) = own {
                command
                    .arg("-cert")
                    .arg(&own.chain)
                    .arg("-key")
                    .arg(&own.key);
            }
            let output = run(&mut command, b"Ada\nexit\n");
            let [heard, errors] = [&output.stdout, &output.stderr];
            let text = String::from_utf8_lossy(heard) + String::from_utf8_lossy(errors);
            text.into_owned()
        };
        assert!(ask(Some(&ada)).contains("Hello, Ada!"));
        for (own, alert, reason) in [
            (None, "certificate required", "no certificate"),
            (Some(&eve), "unknown ca", "not in the client CA's file"),
            (Some(&old), "certificate expired", "has expired"),
        ] {
            let text = ask(own);
            // TLS 1.2 has no alert for none.
            let alert = match (own, version) {
                (None, "-tls1_2") => "alert",
                _ => alert,
            };
            assert!(text.contains(alert), "{version}: {text}");
            assert!(!text.contains("Welcome"), "{text}");
            server.logged(&["a TLS handshake failed", reason]);
        }
    }
    assert!(!server.log().iter().any(|line| line.contains("lines=0")));
}

#[test]
fn why_a_handshake_has_failed_is_one_line_in_the_log() {
    let (server, authority) = started(&[]);
    let mut plain = connect(server.tcp());
    plain.write_all(b"Ada\n").unwrap();
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard);
    // An alert, and no plain text.
    assert_eq!(heard.first(), Some(&21), "{heard:?}");
    server.logged(&["a TLS handshake failed", "plain text to a TLS port"]);
    // Debian's openssl offers nothing older by itself.
    let options = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    let output = run(&mut s_client(&server, &authority, &options), b"");
    assert!(!output.status.success());
    server.logged(&["a TLS handshake failed", "no common version"]);
    let other = Authority::new("Other CA");
    let output = run(&mut s_client(&server, &other, &[]), b"");
    assert!(!output.status.success());
    server.logged(&["a TLS handshake failed", "unknown_ca"]);
    drop(connect(server.tcp()));
    server.logged(&["a TLS handshake failed", "in the middle of it"]);
    let mut client = greeted(&Trust::new(&authority), &server);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}

/// What it logs when it starts with these options, if it does not start.
fn refused(options: &[&str]) -> String {
    let output = run(
        Command::new(AIRLOCK).args(options).stdin(Stdio::null()),
        b"",
    );
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn files_that_cannot_be_served_are_named_with_the_reason() {
    let authority = Authority::new("Test CA");
    let good = authority.issue("good", &["localhost"]);
    let other = authority.issue("other", &["localhost"]);
    let old = authority.issue_until("old", &["localhost"], SystemTime::now() - DAY);
    let early = authority.issue_until("early", &["localhost"], SystemTime::now() + 90 * DAY);
    let file = |name: &str, content: &str| {
        let path = authority.path(name);
        fs::write(&path, content).unwrap();
        path
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let order = read(&authority.certificate()) + &read(&good.chain);
    let with = |chain: &Path, key: &Path| Pair {
        chain: chain.to_owned(),
        key: key.to_owned(),
    };
    let empty = file("empty.pem", "");
    let torn = file(
        "torn.pem",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    );
    let missing = authority.path("missing.pem");
    for (pair, reason) in [
        (
            with(&good.chain, &other.key),
            "is not that of the certificate in",
        ),
        (old, "expired on "),
        (early, "is not valid before "),
        (
            with(&file("order.pem", &order), &good.key),
            "the server's own certificate comes first",
        ),
        (with(&empty, &good.key), "has no certificate"),
        (with(&good.chain, &empty), "has no private key"),
        (with(&torn, &good.key), "certificate 1 of"),
        (with(&missing, &good.key), "cannot read `"),
        (with(&good.chain, &missing), "cannot read `"),
        (with(Path::new("/dev/zero"), &good.key), "no regular file"),
    ] {
        let text = refused(&[&pair.listen("")]);
        assert!(text.contains(reason), "{reason}: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
}

#[test]
fn what_is_soon_wrong_with_a_certificate_is_said() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue_until("soon", &["localhost"], SystemTime::now() + 10 * DAY);
    fs::set_permissions(&pair.key, Permissions::from_mode(0o644)).unwrap();
    let server = Server::start(&[&pair.listen("")]);
    server.logged(&["WARN", "soon.pem", "expires in 9 days"]);
    server.logged(&[
        "WARN",
        "soon.key",
        "every user of this machine can read the key",
    ]);
}

/// Puts the files of one pair in the place of another's, as tools do: one after the other.
fn replace(old: &Pair, new: &Pair) {
    for (new, old) in [(&new.chain, &old.chain), (&new.key, &old.key)] {
        let beside = old.with_extension("new");
        fs::copy(new, &beside).unwrap();
        fs::rename(beside, old).unwrap();
    }
}

#[test]
fn a_new_certificate_is_for_new_connections_and_drops_nobody() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let next = authority.issue("next", &["localhost", "next.example.org"]);
    let server = Server::start(&[&pair.listen("")]);
    let trust = Trust::new(&authority);
    let mut before = greeted(&trust, &server);
    let host = "next.example.org";
    assert!(trust.try_connect(server.tcp(), host).is_err());
    replace(&pair, &next);
    server.logged(&["new connections get the certificates as they are now"]);
    let mut after = trust.try_connect(server.tcp(), host).unwrap();
    assert_eq!(after.hear(), "Welcome!\n");
    assert_eq!(before.ask("Ada"), "Hello, Ada!");
    // The same files, read again.
    server.signal("HUP");
    eventually("they are read again", || {
        let log = server.log();
        let read = log.iter().filter(|line| line.contains("as they are now"));
        read.count() == 2
    });
    let mut again = trust.try_connect(server.tcp(), host).unwrap();
    assert_eq!(again.hear(), "Welcome!\n");
}

#[test]
fn a_bad_certificate_is_refused_and_the_one_before_stays() {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let other = authority.issue("other", &["localhost"]);
    let server = Server::start(&[&pair.listen("")]);
    let trust = Trust::new(&authority);
    fs::copy(&other.key, &pair.key).unwrap();
    server.logged(&[
        "ERROR",
        "refused the new certificates",
        "is not that of the certificate",
    ]);
    assert_eq!(greeted(&trust, &server).ask("Ada"), "Hello, Ada!");
    fs::copy(&other.chain, &pair.chain).unwrap();
    server.logged(&["new connections get the certificates as they are now"]);
    assert_eq!(greeted(&trust, &server).ask("Ada"), "Hello, Ada!");
}

/// No ticket of before lets in whom the new file would not.
#[test]
fn a_client_ca_that_is_replaced_holds_for_those_who_come_back_too() {
    let [authority, other] = ["Test CA", "Other CA"].map(Authority::new);
    let pair = authority.issue("server", &["localhost"]);
    let ada = authority.issue("ada", &["ada.example.org"]);
    let ca = authority.path("clients.pem");
    fs::copy(authority.certificate(), &ca).unwrap();
    let server = Server::with_guest(
        "counter",
        &[&pair.listen(&format!("&client-ca={}", ca.display()))],
    );
    let trust = VERSIONS.map(|version| Trust::with(&authority, &[version], Some(&ada)));
    for trust in &trust {
        assert!(identified(trust, &server).starts_with("CN=ada"));
    }
    fs::copy(other.certificate(), &ca).unwrap();
    server.logged(&["new connections get the certificates as they are now"]);
    for trust in &trust {
        // With TLS 1.3 the client hears of it after its handshake.
        if let Ok(mut client) = trust.try_connect(server.tcp(), "localhost") {
            assert!(client.try_send("identity\n").is_err() || client.try_rest().is_err());
        }
    }
    server.logged(&["a TLS handshake failed", "not in the client CA's file"]);
}

#[test]
fn renegotiation_is_refused() {
    let (server, authority) = started(&[]);
    let mut command = s_client(&server, &authority, &["-tls1_2"]);
    let mut client = Program::start(command.stderr(Stdio::null()));
    client.shows("Welcome!");
    client.type_in("R\n");
    client.ended();
    server.logged(&["closed"]);
    let mut other = greeted(&Trust::new(&authority), &server);
    assert_eq!(other.ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_client_hello_at_a_plain_door_is_named_in_the_log() {
    let server = Server::start(&[]);
    let authority = Authority::new("Test CA");
    let output = run(&mut s_client(&server, &authority, &[]), b"");
    assert!(!output.status.success());
    server.logged(&["closed", "TLS"]);
}

#[test]
fn limits_are_the_same_through_tls() {
    let (server, authority) = started(&["--max-connections=1", "--max-line=1KiB"]);
    let trust = Trust::new(&authority);
    let mut client = greeted(&trust, &server);
    client.send(format!("{}\n", "x".repeat(2000)));
    assert_eq!(client.hear(), "error: line is longer than 1024 bytes\n");
    let error = trust.try_connect(server.tcp(), "localhost").err().unwrap();
    assert!(error.to_string().contains("InternalError"), "{error}");
    server.logged(&["refusing connections", "--max-connections"]);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}
