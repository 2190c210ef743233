//! Under systemd: the units in `deploy/systemd`, a socket that was handed over (`LISTEN_FDS`), and
//! what the service manager is told (`NOTIFY_SOCKET`).

use std::fs;
use std::iter;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use airlock::settings::address::Address;
use rustix::event::epoll::{self, EventData, EventFlags};
use tempfile::TempDir;

use crate::components::howdy;
use crate::support::{
    AIRLOCK, CLIENT, Client, PATIENCE, Server, eventually, guest, installed, put, root, run, signal,
};

/// The exposure that `systemd-analyze security` may find at most, in tenths.
const MOST_EXPOSURE: u32 = 8;

/// The units as they are shipped, but for the path of this build's binary.
fn units() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for unit in ["airlock.service", "airlock.socket"] {
        let text = fs::read_to_string(root().join("deploy/systemd").join(unit)).unwrap();
        let text = text.replace("/usr/local/bin/airlock", AIRLOCK);
        assert_eq!(text.contains(AIRLOCK), unit == "airlock.service");
        fs::write(folder.path().join(unit), text).unwrap();
    }
    folder
}

fn analyze(units: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new("systemd-analyze");
    run(command.args(arguments).current_dir(units), b"")
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    if !installed("systemd-analyze") {
        return;
    }
    let verify = ["verify", "./airlock.service", "./airlock.socket"];
    let output = analyze(&units(), &verify);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn the_service_is_exposed_to_next_to_nothing() {
    if !installed("systemd-analyze") {
        return;
    }
    let threshold = format!("--threshold={MOST_EXPOSURE}");
    let output = analyze(
        &units(),
        &[
            "security",
            "--offline=true",
            &threshold,
            "./airlock.service",
        ],
    );
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
}

/// A server that was started with this listener as its descriptor 3, as systemd does it.
struct Activated(Mutex<Child>);

impl Activated {
    fn start(listener: &impl AsFd) -> Activated {
        let mut shell = Command::new("sh");
        shell.args(["-c", &handing_over("3<&0 </dev/null", 1)]);
        Activated::spawn(shell.stdin(descriptor(listener)))
    }

    /// The same, with another one as descriptor 4.
    fn start_with_two(listener: &TcpListener, other: &TcpListener) -> Activated {
        let mut shell = Command::new("sh");
        let redirections = "3<&0 4<&1 </dev/null >/dev/null";
        shell.args(["-c", &handing_over(redirections, 2)]);
        shell.stdin(descriptor(listener)).stdout(descriptor(other));
        Activated::spawn(&mut shell)
    }

    fn spawn(shell: &mut Command) -> Activated {
        let child = shell.stderr(Stdio::null()).spawn();
        Activated(Mutex::new(child.unwrap()))
    }

    fn end(self) {
        signal(self.0.lock().unwrap().id(), "TERM");
        eventually("the server ends", || {
            let status = self.0.lock().unwrap().try_wait().unwrap();
            status.is_some_and(|status| status.success())
        });
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let child = self.0.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn descriptor(listener: &impl AsFd) -> OwnedFd {
    listener.as_fd().try_clone_to_owned().unwrap()
}

/// A line of shell that becomes a server with these redirections, and says that they are `count`
/// sockets from systemd.
fn handing_over(redirections: &str, count: usize) -> String {
    format!("exec {redirections}; LISTEN_FDS={count} LISTEN_PID=$$ exec '{AIRLOCK}'")
}

fn greeted(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    assert_eq!(client.hear(), "Welcome!\n");
    client
}

#[test]
fn a_socket_that_was_handed_over_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Activated::start(&listener);
    let mut client = greeted(listener.local_addr().unwrap());
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    server.end();
    assert_eq!(client.rest(), "error: server is shutting down\n");
}

#[test]
fn a_unix_socket_that_was_handed_over_is_served_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = Activated::start(&listener);
    let address = format!("unix:{}", path.display());
    let mut client = Client::connect(address.parse::<Address>().unwrap());
    assert_eq!(client.hear(), "Welcome!\n");
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    server.end();
    assert!(path.exists(), "it is the service manager's");
}

#[test]
fn who_connects_between_two_servers_is_served_by_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = Activated::start(&listener);
    greeted(address);
    first.end();
    let mut waiting = Client::connect(address);
    waiting.send("Ada\n");
    let _second = Activated::start(&listener);
    assert_eq!(waiting.hear(), "Welcome!\n");
    assert_eq!(waiting.hear(), "Hello, Ada!\n");
}

