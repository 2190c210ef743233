//! What the guest of a service may ask for and take, for all its versions.

use std::sync::Arc;

use tracing::field::{DisplayValue, display};

use crate::limits::Limits;
use crate::process::room::Share;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::host::Host;

/// What the guests of one service may ask for and take.
pub struct Runtime {
    name: Option<Arc<str>>,
    pub(crate) host: Arc<Host>,
    pub(crate) environment: Arc<[(String, String)]>,
    /// Its part of the room of the process.
    pub(crate) room: Arc<Share>,
    pub(super) log: Arc<LogRate>,
    pub(crate) limits: Limits,
}

impl Runtime {
    /// `name` is what the log calls the service, if there may be others; `environment` is all that
    /// guests see of one.
    pub fn new(
        host: &Arc<Host>,
        name: Option<&str>,
        environment: Vec<(String, String)>,
        limits: Limits,
    ) -> Arc<Runtime> {
        let name: Option<Arc<str>> = name.map(Arc::from);
        Arc::new(Runtime {
            host: Arc::clone(host),
            room: host.room.share(),
            environment: environment.into(),
            log: LogRate::of_service(name.clone()),
            name,
            limits,
        })
    }

    /// The service's name, for the log.
    pub(crate) fn service(&self) -> Option<DisplayValue<&str>> {
        self.name.as_deref().map(display)
    }
}
