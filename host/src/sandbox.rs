//! Where guests run: the only part that knows Wasmtime.

mod bindings;
pub mod compiler;
mod guest_log;
pub mod host;
mod instance_size;
mod keyvalue;
pub mod linking;
mod machine;
pub mod memory;
pub mod rejection;
pub mod runtime;
pub mod session;
mod signature;
mod ticker;
mod topics;
mod wasi;
