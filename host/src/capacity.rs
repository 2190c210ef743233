//! How many connections this process has room for: the default, and the most, of
//! `--max-connections`.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything that is not a connection: standard streams, listeners, the guest's
/// file and its cache, the timer that WASI sleeps on.
const SPARE_DESCRIPTORS: u64 = 64;

/// Memory mappings of one connection: the thread's stack and its guard, the alternate signal
/// stacks of Rust's runtime and of Wasmtime and their guards, and the guest's memory and its rest.
const MAPPINGS: u64 = 8;

/// Mappings for everything that is not a connection.
const SPARE_MAPPINGS: u64 = 1024;

/// Threads of other processes that share the machine's limits.
const SPARE_THREADS: u64 = 1024;

/// More threads than this on one machine is a configuration error rather than a server.
const MOST: u64 = 65_536;

/// The room for connections, and what bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// At most this many connections can be held at once.
    pub connections: usize,
    /// What to raise for more.
    pub bound: &'static str,
}

/// Raises the soft limit of open files to the hard limit and returns the room there is.
///
/// The memory mappings are bounded because a thread that cannot map its signal stack aborts the
/// process; that must not be reachable from the network.
pub fn claim() -> Capacity {
    let files = raise_open_files();
    let kernel = |name: &str| {
        fs::read_to_string(format!("/proc/sys/{name}"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(u64::MAX)
    };
    let bounds = [
        (
            files.saturating_sub(SPARE_DESCRIPTORS),
            "the limit of open files (`ulimit -n`, `LimitNOFILE=`)",
        ),
        (
            kernel("vm/max_map_count").saturating_sub(SPARE_MAPPINGS) / MAPPINGS,
            "the sysctl `vm.max_map_count`",
        ),
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
        connections: usize::try_from(connections.max(1)).unwrap_or(1),
        bound,
    }
}

fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}
