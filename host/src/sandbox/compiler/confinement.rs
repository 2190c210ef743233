//! What a compiling process takes away from itself before it looks at a guest.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, nice, set_parent_process_death_signal, setrlimit,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// How much the process may take.
pub(super) struct Bounds {
    /// Of addresses, which bounds its memory.
    pub(super) memory_bytes: u64,
    /// Of all its threads together.
    pub(super) processor_seconds: u64,
    /// Whether memory may become code.
    pub(super) executes: bool,
}

/// From here on the process has its three standard streams, memory and processor time within
/// `bounds`, what the other processes leave of the processors, and no way to reach anything else:
/// no files, sockets, programs or other processes, where the kernel has seccomp (Linux 3.17; x86-64,
/// AArch64 and RISC-V). It ends with its parent.
pub(super) fn enter(bounds: Bounds) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    close_all_but_the_standard_streams()?;
    // Neither is there everywhere, and nothing depends on it.
    let _ = nice(19);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    limit(Resource::As, bounds.memory_bytes)?;
    limit(Resource::Cpu, bounds.processor_seconds)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    deny_system_calls(bounds.executes)
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    // It cannot be raised where it is lower already.
    let there = getrlimit(resource).maximum;
    let most = there.map_or(most, |there| there.min(most));
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(setrlimit(resource, limit)?)
}

#[expect(unsafe_code, reason = "there is no safe interface to close_range")]
fn close_all_but_the_standard_streams() -> io::Result<()> {
    // SAFETY: nothing in this process has opened one yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Linux 5.9. Before, what was opened without FD_CLOEXEC stays open, unreachable.
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

/// The system calls of a process that reads, allocates, computes on several threads, and writes.
/// All others fail.
const ALLOWED: [libc::c_long; 29] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// An allow-list. Everything else does not exist, as on an older kernel: libraries know what to do
/// then.
fn deny_system_calls(executes: bool) -> io::Result<()> {
    let Ok(architecture) = TargetArch::try_from(env::consts::ARCH) else {
        return Ok(());
    };
    let filter = filter(architecture, executes).map_err(io::Error::other)?;
    match seccompiler::apply_filter(&filter) {
        // A kernel without it, or a filter around this process that forbids another. The bounds
        // above hold all the same.
        Err(seccompiler::Error::Seccomp(error))
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)
            ) =>
        {
            Ok(())
        }
        applied => applied.map_err(io::Error::other),
    }
}

fn filter(
    architecture: TargetArch,
    executes: bool,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let only = |argument, operator, value: libc::c_int| {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, operator, value as u64)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let mut rules: BTreeMap<_, _> = ALLOWED.map(|call| (call, Vec::new())).into();
    // Code is made here and run elsewhere.
    let code = if executes { 0 } else { libc::PROT_EXEC };
    let executable = SeccompCmpOp::MaskedEq(code as u64);
    rules.insert(libc::SYS_mmap, only(2, executable.clone(), 0)?);
    rules.insert(libc::SYS_mprotect, only(2, executable, 0)?);
    // Threads, but no processes. (Of `clone3` a filter cannot see what it is asked for; without it
    // the C library takes `clone`.)
    let thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    rules.insert(libc::SYS_clone, only(0, thread, libc::CLONE_THREAD)?);
    rules.insert(
        libc::SYS_prctl,
        only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME)?,
    );
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        architecture,
    )?
    .try_into()
}
