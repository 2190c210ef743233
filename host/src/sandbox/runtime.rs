//! What the guest of a service may ask for and take, for all its versions.

use std::sync::Arc;

use crate::limits::Limits;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::host::Host;

/// What the guests of one service may ask for and take.
pub struct Runtime {
    pub(crate) host: Arc<Host>,
    pub(crate) environment: Arc<[(String, String)]>,
    pub(super) log: Arc<LogRate>,
    pub(crate) limits: Limits,
}

impl Runtime {
    /// `environment` is all that guests see of one.
    pub fn new(
        host: &Arc<Host>,
        environment: Vec<(String, String)>,
        limits: Limits,
    ) -> Arc<Runtime> {
        Arc::new(Runtime {
            host: Arc::clone(host),
            environment: environment.into(),
            log: LogRate::of_service(),
            limits,
        })
    }
}
