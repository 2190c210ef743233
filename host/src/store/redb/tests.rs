//! What only a store in a file has to do: to be found again, also after the worst.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::{BackendError, StorageBackend};

use super::*;

fn options(durability: Durability) -> Options {
    Options {
        durability,
        quota_bytes: 1 << 30,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn set(store: &Redb, key: &str, value: &[u8]) -> Result<(), Error> {
    store.set_many(vec![(key.to_owned(), value.to_vec())], soon())
}

#[test]
fn what_was_stored_is_there_after_an_orderly_end_in_either_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    for durability in [Durability::Commit, Durability::Relaxed] {
        for closes in [true, false] {
            let key = format!("{durability:?} {closes}");
            let store = Redb::open(&path, options(durability)).expect("a store");
            set(&store, &key, b"value").expect("room");
            if closes {
                store.close();
                assert_eq!(store.get(&key, soon()), Err(Error::Unavailable));
                assert_eq!(set(&store, &key, b"late"), Err(Error::Unavailable));
            }
            drop(store);
            let store = Redb::open(&path, options(durability)).expect("a store");
            assert_eq!(store.get(&key, soon()), Ok(Some(b"value".to_vec())));
        }
    }
}

#[test]
fn what_a_store_holds_counts_after_a_start_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    let small = Options {
        durability: Durability::Commit,
        quota_bytes: 200,
    };
    let store = Redb::open(&path, small).expect("a store");
    set(&store, "a", &[0; 100]).expect("room");
    drop(store);
    let store = Redb::open(&path, small).expect("a store");
    assert_eq!(set(&store, "b", b""), Err(Error::Quota));
    store.change(options(Durability::Commit));
    assert_eq!(set(&store, "b", b""), Ok(()));
}

#[test]
fn a_file_is_for_its_user_alone_and_for_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    let _store = Redb::open(&path, options(Durability::Commit)).expect("a store");
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Redb::open(&path, options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::InUse)), "{error:?}");
}

#[test]
fn a_file_of_another_kind_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letter.txt");
    fs::write(&path, "Dear reader".repeat(1000)).expect("it is written");
    let error = Redb::open(&path, options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::NoStore(_))), "{error:?}");
    let text = fs::read_to_string(&path).expect("it is read");
    assert_eq!(text, "Dear reader".repeat(1000));
    let error = Redb::open(folder.path(), options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::Io(_))), "{error:?}");
}

#[test]
fn a_file_with_much_room_in_it_is_smaller_after_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.redb");
    let length = || fs::metadata(&path).expect("a file").len();
    let store = Redb::open(&path, options(Durability::Relaxed)).expect("a store");
    let keys: Vec<_> = (0..500).map(|number| format!("{number}")).collect();
    let entries = keys.iter().map(|key| (key.clone(), vec![7; 64 << 10]));
    store.set_many(entries.collect(), soon()).expect("room");
    let gone = keys.into_iter().filter(|key| !key.ends_with("99"));
    store.delete_many(gone.collect(), soon()).expect("they go");
    drop(store);
    let before = length();
    assert!(before > 32 << 20, "{before}");
    let _store = Redb::open(&path, options(Durability::Relaxed)).expect("a store");
    assert!(length() < before / 4, "{} of {before}", length());
}

/// A disk that forgets what was not synced when the power goes, or any part of it; and that may be full.
#[derive(Debug, Clone, Default)]
struct Disk {
    platters: Arc<Mutex<Platters>>,
    /// Whoever has it keeps the disk from getting on.
    stuck: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Platters {
    synced: Vec<u8>,
    bytes: Vec<u8>,
    /// Since the last sync, in their order.
    writes: Vec<(u64, Vec<u8>)>,
    /// So many more writes until the power goes: nothing reaches the disk from then on.
    left: Option<u64>,
    /// So many changes fail.
    failures: u64,
}

impl Disk {
    fn platters(&self) -> MutexGuard<'_, Platters> {
        self.platters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stick(&self) -> MutexGuard<'_, ()> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there when the power comes back: all that was synced, and those of the other writes
    /// whose bit is set.
    fn after_power_cut(&self, kept: u64) -> Disk {
        let platters = self.platters();
        let mut bytes = platters.synced.clone();
        for (number, (offset, data)) in platters.writes.iter().enumerate() {
            if kept >> (number % 64) & 1 == 1 {
                put(&mut bytes, *offset, data);
            }
        }
        let synced = bytes.clone();
        let platters = Platters {
            synced,
            bytes,
            ..Platters::default()
        };
        Disk {
            platters: Arc::new(Mutex::new(platters)),
            ..Disk::default()
        }
    }

    fn open(&self) -> Result<Redb, OpenError> {
        let again = self.clone();
        let open = move || file::open_with(again.clone());
        let opened = file::open_with(self.clone())?;
        Redb::start(
            "disk".to_owned(),
            options(Durability::Commit),
            opened,
            Box::new(open),
        )
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = offset as usize;
    bytes.resize(bytes.len().max(start + data.len()), 0);
    bytes[start..start + data.len()].copy_from_slice(data);
}

impl Platters {
    fn change(&mut self) -> Result<bool, BackendError> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(BackendError::Io(std::io::Error::other("no room")));
        }
        let is_off = self.left == Some(0);
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(!is_off)
    }
}

type Io<T> = Result<T, std::io::Error>;