/// As a process does that is told of a client and hands its listener over before it accepts.
#[test]
fn whoever_is_told_of_a_client_and_does_not_accept_keeps_nobody_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
    epoll::add(&epoll, &listener, EventData::new_u64(0), flags).unwrap();
    epoll::add(&epoll, &stopped, EventData::new_u64(1), EventFlags::IN).unwrap();
    let other = thread::spawn(move || {
        let mut times = 0;
        let mut events = [MaybeUninit::uninit(); 2];
        loop {
            let (events, _) = epoll::wait(&epoll, &mut events, None).unwrap();
            if events.iter().any(|event| event.data.u64() == 1) {
                return times;
            }
            times += 1;
        }
    });
    let _server = Activated::start(&listener);
    for _ in 0..10 {
        greeted(address);
    }
    drop(stop);
    assert!(other.join().unwrap() > 0);
}

#[test]
fn a_connection_starts_the_server() {
    if !installed("systemd-socket-activate") {
        return;
    }
    // It takes a port and does not say which: one at an address that is this process's own.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let address = SocketAddr::from((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 19999));
    let child = Command::new("systemd-socket-activate")
        .args([&format!("--listen={address}"), AIRLOCK])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Activated(Mutex::new(child.unwrap()));
    eventually("it listens", || {
        let output = run(
            Command::new(CLIENT).args(["--connect", &address.to_string(), "Ada"]),
            b"",
        );
        output.stdout == b"Welcome!\nHello, Ada!\n"
    });
}

/// The one line of a server that does not start with what these redirections make.
fn refused(redirections: &str, count: usize) -> String {
    // Unlike other shells this one makes sockets.
    let script = handing_over(redirections, count);
    let output = run(Command::new("bash").args(["-c", &script]), b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn a_socket_that_cannot_be_served_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (redirections, words) in [
        (
            format!("3<>/dev/udp/127.0.0.1/{port}"),
            "no listening socket of TCP or Unix (fd 3",
        ),
        (
            format!("3<>/dev/tcp/127.0.0.1/{port}"),
            "(it does not listen)",
        ),
        ("3</dev/null".to_owned(), "(fd 3 is not a socket)"),
        ("3<&-".to_owned(), "(fd 3 is not a socket)"),
    ] {
        let line = refused(&redirections, 1);
        assert!(line.contains(words), "{redirections}: {line}");
        assert!(line.contains("ListenStream= and Accept=no"), "{line}");
    }
}

#[test]
fn all_sockets_that_were_handed_over_are_served() {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let server = Activated::start_with_two(&listeners[0], &listeners[1]);
    for listener in &listeners {
        let mut client = greeted(listener.local_addr().unwrap());
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
    server.end();
}

/// Where there are several services, the names of the sockets say whose they are.
#[test]
fn sockets_go_to_the_services_that_they_are_named_after() {
    let folder = tempfile::tempdir().unwrap();
    let (file, shout) = (
        folder.path().join("airlock.toml"),
        folder.path().join("shout.wasm"),
    );
    fs::write(&shout, howdy()).unwrap();
    let text = |line: usize| {
        format!(
            r#"
            [service.greeter]
            max-line = {line}
            [service.shout]
            listen = "127.0.0.1:1"
            guest = "shout.wasm"
            "#
        )
    };
    fs::write(&file, text(100)).unwrap();
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|number: usize| listeners[number].local_addr().unwrap());
    let start = |names: &str| {
        let environment = format!(
            "LISTEN_FDNAMES={names} AIRLOCK_CONFIG={} LISTEN_FDS",
            file.display()
        );
        let redirections = "3<&0 4<&1 </dev/null >/dev/null";
        let line = handing_over(redirections, 2).replace("LISTEN_FDS", &environment);
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        shell
            .stdin(descriptor(&listeners[0]))
            .stdout(descriptor(&listeners[1]));
        shell
    };
    let server = Activated::spawn(&mut start("shout:greeter"));
    assert_eq!(greeted(addresses[0]).ask("Ada"), "Howdy, Ada!");
    assert_eq!(greeted(addresses[1]).ask("Ada"), "Hello, Ada!");
    // They stay where they are when the file changes, whatever it says.
    put(&file, text(2).as_bytes());
    eventually("the greeter takes shorter lines", || {
        greeted(addresses[1]).ask("Ada") == "error: line is longer than 2 bytes"
    });
    assert_eq!(greeted(addresses[0]).ask("Ada"), "Howdy, Ada!");
    server.end();
    let mut unknown = start("shout:shot");
    let output = unknown
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        line.contains("a socket for `shot`, which is no service"),
        "{line}"
    );
}

