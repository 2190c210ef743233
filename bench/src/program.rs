//! The program that is measured: `airlock`, as its package builds it.

use std::env;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    made_by(&["--package=host", "--bin=airlock", "--profile", profile])
}

/// The same of a guest in `tests/guests`: `keeper`, which does to its stores what its lines say, or `speaker`,
/// which does so with topics.
///
/// # Errors
/// As with `airlock`.
pub fn build_guest(name: &str) -> Result<PathBuf, NotBuilt> {
    let package = format!("--package={name}");
    made_by(&[&package, "--release", "--target=wasm32-wasip2"])
}

fn made_by(arguments: &[&str]) -> Result<PathBuf, NotBuilt> {
    // The one that has started this program, if one has.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What the cargo that has started this program says of this package: ring's build asks for it, and
    // would be done again, with all that depends on it, whenever it differs.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
        .arg("build")
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        // It may take minutes, which somebody who looks on wants to see.
        .args((!io::stderr().is_terminal()).then_some("--quiet"))
        .current_dir(ROOT)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().map_err(NotBuilt::Cargo)?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(program);
    match programs.next() {
        Some(program) if output.status.success() => Ok(program),
        _ => {
            let command = format!("cargo build {}", arguments.join(" "));
            Err(NotBuilt::Build(command))
        }
    }
}

/// What one of cargo's messages says it has made, or found to be fresh: a guest is a library.
fn program(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let files = message["filenames"].as_array()?.iter();
    let mut names = files.filter_map(Value::as_str);
    let guest = names.find(|name| name.ends_with(".wasm"));
    let name = message["executable"].as_str().or(guest)?;
    Some(Path::new(name).to_owned())
}
