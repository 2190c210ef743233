//! What a guest does to its stores, whichever version of the interface it speaks.

use std::time::Instant;

use wasmtime::Result;
use wasmtime::component::Resource;

use crate::limits::guest::{STORE_OPERATIONS, STORE_PAGE_KEYS};
use crate::sandbox::wasi::State;
use crate::store::{self, Page, Swapped};

/// A bucket that a guest has open.
#[expect(unreachable_pub, reason = "bindgen! exports it again")]
pub struct Bucket {
    bucket: store::bucket::Bucket,
    /// How many keys the last numbered page ended behind, and where the next one begins.
    listed: Option<(u64, String)>,
}

/// A swap that a guest has begun: the value that it has seen, which counts as its memory.
#[expect(unreachable_pub, reason = "bindgen! exports it again")]
pub struct Swap {
    bucket: store::bucket::Bucket,
    key: String,
    current: Option<Vec<u8>>,
}

/// Why an operation has failed, for the guest.
pub(super) enum Failure {
    /// No bucket of this name was granted.
    NoSuchStore,
    /// The store says so, or a bound.
    Store(store::Error),
}

/// What has become of a swap.
pub(super) enum Swapping {
    /// The new value is there.
    Done,
    /// There was another value, which this swap has seen.
    Lost(Resource<Swap>),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Failure {
        Failure::Store(error)
    }
}

/// The outer error ends the guest, the inner one is told.
type Told<T> = Result<std::result::Result<T, Failure>>;

impl Swap {
    fn bytes(&self) -> u64 {
        let value = self.current.as_ref().map_or(0, Vec::len);
        (self.key.len() + value) as u64
    }
}

impl State {
    pub(super) fn open(&mut self, name: &str) -> Told<Resource<Bucket>> {
        let Some(bucket) = self.stores.open(name) else {
            return Ok(Err(Failure::NoSuchStore));
        };
        let listed = None;
        Ok(Ok(self.table.push(Bucket { bucket, listed })?))
    }

    pub(super) fn close(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }

    /// One operation, which has until a given time.
    pub(super) fn operate<T>(
        &mut self,
        bucket: &Resource<Bucket>,
        operation: impl FnOnce(&store::bucket::Bucket, Instant) -> std::result::Result<T, store::Error>,
    ) -> Told<T> {
        let until = self.start_operation();
        let bucket = &self.table.get(bucket)?.bucket;
        Ok(until
            .and_then(|until| operation(bucket, until))
            .map_err(Failure::from))
    }

    fn start_operation(&mut self) -> std::result::Result<Instant, store::Error> {
        self.operations += 1;
        if self.operations > STORE_OPERATIONS {
            return Err(store::Error::Busy);
        }
        Ok(Instant::now() + self.store_time.min(self.time_left()))
    }

    /// A page of keys by number: behind the first `cursor` of them. Other pages than the first and the
    /// next have to be counted out.
    pub(super) fn list_by_number(
        &mut self,
        bucket: &Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Told<(Vec<String>, Option<u64>)> {
        let before = cursor.unwrap_or(0);
        let mut start = None;
        match self.table.get_mut(bucket)?.listed.take() {
            Some((number, text)) if number == before => start = Some(text),
            _ => {
                let mut left = before;
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let page = self.operate(bucket, |bucket, until| {
                        bucket.list(start.as_deref(), most, until)
                    })?;
                    let page = match page {
                        Ok(page) => page,
                        Err(failure) => return Ok(Err(failure)),
                    };
                    left = left.saturating_sub(page.keys.len() as u64);
                    start = page.cursor;
                    if start.is_none() {
                        return Ok(Ok((Vec::new(), None)));
                    }
                }
            }
        }
        let page = self.operate(bucket, |bucket, until| {
            bucket.list(start.as_deref(), STORE_PAGE_KEYS, until)
        })?;
        let Page { keys, cursor } = match page {
            Ok(page) => page,
            Err(failure) => return Ok(Err(failure)),
        };
        let behind = before + keys.len() as u64;
        let listed = cursor.map(|text| (behind, text));
        let cursor = listed.as_ref().map(|(number, _)| *number);
        self.table.get_mut(bucket)?.listed = listed;
        Ok(Ok((keys, cursor)))
    }

    pub(super) fn begin_swap(
        &mut self,
        bucket: &Resource<Bucket>,
        key: String,
    ) -> Told<Resource<Swap>> {
        let current = match self.operate(bucket, |bucket, until| bucket.get(&key, until))? {
            Ok(current) => current,
            Err(failure) => return Ok(Err(failure)),
        };
        let bucket = self.table.get(bucket)?.bucket.clone();
        let swap = Swap {
            bucket,
            key,
            current,
        };
        Ok(Ok(self.hold(swap)?))
    }

    pub(super) fn seen(&self, swap: &Resource<Swap>) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(swap)?.current.clone())
    }

    pub(super) fn swap(&mut self, swap: Resource<Swap>, value: Vec<u8>) -> Told<Swapping> {
        let swap = self.release(swap)?;
        let until = match self.start_operation() {
            Ok(until) => until,
            Err(error) => return Ok(Err(error.into())),
        };
        let Swap {
            bucket,
            key,
            current,
        } = swap;
        match bucket.swap(&key, current, value, until) {
            Ok(Swapped::Done) => Ok(Ok(Swapping::Done)),
            Ok(Swapped::Lost(current)) => {
                let swap = Swap {
                    bucket,
                    key,
                    current,
                };
                Ok(Ok(Swapping::Lost(self.hold(swap)?)))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// Gives the guest a handle, if it has the memory for what is behind it.
    fn hold(&mut self, swap: Swap) -> Result<Resource<Swap>> {
        self.memory.claim(swap.bytes())?;
        Ok(self.table.push(swap)?)
    }

    pub(super) fn release(&mut self, swap: Resource<Swap>) -> Result<Swap> {
        let swap = self.table.delete(swap)?;
        self.memory.give_back(swap.bytes());
        Ok(swap)
    }
}