/// Two thousand million: a list of them takes seconds and gigabytes.
#[test]
fn more_sockets_than_there_can_be_are_refused_at_once() {
    for count in [1024, i32::MAX as usize, usize::MAX] {
        let line = refused("3<&-", count);
        assert!(line.contains(&format!("LISTEN_FDS is {count}")), "{line}");
    }
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let server = Server::start_command(
        Command::new(AIRLOCK)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_PID", "1"),
    );
    server.greeted();
}

/// What a service manager hears.
struct Notices {
    folder: TempDir,
    heard: Receiver<String>,
}

impl Notices {
    /// Listens until the test ends, so that no server ever waits for it.
    fn listen() -> Notices {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (hear, heard) = channel();
        thread::spawn(move || {
            let mut room = [0; 1024];
            while let Ok(count) = socket.recv(&mut room) {
                let notice = String::from_utf8_lossy(&room[..count]).into_owned();
                if hear.send(notice).is_err() {
                    break;
                }
            }
        });
        Notices { folder, heard }
    }

    /// A server that tells, and that systemd watches or not, whoever started this test.
    fn teller(&self, options: &[&str]) -> Command {
        let mut command = Command::new(AIRLOCK);
        command
            .args(options)
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID");
        command
    }

    fn next(&self) -> String {
        let notice = self.heard.recv_timeout(PATIENCE);
        notice.unwrap_or_else(|error| panic!("nothing was told: {error}"))
    }

    fn expect(&self, notice: &str) {
        assert_eq!(self.next(), format!("{notice}\n"));
    }

    /// A reload that began: with the time, or systemd takes it for another one's.
    fn expect_reloading(&self) {
        let notice = self.next();
        let time = notice.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time = time.and_then(|time| time.trim_end().parse::<u64>().ok());
        assert!(time.is_some_and(|time| time > 0), "{notice:?}");
    }
}

#[test]
fn the_beginning_and_the_end_are_told() {
    let notices = Notices::listen();
    let mut server = Server::start_command(&mut notices.teller(&[]));
    notices.expect("READY=1");
    server.greeted();
    server.signal("TERM");
    notices.expect("STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_server_that_cannot_start_is_never_ready() {
    let notices = Notices::listen();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&mut notices.teller(&["--listen", &address]), b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(notices.heard.try_recv().is_err());
}

#[test]
fn a_reload_is_told_and_so_is_its_end_whatever_came_of_it() {
    let notices = Notices::listen();
    let file = notices.folder.path().join("guest.wasm");
    fs::write(&file, airlock::GREETER).unwrap();
    let options = ["--no-watch", "--guest", file.to_str().unwrap()];
    let server = Server::start_command(&mut notices.teller(&options));
    notices.expect("READY=1");
    for (bytes, answer) in [
        (howdy(), "Howdy, Ada!"),
        (b"no component".to_vec(), "Howdy, Ada!"),
        (airlock::GREETER.to_vec(), "Hello, Ada!"),
    ] {
        fs::write(&file, bytes).unwrap();
        server.signal("HUP");
        notices.expect_reloading();
        notices.expect("READY=1");
        assert_eq!(server.greeted().ask("Ada"), answer);
    }
}

#[test]
fn a_server_that_is_watched_says_that_it_lives_also_while_it_drains() {
    let notices = Notices::listen();
    let guest = guest("hostile");
    let options = ["--call-timeout=1h", "--guest", guest.to_str().unwrap()];
    let mut command = notices.teller(&options);
    let mut server = Server::start_command(command.env("WATCHDOG_USEC", "200000"));
    notices.expect("READY=1");
    for _ in 0..3 {
        notices.expect("WATCHDOG=1");
    }
    let mut client = server.connect();
    assert_eq!(client.hear(), "ready\n");
    client.send("announce and spin\n");
    server.logged(&["spinning"]);
    server.signal("TERM");
    while notices.next() != "STOPPING=1\n" {}
    for _ in 0..3 {
        notices.expect("WATCHDOG=1");
    }
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(1));
}

