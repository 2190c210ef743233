//! `airlock`: builds the server and everything around it, and runs it.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use airlock::cli::{self, Source};
use airlock::logging;
use airlock::process::heap;
use airlock::process::service_manager::{self, Reloading};
use airlock::process::shutdown::Shutdown;
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::serve::listener::Activated;
use airlock::serve::renewal::{self, Renewal};
use airlock::serve::server::{self, Drained, Manner, Offer};
use airlock::settings::Settings;
use airlock::versions::following::Trigger;
use anyhow::{Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::commands::certificates::Certificates;
use crate::commands::listen::listen;
use crate::commands::services::Services;
use crate::commands::settings_file::SettingsFile;

pub(crate) fn run(
    settings: Settings,
    source: Option<Box<Source>>,
    activated: Vec<Activated>,
) -> Result<ExitCode> {
    if let Some(path) = cli::service_manager() {
        service_manager::tell_at(path)?;
    }
    heap::settle();
    // Only a file can be read again.
    let source = source.filter(|source| source.seen.is_some());
    let grows = source.is_some();
    let capacity = settings.capacity(grows);
    let bounds = settings.bounds(capacity, grows);
    let (process, limits) = bounds.map_err(|error| anyhow!(error))?;
    tracing::debug!(?capacity, ?process, ?limits, "this server's bounds");
    let host = Host::new(process, Compiler::this_program(false))?;
    let (shutdown, offer) = (Shutdown::new()?, Offer::new()?);
    let renewal = Arc::<Renewal>::default();
    let mut services = Services::start(
        &settings,
        limits,
        Arc::clone(&host),
        capacity,
        offer.clone(),
        Certificates::new(Arc::clone(&renewal)),
        shutdown.clone(),
    )?;
    let file = source.map(|source| SettingsFile::new(*source));
    let triggers = match &file {
        Some(file) => vec![file.trigger()],
        None => services.triggers().collect(),
    };
    obey_signals(shutdown.clone(), triggers, renewal.trigger())?;
    let takeover = settings.process.takeover.as_deref();
    let (listeners, takeover) = listen(&settings.services, activated, takeover, &shutdown)?;
    services.open(&listeners)?;
    drop(listeners);
    let (recorders, stores) = (services.recorders(), services.stores());
    // Whoever changes the services has them; else they are kept here for as long as the server serves.
    let (_following, _services) = match file {
        Some(file) => (Some(file.follow(services, shutdown.clone())?), None),
        None => (None, Some(services)),
    };
    let manner = Manner {
        scheduling: settings.process.threads,
        watchdog_pause: service_manager::watchdog_pause(),
    };
    let drained = server::run(&offer, takeover, &host, manner, &shutdown)?;
    recorders.end();
    stores.close();
    match drained {
        Drained::InTime => Ok(ExitCode::SUCCESS),
        Drained::Cut(_) => Ok(ExitCode::FAILURE),
    }
}

/// The first SIGINT or SIGTERM drains, a second one ends the process at once. SIGHUP reloads.
fn obey_signals(
    shutdown: Shutdown,
    reloads: Vec<Trigger>,
    renewal: renewal::Trigger,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    let reloading = Reloading::begin();
                    let renews = renewal.reload(reloading.clone());
                    if reloads.is_empty() && !renews {
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
