//! `wasi:keyvalue@0.2.0-draft`: cursors are numbers, numbers have no sign, and nothing is swapped.

use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use crate::sandbox::bindings::keyvalue_draft::wasi::keyvalue::{atomics, batch, store};
use crate::sandbox::keyvalue::operations::{Bucket, Failure};
use crate::sandbox::wasi::State;
use crate::store::Error;

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
        cursor: Option<u64>,
    ) -> Told<store::KeyResponse> {
        let page = self.list_by_number(&bucket, cursor)?;
        let page = page.map(|(keys, cursor)| store::KeyResponse { keys, cursor });
        Ok(page.map_err(Into::into))
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.close(bucket)
    }
}

impl atomics::Host for State {
    /// In the store a number has a sign, since guests of the other version have one: here there are
    /// those that both can write.
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Told<u64> {
        let sum = self.operate(&bucket, |bucket, until| {
            let delta = delta.try_into().map_err(|_| Error::Overflow)?;
            let sum = bucket.increment(&key, delta, until)?;
            sum.try_into().map_err(|_| Error::Overflow)
        })?;
        Ok(sum.map_err(Into::into))
    }
}

impl batch::Host for State {
    fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Told<Vec<Option<(String, Vec<u8>)>>> {
        let values = self.operate(&bucket, |bucket, until| bucket.get_many(&keys, until))?;
        let values = values.map(|values| {
            let entries = keys.into_iter().zip(values);
            entries.map(|(key, value)| Some((key, value?))).collect()
        });
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
