//! New versions of the guest, while the server serves.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use airlock::GREETER;
use airlock::versions::guest_file::GuestFile;

use crate::components::{component, component_with_memory, doing, greeting_by, howdy, stamped};
use crate::support::{Changing, Server, eventually, put, run};

impl Changing {
    /// What a new connection is answered.
    fn answer(&self) -> String {
        self.server.greeted().ask("Ada")
    }
}

const NEW: &str = "new connections get a new version";
const REFUSED: &str = "refused the new guest, version 1 stays";

#[test]
fn new_connections_get_the_new_version_and_open_ones_keep_theirs() {
    let guest = Changing::start(&[]);
    let mut open = guest.server.greeted();
    assert_eq!(open.ask("Ada"), "Hello, Ada!");
    guest.replace(&howdy());
    guest.server.logged(&[NEW, "version=2"]);
    assert_eq!(guest.answer(), "Howdy, Ada!");
    assert_eq!(open.ask("Ada"), "Hello, Ada!");
    guest
        .server
        .logged(&["accepted", "connection=1 ", "version=1"]);
    guest
        .server
        .logged(&["accepted", "connection=2 ", "version=2"]);
    let gone = |line: &String| line.contains("gone, with its last connection");
    assert!(!guest.server.log().iter().any(gone));
    open.send("exit\n");
    guest
        .server
        .logged(&["gone, with its last connection", "version=1"]);
}

#[test]
fn a_version_is_known_by_the_sum_that_sha256sum_prints() {
    let guest = Changing::start(&[]);
    let sum = || {
        let output = run(Command::new("sha256sum").arg(&guest.file), b"");
        let text = String::from_utf8(output.stdout).unwrap();
        format!("sha256={}", text.split_once(' ').unwrap().0)
    };
    guest
        .server
        .logged(&["waiting for connections", "version=1", &sum()]);
    guest.replace(&howdy());
    guest.server.logged(&[NEW, "version=2", &sum()]);
}

#[test]
fn it_does_not_matter_how_the_file_is_changed() {
    let guest = Changing::start(&[]);
    let file = &guest.file;
    // Written over, as `cp` does.
    fs::write(file, howdy()).unwrap();
    guest.server.logged(&[NEW, "version=2"]);
    // Removed and made anew, as cargo does.
    fs::remove_file(file).unwrap();
    fs::write(file, stamped(GREETER, 3)).unwrap();
    guest.server.logged(&[NEW, "version=3"]);
    // With a backup, as editors do.
    fs::rename(file, file.with_extension("wasm~")).unwrap();
    fs::write(file, stamped(GREETER, 4)).unwrap();
    guest.server.logged(&[NEW, "version=4"]);
    // Another name for it, as `cargo build` makes one with a hard link.
    fs::write(file.with_extension("other"), stamped(GREETER, 5)).unwrap();
    fs::remove_file(file).unwrap();
    fs::hard_link(file.with_extension("other"), file).unwrap();
    guest.server.logged(&[NEW, "version=5"]);
}

#[test]
fn links_on_the_way_to_the_file_may_be_repointed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (release, component) in [
        ("1", GREETER.to_vec()),
        ("2", howdy()),
        ("3", stamped(GREETER, 3)),
    ] {
        fs::create_dir(at(release)).unwrap();
        fs::write(at(release).join("guest.wasm"), component).unwrap();
    }
    let point = |link: &str, target: &str| {
        symlink(target, at("link")).unwrap();
        fs::rename(at("link"), at(link)).unwrap();
    };
    // app.wasm -> current/guest.wasm, current -> 1: both as releases and Kubernetes' volumes are.
    point("current", "1");
    point("app.wasm", "current/guest.wasm");
    let server = Server::start(&["--guest", at("app.wasm").to_str().unwrap()]);
    point("current", "2");
    server.logged(&[NEW, "version=2"]);
    point("app.wasm", "3/guest.wasm");
    server.logged(&[NEW, "version=3"]);
    // And what a link points to now is watched as well.
    put(&at("3").join("guest.wasm"), &stamped(GREETER, 4));
    server.logged(&[NEW, "version=4"]);
}

