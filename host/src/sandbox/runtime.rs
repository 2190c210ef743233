//! What the guest of a service may ask for and take, for all its versions; and the machines that
//! they run on.

use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::Limits;
use crate::process::room::Room;
use crate::sandbox::compiler::Compiler;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::machine::Machine;
use crate::sandbox::rejection::RejectedGuest;

/// What guests may take, and the machines that they run on.
pub struct Runtime {
    machine: Arc<Machine>,
    /// For guests that start from a large image; made with the first of them.
    machine_with_images: Mutex<Option<Arc<Machine>>>,
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
        let machine = Machine::new(&limits, false)?;
        // Its threads have to start now: when there is no room for them later, every sleep of every
        // guest would fail for good.
        wasmtime_wasi::runtime::with_ambient_tokio_runtime(|| ());
        Ok(Arc::new(Runtime {
            machine: Arc::new(machine),
            machine_with_images: Mutex::default(),
            room: Arc::new(Room::new(&limits)),
            environment: environment.into(),
            log: LogRate::of_process(),
            compiler,
            limits,
        }))
    }

    /// The machine for a guest whose memories begin as images, or as copies.
    pub(crate) fn machine(&self, images: bool) -> Arc<Machine> {
        if !images {
            return Arc::clone(&self.machine);
        }
        let with_images = self.machine_with_images.lock();
        let mut with_images = with_images.unwrap_or_else(PoisonError::into_inner);
        if with_images.is_none() {
            // It is a matter of speed; without addresses for a second pool the first will do.
            *with_images = Machine::new(&self.limits, true)
                .inspect_err(|error| tracing::warn!("no images of guests' memories: {error}"))
                .ok()
                .map(Arc::new);
        }
        Arc::clone(with_images.as_ref().unwrap_or(&self.machine))
    }
}
