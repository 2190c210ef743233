//! What every backend has to do: a row of [`KINDS`] for each.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::limits::guest::{STORE_ENTRY_BYTES, STORE_VALUE_BYTES};
use crate::redis::address::{RedisAddress, RedisUrl};
use crate::redis::redis_server::RedisServer;
use crate::store::bucket::{Bucket, Buckets};
use crate::store::memory::Memory;
use crate::store::redis::Redis;
use crate::store::sqlite::{Durability, Options, Sqlite};
use crate::store::{Backend, Error, Swapped};

/// An empty store, for as long as what it stands on is kept.
type Made = (Arc<dyn Backend>, Box<dyn Any>);

/// Makes one with a quota; none, if what it stands on is not installed.
type Make = fn(u64) -> Option<Made>;

const KINDS: [(&str, Make); 4] = [
    ("memory", |quota_bytes| {
        Some((Arc::new(Memory::new(quota_bytes)), Box::new(())))
    }),
    ("sqlite", |quota_bytes| {
        Some(sqlite(Durability::Commit, quota_bytes))
    }),
    ("relaxed sqlite", |quota_bytes| {
        Some(sqlite(Durability::Relaxed, quota_bytes))
    }),
    (REDIS, |_| redis()),
];

/// It has quotas of its own.
const REDIS: &str = "redis";

fn redis() -> Option<Made> {
    let server = RedisServer::start(&[])?;
    let address = RedisAddress {
        url: RedisUrl::Unix(server.socket()),
        database: 3,
        credentials: None,
        ca: None,
    };
    let store = Redis::open(&address).expect("a store");
    Some((Arc::new(store), Box::new(server)))
}

fn sqlite(durability: Durability, quota_bytes: u64) -> Made {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        durability,
        quota_bytes,
    };
    let store = Sqlite::open(&folder.path().join("store.db"), options).expect("a store");
    (Arc::new(store), Box::new(folder))
}

fn each(test: impl Fn(&Arc<dyn Backend>)) {
    each_kind(|_, store| test(store));
}

#[expect(clippy::print_stdout, reason = "a test that fails says of which kind")]
fn each_kind(test: impl Fn(&str, &Arc<dyn Backend>)) {
    for (kind, make) in KINDS {
        println!("{kind}");
        if let Some((store, _base)) = make(1 << 30) {
            test(kind, &store);
        }
    }
}

/// Far longer than anything takes.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn set(store: &Arc<dyn Backend>, key: &str, value: &[u8]) -> Result<(), Error> {
    store.set_many(vec![(key.to_owned(), value.to_vec())], soon())
}

fn get(store: &Arc<dyn Backend>, key: &str) -> Option<Vec<u8>> {
    store.get(key, soon()).expect("it can be read")
}

/// All keys, page by page.
fn list(store: &Arc<dyn Backend>, prefix: &str, most: usize) -> Vec<String> {
    let (mut keys, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, cursor.as_deref(), most, soon());
        let page = page.expect("a page");
        keys.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            return keys;
        }
    }
}

/// So many threads at once.
fn crowd(store: &Arc<dyn Backend>, threads: usize, act: impl Fn(usize, &Arc<dyn Backend>) + Sync) {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        for number in 0..threads {
            let (barrier, act) = (&barrier, &act);
            scope.spawn(move || {
                barrier.wait();
                act(number, store);
            });
        }
    });
}

#[test]
fn what_is_set_is_read_until_it_is_deleted() {
    each(|store| {
        assert_eq!(get(store, "a"), None);
        set(store, "a", b"1").expect("room");
        set(store, "", b"").expect("room");
        assert_eq!(get(store, "a").as_deref(), Some(&b"1"[..]));
        assert_eq!(get(store, "").as_deref(), Some(&b""[..]));
        assert_eq!(store.exists("a", soon()), Ok(true));
        set(store, "a", b"2").expect("room");
        assert_eq!(get(store, "a").as_deref(), Some(&b"2"[..]));
        let gone = vec!["a".to_owned(), "never there".to_owned()];
        assert_eq!(store.delete_many(gone, soon()), Ok(()));
        assert_eq!(get(store, "a"), None);
        assert_eq!(store.exists("a", soon()), Ok(false));
    });
}

#[test]
fn values_are_bytes_and_keys_any_text() {
    let every_char: String = (0..=0x7f).map(char::from).collect();
    let value: Vec<u8> = (0..=255).collect();
    each(|store| {
        for key in [&*every_char, "ä€😀", "*", "a?[b]\\", ":", " ", "\u{10ffff}"] {
            set(store, key, &value).expect("room");
            assert_eq!(get(store, key).as_ref(), Some(&value), "{key:?}");
            assert_eq!(list(store, key, 9), [key]);
        }
        let large = vec![0xa5; STORE_VALUE_BYTES];
        set(store, "large", &large).expect("room");
        assert_eq!(get(store, "large"), Some(large));
    });
}

