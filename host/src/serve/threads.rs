//! A thread for every connection, and the same thread again for a later one.
//!
//! Starting a thread costs more than making a sandbox instance: Rust's runtime and Wasmtime each
//! map a signal stack for it. So a thread that has finished a connection waits a while for the next.

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::process::capacity;
use crate::process::signal_stack::{self, SignalStack};

/// Threads that each do one job at a time.
pub(crate) struct Threads<J> {
    shared: Arc<Shared<J>>,
    stack_bytes: usize,
}

struct Shared<J> {
    work: Box<dyn Fn(J) + Send + Sync>,
    state: Mutex<State<J>>,
    wake: Condvar,
    most: usize,
    idle_time: Duration,
}

struct State<J> {
    /// Jobs that no thread has taken yet.
    handed: VecDeque<J>,
    /// Threads that wait for a job.
    waiting: usize,
    /// Threads there are.
    live: usize,
    closed: bool,
}

impl<J: Send + 'static> Threads<J> {
    /// No thread yet, and never more than `most`. Each will do `work` on a stack of `stack_bytes`,
    /// and end when it has waited for `idle_time`.
    pub(crate) fn new(
        most: usize,
        stack_bytes: usize,
        idle_time: Duration,
        work: impl Fn(J) + Send + Sync + 'static,
    ) -> Threads<J> {
        let state = State {
            handed: VecDeque::new(),
            waiting: 0,
            live: 0,
            closed: false,
        };
        let shared = Shared {
            work: Box::new(work),
            state: Mutex::new(state),
            wake: Condvar::new(),
            most,
            idle_time,
        };
        Threads {
            shared: Arc::new(shared),
            stack_bytes,
        }
    }

    /// How many threads there are.
    pub(crate) fn live(&self) -> usize {
        self.shared.lock().live
    }

    /// Gives `job` to a thread that does nothing else until the job is done.
    ///
    /// A thread whose job has just ended may not wait yet; where there are as many threads as there
    /// may be, the job is for the first of those.
    ///
    /// # Errors
    /// The system has no room for another thread. The job is dropped.
    pub(crate) fn run(&self, job: J) -> io::Result<()> {
        {
            let mut state = self.shared.lock();
            if state.waiting > state.handed.len() || state.live >= self.shared.most {
                state.handed.push_back(job);
                self.shared.wake.notify_one();
                return Ok(());
            }
            capacity::check_addresses(state.live)?;
            state.live += 1;
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(self.stack_bytes + signal_stack::BYTES);
        if let Err(error) = thread.spawn(move || shared.work_until_idle(job)) {
            self.shared.lock().live -= 1;
            return Err(error);
        }
        Ok(())
    }
}

impl<J> Shared<J> {
    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does from its first job on.
    fn work_until_idle(&self, first: J) {
        // Without it Wasmtime sets one up that costs more.
        let _signal_stack = SignalStack::install().ok();
        let mut next = Some(first);
        while let Some(job) = next {
            // A panic would be a bug of ours, and is in the log. It must not cost the thread: there
            // may be a job already that waits for this one.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| (self.work)(job)));
            next = self.next_job();
        }
    }

    /// The next job for a thread, or nothing when it has waited long enough. Then it counts as gone,
    /// under the same lock: whoever sees it count may leave a job to it.
    fn next_job(&self) -> Option<J> {
        let mut state = self.lock();
        state.waiting += 1;
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, self.idle_time, |state| {
                state.handed.is_empty() && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        let job = state.handed.pop_front();
        if job.is_none() {
            state.live -= 1;
        }
        job
    }
}

/// Threads that wait end; threads with a job end after it. Nobody waits for them here: a job that
/// is stuck must not hold up the end of the server, and the end of the process ends it.
impl<J> Drop for Threads<J> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::ThreadId;

    use super::*;

    /// Far longer than anything takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A job says that it has begun, and on which thread; then it waits until it may end.
    struct Job {
        begun: Sender<ThreadId>,
        end: Receiver<()>,
    }

    fn job() -> (Job, Receiver<ThreadId>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (may_end, end) = channel();
        (Job { begun, end }, has_begun, may_end)
    }

    fn threads(most: usize, idle_time: Duration) -> Threads<Job> {
        Threads::new(most, 1 << 20, idle_time, |job: Job| {
            job.begun.send(thread::current().id()).expect("the test");
            let _ = job.end.recv();
        })
    }

    /// Has a job begin, and returns its thread.
    fn begin(threads: &mut Threads<Job>) -> (ThreadId, Sender<()>) {
        let (job, begun, end) = job();
        threads.run(job).expect("a thread");
        (begun.recv_timeout(PATIENCE).expect("it begins"), end)
    }

    #[test]
    fn a_thread_that_has_given_up_is_left_no_job() {
        let mut threads = threads(1, Duration::ZERO);
        // The only thread there may be, in the moment after it has stopped waiting.
        threads.shared.lock().live = 1;
        assert!(threads.shared.next_job().is_none());
        begin(&mut threads);
    }

    #[test]
    fn threads_are_used_again_and_never_more_than_the_most() {
        let mut threads = threads(3, PATIENCE);
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let jobs: Vec<_> = (0..3).map(|_| begin(&mut threads)).collect();
            seen.extend(jobs.iter().map(|(thread, _)| *thread));
            // One more has to wait for the first of them to end.
            let (job, begun, _end) = job();
            threads.run(job).expect("no new thread is needed");
            assert!(begun.try_recv().is_err());
            drop(jobs);
            seen.insert(begun.recv_timeout(PATIENCE).expect("it begins"));
            assert!(threads.shared.lock().live <= 3);
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_job_that_panics_does_not_cost_its_thread() {
        let (done, is_done) = channel();
        let threads = Threads::new(1, 1 << 20, PATIENCE, move |fails: bool| {
            assert!(!fails, "a bug of ours");
            done.send(()).expect("the test");
        });
        threads.run(true).expect("a thread");
        threads.run(false).expect("the same thread");
        is_done.recv_timeout(PATIENCE).expect("it is done");
    }

    #[test]
    fn threads_that_wait_end_with_the_idle_time_and_with_the_pool() {
        let mut short = threads(2, Duration::from_millis(1));
        drop(begin(&mut short));
        drop(begin(&mut short));
        let mut long = threads(2, PATIENCE * 10);
        drop(begin(&mut long));
        let shared = Arc::clone(&long.shared);
        drop(long);
        let deadline = std::time::Instant::now() + PATIENCE;
        while shared.lock().live + short.shared.lock().live > 0 {
            assert!(std::time::Instant::now() < deadline, "they do not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
