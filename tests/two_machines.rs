//! Several servers behind HAProxy, on machines of their own, with a Redis between them: what
//! docs/scale.md is about.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{AIRLOCK, Client, eventually, guest, installed, signal};

/// A network of a test's own: namespaces, which are its machines, at a bridge. Whoever runs in it is at
/// the bridge too.
const NETWORK: &str = r#"
    mount -t tmpfs none /run
    ip link set lo up
    ip link add lab type bridge
    ip address add 10.77.0.1/24 dev lab
    ip link set lab up
    for machine in one:11 two:12 redis:20 proxy:30; do
        name=${machine%:*}
        ip netns add $name
        ip link add $name type veth peer name eth0 netns $name
        ip link set $name master lab up
        ip -n $name address add 10.77.0.${machine#*:}/24 dev eth0
        ip -n $name link set eth0 up
        ip -n $name link set lo up
    done
    exec "$@""#;

const PROXY: SocketAddr = address(30, 9999);
const REDIS: SocketAddr = address(20, 6379);

const fn address(machine: u8, port: u16) -> SocketAddr {
    let ip = std::net::Ipv4Addr::new(10, 77, 0, machine);
    SocketAddr::new(std::net::IpAddr::V4(ip), port)
}

#[test]
fn two_machines_are_one_chat() {
    if ["ip", "unshare", "haproxy", "redis-server"]
        .iter()
        .any(|program| !installed(program))
    {
        return;
    }
    let inside = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command.args([
            "--map-root-user",
            "--net",
            "--mount",
            "sh",
            "-ec",
            NETWORK,
            "sh",
        ]);
        command.args(program);
        command
    };
    let output = inside(&["true"]).output().unwrap();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped: no network of its own: {error}");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let test = "two_machines::in_a_network_of_its_own";
    let status = inside(&[
        this.to_str().unwrap(),
        "--exact",
        test,
        "--ignored",
        "--nocapture",
    ])
    .status();
    assert!(status.unwrap().success());
}

/// A program on one of the machines.
struct Process(Child);

impl Process {
    /// Runs until it is dropped, and listens by now.
    fn start(machine: &str, command: &[&str], listens: SocketAddr) -> Process {
        let mut ip = Command::new("ip");
        let ip = ip.args(["netns", "exec", machine]).args(command);
        let process = Process(ip.stdin(Stdio::null()).spawn().unwrap());
        eventually("it listens", || TcpStream::connect(listens).is_ok());
        process
    }