fn io<T>(result: Result<T, BackendError>) -> Io<T> {
    result.map_err(std::io::Error::other)
}

impl StorageBackend for Disk {
    fn len(&self) -> Io<u64> {
        Ok(self.platters().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Io<()> {
        let start = offset as usize;
        out.copy_from_slice(&self.platters().bytes[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Io<()> {
        let mut platters = self.platters();
        if io(platters.change())? {
            platters.bytes.resize(length as usize, 0);
            platters.synced.resize(length as usize, 0);
        }
        Ok(())
    }

    fn sync_data(&self) -> Io<()> {
        drop(self.stick());
        let mut platters = self.platters();
        if io(platters.change())? {
            platters.synced = platters.bytes.clone();
            platters.writes.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Io<()> {
        let mut platters = self.platters();
        if io(platters.change())? {
            put(&mut platters.bytes, offset, data);
            platters.writes.push((offset, data.to_vec()));
        }
        Ok(())
    }
}

/// The store does not know that the power has gone; what it says from then on nobody hears.
#[test]
fn what_was_acknowledged_before_the_power_went_is_there_when_it_comes_back() {
    let mut kept = 0x9e37_79b9_7f4a_7c15_u64;
    for cut in 1..120 {
        let disk = Disk::default();
        let store = disk.open().expect("a store");
        disk.platters().left = Some(cut);
        let (mut acknowledged, mut attempted) = (0, 0);
        while disk.platters().left > Some(0) && attempted < 100 {
            attempted += 1;
            set(&store, "n", attempted.to_string().as_bytes()).expect("room");
            if disk.platters().left > Some(0) {
                acknowledged = attempted;
            }
        }
        kept = kept.rotate_left(7).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
        for kept in [0, u64::MAX, kept] {
            let store = disk.after_power_cut(kept).open().expect("it always opens");
            let found = store.get("n", soon()).expect("it can be read");
            let found = found.map_or(0, |found| {
                String::from_utf8_lossy(&found).parse().expect("a number")
            });
            assert!(
                (acknowledged..=attempted).contains(&found),
                "{cut}, {kept:x}: {found} of {acknowledged} to {attempted}"
            );
        }
    }
}

#[test]
fn a_disk_that_fails_is_written_no_more_and_read_on() {
    for (failures, read_on) in [
        (1, Ok(Some(b"before".to_vec()))),
        (u64::MAX, Err(Error::Unavailable)),
    ] {
        let disk = Disk::default();
        let store = disk.open().expect("a store");
        set(&store, "a", b"before").expect("room");
        disk.platters().failures = failures;
        assert_eq!(set(&store, "a", b"lost"), Err(Error::Unavailable));
        assert_eq!(set(&store, "b", b"refused"), Err(Error::Unavailable));
        assert_eq!(store.get("a", soon()), read_on);
    }
}

/// As a seat wants to know it (`--threads N`).
#[test]
fn whoever_waits_for_the_disk_says_so_and_whoever_reads_does_not() {
    let store = Disk::default().open().expect("a store");
    let waits = Rc::new(Cell::new(0));
    let counted = Rc::clone(&waits);
    waiting::before_each(move || counted.set(counted.get() + 1));
    set(&store, "a", b"1").expect("room");
    assert_eq!(waits.get(), 1);
    store.increment("a".to_owned(), 1, soon()).expect("a sum");
    assert_eq!(waits.get(), 2);
    store.get("a", soon()).expect("it can be read");
    store.list("", None, 9, soon()).expect("it can be read");
    assert_eq!(waits.get(), 2);
}

#[test]
fn a_stuck_disk_holds_up_no_read_and_no_write_beyond_its_time() {
    let disk = Disk::default();
    let store = disk.open().expect("a store");
    set(&store, "a", b"before").expect("room");
    let stuck = disk.stick();
    let write = |key: String, bytes, time| {
        let until = Instant::now() + time;
        store.set_many(vec![(key, vec![0; bytes])], until)
    };
    let shortly = Duration::from_millis(50);
    // It is what the disk is stuck over.
    assert_eq!(write("stuck".to_owned(), 1, shortly), Err(Error::Timeout));
    assert_eq!(store.get("a", soon()), Ok(Some(b"before".to_vec())));
    // Those behind it wait: as many as may, and as much.
    let busy = |bytes| {
        let mut number = 0;
        while write(format!("late-{bytes}-{number}"), bytes, Duration::ZERO) == Err(Error::Timeout)
        {
            number += 1;
        }
        let last = write("one more".to_owned(), bytes, Duration::ZERO);
        assert_eq!(last, Err(Error::Busy));
        number
    };
    let large = busy(1 << 20);
    assert!((60..=64).contains(&large), "{large}");
    let small = busy(1);
    assert!((4000..=4096).contains(&small), "{small}");
    drop(stuck);
    // None of those has been begun that nobody waits for any more.
    while write("again".to_owned(), 1, Duration::from_secs(60)) == Err(Error::Busy) {
        thread::yield_now();
    }
    let page = store.list("", None, 9, soon()).expect("a page");
    assert_eq!(page.keys, ["a", "again", "stuck"]);
}

#[test]
fn a_stuck_disk_does_not_hold_up_the_end_of_a_store_for_good() {
    let disk = Disk::default();
    let store = disk.open().expect("a store");
    let stuck = disk.stick();
    drop(store);
    drop(stuck);
}
