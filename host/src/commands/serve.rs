//! `airlock`: builds the server and everything around it, and runs it.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::thread;

use airlock::cli::{self, Serve};
use airlock::process::service_manager::{self, Reloading};
use airlock::process::shutdown::Shutdown;
use airlock::process::takeover::{Predecessor, TakeoverSocket};
use airlock::process::{capacity, heap};
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::Runtime;
use airlock::serve::admission::Door;
use airlock::serve::listener;
use airlock::serve::recording::Recordings;
use airlock::serve::server::{self, Drained, Manner};
use airlock::serve::service::Service;
use airlock::versions::assignment::Versions;
use airlock::versions::guest_file::{Fingerprint, GuestFile};
use airlock::versions::reload::{Policy, Reload, Trigger};
use airlock::versions::trial;
use airlock::{GREETER, logging};
use anyhow::{Context, Result, anyhow, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::commands::guest::read;

pub(crate) fn run(options: Serve, from_systemd: Option<TcpListener>) -> Result<ExitCode> {
    if let Some(path) = cli::service_manager() {
        service_manager::tell_at(path)?;
    }
    heap::settle();
    let capacity = capacity::claim(options.each());
    let (process, limits) = options.limits(capacity).map_err(|error| anyhow!(error))?;
    // Before it is read: when it changes from then on, it is read again.
    let seen = options.guest.as_deref().and_then(Fingerprint::of);
    let guest = match &options.guest {
        None => GuestFile::from(GREETER.to_vec()),
        Some(path) => read(path)?,
    };
    tracing::debug!(?capacity, ?process, ?limits, "this server's bounds");
    let environment = options.guest_options.environment();
    let environment = environment.map_err(|error| anyhow!(error))?;
    let host = Host::new(process, Compiler::this_program(false))?;
    let runtime = Runtime::new(&host, None, environment, limits);
    let passed = trial::run(&runtime, &guest.bytes, &|| true);
    let passed = passed.with_context(|| match &options.guest {
        None => "cannot serve the built-in greeter".to_owned(),
        Some(path) => format!("cannot serve `{}`", path.display()),
    })?;
    let versions = Versions::new(passed, guest.digest);
    drop(guest.bytes);
    // The disk is the thread that writes them; it ends after the server.
    let (recordings, _disk) = match options.record.clone() {
        None => (None, None),
        Some(folder) => {
            let cannot = format!("cannot record into `{}`", folder.display());
            let (recordings, disk) = Recordings::new(folder).context(cannot)?;
            (Some(recordings), Some(disk))
        }
    };

    let shutdown = Shutdown::new()?;
    let service = Service::new(runtime, versions, options.framing, recordings, &shutdown);
    let reload = start_reload(&options, seen, &service, &shutdown)?;
    obey_signals(
        shutdown.clone(),
        reload.iter().map(Reload::trigger).collect(),
    )?;
    let (listener, takeover) = listen(&options, from_systemd, &shutdown)?;
    if options.listen.port() == 0 {
        // The one line on standard output, for whoever asked for a free port. A reader that has
        // gone is no reason not to serve.
        let _ = writeln!(io::stdout(), "listening on {}", listener.local_addr()?);
    }
    let doors = vec![Door::new(listener, service)?];
    let manner = Manner {
        scheduling: options.threads,
        watchdog_pause: service_manager::watchdog_pause(),
    };
    match server::run(doors, takeover, &host, manner, &shutdown)? {
        Drained::InTime => Ok(ExitCode::SUCCESS),
        Drained::Cut(_) => Ok(ExitCode::FAILURE),
    }
}

/// The listener: of the process before this one, of systemd, or our own; and where the next
/// process takes it over.
fn listen(
    options: &Serve,
    from_systemd: Option<TcpListener>,
    shutdown: &Shutdown,
) -> Result<(TcpListener, Option<TakeoverSocket>)> {
    let Some(path) = &options.lifecycle.takeover else {
        return Ok((own_listener(options, from_systemd)?, None));
    };
    let shown = path.display();
    let before = Predecessor::ask(path, shutdown)
        .with_context(|| format!("cannot take over from `{shown}`"))?;
    let listener = match &before {
        Some(before) => {
            let theirs = before.listener.local_addr()?;
            let wanted = options.listen;
            if !is_wanted(wanted, theirs) {
                bail!(
                    "the process at `{shown}` listens on {theirs} and --listen says {wanted}: stop \
                     it, or say the same"
                );
            }
            before.listener.try_clone()?
        }
        None => own_listener(options, from_systemd)?,
    };
    let takeover = TakeoverSocket::prepare(path, &listener, before, shutdown.clone())
        .with_context(|| format!("cannot wait at `{shown}` for the next process"))?;
    Ok((listener, Some(takeover)))
}

fn own_listener(options: &Serve, from_systemd: Option<TcpListener>) -> Result<TcpListener> {
    match from_systemd {
        Some(listener) => Ok(listener),
        None => listener::bind(
            options.listen,
            options.backlog.unwrap_or(listener::MOST_BACKLOG),
            options.lifecycle.reuse_port,
        )
        .map_err(|error| anyhow!(error)),
    }
}

/// Port 0 is any port.
fn is_wanted(wanted: SocketAddr, address: SocketAddr) -> bool {
    wanted.ip() == address.ip() && [0, address.port()].contains(&wanted.port())
}

fn start_reload(
    options: &Serve,
    seen: Option<Fingerprint>,
    service: &Service,
    shutdown: &Shutdown,
) -> io::Result<Option<Reload>> {
    let Some(file) = &options.guest else {
        return Ok(None);
    };
    let policy = Policy {
        file: file.clone(),
        watch: !options.reload.no_watch,
        canary: options.reload.canary,
        max_age: options.reload.max_guest_age.map(Into::into),
    };
    service.reload(policy, seen, shutdown).map(Some)
}

/// The first SIGINT or SIGTERM drains, a second one ends the process at once. SIGHUP reloads.
fn obey_signals(shutdown: Shutdown, reloads: Vec<Trigger>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    let reloading = Reloading::begin();
                    if reloads.is_empty() {
                        tracing::warn!(
                            "nothing to reload: the greeter is built in, name a file with --guest"
                        );
                    }
                    for reload in &reloads {
                        reload.reload(reloading.clone());
                    }
                } else if shutdown.is_draining() {
                    tracing::warn!("ending at once: told to end a second time");
                    logging::end();
                    std::process::exit(1);
                } else {
                    shutdown.drain();
                }
            }
        })?;
    Ok(())
}
