//! Where the services of a server listen: at sockets of the process before this one, of systemd, or
//! our own.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use airlock::process::shutdown::Shutdown;
use airlock::process::takeover::{Predecessor, TakeoverSocket};
use airlock::serve::listener::{self, Activated, MOST_BACKLOG};
use airlock::settings::service::ServiceSettings;
use anyhow::{Context, Result, anyhow, bail};

/// The listeners of each service.
type Listeners = Vec<Vec<TcpListener>>;

/// The listeners of each service, in their order; and where the next process takes them over, if there
/// is a path for that.
pub(crate) fn listen(
    services: &[ServiceSettings],
    activated: Vec<Activated>,
    takeover: Option<&Path>,
    shutdown: &Shutdown,
) -> Result<(Listeners, Option<TakeoverSocket>)> {
    let Some(path) = takeover else {
        return Ok((own(services, activated)?, None));
    };
    let shown = path.display();
    let before = Predecessor::ask(path, shutdown)
        .with_context(|| format!("cannot take over from `{shown}`"))?;
    let listeners = match &before {
        Some(before) => assign(services, &before.listeners)
            .with_context(|| format!("cannot take over from the process at `{shown}`"))?,
        None => own(services, activated)?,
    };
    let all: Vec<_> = listeners.iter().flatten().collect();
    let takeover = TakeoverSocket::prepare(path, &all, before, shutdown.clone())
        .with_context(|| format!("cannot wait at `{shown}` for the next process"))?;
    Ok((listeners, Some(takeover)))
}

/// Theirs, if they listen where these services are to, and nowhere else: all are handed over, or none.
fn assign(services: &[ServiceSettings], theirs: &[TcpListener]) -> Result<Listeners> {
    let addresses = theirs.iter().map(TcpListener::local_addr);
    let addresses: Vec<_> = addresses.collect::<Result<_, _>>()?;
    let mut left: Vec<_> = addresses.iter().zip(theirs).collect();
    let mut take = |wanted: SocketAddr| {
        let place = left
            .iter()
            .position(|(theirs, _)| is_wanted(wanted, **theirs));
        let Some(place) = place else {
            let theirs: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            bail!(
                "it listens on {} and this one is to listen on {wanted}: stop it, or say the same",
                theirs.join(", ")
            );
        };
        Ok(left.remove(place).1.try_clone()?)
    };
    let mut slots: Vec<Vec<_>> = services
        .iter()
        .map(|service| {
            service
                .listen
                .iter()
                .map(|&wanted| (wanted, None))
                .collect()
        })
        .collect();
    // Whoever wants any port leaves the others theirs.
    for any_port in [false, true] {
        let slots = slots.iter_mut().flatten();
        for (wanted, listener) in slots.filter(|(wanted, _)| (wanted.port() == 0) == any_port) {
            *listener = Some(take(*wanted)?);
        }
    }
    let taken = slots
        .into_iter()
        .map(|slots| slots.into_iter().filter_map(|(_, listener)| listener));
    let listeners = taken.map(Iterator::collect).collect();
    if let Some((address, _)) = left.first() {
        bail!("it listens on {address} too, and this one is not to: stop it, or say the same");
    }
    Ok(listeners)
}

/// Port 0 is any port.
fn is_wanted(wanted: SocketAddr, address: SocketAddr) -> bool {
    wanted.ip() == address.ip() && [0, address.port()].contains(&wanted.port())
}

/// Systemd's sockets, and our own for services for which it has none.
fn own(services: &[ServiceSettings], activated: Vec<Activated>) -> Result<Listeners> {
    let mut listeners: Listeners = services.iter().map(|_| Vec::new()).collect();
    for Activated { name, listener } in activated {
        // Where there is one service, whatever the sockets are called, they are its.
        let service = match services {
            [_] => Some(0),
            _ => services.iter().position(|service| service.name == name),
        };
        let Some(service) = service else {
            let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
            bail!(
                "systemd handed over a socket for `{name}`, which is no service: write \
                 FileDescriptorName= with one of {} into its unit",
                names.join(", ")
            );
        };
        listeners[service].push(listener);
    }
    for (service, listeners) in services.iter().zip(&mut listeners) {
        if listeners.is_empty() {
            let backlog = service.backlog.map_or(MOST_BACKLOG, |most| most.get());
            let bind = |&address| listener::bind(address, backlog, service.reuse_port);
            let bound = service.listen.iter().map(bind);
            *listeners = bound
                .collect::<Result<_, _>>()
                .map_err(|error| anyhow!(error))?;
        }
    }
    Ok(listeners)
}
