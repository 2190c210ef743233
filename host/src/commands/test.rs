//! `airlock test`: plays conversations to a guest and compares what it answers.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use airlock::cli::Test;
use airlock::limits::guest::SCRIPT_BYTES;
use airlock::logging::printable;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::linking::Sandbox;
use airlock::sandbox::runtime::{Runtime, Scratch};
use airlock::sandbox::session::Session;
use airlock::settings::service::GuestSettings;
use airlock::store::bucket::Buckets;
use airlock::talk::client::Client;
use airlock::talk::{play, transcript};
use anyhow::{Context, Result, bail};
use similar::TextDiff;

use crate::commands::entries::{self, Entry};
use crate::commands::guest::{cannot_serve, read_or_greeter, runtime};
use crate::commands::stores;

/// The exit status is 0 when the guest answered as every conversation has it.
pub(crate) fn run(options: &Test) -> Result<ExitCode> {
    let guest = options.guest.as_deref();
    let file = read_or_greeter(guest)?;
    let runtime = runtime(&options.settings, Compiler::this_program(false))?;
    let sandbox = Sandbox::new(&runtime, &file.bytes, &|| true);
    let sandbox = sandbox.with_context(|| cannot_serve(guest))?;
    let contents = contents(&options.contents)?;
    let mut failed = 0;
    for script in &options.scripts {
        let name = script.display();
        let stores = filled(&options.settings, &contents)?;
        let report = match play(&runtime, &sandbox, stores, script) {
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

/// What stores have at the beginning, by their names.
type Contents = Vec<(String, Vec<Entry>)>;

fn contents(files: &[(String, PathBuf)]) -> Result<Contents> {
    let contents = files.iter().map(|(store, path)| {
        let name = format!("`{}`", path.display());
        let file = File::open(path).with_context(|| format!("cannot read the content {name}"))?;
        let entries = entries::read(BufReader::new(file), &name);
        Ok((store.clone(), entries.collect::<Result<_>>()?))
    });
    contents.collect()
}

/// The guest's stores, with nothing but that.
fn filled(settings: &GuestSettings, contents: &Contents) -> Result<Buckets> {
    let stores = stores::empty(settings);
    for (store, entries) in contents {
        for Entry { key, value, place } in entries {
            let set = stores.set(store, key, value.clone());
            set.with_context(|| format!("{place}: the store `{store}` does not take it"))?;
        }
    }
    Ok(stores)
}

/// What is different, if anything.
fn play(
    runtime: &Runtime,
    sandbox: &Sandbox,
    stores: Buckets,
    script: &Path,
) -> Result<Option<String>> {
    let mut text = String::new();
    File::open(script)?
        .take(SCRIPT_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > SCRIPT_BYTES {
        bail!("it has more than {SCRIPT_BYTES} bytes");
    }
    let script = transcript::parse(&text)?;
    let expected = transcript::write(&script);
    let scratch = Scratch {
        stores,
        ..runtime.scratch()
    };
    let topics = scratch.topics.clone();
    let publish = |topic: &str, body: &[u8]| {
        if let Some(topics) = &topics {
            topics.publish_from_outside(topic, body);
        }
    };
    let start = || Session::start(sandbox, Client::NOBODY, scratch);
    let (played, failure) = play::play(&script, publish, start);
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
