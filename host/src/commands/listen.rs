//! Where the services of a server listen: at sockets of the process before this one, of systemd, or
//! our own.

use std::io;
use std::path::Path;
use std::sync::Arc;

use airlock::process::listener::Listener;
use airlock::process::shutdown::Shutdown;
use airlock::process::takeover::{Predecessor, TakeoverSocket};
use airlock::serve::admission::Door;
use airlock::serve::listener::{self, Activated, MOST_BACKLOG, TcpOptions};
use airlock::serve::service::Service;
use airlock::serve::tls::Tls;
use airlock::serve::unix_socket;
use airlock::serve::websocket::upgrade::Rules;
use airlock::settings::address::Address;
use airlock::settings::door::DoorSettings;
use airlock::settings::service::ServiceSettings;
use airlock::talk::client::Endpoint;
use anyhow::{Context, Result, anyhow, bail};

/// A listener of a service.
#[derive(Clone)]
pub(crate) struct Bound {
    /// The door that the settings have there. None, if systemd chose the address.
    pub(crate) door: Option<DoorSettings>,
    pub(crate) listener: Arc<Listener>,
}

impl Bound {
    /// Which requests for a WebSocket its door takes, if it is one for that.
    fn websocket(&self) -> Option<Arc<Rules>> {
        let door = self.door.as_ref()?;
        door.websocket().map(Arc::new)
    }

    /// One of our own.
    ///
    /// # Errors
    /// In words that say what to do.
    pub(crate) fn at(service: &ServiceSettings, door: &DoorSettings) -> Result<Bound> {
        let bound = match &door.address.endpoint {
            Endpoint::Ip(address) => listener::bind(*address, &tcp_options(service, door)),
            Endpoint::Unix(path) => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                unix_socket::bind(path, &door.unix(backlog(service)))
            }
        };
        Ok(Bound {
            door: Some(door.clone()),
            listener: Arc::new(bound.map_err(|error| anyhow!(error))?),
        })
    }

    /// One of systemd's: the door that the service has at its address, or else a plain one.
    ///
    /// # Errors
    /// It has no address.
    pub(crate) fn lent(service: &ServiceSettings, listener: Arc<Listener>) -> Result<Bound> {
        let address = address_of(&listener)?;
        let mut doors = service.listen.iter();
        let door = doors.find(|door| door.address.endpoint == address);
        Ok(Bound {
            door: door.cloned(),
            listener,
        })
    }

    /// The door of a service that this is. Whoever has bound it, it is as the settings say, but for what
    /// is said when a socket is made.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn door(
        &self,
        settings: &ServiceSettings,
        service: &Arc<Service>,
        tls: Option<Arc<Tls>>,
    ) -> io::Result<Door> {
        match (&self.door, address_of(&self.listener)?) {
            (Some(door), Endpoint::Ip(_)) => tcp_options(settings, door).set(&self.listener)?,
            (None, Endpoint::Ip(_)) => self.listener.set_tcp_nodelay(true)?,
            (_, Endpoint::Unix(_)) => {}
        }
        let proxies = self.door.as_ref().map(DoorSettings::proxies);
        let (listener, service) = (Arc::clone(&self.listener), Arc::clone(service));
        let door = Door::new(listener, service, tls, self.websocket())?;
        Ok(door.behind(proxies.unwrap_or_default()))
    }

    /// Whether both are the same socket.
    pub(crate) fn is(&self, other: &Bound) -> bool {
        Arc::ptr_eq(&self.listener, &other.listener)
    }
}

fn backlog(service: &ServiceSettings) -> u32 {
    service.backlog.map_or(MOST_BACKLOG, |most| most.get())
}

fn tcp_options(service: &ServiceSettings, door: &DoorSettings) -> TcpOptions {
    door.tcp(backlog(service), service.reuse_port)
}

/// Those of each service.
type Listeners = Vec<Vec<Bound>>;

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
    let all = listeners.iter().flatten();
    let all = all.map(|bound| Arc::clone(&bound.listener)).collect();
    let takeover = TakeoverSocket::prepare(path, all, before, shutdown.clone())
        .with_context(|| format!("cannot wait at `{shown}` for the next process"))?;
    Ok((listeners, Some(takeover)))
}

/// Theirs, if they listen where these services are to, and nowhere else: all are handed over, or none.
fn assign(services: &[ServiceSettings], theirs: &[Arc<Listener>]) -> Result<Listeners> {
    let addresses = theirs.iter().map(|theirs| address_of(theirs));
    let addresses: Vec<_> = addresses.collect::<io::Result<_>>()?;
    let mut left: Vec<_> = addresses.iter().zip(theirs).collect();
    let mut take = |wanted: &Address| {
        let place = left
            .iter()
            .position(|(theirs, _)| is_wanted(wanted, theirs));
        let Some(place) = place else {
            let theirs: Vec<_> = addresses.iter().map(Endpoint::to_string).collect();
            bail!(
                "it listens on {} and this one is to listen on {wanted}: stop it, or say the same",
                theirs.join(", ")
            );
        };
        Ok(Arc::clone(left.remove(place).1))
    };
    let slots = services.iter().map(|service| {
        let doors = service.listen.iter();
        doors.map(|door| (door, None)).collect()
    });
    let mut slots: Vec<Vec<_>> = slots.collect();
    // Whoever wants any port leaves the others theirs.
    for any_port in [false, true] {
        let slots = slots.iter_mut().flatten();
        let slots = slots.filter(|(door, _)| door.address.is_any_port() == any_port);
        for (door, bound) in slots {
            *bound = Some(Bound {
                door: Some(door.clone()),
                listener: take(&door.address)?,
            });
        }
    }
    let taken = slots
        .into_iter()
        .map(|slots| slots.into_iter().filter_map(|(_, bound)| bound));
    let listeners = taken.map(Iterator::collect).collect();
    if let Some((address, _)) = left.first() {
        bail!("it listens on {address} too, and this one is not to: stop it, or say the same");
    }
    Ok(listeners)
}

fn address_of(listener: &Listener) -> io::Result<Endpoint> {
    Ok(Endpoint::from(&listener.local_addr()?))
}

/// Port 0 is any port.
fn is_wanted(wanted: &Address, address: &Endpoint) -> bool {
    match (&wanted.endpoint, address) {
        (Endpoint::Ip(wanted), Endpoint::Ip(address)) => {
            wanted.ip() == address.ip() && [0, address.port()].contains(&wanted.port())
        }
        (wanted, address) => wanted == address,
    }
}

/// Systemd's sockets, and our own for services for which it has none.
fn own(services: &[ServiceSettings], activated: Vec<Activated>) -> Result<Listeners> {
    let mut listeners: Listeners = services.iter().map(|_| Vec::new()).collect();
    for Activated { name, listener } in activated {
        // Where there is one service, whatever the sockets are called, they are its.
        let number = match services {
            [_] => Some(0),
            _ => services.iter().position(|service| service.name == name),
        };
        let Some(number) = number else {
            let names: Vec<_> = services.iter().map(|service| &*service.name).collect();
            bail!(
                "systemd handed over a socket for `{name}`, which is no service: write \
                 FileDescriptorName= with one of {} into its unit",
                names.join(", ")
            );
        };
        listeners[number].push(Bound::lent(&services[number], Arc::new(listener))?);
    }
    for (service, listeners) in services.iter().zip(&mut listeners) {
        if listeners.is_empty() {
            let bound = service.listen.iter();
            let bound = bound.map(|door| Bound::at(service, door));
            *listeners = bound.collect::<Result<_>>()?;
        }
    }
    Ok(listeners)
}
