//! What this process has room for: the default, and the most, of `--max-connections`, and the
//! default of `--total-guest-memory`.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;
use crate::sandbox::MEMORY_GUARD_BYTES;
use crate::signal_stack;

/// Descriptors for everything that is not a connection: standard streams, listeners, the guest's
/// file and its cache, the timer that WASI sleeps on.
const SPARE_DESCRIPTORS: u64 = 64;

/// Memory mappings of one connection's thread (measured): its stack and the signal stack of Rust's
/// runtime, each with its guard.
const THREAD_MAPPINGS: u64 = 4;

/// Memory mappings of one linear memory: what it has and what it may grow into.
const MEMORY_MAPPINGS: u64 = 2;

/// Mappings for everything that is not a connection.
const SPARE_MAPPINGS: u64 = 1024;

/// Addresses of one connection's thread: its stack, the signal stack of Rust's runtime, and guards.
const THREAD_ADDRESSES: u64 =
    (limits::THREAD_STACK_BYTES + signal_stack::BYTES + (64 << 10)) as u64;

/// Addresses for what the shim holds of one connection at most, with the default limits: a line and
/// a reply, each more than once.
const HEAP_ADDRESSES: u64 = 4 << 20;

/// Addresses for everything that is not a connection, once the server serves.
const SPARE_ADDRESSES: u64 = 16 << 20;

/// The same, before it has begun: the engine, what it compiles, and the threads of both.
const START_ADDRESSES: u64 = 1 << 30;

/// What the C library reserves for the heap of a thread, where there is as much.
const ARENA_ADDRESSES: u64 = 64 << 20;

/// Threads of other processes that share the machine's limits.
const SPARE_THREADS: u64 = 1024;

/// More threads than this on one machine is a configuration error rather than a server.
const MOST: u64 = 65_536;

/// The room for connections, and what bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// At most this many connections can be held at once, if their guests have one memory each.
    pub connections: usize,
    /// What to raise for more.
    pub bound: &'static str,
    /// Memory mappings for all connections together.
    pub mappings: u64,
    /// Addresses for all connections together.
    pub addresses: u64,
    /// Half of the memory that this process may use.
    pub guest_memory_bytes: u64,
}

/// Raises the soft limit of open files to the hard limit and returns the room there is for
/// connections that take `files` open files each.
///
/// The memory mappings are bounded because a thread that cannot map its signal stack aborts the
/// process; that must not be reachable from the network.
pub fn claim(files: u64) -> Capacity {
    let all_mappings = kernel("vm/max_map_count").saturating_sub(SPARE_MAPPINGS);
    let bounds = [
        (
            raise_open_files() / files,
            "the limit of open files (`ulimit -n`, `LimitNOFILE=`)",
        ),
        (all_mappings / mappings(1), "the sysctl `vm.max_map_count`"),
        (
            kernel("kernel/threads-max").saturating_sub(SPARE_THREADS),
            "the sysctl `kernel.threads-max`",
        ),
        (
            kernel("kernel/pid_max").saturating_sub(SPARE_THREADS),
            "the sysctl `kernel.pid_max`",
        ),
        (MOST, "Airlock itself: a thread per connection"),
    ];
    let (connections, bound) = bounds
        .into_iter()
        .min_by_key(|&(connections, _)| connections)
        .unwrap_or((1, ""));
    Capacity {
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        bound,
        mappings: all_mappings,
        addresses: addresses_left().map_or(u64::MAX, |left| left.saturating_sub(START_ADDRESSES)),
        guest_memory_bytes: memory_bytes() / 2,
    }
}

impl Capacity {
    /// The room for connections whose guests have memories that may grow to this size, which are
    /// reserved at the start; and what bounds it.
    pub(crate) fn connections_with(&self, guest_memory_bytes: u64) -> (usize, &'static str) {
        let table = (limits::GUEST_TABLE_ELEMENTS * size_of::<usize>()) as u64;
        let tables = u64::from(limits::GUEST_TABLES) * table;
        let memories =
            u64::from(limits::GUEST_MEMORIES) * (guest_memory_bytes + MEMORY_GUARD_BYTES);
        let each = memories + tables + ARENA_ADDRESSES + THREAD_ADDRESSES + HEAP_ADDRESSES;
        // One more for the trial of a new version.
        let room = (self.addresses / each).saturating_sub(1);
        match usize::try_from(room) {
            Ok(room) if room < self.connections => (
                room,
                "the limit of address space (`ulimit -v`, `LimitAS=`), or lower --guest-memory",
            ),
            _ => (self.connections, self.bound),
        }
    }
}

/// The memory of the machine, or of the process's control group where that is less.
fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kilobytes * 1024)
    });
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
            let limit = fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.max")).ok()?;
            limit.trim().parse().ok()
        });
    // Not Linux: enough for a small server.
    machine.unwrap_or(2 << 30).min(group.unwrap_or(u64::MAX))
}

/// Memory mappings of a connection whose guest has this many linear memories.
pub fn mappings(memories: u32) -> u64 {
    THREAD_MAPPINGS + MEMORY_MAPPINGS * u64::from(memories)
}

/// Whether there are addresses for one thread more beside `threads` others. A thread that finds none
/// for its signal stack aborts the process, and so does whoever finds none for what it stores.
///
/// # Errors
/// What to raise.
pub(crate) fn check_addresses(threads: usize) -> io::Result<()> {
    let heap = (threads as u64 + 1).saturating_mul(HEAP_ADDRESSES);
    let needed = heap + THREAD_ADDRESSES + SPARE_ADDRESSES;
    if addresses_left().is_some_and(|left| left < needed) {
        return Err(io::Error::other(
            "the limit of address space is reached (`ulimit -v`, `LimitAS=`)",
        ));
    }
    Ok(())
}

/// What a limit of address space leaves to this process, where there is one.
fn addresses_left() -> Option<u64> {
    let limit = getrlimit(Resource::As).current?;
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').next()?.parse().ok()?;
    Some(limit.saturating_sub(pages * rustix::param::page_size() as u64))
}

/// A limit of the kernel, where there is one.
fn kernel(name: &str) -> u64 {
    fs::read_to_string(format!("/proc/sys/{name}"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u64::MAX)
}

/// Raises the soft limit of open files to the hard limit, and returns how many may be connections.
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    current
        .unwrap_or(u64::MAX)
        .saturating_sub(SPARE_DESCRIPTORS)
}
