//! Stores in files, and disks that forget, fail and wait: strace sees what the server asks of the disk, and
//! can have that fail.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use airlock::store::Backend;
use airlock::store::sqlite::{Durability, Options, Sqlite};

use crate::stores::{Place, keeper};
use crate::support::{AIRLOCK, Server, eventually, guest, installed};

/// A server of `keeper` with a store at this place, seen by strace; `-D` has the server be our child.
fn seen(place: &Place, strace: &[&str]) -> Server {
    seen_with(place, "", strace)
}

fn seen_with(place: &Place, parameters: &str, strace: &[&str]) -> Server {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-o"]).arg(trace(place));
    command.args(strace).arg(AIRLOCK);
    command.arg("--guest").arg(guest("keeper"));
    Server::start_command(command.arg(place.granted(parameters)))
}

fn trace(place: &Place) -> String {
    format!("{}.trace", place.file().display())
}

/// What the server has done, in its order.
#[derive(Debug, Clone, PartialEq)]
enum Done {
    Written(String, usize, Vec<u8>),
    Cut(String, usize),
    Synced(String),
    Deleted(String),
    /// A client was told this number.
    Told(u64),
}

impl Done {
    /// From one call of the kernel, as strace writes it with `-y -xx`. None if it does not matter here.
    fn from(call: &str, folder: &str) -> Option<Done> {
        let (name, arguments) = call.split_once('(')?;
        let texts: Vec<Vec<u8>> = arguments.split(['"', '<', '>']).map(decoded).collect();
        // `FD<PATH>, "BYTES", …`; or a path alone.
        let path = String::from_utf8(texts.get(1)?.clone()).ok()?;
        let file = path.strip_prefix(folder)?.to_owned();
        let mut numbers = arguments.split(") = ").next()?.rsplit(", ");
        let last = numbers.next()?.parse();
        if file.ends_with("-shm") {
            // What readers and writers say to each other.
            return None;
        }
        Some(match name {
            "pwrite64" => Done::Written(file, last.ok()?, texts.get(3)?.clone()),
            "ftruncate" => Done::Cut(file, last.ok()?),
            "fdatasync" | "fsync" => Done::Synced(file),
            "unlink" => Done::Deleted(file),
            _ => return None,
        })
    }

    fn told(call: &str) -> Option<Done> {
        let text = decoded(call.strip_prefix("sendto(")?.split('"').nth(1)?);
        let number = String::from_utf8(text).ok()?.trim().parse().ok()?;
        Some(Done::Told(number))
    }
}

fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.split("\\x").skip(1);
    let bytes = bytes.map(|digits| u8::from_str_radix(digits, 16));
    bytes.collect::<Result<_, _>>().unwrap_or_default()
}

/// A write counts from when it is begun, and a sync when it is over.
fn done(trace: &str, folder: &str) -> Vec<Done> {
    let mut begun = BTreeMap::new();
    let mut all = Vec::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim();
        if call.starts_with("<...") {
            all.extend(begun.remove(thread));
            continue;
        }
        let unfinished = call.strip_suffix(" <unfinished ...>");
        let call = unfinished.unwrap_or(call);
        match Done::from(call, folder).or_else(|| Done::told(call)) {
            Some(sync @ Done::Synced(_)) if unfinished.is_some() => {
                begun.insert(thread, sync);
            }
            done => all.extend(done),
        }
    }
    all
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    bytes: Vec<u8>,
    /// Since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
}

/// Which of the writes that were not synced have reached the disk when the power goes.
#[derive(Debug, Clone, Copy)]
enum Kept {
    None,
    All,
    /// Those whose bit is set; of some of these a half.
    Some(u64),
}

