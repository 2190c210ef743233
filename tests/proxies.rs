//! Behind a proxy: the PROXY protocol, of HAProxy and by hand.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use airlock::limits::wire::{HEALTH_CHECK_TIME, PROXY_HEADER_TIME};
use proxy_header::{ProxiedAddress, ProxyHeader};
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::support::{Client, Server, eventually, guest, installed};
use crate::tls_client::Trust;

const PEER: &str = "203.0.113.7:50312";
const LOCAL: &str = "192.0.2.1:9999";

/// A server for proxies of this machine.
fn server(options: &[&str]) -> Server {
    let door = "--listen=127.0.0.1:0?proxy-protocol=127.0.0.0/8";
    Server::start(&[&[door], options].concat())
}

/// One whose guest answers who its client is.
fn telling(options: &[&str]) -> Server {
    let counter = format!("--guest={}", guest("counter").display());
    server(&[&[counter.as_str()], options].concat())
}

fn v1(peer: &str, local: &str) -> Vec<u8> {
    let [peer, local]: [SocketAddr; 2] = [peer, local].map(|end| end.parse().unwrap());
    let family = if peer.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (peer.ip(), local.ip());
    format!(
        "PROXY {family} {from} {to} {} {}\r\n",
        peer.port(),
        local.port()
    )
    .into_bytes()
}

fn v2(peer: &str, local: &str) -> Vec<u8> {
    let [peer, local] = [peer, local].map(|end| end.parse().unwrap());
    let header = ProxyHeader::with_address(ProxiedAddress::stream(peer, local));
    let mut bytes = Vec::new();
    header.encode_v2(&mut bytes).unwrap();
    bytes
}

/// Headers of both versions, for IPv4 and IPv6, and what the guest is told then.
fn headers() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let six = ("[2001:db8::7]:50312", "[2001:db8::1]:9999");
    vec![
        (v1(PEER, LOCAL), PEER, LOCAL),
        (v2(PEER, LOCAL), PEER, LOCAL),
        (v1(six.0, six.1), six.0, six.1),
        (v2(six.0, six.1), six.0, six.1),
    ]
}

#[test]
fn the_guest_and_the_log_see_the_client_of_the_proxy() {
    let server = telling(&[]);
    for (number, (header, peer, local)) in headers().into_iter().enumerate() {
        // With the first line right behind it.
        let mut client = server.connect();
        client.send([&header[..], b"peer\nlocal\n"].concat());
        assert_eq!(client.hear(), format!("{peer}\n"));
        assert_eq!(client.hear(), format!("{local}\n"));
        let id = format!("connection={}", number + 1);
        let line = server.logged(&["accepted", &id]);
        assert!(line.contains(&format!("peer={peer}")), "{line}");
        assert!(
            line.contains(&format!("proxy={}", client.address())),
            "{line}"
        );
        client.send("bye\n");
        assert_eq!(client.rest(), "goodbye\n");
    }
}

#[test]
fn a_header_may_come_byte_by_byte_and_nothing_behind_it_is_lost() {
    let server = telling(&[]);
    for (header, peer, _) in headers() {
        let mut client = server.connect();
        for byte in [&header[..], b"peer\n"].concat() {
            client.send([byte]);
        }
        assert_eq!(client.hear(), format!("{peer}\n"));
    }
}

#[test]
fn the_share_of_an_address_is_that_of_the_client() {
    let server = server(&["--max-connections-per-ip=1"]);
    let connect = |peer: &str| {
        let mut client = server.connect();
        client.send(v2(peer, LOCAL));
        client
    };
    let mut first = connect(PEER);
    assert_eq!(first.hear(), "Welcome!\n");
    let mut other = connect("203.0.113.8:1");
    assert_eq!(other.hear(), "Welcome!\n");
    let mut second = connect("203.0.113.7:1");
    assert_eq!(second.rest(), "error: too many connections\n");
    server.logged(&["203.0.113.7 has 1 connections already"]);
    drop(first);
    eventually("its place is free", || {
        connect("203.0.113.7:2").hear() == "Welcome!\n"
    });
}

#[test]
fn a_door_for_proxies_is_for_nobody_else() {
    let server = Server::start(&["--listen=127.0.0.1:0?proxy-protocol=192.0.2.0/24"]);
    for header in [v1(PEER, LOCAL), v2(PEER, LOCAL), Vec::new()] {
        let mut client = server.connect();
        client.send(header);
        assert_eq!(client.rest(), "error: only proxies may connect here\n");
    }
    let line = server.logged(&["is none of the proxies of this door"]);
    assert!(line.contains("WARN"), "{line}");
    assert!(!server.log().iter().any(|line| line.contains("accepted")));
}