/// Every part that stands in the file for a while is a component too, and only the last is whole.
#[test]
fn a_half_written_file_is_never_served() {
    const PARTS: u32 = 30;
    // The pauses of a writer vary. A machine that makes one of them longer than what counts as the
    // end (less what the file system rounds a time by) has finished the file: then once more.
    const LONGEST_PAUSE: Duration = Duration::from_millis(35);
    let guest = Changing::start(&[]);
    let served = |component: &[u8]| {
        let digest = GuestFile::from(component.to_vec()).digest.to_string();
        let is_new = |line: &String| line.contains(NEW) && line.contains(&digest);
        guest.server.log().iter().any(is_new)
    };
    let mut stamps = 0..;
    for _ in 0..100 {
        let mut component = howdy();
        let mut parts = Vec::new();
        let mut begun = Instant::now();
        let mut longest = Duration::ZERO;
        for part in 0..PARTS {
            let stamp = stamps.next().unwrap();
            let whole = stamped(&component, stamp);
            thread::sleep(Duration::from_millis(u64::from(part % 3) * 10));
            let before = Instant::now();
            if part == 0 {
                fs::write(&guest.file, &whole).unwrap();
                begun = before;
            } else {
                let file = fs::File::options().append(true).open(&guest.file);
                file.unwrap().write_all(&whole[component.len()..]).unwrap();
            }
            longest = longest.max(begun.elapsed());
            begun = before;
            component = whole;
            parts.push(component.clone());
        }
        parts.pop();
        eventually("the whole file is served", || served(&component));
        if longest < LONGEST_PAUSE {
            assert!(!parts.iter().any(|part| served(part)));
            assert_eq!(guest.answer(), "Howdy, Ada!");
            return;
        }
    }
    panic!("this machine is too slow for this test");
}

#[test]
fn a_candidate_that_fails_any_step_is_refused_and_the_current_version_stays() {
    let guest = Changing::start(&["--call-timeout=1s"]);
    let module = wat::parse_str("(module)").unwrap();
    let empty = wat::parse_str("(component)").unwrap();
    let asking = wat::parse_str("(component (import \"magic\" (func)))").unwrap();
    for (candidate, why) in [
        (b"#!/bin/sh".to_vec(), "it is not a WebAssembly component"),
        (
            GREETER[..GREETER.len() / 2].to_vec(),
            "it cannot be compiled",
        ),
        (module, "it is a core WebAssembly module"),
        (empty, "it does not export"),
        (asking, "it asks for what Airlock does not offer"),
        (
            component(&greeting_by("unreachable")),
            "it fails before its first line: wasm trap",
        ),
        (
            component(&greeting_by("(loop $l br $l)")),
            "a call took longer than 1s",
        ),
        (
            component_with_memory(1025, &doing("")),
            "raise --guest-memory",
        ),
        (vec![0; 129 << 20], "it has more than 134217728 bytes"),
    ] {
        guest.replace(&candidate);
        guest.server.logged(&["version 1 stays: ", why]);
        assert_eq!(guest.answer(), "Hello, Ada!");
    }
    fs::remove_file(&guest.file).unwrap();
    guest.server.signal("HUP");
    guest
        .server
        .logged(&["cannot read the guest, version 1 stays"]);
    guest.replace(&howdy());
    guest.server.logged(&[NEW, "version=2"]);
    assert_eq!(guest.answer(), "Howdy, Ada!");
}

#[test]
fn without_watching_a_signal_reloads() {
    let guest = Changing::start(&["--no-watch"]);
    guest.replace(&howdy());
    guest.server.signal("HUP");
    guest.server.logged(&[NEW, "version=2"]);
    assert_eq!(guest.answer(), "Howdy, Ada!");
    guest.replace(b"broken");
    guest.server.signal("HUP");
    guest
        .server
        .logged(&["refused the new guest, version 2 stays"]);
    guest.replace(&howdy());
    guest.server.signal("HUP");
    guest.server.logged(&["has not changed", "version=2"]);
    let versions = guest.server.log();
    assert_eq!(versions.iter().filter(|line| line.contains(NEW)).count(), 1);
}

