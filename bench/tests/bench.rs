//! `airlock-bench` against servers that answer rightly, wrongly, and not at all. How fast they are
//! is no matter here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::{Barrier, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use bench::door::Door;
use bench::program;
use bench::servers::{self, Server, Subject};
use bench::twin::Twin;
use serde_json::Value;

const AIRLOCK_BENCH: &str = env!("CARGO_BIN_EXE_airlock-bench");

/// As `airlock-bench` builds it and the guest, so that neither is built twice.
static AIRLOCK: LazyLock<PathBuf> = LazyLock::new(|| {
    program::build_guest("keeper").unwrap();
    program::build(program::PROFILE).unwrap()
});

const SHORT: &str = "--duration=200ms";

/// With a short duration, if none is named.
fn bench(arguments: &[&str]) -> Output {
    // Built before the time begins to run.
    LazyLock::force(&AIRLOCK);
    let mut command = Command::new("timeout");
    command.args(["30", AIRLOCK_BENCH]);
    let has_one = arguments.iter().any(|one| one.starts_with("--duration"));
    command.args((!has_one).then_some(SHORT)).args(arguments);
    command.output().unwrap()
}

/// An Airlock with these options.
fn airlock(options: &'static [&'static str]) -> Server<'static> {
    let command = move || {
        let mut command = Command::new(&*AIRLOCK);
        command.args(["--listen=127.0.0.1:0", "-q"]).args(options);
        command
    };
    let subject = Subject {
        name: "Airlock",
        address: Door::TCP.address("airlock"),
        command: Rc::new(command),
    };
    Server::start(&subject, None).unwrap()
}

/// What a bench prints that ends well.
fn report(arguments: &[&str]) -> String {
    let output = bench(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_report(arguments: &[&str]) -> Value {
    let all = [&["--json"], arguments].concat();
    serde_json::from_str(&report(&all)).unwrap()
}

/// The one line of a bench that ends badly.
fn complaint(arguments: &[&str]) -> String {
    let output = bench(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    stderr
}

/// A server that is not Airlock. Each connection is given to `talk`, with the lines it sends.
fn foreign(talk: fn(&TcpStream, &mut dyn Iterator<Item = String>)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let lines = BufReader::new(&stream).lines();
                talk(&stream, &mut lines.map_while(Result::ok));
            });
        }
    });
    address
}

#[test]
fn a_unix_socket_is_measured_too() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", folder.path().join("door.sock").display());
    let listen: &'static str = format!("--listen={address}").leak();
    let options: &'static [&'static str] = vec![listen].leak();
    let _server = airlock(options);
    for mode in ["ping", "pipeline", "churn", "hold"] {
        let report = json_report(&[&address, "--mode", mode, "--connections=10"]);
        assert_eq!(report["errors"], 0, "{report}");
        assert!(report["answered"].as_f64().unwrap() >= 10.0, "{report}");
    }
}

#[test]
fn airlock_and_its_twins_are_measured_over_every_door() {
    for (door, mode, threads) in [
        ("unix", "ping", "1"),
        ("tls", "ping", "per-connection"),
        ("tls", "pipeline", "1"),
        ("tls", "churn", "per-connection"),
        ("tls", "churn", "1"),
        ("ws", "ping", "1"),
        ("wss", "pipeline", "per-connection"),
        ("wss", "churn", "per-connection"),
        ("wss", "hold", "1"),
    ] {
        let arguments = ["--door", door, "--mode", mode, "--threads", threads];
        let report = json_report(&[&["--rounds=1", "--connections=10"], &arguments[..]].concat());
        assert_eq!(report["door"], door);
        assert_eq!(report["beside"], "native");
        for server in ["native", "airlock"] {
            let run = &report[server][0];
            assert_eq!(run["errors"], 0, "{report}");
            assert!(run["answered"].as_f64() >= Some(10.0), "{report}");
        }
    }
}

#[test]
fn haproxy_takes_the_place_of_the_twin() {
    let arguments = ["--door=tls", "--haproxy", "--mode=churn", "--rounds=1"];
    let report = json_report(&arguments);
    assert_eq!(report["beside"], "haproxy");
    assert_eq!(report["native"][0]["errors"], 0, "{report}");
}

