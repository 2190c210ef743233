//! Connections that hear each other: Airlock beside the same natively, in Node, and in a Redis.
//!
//! Each server runs on one core and the load on the others. A server greets with `hello`, answers `ok` to
//! `hear TOPIC` and to `say TOPIC BODY`, and sends `TOPIC: BODY` to whoever hears that. (A guest that has it
//! relayed takes `relay TOPIC` and `tell TOPIC BODY`.) Every message is checked: it comes once, in its order,
//! to each. What is set against each other is the processor's time that the servers took, since the load
//! takes more than most of them.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "that is where a bench reports"
)]

mod load;
mod native;

use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use airlock::serve::scheduling::Scheduling;
use anyhow::{Context, Result};
use bench::cores::Cores;
use bench::door::Door;
use bench::open::make_room;
use bench::program;
use bench::servers::{self, Server, Subject};
use clap::Parser;

use crate::load::{Figures, Kind};

const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// Measure what a message costs that others hear
#[derive(Debug, Parser)]
#[command(name = "topics", bin_name = "cargo bench -p bench --bench topics --")]
struct Options {
    /// How often each server takes its turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,

    /// How long each turn lasts
    #[arg(long, value_name = "TIME", default_value = "1s")]
    duration: humantime::Duration,

    /// Connections that hear one, and pairs that talk
    #[arg(long, value_name = "N", default_value_t = 1000)]
    connections: usize,

    /// Be the native twin.
    #[arg(long, hide = true)]
    native: bool,

    /// From cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.native {
        return native::serve();
    }
    let airlock = program::build("release")?;
    let guest = program::build_guest("speaker")?;
    let itself = std::env::current_exe()?;
    let cores = Cores::split()?;
    make_room(2 * options.connections + 100)?;
    let airlock_options = [
        "--topics=memory:".to_owned(),
        format!("--guest={}", guest.display()),
        "--total-guest-memory=24GiB".to_owned(),
    ];
    let mut subjects = vec![(native(&itself), Kind::Lines)];
    let one = NonZero::<usize>::MIN;
    for scheduling in [Scheduling::Shared(one), Scheduling::PerConnection] {
        let subject = || servers::airlock(&airlock, &Door::TCP, scheduling, &airlock_options);
        let mut relaying = subject();
        relaying.name = match scheduling {
            Scheduling::Shared(_) => "Airlock, few threads, relayed",
            Scheduling::PerConnection => "Airlock, relayed",
        };
        subjects.extend([(relaying, Kind::Relayed), (subject(), Kind::Lines)]);
    }
    for (name, program, script, kind) in [
        ("Node", "node", "topics.mjs", Kind::Lines),
        ("Redis", "redis-server", "topics-redis.sh", Kind::Redis),
    ] {
        if Command::new(program).arg("--version").output().is_ok() {
            subjects.push((peer(name, script), kind));
        } else {
            eprintln!("{name} is left out: it is not installed");
        }
    }
    println!(
        "One to {0} that hear it, one message at a time; then {0} pairs that talk.\n",
        options.connections
    );
    println!(
        "| | deliveries/s of a core | of native | deliveries/s | p99, ms | pairs: messages/s of a core | of native | messages/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut figures = vec![(Vec::new(), Vec::new()); subjects.len()];
    for _ in 0..options.rounds {
        for ((subject, kind), (fans, pairs)) in subjects.iter().zip(&mut figures) {
            let run = |load: fn(&Server<'_>, Kind, usize, _) -> Result<Figures>| {
                let server = Server::start(subject, cores.as_ref())?;
                load(&server, *kind, options.connections, options.duration.into())
                    .with_context(|| subject.name)
            };
            fans.push(run(load::one_to_many)?);
            if *kind != Kind::Redis {
                pairs.push(run(load::pairs)?);
            }
        }
    }
    let mut native = None;
    for ((subject, _), (fans, pairs)) in subjects.iter().zip(&figures) {
        let (fan, pair) = (load::medians(fans), load::medians(pairs));
        let (native_fan, native_pair) = *native.get_or_insert((fan, pair));
        let ratio = |own: Option<Figures>, native: Option<Figures>| match (own, native) {
            (Some(own), Some(native)) => format!("{:.2}", own.per_core / native.per_core),
            _ => "–".to_owned(),
        };
        let shown = |figures: Option<Figures>, pick: fn(Figures) -> f64, digits| {
            figures.map_or("–".to_owned(), |figures| {
                format!("{:.*}", digits, pick(figures))
            })
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            subject.name,
            shown(fan, |one| one.per_core, 0),
            ratio(fan, native_fan),
            shown(fan, |one| one.per_second, 0),
            shown(fan, |one| one.p99_millis, 1),
            shown(pair, |one| one.per_core, 0),
            ratio(pair, native_pair),
            shown(pair, |one| one.per_second, 0),
        );
    }
    Ok(())
}

fn native(itself: &Path) -> Subject<'_> {
    let command = move || {
        let mut command = Command::new(itself);
        command.arg("--native");
        command
    };
    Subject {
        name: "tokio",
        address: Door::TCP.address("tokio"),
        command: Rc::new(command),
    }
}

fn peer(name: &'static str, script: &'static str) -> Subject<'static> {
    let command = move || {
        let program = if script.ends_with(".mjs") {
            "node"
        } else {
            "sh"
        };
        let mut command = Command::new(program);
        command.arg(format!("{PEERS}/{script}"));
        command
    };
    Subject {
        name,
        address: Door::TCP.address(name),
        command: Rc::new(command),
    }
}
