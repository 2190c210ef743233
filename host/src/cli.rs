//! The command line, into finished settings. The only place that reads arguments and environment.

use std::env;
use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::Resettable;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::limits::Limits;
use crate::limits::guest::{GUEST_MEMORIES, Guest};
use crate::limits::process::{ADDRESS_SPACE_BYTES, Process};
use crate::limits::wire::Wire;
use crate::logging::LogFormat;
use crate::process::capacity::{Capacity, Each};
use crate::sandbox::compiler::child::Compile;
use crate::serve::listener::MOST_BACKLOG;
use crate::serve::scheduling::Scheduling;
use crate::talk::framing::Framing;
use crate::versions::canary::Share;

/// Has the guest's variables, one a line.
const ENVIRONMENT: &str = "AIRLOCK_ENV";

/// A TCP server whose logic is a sandboxed WebAssembly component.
///
/// Every connection gets a thread and an instance of the guest of its own. Without options the
/// built-in greeter is served: `Welcome!`, `Hello, NAME!` for every line, and `exit` to leave.
#[derive(Debug, Parser)]
#[command(
    name = "airlock",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = "Sizes are written like 64KiB, times like 500ms or 5m.")]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What `airlock` does when no subcommand is named.
    #[command(flatten)]
    pub serve: Serve,
}

/// What `airlock` does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether a guest would be served, what it needs, and how long it takes to start
    Check(Check),
    /// Play conversations to a guest, without a network, and compare what it answers
    Test(Test),
    /// Serve, and record every conversation: the same as --record
    Record(Box<Record>),
    /// Compile a guest for a server, which starts this by itself
    #[command(hide = true)]
    Compile(Compile),
}

/// The options of `airlock check`.
#[derive(Debug, Args)]
#[command(after_help = "The exit status is 0 when the guest would be served.")]
pub struct Check {
    /// The component
    #[arg(value_name = "FILE.wasm")]
    pub file: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// What the guest may do and take.
    #[command(flatten)]
    pub guest: GuestOptions,
}

/// The options of `airlock test`.
#[derive(Debug, Args)]
#[command(
    after_help = "In a conversation `> text` is sent to the guest, `< text` is expected from \
    it, `<close` expects its close, and `#` starts a comment. A text with control characters stands \
    as a JSON string right after the mark: >\"two\\nlines\". What --record writes are such files. \
    The exit status is 0 when the guest answers as expected."
)]
pub struct Test {
    /// The component
    #[arg(value_name = "FILE.wasm")]
    pub file: PathBuf,

    /// The conversations
    #[arg(value_name = "SCRIPT", required = true)]
    pub scripts: Vec<PathBuf>,

    /// What the guest may do and take.
    #[command(flatten)]
    pub guest: GuestOptions,
}

/// The options of `airlock record`.
#[derive(Debug, Args)]
pub struct Record {
    /// The folder for the conversations, one file for each
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Those of the server.
    #[command(flatten)]
    pub serve: Serve,
}

/// What a guest may do and take, wherever it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "What the guest may do and take")]
pub struct GuestOptions {
    /// An environment variable for the guest; may be given more than once [env: AIRLOCK_ENV, one a
    /// line]
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,

    /// How long the guest may take for one line, awake or asleep
    #[arg(long, env = "AIRLOCK_CALL_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "5s", value_parser = time)]
    pub call_timeout: humantime::Duration,

    /// The most memory of one instance of the guest
    #[arg(long, env = "AIRLOCK_GUEST_MEMORY", value_name = "SIZE")]
    #[arg(default_value = "64MiB", value_parser = memory)]
    pub guest_memory: ByteSize,

    /// How long compiling the guest may take
    #[arg(long, env = "AIRLOCK_COMPILE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "5m", value_parser = time)]
    pub compile_timeout: humantime::Duration,

    /// The most memory for compiling the guest; a server takes half of the memory there is at most
    #[arg(long, env = "AIRLOCK_COMPILE_MEMORY", value_name = "SIZE")]
    #[arg(default_value = "2GiB", value_parser = compile_memory)]
    pub compile_memory: ByteSize,

