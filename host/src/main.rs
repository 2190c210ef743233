//! `airlock`: parses the command line, builds the server, runs it, and says how it ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{self, ExitCode};
use std::thread;

use airlock::cli::{Cli, Serve};
use airlock::sandbox::Sandbox;
use airlock::server::Ended;
use airlock::shutdown::Shutdown;
use airlock::{GREETER, capacity, limits, logging, server};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::{Domain, Protocol, Socket, Type};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return usage(&error),
        Err(help) => help.exit(),
    };
    let log = logging::start(cli.serve.log_format, cli.serve.level());
    let result = serve(&cli.serve);
    drop(log);
    match result {
        Ok(Ended::InTime) => ExitCode::SUCCESS,
        Ok(Ended::Cut(_)) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Serve) -> Result<Ended> {
    let capacity = capacity::claim();
    let limits = options.limits(capacity).map_err(|error| anyhow!(error))?;
    let guest = match &options.guest {
        None => GREETER.to_vec(),
        Some(path) => read_component(path)
            .with_context(|| format!("cannot read the guest `{}`", path.display()))?,
    };
    tracing::debug!(?capacity, ?limits, "this server's bounds");
    let environment = options.environment().map_err(|error| anyhow!(error))?;
    let sandbox =
        Sandbox::new(&guest, environment, limits).with_context(|| match &options.guest {
            None => "cannot serve the built-in greeter".to_owned(),
            Some(path) => format!("cannot serve `{}`", path.display()),
        })?;
    drop(guest);

    let shutdown = Shutdown::new()?;
    obey_signals(shutdown.clone())?;
    let listener = listen(options.listen, options.backlog)
        .map_err(|error| listen_advice(options.listen, &error))?;
    if options.listen.port() == 0 {
        // The one line on standard output, for whoever asked for a free port. A reader that has
        // gone is no reason not to serve.
        let _ = writeln!(io::stdout(), "listening on {}", listener.local_addr()?);
    }
    Ok(server::run(listener, sandbox, options.framing, &shutdown)?)
}

/// Reads a component, bounded: the name may be that of a device or an endless pipe.
fn read_component(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limits::COMPONENT_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::COMPONENT_BYTES {
        bail!("it has more than {} bytes", limits::COMPONENT_BYTES);
    }
    Ok(bytes)
}

fn listen(address: SocketAddr, backlog: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the last run to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::from(backlog))?;
    Ok(socket.into())
}

fn listen_advice(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; stop the program that has it, or take another with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need privileges; take a higher one with --listen, or grant \
             CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; 0.0.0.0 or [::] are all of them"
        }
        _ => return anyhow!("cannot listen on {address}: {error}"),
    };
    anyhow!("cannot listen on {address}: {advice}")
}

/// The first signal drains, a second one ends the process at once.
fn obey_signals(shutdown: Shutdown) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if shutdown.is_draining() {
                    process::exit(1);
                }
                shutdown.drain();
            }
        })?;
    Ok(())
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
