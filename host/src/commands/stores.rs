//! The stores of all services: each is opened once, for whoever is granted it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use airlock::redis::address::RedisAddress;
use airlock::settings::service::{GuestSettings, ServiceSettings};
use airlock::settings::store::StoreSettings;
use airlock::settings::store_url::StoreUrl;
use airlock::store::Backend;
use airlock::store::bucket::{Bucket, Buckets};
use airlock::store::journal::Journal;
use airlock::store::memory::Memory;
use airlock::store::redis::Redis;
use airlock::store::sqlite::{Options, Sqlite};
use anyhow::{Context, Result, anyhow};

/// Those that are open. Clones know of the same.
#[derive(Clone, Default)]
pub(crate) struct Stores(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    /// By the name of their service, and their own.
    in_memory: Vec<((String, String), Weak<Memory>)>,
    files: Vec<(PathBuf, Weak<Sqlite>)>,
    redis: Vec<(RedisAddress, Weak<Redis>)>,
    journals: Vec<Weak<Journal>>,
}

impl Stores {
    /// What a service is granted: of stores that are open, or opened now. Those that stay open are kept
    /// as these settings say. `name` is what the log calls the service, if there may be others.
    ///
    /// # Errors
    /// One cannot be opened.
    pub(crate) fn of(&self, name: Option<&str>, service: &ServiceSettings) -> Result<Buckets> {
        let mut open = self.open();
        open.in_memory.retain(|(_, store)| store.strong_count() > 0);
        open.files.retain(|(_, store)| store.strong_count() > 0);
        open.redis.retain(|(_, store)| store.strong_count() > 0);
        open.journals.retain(|journal| journal.strong_count() > 0);
        let stores = service.guest_settings.stores.iter();
        let buckets = stores.map(|store| {
            let backend: Arc<dyn Backend> = match &store.url {
                StoreUrl::Memory => open.in_memory(&service.name, store),
                StoreUrl::File(path) => {
                    open.file(path, store).with_context(|| cannot_open(store))?
                }
                StoreUrl::Redis(url) => open
                    .redis(store.redis(url))
                    .with_context(|| cannot_open(store))?,
            };
            let journal = Journal::new(name, &store.name);
            open.journals.push(Arc::downgrade(&journal));
            let bucket = Bucket::new(backend, store.prefix()).noted(journal);
            Ok((store.name.clone(), bucket))
        });
        Ok(Buckets::new(buckets.collect::<Result<Vec<_>>>()?))
    }

    /// Brings all to the disk, at the end of the process, and says how they were used.
    pub(crate) fn close(&self) {
        let journals: Vec<_> = self.open().journals.drain(..).collect();
        for journal in journals.iter().filter_map(Weak::upgrade) {
            journal.say_use();
        }
        let files: Vec<_> = self.open().files.drain(..).collect();
        for (_, store) in files {
            if let Some(store) = store.upgrade() {
                store.close();
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a guest is granted where nothing is live: the same names, and nothing behind them.
pub(crate) fn empty(settings: &GuestSettings) -> Buckets {
    Buckets::in_memory(settings.stores.iter().map(|store| {
        // Of stores in memory, each is one of its own.
        let name = matches!(store.url, StoreUrl::Memory).then_some(&store.name);
        (&*store.name, store.prefix(), (&store.url, name))
    }))
}

fn cannot_open(store: &StoreSettings) -> String {
    format!("cannot open the store `{}`: {}", store.name, store.url)
}

impl Open {
    fn in_memory(&mut self, service: &str, store: &StoreSettings) -> Arc<Memory> {
        let quota_bytes = store.quota.bytes();
        let whose = (service.to_owned(), store.name.clone());
        if let Some(known) = find(&self.in_memory, &whose) {
            known.change(quota_bytes);
            return known;
        }
        let new = Arc::new(Memory::new(quota_bytes));
        self.in_memory.push((whose, Arc::downgrade(&new)));
        new
    }

    fn file(&mut self, path: &Path, store: &StoreSettings) -> Result<Arc<Sqlite>> {
        let options = Options {
            durability: store.durability,
            quota_bytes: store.quota.bytes(),
        };
        let place = place(path)?;
        if let Some(known) = find(&self.files, &place) {
            known.change(options);
            return Ok(known);
        }
        let new = Arc::new(Sqlite::open(&place, options)?);
        self.files.push((place, Arc::downgrade(&new)));
        Ok(new)
    }

    fn redis(&mut self, address: RedisAddress) -> Result<Arc<Redis>> {
        if let Some(known) = find(&self.redis, &address) {
            return Ok(known);
        }
        let new = Redis::open(&address).map_err(|error| anyhow!(error))?;
        let new = Arc::new(new);
        self.redis.push((address, Arc::downgrade(&new)));
        Ok(new)
    }
}

fn find<K: PartialEq, T>(open: &[(K, Weak<T>)], wanted: &K) -> Option<Arc<T>> {
    let (_, store) = open.iter().find(|(known, _)| known == wanted)?;
    store.upgrade()
}

/// The same for whatever leads to the same file, which may not be there yet.
pub(crate) fn place(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
            Ok(folder.join(path.file_name().unwrap_or(OsStr::new(""))))
        }
        place => place,
    }
}