/// A Redis at a socket in this folder.
struct Redis(Child);

impl Redis {
    fn start(socket: &Path) -> Redis {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]);
        let started = command.arg(socket).stdout(Stdio::null()).spawn();
        let redis = Redis(started.unwrap());
        eventually("it listens", || UnixStream::connect(socket).is_ok());
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_store_is_measured_beside_a_twin_that_has_one_like_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name).display().to_string();
    let socket = path("redis.sock");
    let _redis = Redis::start(socket.as_ref());
    let file = format!("file:{}", path("a.db"));
    let relaxed = format!("file:{}?durability=relaxed", path("b.db"));
    for store in [
        "memory:",
        &file,
        &relaxed,
        &format!("redis+unix://{socket}"),
    ] {
        for operation in ["get", "set", "increment"] {
            let arguments = ["--store", store, "--operation", operation];
            let report = json_report(&[&["--rounds=1"], &arguments[..]].concat());
            assert_eq!(report["operation"], operation);
            for server in ["native", "airlock"] {
                let run = &report[server][0];
                assert_eq!(run["errors"], 0, "{report}");
                assert!(run["answered"].as_f64() >= Some(64.0), "{report}");
            }
        }
    }
    for written in ["a.db", "a.db.twin", "b.db", "b.db.twin"] {
        assert!(folder.path().join(written).exists(), "{written}");
    }
}

