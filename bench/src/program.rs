//! The program that is measured: `airlock`, as its package builds it.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, iter};

use serde_json::Value;
use thiserror::Error;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The profile that this crate is built in; `release` is `bench` too.
pub const PROFILE: &str = if cfg!(debug_assertions) {
    "dev"
} else {
    "release"
};

/// There is no program to measure.
#[derive(Debug, Error)]
pub enum NotBuilt {
    /// Cargo could not be asked.
    #[error("cannot run `cargo`, which builds `airlock`")]
    Cargo(#[source] io::Error),
    /// Cargo has said why.
    #[error("`airlock` is not built: see what `{0}` says")]
    Build(String),
}

/// Builds `airlock` in this profile of cargo's, if that has not been done since it was changed, and
/// returns where it is. Cargo gives a package no program of another one, and it alone knows which is
/// stale; so it is asked.
///
/// # Errors
/// There is no cargo, or it fails, and has said why on standard error.
pub fn build(profile: &str) -> Result<PathBuf, NotBuilt> {
    let arguments = [
        "build",
        "--package=host",
        "--bin=airlock",
        "--profile",
        profile,
    ];
    // The one that has started this program, if one has.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        // It may take minutes, which somebody who looks on wants to see.
        .args((!io::stderr().is_terminal()).then_some("--quiet"))
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().map_err(NotBuilt::Cargo)?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(executable);
    match programs.next() {
        Some(program) if output.status.success() => Ok(program),
        _ => {
            let words: Vec<_> = iter::once("cargo").chain(arguments).collect();
            Err(NotBuilt::Build(words.join(" ")))
        }
    }
}

/// What one of cargo's messages says it has made, or found to be fresh.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    Some(Path::new(message["executable"].as_str()?).to_owned())
}
