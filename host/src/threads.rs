//! A thread for every connection, and the same thread again for a later one.
//!
//! Starting a thread costs more than making a sandbox instance: Rust's runtime and Wasmtime each
//! map a signal stack for it. So a thread that has finished a connection waits a while for the next.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::signal_stack::{self, SignalStack};

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
            state.live += 1;
        }
        // Counts the thread out again, also when it never starts or panics.
        let live = Live(Arc::clone(&self.shared));
        thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(self.stack_bytes + signal_stack::BYTES)
            .spawn(move || {
                let Live(shared) = &live;
                // Without it Wasmtime sets one up that costs more.
                let _signal_stack = SignalStack::install().ok();
                (shared.work)(job);
                while let Some(job) = shared.next_job() {
                    (shared.work)(job);
                }
            })?;
        Ok(())
    }
}

struct Live<J>(Arc<Shared<J>>);

impl<J> Drop for Live<J> {
    fn drop(&mut self) {
        self.0.lock().live -= 1;
    }
}

impl<J> Shared<J> {
    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        state.handed.pop_front()
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
