//! `airlock`: builds the server and everything around it, and runs it.

use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use airlock::cli;
use airlock::limits::Limits;
use airlock::logging;
use airlock::process::heap;
use airlock::process::service_manager::{self, Reloading};
use airlock::process::shutdown::Shutdown;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::Runtime;
use airlock::serve::admission::Door;
use airlock::serve::listener::Activated;
use airlock::serve::recording::Recordings;
use airlock::serve::recording::disk::Disk;
use airlock::serve::server::{self, Drained, Manner};
use airlock::serve::service::Service;
use airlock::settings::Settings;
use airlock::settings::service::{DEFAULT_NAME, ServiceSettings};
use airlock::versions::assignment::Versions;
use airlock::versions::guest_file::Fingerprint;
use airlock::versions::reload::{Policy, Reload, Trigger};
use airlock::versions::trial;
use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::commands::guest::{cannot_serve, read_or_greeter};
use crate::commands::listen::listen;

pub(crate) fn run(settings: Settings, activated: Vec<Activated>) -> Result<ExitCode> {
    if let Some(path) = cli::service_manager() {
        service_manager::tell_at(path)?;
    }
    heap::settle();
    let capacity = settings.capacity();
    let (process, limits) = settings.bounds(capacity).map_err(|error| anyhow!(error))?;
    tracing::debug!(?capacity, ?process, ?limits, "this server's bounds");
    let host = Host::new(process, Compiler::this_program(false))?;
    let shutdown = Shutdown::new()?;
    let (mut services, mut reloads) = (Vec::new(), Vec::new());
    // The threads that write recordings; they end after the server.
    let mut disks = Vec::new();
    let is_alone = settings.services.len() == 1;
    for (service, limits) in settings.services.iter().zip(limits) {
        // The one that options describe needs no name in the log.
        let name = (!is_alone || service.name != DEFAULT_NAME).then_some(service.name.as_str());
        let started = start(&host, name, service, limits, &shutdown);
        let started = match is_alone {
            true => started?,
            false => started.with_context(|| format!("service `{}`", service.name))?,
        };
        services.push(started.service);
        reloads.extend(started.reload);
        disks.extend(started.disk);
    }
    let triggers = reloads.iter().map(Reload::trigger).collect();
    obey_signals(shutdown.clone(), triggers)?;
    let takeover = settings.process.takeover.as_deref();
    let (listeners, takeover) = listen(&settings.services, activated, takeover, &shutdown)?;
    say_ports(&settings.services, &listeners)?;
    let mut doors = Vec::new();
    for (service, listeners) in services.into_iter().zip(listeners) {
        for listener in listeners {
            doors.push(Door::new(listener, Arc::clone(&service))?);
        }
    }
    let manner = Manner {
        scheduling: settings.process.threads,
        watchdog_pause: service_manager::watchdog_pause(),
    };
    match server::run(doors, takeover, &host, manner, &shutdown)? {
        Drained::InTime => Ok(ExitCode::SUCCESS),
        Drained::Cut(_) => Ok(ExitCode::FAILURE),
    }
}

/// The lines on standard output, for whoever asked for a free port. A reader that has gone is no
/// reason not to serve.
fn say_ports(services: &[ServiceSettings], listeners: &[Vec<TcpListener>]) -> io::Result<()> {
    for (service, listeners) in services.iter().zip(listeners) {
        for (wanted, listener) in service.listen.iter().zip(listeners) {
            if wanted.port() == 0 {
                let address = listener.local_addr()?;
                let _ = match services {
                    [_] => writeln!(io::stdout(), "listening on {address}"),
                    _ => writeln!(io::stdout(), "{}: listening on {address}", service.name),
                };
            }
        }
    }
    Ok(())
}

/// A service that is ready, and the threads beside it.
struct Started {
    service: Arc<Service>,
    reload: Option<Reload>,
    disk: Option<Disk>,
}

/// Reads the guest of a service, and tries it. The name is for the log.
fn start(
    host: &Arc<Host>,
    name: Option<&str>,
    settings: &ServiceSettings,
    limits: Limits,
    shutdown: &Shutdown,
) -> Result<Started> {
    // Before it is read: when it changes from then on, it is read again.
    let seen = settings.guest.as_deref().and_then(Fingerprint::of);
    let guest = read_or_greeter(settings.guest.as_deref())?;
    let environment = settings.guest_settings.environment.clone();
    let runtime = Runtime::new(host, name, environment, limits);
    let passed = trial::run(&runtime, &guest.bytes, &|| true);
    let passed = passed.with_context(|| cannot_serve(settings.guest.as_deref()))?;
    let versions = Versions::new(passed, guest.digest);
    let (recordings, disk) = match settings.record.clone() {
        None => (None, None),
        Some(folder) => {
            let cannot = format!("cannot record into `{}`", folder.display());
            let (recordings, disk) = Recordings::new(folder).context(cannot)?;
            (Some(recordings), Some(disk))
        }
    };
    let service = Service::new(runtime, versions, settings.framing, recordings, shutdown);
    let policy = settings.guest.as_ref().map(|file| Policy {
        file: file.clone(),
        watch: !settings.reload.no_watch,
        canary: settings.reload.canary,
        max_age: settings.reload.max_guest_age.map(Into::into),
    });
    let reload = policy.map(|policy| service.reload(policy, seen, shutdown));
    Ok(Started {
        reload: reload.transpose()?,
        service,
        disk,
    })
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
