//! What the guest of a service may ask for and take, for all its versions; and the machines that
//! they run on.

use std::sync::Arc;

use crate::limits::Limits;
use crate::process::room::Room;
use crate::sandbox::compiler::Compiler;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::machine::{Machine, Machines};
use crate::sandbox::rejection::RejectedGuest;

/// What guests may take, and the machines that they run on.
pub struct Runtime {
    machines: Machines,
    pub(super) compiler: Compiler,
    pub(crate) room: Arc<Room>,
    pub(crate) environment: Arc<[(String, String)]>,
    pub(super) log: Arc<LogRate>,
    pub(crate) limits: Limits,
}

impl Runtime {
    /// `environment` is all that guests see of one; `compiler` compiles them.
    ///
    /// # Errors
    /// Wasmtime cannot run on this machine with these limits.
    pub fn new(
        environment: Vec<(String, String)>,
        limits: Limits,
        compiler: Compiler,
    ) -> Result<Arc<Runtime>, RejectedGuest> {
        Ok(Arc::new(Runtime {
            machines: Machines::new(limits)?,
            room: Arc::new(Room::new(&limits.process)),
            environment: environment.into(),
            log: LogRate::of_process(),
            compiler,
            limits,
        }))
    }

    /// The machine for a guest whose memories begin as images, or as copies.
    pub(crate) fn machine(&self, images: bool) -> Arc<Machine> {
        self.machines.get(images)
    }
}
