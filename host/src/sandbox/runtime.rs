//! Once per server: what all versions of its guest share.
//!
//! They share one engine, because the pool of memories belongs to an engine: a pool for each
//! version would multiply what a server reserves, and its memory mappings, which the kernel bounds.
//! (Or two: guests that start from a large image have one of their own, since whether memories
//! begin as images is a setting of the engine.)

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

use super::compiler::Compiler;
use super::compiler::child::Settings;
use super::guest_log::LogRate;
use super::ticker::Ticker;
use super::wasi::{self, State};
use super::{RejectedGuest, reason};
use crate::limits::{self, Limits};
use crate::room::Room;

/// What guests may take, and the machines that they run on.
pub struct Runtime {
    machine: Arc<Machine>,
    /// For guests that start from a large image; made with the first of them.
    machine_with_images: Mutex<Option<Arc<Machine>>>,
    pub(super) compiler: Compiler,
    pub(crate) room: Arc<Room>,
    pub(crate) environment: Arc<[(String, String)]>,
    pub(super) log: Arc<LogRate>,
    pub(crate) limits: Limits,
}

/// An engine with its pool, what guests may ask for, and the clock of calls.
pub(crate) struct Machine {
    pub(crate) engine: Engine,
    pub(super) settings: Settings,
    pub(super) linker: Linker<State>,
    pub(super) ticker: Ticker,
}

/// What lies between the memories of two instances: Wasmtime's 32 MiB and five pages. A processor
/// finds pages through a table (its TLB) with few places for pages whose numbers end in the same bits;
/// at a round distance, the hot pages of all connections would share them. Five pages are more than
/// an instance of the greeter touches.
pub(crate) const MEMORY_GUARD_BYTES: u64 = (32 << 20) + 5 * 4096;

impl Runtime {
    /// `environment` is all that guests see of one; `compiler` compiles them.
    ///
    /// # Errors
    /// Wasmtime cannot run on this machine with these limits.
    pub fn new(
        environment: Vec<(String, String)>,
        limits: Limits,
        compiler: Compiler,
    ) -> Result<Arc<Runtime>, RejectedGuest> {
        let machine = Machine::new(&limits, false)?;
        // Its threads have to start now: when there is no room for them later, every sleep of every
        // guest would fail for good.
        wasmtime_wasi::runtime::with_ambient_tokio_runtime(|| ());
        Ok(Arc::new(Runtime {
            machine: Arc::new(machine),
            machine_with_images: Mutex::default(),
            room: Arc::new(Room::new(&limits)),
            environment: environment.into(),
            log: LogRate::of_process(),
            compiler,
            limits,
        }))
    }

    /// The machine for a guest whose memories begin as images, or as copies.
    pub(crate) fn machine(&self, images: bool) -> Arc<Machine> {
        if !images {
            return Arc::clone(&self.machine);
        }
        let with_images = self.machine_with_images.lock();
        let mut with_images = with_images.unwrap_or_else(PoisonError::into_inner);
        if with_images.is_none() {
            // It is a matter of speed; without addresses for a second pool the first will do.
            *with_images = Machine::new(&self.limits, true)
                .inspect_err(|error| tracing::warn!("no images of guests' memories: {error}"))
                .ok()
                .map(Arc::new);
        }
        Arc::clone(with_images.as_ref().unwrap_or(&self.machine))
    }
}

impl Machine {
    fn new(limits: &Limits, images: bool) -> Result<Machine, RejectedGuest> {
        let settings = Settings {
            guest_memory_bytes: limits.guest_memory_bytes,
            images,
        };
        let mut config = config(settings);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
        let engine = Engine::new(&config).map_err(reason(RejectedGuest::Engine))?;
        Ok(Machine {
            linker: linker(&engine).map_err(reason(RejectedGuest::Engine))?,
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
    config.max_wasm_stack(limits::GUEST_STACK_BYTES);
    config.memory_reservation(settings.guest_memory_bytes as u64);
    config.memory_may_move(false);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    // Mapping an image takes more mappings for each connection, and longer than copying, unless it
    // is large.
    config.memory_init_cow(settings.images);
    config.cranelift_opt_level(OptLevel::Speed);
    config
}

/// Room for every connection's instance and for a new version's trial, so that none can be refused
/// for lack of it. The totals reserve address space only.
fn pool(limits: &Limits) -> PoolingAllocationConfig {
    let instances = u32::try_from(limits.connections + 1).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances);
    pool.total_core_instances(instances.saturating_mul(limits::GUEST_CORE_INSTANCES));
    pool.total_memories(instances.saturating_mul(limits::GUEST_MEMORIES));
    pool.total_tables(instances.saturating_mul(limits::GUEST_TABLES));
    pool.max_core_instances_per_component(limits::GUEST_CORE_INSTANCES);
    pool.max_component_instance_size(limits::GUEST_INSTANCE_BYTES);
    pool.max_core_instance_size(limits::GUEST_INSTANCE_BYTES);
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

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// How many ticks a call may last so that it is never cut short: rounded up, and one more because
/// the first tick may come at once.
pub(crate) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().div_ceil(limits::TICK.as_nanos());
    u64::try_from(ticks)
        .unwrap_or(u64::MAX / 2)
        .saturating_add(1)
}
