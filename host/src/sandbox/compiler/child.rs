//! The child's side: what the hidden command `airlock compile` does.
//!
//! There are two tasks, each for a process of its own: to compile a component, and to load what came
//! of it as the server will. Loading is what a few hundred bytes can make expensive too, and is tried
//! where that does no harm.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use clap::Args;
use wasmtime::Engine;

use crate::limits::guest::{COMPILE_STACK_BYTES, COMPILE_THREADS, GUEST_IMAGE_BYTES, Guest};
use crate::sandbox::compiler::compiled::Compiled;
use crate::sandbox::compiler::confinement::{self, Bounds};
use crate::sandbox::instance_size;
use crate::sandbox::machine::{self, Settings};
use crate::sandbox::rejection::one_line;

/// The exit status when the component is at fault; standard error says why.
pub(super) const REFUSED: i32 = 3;

/// All that the child has to know, as its command line has it.
#[derive(Debug, Clone, Copy, Args)]
pub struct Compile {
    #[arg(long)]
    guest_memory_bytes: usize,
    #[arg(long)]
    memory_bytes: u64,
    #[arg(long)]
    processor_seconds: u64,
    /// Load what has been compiled.
    #[arg(long)]
    load: bool,
}

/// The command line of a child that has this much memory, for a machine with these settings.
pub(super) fn arguments(
    settings: Settings,
    limits: &Guest,
    memory_bytes: u64,
    load: bool,
) -> Vec<String> {
    let processor_time = limits.compile_time * COMPILE_THREADS;
    let mut arguments = vec![
        "compile".to_owned(),
        format!("--guest-memory-bytes={}", settings.guest_memory_bytes),
        format!("--memory-bytes={memory_bytes}"),
        format!("--processor-seconds={}", processor_time.as_secs() + 1),
    ];
    if load {
        arguments.push("--load".to_owned());
    }
    arguments
}

/// Compiles what is on standard input to standard output, or loads it.
///
/// # Errors
/// The process cannot be confined, or its pipes are broken. The component's own faults are an exit
/// status.
pub fn run(options: Compile) -> io::Result<ExitCode> {
    confinement::enter(Bounds {
        memory_bytes: options.memory_bytes,
        processor_seconds: options.processor_seconds,
        executes: options.load,
    })?;
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input)?;
    // Whatever `ulimit -s` says.
    let thread = thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
    let result = thread
        .spawn(move || match options.load {
            false => compile(options.guest_memory_bytes, &input),
            true => load(options.guest_memory_bytes, input),
        })?
        .join()
        .map_err(|_| io::Error::other("the compiler panicked"))?;
    match result {
        Ok(output) => {
            io::stdout().write_all(&output)?;
            io::stdout().flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            io::stderr().write_all(one_line(&error).as_bytes())?;
            Ok(ExitCode::from(REFUSED as u8))
        }
    }
}

fn compile(guest_memory_bytes: usize, component: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let settings = Settings {
        guest_memory_bytes,
        images: instance_size::image_bytes(component) >= GUEST_IMAGE_BYTES,
    };
    let code = Engine::new(&machine::config(settings))?.precompile_component(component)?;
    let compiled = Compiled {
        images: settings.images,
        // Only now, when it is known to be a valid component.
        instance_bytes: instance_size::bytes(component),
        code,
    };
    Ok(compiled.write())
}

/// Without a pool: its limits are the server's business.
fn load(guest_memory_bytes: usize, compiled: Vec<u8>) -> wasmtime::Result<Vec<u8>> {
    let Some(compiled) = Compiled::read(compiled) else {
        return Ok(Vec::new());
    };
    let settings = Settings {
        guest_memory_bytes,
        images: compiled.images,
    };
    compiled.load(&Engine::new(&machine::config(settings))?)?;
    Ok(Vec::new())
}
