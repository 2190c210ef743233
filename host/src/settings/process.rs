//! What holds for the whole process, whatever it serves.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::limits::process::DRAIN_TIME;
use crate::logging::LogFormat;
use crate::serve::scheduling::Scheduling;
use crate::settings::values::{AnySize, time};

/// The settings of a process.
#[derive(Debug, Args)]
pub struct ProcessSettings {
    /// Which threads serve connections: each its own, so many for all, or one for each core (`auto`)
    #[arg(long, env = "AIRLOCK_THREADS", value_name = "per-connection|N|auto")]
    #[arg(default_value_t = Scheduling::PerConnection)]
    pub threads: Scheduling,

    /// Take the listener over from the process that waits at this Unix socket, which then ends; and
    /// wait there for the next
    #[arg(long, env = "AIRLOCK_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,

    /// What all may take together.
    #[command(flatten)]
    pub limits: ProcessLimits,

    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogSettings,
}

/// The limits of a process.
#[derive(Debug, Args)]
pub struct ProcessLimits {
    /// The most memory of all instances together [default: half of the memory there is]
    ///
    /// Protects the machine's memory from all instances together.
    #[arg(long, env = "AIRLOCK_TOTAL_GUEST_MEMORY", value_name = "SIZE")]
    pub total_guest_memory: Option<AnySize>,

    /// How long a shutdown waits for the messages in progress
    #[arg(long, env = "AIRLOCK_DRAIN_TIMEOUT", value_name = "TIME")]
    #[arg(default_value_t = DRAIN_TIME.into(), value_parser = time)]
    pub drain_timeout: humantime::Duration,
}

/// The log on standard error.
#[derive(Debug, Args)]
pub struct LogSettings {
    /// How the log on standard error is written
    #[arg(
        long = "log-format",
        id = "log_format",
        env = "AIRLOCK_LOG_FORMAT",
        value_enum
    )]
    #[arg(default_value_t = LogFormat::Text)]
    pub format: LogFormat,

    /// The least that is logged
    #[arg(
        long = "log-level",
        id = "log_level",
        env = "AIRLOCK_LOG_LEVEL",
        value_enum
    )]
    #[arg(default_value_t = LogLevel::Info)]
    level: LogLevel,

    /// Log more than that: -v for details, -vv for everything
    #[arg(short, long, env = "AIRLOCK_VERBOSE", action = ArgAction::Count)]
    verbose: u8,

    /// Log less than that: -q for warnings and errors, -qq for errors only
    #[arg(short, long, env = "AIRLOCK_QUIET", action = ArgAction::Count)]
    quiet: u8,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogSettings {
    /// How much to log.
    pub fn level(&self) -> LevelFilter {
        let level = self.level as i16 + i16::from(self.verbose) - i16::from(self.quiet);
        match level {
            ..=0 => LevelFilter::ERROR,
            1 => LevelFilter::WARN,
            2 => LevelFilter::INFO,
            3 => LevelFilter::DEBUG,
            4.. => LevelFilter::TRACE,
        }
    }
}
