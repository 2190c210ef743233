//! The program behind `bench/compare`: servers that do the same, in turn under the same load.
//!
//! Every server takes a free port and prints `listening on ADDR:PORT`; each runs on one core and the
//! load on the others. In every round of a measure all servers take their turn, so that what else
//! happens on the machine happens to all of them; a figure is the median of the rounds. Nothing of
//! Airlock is switched off: what it takes is with all its default limits.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "that is where a bench reports"
)]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{fmt, fs};

use airlock::cli;
use airlock::serve::scheduling::Scheduling;
use anyhow::{Context, Result, anyhow};
use bench::cores::Cores;
use bench::measured::Measured;
use bench::open::make_room;
use bench::plan::Plan;
use bench::plot::{self, Axes, Curve};
use bench::progress::Progress;
use bench::servers::{self, Server, Subject};
use bench::turns::{self, Turns};
use bench::twin::Twin;
use bench::{options, program, report};
use clap::Parser;

const AIRLOCK_BENCH: &str = env!("CARGO_BIN_EXE_airlock-bench");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// So many servers, the first ones, are ours and have to be able to take their turns: Airlock in both
/// modes, each behind the twin that it is set against, and its shim.
const OURS: usize = 5;
const NATIVE: usize = 0;
const AIRLOCK: usize = 1;
const EPOLL: usize = 2;
const FEW: usize = 3;

/// Points of the curves.
const CONNECTIONS: [usize; 4] = [8, 64, 512, 4096];

/// Where performance.md says that a newer Go than the installed one is put.
const NEWEST_GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/go/go/bin/go");

/// What stands before and behind the figures in performance.md.
const MARKS: [&str; 2] = ["<!-- made by bench/compare -->\n", "<!-- to here -->\n"];

/// Compare the greeter in Airlock with its native twin and with other languages
#[derive(Debug, Parser)]
#[command(name = "bench/compare", bin_name = "bench/compare")]
struct Options {
    /// How often each server takes its turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How long each turn lasts
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = cli::time)]
    duration: humantime::Duration,

    /// Where performance.md and its drawings are, from the top of the repository
    #[arg(long, value_name = "DIR", default_value = "docs")]
    output: PathBuf,

    /// From cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured of every server: a row of the table.
struct Measure {
    title: &'static str,
    /// Those of `airlock-bench`.
    arguments: &'static str,
    value: fn(&Measured) -> f64,
    /// How Airlock's figure is set against the native twin's, and what is wanted of it.
    wanted: Wanted,
    /// The same with few threads, of Go's.
    wanted_of_few: Wanted,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// At least this part of it.
    Part(f64),
    /// At most this much more.
    More(f64),
    /// At most this much, whatever the other does.
    AtMost(f64),
}

const MEASURES: [Measure; 7] = [
    Measure {
        title: "1 connection, 1 line in flight: lines/s",
        arguments: "--mode=ping --connections=1",
        value: Measured::per_second,
        wanted: Wanted::Part(0.95),
        wanted_of_few: Wanted::Part(1.0),
    },
    Measure {
        title: "64 connections, 1 line in flight: lines/s",
        arguments: "--mode=ping --connections=64",
        value: Measured::per_second,
        wanted: Wanted::Part(0.8),
        wanted_of_few: Wanted::Part(1.0),
    },
    Measure {
        title: "1 000 connections, 1 line in flight: lines/s",
        arguments: "--mode=ping --connections=1000",
        value: Measured::per_second,
        wanted: Wanted::Part(0.8),
        wanted_of_few: Wanted::Part(0.95),
    },
    Measure {
        title: "8 connections, 100 lines in flight: lines/s",
        arguments: "--mode=pipeline",
        value: Measured::per_second,
        wanted: Wanted::Part(0.5),
        wanted_of_few: Wanted::Part(0.85),
    },
    Measure {
        title: "connect, greeting, `exit`, a fresh sandbox each: connections/s",
        arguments: "--mode=churn",
        value: Measured::per_second,
        wanted: Wanted::Part(0.7),
        wanted_of_few: Wanted::Part(0.95),
    },
    Measure {
        title: "10 000 connections held: KiB resident for each",
        arguments: "--mode=hold --connections=10000",
        value: kibibytes,
        wanted: Wanted::More(32.0),
        wanted_of_few: Wanted::AtMost(38.0),
    },
    Measure {
        title: "10 000 held, then a line on each: 99 % answered within, ms",
        arguments: "--mode=hold --connections=10000",
        value: |run| run.latency(0.99).as_secs_f64() * 1e3,
        wanted: Wanted::AtMost(1000.0),
        wanted_of_few: Wanted::AtMost(1000.0),
    },
];

