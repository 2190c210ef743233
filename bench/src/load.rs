//! One run of load: its threads, and what they measured together.

use std::io;
use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs, panic, thread};

use airlock::settings::address::Address;

use crate::connect::Connector;
use crate::fault::Fault;
use crate::measured::Measured;
use crate::pace::paces;
use crate::plan::{Mode, Plan};
use crate::progress::{self, Progress};
use crate::{churn, cores, lines, open};

/// The server that is loaded.
pub(crate) struct Target<'a> {
    pub(crate) address: Address,
    /// Where the load runs; anywhere if this is empty.
    pub(crate) cores: &'a [usize],
    /// Whose memory is measured, if the server is one of ours.
    pub(crate) process: Option<u32>,
}

pub(crate) fn run(plan: &Plan, target: &Target, progress: &Progress) -> Result<Measured, Fault> {
    let connector = Connector::new(target.address.clone())?;
    let shares = shares(plan.connections, plan.load_threads);
    let all = |clients: Vec<_>| clients.into_iter().collect::<Result<Vec<_>, Fault>>();
    if plan.mode == Mode::Churn {
        let parts = shares.into_iter().zip(paces(plan, plan.duration)).collect();
        return sum(on_threads(
            target.cores,
            progress,
            parts,
            |(numbers, pace)| churn::visit(plan, &connector, pace, numbers.len()),
        )?);
    }
    let before = resident_bytes(target.process);
    let began = Instant::now();
    let clients = all(on_threads(target.cores, progress, shares, |numbers| {
        open::open(plan, &connector, numbers)
    })?)?;
    let (mut greeted, mut grown) = (None, None);
    let mut duration = plan.duration;
    if plan.mode == Mode::Hold {
        greeted = Some(began.elapsed());
        hold(duration, progress);
        let after = resident_bytes(target.process);
        grown = after.zip(before).map(|(after, before)| after - before);
        // One line each, and no other after it.
        duration = Duration::ZERO;
    }
    let parts = clients.into_iter().zip(paces(plan, duration)).collect();
    let mut measured = sum(on_threads(
        target.cores,
        progress,
        parts,
        |(clients, pace)| lines::converse(plan, pace, clients),
    )?)?;
    measured.greeted = greeted;
    measured.resident_bytes = grown.map(|grown| grown / plan.connections as f64);
    Ok(measured)
}

fn hold(duration: Duration, progress: &Progress) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        progress.tick();
        thread::sleep(left.min(progress::PAUSE));
    }
}

fn sum(parts: Vec<Result<Measured, Fault>>) -> Result<Measured, Fault> {
    parts
        .into_iter()
        .try_fold(Measured::new(), |mut all, part| {
            all.add(part?);
            Ok(all)
        })
}

/// As even as can be, and no thread without a connection.
fn shares(connections: usize, threads: usize) -> Vec<Range<usize>> {
    let threads = threads.min(connections);
    let end = |thread| connections * thread / threads;
    (0..threads)
        .map(|thread| end(thread)..end(thread + 1))
        .collect()
}

/// Does the work of each part on a thread of its own.
fn on_threads<T: Send, R: Send>(
    cores: &[usize],
    progress: &Progress,
    parts: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> io::Result<Vec<R>> {
    let (sender, done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            let (work, sender) = (&work, sender.clone());
            let core = cores.get(number % cores.len().max(1)).copied();
            let thread = thread::Builder::new().spawn_scoped(scope, move || {
                // Dropped at the end, which is how the end is noticed.
                let _running = sender;
                core.map_or(Ok(()), |core| cores::pin(&[core]))?;
                Ok(work(part))
            })?;
            threads.push(thread);
        }
        drop(sender);
        while done.recv_timeout(progress::PAUSE) == Err(RecvTimeoutError::Timeout) {
            progress.tick();
        }
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// What a process has in memory.
fn resident_bytes(process: Option<u32>) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process?)).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_out_among_the_threads() {
        assert_eq!(shares(10, 3), [0..3, 3..6, 6..10]);
        assert_eq!(shares(2, 4), [0..1, 1..2]);
    }
}
