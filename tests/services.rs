//! Several services in one server, and the walls between them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use airlock::GREETER;
use airlock::limits::Limits;
use airlock::limits::process::Process;
use airlock::process::shutdown::Shutdown;
use airlock::process::takeover::{Predecessor, TakeoverSocket};
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::{Grants, Runtime};
use airlock::serve::admission::Door;
use airlock::serve::listener::{self, TcpOptions};
use airlock::serve::scheduling::Scheduling;
use airlock::serve::server::{self, Drained, Manner, Offer};
use airlock::serve::service::Service;
use airlock::talk::framing::Framing;
use airlock::versions::assignment::Versions;
use airlock::versions::guest_file::{Fingerprint, GuestFile};
use airlock::versions::reload::{Known, Policy, Reload};
use airlock::versions::trial;
use tempfile::TempDir;

use crate::components::{component_with_memory, doing, howdy};
use crate::support::{self, AIRLOCK, Client, Mode, PATIENCE, eventually, guest, put, run};

const REFUSAL: &str = "error: too many connections\n";

/// One service of a process.
struct Plan {
    component: Vec<u8>,
    environment: Vec<(String, String)>,
    limits: Limits,
    doors: usize,
}

/// With all limits as they are when nothing else is asked for, at one address.
fn plan(component: &[u8]) -> Plan {
    Plan {
        component: component.to_vec(),
        environment: Vec::new(),
        limits: Limits::new(1000),
        doors: 1,
    }
}

fn limited(component: &[u8], limits: Limits) -> Plan {
    Plan {
        limits,
        ..plan(component)
    }
}

/// A server inside of this process, which ends when this is dropped.
struct Server {
    /// Of each service.
    addresses: Vec<Vec<SocketAddr>>,
    files: Vec<PathBuf>,
    shutdown: Shutdown,
    thread: Option<JoinHandle<Drained>>,
    _reloads: Vec<Reload>,
    _folder: TempDir,
}

impl Server {
    /// For so many services in a process with these bounds.
    fn start<const N: usize>(process: Process, plans: [Plan; N]) -> Server {
        Server::start_at(process, plans, None)
    }

    /// The same, which takes over from whoever waits at this path, and waits there for the next.
    fn start_at<const N: usize>(process: Process, plans: [Plan; N], path: Option<&Path>) -> Server {
        let process = Process {
            services: N,
            trials: N,
            ..process
        };
        let folder = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::new().unwrap();
        let before = path.and_then(|path| Predecessor::ask(path, &shutdown).unwrap());
        let theirs = before.as_ref().map(|before| before.listeners.iter());
        let mut theirs = theirs.into_iter().flatten();
        let mut all = Vec::new();
        let host = Host::new(process, Compiler::new(AIRLOCK, false)).unwrap();
        let (mut addresses, mut doors, mut reloads) = (Vec::new(), Vec::new(), Vec::new());
        let files = plans.iter().enumerate();
        let files: Vec<_> = files
            .map(|(number, _)| folder.path().join(format!("{number}.wasm")))
            .collect();
        for (plan, file) in plans.into_iter().zip(&files) {
            fs::write(file, &plan.component).unwrap();
            let seen = Fingerprint::of(file);
            let component = GuestFile::read(file).unwrap();
            let grants = Grants {
                environment: plan.environment,
                ..Grants::default()
            };
            let runtime = Runtime::new(&host, None, grants, plan.limits);
            let passed = trial::run(&runtime, &component.bytes, &|| true).unwrap();
            let versions = Versions::new(passed, component.digest);
            let service = Service::new(runtime, versions, Framing::Auto, None, &shutdown);
            let policy = Policy {
                file: file.clone(),
                watch: true,
                canary: None,
                max_age: None,
            };
            let known = Known::of(seen);
            reloads.push(service.reload(policy, known, &shutdown).unwrap());
            let listeners = (0..plan.doors).map(|_| match theirs.next() {
                Some(listener) => Arc::clone(listener),
                None => {
                    let any = "127.0.0.1:0".parse().unwrap();
                    Arc::new(listener::bind(any, &TcpOptions::default()).unwrap())
                }
            });
            let listeners: Vec<_> = listeners.collect();
            let bound = listeners.iter().map(|one| one.local_addr().unwrap());
            addresses.push(bound.map(|bound| bound.as_socket().unwrap()).collect());
            for listener in listeners {
                all.push(Arc::clone(&listener));
                doors.push(Door::new(listener, Arc::clone(&service), None, None).unwrap());
            }
        }
        assert!(theirs.next().is_none());
        let takeover =
            path.map(|path| TakeoverSocket::prepare(path, all, before, shutdown.clone()).unwrap());
        let manner = Manner {
            scheduling: match Mode::tested() {
                Mode::PerConnection => Scheduling::PerConnection,
                Mode::Shared(count) => Scheduling::Shared((count as usize).try_into().unwrap()),
            },
            watchdog_pause: None,
        };
        let offer = Offer::new().unwrap();
        offer.change(doors, Vec::new());
        let ends = shutdown.clone();
        let thread =
            thread::spawn(move || server::run(&offer, takeover, &host, manner, &ends).unwrap());
        Server {
            addresses,
            files,
            shutdown,
            thread: Some(thread),
            _reloads: reloads,
            _folder: folder,
        }
    }

