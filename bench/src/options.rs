//! The command line, into a finished plan.

use std::path::PathBuf;
use std::time::Duration;

use airlock::serve::scheduling::Scheduling;
use airlock::settings::address::{Address, Scheme};
use airlock::settings::door::{DoorSettings, door};
use airlock::settings::store::{StoreSettings, store};
use airlock::settings::values::time;
use clap::{Args, Parser};

use crate::plan::{Mode, Operation, Plan};
use crate::talk::{Encoding, Talk};
use crate::twin::Twin;

/// Load a line server and measure what it takes; without an address, Airlock beside its native twin.
#[derive(Debug, Parser)]
#[command(name = "airlock-bench", version, max_term_width = 100)]
#[command(after_help = "Every reply is checked; the exit status is 0 when all were right.")]
pub struct Options {
    /// The server [default: Airlock, built for it, and its native twin, in turn]
    #[arg(value_name = "ADDRESS")]
    pub address: Option<Address>,

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

    /// What both speak: tcp, unix, tls, ws or wss
    #[arg(
        long,
        value_name = "SCHEME",
        default_value = "tcp",
        conflicts_with = "address"
    )]
    pub door: Scheme,

    /// With --door tls: beside HAProxy, which ends TLS in front of the native twin
    #[arg(long, conflicts_with = "address")]
    pub haproxy: bool,

    /// Airlock's option, without a name: each line does something to this store. Beside a twin that does
    /// the same to one like it
    #[arg(long, value_name = "URL", conflicts_with_all = ["address", "haproxy", "line"])]
    #[arg(value_parser = granted)]
    pub store: Option<Granted>,

    /// With --store: what each line does to it
    #[arg(long, value_enum, default_value_t = Operation::Get, requires = "store")]
    operation: Operation,

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
    #[arg(long, value_enum, hide = true)]
    pub twin: Option<Twin>,

    /// And listen there.
    #[arg(long, value_parser = door, default_value = "127.0.0.1:0", hide = true)]
    pub listen: DoorSettings,
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
        if self.haproxy && self.door != Scheme::Tls {
            return Err("--haproxy is for --door tls".to_owned());
        }
        if self.store.is_some() && (self.door.is_websocket() || self.mode == Mode::Churn) {
            return Err("--store is for lines, and connections that stay".to_owned());
        }
        let scheme = match &self.address {
            Some(address) => address.scheme,
            None => self.door,
        };
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
            talk: match self.store {
                Some(_) => self.operation.talk(Encoding::Lines("\n")),
                None => self.foreign.talk(&self.line, scheme)?,
            },
            operation: self.store.as_ref().map(|_| self.operation),
        })
    }

    /// What Airlock is compared with.
    pub fn beside(&self) -> Twin {
        match self.threads {
            _ if self.haproxy => Twin::Haproxy,
            // There is none of WebSocket, and none that remembers, with one thread.
            Scheduling::Shared(_) if !self.door.is_websocket() && self.store.is_none() => {
                Twin::Epoll
            }
            _ => Twin::Plain,
        }
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
    fn talk(&self, line: &str, scheme: Scheme) -> Result<Talk, String> {
        let encoding = match (scheme.is_websocket(), self.crlf) {
            (true, _) => Encoding::Messages,
            (false, true) => Encoding::Lines("\r\n"),
            (false, false) => Encoding::Lines("\n"),
        };
        if scheme.is_websocket() && (self.crlf || self.no_greeting) {
            return Err(format!("--crlf and --no-greeting are not for {scheme}"));
        }
        let greeting = (!self.no_greeting).then_some(self.greeting.as_str());
        let leave = (!self.leave.is_empty()).then_some(self.leave.as_str());
        let greeted = format!("Hello, {line}!");
        let reply = self.expect.as_deref().unwrap_or(&greeted);
        Ok(Talk::new(greeting, line, reply, leave, encoding))
    }
}

/// A store, and its URL as it was written.
#[derive(Debug, Clone)]
pub struct Granted {
    store: StoreSettings,
    url: String,
}

impl Granted {
    /// The store.
    pub fn settings(&self) -> &StoreSettings {
        &self.store
    }

    /// What the twin is told.
    pub fn option(&self) -> String {
        format!("--store={}", self.url)
    }

    /// What Airlock is told: a guest opens it as `default`.
    pub fn airlock_option(&self) -> String {
        format!("--store=default={}", self.url)
    }
}

fn granted(url: &str) -> Result<Granted, String> {
    let store = store(&format!("default={url}"))?;
    let url = url.to_owned();
    Ok(Granted { store, url })
}

fn one_line(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        return Err("want one line".to_owned());
    }
    Ok(text.to_owned())
}
