//! The services of a server: started, and changed when their settings do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::mem;
use std::slice;
use std::sync::{Arc, Weak};

use airlock::limits::Limits;
use airlock::process::capacity::Capacity;
use airlock::process::listener::Listener;
use airlock::process::service_manager::Reloading;
use airlock::process::shutdown::Shutdown;
use airlock::process::takeover;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::{Grants, Runtime};
use airlock::serve::recording::Recordings;
use airlock::serve::server::Offer;
use airlock::serve::service::Service;
use airlock::settings::Settings;
use airlock::settings::door::DoorSettings;
use airlock::settings::service::{DEFAULT_NAME, ServiceSettings};
use airlock::settings::values::AnySize;
use airlock::talk::client::Endpoint;
use airlock::versions::assignment::Versions;
use airlock::versions::following::Trigger;
use airlock::versions::guest_file::{Digest, Fingerprint};
use airlock::versions::reload::{Known, Policy, Reload};
use airlock::versions::trial::{self, Passed};
use anyhow::{Context, Result, anyhow, bail};

use crate::commands::certificates::{Certificates, DoorsTls};
use crate::commands::guest::{cannot_serve, read_or_greeter};
use crate::commands::listen::Bound;
use crate::commands::recorders::Recorders;
use crate::commands::stores::Stores;
use crate::commands::topics::Exchanges;

/// All services of a server, and what they have in common.
pub(crate) struct Services {
    host: Arc<Host>,
    capacity: Capacity,
    /// Whether the listeners are handed over to the next process.
    hands_over: bool,
    shutdown: Shutdown,
    offer: Offer,
    recorders: Recorders,
    certificates: Certificates,
    stores: Stores,
    exchanges: Exchanges,
    running: Vec<Running>,
}

/// A service, and what belongs to it beside the server.
struct Running {
    settings: ServiceSettings,
    service: Arc<Service>,
    listeners: Vec<Listening>,
    tls: DoorsTls,
    reload: Option<Reload>,
    /// What the thread that looked after its guest knew, while there is none.
    known: Option<Known>,
}

/// A listener of a service, which the server has.
struct Listening {
    /// The door that its settings have there. None, if systemd chose the address.
    door: Option<DoorSettings>,
    listener: Weak<Listener>,
}

/// A service that is ready to be served.
struct Ready {
    runtime: Arc<Runtime>,
    guest: (Passed, Digest),
    recordings: Option<Arc<Recordings>>,
    tls: DoorsTls,
    /// What the guest's file was like before it was read, if it was.
    seen: Option<Option<Fingerprint>>,
}

/// How services are to change.
#[derive(Default)]
struct Change {
    /// Services that stay as they are: they are the same, or cannot be served otherwise.
    staying: BTreeSet<String>,
    ready: BTreeMap<String, Ready>,
    /// Where those are to listen.
    listeners: BTreeMap<String, Vec<Bound>>,
    /// What has been bound for that.
    bound: Vec<(String, Bound)>,
}

impl Change {
    /// A listener that nobody has yet, for a service that does not have it yet.
    fn bind(
        &mut self,
        service: &ServiceSettings,
        wanted: &DoorSettings,
        has: &[Bound],
    ) -> Result<Bound> {
        let is_it = |(name, bound): &&(String, Bound)| {
            let free = !has.iter().any(|other| bound.is(other));
            bound.door.as_ref() == Some(wanted) && *name == service.name && free
        };
        if let Some((_, bound)) = self.bound.iter().find(is_it) {
            return Ok(bound.clone());
        }
        let bound = Bound::at(service, wanted)?;
        self.bound.push((service.name.clone(), bound.clone()));
        Ok(bound)
    }
}

impl Running {
    /// Nobody looks after its guest from here on.
    fn leave_guest(&mut self) {
        if let Some(reload) = self.reload.take() {
            self.known = Some(reload.end());
        }
    }

    fn policy(&self) -> Option<Policy> {
        let reload = &self.settings.reload;
        self.settings.guest.as_ref().map(|file| Policy {
            file: file.clone(),
            watch: !reload.no_watch,
            canary: reload.canary,
            max_age: reload.max_guest_age.map(Into::into),
        })
    }
}

impl Listening {
    fn of(bound: &Bound) -> Listening {
        Listening {
            door: bound.door.clone(),
            listener: Arc::downgrade(&bound.listener),
        }
    }