    /// The longest reply and greeting
    #[arg(long, env = "AIRLOCK_MAX_REPLY", value_name = "SIZE")]
    #[arg(default_value = "1MiB", value_parser = size)]
    pub max_reply: ByteSize,
}

/// The options of a server.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to wait for connections; port 0 takes a free one and prints it
    #[arg(long, env = "AIRLOCK_LISTEN", value_name = "ADDR:PORT")]
    #[arg(default_value = "127.0.0.1:9999", value_parser = address)]
    pub listen: SocketAddr,

    /// Connections the kernel completes ahead of time [default: as many as it allows]
    #[arg(long, env = "AIRLOCK_BACKLOG", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_BACKLOG)))]
    pub backlog: Option<u32>,

    /// The component to serve [default: the built-in greeter]
    #[arg(long, env = "AIRLOCK_GUEST", value_name = "FILE.wasm")]
    pub guest: Option<PathBuf>,

    /// What makes a message: `auto` tells by the first newline
    #[arg(long, env = "AIRLOCK_FRAMING", value_enum, default_value_t = Framing::Auto)]
    pub framing: Framing,

    /// Which threads serve connections: each its own, so many for all, or one for each core (`auto`)
    #[arg(long, env = "AIRLOCK_THREADS", value_name = "per-connection|N|auto")]
    #[arg(default_value_t = Scheduling::PerConnection)]
    pub threads: Scheduling,

    /// The longest line, without its ending
    #[arg(long, env = "AIRLOCK_MAX_LINE", value_name = "SIZE")]
    #[arg(default_value = "64KiB", value_parser = size)]
    pub max_line: ByteSize,

    /// The most connections at once [default: what the limits of this process and machine allow]
    #[arg(long, env = "AIRLOCK_MAX_CONNECTIONS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,

    /// The most connections at once from one address; of IPv6, from one /64 network [default: the
    /// same as --max-connections]
    #[arg(long, env = "AIRLOCK_MAX_CONNECTIONS_PER_IP", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_ip: Option<u32>,

    /// How long a client may be silent between lines
    #[arg(long, env = "AIRLOCK_IDLE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "5m", value_parser = time)]
    pub idle_timeout: humantime::Duration,

    /// How long a client may take for one line, from its first byte
    #[arg(long, env = "AIRLOCK_LINE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "30s", value_parser = time)]
    pub line_timeout: humantime::Duration,

    /// How long a client may take nothing of its replies
    #[arg(long, env = "AIRLOCK_WRITE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "30s", value_parser = time)]
    pub write_timeout: humantime::Duration,

    /// The most memory of all instances together [default: half of the memory there is]
    #[arg(long, env = "AIRLOCK_TOTAL_GUEST_MEMORY", value_name = "SIZE")]
    #[arg(value_parser = total_memory)]
    pub total_guest_memory: Option<ByteSize>,

    /// What the guest may do and take.
    #[command(flatten)]
    pub guest_options: GuestOptions,

    /// How guests are replaced.
    #[command(flatten)]
    pub reload: ReloadOptions,

    /// How the server begins and ends.
    #[command(flatten)]
    pub lifecycle: LifecycleOptions,

    /// Write every conversation to a file of its own in this folder
    #[arg(long, env = "AIRLOCK_RECORD", value_name = "DIR")]
    pub record: Option<PathBuf>,

    /// How the log on standard error is written
    #[arg(long, env = "AIRLOCK_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Log more: -v for details, -vv for everything
    #[arg(short, long, env = "AIRLOCK_VERBOSE", action = ArgAction::Count)]
    pub verbose: u8,

    /// Log less: -q for warnings and errors, -qq for errors only
    #[arg(short, long, env = "AIRLOCK_QUIET", action = ArgAction::Count)]
    pub quiet: u8,
}

/// How new versions of the guest are taken.
#[derive(Debug, Args)]
#[command(next_help_heading = "New versions of the guest")]
pub struct ReloadOptions {
    /// Do not watch the guest's file; SIGHUP still loads it
    #[arg(long, env = "AIRLOCK_NO_WATCH", requires = "guest")]
    pub no_watch: bool,

