//! What the parts of a connection cost, one at a time: framing, instantiation, greeting, one call; and
//! a whole one over loopback.
//!
//! ```text
//! cargo bench -p bench --bench parts
//! ```

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use airlock::GREETER;
use airlock::limits::Limits;
use airlock::limits::process::Process;
use airlock::limits::wire::LINE_BYTES;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::linking::Sandbox;
use airlock::sandbox::runtime::{Grants, Runtime, Scratch};
use airlock::sandbox::session::Session;
use airlock::serve::scheduling::Scheduling;
use airlock::talk::client::{Client, Endpoint};
use airlock::talk::framing::{Framing, Reader};
use airlock::talk::handler::Handler;
use bench::door::Door;
use bench::program;
use bench::servers::{self, Server};
use bench::twin::{self, Twin};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

static AIRLOCK: LazyLock<PathBuf> =
    LazyLock::new(|| program::build("bench").expect("an `airlock`"));
const AIRLOCK_BENCH: &str = env!("CARGO_BIN_EXE_airlock-bench");

/// A line as long as a name.
const LINE: &str = "Michael";

fn framing(criterion: &mut Criterion) {
    const LINES: usize = 1000;
    let input = format!("{LINE}\n").repeat(LINES);
    let mut group = criterion.benchmark_group("framing");
    group.throughput(Throughput::Elements(LINES as u64));
    group.bench_function("1000 lines", |bencher| {
        let mut reader = Reader::new(Framing::Lines, LINE_BYTES);
        bencher.iter(|| {
            let mut rest = input.as_bytes();
            while !rest.is_empty() {
                let room = reader.room();
                let (piece, after) = rest.split_at(rest.len().min(room.len()));
                room[..piece.len()].copy_from_slice(piece);
                reader.add(piece.len());
                rest = after;
                while let Some(message) = reader.next_message() {
                    black_box(message.text.is_ok());
                }
            }
        });
    });
    group.finish();
}

fn guest(criterion: &mut Criterion) {
    let process = Process::new(1000, 1 << 30);
    let host = Host::new(process, Compiler::new(&*AIRLOCK, false)).expect("an engine");
    let runtime = Runtime::new(&host, None, Grants::default(), Limits::new(1000));
    let sandbox = Sandbox::new(&runtime, GREETER, &|| true).expect("the greeter");
    let address = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 9999)));
    let client = Client {
        id: 1,
        peer: address.clone(),
        local: address,
        ..Client::NOBODY
    };
    let start =
        || Session::start(&sandbox, client.clone(), Scratch::default()).expect("an instance");
    criterion.bench_function("instantiate", |bencher| bencher.iter(start));
    criterion.bench_function("instantiate, greet", |bencher| {
        bencher.iter(|| start().greeting().expect("a greeting"));
    });
    criterion.bench_function("instantiate, greet, answer one line", |bencher| {
        bencher.iter(|| {
            let mut session = start();
            session.greeting().expect("a greeting");
            session.handle_line(LINE).expect("an answer")
        });
    });
    let mut session = start();
    criterion.bench_function("answer one line", |bencher| {
        bencher.iter(|| session.handle_line(black_box(LINE)).expect("an answer"));
    });
    criterion.bench_function("answer one line natively", |bencher| {
        bencher.iter(|| {
            let mut reply = String::new();
            twin::answer(black_box(LINE), &mut reply).then_some(reply)
        });
    });
}

/// Connect, greeting, a line, goodbye, one client after the other; the client's part is in it.
fn connection(criterion: &mut Criterion) {
    for (name, subject) in [
        (
            "a connection over loopback, natively",
            servers::native(Path::new(AIRLOCK_BENCH), Twin::Plain, &Door::TCP, &[]),
        ),
        (
            "a connection over loopback",
            servers::airlock(&AIRLOCK, &Door::TCP, Scheduling::PerConnection, &[]),
        ),
    ] {
        let server = Server::start(&subject, None).expect("a server");
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut stream =
                    TcpStream::connect(server.address.to_string()).expect("a connection");
                let said = format!("{LINE}\nexit\n");
                stream.write_all(said.as_bytes()).expect("a listener");
                let mut heard = String::new();
                stream.read_to_string(&mut heard).expect("answers");
                assert_eq!(heard, format!("Welcome!\nHello, {LINE}!\n"));
            });
        });
    }
}

criterion_group!(benches, framing, guest, connection);
criterion_main!(benches);
