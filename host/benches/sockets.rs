//! Airlock against its native twin, over loopback: a plain server with a thread per connection and
//! the greeter's logic compiled in.
//!
//! The two run in turn, A B A B, each pinned to one core and the load to another; the figures are
//! medians. Machines differ and are shared, so the ratio is what counts.
//!
//! ```text
//! cargo bench --bench sockets
//! ```

#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, io};

use rustix::event::epoll;
use rustix::thread::{CpuSet, sched_setaffinity};

const ROUNDS: usize = 5;
const ROUND_TIME: Duration = Duration::from_secs(2);
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// Set for the child process that is the twin.
const TWIN: &str = "AIRLOCK_BENCH_TWIN";

fn main() {
    if env::var_os(TWIN).is_some() {
        return twin();
    }
    let loads: [(&str, &dyn Fn(SocketAddr) -> u64); 3] = [
        ("64 connections, 1 line in flight: lines/s", &|address| {
            converse(address, 64, 1)
        }),
        ("8 connections, 100 lines in flight: lines/s", &|address| {
            converse(address, 8, 100)
        }),
        ("connect, greeting, exit: connections/s", &churn),
    ];
    let airlock = Server::start(Command::new(env!("CARGO_BIN_EXE_airlock")).arg("-q"));
    let me = env::current_exe().expect("this program has a path");
    let twin = Server::start(Command::new(me).env(TWIN, "1"));
    pin(LOAD_CORE);

    println!(
        "{:45} {:>10} {:>10} {:>6}",
        "", "native", "airlock", "ratio"
    );
    for (name, load) in loads {
        let (mut native, mut sandboxed) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            native.push(load(twin.address));
            sandboxed.push(load(airlock.address));
        }
        let (native, sandboxed) = (median(native), median(sandboxed));
        let per_second = |count: u64| count as f64 / ROUND_TIME.as_secs_f64();
        println!(
            "{name:45} {:>10.0} {:>10.0} {:>6.2}",
            per_second(native),
            per_second(sandboxed),
            sandboxed as f64 / native as f64
        );
    }
}

fn median(mut counts: Vec<u64>) -> u64 {
    counts.sort_unstable();
    counts[counts.len() / 2]
}

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core % thread::available_parallelism().map_or(1, usize::from));
    sched_setaffinity(None, &cores).expect("a core to pin to");
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Server {
        // A child inherits the core.
        pin(SERVER_CORE);
        let mut child = command
            .env("AIRLOCK_LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the server says where it listens");
        let address = line.trim().rsplit(' ').next().and_then(|a| a.parse().ok());
        Server {
            child,
            address: address.expect("an address"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each connection always has `depth` lines under way. Returns how many were answered, rightly, in
/// one round's time.
fn converse(address: SocketAddr, connections: usize, depth: usize) -> u64 {
    let lines = "Michael\n".repeat(depth);
    let replies = "Hello, Michael!\n".repeat(depth);
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let mut clients: Vec<_> = (0..connections)
        .map(|_| {
            let mut stream = connect(address);
            stream.set_nonblocking(true).expect("a socket");
            stream
                .write_all(lines.as_bytes())
                .expect("room in a new socket");
            (stream, Vec::with_capacity(replies.len()))
        })
        .collect();
    for (number, (stream, _)) in clients.iter().enumerate() {
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&poll, stream, data, epoll::EventFlags::IN).expect("a socket");
    }
    let mut answered = 0;
    let mut events = Vec::with_capacity(connections);
    let mut room = [0; 64 * 1024];
    let deadline = Instant::now() + ROUND_TIME;
    while Instant::now() < deadline {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).expect("epoll waits");
        for event in &events {
            let (stream, received) = &mut clients[event.data.u64() as usize];
            let count = stream.read(&mut room).expect("a reply");
            assert_ne!(count, 0, "the server closed a connection");
            received.extend_from_slice(&room[..count]);
            if received.len() >= replies.len() {
                assert_eq!(received.as_slice(), replies.as_bytes());
                received.clear();
                answered += depth as u64;
                stream.write_all(lines.as_bytes()).expect("room for lines");
            }
        }
    }
    answered
}

/// Conversations of nothing but the greeting and the leave, four at a time.
fn churn(address: SocketAddr) -> u64 {
    let deadline = Instant::now() + ROUND_TIME;
    let clients = [(); 4].map(|()| {
        thread::spawn(move || {
            let mut count = 0;
            while Instant::now() < deadline {
                let mut stream = connect(address);
                stream.write_all(b"exit\n").expect("room in a new socket");
                assert_eq!(stream.read(&mut [0; 16]).expect("the end"), 0);
                count += 1;
            }
            count
        })
    });
    clients
        .into_iter()
        .map(|client| client.join().expect("no wrong reply"))
        .sum()
}

fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_nodelay(true).expect("a socket");
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"Welcome!\n");
    stream
}

/// The native twin: as fast as a thread per connection gets.
fn twin() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!(
        "listening on {}",
        listener.local_addr().expect("its address")
    );
    for stream in listener.incoming().flatten() {
        // Clients that leave in the middle are no concern of a benchmark.
        thread::spawn(move || greet(&stream));
    }
}

fn greet(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"Welcome!\n")?;
    let mut buffer = vec![0; 64 * 1024];
    let mut pending = 0;
    let mut replies = Vec::new();
    loop {
        let count = stream.read(&mut buffer[pending..])?;
        if count == 0 {
            return Ok(());
        }
        let end = pending + count;
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &buffer[start..end]) {
            let line = &buffer[start..start + length];
            start += length + 1;
            match str::from_utf8(line) {
                Ok("exit") => return stream.write_all(&replies),
                Ok(name) => {
                    replies.extend_from_slice(b"Hello, ");
                    replies.extend_from_slice(name.as_bytes());
                    replies.extend_from_slice(b"!\n");
                }
                Err(_) => return Ok(()),
            }
        }
        buffer.copy_within(start..end, 0);
        pending = end - start;
        stream.write_all(&replies)?;
        replies.clear();
    }
}
