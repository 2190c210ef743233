//! What only a store in a file has to do: to be found again, also after the worst.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

fn options(durability: Durability) -> Options {
    Options {
        durability,
        quota_bytes: 1 << 30,
    }
}

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("store.db");
    (folder, path)
}

/// Whoever has it keeps others from writing, as a disk does that is stuck.
fn hold(path: &Path) -> Connection {
    let database = Connection::open(path).expect("it is a database");
    let held = database.execute_batch("BEGIN IMMEDIATE");
    held.expect("nobody writes");
    database
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn set(store: &Sqlite, key: &str, value: &[u8]) -> Result<(), Error> {
    store.set_many(vec![(key.to_owned(), value.to_vec())], soon())
}

#[test]
fn what_was_stored_is_there_after_an_orderly_end_in_either_way() {
    let (_folder, path) = place();
    for durability in [Durability::Commit, Durability::Relaxed] {
        for closes in [true, false] {
            let key = format!("{durability:?} {closes}");
            let store = Sqlite::open(&path, options(durability)).expect("a store");
            set(&store, &key, b"value").expect("room");
            if closes {
                store.close();
                assert_eq!(store.get(&key, soon()), Err(Error::Unavailable));
                assert_eq!(set(&store, &key, b"late"), Err(Error::Unavailable));
            }
            drop(store);
            let store = Sqlite::open(&path, options(durability)).expect("a store");
            assert_eq!(store.get(&key, soon()), Ok(Some(b"value".to_vec())));
        }
    }
}

#[test]
fn what_a_store_holds_counts_after_a_start_too() {
    let (_folder, path) = place();
    let small = Options {
        durability: Durability::Commit,
        quota_bytes: 200,
    };
    let store = Sqlite::open(&path, small).expect("a store");
    set(&store, "a", &[0; 100]).expect("room");
    drop(store);
    let store = Sqlite::open(&path, small).expect("a store");
    assert_eq!(set(&store, "b", b""), Err(Error::Quota));
    store.change(options(Durability::Commit));
    assert_eq!(set(&store, "b", b""), Ok(()));
}

#[test]
fn a_file_is_for_its_user_alone_and_for_all_of_its_processes() {
    let (folder, path) = place();
    let one = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    set(&one, "a", b"one's").expect("room");
    let files = fs::read_dir(folder.path()).expect("a folder");
    let modes = files.map(|file| file.expect("a file").metadata().expect("it is there"));
    let modes: Vec<_> = modes
        .map(|file| file.permissions().mode() & 0o777)
        .collect();
    assert_eq!(modes, [0o600; 3]);
    // Two of one process are to each other as two processes are.
    let other = Sqlite::open(&path, options(Durability::Relaxed)).expect("a store");
    assert_eq!(other.get("a", soon()), Ok(Some(b"one's".to_vec())));
    assert_eq!(other.increment("n".to_owned(), 2, soon()), Ok(2));
    assert_eq!(one.increment("n".to_owned(), 3, soon()), Ok(5));
    drop(one);
    assert_eq!(other.increment("n".to_owned(), 1, soon()), Ok(6));
    let small = Options {
        durability: Durability::Commit,
        quota_bytes: 2 * 64 + 9,
    };
    let one = Sqlite::open(&path, small).expect("a store");
    set(&other, "b", b"").expect("room");
    assert_eq!(set(&one, "c", b""), Err(Error::Quota));
}

#[test]
fn a_file_of_another_kind_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("letter.txt");
    fs::write(&path, "Dear reader".repeat(1000)).expect("it is written");
    let error = Sqlite::open(&path, options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::NoStore(_))), "{error:?}");
    let text = fs::read_to_string(&path).expect("it is read");
    assert_eq!(text, "Dear reader".repeat(1000));
    let error = Sqlite::open(folder.path(), options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::Io(_))), "{error:?}");

    let path = folder.path().join("others.db");
    let others = Connection::open(&path).expect("a database");
    let made = others.execute_batch("CREATE TABLE entries (key, value)");
    made.and(others.close().map_err(|(_, error)| error))
        .expect("it is made");
    let before = fs::read(&path).expect("it is read");
    let error = Sqlite::open(&path, options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::NoStore(_))), "{error:?}");
    assert_eq!(fs::read(&path).expect("it is read"), before);
}