#[test]
fn the_built_in_greeter_survives_the_order_to_reload() {
    let server = Server::start(&[]);
    server.signal("HUP");
    server.logged(&["nothing to reload", "--guest"]);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_canary_gets_its_share_and_is_promoted_when_its_time_is_over() {
    // Time enough for eight conversations.
    let guest = Changing::start(&["--canary=25:10s"]);
    guest.replace(&howdy());
    guest
        .server
        .logged(&["trying a new version on a share", "version=2", "percent=25"]);
    let answers: Vec<_> = (0..8).map(|_| guest.answer()).collect();
    let howdy = |answer: &String| answer == "Howdy, Ada!";
    let places: Vec<_> = (0..8).filter(|&n| howdy(&answers[n])).collect();
    assert_eq!(places, [3, 7], "{answers:?}");
    guest.server.logged(&[
        "promoted",
        "version=2",
        "sessions=2",
        "failures=0",
        "current_sessions=6",
    ]);
    assert!((0..4).all(|_| howdy(&guest.answer())));
    guest
        .server
        .logged(&["gone, with its last connection", "version=1"]);
}

#[test]
fn a_canary_whose_sessions_fail_is_rolled_back_until_the_file_changes() {
    let guest = Changing::start(&["--canary=50:1h"]);
    let failing = component(&doing("unreachable"));
    guest.replace(&failing);
    guest
        .server
        .logged(&["trying a new version on a share", "version=2"]);
    let (mut failed, mut served) = (0, 0);
    for _ in 0..20 {
        let mut client = guest.server.connect();
        client.send("Ada\nexit\n");
        match client.rest().as_str() {
            "Welcome!\nHello, Ada!\n" => served += 1,
            "error: the guest failed\n" => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((failed, served), (10, 10));
    guest.server.logged(&[
        "rolled back",
        "version=2",
        "failures=10",
        "current_failures=0",
    ]);
    assert!((0..4).all(|_| guest.answer() == "Hello, Ada!"));
    guest.server.signal("HUP");
    guest.server.logged(&[REFUSED, "it has been rolled back"]);
    guest.replace(&howdy());
    guest
        .server
        .logged(&["trying a new version on a share", "version=3"]);
    // The file goes back to what is current: so does everything.
    guest.replace(GREETER);
    guest.server.logged(&["withdrawn", "version=3"]);
    assert!((0..4).all(|_| guest.answer() == "Hello, Ada!"));
    // What was rolled back is tried again after another version was.
    guest.replace(&failing);
    guest
        .server
        .logged(&["trying a new version on a share", "version=4"]);
}

#[test]
fn connections_of_a_version_that_was_replaced_long_ago_are_ended() {
    let guest = Changing::start(&["--max-guest-age=200ms"]);
    let mut old = guest.server.greeted();
    assert_eq!(old.ask("Ada"), "Hello, Ada!");
    guest.replace(&howdy());
    guest.server.logged(&[NEW, "version=2"]);
    let mut new = guest.server.greeted();
    assert_eq!(old.rest(), "error: server is shutting down\n");
    guest.server.logged(&[
        "closed",
        "connection=1 ",
        "its version of the guest was replaced",
    ]);
    guest
        .server
        .logged(&["ending its connections", "version=1"]);
    guest
        .server
        .logged(&["gone, with its last connection", "version=1"]);
    assert_eq!(new.ask("Ada"), "Howdy, Ada!");
}

#[test]
fn a_server_ends_in_the_middle_of_a_trial() {
    let mut guest = Changing::start(&["--call-timeout=1h"]);
    guest.replace(&component(&greeting_by("(loop $l br $l)")));
    // Nothing announces that the trial has begun but its use of the processor.
    let before = guest.server.processor_time();
    eventually("the candidate spins", || {
        guest.server.processor_time() > before + Duration::from_secs(1)
    });
    assert_eq!(guest.answer(), "Hello, Ada!");
    guest.server.signal("TERM");
    assert_eq!(guest.server.ended().code(), Some(0));
}

#[test]
fn a_new_version_that_found_no_memory_is_tried_again() {
    // The greeter has 1 MiB: there is room for two of it.
    let options = ["--guest-memory=2MiB", "--total-guest-memory=2500KiB"];
    let guest = Changing::start(&options);
    let open = (guest.server.greeted(), guest.server.greeted());
    guest.replace(&howdy());
    guest.server.logged(&[REFUSED, "--total-guest-memory"]);
    drop(open);
    guest.server.logged(&[NEW, "version=2"]);
    assert_eq!(guest.answer(), "Howdy, Ada!");
}

#[test]
fn a_pipe_in_the_place_of_the_file_holds_nothing_up() {
    let guest = Changing::start(&[]);
    fs::remove_file(&guest.file).unwrap();
    let made = Command::new("mkfifo").arg(&guest.file).status();
    assert!(made.unwrap().success());
    guest.server.signal("HUP");
    guest
        .server
        .logged(&["cannot read the guest", "it is no regular file"]);
    guest.replace(&howdy());
    guest.server.logged(&[NEW, "version=2"]);
}
