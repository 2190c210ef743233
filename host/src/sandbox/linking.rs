//! Once per guest version: the compiled component, linked to all it may ask for.
//!
//! Making one costs milliseconds to seconds (Cranelift compiles the guest); a connection's own
//! instance of it, a [`Session`](crate::sandbox::session::Session), costs microseconds. What all
//! versions share is the [`Runtime`].

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};

use crate::limits;
use crate::process::room::{MemoryClaim, Need};
use crate::sandbox::bindings::batched::{Batch, BatchIndices};
use crate::sandbox::bindings::topical::{Topics, TopicsIndices};
use crate::sandbox::bindings::{LineServer, LineServerIndices};
use crate::sandbox::compiler::too_large;
use crate::sandbox::guest_log::LogRate;
use crate::sandbox::keyvalue;
use crate::sandbox::machine::Machine;
use crate::sandbox::memory::Memory;
use crate::sandbox::rejection::{RejectedGuest, reason};
use crate::sandbox::runtime::Runtime;
use crate::sandbox::signature;
use crate::sandbox::wasi::State;
use crate::store::bucket::Buckets;
use crate::talk::client::Client;
use crate::topics::exchange::Exchange;
use crate::topics::member::Member;

/// A guest that is ready to serve: one for all connections of its version.
pub struct Sandbox {
    pre: InstancePre<State>,
    handler: LineServerIndices,
    /// Not every guest takes many lines at once.
    batch: Option<BatchIndices>,
    /// Not every guest hears others.
    subscriber: Option<TopicsIndices>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) machine: Arc<Machine>,
    /// Linear memories of an instance.
    memories: u32,
    /// What an instance takes besides its memories and tables.
    pub(crate) instance_bytes: u64,
    log: Arc<LogRate>,
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
        let guest = &runtime.limits.guest;
        let loaded = runtime.host.compile(guest, component, wanted)?;
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
        // The machine may have room for larger ones, of other services.
        if let Some(too_large) = too_large(component, &runtime.limits.guest) {
            return Err(too_large);
        }
        let needed = component.resources_required();
        let memories = needed.map_or(limits::guest::GUEST_MEMORIES, |needed| needed.num_memories);
        let component_type = component.component_type();
        let linker = match keyvalue::wants_older_batch(&machine.engine, &component_type) {
            false => &machine.linker,
            true => &machine.older_linker,
        };
        let pre = linker.instantiate_pre(component);
        let pre = pre.map_err(reason(RejectedGuest::Imports))?;
        signature::check(&machine.engine, &component_type)?;
        let handler = LineServerIndices::new(&pre).map_err(reason(RejectedGuest::Exports))?;
        Ok(Sandbox {
            handler,
            batch: BatchIndices::new(&pre).ok(),
            subscriber: TopicsIndices::new(&pre).ok(),
            pre,
            runtime: Arc::clone(runtime),
            machine,
            memories,
            instance_bytes,
            log: LogRate::of_version(&runtime.log),
        })
    }

    /// The same guest, for a service with other settings.
    ///
    /// # Errors
    /// It exceeds their limits.
    pub(crate) fn with(&self, runtime: &Arc<Runtime>) -> Result<Sandbox, RejectedGuest> {
        let machine = Arc::clone(&self.machine);
        Sandbox::link(runtime, machine, self.pre.component(), self.instance_bytes)
    }

    /// The native side of an instance for `client`, memory that has been taken for it, and its stores
    /// and topics.
    pub(super) fn state(
        &self,
        client: Client,
        memory: MemoryClaim,
        stores: Buckets,
        topics: Option<Arc<Exchange>>,
    ) -> State {
        let member = Member::new(topics, client.id, self.subscriber.is_some());
        State::new(
            client,
            Arc::clone(&self.runtime.environment),
            Memory::new(&self.runtime.limits.guest, memory),
            self.machine.ticker.ticks(),
            Arc::clone(&self.log),
            (stores, self.runtime.limits.guest.store_time),
            member,
        )
    }

    /// A fresh instance: its handler, what it has for many lines at once, and to hear others.
    pub(crate) fn instantiate(
        &self,
        store: &mut Store<State>,
    ) -> wasmtime::Result<(LineServer, Option<Batch>, Option<Topics>)> {
        let instance = self.pre.instantiate(&mut *store)?;
        let handler = self.handler.load(&mut *store, &instance)?;
        let batch = self.batch.as_ref();
        let batch = batch.map(|batch| batch.load(&mut *store, &instance));
        let subscriber = self.subscriber.as_ref();
        let subscriber = subscriber.map(|subscriber| subscriber.load(&mut *store, &instance));
        Ok((handler, batch.transpose()?, subscriber.transpose()?))
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

    /// Whether it imports `wasi:keyvalue`.
    pub fn wants_stores(&self) -> bool {
        self.imports_some("wasi:keyvalue/")
    }

    /// Whether it imports topics.
    pub fn wants_topics(&self) -> bool {
        self.imports_some("airlock:line/topics@")
    }

    fn imports_some(&self, start: &str) -> bool {
        self.imports().iter().any(|name| name.starts_with(start))
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
