//! Builds the guest for WebAssembly, so that `cargo run` is all it takes.
//!
//! It runs a cargo of its own, with a target directory of its own: sharing the outer one would
//! wait for its lock forever.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "wasm32-wasip2";

fn main() {
    let root = Path::new("..");
    for input in ["guest", "wit", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    ensure_target();

    let out = PathBuf::from(variable("OUT_DIR"));
    let target_dir = out.join("guest-target");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args([
            "build",
            "--package",
            "guest",
            "--release",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root);
    // Settings of the outer build, which is for another machine.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(name);
    }
    if !cargo.status().is_ok_and(|status| status.success()) {
        fail("the guest does not compile; its errors stand above");
    }
    let component = target_dir.join(TARGET).join("release/guest.wasm");
    if let Err(error) = fs::copy(&component, out.join("guest.wasm")) {
        fail(&format!(
            "the guest was built but is not at {}: {error}",
            component.display()
        ));
    }
}

/// Installs the target's standard library when it is missing. `targets` in rust-toolchain.toml is
/// not enough: rustup ignores it where RUSTUP_AUTO_INSTALL=0.
fn ensure_target() {
    if has_target() {
        return;
    }
    say(&format!("adding the Rust target {TARGET} with rustup"));
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .status()
        .is_ok_and(|status| status.success());
    if !added || !has_target() {
        fail(&format!(
            "the guest needs the Rust target {TARGET}, and it could not be added; run: \
             rustup target add {TARGET}"
        ));
    }
}

/// Says it to whoever sits at the terminal. As a warning, cargo would say it again at every later run.
fn say(message: &str) {
    if let Ok(mut terminal) = File::options().write(true).open("/dev/tty") {
        // Over cargo's line of progress, which it draws again.
        let _ = write!(terminal, "\r\x1b[K{message}\r\n");
    }
}

fn has_target() -> bool {
    Command::new(variable("RUSTC"))
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .is_ok_and(|output| {
            let libraries = String::from_utf8_lossy(&output.stdout);
            output.status.success() && Path::new(libraries.trim()).is_dir()
        })
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| fail(&format!("cargo sets {name}")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1);
}