/// No load shows this.
const START_TIME: &str = "process start to listening, but for the first time: ms";
const START_WANTED: Wanted = Wanted::AtMost(30.0);

fn kibibytes(run: &Measured) -> f64 {
    run.resident_bytes.unwrap_or_default() / 1024.0
}

/// The medians of the servers, in their order, as far as they were able.
type Figures = Vec<Option<f64>>;

fn main() -> Result<()> {
    let options = Options::parse();
    // Cargo has changed the current folder.
    let folder = Path::new(ROOT).join(&options.output);
    fs::create_dir_all(&folder)?;
    let page = folder.join("performance.md");
    around_the_figures(&page)?;
    let airlock = program::build("bench")?;
    let airlock_bench = Path::new(AIRLOCK_BENCH);
    let mut subjects = vec![
        servers::native(airlock_bench, Twin::Plain),
        servers::airlock(&airlock, Scheduling::PerConnection),
        servers::native(airlock_bench, Twin::Epoll),
        servers::airlock(&airlock, Scheduling::Shared(NonZero::<usize>::MIN)),
        servers::native(airlock_bench, Twin::Shim),
    ];
    let peers = peers()?;
    let versions = peers
        .iter()
        .map(|(peer, version)| format!(" {}: {version}.", peer.name));
    let versions: String = versions.collect();
    subjects.extend(peers.into_iter().map(|(peer, _)| peer));
    let cores = Cores::split()?;
    let mut compare = Compare {
        options: &options,
        subjects: &subjects,
        cores: cores.as_ref(),
        faults: BTreeSet::new(),
    };
    for measure in &MEASURES {
        make_room(compare.plan(measure.arguments)?.connections)?;
    }
    let mut report = String::new();
    let mut say = |row: String| {
        print!("{row}");
        report += &row;
    };
    say(compare.heading(&versions)?);
    let mut measured = Vec::new();
    for measure in &MEASURES {
        let figures = compare.load(measure.arguments, measure.value)?;
        say(compare.row(
            measure.title,
            [measure.wanted, measure.wanted_of_few],
            &figures,
        ));
        measured.push(figures);
    }
    let start_times = compare.start_times()?;
    say(compare.row(START_TIME, [START_WANTED; 2], &start_times));

    let (mut lines, mut memory) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let ping = format!("--mode=ping --connections={connections}");
        let row = MEASURES.iter().position(|row| row.arguments == ping);
        lines.push(match row {
            Some(row) => measured[row].clone(),
            None => compare.load(&ping, Measured::per_second)?,
        });
        let hold = format!("--mode=hold --connections={connections}");
        memory.push(compare.load(&hold, kibibytes)?);
    }
    for (name, title, y, figures) in [
        ("throughput", "1 line in flight on each", "lines/s", &lines),
        (
            "memory",
            "connections held",
            "KiB resident for each",
            &memory,
        ),
    ] {
        let svg = compare.draw(title, y, figures)?;
        fs::write(folder.join(name).with_extension("svg"), svg)?;
        report += &format!("\n![{title}: {y}]({name}.svg)\n");
    }
    // Again, because somebody may have edited it meanwhile.
    let [before, after] = around_the_figures(&page)?;
    Ok(fs::write(page, [before, report, after].concat())?)
}

