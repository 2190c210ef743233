//! `host/build.rs` where the guest's target is not installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{installed, root, run};

/// Runs the build script at a terminal of its own, with a `rustc` that has no wasm target and with this
/// `rustup`. What it shows there is in the output too.
fn build_without_target(folder: &Path, rustup: &str) -> Output {
    let script = folder.join("build-script");
    let status = Command::new("rustc")
        .args(["--edition=2024", "--crate-name=build_script", "-o"])
        .arg(&script)
        .arg(root().join("host/build.rs"))
        .status();
    assert!(status.unwrap().success());
    let program = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let libraries = folder.join("libraries");
    let rustc = program("rustc", &format!("echo {}", libraries.display()));
    program("rustup", rustup);
    // The guest itself is built elsewhere.
    let cargo = program("cargo", "exit 1");
    run(
        Command::new("script")
            .args(["--quiet", "--return", "--command"])
            .arg(script)
            .arg("/dev/null")
            .current_dir(folder)
            .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
            .env("RUSTC", rustc)
            .env("CARGO", cargo)
            .env("OUT_DIR", folder),
        b"",
    )
}

#[test]
fn a_missing_target_that_cannot_be_added_names_the_command_to_run() {
    if !installed("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = build_without_target(folder.path(), "exit 1");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    let error = stdout.lines().last().unwrap();
    assert!(error.starts_with("cargo::error="), "{stdout}");
    assert!(
        error.ends_with("rustup target add wasm32-wasip2"),
        "{stdout}"
    );
}

#[test]
fn a_missing_target_is_added_and_that_is_said_once() {
    if !installed("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rustup = r#"[ "$*" = "target add wasm32-wasip2" ] && mkdir "$(dirname "$0")/libraries""#;
    let output = build_without_target(folder.path(), rustup);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("adding the Rust target"), "{stdout}");
    // Cargo would repeat it at every later run.
    assert!(!stdout.contains("cargo::warning"), "{stdout}");
    // It got as far as the guest.
    assert!(stdout.contains("the guest does not compile"), "{stdout}");
}
