//! The guest that a command is given.

use std::path::Path;
use std::sync::Arc;

use airlock::GREETER;
use airlock::limits::Limits;
use airlock::limits::process::Process;
use airlock::process::capacity::{self, Each};
use airlock::sandbox::compiler::Compiler;
use airlock::sandbox::host::Host;
use airlock::sandbox::runtime::{Grants, Runtime};
use airlock::settings::service::GuestSettings;
use airlock::topics::exchange::{Exchange, Queued};
use airlock::versions::guest_file::GuestFile;
use anyhow::{Context, Result};

use crate::commands::stores;

/// The greeter, where there is no file.
pub(crate) fn read_or_greeter(file: Option<&Path>) -> Result<GuestFile> {
    file.map_or_else(|| Ok(GuestFile::from(GREETER.to_vec())), read)
}

pub(crate) fn read(file: &Path) -> Result<GuestFile> {
    GuestFile::read(file).with_context(|| format!("cannot read the guest `{}`", file.display()))
}

/// What is said when it is refused.
pub(crate) fn cannot_serve(file: Option<&Path>) -> String {
    match file {
        None => "cannot serve the built-in greeter".to_owned(),
        Some(file) => format!("cannot serve `{}`", file.display()),
    }
}

/// For one instance at a time, without a server.
pub(crate) fn runtime(options: &GuestSettings, compiler: Compiler) -> Result<Arc<Runtime>> {
    let limits = Limits {
        guest: options.limits(),
        ..Limits::new(1)
    };
    let process = Process {
        guest_memory_bytes: limits.guest.memory_bytes,
        total_compile_memory_bytes: limits.guest.compile_memory_bytes,
        ..Process::new(1, capacity::claim(Each::DEFAULT, 0).guest_memory_bytes)
    };
    let host = Host::new(process, compiler)?;
    let grants = Grants {
        environment: options.environment.clone(),
        stores: stores::empty(options),
        topics: options
            .topics
            .as_ref()
            .map(|_| Exchange::new(&Queued::default())),
    };
    Ok(Runtime::new(&host, None, grants, limits))
}
