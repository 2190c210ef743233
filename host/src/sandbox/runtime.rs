//! What the guest of a service may ask for and take, for all its versions.

use std::sync::Arc;

use tracing::field::{DisplayValue, display};

use crate::limits::Limits;
use crate::process::room::Share;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::host::Host;
use crate::store::bucket::Buckets;
use crate::topics::exchange::{Exchange, Queued};

/// What the guests of a service were granted.
#[derive(Clone, Default)]
pub struct Grants {
    /// All that they see of one.
    pub environment: Vec<(String, String)>,
    /// Where they keep what outlives their connections.
    pub stores: Buckets,
    /// What brings the messages of one to others.
    pub topics: Option<Arc<Exchange>>,
}

/// What a guest is given for a trial: nothing of it is kept, and nobody else has it.
#[derive(Default)]
pub struct Scratch {
    /// Stores that are empty.
    pub stores: Buckets,
    /// Topics to which nobody has subscribed.
    pub topics: Option<Arc<Exchange>>,
}

/// What the guests of one service may ask for and take.
pub struct Runtime {
    name: Option<Arc<str>>,
    pub(crate) host: Arc<Host>,
    pub(crate) environment: Arc<[(String, String)]>,
    pub(crate) stores: Buckets,
    pub(crate) topics: Option<Arc<Exchange>>,
    /// Its part of the room of the process.
    pub(crate) room: Arc<Share>,
    pub(super) log: Arc<LogRate>,
    pub(crate) limits: Limits,
}

impl Runtime {
    /// `name` is what the log calls the service, if there may be others.
    pub fn new(
        host: &Arc<Host>,
        name: Option<&str>,
        grants: Grants,
        limits: Limits,
    ) -> Arc<Runtime> {
        let name: Option<Arc<str>> = name.map(Arc::from);
        Arc::new(Runtime {
            host: Arc::clone(host),
            room: host.room.share(),
            environment: grants.environment.into(),
            stores: grants.stores,
            topics: grants.topics,
            log: LogRate::of_service(name.clone()),
            name,
            limits,
        })
    }

    /// The same service with other settings: its guests take of the same part of the room.
    pub fn with(&self, grants: Grants, limits: Limits) -> Arc<Runtime> {
        Arc::new(Runtime {
            name: self.name.clone(),
            host: Arc::clone(&self.host),
            room: Arc::clone(&self.room),
            environment: grants.environment.into(),
            stores: grants.stores,
            topics: grants.topics,
            log: Arc::clone(&self.log),
            limits,
        })
    }

    /// What a guest has where nothing is live, for what its service was granted.
    pub fn scratch(&self) -> Scratch {
        let granted = self.topics.as_ref();
        Scratch {
            stores: self.stores.scratch(),
            topics: granted.map(|_| Exchange::new(&Queued::default())),
        }
    }

    /// The service's name, for the log.
    pub fn service(&self) -> Option<DisplayValue<&str>> {
        self.name.as_deref().map(display)
    }
}
