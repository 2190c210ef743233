//! What the C library's allocator keeps to itself, and reserves.

use rustix::process::{Resource, getrlimit};

/// Larger than anything the shim or Wasmtime allocates for a connection.
const MOST_BYTES: i32 = 32 << 20;

/// What may stay free at the end of a heap.
const SPARE_BYTES: i32 = 128 << 10;

/// Sets the allocator up for instances that come and go. To be called before there are threads.
///
/// glibc maps large blocks one by one, each a memory mapping of which the kernel has few, until it
/// has seen some freed; from then on it keeps twice as much of every heap. An instance of a Python
/// guest takes 300 KiB, and each of 40 was kept after it had ended. So: no block of its own mapping,
/// and what is free at a heap's end is given back.
///
/// Under a limit of address space there is one heap for all threads. glibc reserves 64 MiB for one of
/// a thread's own at any time from its start on; the next thread would then find no addresses though
/// there were enough when it was asked.
pub fn settle() {
    set(Setting::MmapThreshold, MOST_BYTES);
    set(Setting::TrimThreshold, SPARE_BYTES);
    if getrlimit(Resource::As).current.is_some() {
        set(Setting::ArenaMax, 1);
    }
}

/// See mallopt(3).
enum Setting {
    MmapThreshold,
    TrimThreshold,
    ArenaMax,
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "there is no safe interface to mallopt")]
fn set(setting: Setting, value: i32) {
    let setting = match setting {
        Setting::MmapThreshold => libc::M_MMAP_THRESHOLD,
        Setting::TrimThreshold => libc::M_TRIM_THRESHOLD,
        Setting::ArenaMax => libc::M_ARENA_MAX,
    };
    // SAFETY: it sets a number, under the allocator's own lock. What it refuses stays as it was.
    unsafe { libc::mallopt(setting, value) };
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
fn set(_: Setting, _: i32) {}

/// Gives back what is free between blocks that are not. A heap in which the connections of one thread
/// lie has such blocks at its end, whoever is gone. It takes a while, in which nobody else allocates:
/// for when nothing happens.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "there is no safe interface to malloc_trim")]
pub(crate) fn give_back() {
    // SAFETY: it only gives pages back that no block is in, under the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such function.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}
