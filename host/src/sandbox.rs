//! Once per guest version: the compiled component, linked to all it may ask for.
//!
//! Making one costs milliseconds to seconds (Cranelift compiles the guest); a connection's own
//! instance of it, a [`Session`](crate::session::Session), costs microseconds. What all versions
//! share, Wasmtime's engine above all, is the [`Runtime`].

pub mod compiler;
mod guest_log;
mod instance_size;
mod memory;
mod runtime;
mod signature;
mod ticker;
mod wasi;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Store};

use crate::bindings::batched::{Batch, BatchIndices};
use crate::bindings::{LineServer, LineServerIndices};
use crate::limits::{self, Limits};
use crate::logging::printable;
use crate::room::Need;
pub use compiler::Compiler;
use guest_log::LogRate;
pub use memory::Refused;
pub(crate) use runtime::Machine;
pub use runtime::Runtime;
pub(crate) use runtime::{MEMORY_GUARD_BYTES, ticks};
pub(crate) use wasi::{CallTimedOut, State, caught};

/// A guest that is ready to serve: one for all connections of its version.
pub struct Sandbox {
    pre: InstancePre<State>,
    handler: LineServerIndices,
    /// Not every guest takes many lines at once.
    batch: Option<BatchIndices>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) machine: Arc<Machine>,
    /// Linear memories of an instance.
    memories: u32,
    /// What an instance takes besides its memories and tables.
    pub(crate) instance_bytes: u64,
    log: Arc<LogRate>,
}

/// Why a file cannot be served. Always the guest's fault; said once, before anything listens.
#[derive(Debug, thiserror::Error)]
pub enum RejectedGuest {
    /// Neither of WebAssembly's binary formats.
    #[error("it is not a WebAssembly component")]
    NotWasm,
    /// A module, which has no WIT interface.
    #[error(
        "it is a core WebAssembly module, not a component: build it for the target \
         wasm32-wasip2, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// Not valid, not whole, or it asks for more than the limits.
    #[error("it cannot be compiled: {0}")]
    Invalid(String),
    /// Compiling it takes too long.
    #[error(
        "it cannot be compiled: it takes longer than {} (--compile-timeout)",
        humantime::format_duration(*.0)
    )]
    CompileTime(Duration),
    /// Compiling it takes too much memory.
    #[error("it cannot be compiled: it takes more memory than {0} (--compile-memory)")]
    CompileMemory(ByteSize),
    /// The compiler's stack overflows over it.
    #[error("it cannot be compiled: it is nested too deeply")]
    Nested,
    /// There is too much of it.
    #[error(
        "it cannot be compiled: its code has more than {} bytes",
        limits::COMPILED_BYTES
    )]
    CompiledBytes,
    /// Its code would take too much memory here.
    #[error("it cannot be loaded: what is in it takes too much memory")]
    Load,
    /// The compiler died over it otherwise.
    #[error("it cannot be compiled: the compiler died of it ({0})")]
    CompilerDied(String),
    /// There is a newer one.
    #[error("given up while it was compiled")]
    NotWanted,
    /// Not its fault: the system has no room for another process.
    #[error("the compiler cannot be started: {0}")]
    NoCompiler(#[source] io::Error),
    /// It declares imports that nothing here provides.
    #[error("it asks for what Airlock does not offer: {0}")]
    Imports(String),
    /// It does not export the handler, or not with this signature.
    #[error("it does not export `airlock:line/handler@0.1.0` as wit/world.wit has it: {0}")]
    Exports(String),
    /// It exports the handler with another signature.
    #[error(transparent)]
    Signature(#[from] signature::Mismatch),
    /// Its memory does not fit the limit from the beginning.
    #[error(
        "it starts with {needed_bytes} bytes of memory and the limit is {limit_bytes}: raise \
         --guest-memory"
    )]
    Memory {
        /// What the component declares.
        needed_bytes: u64,
        /// `--guest-memory`.
        limit_bytes: usize,
    },
    /// Wasmtime cannot run on this machine with these limits.
    #[error("the sandbox cannot be set up: {0}")]
    Engine(String),
}

