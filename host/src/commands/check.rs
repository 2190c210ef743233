//! `airlock check`: says whether a guest would be served, and what it needs; or all that is wrong with
//! a file of settings.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use airlock::cli::{Check, Checked};
use airlock::limits::process::Process;
use airlock::logging::printable;
use airlock::process::capacity::{self, Capacity, Each};
use airlock::process::room::Room;
use airlock::sandbox::compiler::Compiler;
use airlock::settings::Settings;
use airlock::settings::file::Fault;
use airlock::settings::service::{GuestSettings, ServiceSettings};
use airlock::versions::guest_file::{Digest, GuestFile};
use airlock::versions::trial::{self, Failed, Passed};
use anyhow::{Error, Result, anyhow};
use serde_json::{Map, Value, json};

use crate::commands::guest::{read, read_or_greeter, runtime};

/// The exit status is 0 when it would be served, or all of it.
pub(crate) fn run(task: Check) -> Result<ExitCode> {
    let (report, accepted) = match task.what {
        Checked::Guest(path, settings) => match read(&path) {
            Err(error) if task.json => (refused(&error), false),
            file => guest(file?, &settings, task.json)?,
        },
        Checked::File(settings, faults) => settings_file(&settings, &faults, task.json)?,
    };
    let report = match report {
        Value::String(text) => text,
        json => format!("{json:#}\n"),
    };
    io::stdout().write_all(report.as_bytes())?;
    Ok(match accepted {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The report, one object or a text, and whether all would be served.
type Report = (Value, bool);

/// All that is wrong with a file of settings, and a report on the guest of each service.
fn settings_file(settings: &Settings, faults: &[Fault], json: bool) -> Result<Report> {
    let mut faults: Vec<_> = faults.iter().map(Fault::to_string).collect();
    let mut accepted = faults.is_empty();
    let mut text: String = faults
        .iter()
        .map(|fault| format!("{}\n", printable(fault)))
        .collect();
    let capacity = settings.capacity(true);
    let mut services = Map::new();
    for service in &settings.services {
        let (report, is_accepted) = match served(service, capacity) {
            Ok(file) => guest(file, &service.guest_settings, json)?,
            Err(error) if json => (refused(&error), false),
            Err(error) => {
                let error = printable(&format!("{error:#}"));
                (format!("refused      {error}\n").into(), false)
            }
        };
        accepted &= is_accepted;
        let name = &service.name;
        if let Value::String(report) = &report {
            text.push_str(&format!("[service.{name}]\n{report}"));
        }
        services.insert(name.clone(), report);
    }
    if accepted && let Err(error) = settings.bounds(capacity, true) {
        accepted = false;
        text.push_str(&format!("{}\n", printable(&error)));
        faults.push(error);
    }
    let report = match json {
        true => json!({ "accepted": accepted, "faults": faults, "services": services }),
        false => text.into(),
    };
    Ok((report, accepted))
}

/// The guest of a service, if this machine has room for the service.
fn served(service: &ServiceSettings, capacity: Capacity) -> Result<GuestFile> {
    let limits = service.limits(capacity);
    limits.map_err(|error| anyhow!(error))?;
    read_or_greeter(service.guest.as_deref())
}

fn refused(error: &Error) -> Value {
    json!({ "accepted": false, "reason": format!("{error:#}") })
}

fn guest(file: GuestFile, settings: &GuestSettings, json: bool) -> Result<Report> {
    let runtime = runtime(settings, Compiler::this_program(true))?;
    let result = trial::run(&runtime, &file.bytes, &|| true);
    let capacity = capacity::claim(Each::DEFAULT, 0);
    let room = Room::new(&Process {
        mappings: capacity.mappings,
        ..Process::new(capacity.connections, capacity.guest_memory_bytes)
    });
    let report = match json {
        true => as_json(file.digest, file.bytes.len(), &result, &room),
        false => as_text(file.digest, file.bytes.len(), &result, &room).into(),
    };
    Ok((report, result.is_ok()))
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
