//! `airlock check`: says whether a guest would be served, and what it needs.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use airlock::cli::Check;
use airlock::limits::process::Process;
use airlock::logging::printable;
use airlock::process::capacity::{self, Each};
use airlock::process::room::Room;
use airlock::sandbox::compiler::Compiler;
use airlock::versions::guest_file::Digest;
use airlock::versions::trial::{self, Failed, Passed};
use anyhow::Result;
use serde_json::{Value, json};

use crate::commands::guest::{read, runtime};

/// The exit status is 0 when it would be served.
pub(crate) fn run(options: &Check) -> Result<ExitCode> {
    let file = match read(&options.file) {
        Err(error) if options.json => {
            let report = json!({ "accepted": false, "reason": format!("{error:#}") });
            writeln!(io::stdout(), "{report:#}")?;
            return Ok(ExitCode::FAILURE);
        }
        file => file?,
    };
    let runtime = runtime(&options.guest, Compiler::this_program(true))?;
    let result = trial::run(&runtime, &file.bytes, &|| true);
    let capacity = capacity::claim(Each::DEFAULT);
    let room = Room::new(&Process {
        mappings: capacity.mappings,
        ..Process::new(capacity.connections, capacity.guest_memory_bytes)
    });
    let report = if options.json {
        format!(
            "{:#}\n",
            as_json(file.digest, file.bytes.len(), &result, &room)
        )
    } else {
        as_text(file.digest, file.bytes.len(), &result, &room)
    };
    io::stdout().write_all(report.as_bytes())?;
    Ok(match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn as_json(sha256: Digest, bytes: usize, result: &Result<Passed, Failed>, room: &Room) -> Value {
    match result {
        Err(error) => json!({
            "accepted": false,
            "reason": error.to_string(),
            "sha256": sha256.to_string(),
            "bytes": bytes,
        }),
        Ok(passed) => json!({
            "accepted": true,
            "sha256": sha256.to_string(),
            "bytes": bytes,
            "exports": passed.sandbox.exports(),
            "imports": passed.sandbox.imports(),
            "compile_seconds": passed.compile_time.as_secs_f64(),
            "instantiate_seconds": passed.instantiate_time.as_secs_f64(),
            "memory_bytes": passed.memory_bytes,
            "connections": room.most(passed.need()).0,
            "connections_bound_by": room.most(passed.need()).1,
            "greeting": passed.greeting,
        }),
    }
}

fn as_text(sha256: Digest, bytes: usize, result: &Result<Passed, Failed>, room: &Room) -> String {
    let head = format!("sha256       {sha256}\nsize         {bytes} bytes\n");
    match result {
        Err(error) => format!("{head}refused      {}\n", printable(&error.to_string())),
        Ok(passed) => {
            let greeting = passed.greeting.as_ref();
            let greeting = greeting.map_or("none".to_owned(), |text| format!("{text:?}"));
            [
                head,
                list("exports", &passed.sandbox.exports()),
                list("imports", &passed.sandbox.imports()),
                format!("compiled in  {}\n", rounded(passed.compile_time)),
                format!("instance in  {}\n", rounded(passed.instantiate_time)),
                format!("memory       {} bytes\n", passed.memory_bytes),
                most(room, passed),
                format!("greeting     {greeting}\n"),
                "accepted\n".to_owned(),
            ]
            .concat()
        }
    }
}

fn most(room: &Room, passed: &Passed) -> String {
    let (most, bound) = room.most(passed.need());
    format!("connections  {most} at once on this machine ({bound})\n")
}

fn list(title: &str, names: &[String]) -> String {
    let titles = [title].into_iter().chain(std::iter::repeat(""));
    let lines = titles.zip(names);
    lines
        .map(|(title, name)| format!("{title:12} {}\n", printable(name)))
        .collect()
}

/// To three digits.
fn rounded(time: Duration) -> String {
    format!("{time:.2?}")
}
