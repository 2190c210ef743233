//! What this process has room for: the default, and the most, of `--max-connections`, and the
//! default of `--total-guest-memory`.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;
use crate::process::signal_stack;

/// Descriptors for everything that is not a connection: standard streams, a listener, the guest's
/// file and its cache, the timer that WASI sleeps on, what compiling takes.
const SPARE_DESCRIPTORS: u64 = 64;

/// Memory mappings of one connection's thread (measured): its stack and the signal stack of Rust's
/// runtime, each with its guard.
pub(crate) const THREAD_MAPPINGS: u64 = 4;

/// Memory mappings of one linear memory: what it has and what it may grow into. One that begins as an
/// image has another.
pub(crate) const MEMORY_MAPPINGS: u64 = 2;

/// Mappings for everything that is not a connection.
const SPARE_MAPPINGS: u64 = 1024;

/// Addresses of one connection's thread: its stack, the signal stack of Rust's runtime, and guards.
const THREAD_ADDRESSES: u64 =
    (limits::process::THREAD_STACK_BYTES + signal_stack::BYTES + (64 << 10)) as u64;

/// Addresses for what the shim holds of one connection at most, with the default limits: a line and
/// a reply, each more than once.
const HEAP_ADDRESSES: u64 = 4 << 20;

/// Addresses for everything that is not a connection, once the server serves.
const SPARE_ADDRESSES: u64 = 16 << 20;

/// The same, before it has begun: the engine, what it compiles, and the threads of both.
const START_ADDRESSES: u64 = 1 << 30;

/// Threads of other processes that share the machine's limits.
const SPARE_THREADS: u64 = 1024;

/// Threads and processes of the control group that serve no connection: this process's own, and the
/// one that compiles guests.
const SPARE_GROUP_THREADS: u64 = 64;

/// More connections than this on one machine is a configuration error rather than a server.
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

/// What a connection takes, whatever its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Each {
    /// Open files.
    pub files: u64,
    /// A thread of its own.
    pub thread: bool,
}

/// Open files of each seat: its epoll descriptor, and what wakes it, twice.
pub const SEAT_FILES: u64 = 3;

/// Open files of each guest's file that is watched: inotify, and what ends that, twice.
pub const WATCH_FILES: u64 = 3;

/// Open files of each listener: itself, what the next process takes over, and what the one before has
/// handed over.
pub const LISTENER_FILES: u64 = 3;

/// Open files of each store in a file: two for each connection to it, and one that these have in common.
pub const STORE_FILES: u64 = 2 * (1 + limits::guest::STORE_READERS as u64) + 1;

/// Raises the soft limit of open files to the hard limit and returns the room there is for
/// connections that take this much each, beside so many open files of the server's own: of those that
/// `SPARE_DESCRIPTORS` do not cover, since there are several.
///
/// The memory mappings are bounded because a thread that cannot map its signal stack aborts the
/// process; that must not be reachable from the network.
pub fn claim(each: Each, own_files: u64) -> Capacity {
    let files = raise_open_files().saturating_sub(own_files) / each.files;
    Capacity::of_machine(Path::new("/"), files, each.thread)
}

impl Each {
    /// As it is when nothing else is asked for.
    pub const DEFAULT: Each = Each {
        files: 1,
        thread: true,
    };
}

impl Capacity {
    /// The room on the machine whose files are below `root`, with so many open files, for connections
    /// with threads of their own or without.
    fn of_machine(root: &Path, files: u64, threads: bool) -> Capacity {
        let kernel = |name: &str| number(&root.join("proc/sys").join(name)).unwrap_or(u64::MAX);
        let all_mappings = kernel("vm/max_map_count").saturating_sub(SPARE_MAPPINGS);
        let thread_mappings = if threads { THREAD_MAPPINGS } else { 0 };
        let mut bounds = vec![
            (
                files,
                "the limit of open files (`ulimit -n`, `LimitNOFILE=`)",
            ),
            (
                all_mappings / (thread_mappings + MEMORY_MAPPINGS),
                "the sysctl `vm.max_map_count`",
            ),
            (MOST, "Airlock itself"),
        ];
        if threads {
            bounds.extend([
                (
                    kernel("kernel/threads-max").saturating_sub(SPARE_THREADS),
                    "the sysctl `kernel.threads-max`",
                ),
                (
                    kernel("kernel/pid_max").saturating_sub(SPARE_THREADS),
                    "the sysctl `kernel.pid_max`",
                ),
                (
                    group_limit(root, "pids.max").saturating_sub(SPARE_GROUP_THREADS),
                    "`pids.max` of the control group, or of one around it (`TasksMax=`)",
                ),
            ]);
        }
        let (connections, bound) = bounds
            .into_iter()
            .min_by_key(|&(connections, _)| connections)
            .unwrap_or((1, ""));
        let addresses = addresses_left();
        Capacity {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            bound,
            mappings: all_mappings,
            addresses: addresses.map_or(u64::MAX, |left| left.saturating_sub(START_ADDRESSES)),
            guest_memory_bytes: memory_bytes(root) / 2,
        }
    }