    /// Tells it to end, and leaves it.
    fn end(&self) {
        signal(self.0.id(), "TERM");
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn airlock(machine: &str, number: u8) -> Process {
    let guest = format!("--guest={}", guest("chat").display());
    let listen = format!("--listen=10.77.0.{number}:9999?proxy-protocol=10.77.0.30");
    let options = [
        AIRLOCK,
        "-q",
        &guest,
        &listen,
        "--topics=redis://10.77.0.20",
        "--store=default=redis://10.77.0.20",
    ];
    Process::start(machine, &options, address(number, 9999))
}

fn redis(folder: &Path) -> Process {
    let folder = folder.to_str().unwrap();
    // What was acknowledged is on the disk.
    let options = [
        "redis-server",
        "--bind",
        "10.77.0.20",
        "--protected-mode",
        "no",
        "--dir",
        folder,
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--loglevel",
        "warning",
    ];
    Process::start("redis", &options, REDIS)
}

fn haproxy(folder: &Path) -> Process {
    let file = folder.join("haproxy.cfg");
    let text = "
        defaults
            mode tcp
            timeout connect 2s
            timeout client 10m
            timeout server 10m
            retries 5
            option redispatch 1
            default-server send-proxy-v2 check check-send-proxy inter 100ms fall 2 rise 1
        listen lines
            bind 10.77.0.30:9999
            balance leastconn
            server one 10.77.0.11:9999
            server two 10.77.0.12:9999
        ";
    fs::write(&file, text.trim_end().to_owned() + "\n").unwrap();
    let options = ["haproxy", "-f", file.to_str().unwrap()];
    Process::start("proxy", &options, PROXY)
}

/// Somebody in the chat.
struct Person(Client);

impl Person {
    /// Enters, as soon as there is a server that lets somebody in, and returns what was said before.
    fn enter() -> (Person, Vec<String>) {
        loop {
            let mut client = Client::connect(PROXY);
            match client.try_hear() {
                Some(line) if line.starts_with("* Welcome!") => {}
                _ => continue,
            }
            let here = client.hear();
            assert!(here.ends_with(" in lobby.\n"), "{here}");
            let mut person = Person(client);
            // What was said before is in one reply with that.
            let before = person.asks("");
            return (person, before);
        }
    }

    /// Says this, and returns all that it hears until that has been answered.
    fn asks(&mut self, line: &str) -> Vec<String> {
        self.says(line);
        self.says("/help");
        let mut heard = Vec::new();
        loop {
            match self.hears() {
                help if help.starts_with("* /nick") => return heard,
                line => heard.push(line),
            }
        }
    }

    fn says(&mut self, line: &str) {
        self.0.send(format!("{line}\n"));
    }

    /// A line without its ending.
    fn hears(&mut self) -> String {
        self.0.hear().trim_end().to_owned()
    }

    /// What somebody says next.
    fn hears_somebody(&mut self) -> String {
        loop {
            let line = self.hears();
            if line.starts_with('<') {
                return line;
            }
        }
    }
}

/// Has each of them say something at once, and returns what each hears. So many at a time that nobody
/// loses any of it.
fn chat(people: &mut [Person], word: &str) -> Vec<String> {
    const AT_ONCE: usize = 50;
    let mut heard = Vec::new();
    for start in (0..people.len()).step_by(AT_ONCE) {
        let end = people.len().min(start + AT_ONCE);
        for (number, person) in people[start..end].iter_mut().enumerate() {
            person.says(&format!("{word} {}", start + number));
        }
        let mut lines: Option<Vec<String>> = None;
        for person in &mut *people {
            let own: Vec<_> = (start..end).map(|_| person.hears_somebody()).collect();
            assert_eq!(*lines.get_or_insert_with(|| own.clone()), own);
        }
        heard.extend(lines.unwrap());
    }
    // Each of them, once.
    let said = heard.iter().map(|line| line.split_once("> ").unwrap().1);
    let mut said: Vec<_> = said.map(str::to_owned).collect();
    said.sort();
    let mut wanted: Vec<_> = (0..people.len())
        .map(|number| format!("{word} {number}"))
        .collect();
    wanted.sort();
    assert_eq!(said, wanted);
    heard
}

#[test]
#[ignore = "two_machines_are_one_chat runs it, in a network of its own"]
fn in_a_network_of_its_own() {
    const PEOPLE: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let mut redis_server = Some(redis(folder.path()));
    let (mut one, _two) = (airlock("one", 11), airlock("two", 12));
    let _proxy = haproxy(folder.path());
    let mut people: Vec<_> = (0..PEOPLE).map(|_| Person::enter().0).collect();
    let heard = chat(&mut people, "word");

    // Whoever comes now is shown the last of that, in the order in which it was kept.
    let (newcomer, before) = Person::enter();
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 20);
    assert!(before.iter().all(|line| heard.contains(line)), "{before:?}");
    drop(newcomer);

    // One machine is drained, and what is said meanwhile is heard by those of the other and found by
    // those who come back.
    one.end();
    eventually("it drains", || one.has_ended());
    let (mut staying, mut leaving) = (Vec::new(), 0);
    for mut person in people {
        person.says("/help");
        match person.0.try_hear() {
            Some(line) if line.starts_with("* /nick") => staying.push(person),
            Some(line) => {
                assert_eq!(line, "error: server is shutting down\n");
                leaving += 1;
            }
            None => panic!("it was not told of the end"),
        }
    }
    assert!(
        staying.len() >= PEOPLE / 4 && leaving >= PEOPLE / 4,
        "{leaving} have left"
    );
    let meanwhile: Vec<_> = (0..10)
        .map(|number| format!("meanwhile {number}"))
        .collect();
    for line in &meanwhile {
        staying[0].says(line);
    }
    for person in &mut staying {
        for line in &meanwhile {
            assert!(person.hears().ends_with(line));
        }
    }
    let _one = airlock("one", 11);
    for _ in 0..leaving {
        let (person, before) = Person::enter();
        let last: Vec<_> = before.iter().rev().take(meanwhile.len()).rev().collect();
        assert!(
            last.iter()
                .zip(&meanwhile)
                .all(|(line, said)| line.ends_with(said)),
            "{before:?}"
        );
        staying.push(person);
    }
    let mut people = staying;
    let heard = chat(&mut people, "again");

    // Without the Redis nobody is heard, everybody is answered, and nobody is let go.
    redis_server.take();
    let lost = |lines: &[String]| {
        lines
            .iter()
            .any(|line| line.starts_with("* Something was lost"))
    };
    let mut told = vec![false; people.len()];
    for (person, told) in people.iter_mut().zip(&mut told) {
        eventually("it is told", || {
            let heard = person.asks("anybody?");
            *told |= lost(&heard);
            heard
                .iter()
                .any(|line| line.starts_with("* Nobody can be reached"))
        });
    }
    redis_server = Some(redis(folder.path()));
    // All are told that something may have been lost.
    for (person, mut told) in people.iter_mut().zip(told) {
        eventually("it is told", || {
            told |= lost(&person.asks(""));
            told
        });
    }
    chat(&mut people, "back");
    let (_, before) = Person::enter();
    assert_eq!(before.len(), 20);
    assert!(before.iter().all(|line| !heard.contains(line)));
    drop(redis_server);
}