#[test]
fn a_server_that_nobody_watches_does_not_say_that_it_lives() {
    let notices = Notices::listen();
    let mut command = notices.teller(&[]);
    // Watched is another process.
    command
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    let mut server = Server::start_command(&mut command);
    notices.expect("READY=1");
    server.greeted();
    server.signal("TERM");
    notices.expect("STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

/// `systemctl reload` waits for it (`Type=notify-reload`).
#[test]
fn an_order_to_reload_is_answered_also_where_there_is_nothing_to_do() {
    let notices = Notices::listen();
    let file = notices.folder.path().join("guest.wasm");
    fs::write(&file, airlock::GREETER).unwrap();
    let named = ["--no-watch", "--guest", file.to_str().unwrap()];
    for options in [&named[..], &[]] {
        let server = Server::start_command(&mut notices.teller(options));
        notices.expect("READY=1");
        for _ in 0..2 {
            server.signal("HUP");
            notices.expect_reloading();
            notices.expect("READY=1");
        }
    }
}

/// Of all services, and of those whose settings have changed.
#[test]
fn a_reload_of_several_services_is_told_once_and_has_ended_then() {
    let notices = Notices::listen();
    let path = |name: &str| notices.folder.path().join(name);
    let text = |line: usize| {
        format!(
            r#"
            [service.one]
            listen = "127.0.0.1:0"
            guest = "one.wasm"
            no-watch = true
            [service.two]
            listen = "127.0.0.1:0"
            guest = "two.wasm"
            no-watch = true
            max-line = {line}
            "#
        )
    };
    let file = path("airlock.toml");
    fs::write(&file, text(100)).unwrap();
    for guest in ["one.wasm", "two.wasm"] {
        fs::write(path(guest), airlock::GREETER).unwrap();
    }
    let mut command = notices.teller(&[]);
    let (mut server, addresses) = Server::of_file_by(command.arg("--config").arg(&file), 2);
    notices.expect("READY=1");
    fs::write(path("one.wasm"), howdy()).unwrap();
    // The server may see by itself that this has changed, which is no reload that was asked for.
    put(&file, text(2).as_bytes());
    server.signal("HUP");
    notices.expect_reloading();
    notices.expect("READY=1");
    assert_eq!(greeted(addresses[0].1).ask("Ada"), "Howdy, Ada!");
    assert_eq!(
        greeted(addresses[1].1).ask("Ada"),
        "error: line is longer than 2 bytes"
    );
    server.signal("TERM");
    notices.expect("STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

/// systemd has many others to listen to.
#[test]
fn connections_do_not_make_the_server_say_more_often_that_it_lives() {
    let notices = Notices::listen();
    let mut command = notices.teller(&[]);
    let mut server = Server::start_command(command.env("WATCHDOG_USEC", "3600000000"));
    notices.expect("READY=1");
    for _ in 0..20 {
        server.greeted();
    }
    server.signal("TERM");
    notices.expect("STOPPING=1");
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_service_manager_that_does_not_listen_holds_nothing_up_and_hears_it_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let others = UnixDatagram::unbound().unwrap();
    others.set_nonblocking(true).unwrap();
    let queued = iter::repeat_with(|| others.send_to(b"of others", &path));
    let queued = queued.take_while(Result::is_ok).count();
    assert!(queued > 0);

    let mut command = Command::new(AIRLOCK);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "10000")
        .env_remove("WATCHDOG_PID");
    let mut server = Server::start_command(&mut command);
    // Longer than it takes to say everything many times.
    for _ in 0..20 {
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
        thread::sleep(Duration::from_millis(10));
    }
    let hear = || {
        let mut room = [0; 100];
        let count = socket.recv(&mut room).unwrap();
        String::from_utf8_lossy(&room[..count]).into_owned()
    };
    assert!((0..queued).all(|_| hear() == "of others"));
    assert_eq!(hear(), "READY=1\n");
    assert_eq!(hear(), "WATCHDOG=1\n");
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
    while others.send_to(b"of others", &path).is_ok() {}
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}
