//! What is served, and how.

use std::sync::Arc;
use std::time::Duration;

use crate::sandbox::runtime::Runtime;
use crate::serve::recording::Recordings;
use crate::serve::scheduling::Scheduling;
use crate::talk::framing::Framing;
use crate::versions::assignment::Versions;

/// What is served, and how.
pub struct Service {
    /// What all versions of the guest share.
    pub runtime: Arc<Runtime>,
    /// The versions of the guest.
    pub versions: Arc<Versions>,
    /// What makes a message.
    pub framing: Framing,
    /// Which threads serve the connections.
    pub scheduling: Scheduling,
    /// Where conversations are recorded, if they are.
    pub recordings: Option<Recordings>,
    /// How often the service manager has to hear that this server is alive, if at all.
    pub watchdog_pause: Option<Duration>,
}
