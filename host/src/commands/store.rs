//! `airlock store`: looks into a store, changes it, and brings its content elsewhere.

use std::io::{self, BufRead, Read, Write};
use std::mem;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use airlock::cli::{Store, StoreAction};
use airlock::limits::guest::{
    STORE_BATCH, STORE_BATCH_BYTES, STORE_ENTRY_BYTES, STORE_KEY_BYTES, STORE_PAGE_KEYS,
    STORE_VALUE_BYTES,
};
use airlock::logging::printable;
use airlock::settings::store::StoreSettings;
use airlock::settings::store_url::StoreUrl;
use airlock::settings::values::Name;
use airlock::store::redis::Redis;
use airlock::store::sqlite::{Options, Sqlite};
use airlock::store::{Backend, Error};
use anyhow::{Context, Result, anyhow, bail};

use crate::commands::entries::{self, Entry};
use crate::commands::stores;

/// Nobody waits but the operator.
const PATIENCE: Duration = Duration::from_secs(60);

/// The exit status of `get` is 0 when there is a value.
pub(crate) fn run(task: Store) -> Result<ExitCode> {
    let may_make = matches!(task.action, StoreAction::Set(..) | StoreAction::Import);
    let opened = Opened::new(&task.store, may_make);
    let store = opened.with_context(|| format!("cannot open the store {}", task.store.url))?;
    let mut out = io::stdout().lock();
    match task.action {
        StoreAction::Get(key) => match store.get(&key)? {
            Some(value) => out.write_all(&value)?,
            None => return Ok(ExitCode::FAILURE),
        },
        StoreAction::Set(key, value) => {
            let value = value.map(String::into_bytes);
            let entry = store.entry(&key, value.map_or_else(read_value, Ok)?)?;
            store.set(vec![entry])?;
        }
        StoreAction::List => store.each_key(|key| Ok(writeln!(out, "{}", printable(key))?))?,
        StoreAction::Export => store.each_key(|key| {
            // It was there when it was listed.
            match store.get(key)? {
                Some(value) => Ok(writeln!(out, "{}", entries::line(key, value))?),
                None => Ok(()),
            }
        })?,
        StoreAction::Import => {
            store.import(io::stdin().lock())?;
        }
        StoreAction::Stats => {
            let (mut entries, mut bytes) = (0_u64, 0);
            store.each_key(|key| {
                if let Some(value) = store.get(key)? {
                    entries += 1;
                    bytes += (key.len() + value.len()) as u64;
                }
                Ok(())
            })?;
            let counts = bytes + entries * STORE_ENTRY_BYTES;
            writeln!(out, "entries      {entries}")?;
            writeln!(out, "content      {bytes} bytes")?;
            if let StoreUrl::File(path) = &task.store.url {
                let file = path.metadata()?.len();
                writeln!(out, "quota        {counts} bytes count")?;
                writeln!(out, "file         {file} bytes")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A store, or the part of it with a prefix.
struct Opened {
    store: Box<dyn Backend>,
    prefix: String,
}

impl Opened {
    fn new(settings: &StoreSettings, may_make: bool) -> Result<Opened> {
        let store: Box<dyn Backend> = match &settings.url {
            StoreUrl::Memory => bail!("nothing is kept of it: name a file or a Redis"),
            StoreUrl::File(path) if !may_make && !path.exists() => bail!("there is none"),
            StoreUrl::File(path) => {
                let options = Options {
                    durability: settings.durability,
                    quota_bytes: settings.quota.bytes(),
                };
                Box::new(Sqlite::open(&stores::place(path)?, options)?)
            }
            StoreUrl::Redis(url) => {
                let opened = Redis::open(&settings.redis(url));
                Box::new(opened.map_err(|error| anyhow!(error))?)
            }
        };
        let prefix = settings.prefix.as_ref().map(Name::as_str);
        Ok(Opened {
            store,
            prefix: prefix
                .map(|prefix| format!("{prefix}:"))
                .unwrap_or_default(),
        })
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = format!("{}{key}", self.prefix);
        Ok(self.store.get(&key, Instant::now() + PATIENCE)?)
    }

    /// Many at once, since each time may be a wait for the disk.
    fn import(&self, text: impl BufRead) -> Result<()> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for read in entries::read(text, "standard input") {
            let entry =
                read.and_then(|Entry { key, value, place }| self.entry(&key, value).context(place));
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.set(batch)?;
                    return Err(error);
                }
            };
            bytes += entry.0.len() + entry.1.len();
            batch.push(entry);
            if batch.len() == STORE_BATCH || bytes >= STORE_BATCH_BYTES {
                self.set(mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        self.set(batch)
    }

    /// What is stored of it: within the bounds of guests, who could not read it otherwise.
    fn entry(&self, key: &str, value: Vec<u8>) -> Result<(String, Vec<u8>)> {
        if key.len() > STORE_KEY_BYTES || value.len() > STORE_VALUE_BYTES {
            bail!("a key may have {STORE_KEY_BYTES} bytes, a value {STORE_VALUE_BYTES}");
        }
        Ok((format!("{}{key}", self.prefix), value))
    }

    fn set(&self, entries: Vec<(String, Vec<u8>)>) -> Result<()> {
        let set = self.store.set_many(entries, Instant::now() + PATIENCE);
        set.map_err(|error| match error {
            Error::Quota => anyhow!("the store is full: name a larger ?quota=SIZE"),
            error => error.into(),
        })
    }

    fn each_key(&self, mut act: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut cursor = None;
        loop {
            let until = Instant::now() + PATIENCE;
            let cursor_now = cursor.as_deref();
            let page = self
                .store
                .list(&self.prefix, cursor_now, STORE_PAGE_KEYS, until)?;
            for key in &page.keys {
                act(&key[self.prefix.len()..])?;
            }
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }
}

fn read_value() -> Result<Vec<u8>> {
    let mut value = Vec::new();
    let most = STORE_VALUE_BYTES as u64 + 1;
    io::stdin().lock().take(most).read_to_end(&mut value)?;
    Ok(value)
}
