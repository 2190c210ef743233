//! What the guests of all services share: the machines that they run on, the compiler, and the room
//! of the process.

use std::sync::Arc;

use crate::budget::Budget;
use crate::limits::guest::Guest;
use crate::limits::process::Process;
use crate::process::room::Room;
use crate::sandbox::compiler::{Compiler, Loaded};
use crate::sandbox::machine::Machines;
use crate::sandbox::rejection::RejectedGuest;

/// Once per process.
pub struct Host {
    pub(super) machines: Machines,
    compiler: Compiler,
    /// Of the processes that compile.
    compile_memory: Arc<Budget>,
    pub(crate) room: Arc<Room>,
    /// The bounds of the process.
    pub limits: Process,
}

impl Host {
    /// `compiler` compiles the guests of all services.
    ///
    /// # Errors
    /// Wasmtime cannot run on this machine with these limits.
    pub fn new(limits: Process, compiler: Compiler) -> Result<Arc<Host>, RejectedGuest> {
        Ok(Arc::new(Host {
            machines: Machines::new(limits)?,
            compiler,
            compile_memory: Budget::new(limits.total_compile_memory_bytes),
            room: Arc::new(Room::new(&limits)),
            limits,
        }))
    }

    /// Compiles a component within the limits of its service, for as long as it is `wanted`.
    pub(super) fn compile(
        &self,
        limits: &Guest,
        component: &[u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Loaded, RejectedGuest> {
        let machine = |images| self.machines.get(images);
        let memory = &self.compile_memory;
        self.compiler
            .compile(&machine, memory, limits, component, wanted)
    }
}
