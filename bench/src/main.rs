//! `airlock-bench`: loads a server, or Airlock and its native twin, and prints what it took.

use std::io::{self, Write};
use std::process::ExitCode;
use std::{env, fs};

use airlock::logging::printable;
use anyhow::{Context, Result, anyhow};
use bench::measured::Measured;
use bench::options::{Granted, Options};
use bench::progress::Progress;
use bench::{plot, program, report, turns, twin};
use clap::Parser;

/// The exit status is 0 when every answer was right.
fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("airlock-bench: {error:#}");
            // If standard error has gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{}", printable(&message));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(twin) = options.twin {
        match twin::serve(
            twin,
            &options.listen,
            options.store.as_ref().map(Granted::settings),
            io::stdout(),
        )? {}
    }
    let plan = options.plan().map_err(|error| anyhow!(error))?;
    let Some(address) = &options.address else {
        let airlock = program::build(program::PROFILE)?;
        let itself = env::current_exe().context("cannot find this program to start it")?;
        let (mut airlock_options, mut twin_options) = (options.airlock.clone(), Vec::new());
        if let Some(store) = &options.store {
            let guest = program::build_guest("keeper")?;
            airlock_options.push(format!("--guest={}", guest.display()));
            airlock_options.push(store.airlock_option());
            twin_options.push(store.option());
        }
        let progress = Progress::new(options.time());
        let compared = turns::compare(
            &plan,
            options.rounds,
            (options.door, options.beside()),
            (&airlock, options.threads, &airlock_options),
            (&itself, &twin_options),
            &progress,
        )?;
        drop(progress);
        print(&if options.json {
            format!("{:#}\n", report::comparison_as_json(&plan, &compared))
        } else {
            report::comparison_as_text(&plan, &compared)
        })?;
        draw(
            options,
            &plan.title(),
            &[
                (compared.twin.column(), compared.native.as_slice()),
                ("airlock", &compared.airlock),
            ],
        )?;
        return Ok(());
    };
    let progress = Progress::new(options.time());
    let mut measured = turns::measure(&plan, address.clone(), &progress)?;
    drop(progress);
    let fault = measured.fault.take();
    // Without an answer there is nothing to report but the fault.
    if measured.answered > 0 {
        print(&if options.json {
            format!("{:#}\n", report::as_json(&plan, &measured))
        } else {
            report::as_text(&plan, &measured)
        })?;
        let name = address.to_string();
        draw(
            options,
            &plan.title(),
            &[(&name, std::slice::from_ref(&measured))],
        )?;
    }
    match fault {
        None => Ok(()),
        Some(fault) => Err(anyhow!(fault).context(match measured.errors {
            1 => "a connection failed".to_owned(),
            errors => format!("{errors} connections failed, the first of them so"),
        })),
    }
}

fn print(report: &str) -> io::Result<()> {
    io::stdout().write_all(report.as_bytes())
}

/// After the report, which a wrong path does not take away.
fn draw(options: &Options, title: &str, runs: &[(&str, &[Measured])]) -> Result<()> {
    let Some(path) = &options.plot else {
        return Ok(());
    };
    plot::draw_latencies(title, runs)
        .map_err(|error| anyhow!(error))
        .and_then(|svg| Ok(fs::write(path, svg)?))
        .with_context(|| format!("cannot draw `{}`", path.display()))
}
