//! `airlock test`: plays conversations to a guest and compares what it answers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use airlock::cli::Test;
use airlock::limits::guest::SCRIPT_BYTES;
use airlock::logging::printable;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::linking::Sandbox;
use airlock::sandbox::session::Session;
use airlock::talk::client::Client;
use airlock::talk::{play, transcript};
use anyhow::{Context, Result, bail};
use similar::TextDiff;

use crate::commands::guest::{cannot_serve, read_or_greeter, runtime};

/// The exit status is 0 when the guest answered as every conversation has it.
pub(crate) fn run(options: &Test) -> Result<ExitCode> {
    let guest = options.guest.as_deref();
    let file = read_or_greeter(guest)?;
    let runtime = runtime(&options.settings, Compiler::this_program(false))?;
    let sandbox = Sandbox::new(&runtime, &file.bytes, &|| true);
    let sandbox = sandbox.with_context(|| cannot_serve(guest))?;
    let mut failed = 0;
    for script in &options.scripts {
        let name = script.display();
        let report = match play(&sandbox, script) {
            Ok(None) => format!("ok      {name}\n"),
            Ok(Some(difference)) => {
                failed += 1;
                format!("FAILED  {name}\n{difference}")
            }
            Err(error) => {
                failed += 1;
                format!("FAILED  {name}\n{error:#}\n")
            }
        };
        io::stdout().write_all(report.as_bytes())?;
    }
    let all = options.scripts.len();
    writeln!(
        io::stdout(),
        "{} of {all} conversations as expected",
        all - failed
    )?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is different, if anything.
fn play(sandbox: &Sandbox, script: &Path) -> Result<Option<String>> {
    let mut text = String::new();
    File::open(script)?
        .take(SCRIPT_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > SCRIPT_BYTES {
        bail!("it has more than {SCRIPT_BYTES} bytes");
    }
    let script = transcript::parse(&text)?;
    let expected = transcript::write(&script);
    let (played, failure) = play::play(&script, || Session::start(sandbox, Client::NOBODY));
    if played == expected {
        return Ok(None);
    }
    let diff = TextDiff::from_lines(&expected, &played);
    let mut report = diff
        .unified_diff()
        .header("expected", "answered")
        .to_string();
    if let Some(error) = failure {
        let error = printable(&error.to_string());
        report.push_str(&format!("the guest failed: {error}\n"));
    }
    Ok(Some(report))
}
