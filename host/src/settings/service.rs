//! What belongs to one service: where it listens, its guest, and what its clients may take.

use std::path::PathBuf;

use clap::Args;

use crate::limits::guest::{
    CALL_TIME, COMPILE_MEMORY_BYTES, COMPILE_TIME, GUEST_MEMORY_BYTES, Guest, REPLY_BYTES,
    STORE_TIME,
};
use crate::limits::wire::{IDLE_TIME, LINE_BYTES, LINE_TIME, WRITE_TIME};
use crate::serve::listener::MOST_BACKLOG;
use crate::settings::door::{DoorSettings, door};
use crate::settings::process::ProcessSettings;
use crate::settings::store::{StoreSettings, store};
use crate::settings::topics::{TopicsSettings, topics};
use crate::settings::values::{CompileSize, Count, MemorySize, MessageSize, share, time, variable};
use crate::talk::framing::Framing;
use crate::versions::canary::Share;

/// All that a server has to know.
#[derive(Debug)]
pub struct Settings {
    /// What holds for the whole process.
    pub process: ProcessSettings,
    /// What is served, each under a name of its own.
    pub services: Vec<ServiceSettings>,
}

/// The service that options describe.
pub const DEFAULT_NAME: &str = "default";

/// Options that are about the file of a guest.
pub const NEEDS_GUEST: [&str; 3] = ["no-watch", "canary", "max-guest-age"];

/// Options that do not go together.
#[derive(Debug)]
pub struct Conflict {
    /// The name of one of them.
    pub option: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The settings of one service.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ServiceSettings {
    /// What it is called.
    #[arg(skip = DEFAULT_NAME)]
    pub name: String,

    /// Where to wait for connections: ADDR:PORT, tcp://ADDR:PORT or unix:///PATH, each with
    /// parameters (?mode=0660); port 0 takes a free one and prints it [may be repeated]
    #[arg(
        long,
        env = "AIRLOCK_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    #[arg(default_value = "127.0.0.1:9999", value_parser = door)]
    pub listen: Vec<DoorSettings>,

    /// Connections the kernel completes ahead of time [default: as many as it allows]
    #[arg(long, env = "AIRLOCK_BACKLOG", value_name = "N")]
    pub backlog: Option<Count<MOST_BACKLOG>>,

    /// Share the port with other processes; the kernel gives each a part of the connections
    #[arg(long, env = "AIRLOCK_REUSE_PORT")]
    pub reuse_port: bool,

    /// The component to serve [default: the built-in greeter]
    #[arg(long, env = "AIRLOCK_GUEST", value_name = "FILE.wasm")]
    pub guest: Option<PathBuf>,

    /// What makes a message: `auto` tells by the first newline
    #[arg(long, env = "AIRLOCK_FRAMING", value_enum, default_value_t = Framing::Auto)]
    pub framing: Framing,

    /// The longest line, without its ending
    ///
    /// Protects the server's memory from clients.
    #[arg(long, env = "AIRLOCK_MAX_LINE", value_name = "SIZE")]
    #[arg(default_value_t = LINE_BYTES.into())]
    pub max_line: MessageSize,

    /// The most connections at once [default: what the limits of this process and machine allow]
    ///
    /// Protects the process from running out.
    #[arg(long, env = "AIRLOCK_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<Count>,

    /// The most connections at once from one address; of IPv6, from one /64 network [default: the
    /// same as --max-connections]
    ///
    /// Protects the others from one address (of IPv6: one /64 network).
    #[arg(long, env = "AIRLOCK_MAX_CONNECTIONS_PER_IP", value_name = "N")]
    pub max_connections_per_ip: Option<Count>,

    /// How long a client may be silent between lines
    ///
    /// Protects the connection cap from clients that say nothing.
    #[arg(long, env = "AIRLOCK_IDLE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = IDLE_TIME.into(), value_parser = time)]
    pub idle_timeout: humantime::Duration,

    /// How long a client may take for one line, from its first byte
    ///
    /// Protects the connection cap from clients that send slowly (slowloris).
    #[arg(long, env = "AIRLOCK_LINE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = LINE_TIME.into(), value_parser = time)]
    pub line_timeout: humantime::Duration,

    /// How long a client may take nothing of its replies
    ///
    /// Protects the connection cap from clients that take nothing of what waits for them for this
    /// long, or less than 1 KiB a second for longer.
    #[arg(long, env = "AIRLOCK_WRITE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = WRITE_TIME.into(), value_parser = time)]
    pub write_timeout: humantime::Duration,

    /// Write every conversation to a file of its own in this folder
    #[arg(long, env = "AIRLOCK_RECORD", value_name = "DIR")]
    pub record: Option<PathBuf>,

    /// What the guest may do and take.
    #[command(flatten)]
    pub guest_settings: GuestSettings,

    /// How guests are replaced.
    #[command(flatten)]
    pub reload: ReloadSettings,
}

/// What a guest may do and take, wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "What the guest may do and take")]
pub struct GuestSettings {
    /// An environment variable for the guest [may be repeated] [env: AIRLOCK_ENV, one a line]
    #[arg(long = "env", id = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub environment: Vec<(String, String)>,

    /// How long the guest may take for one line, awake or asleep
    ///
    /// Protects the server's threads from the guest, awake or asleep.
    #[arg(long, env = "AIRLOCK_CALL_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = CALL_TIME.into(), value_parser = time)]
    pub call_timeout: humantime::Duration,