    /// Waits until it has ended by itself.
    fn ended(&mut self) -> Drained {
        self.thread.take().unwrap().join().unwrap()
    }

    fn connect(&self, service: usize) -> Client {
        Client::connect(self.addresses[service][0])
    }

    /// Connects to a service of the greeter.
    fn greeted(&self, service: usize) -> Client {
        let mut client = self.connect(service);
        assert_eq!(client.hear(), "Welcome!\n");
        client
    }

    /// Connects to a service of the greeter until somebody is refused.
    fn fill(&self, service: usize) -> Vec<Client> {
        let mut inside = Vec::new();
        loop {
            let mut client = self.connect(service);
            match client.hear().as_str() {
                "Welcome!\n" => inside.push(client),
                refusal => {
                    assert_eq!(refusal, REFUSAL);
                    return inside;
                }
            }
        }
    }
}

/// Ends it, unless it has ended.
impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.drain();
        let drained = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(drained.is_none_or(|drained| drained.unwrap() == Drained::InTime));
        }
    }
}

/// The bounds of a process with room for so many connections.
fn process(connections: usize) -> Process {
    Process::new(connections, 1 << 30)
}

fn component(name: &str) -> Vec<u8> {
    fs::read(guest(name)).unwrap()
}

#[test]
fn each_service_answers_with_its_own_guest_at_each_of_its_addresses() {
    let greeter = Plan {
        doors: 3,
        ..plan(GREETER)
    };
    let hostile = Plan {
        environment: vec![("OF".to_owned(), "the third".to_owned())],
        ..plan(&component("hostile"))
    };
    let plans = [greeter, plan(&component("counter")), hostile];
    let server = Server::start(process(100), plans);
    let mut greeted = Vec::new();
    for &address in &server.addresses[0] {
        let mut client = Client::connect(address);
        assert_eq!(client.hear(), "Welcome!\n");
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
        greeted.push(client);
    }
    let mut counting = server.connect(1);
    let mut third = server.connect(2);
    assert_eq!(third.hear(), "ready\n");
    for count in 1..100 {
        assert_eq!(counting.ask("count"), count.to_string());
        for client in &mut greeted {
            assert_eq!(client.ask("Ada"), "Hello, Ada!");
        }
        assert_eq!(third.ask("tell"), "secret: ");
    }
    let local = server.addresses[1][0].to_string();
    assert_eq!(counting.ask("local"), local);
    // Each connection of the process has a number of its own.
    assert_eq!(counting.ask("id"), "4");
    let environment = third.ask("environment");
    assert!(
        environment.contains(r#"[("OF", "the third")]"#),
        "{environment}"
    );
}

#[test]
fn limits_are_those_of_the_service() {
    let mut limits = Limits::new(2);
    limits.wire.line_bytes = 10;
    limits.wire.idle_time = Duration::from_millis(200);
    limits.guest.call_time = Duration::from_millis(100);
    let hostile = component("hostile");
    let plans = [limited(&hostile, limits), plan(&hostile), plan(GREETER)];
    let server = Server::start(process(100), plans);
    let mut free = server.connect(1);
    assert_eq!(free.hear(), "ready\n");
    let mut bound = server.connect(0);
    assert_eq!(bound.hear(), "ready\n");
    let refusal = "error: line is longer than 10 bytes";
    assert_eq!(bound.ask("announce and work"), refusal);
    assert_eq!(bound.ask("sleep"), "error: the guest failed");
    let mut silent = server.connect(0);
    assert_eq!(silent.hear(), "ready\n");
    assert_eq!(silent.rest(), "error: timed out waiting for a line\n");
    assert_eq!(free.ask("announce and work"), "worked");
}

/// The process has room for it, since another service may have as much.
#[test]
fn a_guest_begins_with_no_more_memory_than_its_service_has() {
    let guest = component_with_memory(272, &doing(""));
    let host = Host::new(process(10), Compiler::new(AIRLOCK, false)).unwrap();
    let mut limits = Limits::new(10);
    let refused = |limits| {
        let runtime = Runtime::new(&host, None, Grants::default(), limits);
        trial::run(&runtime, &guest, &|| true).err()
    };
    assert!(refused(limits).is_none());
    limits.guest.memory_bytes = 16 << 20;
    let error = refused(limits).unwrap().to_string();
    let words = "it starts with 17825792 bytes of memory and the limit is 16777216";
    assert!(error.contains(words), "{error}");
}

#[test]
fn a_service_that_is_full_leaves_the_others_alone() {
    let mut limits = Limits::new(3);
    limits.connections_per_ip = 2;
    let plans = [
        limited(GREETER, Limits::new(4)),
        plan(GREETER),
        limited(GREETER, limits),
    ];
    let server = Server::start(process(100), plans);
    let mut inside = server.greeted(1);
    let full = server.fill(0);
    assert_eq!(full.len(), 4);
    // Where they come from counts for each service alone.
    assert_eq!(server.fill(2).len(), 2);
    for _ in 0..200 {
        assert_eq!(server.connect(0).rest(), REFUSAL);
        assert_eq!(inside.ask("Ada"), "Hello, Ada!");
    }
    let mut beside = server.greeted(1);
    assert_eq!(beside.ask("Ada"), "Hello, Ada!");
    drop(full);
    eventually("there is room again", || {
        server.connect(0).hear() == "Welcome!\n"
    });
}

#[test]
fn connections_are_kept_for_each_service_however_many_another_has() {
    // Half of them are for whoever comes first.
    let plans = [
        plan(GREETER),
        plan(GREETER),
        limited(GREETER, Limits::new(2)),
    ];
    let server = Server::start(process(48), plans);
    let first = server.fill(0);
    assert_eq!(first.len(), 48 - 8 - 2);
    let second = server.fill(1);
    assert_eq!(second.len(), 8);
    assert_eq!(server.fill(2).len(), 2);
    // What the others have given back is for them.
    drop(second);
    eventually("there is room again", || server.fill(1).len() == 8);
    assert_eq!(server.fill(0).len(), 0);
}

#[test]
fn memory_is_kept_for_each_service_however_much_another_has() {
    // Each instance has 17 MiB from the beginning, and 10 MiB more with the first line.
    let grows = "(if (i32.eq (memory.grow (i32.const 160)) (i32.const -1)) (then unreachable))";
    let guest = component_with_memory(272, &doing(grows));
    let process = Process::new(100, 256 << 20);
    let server = Server::start(process, [plan(&guest), plan(&guest)]);
    // 32 MiB for each of the two, and 192 MiB for both, of which an eighth is for growing. The guest
    // says nothing until it is asked, and what is refused is said at once.
    let mut inside = Vec::new();
    while inside.len() < 10 {
        inside.push(server.connect(0));
    }
    eventually("there is no room", || server.connect(0).rest() == REFUSAL);
    let mut other = server.connect(1);
    // The first service takes the rest of what is common.
    let mut answers = inside.iter_mut().map(|client| {
        client.send("grow\n");
        client.hear()
    });
    assert!(answers.any(|answer| answer == "error: the guest failed\n"));
    assert_eq!(other.ask("grow"), "");
    drop(other);
    eventually("there is room again", || {
        server.connect(1).ask("grow").is_empty()
    });
}

#[test]
fn guests_of_one_service_that_compute_delay_no_other_service() {
    let mut limits = Limits::new(100);
    limits.guest.call_time = Duration::from_secs(3);
    let plans = [limited(&component("hostile"), limits), plan(GREETER)];
    let server = Server::start(process(200), plans);
    let mut beside = server.greeted(1);
    let mut spinning: Vec<_> = (0..4).map(|_| server.connect(0)).collect();
    for client in &mut spinning {
        assert_eq!(client.hear(), "ready\n");
        client.send("spin\n");
    }
    for _ in 0..50 {
        assert_eq!(beside.ask("Ada"), "Hello, Ada!");
        assert_eq!(server.greeted(1).ask("Bob"), "Hello, Bob!");
    }
    for client in &mut spinning {
        assert_eq!(client.hear(), "error: the guest failed\n");
    }
}

#[test]
fn a_new_version_is_one_services_and_so_is_a_broken_one() {
    let plans = [plan(GREETER), plan(GREETER), plan(GREETER)];
    let server = Server::start(process(100), plans);
    let mut open: Vec<_> = (0..3).map(|service| server.greeted(service)).collect();
    put(&server.files[0], b"no component");
    put(&server.files[1], &howdy());
    eventually("the second has a new version", || {
        server.greeted(1).ask("Ada") == "Howdy, Ada!"
    });
    for service in [0, 2] {
        assert_eq!(server.greeted(service).ask("Ada"), "Hello, Ada!");
    }
    for client in &mut open {
        assert_eq!(client.ask("Ada"), "Hello, Ada!");
    }
    // What was broken can be put right.
    put(&server.files[0], &howdy());
    eventually("the first has a new version", || {
        server.greeted(0).ask("Ada") == "Howdy, Ada!"
    });
    assert_eq!(server.greeted(2).ask("Ada"), "Hello, Ada!");
}

#[test]
fn all_listeners_are_handed_over_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("airlock.sock");
    let start = || {
        let first = Plan {
            doors: 2,
            ..plan(GREETER)
        };
        Server::start_at(process(100), [first, plan(&howdy())], Some(&path))
    };
    let greet = |address, answer: &str| {
        let mut client = Client::connect(address);
        assert_eq!(client.hear(), "Welcome!\n");
        assert_eq!(client.ask("Ada"), answer);
        client.send("exit\n");
        assert_eq!(client.rest(), "");
    };
    let mut server = start();
    for _ in 0..3 {
        let addresses = server.addresses.clone();
        let (stop, began) = (AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            for (service, answer) in ["Hello, Ada!", "Howdy, Ada!"].into_iter().enumerate() {
                for &address in &addresses[service] {
                    let stop = &stop;
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) && began.elapsed() < PATIENCE {
                            greet(address, answer);
                        }
                    });
                }
            }
            let next = start();
            assert_eq!(next.addresses, addresses);
            assert_eq!(server.ended(), Drained::InTime);
            stop.store(true, Ordering::Relaxed);
            server = next;
        });
    }
}