#[test]
fn a_file_with_much_room_in_it_is_smaller_after_a_start() {
    let (_folder, path) = place();
    let length = || fs::metadata(&path).expect("a file").len();
    let store = Sqlite::open(&path, options(Durability::Relaxed)).expect("a store");
    let keys: Vec<_> = (0..500).map(|number| format!("{number}")).collect();
    let entries = keys.iter().map(|key| (key.clone(), vec![7; 64 << 10]));
    store.set_many(entries.collect(), soon()).expect("room");
    let gone = keys.into_iter().filter(|key| !key.ends_with("99"));
    store.delete_many(gone.collect(), soon()).expect("they go");
    drop(store);
    let before = length();
    assert!(before > 30 << 20, "{before}");
    let _store = Sqlite::open(&path, options(Durability::Relaxed)).expect("a store");
    assert!(length() < before / 4, "{} of {before}", length());
}

/// As a seat wants to know it (`--threads N`).
#[test]
fn whoever_waits_for_the_disk_says_so_and_whoever_reads_does_not() {
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
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
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    set(&store, "a", b"before").expect("room");
    let stuck = hold(&path);
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
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Relaxed)).expect("a store");
    set(&store, "a", b"lazily").expect("room");
    let stuck = hold(&path);
    drop(store);
    drop(stuck);
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    assert_eq!(store.get("a", soon()), Ok(Some(b"lazily".to_vec())));
}

#[test]
fn another_who_writes_for_too_long_makes_a_write_busy_and_ends_none() {
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    let held = hold(&path);
    assert_eq!(set(&store, "a", b"1"), Err(Error::Busy));
    drop(held);
    assert_eq!(set(&store, "a", b"2"), Ok(()));
}

/// More than there are connections for: whoever gets none waits for one.
#[test]
fn many_read_at_once() {
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    set(&store, "a", b"1").expect("room");
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(store.get("a", soon()), Ok(Some(b"1".to_vec())));
                }
            });
        }
    });
}

/// What is written there is lost, so it is not acknowledged.
#[test]
fn a_file_that_was_removed_or_replaced_is_used_no_more() {
    let log = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    let removed: fn(&Path) = |path| fs::remove_file(path).expect("it is there");
    let replaced: fn(&Path) = |path| {
        let other = path.with_extension("other");
        fs::copy(path, &other)
            .and_then(|_| fs::rename(&other, path))
            .expect("there is room");
    };
    for (spoil, is_log) in [(removed, false), (replaced, false), (removed, true)] {
        let (_folder, path) = place();
        let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
        set(&store, "a", b"1").expect("room");
        spoil(&if is_log { log(&path) } else { path });
        assert_eq!(set(&store, "a", b"2"), Err(Error::Unavailable));
        assert_eq!(store.get("a", soon()), Err(Error::Unavailable));
    }
    let (_folder, path) = place();
    drop(Sqlite::open(&path, options(Durability::Commit)).expect("a store"));
    let other = path.with_extension("other");
    fs::hard_link(&path, &other).expect("there is room");
    let error = Sqlite::open(&other, options(Durability::Commit)).err();
    assert!(matches!(error, Some(OpenError::Io(_))), "{error:?}");
}

#[test]
fn what_others_have_done_to_a_store_is_no_reason_to_panic_or_to_go_on_forever() {
    for damage in [
        "UPDATE used SET bytes = -1",
        "DELETE FROM used",
        "DROP TABLE used",
    ] {
        let (_folder, path) = place();
        drop(Sqlite::open(&path, options(Durability::Commit)).expect("a store"));
        let database = Connection::open(&path).expect("a database");
        database.execute_batch(damage).expect("it is done");
        drop(database);
        let error = Sqlite::open(&path, options(Durability::Commit)).err();
        assert!(
            matches!(error, Some(OpenError::NoStore(_))),
            "{damage}: {error:?}"
        );
    }
    let (_folder, path) = place();
    let store = Sqlite::open(&path, options(Durability::Commit)).expect("a store");
    let database = Connection::open(&path).expect("a database");
    let insert = "INSERT INTO entries VALUES (x'fffe', x'00')";
    database.execute_batch(insert).expect("it is done");
    assert_eq!(store.list("", None, 9, soon()), Err(Error::Unavailable));
    database
        .execute_batch("UPDATE used SET bytes = 9223372036854775807")
        .expect("it is done");
    assert_eq!(set(&store, "a", b""), Err(Error::Quota));
}

/// However large values are, not only as large as fills a page.
#[test]
fn a_file_is_about_as_large_as_what_is_in_it() {
    for bytes in [20, 500, 1000, 2040, 10_000] {
        let (_folder, path) = place();
        let store = Sqlite::open(&path, options(Durability::Relaxed)).expect("a store");
        let count = 4_000_000 / (bytes + 64 + 8);
        let entries = (0..count).map(|number| (format!("{number:08}"), vec![7; bytes]));
        store.set_many(entries.collect(), soon()).expect("room");
        drop(store);
        let length = fs::metadata(&path).expect("a file").len();
        assert!(length < 8_000_000, "{bytes}: {length}");
    }
}
