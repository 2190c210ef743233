//! The command line, into a finished plan.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use airlock::serve::scheduling::Scheduling;
use airlock::settings::values::{address, time};
use clap::{Args, Parser};

use crate::plan::{Mode, Plan};
use crate::talk::Talk;
use crate::twin::Twin;

/// Load a line server and measure what it takes; without an address, Airlock beside its native twin.
#[derive(Debug, Parser)]
#[command(name = "airlock-bench", version, max_term_width = 100)]
#[command(after_help = "Every reply is checked; the exit status is 0 when all were right.")]
pub struct Options {
    /// The server [default: Airlock, built for it, and its native twin, in turn]
    #[arg(value_name = "ADDR:PORT", value_parser = address)]
    pub address: Option<SocketAddr>,

    /// What the connections do
    #[arg(long, value_enum, default_value_t = Mode::Ping)]
    pub mode: Mode,

    /// How many there are at once [default: ping 64, pipeline 8, churn 4, hold 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,

    /// Lines in flight on each connection, in pipeline mode [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    depth: Option<u32>,

    /// How long the load lasts, or connections are held; with two servers, in each round
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    duration: humantime::Duration,

    /// Rounds, when Airlock and its native twin run in turn
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        conflicts_with = "address"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Airlock's option: which threads serve connections
    #[arg(
        long,
        value_name = "N|auto|per-connection",
        default_value_t = Scheduling::PerConnection,
        conflicts_with = "address"
    )]
    pub threads: Scheduling,

    /// Threads that make the load
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    load_threads: u32,

    /// Lines (churn: connections) a second, of all connections together: an answer's time then
    /// begins when its line was due [default: as many as are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// How long an answer may take, and a connection to open
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    timeout: humantime::Duration,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Draw the latencies
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,

    /// What is sent, again and again
    #[arg(long, value_name = "TEXT", default_value = "Michael", value_parser = one_line)]
    line: String,

    /// What the server talks like.
    #[command(flatten)]
    foreign: Foreign,

    /// Airlock's other options
    #[arg(value_name = "AIRLOCK-OPTION", last = true, conflicts_with = "address")]
    pub airlock: Vec<String>,

    /// Be a native twin.
    #[arg(long, value_enum, hide = true, exclusive = true)]
    pub twin: Option<Twin>,
}

/// How a server that is not the greeter talks.
#[derive(Debug, Args)]
#[command(next_help_heading = "A server that talks otherwise than the greeter")]
struct Foreign {
    /// What has to come for each line [default: `Hello, Michael!`, with the line for the name]
    #[arg(long, value_name = "TEXT", requires = "address")]
    expect: Option<String>,

    /// What it says first
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Welcome!",
        requires = "address"
    )]
    greeting: String,

    /// It says nothing first
    #[arg(long, requires = "address", conflicts_with = "greeting")]
    no_greeting: bool,

    /// What ends a conversation, in churn mode; empty: the end of sending alone
    #[arg(long, value_name = "TEXT", default_value = "exit", value_parser = one_line)]
    #[arg(requires = "address")]
    leave: String,

    /// Lines end with CRLF, both ways
    #[arg(long, requires = "address")]
    crlf: bool,
}

impl Options {
    /// What is to be done.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn plan(&self) -> Result<Plan, String> {
        if self.depth.is_some() && self.mode != Mode::Pipeline {
            return Err(
                "--depth is for --mode pipeline: the others have no line waiting".to_owned(),
            );
        }
        if self.rate.is_some() && self.mode == Mode::Hold {
            return Err("--rate is not for --mode hold, which sends one line".to_owned());
        }
        let (connections, depth) = match self.mode {
            Mode::Ping => (64, 1),
            Mode::Pipeline => (8, 100),
            Mode::Churn => (4, 1),
            Mode::Hold => (1000, 1),
        };
        Ok(Plan {
            mode: self.mode,
            connections: self.connections.unwrap_or(connections) as usize,
            depth: self.depth.unwrap_or(depth) as usize,
            duration: self.duration.into(),
            load_threads: self.load_threads as usize,
            rate: self.rate,
            timeout: self.timeout.into(),
            talk: self.foreign.talk(&self.line),
        })
    }

    /// How long that takes if all goes well.
    pub fn time(&self) -> Duration {
        let runs = match self.address {
            Some(_) => 1,
            None => 2 * self.rounds,
        };
        self.duration.saturating_mul(runs)
    }
}

impl Foreign {
    fn talk(&self, line: &str) -> Talk {
        let greeting = (!self.no_greeting).then_some(self.greeting.as_str());
        let leave = (!self.leave.is_empty()).then_some(self.leave.as_str());
        let greeted = format!("Hello, {line}!");
        let reply = self.expect.as_deref().unwrap_or(&greeted);
        let ending = if self.crlf { "\r\n" } else { "\n" };
        Talk::new(greeting, line, reply, leave, ending)
    }
}

fn one_line(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        return Err("want one line".to_owned());
    }
    Ok(text.to_owned())
}
