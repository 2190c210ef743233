//! Once per guest version: the compiled component, linked to all it may ask for.
//!
//! Making one costs milliseconds to seconds (Cranelift compiles the guest); a connection's own
//! instance of it, a [`Session`](crate::session::Session), costs microseconds.

mod guest_log;
mod memory;
mod ticker;
mod wasi;

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{
    Cache, CacheConfig, Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel,
    PoolingAllocationConfig,
};

use crate::bindings::{LineServer, LineServerPre};
use crate::capacity;
use crate::limits::{self, Limits};
use memory::Budget;
pub use memory::Refused;
pub(crate) use ticker::Ticker;
pub(crate) use wasi::{CallTimedOut, State};

/// A guest that is ready to serve: one for all connections.
pub struct Sandbox {
    pub(crate) pre: LineServerPre<State>,
    pub(crate) ticker: Ticker,
    pub(crate) memory: Arc<Budget>,
    pub(crate) environment: Arc<[(String, String)]>,
    pub(crate) limits: Limits,
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
    /// It declares imports that nothing here provides.
    #[error("it asks for what Airlock does not offer: {0}")]
    Imports(String),
    /// It does not export the handler, or not with this signature.
    #[error("it does not export `airlock:line/handler@0.1.0` as wit/world.wit has it: {0}")]
    Exports(String),
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
    /// Compiles `component` (the binary format, never native code) and links it to all that the
    /// world in `wit/world.wit` and WASI 0.2 offer. `environment` is all the guest sees of one.
    ///
    /// # Errors
    /// The component is not one, or not one of this world, or exceeds the limits.
    pub fn new(
        component: &[u8],
        environment: Vec<(String, String)>,
        mut limits: Limits,
    ) -> Result<Sandbox, RejectedGuest> {
        match component.get(..8) {
            Some(b"\0asm\x0d\x00\x01\x00") => {}
            Some(b"\0asm\x01\x00\x00\x00") => return Err(RejectedGuest::CoreModule),
            _ => return Err(RejectedGuest::NotWasm),
        }
        let engine = Engine::new(&config(&limits)).map_err(reason(RejectedGuest::Engine))?;
        let component = Component::from_binary(&engine, component)
            .map_err(|error| why_invalid(component, &limits, &error))?;

        leave_room_for_memories(&component, &mut limits);
        // Its threads have to start now: when there is no room for them later, every sleep of every
        // guest would fail for good.
        wasmtime_wasi::runtime::with_ambient_tokio_runtime(|| ());

        let linker = linker(&engine).map_err(reason(RejectedGuest::Engine))?;
        let pre = linker
            .instantiate_pre(&component)
            .map_err(reason(RejectedGuest::Imports))?;
        let pre = LineServerPre::new(pre).map_err(reason(RejectedGuest::Exports))?;
        Ok(Sandbox {
            ticker: Ticker::start(&engine).map_err(|error| {
                RejectedGuest::Engine(format!("no thread for the clock of calls: {error}"))
            })?,
            pre,
            memory: Budget::new(limits.total_guest_memory_bytes),
            environment: environment.into(),
            limits,
        })
    }
}

fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    // The WIT is synchronous; leaving this on costs hundreds of ns a call.
    config.concurrency_support(false);
    // Time limits. Fuel would be 2 to 3 times slower.
    config.epoch_interruption(true);
    config.max_wasm_stack(limits::GUEST_STACK_BYTES);
    config.memory_reservation(limits.guest_memory_bytes as u64);
    config.memory_may_move(false);
    // Fewer mappings for each connection, and faster than mapping the image anew.
    config.memory_init_cow(false);
    config.cranelift_opt_level(OptLevel::Speed);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config.cache(cache());
    config
}

/// Room for every connection's instance, so that none can be refused for lack of it. The totals
/// reserve address space only.
fn pool(limits: &Limits) -> PoolingAllocationConfig {
    let connections = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(connections);
    pool.total_core_instances(connections.saturating_mul(limits::GUEST_CORE_INSTANCES));
    pool.total_memories(connections.saturating_mul(limits::GUEST_MEMORIES));
    pool.total_tables(connections.saturating_mul(limits::GUEST_TABLES));
    pool.max_core_instances_per_component(limits::GUEST_CORE_INSTANCES);
    pool.max_memories_per_component(limits::GUEST_MEMORIES);
    pool.max_tables_per_component(limits::GUEST_TABLES);
    pool.max_memories_per_module(limits::GUEST_MEMORIES);
    pool.max_tables_per_module(limits::GUEST_TABLES);
    // Not used, since the WIT is synchronous; a thousand of them would be two thousand mappings.
    pool.total_stacks(0);
    pool.table_elements(limits::GUEST_TABLE_ELEMENTS);
    pool.max_memory_size(limits.guest_memory_bytes);
    // Of a memory that is given back, the pages that were written are cleared, up to this much,
    // and the rest is unmapped. The next connection then starts without page faults: 12 µs for an
    // instance, its greeting and a reply instead of 28 µs. More would let guests that once touched
    // much keep it. The scan for written pages needs Linux 6.7; before that the memory's first
    // bytes are cleared whether written or not.
    pool.pagemap_scan(Enabled::Auto);
    pool.linear_memory_keep_resident(limits::GUEST_RESIDENT_BYTES);
    pool.table_keep_resident(4 * 1024);
    pool
}

/// Wasmtime's cache of compiled guests, in the user's cache directory. A server that has no such
/// directory compiles at every start.
fn cache() -> Option<Cache> {
    Cache::new(CacheConfig::new())
        .inspect_err(|error| tracing::debug!("no cache of compiled guests: {error:#}"))
        .ok()
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::add_to_linker(&mut linker)?;
    LineServer::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
    Ok(linker)
}

/// Lowers the cap on connections where a guest has more than the one memory that was reckoned with.
fn leave_room_for_memories(component: &Component, limits: &mut Limits) {
    let needed = component.resources_required();
    let memories = needed.map_or(limits::GUEST_MEMORIES, |needed| needed.num_memories);
    let room = limits.mappings / capacity::mappings(memories);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if room < limits.connections {
        tracing::warn!(
            "room for {room} connections, since each instance of the guest has {memories} memories \
             (vm.max_map_count)"
        );
        limits.connections = room;
    }
}

/// Wasmtime refuses a component with too large a memory in words that name none of our options;
/// the sizes can be asked for once it is compiled without limits.
fn why_invalid(component: &[u8], limits: &Limits, error: &wasmtime::Error) -> RejectedGuest {
    const PAGE_BYTES: u64 = 64 * 1024;
    let needed_pages = Component::from_binary(&Engine::default(), component)
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
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// How many ticks a call may last so that it is never cut short: rounded up, and one more because
/// the first tick may come at once.
pub(crate) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().div_ceil(limits::TICK.as_nanos());
    u64::try_from(ticks)
        .unwrap_or(u64::MAX / 2)
        .saturating_add(1)
}
