//! The clock of calls: one thread that advances Wasmtime's epoch every [`TICK`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use wasmtime::Engine;

use crate::limits::guest::TICK;

/// Counts ticks until it is dropped. Reading the count costs one load from memory.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ticks: AtomicU64,
    stop: AtomicBool,
}

/// Reads a ticker from elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Ticks(Arc<Shared>);

impl Ticks {
    /// The number of ticks since the server started.
    pub(crate) fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> io::Result<Ticker> {
        let shared = Arc::<Shared>::default();
        let thread = thread::Builder::new().name("ticker".to_owned()).spawn({
            let engine = engine.clone();
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    thread::park_timeout(TICK);
                    engine.increment_epoch();
                    shared.ticks.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
        Ok(Ticker {
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn ticks(&self) -> Ticks {
        Ticks(Arc::clone(&self.shared))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic, and nothing could be done about it here.
            let _ = thread.join();
        }
    }
}
