//! `wasi:keyvalue@0.2.0-draft2`: cursors are texts, numbers have a sign, and values can be swapped.

use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime::{Result, StoreContextMut};

use crate::sandbox::bindings::keyvalue_draft2::wasi::keyvalue::{atomics, batch, store};
use crate::sandbox::keyvalue::operations::{Bucket, Failure, Swap, Swapping};
use crate::sandbox::wasi::State;

pub(super) const BATCH: &str = "wasi:keyvalue/batch@0.2.0-draft2";
pub(super) const GET_MANY: &str = "get-many";

type Told<T> = Result<std::result::Result<T, store::Error>>;

impl From<Failure> for store::Error {
    fn from(failure: Failure) -> store::Error {
        match failure {
            Failure::NoSuchStore => store::Error::NoSuchStore,
            Failure::Store(error) => store::Error::Other(error.to_string()),
        }
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    store::add_to_linker::<State, HasSelf<State>>(linker, State::in_time)?;
    atomics::add_to_linker::<State, HasSelf<State>>(linker, State::in_time)?;
    batch::add_to_linker::<State, HasSelf<State>>(linker, State::in_time)
}

/// A list that leaves out the names of keys without a value.
pub(super) fn add_older_get_many(linker: &mut Linker<State>) -> Result<()> {
    let get_many = |mut store: StoreContextMut<'_, State>,
                    (bucket, keys): (Resource<Bucket>, Vec<String>)| {
        let state = store.data_mut().in_time();
        let values = batch::Host::get_many(state, bucket, keys)?;
        let values = values.map(|values| {
            let values = values.into_iter();
            let values = values.map(|(key, value)| Some((key, value?)));
            values.collect::<Vec<_>>()
        });
        Ok((values,))
    };
    linker.instance(BATCH)?.func_wrap(GET_MANY, get_many)
}

impl store::Host for State {
    fn open(&mut self, name: String) -> Told<Resource<Bucket>> {
        Ok(State::open(self, &name)?.map_err(Into::into))
    }
}

impl store::HostBucket for State {
    fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Told<Option<Vec<u8>>> {
        let value = self.operate(&bucket, |bucket, until| bucket.get(&key, until))?;
        Ok(value.map_err(Into::into))
    }

    fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Told<()> {
        let set = self.operate(&bucket, |bucket, until| bucket.set(&key, value, until))?;
        Ok(set.map_err(Into::into))
    }

    fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Told<()> {
        let deleted = self.operate(&bucket, |bucket, until| bucket.delete(&key, until))?;
        Ok(deleted.map_err(Into::into))
    }

    fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Told<bool> {
        let exists = self.operate(&bucket, |bucket, until| bucket.exists(&key, until))?;
        Ok(exists.map_err(Into::into))
    }

    fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<String>,
    ) -> Told<store::KeyResponse> {
        let page = self.operate(&bucket, |bucket, until| {
            bucket.list(cursor.as_deref(), usize::MAX, until)
        })?;
        let page = page.map(|page| store::KeyResponse {
            keys: page.keys,
            cursor: page.cursor,
        });
        Ok(page.map_err(Into::into))
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.close(bucket)
    }
}

impl atomics::Host for State {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Told<i64> {
        let sum = self.operate(&bucket, |bucket, until| {
            bucket.increment(&key, delta, until)
        })?;
        Ok(sum.map_err(Into::into))
    }

    fn swap(
        &mut self,
        swap: Resource<Swap>,
        value: Vec<u8>,
    ) -> Result<std::result::Result<(), atomics::CasError>> {
        Ok(match State::swap(self, swap, value)? {
            Ok(Swapping::Done) => Ok(()),
            Ok(Swapping::Lost(swap)) => Err(atomics::CasError::CasFailed(swap)),
            Err(failure) => Err(atomics::CasError::StoreError(failure.into())),
        })
    }
}

impl atomics::HostCas for State {
    fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Told<Resource<Swap>> {
        Ok(self.begin_swap(&bucket, key)?.map_err(Into::into))
    }

    fn current(&mut self, swap: Resource<Swap>) -> Told<Option<Vec<u8>>> {
        Ok(Ok(self.seen(&swap)?))
    }

    fn drop(&mut self, swap: Resource<Swap>) -> Result<()> {
        self.release(swap).map(|_| ())
    }
}

impl batch::Host for State {
    fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Told<Vec<(String, Option<Vec<u8>>)>> {
        let values = self.operate(&bucket, |bucket, until| bucket.get_many(&keys, until))?;
        let values = values.map(|values| keys.into_iter().zip(values).collect());
        Ok(values.map_err(Into::into))
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, entries: Vec<(String, Vec<u8>)>) -> Told<()> {
        let set = self.operate(&bucket, |bucket, until| bucket.set_many(entries, until))?;
        Ok(set.map_err(Into::into))
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Told<()> {
        let deleted = self.operate(&bucket, |bucket, until| bucket.delete_many(&keys, until))?;
        Ok(deleted.map_err(Into::into))
    }
}
