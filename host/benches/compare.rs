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

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use airlock::bench::plot::{self, Axes, Curve};
use airlock::bench::progress::Progress;
use airlock::bench::{self, Cores, Fault, Measured, Mode, Plan, Server, report};
use airlock::cli::{self, Bench};
use anyhow::{Context, Result, anyhow};
use clap::Parser;

const AIRLOCK: &str = env!("CARGO_BIN_EXE_airlock");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The two that this is about; the other servers are there for orientation.
const NATIVE: &str = "native twin";
const OURS: &str = "Airlock";

/// Points of the curves.
const CONNECTIONS: [usize; 4] = [8, 64, 512, 4096];

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

/// Those of `airlock bench`.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
}

/// A server that can be started again and again.
struct Subject {
    name: &'static str,
    /// Of its language, if that is not ours.
    version: Option<String>,
    command: Box<dyn Fn() -> Command>,
}

/// What is measured of every server: a row of the table.
struct Measure {
    title: &'static str,
    /// Those of `airlock bench`.
    arguments: &'static str,
    value: fn(&Measured) -> f64,
    /// How Airlock's figure is set against the native twin's, and what is wanted of it.
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// At least this part of it.
    Part(f64),
    /// At most this many times as much.
    Times(f64),
    /// At most this much more.
    More(f64),
    /// At most this much, whatever the native twin does.
    AtMost(f64),
}

const MEASURES: [Measure; 6] = [
    Measure {
        title: "64 connections, 1 line in flight: lines/s",
        arguments: "--mode=ping",
        value: Measured::per_second,
        wanted: Wanted::Part(0.95),
    },
    Measure {
        title: "1 connection, 1 line in flight: median latency, µs",
        arguments: "--mode=ping --connections=1",
        value: |run| run.latency(0.5).as_secs_f64() * 1e6,
        wanted: Wanted::Times(1.05),
    },
    Measure {
        title: "8 connections, 100 lines in flight: lines/s",
        arguments: "--mode=pipeline",
        value: Measured::per_second,
        wanted: Wanted::Part(0.5),
    },
    Measure {
        title: "connect, greeting, `exit`, a fresh sandbox each: connections/s",
        arguments: "--mode=churn",
        value: Measured::per_second,
        wanted: Wanted::Part(0.7),
    },
    Measure {
        title: "5 000 connections held: KiB resident for each",
        arguments: "--mode=hold --connections=5000",
        value: kibibytes,
        wanted: Wanted::More(32.0),
    },
    Measure {
        title: "10 000 held, then a line on each: 99 % answered within, ms",
        arguments: "--mode=hold --connections=10000",
        value: |run| run.latency(0.99).as_secs_f64() * 1e3,
        wanted: Wanted::AtMost(1000.0),
    },
];

/// No load shows this.
const START_TIME: &str = "process start to listening, but for the first time: ms";
const START_WANTED: Wanted = Wanted::AtMost(30.0);

fn kibibytes(run: &Measured) -> f64 {
    run.resident_bytes.unwrap_or_default() / 1024.0
}

/// The medians of the servers, by their names, as far as they were able.
type Figures = BTreeMap<&'static str, f64>;

