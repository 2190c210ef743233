//! Once per process: Wasmtime's engine with its pool, what guests may import, and the clock of calls.
//!
//! All versions of all guests share one engine, because the pool of memories belongs to an engine: a
//! pool for each version would multiply what a server reserves, and its memory mappings, which the
//! kernel bounds. (Or two: guests that start from a large image have one of their own, since whether
//! memories begin as images is a setting of the engine.)

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

use crate::limits;
use crate::limits::process::Process;
use crate::sandbox::keyvalue;
use crate::sandbox::rejection::{RejectedGuest, reason};
use crate::sandbox::ticker::Ticker;
use crate::sandbox::topics;
use crate::sandbox::wasi::{self, State};

/// What compiled code depends on besides the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The largest `--guest-memory` of all services.
    pub(super) guest_memory_bytes: usize,
    /// Memories begin as copy-on-write images.
    pub(super) images: bool,
}

/// An engine with its pool, what guests may ask for, and the clock of calls.
pub(crate) struct Machine {
    pub(crate) engine: Engine,
    pub(super) settings: Settings,
    pub(super) linker: Linker<State>,
    /// The same with an older way to answer `batch.get-many`.
    pub(super) older_linker: Linker<State>,
    pub(super) ticker: Ticker,
}

/// The machines of a process.
pub(super) struct Machines {
    plain: Arc<Machine>,
    /// For guests that start from a large image; made with the first of them.
    with_images: Mutex<Option<Arc<Machine>>>,
    limits: Process,
}

impl Machines {
    /// # Errors
    /// Wasmtime cannot run on this machine with these limits.
    pub(super) fn new(limits: Process) -> Result<Machines, RejectedGuest> {
        let plain = Machine::new(&limits, false)?;
        // Its threads have to start now: when there is no room for them later, every sleep of every
        // guest would fail for good.
        wasmtime_wasi::runtime::with_ambient_tokio_runtime(|| ());
        Ok(Machines {
            plain: Arc::new(plain),
            with_images: Mutex::default(),
            limits,
        })
    }

    /// That of guests whose memories begin as images, or as copies.
    pub(super) fn get(&self, images: bool) -> Arc<Machine> {
        if !images {
            return Arc::clone(&self.plain);
        }
        let with_images = self.with_images.lock();
        let mut with_images = with_images.unwrap_or_else(PoisonError::into_inner);
        if with_images.is_none() {
            // It is a matter of speed; without addresses for a second pool the first will do.
            *with_images = Machine::new(&self.limits, true)
                .inspect_err(|error| tracing::warn!("no images of guests' memories: {error}"))
                .ok()
                .map(Arc::new);
        }
        Arc::clone(with_images.as_ref().unwrap_or(&self.plain))
    }
}

impl Machine {
    fn new(limits: &Process, images: bool) -> Result<Machine, RejectedGuest> {
        let settings = Settings {
            guest_memory_bytes: limits.guest_memory_bytes,
            images,
        };
        let mut config = config(settings);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
        let engine = Engine::new(&config).map_err(reason(RejectedGuest::Engine))?;
        let linked = linkers(&engine).map_err(reason(RejectedGuest::Engine));
        let (linker, older_linker) = linked?;
        Ok(Machine {
            linker,
            older_linker,
            ticker: Ticker::start(&engine).map_err(|error| {
                RejectedGuest::Engine(format!("no thread for the clock of calls: {error}"))
            })?,
            engine,
            settings,
        })
    }
}

/// All that compiled code depends on: the same in this process and in those that compile.
pub(super) fn config(settings: Settings) -> Config {
    let mut config = Config::new();
    // The WIT is synchronous; leaving this on costs hundreds of ns a call.
    config.concurrency_support(false);
    // Time limits. Fuel would be 2 to 3 times slower.
    config.epoch_interruption(true);
    config.max_wasm_stack(limits::guest::GUEST_STACK_BYTES);
    config.memory_reservation(settings.guest_memory_bytes as u64);
    config.memory_may_move(false);
    config.memory_guard_size(limits::guest::GUEST_GUARD_BYTES);
    // Mapping an image takes more mappings for each connection, and longer than copying, unless it
    // is large.
    config.memory_init_cow(settings.images);
    config.cranelift_opt_level(OptLevel::Speed);
    config
}

/// Room for every connection's instance and for the trials of new versions, so that none can be refused
/// for lack of it. The totals reserve address space only.
fn pool(limits: &Process) -> PoolingAllocationConfig {
    let instances = u32::try_from(limits.connections + limits.trials).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances);
    pool.total_core_instances(instances.saturating_mul(limits::guest::GUEST_CORE_INSTANCES));
    pool.total_memories(instances.saturating_mul(limits::guest::GUEST_MEMORIES));
    pool.total_tables(instances.saturating_mul(limits::guest::GUEST_TABLES));
    pool.max_core_instances_per_component(limits::guest::GUEST_CORE_INSTANCES);
    pool.max_component_instance_size(limits::guest::GUEST_INSTANCE_BYTES);
    pool.max_core_instance_size(limits::guest::GUEST_INSTANCE_BYTES);
    pool.max_memories_per_component(limits::guest::GUEST_MEMORIES);
    pool.max_tables_per_component(limits::guest::GUEST_TABLES);
    pool.max_memories_per_module(limits::guest::GUEST_MEMORIES);
    pool.max_tables_per_module(limits::guest::GUEST_TABLES);
    // Not used, since the WIT is synchronous; a thousand of them would be two thousand mappings.
    pool.total_stacks(0);
    pool.table_elements(limits::guest::GUEST_TABLE_ELEMENTS);
    pool.max_memory_size(limits.guest_memory_bytes);
    // Of a memory that is given back, the pages that were written are cleared, up to this much,
    // and the rest is unmapped. The next connection then starts without page faults: 12 µs for an
    // instance, its greeting and a reply instead of 28 µs. More would let guests that once touched
    // much keep it. The scan for written pages needs Linux 6.7; before that the memory's first
    // bytes are cleared whether written or not.
    pool.pagemap_scan(Enabled::Auto);
    pool.linear_memory_keep_resident(limits::guest::GUEST_RESIDENT_BYTES);
    pool.table_keep_resident(4 * 1024);
    pool
}

fn linkers(engine: &Engine) -> wasmtime::Result<(Linker<State>, Linker<State>)> {
    let mut linker = Linker::new(engine);
    wasi::add_to_linker(&mut linker)?;
    keyvalue::add_to_linker(&mut linker)?;
    topics::add_to_linker(&mut linker)?;
    let mut older_linker = linker.clone();
    keyvalue::offer_older_batch(&mut older_linker)?;
    Ok((linker, older_linker))
}

/// How many ticks a call may last so that it is never cut short: rounded up, and one more because
/// the first tick may come at once.
pub(crate) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().div_ceil(limits::guest::TICK.as_nanos());
    u64::try_from(ticks)
        .unwrap_or(u64::MAX / 2)
        .saturating_add(1)
}