impl Sandbox {
    /// Compiles `component` (the binary format, never native code) in a process of its own, for as
    /// long as it is `wanted`, and links it to all that the world in `wit/world.wit` and WASI 0.2
    /// offer.
    ///
    /// # Errors
    /// The component is not one, or not one of this world, or exceeds the limits.
    pub fn new(
        runtime: &Arc<Runtime>,
        component: &[u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Sandbox, RejectedGuest> {
        match component.get(..8) {
            Some(b"\0asm\x0d\x00\x01\x00") => {}
            Some(b"\0asm\x01\x00\x00\x00") => return Err(RejectedGuest::CoreModule),
            _ => return Err(RejectedGuest::NotWasm),
        }
        let machine = |images| runtime.machine(images);
        let loaded = runtime
            .compiler
            .compile(&machine, &runtime.limits, component, wanted)?;
        Sandbox::link(
            runtime,
            loaded.machine,
            &loaded.component,
            loaded.instance_bytes,
        )
    }

    /// The second half of that.
    pub(crate) fn link(
        runtime: &Arc<Runtime>,
        machine: Arc<Machine>,
        component: &Component,
        instance_bytes: u64,
    ) -> Result<Sandbox, RejectedGuest> {
        let needed = component.resources_required();
        let memories = needed.map_or(limits::GUEST_MEMORIES, |needed| needed.num_memories);
        let pre = machine
            .linker
            .instantiate_pre(component)
            .map_err(reason(RejectedGuest::Imports))?;
        signature::check(&machine.engine, &component.component_type())?;
        let handler = LineServerIndices::new(&pre).map_err(reason(RejectedGuest::Exports))?;
        Ok(Sandbox {
            handler,
            batch: BatchIndices::new(&pre).ok(),
            pre,
            runtime: Arc::clone(runtime),
            machine,
            memories,
            instance_bytes,
            log: LogRate::of_version(&runtime.log),
        })
    }

    /// A fresh instance: its handler, and what it has for many lines at once.
    pub(crate) fn instantiate(
        &self,
        store: &mut Store<State>,
    ) -> wasmtime::Result<(LineServer, Option<Batch>)> {
        let instance = self.pre.instantiate(&mut *store)?;
        let handler = self.handler.load(&mut *store, &instance)?;
        let batch = self.batch.as_ref();
        let batch = batch.map(|batch| batch.load(&mut *store, &instance));
        Ok((handler, batch.transpose()?))
    }

    /// What a connection takes whose instance has this much memory when it has greeted.
    pub fn need(&self, memory_bytes: u64) -> Need {
        Need {
            memories: self.memories,
            images: self.machine.settings.images,
            memory_bytes,
        }
    }

    /// The names of what it imports.
    pub fn imports(&self) -> Vec<String> {
        let component = self.pre.component().component_type();
        let imports = component.imports(&self.machine.engine);
        imports.map(|(name, _)| name.to_owned()).collect()
    }

    /// The names of what it exports: the functions of its interfaces.
    pub fn exports(&self) -> Vec<String> {
        let engine = &self.machine.engine;
        let component = self.pre.component().component_type();
        let mut names = Vec::new();
        for (name, item) in component.exports(engine) {
            let ComponentItem::ComponentInstance(interface) = item.ty else {
                names.push(name.to_owned());
                continue;
            };
            for (function, item) in interface.exports(engine) {
                if matches!(item.ty, ComponentItem::ComponentFunc(_)) {
                    names.push(format!("{name}#{function}"));
                }
            }
        }
        names
    }
}

/// Wasmtime refuses a component with too large a memory in words that name none of our options;
/// the sizes can be asked for where there is no pool.
fn why_too_large(
    machine: &Machine,
    limits: &Limits,
    compiled: &[u8],
    error: &wasmtime::Error,
) -> RejectedGuest {
    const PAGE_BYTES: u64 = 64 * 1024;
    let needed_pages = Engine::new(&runtime::config(machine.settings))
        .and_then(|engine| compiler::load(&engine, compiled))
        .ok()
        .and_then(|component| component.resources_required()?.max_initial_memory_size)
        .unwrap_or(0);
    let needed_bytes = needed_pages.saturating_mul(PAGE_BYTES);
    if needed_bytes > limits.guest_memory_bytes as u64 {
        RejectedGuest::Memory {
            needed_bytes,
            limit_bytes: limits.guest_memory_bytes,
        }
    } else {
        RejectedGuest::Invalid(one_line(error))
    }
}

/// Wasmtime's error with all its causes, on one line.
fn reason(reject: fn(String) -> RejectedGuest) -> impl FnOnce(wasmtime::Error) -> RejectedGuest {
    move |error| reject(one_line(&error))
}

pub(crate) fn one_line(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}");
    let words: Vec<_> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    line.truncate(line.floor_char_boundary(limits::LOG_LINE_BYTES));
    printable(&line)
}
