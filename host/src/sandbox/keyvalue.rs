//! `wasi:keyvalue`, in the two versions that guests are built for: what a guest keeps beyond its
//! connection, in the stores that it was granted.
//!
//! Where the WIT is silent: `cas.new` takes the snapshot, and `current` asks nobody; a swap compares
//! values; counters are decimals of 64 bits; the bucket without a name is `default`.

mod draft;
mod draft2;
pub(super) mod operations;

use wasmtime::component::Linker;
use wasmtime::component::types::{Component, ComponentItem, Type};
use wasmtime::{Engine, Result};

use crate::sandbox::wasi::State;

/// Links both versions.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    draft::add_to_linker(linker)?;
    draft2::add_to_linker(linker)
}

/// Has the linker offer what `batch.get-many` returned before it changed within 0.2.0-draft2.
pub(super) fn offer_older_batch(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    draft2::add_older_get_many(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Whether a component was built for that.
pub(super) fn wants_older_batch(engine: &Engine, component: &Component) -> bool {
    let values = || {
        let batch = component.get_import(engine, draft2::BATCH)?.ty;
        let ComponentItem::ComponentInstance(batch) = batch else {
            return None;
        };
        let get_many = batch.get_export(engine, draft2::GET_MANY)?.ty;
        let ComponentItem::ComponentFunc(get_many) = get_many else {
            return None;
        };
        match get_many.results().next()? {
            Type::Result(result) => result.ok(),
            _ => None,
        }
    };
    match values() {
        Some(Type::List(values)) => matches!(values.ty(), Type::Option(_)),
        _ => false,
    }
}