    /// Give a new version this share of the new connections first, for this long: 10:5m. If it fails
    /// more often than the current version, it is rolled back
    #[arg(
        long,
        env = "AIRLOCK_CANARY",
        value_name = "PERCENT:TIME",
        value_parser = share,
        requires = "guest"
    )]
    pub canary: Option<Share>,

    /// End the connections of a version that was replaced this long ago [default: they may stay]
    #[arg(long, env = "AIRLOCK_MAX_GUEST_AGE", value_name = "TIME", value_parser = time)]
    #[arg(requires = "guest")]
    pub max_guest_age: Option<humantime::Duration>,
}

/// How the server begins and ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Beginning and end")]
pub struct LifecycleOptions {
    /// How long a shutdown waits for the messages in progress
    #[arg(long, env = "AIRLOCK_DRAIN_TIMEOUT", value_name = "TIME")]
    #[arg(default_value = "10s", value_parser = time)]
    pub drain_timeout: humantime::Duration,

    /// Take the listener over from the process that waits at this Unix socket, which then ends; and
    /// wait there for the next
    #[arg(long, env = "AIRLOCK_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,

    /// Share the port with other processes; the kernel gives each a part of the connections
    #[arg(long, env = "AIRLOCK_REUSE_PORT")]
    pub reuse_port: bool,
}

impl Cli {
    /// Takes the process's arguments, and its variables: those that set options of a server only
    /// where there is to be one, so that a wrong one does not stop `check` or `test`.
    ///
    /// # Errors
    /// What is wrong with them, or the help that was asked for.
    pub fn from_process() -> Result<Cli, clap::Error> {
        let arguments: Vec<_> = env::args_os().collect();
        let mut command = Cli::command();
        // No option of a server can stand before it.
        let subcommand = arguments.get(1);
        if subcommand.is_some_and(|name| command.find_subcommand(name).is_some()) {
            command = command.mut_args(|option| option.env(Resettable::Reset));
        }
        Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }
}

impl Serve {
    /// Every bound of the server, on a machine with this capacity.
    ///
    /// # Errors
    /// More connections were asked for than there is room for.
    pub fn limits(&self, capacity: Capacity) -> Result<(Process, Limits), String> {
        let memory = self.guest_options.guest_memory;
        let (room, bound) = capacity.connections_with(memory.as_u64());
        if room == 0 {
            return Err(format!("there is room for no connection: raise {bound}"));
        }
        let connections = self.max_connections.map_or(room, |most| most as usize);
        if connections > room {
            return Err(format!(
                "--max-connections {connections} is more than the {room} that there is room for: \
                 lower it, or raise {bound}"
            ));
        }
        if self
            .total_guest_memory
            .is_some_and(|total| total.as_u64() < memory.as_u64())
        {
            return Err(format!(
                "--total-guest-memory has to be at least --guest-memory, which is {memory}"
            ));
        }
        let memory_bytes = memory.as_u64();
        let line = self.max_line;
        if memory_bytes < line.as_u64() {
            return Err(format!(
                "--guest-memory {memory} has no room for a line of --max-line {line}: raise the \
                 one or lower the other"
            ));
        }
        let memories = connections as u64 * u64::from(GUEST_MEMORIES);
        let reserved = memory_bytes.saturating_mul(memories);
        if reserved > ADDRESS_SPACE_BYTES {
            return Err(format!(
                "{connections} connections with --guest-memory {memory} each need more addresses \
                 than there are: lower it, or --max-connections to {}",
                ADDRESS_SPACE_BYTES / u64::from(GUEST_MEMORIES) / memory_bytes
            ));
        }
        let total_memory = self.total_guest_memory.map(|size| size.as_u64());
        let total_memory = total_memory.unwrap_or(capacity.guest_memory_bytes);
        let guest = self.guest_options.limits();
        let limits = Limits {
            wire: Wire {
                line_bytes: bytes(self.max_line),
                idle_time: self.idle_timeout.into(),
                line_time: self.line_timeout.into(),
                write_time: self.write_timeout.into(),
            },
            guest: Guest {
                compile_memory_bytes: guest.compile_memory_bytes.min(capacity.guest_memory_bytes),
                ..guest
            },
            connections,
            connections_per_ip: self
                .max_connections_per_ip
                .map_or(connections, |most| most as usize),
        };
        let process = Process {
            services: 1,
            connections,
            total_guest_memory_bytes: total_memory,
            guest_memory_bytes: guest.memory_bytes,
            // Where there is less, the kernel would end more than the compiler.
            total_compile_memory_bytes: capacity.guest_memory_bytes,
            mappings: capacity.mappings,
            thread_each: self.each().thread,
            drain_time: self.lifecycle.drain_timeout.into(),
        };
        Ok((process, limits))
    }

