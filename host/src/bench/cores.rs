//! Which cores the server and the load run on, so that neither takes the other's time.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores for both.
#[derive(Debug)]
pub(super) struct Cores {
    pub(super) server: usize,
    pub(super) load: Vec<usize>,
}

/// The first core is the server's, the others are the load's; where there is only one, nobody is
/// pinned.
pub(super) fn split() -> Option<Cores> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    let server = cores.next()?;
    let load: Vec<_> = cores.collect();
    (!load.is_empty()).then_some(Cores { server, load })
}

/// Has this thread, and what it starts, run on these cores.
pub(super) fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    Ok(sched_setaffinity(None, &set)?)
}
