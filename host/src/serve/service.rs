//! One service: what is served, and how.

use std::io;
use std::sync::{Arc, Mutex};

use crate::limits::process::SERVICE_CONNECTIONS;
use crate::logging::Recurring;
use crate::process::connections::{Caps, Group};
use crate::process::shutdown::Shutdown;
use crate::sandbox::runtime::Runtime;
use crate::serve::recording::Recordings;
use crate::talk::framing::Framing;
use crate::versions::assignment::Versions;
use crate::versions::guest_file::Digest;
use crate::versions::reload::{Known, Policy, Reload};
use crate::versions::trial::Passed;

/// What is served, and how: apart from other services of the process, but for what the process has
/// once.
pub struct Service {
    /// What all versions of the guest share.
    pub runtime: Arc<Runtime>,
    /// The versions of the guest.
    pub versions: Arc<Versions>,
    /// What makes a message.
    pub(crate) framing: Framing,
    /// Where conversations are recorded, if they are.
    pub recordings: Option<Arc<Recordings>>,
    /// Who is connected.
    pub(crate) group: Arc<Group>,
    /// Clients were turned away.
    pub(crate) refused: Mutex<Recurring>,
}

impl Service {
    /// Of a server that `shutdown` ends. Nobody is connected yet.
    pub fn new(
        runtime: Arc<Runtime>,
        versions: Versions,
        framing: Framing,
        recordings: Option<Arc<Recordings>>,
        shutdown: &Shutdown,
    ) -> Arc<Service> {
        let group = shutdown.connections().join(caps(&runtime));
        Service::with(group, runtime, versions, framing, recordings)
    }

    /// The same service with other settings, for new connections. They count along with those that
    /// there are, which keep what they began with.
    pub fn changed(
        &self,
        runtime: Arc<Runtime>,
        (passed, digest): (Passed, Digest),
        framing: Framing,
        recordings: Option<Arc<Recordings>>,
    ) -> Arc<Service> {
        self.group.change(caps(&runtime));
        let group = Arc::clone(&self.group);
        let versions = Versions::after(&self.versions, passed, digest);
        Service::with(group, runtime, versions, framing, recordings)
    }

    fn with(
        group: Arc<Group>,
        runtime: Arc<Runtime>,
        versions: Versions,
        framing: Framing,
        recordings: Option<Arc<Recordings>>,
    ) -> Arc<Service> {
        Arc::new(Service {
            runtime,
            versions: Arc::new(versions),
            framing,
            recordings,
            group,
            refused: Mutex::new(Recurring::new()),
        })
    }

    /// Looks after the guest's file from now on.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn reload(&self, policy: Policy, known: Known, shutdown: &Shutdown) -> io::Result<Reload> {
        let runtime = Arc::clone(&self.runtime);
        let versions = Arc::clone(&self.versions);
        let group = Arc::clone(&self.group);
        Reload::start(policy, known, runtime, versions, group, shutdown.clone())
    }
}

fn caps(runtime: &Runtime) -> Caps {
    let process = &runtime.host.limits;
    Caps {
        process: process.connections,
        service: runtime.limits.connections,
        per_ip: runtime.limits.connections_per_ip,
        kept: match process.services {
            1 => 0,
            _ => SERVICE_CONNECTIONS.min(runtime.limits.connections),
        },
    }
}
