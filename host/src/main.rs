//! `airlock`: parses the command line, runs what it asks for, and says how it ended.

mod commands;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use airlock::cli::{Cli, Command, Serve};
use airlock::logging;
use airlock::sandbox::compiler::child;
use airlock::serve::listener;
use anyhow::{Result, anyhow};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    // A file that has reached its limit of size (`ulimit -f`), the log's or a recording, is then an
    // error like any other, and not the end of the process.
    let _ = flag::register(SIGXFSZ, Arc::default());
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return usage(&error),
        Err(help) => help.exit(),
    };
    let result = match cli.command {
        Some(Command::Compile(options)) => child::run(options).map_err(Into::into),
        None => serve(cli.serve),
        Some(Command::Record(record)) => serve(Serve {
            record: Some(record.folder),
            ..record.serve
        }),
        Some(Command::Check(options)) => aside(|| commands::check::run(&options)),
        Some(Command::Test(options)) => aside(|| commands::test::run(&options)),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(options: Serve) -> Result<ExitCode> {
    // Before the log's thread: it changes the environment.
    let from_systemd = listener::from_systemd().map_err(|error| anyhow!(error))?;
    let _log = logging::start(options.log_format, options.level());
    commands::serve::run(options, from_systemd)
}

/// Runs a command whose result is its output; what is logged on the way is what the guest prints.
fn aside(command: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    let _log = logging::start(logging::LogFormat::Text, LevelFilter::INFO);
    command()
}

/// The first paragraph of clap's report says it all; the rest is its advice to read the help.
fn usage(error: &clap::Error) -> ExitCode {
    let report = error.to_string();
    let lines: Vec<_> = report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let line = lines.join(" ");
    complain(&format!(
        "{} (see airlock --help)",
        line.trim_start_matches("error: ")
    ));
    ExitCode::from(2)
}

fn complain(message: &str) {
    // If standard error has gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "airlock: {}", logging::printable(message));
}