    /// What each connection takes.
    pub fn each(&self) -> Each {
        Each {
            files: if self.record.is_some() { 2 } else { 1 },
            thread: self.threads == Scheduling::PerConnection,
        }
    }

    /// How much to log.
    pub fn level(&self) -> LevelFilter {
        match i16::from(self.verbose) - i16::from(self.quiet) {
            ..=-2 => LevelFilter::ERROR,
            -1 => LevelFilter::WARN,
            0 => LevelFilter::INFO,
            1 => LevelFilter::DEBUG,
            2.. => LevelFilter::TRACE,
        }
    }
}

impl GuestOptions {
    /// The bounds of guests.
    pub fn limits(&self) -> Guest {
        Guest {
            reply_bytes: bytes(self.max_reply),
            call_time: self.call_timeout.into(),
            memory_bytes: bytes(self.guest_memory),
            compile_time: self.compile_timeout.into(),
            compile_memory_bytes: self.compile_memory.as_u64(),
        }
    }

    /// The guest's environment: of the command line, or else of `AIRLOCK_ENV`.
    ///
    /// # Errors
    /// A line of `AIRLOCK_ENV` sets nothing.
    pub fn environment(&self) -> Result<Vec<(String, String)>, String> {
        if !self.variables.is_empty() {
            return Ok(self.variables.clone());
        }
        let text = env::var(ENVIRONMENT).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| variable(line).map_err(|error| format!("AIRLOCK_ENV: `{line}`: {error}")))
            .collect()
    }
}

/// The variables that set options of a server.
pub fn variables() -> Vec<OsString> {
    let command = Cli::command();
    let options = command
        .get_arguments()
        .filter_map(|option| option.get_env());
    let environment = OsString::from(ENVIRONMENT);
    options.map(OsString::from).chain([environment]).collect()
}

/// Where the service manager listens (systemd's `NOTIFY_SOCKET`), if there is one.
pub fn service_manager() -> Option<PathBuf> {
    env::var_os("NOTIFY_SOCKET").map(PathBuf::from)
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// An address to listen on or to connect to.
///
/// # Errors
/// A sentence that says which part is wrong.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("want ADDR:PORT, as in 127.0.0.1:9999 or [::1]:9999")?;
    let port: u16 = port
        .parse()
        .map_err(|_| format!("`{port}` is not a port: want a number from 0 to 65535"))?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(format!(
            "write an IPv6 address in brackets: [{host}]:{port}"
        ));
    }
    (bare.unwrap_or(host), port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("`{host}` is not an address of this machine or a name it knows"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("want NAME=VALUE".to_owned()),
    }
}

/// The largest size that is accepted: what one connection holds stays far below the machine's.
const MOST_BYTES: u64 = 1 << 30;

fn size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| "want a size like 64KiB or 65536".to_owned())?;
    match size.as_u64() {
        0 => Err("want at least 1 byte".to_owned()),
        1..=MOST_BYTES => Ok(size),
        _ => Err("want at most 1GiB".to_owned()),
    }
}

/// A linear memory has whole pages and at most 4 GiB.
fn memory(text: &str) -> Result<ByteSize, String> {
    const PAGE: u64 = 64 << 10;
    const MOST: u64 = 4 << 30;
    let size: ByteSize = text
        .parse()
        .map_err(|_| "want a size like 64MiB".to_owned())?;
    match size.as_u64() {
        PAGE..=MOST => Ok(ByteSize(size.as_u64() / PAGE * PAGE)),
        _ => Err("want from 64KiB to 4GiB".to_owned()),
    }
}