    /// Nothing, if the server has closed it.
    fn bound(&self) -> Option<Bound> {
        Some(Bound {
            door: self.door.clone(),
            listener: self.listener.upgrade()?,
        })
    }
}

impl Services {
    /// Starts them, without any listener.
    ///
    /// # Errors
    /// One cannot be served.
    pub(crate) fn start(
        settings: &Settings,
        limits: Vec<Limits>,
        host: Arc<Host>,
        capacity: Capacity,
        offer: Offer,
        certificates: Certificates,
        shutdown: Shutdown,
    ) -> Result<Services> {
        let mut services = Services {
            host,
            capacity,
            hands_over: settings.process.takeover.is_some(),
            shutdown,
            offer,
            recorders: Recorders::default(),
            certificates,
            stores: Stores::default(),
            exchanges: Exchanges::default(),
            running: Vec::new(),
        };
        let is_alone = settings.services.len() == 1;
        for (settings, limits) in settings.services.iter().zip(limits) {
            // The one that options describe needs no name in the log.
            let named = !is_alone || settings.name != DEFAULT_NAME;
            let name = named.then_some(settings.name.as_str());
            let ready = services.prepare(name, settings, limits, &|| true);
            let ready = match is_alone {
                true => ready?,
                false => ready.with_context(|| format!("service `{}`", settings.name))?,
            };
            let running = services.begin(None, settings.clone(), ready, Vec::new());
            services.running.push(running);
        }
        services.look_after_guests();
        Ok(services)
    }

    /// Offers them at these listeners, each service at its own.
    ///
    /// # Errors
    /// One is no listening socket.
    pub(crate) fn open(&mut self, listeners: &[Vec<Bound>]) -> Result<()> {
        let mut doors = Vec::new();
        for (running, bound) in self.running.iter_mut().zip(listeners) {
            running.listeners = bound.iter().map(Listening::of).collect();
            let name = (listeners.len() > 1).then_some(&*running.settings.name);
            say_ports(name, bound)?;
            for one in bound {
                let tls = running.tls.of(one.door.as_ref());
                doors.push(one.door(&running.settings, &running.service, tls)?);
            }
        }
        self.offer.change(doors, Vec::new());
        Ok(())
    }

    /// What records for them.
    pub(crate) fn recorders(&self) -> Recorders {
        self.recorders.clone()
    }

    /// Where their guests keep what outlives connections.
    pub(crate) fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// Those who load the guests' files when they are asked to.
    pub(crate) fn triggers(&self) -> impl Iterator<Item = Trigger> {
        let reloads = self.running.iter().filter_map(|one| one.reload.as_ref());
        reloads.map(Reload::trigger)
    }

    /// Has all of them as these settings say, for new connections, and the guests of those that stay
    /// loaded as a part of this reload. What cannot be served stays as it was. Gives up when it is
    /// `wanted` no more.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub(crate) fn change(
        &mut self,
        settings: Settings,
        reloading: Option<&Reloading>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<()> {
        self.recorders.end_unused();
        let limits = settings.limits_within(self.capacity, &self.host.limits);
        let limits = limits.map_err(|error| anyhow!(error))?;
        if self.hands_over {
            let listen = settings.services.iter().map(|service| service.listen.len());
            takeover::check_count(listen.sum())?;
        }
        let mut change = Change::default();
        for service in &settings.services {
            if self
                .find(&service.name)
                .is_some_and(|running| running.settings == *service)
            {
                change.staying.insert(service.name.clone());
            }
        }
        while let Err((name, error)) = self.get_ready(&mut change, &settings, &limits, wanted) {
            if !wanted() {
                self.look_after_guests();
                return Ok(());
            }
            let stays = match self.find(name) {
                Some(_) => "it stays as it was",
                None => "it is not served",
            };
            tracing::error!(service = %name, "{stays}: {error:#}");
            change.staying.insert(name.to_owned());
        }
        // These have just been read.
        let read = change
            .ready
            .iter()
            .filter(|(_, ready)| ready.seen.is_some());
        let read: BTreeSet<_> = read.map(|(name, _)| name.clone()).collect();
        self.make(change, settings)?;
        self.look_after_guests();
        for running in &self.running {
            if let (Some(reload), Some(reloading)) = (&running.reload, reloading)
                && !read.contains(&running.settings.name)
            {
                reload.trigger().reload(reloading.clone());
            }
        }
        Ok(())
    }

