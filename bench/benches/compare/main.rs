//! The program behind `bench/compare`: servers that do the same, in turn under the same load.
//!
//! Every server takes a free port and prints `listening on ADDR:PORT`; each runs on one core and the
//! load on the others, or all of them share two. In every round of a measure all servers take their turn,
//! so that what else happens on the machine happens to all of them; a figure is the median of the
//! rounds. Nothing of Airlock is switched off: what it takes is with all its default limits.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "that is where a bench reports"
)]

mod curves;
mod measures;
mod page;
mod rounds;
mod subjects;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use airlock::settings::values;
use anyhow::Result;
use bench::cores::{self, Cores};
use bench::door::Door;
use bench::open::make_room;
use bench::program;
use bench::servers::{self, Subject};
use bench::twin::Twin;
use clap::Parser;

use crate::measures::{HELD, START_TIME, START_WANTED, TALKING, Wanted};
use crate::page::Place;
use crate::rounds::Rounds;
use crate::subjects::{EPOLL, FEW, NATIVE, OURS, PER_CONNECTION, Peer};
use crate::table::{Other, Remark, Table};

const AIRLOCK_BENCH: &str = env!("CARGO_BIN_EXE_airlock-bench");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Compare the greeter in Airlock with its native twin and with other languages
#[derive(Debug, Parser)]
#[command(name = "bench/compare", bin_name = "bench/compare")]
struct Options {
    /// Servers with two threads that share both cores with the load, instead of a core for each
    #[arg(long)]
    shared: bool,

    /// How often each server takes its turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How long each turn lasts
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::time)]
    duration: humantime::Duration,

    /// Where performance.md and its drawings are, from the top of the repository
    #[arg(long, value_name = "DIR", default_value = "docs")]
    output: PathBuf,

    /// From cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    // Cargo has changed the current folder.
    let folder = Path::new(ROOT).join(&options.output);
    fs::create_dir_all(&folder)?;
    let place = Place::find(&folder, options.shared)?;
    let airlock = program::build("bench")?;
    let figures = if options.shared {
        on_shared_cores(&options, &airlock)?
    } else {
        apart(&options, &airlock, &folder)?
    };
    place.fill(figures)
}

/// Each server on one core and the load on the others: the table, and the drawings into this folder.
fn apart(options: &Options, airlock: &Path, folder: &Path) -> Result<String> {
    const REMARKS: [Remark; 3] = [
        Remark {
            of: PER_CONNECTION,
            against: Other::Twin(NATIVE),
            says_wanted: true,
        },
        Remark {
            of: FEW,
            against: Other::Twin(EPOLL),
            says_wanted: false,
        },
        Remark {
            of: FEW,
            against: Other::Go,
            says_wanted: true,
        },
    ];
    let for_more = [curves::FOR_MORE.to_owned()];
    let peers = subjects::go(1)?.into_iter().chain(subjects::scripts());
    let (peers, versions) = described(peers);
    let with_peers = |options| {
        let ours = subjects::ours(airlock, Path::new(AIRLOCK_BENCH), options);
        ours.into_iter().chain(peers.clone()).collect::<Vec<_>>()
    };
    let subjects = with_peers(&[]);
    let mut rounds = Rounds::new(options, Cores::split()?);
    let table = Table::new(&subjects, &REMARKS);
    for load in TALKING.iter().chain([&HELD]) {
        make_room(rounds.plan(load.arguments)?.connections)?;
    }
    let mut report = said(table.heading(&versions, options)?);
    for load in TALKING.iter().chain([&HELD]) {
        for (row, figures) in rounds.rows(load, &subjects, OURS)? {
            let wanted = row.wanted;
            let wanted = [wanted.per_connection, wanted.per_connection, wanted.few];
            report += &said(table.row(row.title, &wanted, &figures));
        }
    }
    let start_times = rounds.start_times(&subjects, OURS)?;
    report += &said(table.row(START_TIME, &[START_WANTED; 3], &start_times));
    report += &curves::draw(&mut rounds, &subjects, &with_peers(&for_more), folder)?;
    Ok(report)
}

/// All servers with two threads, on the two cores that the load has too.
fn on_shared_cores(options: &Options, airlock: &Path) -> Result<String> {
    const REMARKS: [Remark; 1] = [Remark {
        of: 0,
        against: Other::Go,
        says_wanted: true,
    }];
    let (peers, versions) = described(subjects::go(2)?);
    let ours = [
        servers::airlock(airlock, &Door::TCP, subjects::few(2), &[]),
        servers::native(Path::new(AIRLOCK_BENCH), Twin::Epoll, &Door::TCP, &[]),
    ];
    let needed = ours.len();
    let subjects: Vec<_> = ours.into_iter().chain(peers).collect();
    cores::share()?;
    let mut rounds = Rounds::new(options, None);
    let table = Table::new(&subjects, &REMARKS);
    let mut report = said(table.heading(&versions, options)?);
    for load in &TALKING {
        for (row, figures) in rounds.rows(load, &subjects, needed)? {
            report += &said(table.row(row.title, &[Wanted::Part(1.0)], &figures));
        }
    }
    Ok(report)
}

/// The servers in other languages, and their versions in a line.
fn described(peers: impl IntoIterator<Item = Peer>) -> (Vec<Subject<'static>>, String) {
    peers
        .into_iter()
        .map(|peer| {
            let version = format!(" {}: {}.", peer.subject.name, peer.version);
            (peer.subject, version)
        })
        .unzip()
}

/// Printed as soon as it is known.
fn said(row: String) -> String {
    print!("{row}");
    row
}
