//! What the log says of the use of a bucket: each operation with `-v`, what the operator can do
//! something about always, and at the end what it comes to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::logging::Recurring;
use crate::store::backend::Error;

/// One bucket's.
pub struct Journal {
    service: Option<Arc<str>>,
    store: Arc<str>,
    troubles: Mutex<Recurring>,
    counts: Counts,
}

/// What has been asked of the bucket so far. Each counts by itself: a reader may find an operation
/// counted whose time is not.
#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    errors: AtomicU64,
    /// Those that guests have handed over.
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl Counts {
    fn add(&self, is_error: bool, bytes: usize, time: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(is_error.into(), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let micros = time.as_micros() as u64;
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Journal {
    /// `service` is what the log calls it, if there may be others.
    pub fn new(service: Option<&str>, store: &str) -> Arc<Journal> {
        Arc::new(Journal {
            service: service.map(Arc::from),
            store: store.into(),
            troubles: Mutex::new(Recurring::new()),
            counts: Counts::default(),
        })
    }

    /// Does it, and writes that down. `bytes` are those that the guest hands over.
    pub(super) fn note<T>(
        &self,
        operation: &'static str,
        bytes: usize,
        act: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let result = act();
        let time = started.elapsed();
        self.counts.add(result.is_err(), bytes, time);
        tracing::debug!(
            service = self.service.as_deref().map(display),
            store = %self.store,
            bytes,
            micros = time.as_micros() as u64,
            error = result.as_ref().err().map(display),
            "store: {operation}",
        );
        result.inspect_err(|&error| self.failed(operation, error))
    }

    /// Writes down what has been asked since this was done last, if anything was.
    pub fn say_use(&self) {
        let Counts {
            operations,
            errors,
            bytes,
            micros,
        } = &self.counts;
        let taken = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let operations = taken(operations);
        if operations == 0 {
            return;
        }
        tracing::info!(
            service = self.service.as_deref().map(display),
            store = %self.store,
            operations,
            errors = taken(errors),
            bytes = taken(bytes),
            millis = taken(micros) / 1000,
            "the store was used",
        );
    }

    #[cold]
    fn failed(&self, operation: &'static str, error: Error) {
        match error {
            Error::Timeout | Error::Unavailable | Error::Busy | Error::Quota => {}
            // The guest's own affair.
            Error::TooLarge | Error::NotAnInteger | Error::Overflow => return,
        }
        let troubles = self.troubles.lock();
        let mut troubles = troubles.unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = troubles.again() {
            tracing::warn!(
                service = self.service.as_deref().map(display),
                store = %self.store,
                times,
                "the store does not do what guests ask, last `{operation}`: {error}",
            );
        }
    }
}

/// When nobody has the bucket any more: the service has ended, or has other settings, and so have all
/// of its connections.
impl Drop for Journal {
    fn drop(&mut self) {
        self.say_use();
    }
}