#[test]
fn what_is_no_header_is_refused_at_once() {
    let server = server(&[]);
    let mut unknown_family = v1(PEER, LOCAL);
    unknown_family[9] = b'5';
    let mut third_version = v2(PEER, LOCAL);
    third_version[12] = 0x31;
    let mut endless = v2(PEER, LOCAL);
    endless[14..16].copy_from_slice(&[0xff, 0xff]);
    for header in [
        b"Ada\n".to_vec(),
        b"PROXY\n".to_vec(),
        b"PROXY TCP4 here there 1 2\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        b"\r\n\r\nAda\n".to_vec(),
        vec![0x16, 0x03, 0x01],
        unknown_family,
        third_version,
        endless,
    ] {
        let mut client = server.connect();
        let began = Instant::now();
        client.send(&header);
        assert_eq!(client.rest(), "error: no PROXY header\n", "{header:?}");
        assert!(began.elapsed() < PROXY_HEADER_TIME, "{header:?}");
    }
    server.logged(&["refusing connections of a proxy", "is no PROXY header"]);
    assert!(!server.log().iter().any(|line| line.contains("accepted")));
}

#[test]
fn a_second_header_is_a_line() {
    let server = server(&[]);
    let mut client = server.connect();
    client.send([v1(PEER, LOCAL), v1("198.51.100.1:1", LOCAL)].concat());
    assert_eq!(client.hear(), "Welcome!\n");
    let answer = client.hear();
    assert!(
        answer.starts_with("Hello, PROXY TCP4 198.51.100.1"),
        "{answer}"
    );
}

#[test]
fn a_header_that_does_not_come_in_its_time_is_not_waited_for() {
    let server = server(&[]);
    let began = Instant::now();
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.send("PROXY TCP4 ");
    for client in [&mut silent, &mut slow] {
        assert_eq!(client.rest(), "error: no PROXY header\n");
        assert!(began.elapsed() >= PROXY_HEADER_TIME);
    }
    server.logged(&["no PROXY header has come within 5s"]);
}

/// Of a proxy that connects, says that the connection is its own, and goes away again.
#[test]
fn a_health_check_takes_no_guest() {
    let server = server(&["-v"]);
    let local = ProxyHeader::with_local();
    let mut header = Vec::new();
    local.encode_v2(&mut header).unwrap();
    for header in [header, b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut check = server.connect();
        check.send(&header);
        drop(check);
        server.logged(&["it was a health check"]);
        // One that waits for the greeting is greeted, and one that asks is answered.
        let began = Instant::now();
        let mut waiting = server.connect();
        waiting.send(&header);
        assert_eq!(waiting.hear(), "Welcome!\n");
        assert!(began.elapsed() >= HEALTH_CHECK_TIME);
        let mut asking = server.connect();
        asking.send([&header[..], b"Ada\n"].concat());
        assert_eq!(asking.hear(), "Welcome!\n");
        assert_eq!(asking.hear(), "Hello, Ada!\n");
    }
    // HAProxy's own have its address in version 1.
    let mut check = server.connect();
    check.send(v1(&check.address(), &server.address.to_string()));
    let id = "connection=7";
    drop(check);
    server.logged(&["it was a health check", id]);
    // One that says nothing at all is no reason to speak of it aloud.
    drop(server.connect());
    let line = server.logged(&["it ended before its PROXY header had come"]);
    assert!(line.contains("DEBUG"), "{line}");
    let log = server.log();
    let accepted = log.iter().filter(|line| line.contains("accepted"));
    assert_eq!(accepted.count(), 4, "{log:?}");
}

#[test]
fn who_waits_with_a_header_counts_and_is_let_go_at_the_end() {
    let mut server = server(&["--max-connections=10"]);
    let mut talking = server.connect();
    talking.send(v2(PEER, LOCAL));
    assert_eq!(talking.hear(), "Welcome!\n");
    let mut waiting: Vec<_> = (0..9).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.send("PROXY ");
    }
    let mut one_more = server.connect();
    assert_eq!(one_more.rest(), "error: too many connections\n");
    assert_eq!(talking.ask("Ada"), "Hello, Ada!");
    // Longer than the drain could take if it waited for them.
    server.signal("TERM");
    assert_eq!(talking.rest(), "error: server is shutting down\n");
    for client in &mut waiting {
        assert!(client.is_gone());
    }
    assert_eq!(server.ended().code(), Some(0));
}