/// The servers in other languages, as far as this machine has those; and their versions.
fn peers() -> Result<Vec<(Subject<'static>, String)>> {
    let mut peers = Vec::new();
    let mut add = |name, version, command: Box<dyn Fn() -> Command>| {
        peers.push((Subject { name, command }, version))
    };
    for (name, go) in [("Go", NEWEST_GO), ("Go, as installed", "go")] {
        let Some(version) = output_of(&[go, "version"]) else {
            continue;
        };
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut build = Command::new(go);
        build.args(["build", "-o"]).arg(&program);
        let source = format!("{ROOT}/bench/peers/greeter.go");
        if build.arg(source).status()?.success() {
            add(name, version, Box::new(move || Command::new(&program)));
        } else {
            eprintln!("{name} is left out: its greeter does not build");
        }
    }
    // The program itself: `python3` may be a script that searches for it, which takes longer than
    // it does to start.
    let python = output_of(&["python3", "-c", "import sys; print(sys.executable)"]);
    for (name, program, script) in [
        ("Node", Some("node".to_owned()), "greeter.mjs"),
        ("Python", python, "greeter.py"),
    ] {
        let Some(program) = program else { continue };
        let Some(version) = output_of(&[&program, "--version"]) else {
            continue;
        };
        let command = Box::new(move || {
            let mut command = Command::new(&program);
            command.arg(format!("{ROOT}/bench/peers/{script}"));
            command
        });
        add(name, version, command);
    }
    Ok(peers)
}

/// What a program prints, if it is there.
fn output_of(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

struct Compare<'a> {
    options: &'a Options,
    subjects: &'a [Subject<'a>],
    cores: Option<&'a Cores>,
    /// What has been said.
    faults: BTreeSet<String>,
}

