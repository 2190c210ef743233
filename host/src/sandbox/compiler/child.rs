//! The child's side: what the hidden command `airlock compile` does.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use clap::Args;
use wasmtime::Engine;

use super::confinement::{self, Bounds};
use crate::limits::{COMPILE_STACK_BYTES, COMPILE_THREADS, Limits};
use crate::sandbox::{one_line, runtime};

/// The exit status when the component is at fault; standard error says why.
pub(super) const REFUSED: i32 = 3;

/// All that the child has to know, as its command line has it.
#[derive(Debug, Clone, Copy, Args)]
pub struct Compile {
    /// What the code depends on.
    #[command(flatten)]
    settings: Settings,
    #[arg(long)]
    memory_bytes: u64,
    #[arg(long)]
    processor_seconds: u64,
}

/// What compiled code depends on besides the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Settings {
    /// `--guest-memory`.
    #[arg(long)]
    pub(in crate::sandbox) guest_memory_bytes: usize,
    /// Memories begin as copy-on-write images.
    #[arg(long)]
    pub(in crate::sandbox) images: bool,
}

impl Settings {
    /// The command line of a child with these bounds.
    pub(super) fn arguments(self, limits: &Limits) -> Vec<String> {
        let processor_time = limits.compile_time * COMPILE_THREADS;
        let processor_seconds = processor_time.as_secs() + 1;
        let mut arguments = vec![
            "compile".to_owned(),
            format!("--guest-memory-bytes={}", self.guest_memory_bytes),
            format!("--memory-bytes={}", limits.compile_memory_bytes),
            format!("--processor-seconds={processor_seconds}"),
        ];
        if self.images {
            arguments.push("--images".to_owned());
        }
        arguments
    }
}

/// Compiles what is on standard input to standard output.
///
/// # Errors
/// The process cannot be confined, or its pipes are broken. The component's own faults are an exit
/// status.
pub fn run(options: Compile) -> io::Result<ExitCode> {
    let bounds = Bounds {
        memory_bytes: options.memory_bytes,
        processor_seconds: options.processor_seconds,
    };
    confinement::enter(bounds)?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component)?;
    // Whatever `ulimit -s` says.
    let thread = thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
    let compiled = thread
        .spawn(move || compile(options.settings, &component))?
        .join()
        .map_err(|_| io::Error::other("the compiler panicked"))?;
    match compiled {
        Ok(compiled) => {
            io::stdout().write_all(&compiled)?;
            io::stdout().flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            io::stderr().write_all(one_line(&error).as_bytes())?;
            Ok(ExitCode::from(REFUSED as u8))
        }
    }
}

fn compile(settings: Settings, component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    Engine::new(&runtime::config(settings))?.precompile_component(component)
}