#[test]
fn increments_of_a_crowd_add_up() {
    each(|store| {
        crowd(store, 64, |_, store| {
            for _ in 0..16 {
                let sum = store.increment("n".to_owned(), 3, soon());
                assert!((3..=64 * 16 * 3).contains(&sum.expect("a sum")));
            }
        });
        assert_eq!(get(store, "n").as_deref(), Some(&b"3072"[..]));
        assert_eq!(store.increment("n".to_owned(), -3073, soon()), Ok(-1));
    });
}

#[test]
fn swaps_of_a_crowd_add_up() {
    each(|store| {
        crowd(store, 64, |number, store| {
            let mut seen = get(store, "all");
            loop {
                let mut new = seen.clone().unwrap_or_default();
                new.push(number as u8);
                match store.swap("all".to_owned(), seen, new, soon()) {
                    Ok(Swapped::Done) => break,
                    Ok(Swapped::Lost(current)) => seen = current,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let mut all = get(store, "all").expect("a value");
        all.sort_unstable();
        assert_eq!(all, (0..64).collect::<Vec<u8>>());
    });
}

#[test]
fn a_race_for_an_absent_key_has_one_winner() {
    each(|store| {
        for round in 0..8 {
            let key = format!("{round}");
            let winners = std::sync::Mutex::new(Vec::new());
            crowd(store, 16, |number, store| {
                let value = vec![number as u8];
                match store.swap(key.clone(), None, value.clone(), soon()) {
                    Ok(Swapped::Done) => winners.lock().expect("no panic").push(value),
                    Ok(Swapped::Lost(current)) => assert!(current.is_some()),
                    Err(error) => panic!("{error}"),
                }
            });
            let winners = winners.into_inner().expect("no panic");
            assert_eq!(winners.len(), 1);
            assert_eq!(get(store, &key).as_ref(), winners.first());
        }
    });
}

#[test]
fn a_swap_compares_values() {
    each(|store| {
        let swap = |expected: Option<&[u8]>, value: &[u8]| {
            let expected = expected.map(<[u8]>::to_vec);
            store.swap("key".to_owned(), expected, value.to_vec(), soon())
        };
        assert_eq!(swap(Some(b"a"), b"b"), Ok(Swapped::Lost(None)));
        assert_eq!(swap(None, b"a"), Ok(Swapped::Done));
        assert_eq!(swap(None, b"b"), Ok(Swapped::Lost(Some(b"a".to_vec()))));
        assert_eq!(swap(Some(b"a"), b"b"), Ok(Swapped::Done));
        set(store, "key", b"a").expect("room");
        assert_eq!(swap(Some(b"a"), b"c"), Ok(Swapped::Done));
        assert_eq!(get(store, "key").as_deref(), Some(&b"c"[..]));
    });
}

#[test]
fn what_cannot_be_added_to_stays_as_it_is() {
    each(|store| {
        let add = |delta| store.increment("n".to_owned(), delta, soon());
        for value in ["", "one", "1.5", " 1", "01", "9223372036854775808"] {
            set(store, "n", value.as_bytes()).expect("room");
            assert_eq!(add(1), Err(Error::NotAnInteger), "{value:?}");
            assert_eq!(get(store, "n").as_deref(), Some(value.as_bytes()));
        }
        set(store, "n", i64::MAX.to_string().as_bytes()).expect("room");
        assert_eq!(add(1), Err(Error::Overflow));
        assert_eq!(add(0), Ok(i64::MAX));
        assert_eq!(add(-1), Ok(i64::MAX - 1));
        set(store, "n", i64::MIN.to_string().as_bytes()).expect("room");
        assert_eq!(add(-1), Err(Error::Overflow));
    });
}

#[test]
fn several_keys_are_read_set_and_deleted() {
    each(|store| {
        let entries = [("a", "1"), ("b", "2"), ("a", "3")];
        let entries = entries.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(store.set_many(entries.to_vec(), soon()), Ok(()));
        let keys = ["b", "c", "a", "a"].map(str::to_owned);
        let values = store.get_many(&keys, 3, soon()).expect("values");
        let value = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(values, [value("2"), None, value("3"), value("3")]);
        assert_eq!(store.get_many(&keys, 2, soon()), Err(Error::TooLarge));
        assert_eq!(store.delete_many(keys.to_vec(), soon()), Ok(()));
        assert_eq!(list(store, "", 9), [""; 0]);
        assert_eq!(store.set_many(Vec::new(), soon()), Ok(()));
    });
}

#[test]
fn pages_have_every_key() {
    each_kind(|kind, store| {
        let names: Vec<_> = (0..100).map(|number| format!("k{number:02}")).collect();
        let entries = names.iter().map(|name| (name.clone(), Vec::new()));
        store.set_many(entries.collect(), soon()).expect("room");
        for most in [1, 7, 99, 100, 101] {
            let mut keys = list(store, "", most);
            keys.sort_unstable();
            if kind == REDIS {
                keys.dedup();
            } else {
                let page = store.list("", None, most, soon()).expect("a page");
                assert!(page.keys.len() <= most);
            }
            assert_eq!(keys, names, "{most}");
        }
        assert_eq!(
            list(store, "k1", 3)
                .into_iter()
                .collect::<BTreeSet<_>>()
                .len(),
            10
        );
        assert_eq!(list(store, "l", 3), [""; 0]);
        // A guest may make one up.
        for cursor in ["", "k50", "zzz", "0", "-1", "18446744073709551616"] {
            let page = store.list("k1", Some(cursor), 1000, soon());
            let keys = page.expect("a page").keys;
            assert!(keys.iter().all(|key| key.starts_with("k1")), "{cursor}");
        }
    });
}

#[test]
fn a_list_has_all_that_stays_while_others_write() {
    each(|store| {
        let stays: BTreeSet<_> = (0..200).map(|number| format!("stays-{number}")).collect();
        let entries = stays.iter().map(|name| (name.clone(), Vec::new()));
        store.set_many(entries.collect(), soon()).expect("room");
        crowd(store, 4, |number, store| match number {
            0 => {
                for _ in 0..10 {
                    let keys = list(store, "", 10).into_iter().collect();
                    assert!(stays.is_subset(&keys));
                }
            }
            _ => {
                for round in 0..50 {
                    let key = format!("{number}-{round}");
                    set(store, &key, b"").expect("room");
                    store.delete_many(vec![key], soon()).expect("it goes");
                }
            }
        });
    });
}

#[test]
fn a_store_holds_no_more_than_its_quota() {
    for (kind, make) in KINDS.into_iter().filter(|(kind, _)| *kind != REDIS) {
        let entry = |value: usize| 1 + value as u64 + STORE_ENTRY_BYTES;
        let (store, _base) = make(3 * entry(1000)).expect("a store");
        for key in ["a", "b", "c"] {
            assert_eq!(set(&store, key, &[0; 1000]), Ok(()), "{kind}");
        }
        let full = Err(Error::Quota);
        assert_eq!(set(&store, "d", b""), full, "{kind}");
        assert_eq!(set(&store, "a", &[0; 1001]), full, "{kind}");
        assert_eq!(get(&store, "a"), Some(vec![0; 1000]));
        let sum = store.increment("n".to_owned(), 1, soon());
        assert_eq!(sum, Err(Error::Quota));
        let swapped = store.swap("n".to_owned(), None, b"n".to_vec(), soon());
        assert_eq!(swapped, Err(Error::Quota));
        // What takes no more may be set, and what goes leaves room.
        assert_eq!(set(&store, "a", &[1; 1000]), Ok(()));
        assert_eq!(set(&store, "a", &[1; 10]), Ok(()));
        assert_eq!(set(&store, "a", &[1; 1000]), Ok(()));
        let gone = vec!["a".to_owned(), "a".to_owned()];
        assert_eq!(store.delete_many(gone, soon()), Ok(()));
        assert_eq!(set(&store, "d", &[0; 1000]), Ok(()));
        assert_eq!(set(&store, "a", b""), full);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set(String, Vec<u8>),
    Delete(String),
    Add(String, i64),
    Swap(String, Option<Vec<u8>>, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || "[ab]{0,2}";
    let value = || prop_oneof!["[0-9]{1,2}", "x"].prop_map(String::into_bytes);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Step::Set(key, value)),
        key().prop_map(Step::Delete),
        (key(), -2..3_i64).prop_map(|(key, delta)| Step::Add(key, delta)),
        (key(), proptest::option::of(value()), value())
            .prop_map(|(key, old, new)| Step::Swap(key, old, new)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn all_kinds_do_the_same(
        steps in proptest::collection::vec(step(), 1..40),
        has_quota: bool,
    ) {
        let quota_bytes = if has_quota { 800 } else { 1 << 30 };
        let kinds = KINDS.iter().filter(|(kind, _)| !has_quota || *kind != REDIS);
        let stores: Vec<_> = kinds.filter_map(|(_, make)| make(quota_bytes)).collect();
        let outcomes = stores.iter().map(|(store, _)| {
            let answers = steps.iter().cloned().map(|step| match step {
                Step::Set(key, value) => format!("{:?}", set(store, &key, &value)),
                Step::Delete(key) => format!("{:?}", store.delete_many(vec![key], soon())),
                Step::Add(key, delta) => format!("{:?}", store.increment(key, delta, soon())),
                Step::Swap(key, old, new) => format!("{:?}", store.swap(key, old, new, soon())),
            });
            let answers: Vec<_> = answers.collect();
            let mut keys = list(store, "", 2);
            keys.sort_unstable();
            let values: Vec<_> = keys.iter().map(|key| get(store, key)).collect();
            (answers, keys, values)
        });
        let outcomes: Vec<_> = outcomes.collect();
        for outcome in &outcomes {
            prop_assert_eq!(outcome, &outcomes[0]);
        }
    }
}

#[test]
fn a_prefix_is_a_store_of_its_own() {
    each(|store| {
        let bucket = |prefix| Bucket::new(Arc::clone(store), prefix);
        let (all, a, ab) = (bucket(None), bucket(Some("a")), bucket(Some("ab")));
        a.set("key", b"of a".to_vec(), soon()).expect("room");
        a.set("b:key", b"of a too".to_vec(), soon()).expect("room");
        ab.set("key", b"of ab".to_vec(), soon()).expect("room");
        assert_eq!(ab.get("key", soon()), Ok(Some(b"of ab".to_vec())));
        assert_eq!(a.get("key", soon()), Ok(Some(b"of a".to_vec())));
        let keys = |bucket: &Bucket, most| {
            let (mut keys, mut cursor) = (Vec::new(), None);
            loop {
                let page = bucket.list(cursor.as_deref(), most, soon());
                let page = page.expect("a page");
                keys.extend(page.keys);
                cursor = page.cursor;
                if cursor.is_none() {
                    keys.sort_unstable();
                    return keys;
                }
            }
        };
        for most in [1, 10] {
            assert_eq!(keys(&a, most), ["b:key", "key"]);
            assert_eq!(keys(&ab, most), ["key"]);
            assert_eq!(keys(&all, most), ["a:b:key", "a:key", "ab:key"]);
        }
    });
}

#[test]
fn what_is_too_large_changes_nothing() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::new(1 << 30));
    let bucket = Bucket::new(Arc::clone(&memory), Some("p"));
    let large = Err(Error::TooLarge);
    let key = |bytes| "k".repeat(bytes);
    assert_eq!(bucket.set(&key(512), vec![0; 64 << 10], soon()), Ok(()));
    assert_eq!(bucket.set(&key(513), Vec::new(), soon()), large);
    assert_eq!(bucket.set("key", vec![0; (64 << 10) + 1], soon()), large);
    assert_eq!(bucket.get(&key(513), soon()), Err(Error::TooLarge));
    let entries = |count, bytes| {
        let entries = (0..count).map(|number| (format!("{number}"), vec![0; bytes]));
        entries.collect::<Vec<_>>()
    };
    assert_eq!(bucket.set_many(entries(257, 1), soon()), large);
    assert_eq!(bucket.set_many(entries(17, 64 << 10), soon()), large);
    assert_eq!(list(&memory, "p:", 9), [format!("p:{}", key(512))]);
    assert_eq!(bucket.set_many(entries(16, 64 << 10), soon()), Ok(()));
    let keys: Vec<_> = (0..16).map(|number| format!("{number}")).collect();
    assert!(bucket.get_many(&keys, soon()).is_ok());
    let keys = [&keys[..], &[key(512)]].concat();
    assert_eq!(bucket.get_many(&keys, soon()), Err(Error::TooLarge));
}

#[test]
fn a_trial_has_the_same_names_and_nothing_in_them() {
    let store: Arc<dyn Backend> = Arc::new(Memory::new(1 << 30));
    let bucket = |prefix| Bucket::new(Arc::clone(&store), prefix);
    let named = |name: &str, bucket| (name.to_owned(), bucket);
    let live = Buckets::new([
        named("default", bucket(None)),
        named("part", bucket(Some("p"))),
    ]);
    let open = |buckets: &Buckets, name| buckets.open(name).expect("it was granted");
    open(&live, "")
        .set("key", b"live".to_vec(), soon())
        .expect("room");
    let scratch = live.scratch();
    assert!(scratch.open("other").is_none());
    assert_eq!(open(&scratch, "default").get("key", soon()), Ok(None));
    let part = open(&scratch, "part");
    part.set("key", b"tried".to_vec(), soon()).expect("room");
    let tried = open(&scratch, "").get("p:key", soon());
    assert_eq!(tried, Ok(Some(b"tried".to_vec())));
    assert_eq!(open(&live, "part").get("key", soon()), Ok(None));
}
