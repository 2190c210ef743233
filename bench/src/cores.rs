//! Which cores the server and the load run on: apart, so that neither takes the other's time, or on the
//! same two.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores for both.
#[derive(Debug)]
pub struct Cores {
    pub(crate) server: usize,
    pub(crate) load: Vec<usize>,
}

impl Cores {
    /// The first core for the server, the others for the load, which is where this thread and what it
    /// starts run from now on; so what draws the progress is not in the server's way either. Where
    /// there is only one core, nobody is pinned.
    ///
    /// # Errors
    /// The system does not let this thread choose.
    pub fn split() -> io::Result<Option<Cores>> {
        let mut cores = allowed()?;
        let (Some(server), load) = (cores.next(), cores.collect::<Vec<_>>()) else {
            return Ok(None);
        };
        if load.is_empty() {
            return Ok(None);
        }
        pin(&load)?;
        Ok(Some(Cores { server, load }))
    }
}

/// Has this thread and what it starts, which are the server and the load, share two cores.
///
/// # Errors
/// The system does not let this thread choose.
pub fn share() -> io::Result<()> {
    let cores: Vec<_> = allowed()?.take(2).collect();
    pin(&cores)
}

/// Those that this thread may run on.
fn allowed() -> io::Result<impl Iterator<Item = usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(move |&core| allowed.is_set(core)))
}

/// Has this thread, and what it starts, run on these cores.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    Ok(sched_setaffinity(None, &set)?)
}
