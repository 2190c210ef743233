//! Where clients come in: addresses with schemes, Unix sockets, and the options of sockets.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use airlock::process::shutdown::Shutdown;
use airlock::process::takeover::Predecessor;
use airlock::settings::address::Address;
use rustix::process::getegid;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::support::{AIRLOCK, CLIENT, Client, Server, eventually, guest, installed, run};

/// A folder, and a path in it for a Unix socket.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door.sock");
    (folder, path)
}

fn listen(path: &Path, parameters: &str) -> String {
    format!("--listen=unix://{}{parameters}", path.display())
}

/// A server with a Unix socket at this path, beside its port.
fn serve(path: &Path, options: &[&str]) -> Server {
    let both = format!("--listen=127.0.0.1:0,unix://{}", path.display());
    Server::start(&[&[both.as_str()], options].concat())
}

fn connect(path: &Path) -> Client {
    Client::connect(
        format!("unix:{}", path.display())
            .parse::<Address>()
            .unwrap(),
    )
}

fn greeted(path: &Path) -> Client {
    let mut client = connect(path);
    assert_eq!(client.hear(), "Welcome!\n");
    client
}

fn is_greeted(path: &Path) {
    assert_eq!(greeted(path).ask("Ada"), "Hello, Ada!");
}

/// The one line of a server that does not start.
fn refused(options: &[&str]) -> String {
    let output = run(Command::new(AIRLOCK).args(options), b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn client(address: &str) -> Output {
    run(
        Command::new(CLIENT).args(["--connect", address, "Ada"]),
        b"",
    )
}

#[test]
fn all_doors_of_a_service_lead_to_its_guest() {
    let (_folder, path) = place();
    let server = serve(&path, &[]);
    let address = format!("tcp://{}", server.tcp());
    for address in [address, format!("unix:{}", path.display())] {
        let output = client(&address);
        assert_eq!(output.stdout, b"Welcome!\nHello, Ada!\n", "{address}");
        assert!(output.status.success());
    }
    let output = client(&format!("unix://{}.absent", path.display()));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.starts_with("client: cannot connect to unix:/"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn socat_talks_over_a_unix_socket() {
    if !installed("socat") {
        return;
    }
    let (_folder, path) = place();
    let _server = serve(&path, &[]);
    let address = format!("UNIX-CONNECT:{}", path.display());
    let output = run(Command::new("socat").args(["-", &address]), b"Ada\nexit\n");
    assert_eq!(output.stdout, b"Welcome!\nHello, Ada!\n");
    assert!(output.status.success());
}

#[test]
fn mode_and_group_say_who_may_connect_whatever_the_umask() {
    let (_folder, path) = place();
    let group = getegid().as_raw();
    let name = run(Command::new("id").arg("-gn"), b"").stdout;
    let name = String::from_utf8(name).unwrap();
    for (umask, parameters, mode) in [
        ("077", "?mode=0666".to_owned(), 0o666),
        ("000", format!("?mode=0600&group={group}"), 0o600),
        ("022", format!("?mode=0660&group={}", name.trim()), 0o660),
        ("027", String::new(), 0o750),
    ] {
        let mut shell = Command::new("sh");
        let script = format!(r#"umask {umask}; exec "$0" "$@""#);
        let options = ["--listen=127.0.0.1:0", &listen(&path, &parameters)];
        shell.args(["-c", &script, AIRLOCK]).args(options);
        let _server = Server::start_command(&mut shell);
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, mode, "{parameters}");
        assert_eq!(file.gid(), group);
        is_greeted(&path);
    }
}

#[test]
fn what_cannot_be_listened_at_is_said_in_one_line() {
    let (folder, path) = place();
    fs::write(&path, "precious").unwrap();
    let line = refused(&[&listen(&path, "")]);
    assert!(
        line.contains("there is a file already, and it is no socket"),
        "{line}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let line = refused(&[&listen(&folder.path().join("no/door.sock"), "")]);
    assert!(line.contains("its folder does not exist"), "{line}");
    let free = folder.path().join("free.sock");
    let line = refused(&[&listen(&free, "?group=nobody-has-this-one")]);
    assert!(
        line.contains("there is no group `nobody-has-this-one`"),
        "{line}"
    );
    assert!(!free.exists(), "nothing is left behind");
    // Nor where a second door cannot be had.
    let line = refused(&[&listen(&free, ""), &listen(&path, "")]);
    assert!(line.contains("it is no socket"), "{line}");
    assert!(!free.exists(), "nothing is left behind");
    let output = run(Command::new(AIRLOCK).arg("--listen=unix:@door"), b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("abstract Unix sockets"), "{stderr}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_socket_that_was_left_behind_is_no_obstacle_and_one_in_use_is() {
    let (_folder, path) = place();
    let mut killed = serve(&path, &[]);
    killed.signal("KILL");
    killed.ended();
    assert!(path.exists());
    let server = serve(&path, &[]);
    is_greeted(&path);
    let line = refused(&[&listen(&path, "")]);
    assert!(line.contains("a program listens there"), "{line}");
    is_greeted(&path);
    // Also when nobody is let in, and the queue is full.
    server.pause();
    let full = "full of those that wait";
    eventually(full, || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let refused = socket.connect(&SockAddr::unix(&path).unwrap()).is_err();
        // It waits for as long as the process lasts.
        std::mem::forget(socket);
        refused
    });
    let line = refused(&[&listen(&path, "")]);
    assert!(line.contains("a program listens there"), "{line}");
    server.signal("CONT");
}

#[test]
fn a_server_removes_its_own_socket_at_its_end_and_no_other() {
    let (_folder, path) = place();
    let mut server = serve(&path, &[]);
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    assert!(!path.exists());
    // Somebody has put another there meanwhile.
    let mut server = serve(&path, &[]);
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
}

#[test]
fn a_unix_socket_is_handed_over_and_removed_by_the_last_process() {
    let (folder, path) = place();
    let takeover = format!("--takeover={}", folder.path().join("takeover").display());
    let mut old = serve(&path, &[&takeover]);
    let mut talking = greeted(&path);
    for _ in 0..2 {
        let new = serve(&path, &[&takeover]);
        old.logged(&["handed over"]);
        new.logged(&["took the listeners over"]);
        talking.send("exit\n");
        assert_eq!(talking.rest(), "");
        assert_eq!(old.ended().code(), Some(0));
        talking = greeted(&path);
        assert_eq!(talking.ask("Ada"), "Hello, Ada!");
        old = new;
    }
    drop(talking);
    old.signal("TERM");
    assert_eq!(old.ended().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn one_address_has_a_share_and_a_unix_socket_has_none() {
    let (_folder, path) = place();
    let server = serve(&path, &["--max-connections-per-ip=1"]);
    let mut clients = [(); 3].map(|()| greeted(&path));
    for client in &mut clients {
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
    let _inside = server.greeted();
    assert_eq!(server.connect().rest(), "error: too many connections\n");
}

#[test]
fn the_log_and_the_guest_know_the_ends_of_a_unix_socket() {
    let (folder, path) = place();
    let listen = format!("--listen=127.0.0.1:0,unix://{}", path.display());
    let guest = format!("--guest={}", guest("counter").display());
    let server = Server::start(&[&listen, &guest]);
    let local = format!("unix:{}", path.display());
    server.logged(&["waiting for connections", &format!("address={local}")]);
    let mut unnamed = connect(&path);
    assert_eq!(unnamed.ask("peer"), "unix:");
    assert_eq!(unnamed.ask("local"), local);
    let line = server.logged(&["accepted", "peer=unix:"]);
    let pid = format!("pid={} uid=", std::process::id());
    assert!(line.contains(&pid), "{line}");
    // A client may have a path too.
    let own = folder.path().join("client.sock");
    let named = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    named.bind(&SockAddr::unix(&own).unwrap()).unwrap();
    named.connect(&SockAddr::unix(&path).unwrap()).unwrap();
    server.logged(&["accepted", &format!("peer=unix:{}", own.display())]);
}

#[test]
fn clients_of_ipv4_come_in_by_ipv6_unless_it_is_said_that_they_do_not() {
    for (parameters, both) in [("", true), ("?v6only=true", false)] {
        let server = Server::start(&[&format!("--listen=tcp://[::]:0{parameters}")]);
        let port = server.tcp().port();
        let connect = |host: [u16; 8]| Client::connect(SocketAddr::from((host, port)));
        let mut client = connect([0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(client.hear(), "Welcome!\n");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let v4 = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(socket.connect(&v4.into()).is_ok(), both);
    }
}

/// What a process that takes over is handed, as this one sees it.
fn handed(takeover: &Path) -> Predecessor {
    let shutdown = Shutdown::new().unwrap();
    Predecessor::ask(takeover, &shutdown).unwrap().unwrap()
}

#[test]
fn the_options_of_a_door_are_those_of_its_connections() {
    let (folder, path) = place();
    let takeover = folder.path().join("takeover");
    let option = format!("--takeover={}", takeover.display());
    let plain = "--listen=127.0.0.1:0";
    let server = Server::start(&[plain, &option]);
    let address = server.tcp();
    let before = handed(&takeover);
    let socket = &before.listeners[0];
    assert!(socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    drop(before);
    // A process that takes over sets its own.
    let door = "nodelay=false&keepalive=7s&user-timeout=9s";
    let mut new = Command::new(AIRLOCK);
    new.arg(format!("--listen={address}?{door}")).arg(&option);
    let mut new = new.stderr(std::process::Stdio::null()).spawn().unwrap();
    server.logged(&["letting the open connections finish"]);
    let before = handed(&takeover);
    let socket = &before.listeners[0];
    let set = (socket.tcp_nodelay().unwrap(), socket.keepalive().unwrap());
    assert_eq!(set, (false, true));
    let seven = Duration::from_secs(7);
    assert_eq!(socket.tcp_keepalive_time().unwrap(), seven);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), seven);
    let nine = Some(Duration::from_secs(9));
    assert_eq!(socket.tcp_user_timeout().unwrap(), nine);
    drop(before);
    new.kill().unwrap();
    new.wait().unwrap();
    drop(path);
}

#[test]
fn a_backlog_of_a_door_is_how_many_may_wait() {
    let (_folder, path) = place();
    let listen = format!("--listen=127.0.0.1:0,unix://{}?backlog=3", path.display());
    let server = Server::start(&[&listen, "--backlog=100"]);
    is_greeted(&path);
    server.pause();
    let waiting: Vec<_> = std::iter::repeat_with(|| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let connected = socket.connect(&SockAddr::unix(&path).unwrap());
        connected.map(|()| socket)
    })
    .map_while(Result::ok)
    .collect();
    // The kernel's queue has room for one more than is said.
    assert_eq!(waiting.len(), 4);
    server.signal("CONT");
    drop(waiting);
    is_greeted(&path);
}