impl Compare<'_> {
    /// Loads every server in turn, and again in every round.
    fn load(&mut self, arguments: &str, value: fn(&Measured) -> f64) -> Result<Figures> {
        let plan = self.plan(arguments)?;
        let turns = self.options.rounds * self.subjects.len() as u32;
        let progress = Progress::new(plan.duration * turns);
        let rounds = self.options.rounds;
        let turns = turns::load_in_turn(&plan, rounds, self.subjects, OURS, self.cores, &progress)?;
        drop(progress);
        Ok(self.medians(turns, value))
    }

    /// Starts every server in turn, which takes so many milliseconds.
    fn start_times(&mut self) -> Result<Figures> {
        let start = |_, subject: &Subject| Ok(Server::start(subject, self.cores)?.start_time);
        // The first start may compile something.
        let rounds = self.options.rounds + 1;
        let mut turns = turns::in_turn(self.subjects, OURS, rounds, start)?;
        for times in turns.iter_mut().flatten() {
            times.remove(0);
        }
        Ok(self.medians(turns, |time| time.as_secs_f64() * 1e3))
    }

    /// Says what went wrong with the others, once.
    fn medians<T>(&mut self, turns: Vec<Turns<T>>, value: fn(&T) -> f64) -> Figures {
        let median = |turns: Turns<T>| match turns {
            Ok(turns) => report::median(turns.iter().map(value).collect()),
            Err(fault) => {
                let fault = format!("{:#}", anyhow!(fault));
                if self.faults.insert(fault.clone()) {
                    eprintln!("{fault}");
                }
                None
            }
        };
        turns.into_iter().map(median).collect()
    }

    fn plan(&self, arguments: &str) -> Result<Plan> {
        let line = ["airlock-bench"].into_iter().chain(arguments.split(' '));
        let options = options::Options::try_parse_from(line)?;
        let plan = options.plan().map_err(|error| anyhow!(error))?;
        Ok(Plan {
            duration: self.options.duration.into(),
            ..plan
        })
    }

    /// The machine, and the head of the table.
    fn heading(&self, versions: &str) -> Result<String> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name\t: "));
        let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let names = self.subjects.iter().map(|subject| subject.name);
        let mut columns: Vec<_> = [""].into_iter().chain(names).collect();
        let of_few = ["of the epoll twin", "of Go", "wanted"];
        columns.splice(FEW + 2..FEW + 2, of_few);
        columns.splice(AIRLOCK + 2..AIRLOCK + 2, ["of the native twin", "wanted"]);
        Ok(format!(
            "{}: {} cores, {}, Linux {}.{} Rounds: {}, of {}.\n\n{}{}",
            &today[..10],
            cpus.matches("processor\t:").count(),
            model.unwrap_or("of an unknown kind"),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            versions,
            self.options.rounds,
            self.options.duration,
            table_row(&columns),
            table_row(&vec!["---"; columns.len()]),
        ))
    }

    fn row(&self, title: &str, wanted: [Wanted; 2], figures: &Figures) -> String {
        let of = |number: usize| figures.get(number).copied().flatten();
        let go = self.subjects.iter().position(is_go);
        let [wanted, wanted_of_few] = wanted;
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), figure);
        let mut cells = vec![title.to_owned()];
        cells.extend(figures.iter().copied().map(shown));
        cells.splice(
            FEW + 2..FEW + 2,
            [
                wanted.against(of(FEW), of(EPOLL)),
                wanted_of_few.against(of(FEW), go.and_then(of)),
                wanted_of_few.to_string(),
            ],
        );
        cells.splice(
            AIRLOCK + 2..AIRLOCK + 2,
            [wanted.against(of(AIRLOCK), of(NATIVE)), wanted.to_string()],
        );
        table_row(&cells)
    }

    /// A curve for each server over [`CONNECTIONS`].
    fn draw(&self, title: &str, y: &str, figures: &[Figures]) -> Result<String> {
        let curves: Vec<_> = self
            .subjects
            .iter()
            .enumerate()
            .map(|(number, subject)| Curve {
                name: subject.name,
                points: CONNECTIONS
                    .iter()
                    .zip(figures)
                    .filter_map(|(&connections, figures)| {
                        Some((connections as f64, figures[number]?))
                    })
                    .collect(),
            })
            .collect();
        let axes = Axes {
            title,
            x: "connections",
            x_label: |connections| format!("{connections:.0}"),
            y,
        };
        plot::draw(&axes, &curves).map_err(|error| anyhow!(error))
    }
}

impl Wanted {
    /// One figure set against another one, as far as there are both.
    fn against(self, ours: Option<f64>, other: Option<f64>) -> String {
        let Some((ours, other)) = ours.zip(other) else {
            return "–".to_owned();
        };
        match self {
            Wanted::Part(_) => format!("{:.2}", ours / other),
            Wanted::More(_) => format!("{:+.1}", ours - other),
            Wanted::AtMost(_) => String::new(),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Part(part) => write!(f, "≥ {part:.2}"),
            Wanted::More(more) => write!(f, "≤ +{more}"),
            Wanted::AtMost(most) => write!(f, "Airlock ≤ {most}"),
        }
    }
}

/// The newest comes first.
fn is_go(subject: &Subject) -> bool {
    subject.name.starts_with("Go")
}

fn table_row(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<_> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// With the digits that mean something, and spaces between thousands.
fn figure(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(" ")
}

/// What stands before and behind the figures of an earlier run; in a new file there is nothing else.
fn around_the_figures(path: &Path) -> Result<[String; 2]> {
    let [begin, end] = MARKS;
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => MARKS.concat(),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let parts = text.split_once(begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(end)?;
        Some([format!("{before}{begin}"), format!("{end}{after}")])
    });
    parts.with_context(|| {
        let marks = MARKS.map(str::trim).join("` and `");
        format!(
            "{} has no lines `{marks}`, between which the figures go",
            path.display()
        )
    })
}
