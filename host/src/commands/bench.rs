//! `airlock bench`: loads a server, or this one and its native twin, and prints what it took.

use std::io::{self, Write};
use std::process::ExitCode;
use std::{env, fs};

use airlock::bench::progress::Progress;
use airlock::bench::{self, Measured, plot, report, twin};
use airlock::cli::{self, Bench};
use anyhow::{Context, Result, anyhow};

/// The exit status is 0 when every answer was right.
pub(crate) fn run(options: &Bench) -> Result<ExitCode> {
    if let Some(twin) = options.twin {
        twin::serve(twin, io::stdout())?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = options.plan().map_err(|error| anyhow!(error))?;
    let progress = Progress::new(options.time());
    let Some(address) = options.address else {
        let program = env::current_exe().context("cannot find this program to start it")?;
        let variables = cli::variables();
        let compared = bench::compare(&plan, options.rounds, &program, &variables, &progress)?;
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
                ("native", compared.native.as_slice()),
                ("airlock", &compared.airlock),
            ],
        )?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut measured = bench::measure(&plan, address, &progress)?;
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
        None => Ok(ExitCode::SUCCESS),
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
fn draw(options: &Bench, title: &str, runs: &[(&str, &[Measured])]) -> Result<()> {
    let Some(path) = &options.plot else {
        return Ok(());
    };
    plot::draw_latencies(title, runs)
        .map_err(|error| anyhow!(error))
        .and_then(|svg| Ok(fs::write(path, svg)?))
        .with_context(|| format!("cannot draw `{}`", path.display()))
}