fn main() -> Result<()> {
    let options = Options::parse();
    // Cargo has changed the current folder.
    let folder = Path::new(ROOT).join(&options.output);
    fs::create_dir_all(&folder)?;
    let page = folder.join("performance.md");
    around_the_figures(&page)?;
    let subjects = subjects()?;
    let cores = Cores::split()?;
    let compare = Compare {
        options: &options,
        subjects: &subjects,
        cores: cores.as_ref(),
    };
    for measure in &MEASURES {
        bench::make_room(compare.plan(measure.arguments)?.connections)?;
    }
    let mut report = compare.heading()?;
    print!("{report}");
    for measure in &MEASURES {
        let figures = compare.load(measure.arguments, measure.value)?;
        let row = compare.row(measure.title, measure.wanted, &figures);
        print!("{row}");
        report += &row;
    }
    let row = compare.row(START_TIME, START_WANTED, &compare.start_times()?);
    print!("{row}");
    report += &row;

    let (mut lines, mut memory) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let ping = format!("--mode=ping --connections={connections}");
        lines.push(compare.load(&ping, Measured::per_second)?);
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

/// The servers there are on this machine.
fn subjects() -> Result<Vec<Subject>> {
    let of = |name, version, command| Subject {
        name,
        version,
        command,
    };
    let mut subjects = vec![
        of(
            NATIVE,
            None,
            Box::new(|| bench::native_twin(AIRLOCK.as_ref(), &cli::variables())),
        ),
        of(
            OURS,
            None,
            Box::new(|| bench::airlock(AIRLOCK.as_ref(), &cli::variables())),
        ),
    ];
    if let Some(version) = output_of(&["go", "version"]) {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("greeter-go");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program);
        let source = format!("{ROOT}/bench/peers/greeter.go");
        if build.arg(source).status()?.success() {
            let command = Box::new(move || Command::new(&program));
            subjects.push(of("Go", Some(version), command));
        } else {
            eprintln!("Go is left out: its greeter does not build");
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
        subjects.push(of(name, Some(version), command));
    }
    Ok(subjects)
}

/// What a program prints, if it is there.
fn output_of(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

struct Compare<'a> {
    options: &'a Options,
    subjects: &'a [Subject],
    cores: Option<&'a Cores>,
}

impl Compare<'_> {
    /// Loads every server in turn, and again in every round.
    fn load(&self, arguments: &str, value: fn(&Measured) -> f64) -> Result<Figures> {
        let plan = self.plan(arguments)?;
        let turns = self.options.rounds * self.subjects.len() as u32;
        let progress = Progress::new(plan.duration * turns);
        let mut running = BTreeMap::new();
        self.rounds(|subject| {
            // What a server keeps of connections that have ended would be missing in the next
            // measure of its memory.
            if plan.mode == Mode::Hold {
                running.clear();
            }
            let server = match running.entry(subject.name) {
                Entry::Occupied(server) => server.into_mut(),
                Entry::Vacant(place) => place.insert(self.start(subject)?),
            };
            let measured = bench::round(&plan, server, &progress);
            if measured.is_err() {
                running.remove(subject.name);
            }
            Ok(value(&measured?))
        })
    }

    /// Starts every server in turn, which takes so many milliseconds.
    fn start_times(&self) -> Result<Figures> {
        let start = |subject: &_| Ok(self.start(subject)?.start_time.as_secs_f64() * 1e3);
        // The first start may compile something.
        self.rounds(start)?;
        self.rounds(start)
    }

    fn start(&self, subject: &Subject) -> Result<Server<'_>, Fault> {
        Server::start(subject.name, (subject.command)(), self.cores)
    }

    /// The medians of all rounds, of those servers that were able to take their turns. The two that
    /// this is about have to be.
    fn rounds(&self, mut turn: impl FnMut(&Subject) -> Result<f64, Fault>) -> Result<Figures> {
        let mut values = BTreeMap::<_, Vec<f64>>::new();
        let mut unable = BTreeSet::new();
        for _ in 0..self.options.rounds {
            for subject in self.subjects {
                let name = subject.name;
                if unable.contains(name) {
                    continue;
                }
                match turn(subject) {
                    Ok(value) => values.entry(name).or_default().push(value),
                    Err(fault) if [NATIVE, OURS].contains(&name) => return Err(fault.into()),
                    Err(fault) => {
                        eprintln!("{:#}", anyhow!(fault));
                        values.remove(name);
                        unable.insert(name);
                    }
                }
            }
        }
        let median = |(name, values)| Some((name, report::median(values)?));
        Ok(values.into_iter().filter_map(median).collect())
    }

    fn plan(&self, arguments: &str) -> Result<Plan> {
        let line = ["bench"].into_iter().chain(arguments.split(' '));
        let options = Arguments::try_parse_from(line)?.bench;
        let plan = options.plan().map_err(|error| anyhow!(error))?;
        Ok(Plan {
            duration: self.options.duration.into(),
            ..plan
        })
    }

    /// The machine, and the head of the table.
    fn heading(&self) -> Result<String> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name\t: "));
        let versions: Vec<_> = self
            .subjects
            .iter()
            .filter_map(|subject| {
                Some(format!(" {}: {}.", subject.name, subject.version.as_ref()?))
            })
            .collect();
        let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut columns = vec!["", NATIVE, OURS, "ratio", "wanted"];
        columns.extend(self.others().map(|subject| subject.name));
        Ok(format!(
            "{}: {} cores, {}, Linux {}.{} Rounds: {}, of {}.\n\n{}{}",
            &today[..10],
            cpus.matches("processor\t:").count(),
            model.unwrap_or("of an unknown kind"),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            versions.concat(),
            self.options.rounds,
            self.options.duration,
            table_row(&columns),
            table_row(&vec!["---"; columns.len()]),
        ))
    }

    fn others(&self) -> impl Iterator<Item = &Subject> {
        let others = |subject: &&Subject| ![NATIVE, OURS].contains(&subject.name);
        self.subjects.iter().filter(others)
    }

    fn row(&self, title: &str, wanted: Wanted, figures: &Figures) -> String {
        let (native, ours) = (figures[NATIVE], figures[OURS]);
        let (ratio, wanted) = match wanted {
            Wanted::Part(part) => (format!("{:.2}", ours / native), format!("≥ {part:.2}")),
            Wanted::Times(times) => (format!("{:.2}", ours / native), format!("≤ {times:.2}")),
            Wanted::More(more) => (format!("+{:.1}", ours - native), format!("≤ +{more}")),
            Wanted::AtMost(most) => (String::new(), format!("Airlock ≤ {most}")),
        };
        let mut cells = vec![
            title.to_owned(),
            figure(native),
            figure(ours),
            ratio,
            wanted,
        ];
        let others = self.others();
        cells.extend(others.map(|other| {
            figures
                .get(other.name)
                .map_or("–".to_owned(), |value| figure(*value))
        }));
        table_row(&cells)
    }

    /// A curve for each server over [`CONNECTIONS`].
    fn draw(&self, title: &str, y: &str, figures: &[Figures]) -> Result<String> {
        let curves: Vec<_> = self
            .subjects
            .iter()
            .map(|subject| Curve {
                name: subject.name,
                points: CONNECTIONS
                    .iter()
                    .zip(figures)
                    .filter_map(|(&connections, figures)| {
                        Some((connections as f64, *figures.get(subject.name)?))
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
