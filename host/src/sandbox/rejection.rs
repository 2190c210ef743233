//! Why a guest's file cannot be served, in words for whoever wrote it.

use std::io;
use std::time::Duration;

use bytesize::ByteSize;

use crate::limits;
use crate::logging::printable;
use crate::sandbox::signature;

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
        limits::guest::COMPILED_BYTES
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

/// Wasmtime's error with all its causes, on one line.
pub(super) fn reason(
    reject: fn(String) -> RejectedGuest,
) -> impl FnOnce(wasmtime::Error) -> RejectedGuest {
    move |error| reject(one_line(&error))
}

pub(super) fn one_line(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}");
    let words: Vec<_> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    line.truncate(line.floor_char_boundary(limits::guest::LOG_LINE_BYTES));
    printable(&line)
}