    /// The most memory of one instance of the guest
    ///
    /// Protects the machine's memory from an instance of the guest.
    #[arg(long, env = "AIRLOCK_GUEST_MEMORY", value_name = "SIZE")]
    #[arg(default_value_t = GUEST_MEMORY_BYTES.into())]
    pub guest_memory: MemorySize,

    /// A store that the guest may use through `wasi:keyvalue`, by the name that it knows: memory:,
    /// file:/PATH or redis://HOST:PORT, each with parameters (?prefix=NAME) [may be repeated]
    #[arg(
        long = "store",
        id = "store",
        env = "AIRLOCK_STORE",
        value_name = "NAME=URL",
        value_delimiter = ','
    )]
    #[arg(value_parser = store)]
    pub stores: Vec<StoreSettings>,

    /// How long one operation of a store may take, within the time of the call
    ///
    /// Protects clients from a store that is slow.
    #[arg(long, env = "AIRLOCK_STORE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = STORE_TIME.into(), value_parser = time)]
    pub store_timeout: humantime::Duration,

    /// Let guests publish, and hear what the guests of other connections publish: memory: within this
    /// process, redis://HOST:PORT in all that name the same Redis [default: they cannot]
    #[arg(long, env = "AIRLOCK_TOPICS", value_name = "URL", value_parser = topics)]
    pub topics: Option<TopicsSettings>,

    /// How long compiling the guest may take
    ///
    /// Protects the processors from files that take long to compile.
    #[arg(long, env = "AIRLOCK_COMPILE_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = COMPILE_TIME.into(), value_parser = time)]
    pub compile_timeout: humantime::Duration,

    /// The most memory for compiling the guest; a server takes half of the memory there is at most
    ///
    /// Protects the machine's memory from such files.
    #[arg(long, env = "AIRLOCK_COMPILE_MEMORY", value_name = "SIZE")]
    #[arg(default_value_t = COMPILE_MEMORY_BYTES.into())]
    pub compile_memory: CompileSize,

    /// The longest reply and greeting
    ///
    /// Protects the server's memory from the guest.
    #[arg(long, env = "AIRLOCK_MAX_REPLY", value_name = "SIZE")]
    #[arg(default_value_t = REPLY_BYTES.into())]
    pub max_reply: MessageSize,
}

/// How new versions of the guest are taken.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "New versions of the guest")]
pub struct ReloadSettings {
    /// Do not watch the guest's file; SIGHUP still loads it
    #[arg(long, env = "AIRLOCK_NO_WATCH")]
    pub no_watch: bool,

    /// Give a new version this share of the new connections first, for this long: 10:5m. If it fails
    /// more often than the current version, it is rolled back
    #[arg(long, env = "AIRLOCK_CANARY", value_name = "PERCENT:TIME")]
    #[arg(value_parser = share)]
    pub canary: Option<Share>,

    /// End the connections of a version that was replaced this long ago [default: they may stay]
    #[arg(long, env = "AIRLOCK_MAX_GUEST_AGE", value_name = "TIME", value_parser = time)]
    pub max_guest_age: Option<humantime::Duration>,
}

impl ServiceSettings {
    /// What cannot be, whatever the machine. `shown` is how the name of an option is written.
    pub fn conflicts(&self, process: &ProcessSettings, shown: fn(&str) -> String) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let mut conflict = |option, message| conflicts.push(Conflict { option, message });
        let reload = &self.reload;
        let given = [
            reload.no_watch,
            reload.canary.is_some(),
            reload.max_guest_age.is_some(),
        ];
        for (option, given) in NEEDS_GUEST.into_iter().zip(given) {
            if given && self.guest.is_none() {
                let guest = shown("guest");
                let message = format!(
                    "{} is about the file of a guest: name it with {guest}",
                    shown(option)
                );
                conflict(option, message);
            }
        }
        let stores = &self.guest_settings.stores;
        for (number, store) in stores.iter().enumerate() {
            let (name, others) = (&store.name, &stores[..number]);
            if others.iter().any(|other| other.name == *name) {
                conflict("store", format!("{} grants `{name}` twice", shown("store")));
            }
            if let Some(other) = others.iter().find(|other| store.contradicts(other)) {
                conflict("store", contradiction(store, &format!("`{}`", other.name)));
            }
        }
        let memory = self.guest_settings.guest_memory;
        let total = process.limits.total_guest_memory;
        if total.is_some_and(|total| total.bytes() < memory.bytes()) {
            let message = format!(
                "{} has to be at least {}, which is {memory}",
                shown("total-guest-memory"),
                shown("guest-memory")
            );
            conflict("total-guest-memory", message);
        }
        let line = self.max_line;
        if memory.bytes() < line.bytes() {
            let message = format!(
                "{} {memory} has no room for a line of {} {line}: raise the one or lower the other",
                shown("guest-memory"),
                shown("max-line")
            );
            conflict("guest-memory", message);
        }
        conflicts
    }
}

/// What to say of a store that `other` has in another way.
pub(super) fn contradiction(store: &StoreSettings, other: &str) -> String {
    format!(
        "`{}` is the same file as {other}: want the same durability and quota",
        store.name
    )
}

impl GuestSettings {
    /// The bounds of guests.
    pub fn limits(&self) -> Guest {
        /// A linear memory has whole pages.
        const PAGE: usize = 64 << 10;
        Guest {
            reply_bytes: self.max_reply.as_usize(),
            call_time: self.call_timeout.into(),
            memory_bytes: self.guest_memory.as_usize() / PAGE * PAGE,
            store_time: self.store_timeout.into(),
            compile_time: self.compile_timeout.into(),
            compile_memory_bytes: self.compile_memory.bytes(),
        }
    }
}