/// The compiler itself has 100 MiB of addresses before it has read a guest.
fn compile_memory(text: &str) -> Result<ByteSize, String> {
    const LEAST: u64 = 256 << 20;
    let size: ByteSize = text
        .parse()
        .map_err(|_| "want a size like 2GiB".to_owned())?;
    match size.as_u64() {
        LEAST.. => Ok(size),
        _ => Err("want at least 256MiB".to_owned()),
    }
}

fn total_memory(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "want a size like 8GiB".to_owned())
}

/// A time as options have it: with its unit, more than none, at most a year.
///
/// # Errors
/// What is wanted instead.
pub fn time(text: &str) -> Result<humantime::Duration, String> {
    const MOST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let time: humantime::Duration = text
        .parse()
        .map_err(|_| "want a time with its unit, like 500ms, 30s or 5m".to_owned())?;
    match *time {
        Duration::ZERO => Err("want more than no time at all".to_owned()),
        time if time > MOST => Err("want at most a year".to_owned()),
        _ => Ok(time),
    }
}

fn share(text: &str) -> Result<Share, String> {
    let parts = text.split_once(':').and_then(|(percent, duration)| {
        let percent = percent.trim_end_matches('%').parse().ok()?;
        Some((percent, duration))
    });
    let Some((percent, duration)) = parts else {
        return Err("want PERCENT:DURATION, like 10:5m".to_owned());
    };
    if !(1..=99).contains(&percent) {
        return Err(format!("{percent} is not a share: want 1 to 99 percent"));
    }
    Ok(Share {
        percent,
        time: *time(duration)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_option_has_a_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        for option in command
            .get_arguments()
            .filter(|arg| arg.get_long().is_some())
        {
            let long = option.get_long().unwrap_or_default();
            if matches!(long, "help" | "version" | "env") {
                continue;
            }
            let expected = format!("AIRLOCK_{}", long.to_uppercase().replace('-', "_"));
            let variable = option.get_env().and_then(|name| name.to_str());
            assert_eq!(variable, Some(expected.as_str()));
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_limits() {
        let capacity = Capacity {
            connections: 1000,
            bound: "nothing",
            guest_memory_bytes: 4 << 30,
            mappings: u64::MAX,
            addresses: u64::MAX,
        };
        let options = Cli::parse_from(["airlock"]).serve;
        let process = Process {
            total_compile_memory_bytes: 4 << 30,
            ..Process::new(1000, 4 << 30)
        };
        assert_eq!(options.limits(capacity), Ok((process, Limits::new(1000))));
    }

    #[test]
    fn an_address_that_cannot_be_used_is_named() {
        for (text, part) in [
            ("127.0.0.1:9999999", "`9999999` is not a port"),
            ("127.0.0.1:-1", "`-1` is not a port"),
            ("127.0.0.1:", "`` is not a port"),
            ("9999", "want ADDR:PORT"),
            ("::1:9999", "[::1]:9999"),
            ("300.0.0.1:9999", "`300.0.0.1` is not an address"),
        ] {
            let error = address(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(
            address("[::1]:0").map(|a| a.to_string()),
            Ok("[::1]:0".to_owned())
        );
    }

    #[test]
    fn sizes_and_times_have_units_and_bounds() {
        assert_eq!(size("64KiB").map(bytes), Ok(65536));
        assert_eq!(size("10").map(bytes), Ok(10));
        assert!(size("0").is_err() && size("2GiB").is_err() && size("many").is_err());
        assert_eq!(memory("100KiB").map(bytes), Ok(65536));
        assert!(memory("1KiB").is_err() && memory("5GiB").is_err());
        assert_eq!(
            time("500ms").map(|time| *time),
            Ok(Duration::from_millis(500))
        );
        assert!(time("0s").is_err() && time("5").is_err() && time("9000y").is_err());
    }

    #[test]
    fn a_share_is_a_percentage_and_a_time() {
        let of = |percent, seconds| Share {
            percent,
            time: Duration::from_secs(seconds),
        };
        assert_eq!(share("10:5m"), Ok(of(10, 300)));
        assert_eq!(share("99%:1s"), Ok(of(99, 1)));
        for wrong in [
            "", "10", "10:", ":5m", "0:5m", "100:5m", "-1:5m", "10:0s", "10:5", "10:9000y",
        ] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