    /// The room for connections whose guests have memories that may grow to this size, which are
    /// reserved at the start; and what bounds it.
    pub(crate) fn connections_with(&self, guest_memory_bytes: u64) -> (usize, &'static str) {
        let table = (limits::guest::GUEST_TABLE_ELEMENTS * size_of::<usize>()) as u64;
        let tables = u64::from(limits::guest::GUEST_TABLES) * table;
        let memories = u64::from(limits::guest::GUEST_MEMORIES)
            * (guest_memory_bytes + limits::guest::GUEST_GUARD_BYTES);
        // Guests with images have a pool of their own.
        let each = 2 * (memories + tables) + THREAD_ADDRESSES + HEAP_ADDRESSES;
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
fn memory_bytes(root: &Path) -> u64 {
    let machine = fs::read_to_string(root.join("proc/meminfo"));
    let machine = machine.ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kilobytes * 1024)
    });
    // Not Linux: enough for a small server.
    machine
        .unwrap_or(2 << 30)
        .min(group_limit(root, "memory.max"))
}

/// The least that the process's control group and those around it allow, each of which counts what is
/// in the groups below it too. (Version 2; those of version 1 are not looked at.)
fn group_limit(root: &Path, name: &str) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let top = root.join("sys/fs/cgroup");
    let group = top.join(group.unwrap_or(""));
    let around = group
        .ancestors()
        .take_while(|group| group.starts_with(&top));
    // `max` is no limit, and no number.
    around
        .filter_map(|group| number(&group.join(name)))
        .min()
        .unwrap_or(u64::MAX)
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

/// What a file says that says one number.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Raises the soft limit of open files to the hard limit, and returns how many may be connections.
pub fn raise_open_files() -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB, with these files besides; the process is in the control group /a/b.
    fn machine(files: &[(&str, &str)]) -> Capacity {
        let root = tempfile::tempdir().expect("a folder");
        let usual = [
            ("proc/meminfo", "MemFree: 1 kB\nMemTotal:  8388608 kB\n"),
            ("proc/self/cgroup", "4:memory:/x\n0::/a/b\n"),
            ("proc/sys/vm/max_map_count", "601024\n"),
            ("proc/sys/kernel/threads-max", "51024\n"),
            ("proc/sys/kernel/pid_max", "4194304\n"),
        ];
        for (name, text) in usual.iter().chain(files) {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("it is made");
            fs::write(file, text).expect("it is written");
        }
        Capacity::of_machine(root.path(), 1 << 20, true)
    }

    #[test]
    fn every_control_group_around_the_process_bounds_its_memory() {
        let memory = |files: &[_]| machine(files).guest_memory_bytes >> 20;
        assert_eq!(memory(&[]), 4096);
        let own = ("sys/fs/cgroup/a/b/memory.max", "1073741824\n");
        assert_eq!(memory(&[own]), 512);
        let around = ("sys/fs/cgroup/a/memory.max", "536870912\n");
        let none = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(memory(&[none, around]), 256);
        assert_eq!(memory(&[own, around]), 256);
        let top = ("sys/fs/cgroup/memory.max", "268435456\n");
        assert_eq!(memory(&[own, around, top]), 128);
        // Another group is none around it, and more than there is is no limit.
        let aside = ("sys/fs/cgroup/a/c/memory.max", "1\n");
        let large = ("sys/fs/cgroup/a/b/memory.max", "17179869184\n");
        assert_eq!(memory(&[aside, large]), 4096);
        // In the top of a container all that can be seen is its own.
        let inside = ("proc/self/cgroup", "0::/\n");
        assert_eq!(memory(&[inside, own, top]), 128);
    }

    #[test]
    fn every_control_group_around_the_process_bounds_its_threads() {
        let room = |files: &[_]| {
            let capacity = machine(files);
            (capacity.connections, capacity.bound)
        };
        assert_eq!(room(&[]), (50_000, "the sysctl `kernel.threads-max`"));
        let own = ("sys/fs/cgroup/a/b/pids.max", "4915\n");
        let (connections, bound) = room(&[own]);
        assert_eq!(connections, 4915 - 64);
        assert!(bound.contains("`TasksMax=`"), "{bound}");
        let around = ("sys/fs/cgroup/a/pids.max", "564\n");
        assert_eq!(room(&[own, around]).0, 500);
        let none = ("sys/fs/cgroup/a/b/pids.max", "max\n");
        assert_eq!(room(&[none]).0, 50_000);
        // Refused at the start, with what to raise.
        let few = ("sys/fs/cgroup/a/b/pids.max", "20\n");
        assert_eq!(room(&[few]).0, 0);
    }
}
