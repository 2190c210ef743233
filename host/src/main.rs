//! `airlock`: parses the command line, runs what it asks for, and says how it ended.

mod commands;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use airlock::cli::{self, Refusal, Source, Task};
use airlock::logging;
use airlock::sandbox::compiler::child;
use airlock::serve::listener;
use airlock::settings::Settings;
use anyhow::{Result, anyhow};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    // A file that has reached its limit of size (`ulimit -f`), the log's or a recording, is then an
    // error like any other, and not the end of the process.
    let _ = flag::register(SIGXFSZ, Arc::default());
    let task = match cli::from_process() {
        Ok(task) => task,
        Err(Refusal::Usage(help)) if !help.use_stderr() => help.exit(),
        Err(refusal) => return refuse(&refusal),
    };
    let result = match task {
        Task::Serve(settings, source) => serve(settings, source),
        Task::Check(task) => aside(|| commands::check::run(*task)),
        Task::Store(task) => aside(|| commands::store::run(*task)),
        Task::Test(task) => aside(|| commands::test::run(&task)),
        Task::Print(text) => print(&text),
        Task::Compile(options) => child::run(options).map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(settings: Settings, source: Option<Box<Source>>) -> Result<ExitCode> {
    // Before the log's thread: it changes the environment.
    let from_systemd = listener::from_systemd().map_err(|error| anyhow!(error))?;
    let _log = logging::start(settings.process.log.format, settings.process.log.level());
    commands::serve::run(settings, source, from_systemd)
}

/// Runs a command whose result is its output; what is logged on the way is what the guest prints.
fn aside(command: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    let _log = logging::start(logging::LogFormat::Text, LevelFilter::INFO);
    command()
}

fn print(text: &str) -> Result<ExitCode> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(refusal: &Refusal) -> ExitCode {
    complain(&match refusal {
        Refusal::Usage(_) => format!("{refusal} (see airlock --help)"),
        Refusal::File(_) => refusal.to_string(),
    });
    ExitCode::from(2)
}

fn complain(message: &str) {
    // If standard error has gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "airlock: {}", logging::printable(message));
}
