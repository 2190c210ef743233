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
use crate::versions::guest_file::Fingerprint;
use crate::versions::reload::{Policy, Reload};

/// What is served, and how: apart from other services of the process, but for what the process has
/// once.
pub struct Service {
    /// What all versions of the guest share.
    pub(crate) runtime: Arc<Runtime>,
    /// The versions of the guest.
    pub(crate) versions: Arc<Versions>,
    /// What makes a message.
    pub(crate) framing: Framing,
    /// Where conversations are recorded, if they are.
    pub(crate) recordings: Option<Recordings>,
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
        recordings: Option<Recordings>,
        shutdown: &Shutdown,
    ) -> Arc<Service> {
        let process = &runtime.host.limits;
        let caps = Caps {
            process: process.connections,
            service: runtime.limits.connections,
            per_ip: runtime.limits.connections_per_ip,
            kept: match process.services {
                1 => 0,
                // However few there are, half of them are for whoever comes first.
                services => SERVICE_CONNECTIONS
                    .min(process.connections / services / 2)
                    .min(runtime.limits.connections),
            },
        };
        Arc::new(Service {
            group: shutdown.connections().join(caps),
            runtime,
            versions: Arc::new(versions),
            framing,
            recordings,
            refused: Mutex::new(Recurring::new()),
        })
    }

    /// Looks after the guest's file from now on, which was as `seen` when it was read.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn reload(
        &self,
        policy: Policy,
        seen: Option<Fingerprint>,
        shutdown: &Shutdown,
    ) -> io::Result<Reload> {
        let runtime = Arc::clone(&self.runtime);
        let versions = Arc::clone(&self.versions);
        let group = Arc::clone(&self.group);
        Reload::start(policy, seen, runtime, versions, group, shutdown.clone())
    }
}