#[test]
fn every_mode_measures_a_server_that_answers_rightly() {
    let server = airlock(&[]);
    let address = server.address.to_string();
    for mode in ["ping", "pipeline", "churn", "hold"] {
        for rate in [&[][..], &["--rate=500"]] {
            if mode == "hold" && !rate.is_empty() {
                continue;
            }
            let arguments = [&[&address, "--mode", mode, "--connections=10"], rate].concat();
            let report = json_report(&[&arguments[..], &["--load-threads=3"]].concat());
            let number = |name: &str| report[name].as_f64().unwrap();
            assert_eq!(report["mode"], mode);
            assert_eq!(report["connections"], 10);
            assert_eq!(report["errors"], 0);
            assert!(number("answered") >= 1.0, "{report}");
            assert!(number("per_second") > 0.0, "{report}");
            match mode {
                "hold" => {
                    assert_eq!(report["answered"], 10);
                    assert!(number("all_greeted_seconds") > 0.0, "{report}");
                }
                // A tenth of a second's lines, whatever the server can do.
                _ if !rate.is_empty() => {
                    assert_eq!(number("answered") + number("never_sent"), 100.0, "{report}");
                }
                _ => {}
            }
            let latency = |name: &str| report["latency_seconds"][name].as_f64().unwrap();
            assert!(latency("p50") > 0.0, "{report}");
            for pair in ["p50", "p90", "p99", "p99.9", "max"].windows(2) {
                assert!(latency(pair[0]) <= latency(pair[1]), "{report}");
            }
        }
    }
    let text = report(&[&address, "--mode=hold"]);
    assert!(text.contains("all greeted  within"), "{text}");
    let text = report(&[&address]);
    for words in [
        "ping: 64 connections",
        "throughput",
        "p99.9",
        "errors       0",
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_stall_counts_for_every_line_that_was_due_meanwhile() {
    let server = airlock(&["--env=DELAY_MS=100"]);
    let address = server.address.to_string();
    let arguments = [
        address.as_str(),
        "--connections=1",
        "--rate=50",
        "--duration=1s",
    ];
    let report = json_report(&arguments);
    // 10 lines are answered in the second, and each has waited 80 ms longer than the one before.
    let longest = report["latency_seconds"]["max"].as_f64().unwrap();
    assert!(longest > 0.5, "{report}");
    assert!(report["never_sent"].as_f64().unwrap() >= 35.0, "{report}");
}

#[test]
fn a_wrong_reply_is_an_error() {
    let server = airlock(&["--env=GREETING=Hi"]);
    let address = server.address.to_string();
    for mode in ["ping", "churn", "hold"] {
        let complaint = complaint(&[&address, "--mode", mode]);
        assert!(
            complaint.contains("the greeting is `Hi`, not `Welcome!`"),
            "{complaint}"
        );
    }
    for mode in ["ping", "pipeline", "hold"] {
        let expecting = ["--greeting=Hi", "--expect=Hi, Michael!", "--mode", mode];
        let complaint = complaint(&[&[address.as_str()], &expecting[..]].concat());
        assert!(
            complaint.contains("a reply is `Hello, Michael!`, not `Hi, Michael!`"),
            "{complaint}"
        );
    }
    let complaint = complaint(&[&address, "--greeting=Hi", "--mode=churn", "--leave=Ada"]);
    assert!(
        complaint.contains("is `Hello, Ada!`, not ``"),
        "{complaint}"
    );
}

#[test]
fn what_went_well_before_an_error_is_reported() {
    let address = foreign(|mut stream, lines| {
        let _ = stream.write_all(b"Welcome!\n");
        for line in lines.take(3) {
            let _ = writeln!(stream, "Hello, {line}!");
        }
    });
    let address = address.to_string();
    let output = bench(&[&address, "--connections=2", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["answered"], &report["errors"]),
        (&6.into(), &2.into())
    );
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("2 connections failed"), "{complaint}");
}

#[test]
fn a_missing_reply_is_an_error() {
    let silent = foreign(|mut stream, lines| {
        let _ = stream.write_all(b"Welcome!\n");
        lines.for_each(drop);
    });
    let mute = foreign(|_, lines| lines.for_each(drop));
    let doubling = foreign(|mut stream, lines| {
        let _ = stream.write_all(b"Welcome!\n");
        for line in lines {
            let _ = write!(stream, "Hello, {line}!\nHello, {line}!\n");
        }
    });
    for (address, mode, what) in [
        (silent, "ping", "an answer did not come within 100ms"),
        (silent, "churn", "the close did not come within 100ms"),
        (silent, "hold", "an answer did not come within 100ms"),
        (mute, "pipeline", "the greeting did not come within 100ms"),
        (mute, "churn", "the greeting did not come within 100ms"),
        (doubling, "ping", "more replies than"),
    ] {
        let address = address.to_string();
        let few = ["--connections=2", "--timeout=100ms", "--mode", mode];
        let complaint = complaint(&[&[address.as_str()], &few[..]].concat());
        assert!(complaint.contains(what), "{mode}: {complaint}");
    }
}

#[test]
fn those_that_are_held_come_all_at_once() {
    const ALL: usize = 100;
    static HERE: Barrier = Barrier::new(ALL);
    let address = foreign(|mut stream, lines| {
        HERE.wait();
        let _ = stream.write_all(b"Welcome!\n");
        for line in lines {
            let _ = writeln!(stream, "Hello, {line}!");
        }
    });
    let connections = format!("--connections={ALL}");
    let report = json_report(&[&address.to_string(), "--mode=hold", &connections]);
    assert_eq!(report["answered"], ALL);
}

#[test]
fn other_servers_can_be_loaded() {
    let address = foreign(|mut stream, lines| {
        for line in lines.take_while(|line| line != "QUIT") {
            assert_eq!(line, "PING");
            let _ = stream.write_all(b"+PONG\r\n");
        }
    });
    let address = address.to_string();
    for mode in ["ping", "pipeline", "hold", "churn"] {
        let talk = ["--no-greeting", "--line=PING", "--expect=+PONG", "--crlf"];
        let more = ["--leave=QUIT", "--connections=5", "--mode", mode];
        let report = json_report(&[&[address.as_str()], &talk[..], &more].concat());
        assert!(report["answered"].as_u64() >= Some(5), "{report}");
    }
    let without_a_word = ["--no-greeting", "--leave=", "--mode=churn"];
    let report = json_report(&[&[address.as_str()], &without_a_word[..]].concat());
    assert!(report["answered"].as_u64() > Some(0), "{report}");
}

#[test]
fn where_nobody_listens_one_line_says_so() {
    // Bound and not listening: nobody else can have the port meanwhile.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap()
        .to_string();
    for mode in ["ping", "pipeline", "churn", "hold"] {
        let complaint = complaint(&[&address, "--mode", mode]);
        let expected = format!("airlock-bench: cannot connect to {address}: Connection refused");
        assert!(complaint.starts_with(&expected), "{complaint}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    // Another server has its threads already.
    let refused = bench(&["127.0.0.1:9", "--threads=1"]);
    assert_eq!(refused.status.code(), Some(2));
    let refused = bench(&["127.0.0.1:9", "--", "-v"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(complaint(&["--depth=2"]).contains("--mode pipeline"));
    assert!(complaint(&["--mode=hold", "--rate=2"]).contains("--mode hold"));
    assert!(complaint(&["--haproxy"]).contains("--door tls"));
    assert!(complaint(&["--store=memory:", "--mode=churn"]).contains("connections that stay"));
    assert!(complaint(&["ws://127.0.0.1:9", "--crlf"]).contains("not for ws://"));
    assert!(complaint(&["--connections=4000000000"]).contains("open files"));
}

#[test]
fn a_plot_is_an_svg_with_a_curve_for_each_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latency.svg");
    let plot = format!("--plot={}", path.display());
    let server = airlock(&[]);
    for (arguments, names) in [
        (
            vec![server.address.to_string()],
            vec![server.address.to_string()],
        ),
        (
            vec!["--rounds=1".to_owned()],
            vec!["native".to_owned(), "airlock".to_owned()],
        ),
    ] {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        report(&[&arguments, &["--connections=2", &plot][..]].concat());
        let svg = fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for name in names {
            assert!(svg.contains(&name), "{name}");
        }
    }
    let address = server.address.to_string();
    let output = bench(&[&address, "--plot=/dev/null/latency.svg"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("cannot draw `/dev/null/latency.svg`"),
        "{stderr}"
    );
}

#[test]
fn without_an_address_both_servers_run_in_turn() {
    for mode in ["ping", "pipeline", "churn", "hold"] {
        let arguments = ["--rounds=2", "--connections=20", "--mode", mode];
        let compared = json_report(&arguments);
        let first = match mode {
            "hold" => "resident_bytes_per_connection",
            _ => "per_second",
        };
        assert_eq!(compared["threads"], "per-connection");
        for server in ["native", "airlock"] {
            assert_eq!(compared[server].as_array().unwrap().len(), 2);
            for round in compared[server].as_array().unwrap() {
                assert!(round["answered"].as_u64() >= Some(1), "{compared}");
                assert!(round[first].is_number(), "{compared}");
            }
        }
        assert_eq!(compared["ratio"], compared["medians"][first]["ratio"]);
    }
    // What the user has set for a server of his own is not for these.
    let text = Command::new(AIRLOCK_BENCH)
        .args([SHORT, "--rounds=1"])
        .env("AIRLOCK_ENV", "GREETING=Hi")
        .env("AIRLOCK_MAX_CONNECTIONS", "1")
        .output()
        .unwrap();
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    let mut lines = text.lines().skip(1);
    let words = |line: Option<&str>| -> Vec<String> {
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(words(lines.next()), ["native", "airlock", "ratio"]);
    let row = words(lines.next());
    assert_eq!((row[0].as_str(), row.len()), ("lines/s", 4));
    assert!(
        row[1..]
            .iter()
            .all(|number| number.parse::<f64>().unwrap() > 0.0)
    );
}

#[test]
fn airlock_has_the_options_that_are_for_it() {
    let few = ["--mode=hold", "--connections=20", "--rounds=1", "--"];
    let enough = json_report(&[&few[..], &["--max-connections=20"]].concat());
    assert_eq!(enough["airlock_options"][0], "--max-connections=20");
    let complaint = complaint(&[&few[..], &["--env=GREETING=Hi"]].concat());
    assert!(
        complaint.contains("Airlock: the greeting is `Hi`"),
        "{complaint}"
    );
}

#[test]
fn few_threads_are_set_against_a_twin_with_one() {
    for mode in ["ping", "pipeline", "churn", "hold"] {
        let few = ["--threads=1", "--connections=20", "--rounds=1"];
        let compared = json_report(&[&few[..], &["--mode", mode]].concat());
        assert_eq!(compared["threads"], "1");
        for server in ["native", "airlock"] {
            assert!(compared[server][0]["answered"].as_u64() >= Some(1));
        }
    }
    let few = ["--threads=2", "--connections=500", "--duration=1m"];
    let (mut bench, servers) = with_both_servers(&few);
    let entries = |server, folder| {
        let folder = Path::new("/proc").join(format!("{server}/{folder}"));
        fs::read_dir(folder).map_or(0, Iterator::count)
    };
    let is = |server: &u32, argument: &str| {
        let line = fs::read_to_string(format!("/proc/{server}/cmdline"));
        line.is_ok_and(|line| line.split('\0').any(|part| part == argument))
    };
    let twin = servers.iter().find(|server| is(server, "--twin=epoll"));
    assert!(servers.iter().any(|server| is(server, "--threads=2")));
    let twin = twin.unwrap();
    eventually("all have come", || entries(twin, "fd") > 500);
    assert_eq!(entries(twin, "task"), 1);
    bench.kill().unwrap();
    bench.wait().unwrap();
}

/// Many lines in few pieces, whose ends are anywhere.
#[test]
fn every_twin_serves_the_greeter() {
    const LINES: usize = 1_000_000;
    for twin in [Twin::Plain, Twin::Shim, Twin::Epoll] {
        let subject = servers::native(Path::new(AIRLOCK_BENCH), twin, &Door::TCP, &[]);
        let server = Server::start(&subject, None).unwrap();
        let client = TcpStream::connect(server.address.to_string()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut heard = BufReader::new(&client).lines().map(Result::unwrap);
        assert_eq!(heard.next().unwrap(), "Welcome!", "{twin:?}");
        for piece in ["A", "da\nBob", "\n"] {
            (&client).write_all(piece.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(heard.next().unwrap(), "Hello, Ada!", "{twin:?}");
        assert_eq!(heard.next().unwrap(), "Hello, Bob!", "{twin:?}");
        thread::scope(|scope| {
            // Far more than the kernel has room for.
            scope.spawn(|| {
                let lines = "Michael\n".repeat(LINES) + "exit\n";
                let _ = (&client).write_all(lines.as_bytes());
            });
            thread::sleep(Duration::from_millis(100));
            let greetings = heard.inspect(|line| assert_eq!(line, "Hello, Michael!"));
            assert_eq!(greetings.count(), LINES, "{twin:?}");
        });
    }
}

/// The processes that this one has started, and that run.
fn children(process: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|&id| state(id).is_some_and(|(_, parent)| parent == process))
        .collect()
}

/// The state of a process and its parent.
fn state(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat"));
    let stat = stat.ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Starts a bench and waits for its two servers.
fn with_both_servers(arguments: &[&str]) -> (Child, Vec<u32>) {
    let bench = Command::new(AIRLOCK_BENCH)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("both servers run", || children(bench.id()).len() == 2);
    let servers = children(bench.id());
    (bench, servers)
}

#[test]
fn no_server_is_left_however_a_bench_ends() {
    let have_ended = |servers: &[u32]| {
        let mut states = servers.iter().filter_map(|&server| state(server));
        states.all(|(state, _)| state == 'Z')
    };
    let (mut bench, servers) = with_both_servers(&["--duration=500ms", "--rounds=1"]);
    assert!(bench.wait().unwrap().success());
    assert!(have_ended(&servers));

    let late = [
        "--line=exit",
        "--rate=2",
        "--connections=1",
        "--duration=1m",
    ];
    let (mut bench, servers) = with_both_servers(&late);
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    assert!(have_ended(&servers));

    let (mut bench, servers) = with_both_servers(&["--duration=1m"]);
    bench.kill().unwrap();
    bench.wait().unwrap();
    eventually("the servers end with a killed bench", || {
        have_ended(&servers)
    });
}

/// Waits until a condition holds that nothing announces.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