/// HAProxy in front of servers. Dropping it ends it.
pub(crate) struct HaProxy {
    child: Child,
    pub(crate) ports: Vec<u16>,
    _folder: TempDir,
}

impl HaProxy {
    /// `options` are those of its line `server`, for a server on this port.
    fn start(server: u16, options: &str, more: &str) -> HaProxy {
        HaProxy::configured(1, |binds| {
            format!(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
                 listen all\n bind {}\n{more}\n\
                 server one 127.0.0.1:{server} {options}\n",
                binds[0]
            )
        })
    }

    /// With a configuration that binds so many addresses: they are what stands behind `bind`.
    pub(crate) fn configured(count: usize, text: impl Fn(&[String]) -> String) -> HaProxy {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        // It takes its ports from listeners of this test, which nobody else can have meanwhile.
        let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let listeners: Vec<_> = listeners.collect();
        let (mut ports, mut binds) = (Vec::new(), Vec::new());
        for listener in &listeners {
            fcntl_setfd(listener, FdFlags::empty()).unwrap();
            ports.push(listener.local_addr().unwrap().port());
            binds.push(format!("fd@{}", listener.as_raw_fd()));
        }
        fs::write(&file, text(&binds)).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        HaProxy {
            child,
            ports,
            _folder: folder,
        }
    }

    /// A client that comes through it, from an address of its own.
    pub(crate) fn connect(&self, last: u8) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let from = SocketAddr::from(([127, 0, 0, last], 0));
        socket.bind(&from.into()).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        socket.connect(&to.into()).unwrap();
        Client::of(socket)
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is said of a connection for which no guest was started. HAProxy resets those of its checks, and
/// if that is quick their header is never seen.
const CHECKED: &str = "a connection of a proxy has ended";

#[test]
fn haproxy_says_who_its_clients_are_and_its_health_checks_take_no_guest() {
    if !installed("haproxy") {
        return;
    }
    for (protocol, connections) in [("send-proxy", 3), ("send-proxy-v2", 3)] {
        let server = telling(&["-v"]);
        let port = server.tcp().port();
        let options = format!("{protocol} check inter 50ms");
        let proxy = HaProxy::start(port, &options, "");
        server.logged(&[CHECKED]);
        for last in 1..=connections {
            let mut client = proxy.connect(10 + last);
            let here = client.address();
            assert_eq!(client.ask("peer"), here);
            assert_eq!(client.ask("local"), format!("127.0.0.1:{}", proxy.ports[0]));
            client.send("bye\n");
            assert_eq!(client.rest(), "goodbye\n");
        }
        let checks = |server: &Server| {
            let log = server.log();
            log.iter().filter(|line| line.contains(CHECKED)).count()
        };
        eventually("ten health checks", || checks(&server) >= 10);
        let log = server.log();
        let accepted = log.iter().filter(|line| line.contains("accepted"));
        assert_eq!(accepted.count(), usize::from(connections), "{log:?}");
    }
}

/// Which the proxy passes on as it is.
#[test]
fn the_header_comes_before_the_handshake_of_tls() {
    if !installed("haproxy") {
        return;
    }
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let listen = pair.listen("&proxy-protocol=127.0.0.0/8");
    let counter = format!("--guest={}", guest("counter").display());
    let server = Server::start(&[&listen, &counter]);
    let proxy = HaProxy::start(server.tcp().port(), "send-proxy-v2", "");
    let address = SocketAddr::from(([127, 0, 0, 1], proxy.ports[0]));
    let mut client = Trust::new(&authority).connect(address);
    client.send("local\n");
    assert_eq!(client.hear(), format!("{address}\n"));
    // Without a header there is no handshake.
    let mut direct = server.connect();
    direct.send(Trust::new(&authority).client_hello());
    assert_eq!(direct.rest(), "error: no PROXY header\n");
}

/// A check that waits for the greeting, and finds that the server is down when it is.
#[test]
fn haproxy_may_check_the_greeting() {
    if !installed("haproxy") {
        return;
    }
    for protocol in ["send-proxy", "send-proxy-v2"] {
        let mut server = server(&[]);
        let port = server.tcp().port();
        let options = format!("{protocol} check inter 500ms rise 1 fall 1");
        let check = " option tcp-check\n tcp-check expect string Welcome!";
        let proxy = HaProxy::start(port, &options, check);
        server.logged(&["accepted"]);
        let mut client = proxy.connect(20);
        assert_eq!(client.hear(), "Welcome!\n");
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
        server.signal("TERM");
        client.rest();
        server.ended();
        eventually("it is seen to be down", || {
            let mut client = proxy.connect(21);
            client.rest().is_empty()
        });
    }
}
