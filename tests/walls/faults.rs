//! Faults of the machine around the server.

use std::fs;
use std::process::Command;

use crate::support::{AIRLOCK, Server, installed};

#[test]
fn without_a_usable_cache_directory_the_server_serves() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    for cache in [file.to_str().unwrap(), "/proc/nowhere", "relative"] {
        let mut command = Command::new(AIRLOCK);
        command.env("XDG_CACHE_HOME", cache).current_dir(&folder);
        let server = Server::start_command(&mut command);
        assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!", "{cache}");
    }
    let mut command = Command::new(AIRLOCK);
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
    let server = Server::start_command(&mut command);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn with_a_full_disk_under_the_cache_directory_the_server_serves() {
    if !installed("unshare") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // A file system of one page, in a mount namespace of its own.
    let script = r#"mount -t tmpfs -o size=4k none "$XDG_CACHE_HOME"
        head -c 4096 /dev/zero > "$XDG_CACHE_HOME/full" || exit 1
        exec "$0""#;
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-ec", script, AIRLOCK])
        .env("XDG_CACHE_HOME", folder.path());
    let server = Server::start_command(&mut command);
    assert_eq!(server.greeted().ask("Ada"), "Hello, Ada!");
}

#[test]
fn a_damaged_cache_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = Command::new(AIRLOCK);
        Server::start_command(command.env("XDG_CACHE_HOME", folder.path()))
    };
    drop(start());
    let mut damaged = 0;
    damage(folder.path(), &mut damaged);
    assert!(damaged > 0, "the cache is not where it was expected");
    assert_eq!(start().greeted().ask("Ada"), "Hello, Ada!");
}

/// Cuts every file below a folder in half.
fn damage(folder: &std::path::Path, damaged: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path, damaged);
        } else {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            *damaged += 1;
        }
    }
}