impl File {
    fn after_power_cut(&self, kept: Kept) -> Vec<u8> {
        let mut bytes = match kept {
            Kept::All => return self.bytes.clone(),
            Kept::None | Kept::Some(_) => self.synced.clone(),
        };
        let Kept::Some(bits) = kept else {
            return bytes;
        };
        for (number, (offset, data)) in self.writes.iter().enumerate() {
            if bits >> (number % 61) & 1 == 1 {
                let length = data.len() / (1 + usize::from(number % 5 == 0));
                put(&mut bytes, *offset, &data[..length]);
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[offset..end].copy_from_slice(data);
}

/// What a disk has of the store's files.
#[derive(Default)]
struct Disk(BTreeMap<String, File>);

impl Disk {
    fn take(&mut self, done: &Done) {
        match done {
            Done::Written(name, offset, data) => {
                let file = self.0.entry(name.clone()).or_default();
                put(&mut file.bytes, *offset, data);
                file.writes.push((*offset, data.clone()));
            }
            Done::Cut(name, length) => {
                let file = self.0.entry(name.clone()).or_default();
                file.bytes.resize(*length, 0);
                file.synced.resize(*length, 0);
                file.writes.clear();
            }
            Done::Synced(name) => {
                let file = self.0.entry(name.clone()).or_default();
                file.synced.clone_from(&file.bytes);
                file.writes.clear();
            }
            Done::Deleted(name) => drop(self.0.remove(name)),
            Done::Told(_) => {}
        }
    }

    /// The store that is there when the power comes back.
    fn open(&self, kept: Kept) -> (Sqlite, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        for (name, file) in &self.0 {
            let path = folder.path().join(format!("store.db{name}"));
            fs::write(path, file.after_power_cut(kept)).unwrap();
        }
        let options = Options {
            durability: Durability::Commit,
            quota_bytes: 1 << 30,
        };
        let store = Sqlite::open(&folder.path().join("store.db"), options);
        (store.expect("it always opens"), folder)
    }
}

/// A number that is counted up, and between that a batch that is written whole, again and again, so that
/// the file takes up what is beside it, too. The power goes before and after each sync, and in between.
#[test]
fn what_was_acknowledged_before_the_power_went_is_there_when_it_comes_back() {
    if !installed("strace") {
        return;
    }
    let place = Place::new();
    let calls = "trace=pwrite64,ftruncate,fsync,fdatasync,unlink,sendto";
    let mut server = seen(&place, &["-y", "-xx", "-s", "70000", "-e", calls]);
    let mut client = keeper(&server);
    for number in 1..=20 {
        assert_eq!(client.ask("add n 1"), number.to_string());
        if number % 2 == 0 {
            let length = 30_000 + number;
            assert_eq!(client.ask(&format!("fill 0 16 {length}")), "ok");
        }
    }
    drop(client);
    server.signal("TERM");
    server.ended();
    // strace may be behind it.
    let id = server.id().to_string();
    eventually("strace has seen the end", || {
        let trace = fs::read_to_string(trace(&place)).unwrap();
        let mut lines = trace.lines();
        lines.any(|line| line.split_whitespace().take(3).eq([&*id, "+++", "exited"]))
    });
    let trace = fs::read_to_string(trace(&place)).unwrap();
    let all = done(&trace, &place.file().display().to_string());
    let syncs = all.iter().filter(|done| matches!(done, Done::Synced(_)));
    let taken_up = syncs.filter(|done| **done == Done::Synced(String::new()));
    assert!(taken_up.count() > 2, "the file takes up what is beside it");
    assert!(all.contains(&Done::Told(20)), "{:?}", all.last());

    let (mut disk, mut told, mut tried) = (Disk::default(), 0, 0);
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    for (number, done) in all.iter().enumerate() {
        let is_sync = |done: Option<&Done>| matches!(done, Some(Done::Synced(_)));
        disk.take(done);
        if let Done::Told(number) = done {
            told = *number;
        }
        if !(is_sync(Some(done)) || is_sync(all.get(number + 1)) || number % 101 == 0) {
            continue;
        }
        bits = bits.rotate_left(7).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
        for kept in [Kept::None, Kept::All, Kept::Some(bits)] {
            let (store, _folder) = disk.open(kept);
            tried += 1;
            let until = Instant::now() + Duration::from_secs(60);
            let found = store.get("n", until).unwrap().unwrap_or(b"0".to_vec());
            let found: u64 = String::from_utf8(found).unwrap().parse().unwrap();
            assert!(
                (told..=told + 1).contains(&found),
                "after {number} of {}, {kept:x?}: {found} of {told}",
                all.len()
            );
            let keys: Vec<_> = (0..16).map(|key| format!("key-{key:06}")).collect();
            let batch = store.get_many(&keys, 1 << 20, until).unwrap();
            let same = |one: &Option<Vec<u8>>| one.as_ref().map(Vec::len);
            let first = same(&batch[0]);
            assert!(
                batch.iter().all(|one| same(one) == first),
                "a part of a batch is there: after {number}, {kept:x?}"
            );
            // The batch before the number was acknowledged before the number was.
            let least = told.saturating_sub(1) / 2 * 2;
            let least = (least > 0).then_some(30_000 + least as usize);
            assert!(
                first >= least,
                "after {number}, {kept:x?}: {first:?} of {least:?}"
            );
        }
    }
    assert!(tried > 100, "{tried}");
}

/// A store that is there already: so the server's first syncs are those of its writes.
fn made() -> Place {
    let place = Place::new();
    let mut server = Server::with_guest("keeper", &[&place.granted("")]);
    assert_eq!(keeper(&server).ask("set before 0"), "ok");
    server.signal("TERM");
    server.ended();
    place
}

/// What was there is read on, also after the next start.
#[test]
fn a_disk_that_fails_is_written_no_more_and_read_on() {
    if !installed("strace") {
        return;
    }
    let place = made();
    let fails = "inject=fsync,fdatasync:error=EIO:when=8+";
    let server = seen(&place, &["-e", "trace=fsync,fdatasync", "-e", fails]);
    let mut client = keeper(&server);
    let acknowledged = (0..20).take_while(|number| {
        let word = client.ask(&format!("set key-{number} {number}"));
        assert!(["ok", "other: unavailable"].contains(&&*word), "{word}");
        word == "ok"
    });
    let acknowledged = acknowledged.count();
    assert!((1..20).contains(&acknowledged), "{acknowledged}");
    assert_eq!(client.ask("set late refused"), "other: unavailable");
    assert_eq!(client.ask("get key-0"), "0");
    let last = format!("get key-{}", acknowledged - 1);
    assert_eq!(keeper(&server).ask(&last), (acknowledged - 1).to_string());
    server.logged(&["ERROR", "writes are refused until the next start"]);
    drop((client, server));
    let server = Server::with_guest("keeper", &[&place.granted("")]);
    let mut client = keeper(&server);
    assert_eq!(client.ask("get key-0"), "0");
    assert_eq!(client.ask(&last), (acknowledged - 1).to_string());
    assert_eq!(client.ask("get late"), "none");
    assert_eq!(client.ask("set late now"), "ok");
}

/// A disk that takes three seconds: a guest that writes is told so after one, and nobody else waits.
#[test]
fn a_slow_disk_holds_up_whoever_writes_as_long_as_it_may_and_nobody_else() {
    if !installed("strace") {
        return;
    }
    let place = made();
    let waits = "inject=fsync,fdatasync:delay_enter=3000000:when=1+";
    let server = seen(&place, &["-e", "trace=fsync,fdatasync", "-e", waits]);
    let (mut one, mut other) = (keeper(&server), keeper(&server));
    one.send("set a 1\n");
    for _ in 0..100 {
        assert_eq!(other.ask("get before"), "0");
    }
    assert_eq!(other.ask("get a"), "none");
    assert_eq!(one.hear(), "other: timeout\n");
    // It is written all the same.
    eventually("the disk is done", || other.ask("get a") == "1");
}

/// Without another write, and without an end.
#[test]
fn what_a_relaxed_store_was_told_is_on_the_disk_soon() {
    if !installed("strace") {
        return;
    }
    let place = made();
    let synced = || {
        let trace = fs::read_to_string(trace(&place)).unwrap_or_default();
        trace.matches("fdatasync(").count() + trace.matches("fsync(").count()
    };
    let server = seen_with(
        &place,
        "?durability=relaxed",
        &["-e", "trace=fsync,fdatasync"],
    );
    let mut client = keeper(&server);
    for number in 1..=2 {
        let before = synced();
        assert_eq!(client.ask(&format!("set a {number}")), "ok");
        eventually("it is synced", || synced() > before);
    }
}

/// And what is written when there is room again is written.
#[test]
fn a_disk_without_room_takes_no_writes_until_it_has_some() {
    if !installed("strace") {
        return;
    }
    let place = made();
    let full = "inject=pwrite64:error=ENOSPC:when=20..23";
    let server = seen(&place, &["-e", "trace=pwrite64", "-e", full]);
    let mut client = keeper(&server);
    let words: Vec<_> = (0..40)
        .map(|number| client.ask(&format!("set key-{number} {number}")))
        .collect();
    let refused: Vec<_> = (0..40).filter(|&number| words[number] != "ok").collect();
    assert!((1..=4).contains(&refused.len()), "{words:?}");
    assert!(
        refused
            .iter()
            .all(|&number| words[number] == "other: unavailable")
    );
    assert_eq!(words[39], "ok");
    for (number, word) in words.iter().enumerate() {
        let found = client.ask(&format!("get key-{number}"));
        let wanted = if word == "ok" {
            number.to_string()
        } else {
            "none".to_owned()
        };
        assert_eq!(found, wanted);
    }
    server.logged(&["WARN", "the store cannot be written now"]);
}

#[test]
fn the_disk_of_the_test_keeps_what_was_synced_and_what_it_is_told_to() {
    let mut disk = Disk::default();
    let wal = || "-wal".to_owned();
    for done in [
        Done::Written(wal(), 0, b"abcd".to_vec()),
        Done::Synced(wal()),
        Done::Written(wal(), 4, b"efgh".to_vec()),
        Done::Written(wal(), 0, b"x".to_vec()),
    ] {
        disk.take(&done);
    }
    let after = |kept| disk.0["-wal"].after_power_cut(kept);
    assert_eq!(after(Kept::None), b"abcd");
    assert_eq!(after(Kept::All), b"xbcdefgh");
    assert_eq!(after(Kept::Some(0b10)), b"xbcd");
    assert_eq!(after(Kept::Some(0b01)), b"abcdef");
    let line = r#"12 pwrite64(9<\x2f\x74\x2d\x77>, "\x61\x22", 2, 40) = 2"#;
    let written = Done::Written("-w".to_owned(), 40, b"a\"".to_vec());
    assert_eq!(done(line, "/t"), [written]);
    assert_eq!(
        done("1 sendto(3, \"\\x31\\x32\\x0a\", 3, 0, NULL, 0) = 3", "/t"),
        [Done::Told(12)]
    );
    let line = "7 fsync(9<\\x2f\\x74> <unfinished ...>\n8 fsync(9<\\x2f\\x74>) = 0\n7 <... fsync resumed>) = 0";
    assert_eq!(done(line, "/t").len(), 2);
}