    /// Gets the listeners and guests of all that are not staying.
    ///
    /// # Errors
    /// Which cannot be served, and why.
    fn get_ready<'a>(
        &mut self,
        change: &mut Change,
        settings: &'a Settings,
        limits: &[Limits],
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), (&'a str, anyhow::Error)> {
        let services = settings.services.iter().zip(limits);
        let services = services.filter(|(service, _)| !change.staying.contains(&service.name));
        let services: Vec<_> = services.collect();
        change.listeners.clear();
        for (service, _) in &services {
            let listeners = self.listeners(service, change);
            let listeners = listeners.map_err(|error| (&*service.name, error))?;
            change.listeners.insert(service.name.clone(), listeners);
        }
        // What takes long comes first: until it is done, the guests of the others are looked after.
        let mut services = services;
        services.sort_by_key(|(service, _)| self.has_guest_of(service));
        for (service, &limits) in services {
            let name = &service.name;
            if !change.ready.contains_key(name) {
                let ready = self.prepare(Some(name), service, limits, wanted);
                let ready = ready.map_err(|error| (&**name, error))?;
                change.ready.insert(name.clone(), ready);
            }
        }
        Ok(())
    }

    /// Where a service is to listen: at what there is, whoever has it, and at what it takes besides.
    fn listeners(&self, service: &ServiceSettings, change: &mut Change) -> Result<Vec<Bound>> {
        let own = self.find(&service.name).map(|running| &running.listeners);
        let own = own.into_iter().flatten();
        let from_systemd = own.filter_map(|listening| listening.listener.upgrade());
        let from_systemd = from_systemd.filter(|listener| listener.is_lent);
        let from_systemd = from_systemd.map(|listener| Bound::lent(service, listener));
        let from_systemd: Vec<_> = from_systemd.collect::<Result<_>>()?;
        if !from_systemd.is_empty() {
            return Ok(from_systemd);
        }
        let mut bound: Vec<Bound> = Vec::new();
        for wanted in &service.listen {
            let is_it = |running: &&Running| {
                let own = running.settings.name == service.name;
                own || !wanted.address.is_any_port()
            };
            let others = self.running.iter().filter(is_it);
            let there = others.flat_map(|running| {
                let same = running.listeners.iter().filter(|one| {
                    let door = one.door.as_ref();
                    door.is_some_and(|door| door.address.endpoint == wanted.address.endpoint)
                });
                same.filter_map(Listening::bound)
                    .map(move |bound| (running, bound))
            });
            // The same port 0 twice are two ports.
            let mut there =
                there.filter(|(_, there)| !bound.iter().any(|one: &Bound| one.is(there)));
            let next = match there.next() {
                Some((running, there)) => {
                    let owner = &running.settings.name;
                    if *owner != service.name && change.staying.contains(owner) {
                        bail!(
                            "{} belongs to `{owner}`, which stays as it was",
                            wanted.address
                        );
                    }
                    Bound {
                        door: Some(wanted.clone()),
                        ..there
                    }
                }
                None => change.bind(service, wanted, &bound)?,
            };
            bound.push(next);
        }
        Ok(bound)
    }

    /// Reads the guest of a service, if it is another one, and tries it with these settings.
    fn prepare(
        &mut self,
        name: Option<&str>,
        settings: &ServiceSettings,
        limits: Limits,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Ready> {
        let tls = self.certificates.of(settings)?;
        let most = self.host.limits.guest_memory_bytes;
        if limits.guest.memory_bytes > most {
            let most = AnySize::from(most);
            bail!(
                "guest-memory is more than the {most} of the largest service at the start: start again"
            );
        }
        let grants = Grants {
            environment: settings.guest_settings.environment.clone(),
            stores: self.stores.of(name, settings)?,
            topics: self.exchanges.of(settings)?,
        };
        let before = self
            .running
            .iter_mut()
            .find(|one| one.settings.name == settings.name);
        let runtime = match &before {
            None => Runtime::new(&self.host, name, grants, limits),
            Some(before) => before.service.runtime.with(grants, limits),
        };
        let record = settings.record.as_ref();
        let recordings = match &before {
            Some(before) if before.settings.record.as_ref() == record => {
                before.service.recordings.clone()
            }
            _ => record
                .map(|folder| self.recorders.start(folder))
                .transpose()?,
        };
        let cannot = || cannot_serve(settings.guest.as_deref());
        if let Some(before) = before
            && before.settings.guest == settings.guest
        {
            before.leave_guest();
            let current = before.service.versions.current();
            let passed = trial::again(&runtime, &current.sandbox).with_context(cannot)?;
            return Ok(Ready {
                guest: (passed, current.digest),
                runtime,
                recordings,
                tls,
                seen: None,
            });
        }
        // Before it is read: when it changes from then on, it is read again.
        let seen = settings.guest.as_deref().and_then(Fingerprint::of);
        let guest = read_or_greeter(settings.guest.as_deref())?;
        let passed = trial::run(&runtime, &guest.bytes, wanted).with_context(cannot)?;
        Ok(Ready {
            guest: (passed, guest.digest),
            runtime,
            recordings,
            tls,
            seen: Some(seen),
        })
    }

    /// Serves what is ready, and ends the services that the settings have no more.
    fn make(&mut self, mut change: Change, settings: Settings) -> Result<()> {
        let mut before = mem::take(&mut self.running);
        for service in settings.services {
            let name = &service.name;
            let old = before.iter().position(|old| old.settings.name == *name);
            let old = old.map(|place| before.swap_remove(place));
            match (change.ready.remove(name), change.listeners.remove(name)) {
                (Some(ready), Some(bound)) if !change.staying.contains(name) => {
                    let listeners = bound.iter().map(Listening::of).collect();
                    let begun = self.begin(old, service, ready, listeners);
                    self.running.push(begun);
                }
                _ => self.running.extend(old),
            }
        }
        for (name, bound) in &change.bound {
            say_ports(Some(name), slice::from_ref(bound))?;
        }
        let mut doors = Vec::new();
        for running in &self.running {
            for listening in &running.listeners {
                // The server may have ended meanwhile.
                if let Some(bound) = listening.bound() {
                    let tls = running.tls.of(bound.door.as_ref());
                    doors.push(bound.door(&running.settings, &running.service, tls)?);
                }
            }
        }
        let ended = before.into_iter().map(|ended| ended.service);
        self.offer.change(doors, ended.collect());
        // Only then is the reload over.
        self.offer.wait();
        Ok(())
    }

    /// A service that is served from now on, in the place of `before`, if there is that.
    fn begin(
        &self,
        before: Option<Running>,
        settings: ServiceSettings,
        ready: Ready,
        listeners: Vec<Listening>,
    ) -> Running {
        let Ready {
            runtime,
            guest,
            recordings,
            tls,
            seen,
        } = ready;
        let framing = settings.framing;
        let mut known = Known::default();
        let service = match before {
            None => {
                let versions = Versions::new(guest.0, guest.1);
                Service::new(runtime, versions, framing, recordings, &self.shutdown)
            }
            Some(mut before) => {
                before.leave_guest();
                known = before.known.unwrap_or_default();
                let old = before.service;
                let new = old.changed(runtime, guest, framing, recordings);
                known.replace(&old.versions.current());
                new
            }
        };
        if let Some(seen) = seen {
            known.forget_file(seen);
        }
        Running {
            settings,
            service,
            listeners,
            tls,
            reload: None,
            known: Some(known),
        }
    }

    /// Has the guests' files looked after, if they are not.
    fn look_after_guests(&mut self) {
        for running in &mut self.running {
            if running.reload.is_some() {
                continue;
            }
            let Some(policy) = running.policy() else {
                continue;
            };
            let known = running.known.take().unwrap_or_default();
            match running.service.reload(policy, known, &self.shutdown) {
                Ok(reload) => running.reload = Some(reload),
                Err(error) => {
                    let service = running.service.runtime.service();
                    tracing::error!(service, "nobody looks after the guest's file: {error}");
                }
            }
        }
    }

    /// Whether it has a guest that runs already.
    fn has_guest_of(&self, settings: &ServiceSettings) -> bool {
        let before = self.find(&settings.name);
        before.is_some_and(|before| before.settings.guest == settings.guest)
    }

    fn find(&self, name: &str) -> Option<&Running> {
        self.running
            .iter()
            .find(|running| running.settings.name == name)
    }
}

/// The lines on standard output, for whoever asked for a free port. A reader that has gone is no
/// reason not to serve.
fn say_ports(name: Option<&str>, listeners: &[Bound]) -> io::Result<()> {
    for Bound { door, listener } in listeners {
        if door.as_ref().is_some_and(|door| door.address.is_any_port()) {
            let address = Endpoint::from(&listener.local_addr()?);
            let name = name.map(|name| format!("{name}: ")).unwrap_or_default();
            let _ = writeln!(io::stdout(), "{name}listening on {address}");
        }
    }
    Ok(())
}
