//! The guest that a command is given.

use std::path::Path;
use std::sync::Arc;

use airlock::cli::GuestOptions;
use airlock::limits::Limits;
use airlock::limits::process::Process;
use airlock::process::capacity::{self, Each};
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::Runtime;
use airlock::versions::guest_file::GuestFile;
use anyhow::{Context, Result, anyhow};

pub(crate) fn read(file: &Path) -> Result<GuestFile> {
    GuestFile::read(file).with_context(|| format!("cannot read the guest `{}`", file.display()))
}

/// For one instance at a time, without a server.
pub(crate) fn runtime(options: &GuestOptions, compiler: Compiler) -> Result<Arc<Runtime>> {
    let environment = options.environment();
    let environment = environment.map_err(|error| anyhow!(error))?;
    let limits = Limits {
        guest: options.limits(),
        ..Limits::new(1)
    };
    let process = Process {
        guest_memory_bytes: limits.guest.memory_bytes,
        total_compile_memory_bytes: limits.guest.compile_memory_bytes,
        ..Process::new(1, capacity::claim(Each::DEFAULT).guest_memory_bytes)
    };
    let host = Host::new(process, compiler)?;
    Ok(Runtime::new(&host, None, environment, limits))
}
