//! The topics of all services: those of the same name at the same place are the same.

use std::sync::{Arc, Weak};

use airlock::redis::address::RedisAddress;
use airlock::settings::service::ServiceSettings;
use airlock::settings::topics::TopicsUrl;
use airlock::topics::exchange::{Exchange, Queued};
use airlock::topics::hub::Hub;
use anyhow::{Context, Result, anyhow};

/// The name of an exchange, and the Redis that it is at, if it is at one.
type Place = (String, Option<RedisAddress>);

/// What brings messages around, of all services of a process.
#[derive(Default)]
pub(crate) struct Exchanges {
    queued: Queued,
    hubs: Vec<(RedisAddress, Weak<Hub>)>,
    known: Vec<(Place, Weak<Exchange>)>,
}

impl Exchanges {
    /// What a service is granted.
    ///
    /// # Errors
    /// The Redis cannot be had.
    pub(crate) fn of(&mut self, service: &ServiceSettings) -> Result<Option<Arc<Exchange>>> {
        let Some(topics) = &service.guest_settings.topics else {
            return Ok(None);
        };
        let address = match &topics.url {
            TopicsUrl::Memory => None,
            TopicsUrl::Redis(url) => Some(topics.redis(url)),
        };
        let place: Place = (topics.name(&service.name).to_owned(), address);
        self.known
            .retain(|(_, exchange)| exchange.strong_count() > 0);
        let same = self.known.iter().find(|(known, _)| *known == place);
        if let Some(exchange) = same.and_then(|(_, exchange)| exchange.upgrade()) {
            return Ok(Some(exchange));
        }
        let (name, address) = &place;
        let new = match address {
            None => Exchange::new(&self.queued),
            Some(address) => {
                let hub = self.hub(address);
                let hub = hub.with_context(|| format!("cannot have topics at {}", topics.url))?;
                Exchange::through(&hub, name, &self.queued)
            }
        };
        self.known.push((place, Arc::downgrade(&new)));
        Ok(Some(new))
    }

    fn hub(&mut self, address: &RedisAddress) -> Result<Arc<Hub>> {
        self.hubs.retain(|(_, hub)| hub.strong_count() > 0);
        let same = self.hubs.iter().find(|(known, _)| known == address);
        if let Some(hub) = same.and_then(|(_, hub)| hub.upgrade()) {
            return Ok(hub);
        }
        let new = Hub::open(address).map_err(|error| anyhow!(error))?;
        self.hubs.push((address.clone(), Arc::downgrade(&new)));
        Ok(new)
    }
}