#[test]
fn the_services_of_a_file_are_served_and_the_log_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("airlock.toml");
    let shout = folder.path().join("shout.wasm");
    fs::write(&shout, howdy()).unwrap();
    fs::copy(guest("hostile"), folder.path().join("hostile.wasm")).unwrap();
    let text = r#"
        [service.greeter]
        listen = ["127.0.0.1:0", "127.0.0.1:0"]
        [service.shout]
        listen = "127.0.0.1:0"
        guest = "shout.wasm"
        max-connections = 1
        [service.hostile]
        listen = "127.0.0.1:0"
        guest = "hostile.wasm"
        env = { OF = "the third" }
        "#;
    fs::write(&file, text).unwrap();
    let (mut server, addresses) = support::Server::of_file(&file, 4);
    let mut open = Vec::new();
    for (name, address) in &addresses {
        let service = format!("service={name}");
        server.logged(&["waiting for connections", &service, &address.to_string()]);
        let mut client = Client::connect(*address);
        let (greeting, answer) = match name.as_str() {
            "greeter" => ("Welcome!\n", "Hello, Ada!"),
            "shout" => ("Welcome!\n", "Howdy, Ada!"),
            _ => ("ready\n", "unknown: Ada"),
        };
        assert_eq!(client.hear(), greeting);
        assert_eq!(client.ask("Ada"), answer);
        let peer = client.address();
        server.logged(&["accepted", &service, &peer]);
        open.push((name.as_str(), *address, client));
    }
    let of = |name: &str| addresses.iter().find(|(other, _)| other == name).unwrap().1;
    assert_eq!(Client::connect(of("shout")).rest(), REFUSAL);
    server.logged(&["refusing connections", "service=shout", "--max-connections"]);
    let (_, _, hostile) = open
        .iter_mut()
        .find(|(name, ..)| *name == "hostile")
        .unwrap();
    assert_eq!(hostile.ask("forge"), "forged");
    server.logged(&[" guest service=hostile connection=", "stdout: closed"]);
    assert_eq!(hostile.ask("panic"), "error: the guest failed");
    server.logged(&["WARN closed", "service=hostile"]);
    // A signal reaches the file of each guest.
    server.signal("HUP");
    for name in ["shout", "hostile"] {
        let service = format!("service={name}");
        server.logged(&["the guest's file has not changed", &service]);
    }
    put(&shout, b"no component");
    server.logged(&["refused the new guest", "service=shout"]);
    put(&shout, GREETER);
    server.logged(&["new connections get a new version", "service=shout"]);
    server.signal("TERM");
    assert!(server.ended().success());
}

#[test]
fn a_service_that_cannot_be_served_is_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("airlock.toml");
    fs::write(folder.path().join("broken.wasm"), "no component").unwrap();
    let text = r#"
        [service.fine]
        listen = "127.0.0.1:0"
        [service.broken]
        listen = "127.0.0.1:0"
        guest = "broken.wasm"
        "#;
    fs::write(&file, text).unwrap();
    let output = run(Command::new(AIRLOCK).arg("--config").arg(&file), b"");
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        line.starts_with("airlock: service `broken`: cannot serve "),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
}
