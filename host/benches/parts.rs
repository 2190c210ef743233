//! What the parts of a connection cost, one at a time: framing, instantiation, greeting, one call.
//!
//! ```text
//! cargo bench --bench parts
//! ```

use std::hint::black_box;
use std::net::SocketAddr;

use airlock::GREETER;
use airlock::conversation::Handler;
use airlock::framing::{Framing, Reader};
use airlock::limits::{LINE_BYTES, Limits};
use airlock::sandbox::{Compiled, Runtime, Sandbox};
use airlock::server::Client;
use airlock::session::Session;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

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
            let mut source = input.as_bytes();
            while reader.fill(&mut source).is_ok_and(|count| count > 0) {
                while let Some(message) = reader.next_message() {
                    black_box(message.text.is_ok());
                }
            }
        });
    });
    group.finish();
}

fn guest(criterion: &mut Criterion) {
    let limits = Limits::new(1000, 1 << 30);
    let runtime = Runtime::new(Vec::new(), limits, Compiled::Cached).expect("an engine");
    let sandbox = Sandbox::new(&runtime, GREETER).expect("the greeter");
    let address = SocketAddr::from(([127, 0, 0, 1], 9999));
    let client = Client {
        id: 1,
        peer: address,
        local: address,
    };
    let start = || Session::start(&sandbox, client).expect("an instance");
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
        bencher.iter(|| native_answer(black_box(LINE)));
    });
}

/// The greeter's logic without a sandbox.
fn native_answer(line: &str) -> Option<String> {
    match line {
        "exit" => None,
        name => Some(["Hello, ", name, "!"].concat()),
    }
}

criterion_group!(benches, framing, guest);
criterion_main!(benches);
