//! The native twin of a guest that remembers: what the bench asks of `keeper`, done to the same kinds
//! of stores with the same crates, without limits. A write promises what it does in
//! Airlock, but that of a `relaxed` file is synced only with a later one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use airlock::settings::store::StoreSettings;
use airlock::settings::store_url::StoreUrl;
use airlock::store::sqlite::Durability;
use redis::{Client, Commands};
use rusqlite::{Connection, OptionalExtension};

/// Why an operation has failed. Its connection ends, which the load notices.
type Result<T> = io::Result<T>;

/// What one connection does to its store.
pub(crate) trait Store {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>>;
    fn set(&mut self, key: &str, value: &[u8]) -> Result<()>;
    fn add(&mut self, key: &str, delta: i64) -> Result<i64>;
}

/// A store, for all connections.
#[derive(Clone)]
pub(crate) enum Kept {
    Memory(Memory),
    File(File),
    Redis(Client),
}

impl Kept {
    /// Where Airlock has its own, and a file beside it.
    pub(crate) fn open(settings: &StoreSettings) -> Result<Kept> {
        Ok(match &settings.url {
            StoreUrl::Memory => Kept::Memory(Memory::default()),
            StoreUrl::File(path) => {
                let mut path = OsString::from(path);
                path.push(".twin");
                let is_relaxed = settings.durability == Durability::Relaxed;
                Kept::File(File::open(path.as_ref(), is_relaxed)?)
            }
            StoreUrl::Redis(url) => {
                Kept::Redis(Client::open(url.to_string()).map_err(io::Error::other)?)
            }
        })
    }

    /// For one connection: to a Redis, each has its own.
    pub(crate) fn connect(&self) -> Result<Box<dyn Store>> {
        Ok(match self {
            Kept::Memory(memory) => Box::new(memory.clone()),
            Kept::File(file) => Box::new(file.connect()?),
            Kept::Redis(client) => Box::new(client.get_connection().map_err(io::Error::other)?),
        })
    }
}

/// Does what a line says, and writes what `keeper` answers behind what is in `reply`.
pub(crate) fn answer(store: &mut dyn Store, line: &str, reply: &mut String) -> Result<()> {
    let words: Vec<_> = line.split(' ').collect();
    match *words {
        ["get", key] => {
            let value = store.get(key)?.unwrap_or_default();
            reply.push_str(&String::from_utf8_lossy(&value));
        }
        ["set", key, value] => {
            store.set(key, value.as_bytes())?;
            reply.push_str("ok");
        }
        ["add", key, delta] => {
            let delta = delta.parse().map_err(io::Error::other)?;
            reply.push_str(&store.add(key, delta)?.to_string());
        }
        ["fill", from, to, bytes] => {
            let number = |text: &str| text.parse().map_err(io::Error::other);
            for key in number(from)?..number(to)? {
                store.set(&format!("key-{key:06}"), &vec![b'x'; number(bytes)?])?;
            }
            reply.push_str("ok");
        }
        _ => return Err(io::Error::other("no such operation")),
    }
    Ok(())
}

fn sum(value: Option<&[u8]>, delta: i64) -> i64 {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    let number: i64 = text.and_then(|text| text.parse().ok()).unwrap_or(0);
    number.wrapping_add(delta)
}

#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Store for Memory {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(entries.get(key).cloned())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn add(&mut self, key: &str, delta: i64) -> Result<i64> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = sum(entries.get(key).map(Vec::as_slice), delta);
        entries.insert(key.to_owned(), sum.to_string().into_bytes());
        Ok(sum)
    }
}

const GET: &str = "SELECT value FROM entries WHERE key = ?";

/// The first write after that brings to the disk what was written lazily.
const SYNC_TIME: Duration = Duration::from_secs(1);

/// Reads on the threads of the connections; one thread commits all writes that wait together.
#[derive(Clone)]
pub(crate) struct File {
    path: PathBuf,
    jobs: Sender<Job>,
}

struct Job {
    key: String,
    change: Change,
    /// Told the value that the key has then.
    reply: SyncSender<Vec<u8>>,
}

enum Change {
    Set(Vec<u8>),
    Add(i64),
}

impl File {
    fn open(path: &Path, is_relaxed: bool) -> Result<File> {
        let database = Connection::open(path).map_err(io::Error::other)?;
        let made = database.execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;",
        );
        made.map_err(io::Error::other)?;
        let (jobs, waiting) = mpsc::channel();
        // When it fails, nobody has an answer any more, which the load notices.
        thread::Builder::new().spawn(move || write(&database, is_relaxed, &waiting))?;
        let path = path.to_owned();
        Ok(File { path, jobs })
    }

    fn connect(&self) -> Result<FileConnection> {
        let database = Connection::open(&self.path).map_err(io::Error::other)?;
        Ok(FileConnection {
            database,
            jobs: self.jobs.clone(),
        })
    }
}

/// One for each client.
struct FileConnection {
    database: Connection,
    jobs: Sender<Job>,
}

impl FileConnection {
    fn change(&self, key: &str, change: Change) -> Result<Vec<u8>> {
        let (reply, answer) = mpsc::sync_channel(1);
        let key = key.to_owned();
        let job = Job { key, change, reply };
        self.jobs.send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::other("the file cannot be written")
}

fn write(database: &Connection, is_relaxed: bool, waiting: &Receiver<Job>) -> rusqlite::Result<()> {
    let mut synced = Instant::now();
    while let Ok(first) = waiting.recv() {
        let mut synchronous = "NORMAL";
        if !is_relaxed || synced.elapsed() >= SYNC_TIME {
            synchronous = "FULL";
            synced = Instant::now();
        }
        database.pragma_update(None, "synchronous", synchronous)?;
        database.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let mut answers = Vec::new();
        for Job { key, change, reply } in iter::once(first).chain(waiting.try_iter()) {
            let value = match change {
                Change::Set(value) => value,
                Change::Add(delta) => {
                    let old = get(database, &key)?;
                    sum(old.as_deref(), delta).to_string().into_bytes()
                }
            };
            let mut set =
                database.prepare_cached("INSERT OR REPLACE INTO entries VALUES (?, ?)")?;
            set.execute((key.as_bytes(), &value))?;
            answers.push((reply, value));
        }
        database.prepare_cached("COMMIT")?.execute(())?;
        for (reply, value) in answers {
            // Its connection may have ended.
            let _ = reply.try_send(value);
        }
    }
    Ok(())
}

fn get(database: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut get = database.prepare_cached(GET)?;
    get.query_row([key.as_bytes()], |row| row.get(0)).optional()
}

impl Store for FileConnection {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        get(&self.database, key).map_err(io::Error::other)
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.change(key, Change::Set(value.to_owned())).map(|_| ())
    }

    fn add(&mut self, key: &str, delta: i64) -> Result<i64> {
        let value = self.change(key, Change::Add(delta))?;
        Ok(sum(Some(&value), 0))
    }
}

fn place(key: &str) -> String {
    format!("twin:{key}")
}

impl Store for redis::Connection {
    fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        Commands::get(self, place(key)).map_err(io::Error::other)
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        Commands::set(self, place(key), value).map_err(io::Error::other)
    }

    fn add(&mut self, key: &str, delta: i64) -> Result<i64> {
        Commands::incr(self, place(key), delta).map_err(io::Error::other)
    }
}
