//! `cargo run -p host` and `cargo test --workspace` share one build of every dependency of the program:
//! Wasmtime takes minutes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::root;

/// What host/Cargo.toml names for its features alone.
const UNUSED: [&str; 2] = ["indexmap", "semver"];

#[test]
fn the_program_and_its_tests_share_one_build_of_each_dependency() {
    let twice = built_twice(&root());
    assert!(
        twice.is_empty(),
        "the tests need other features of these, so they and all that depends on them are built \
         twice; name such features in Cargo.toml, as with {UNUSED:?}: {twice:#?}"
    );
}

#[test]
fn what_is_named_for_its_features_alone_is_still_needed() {
    let copy = tempfile::tempdir().unwrap();
    let [root, copy] = [&root(), copy.path()];
    for name in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root.join(name), copy.join(name)).unwrap();
    }
    for name in ["bench", "examples", "guest", "tests"] {
        symlink(root.join(name), copy.join(name)).unwrap();
    }
    fs::create_dir(copy.join("host")).unwrap();
    for name in ["build.rs", "src"] {
        symlink(root.join("host").join(name), copy.join("host").join(name)).unwrap();
    }
    let manifest = fs::read_to_string(root.join("host/Cargo.toml")).unwrap();
    for name in UNUSED {
        let line = format!("{name}.workspace = true\n");
        assert!(manifest.contains(&line));
        fs::write(copy.join("host/Cargo.toml"), manifest.replace(&line, "")).unwrap();
        let twice = built_twice(copy);
        assert!(!twice.is_empty(), "remove `{name}`, it changes nothing");
    }
}

/// The dependencies of the program whose features are others when the tests are built too.
fn built_twice(workspace: &Path) -> BTreeSet<String> {
    let tree = |packages: &str, edges: &str| -> BTreeSet<String> {
        let output = Command::new("cargo")
            .args(["tree", "--offline", "--prefix=none", "--format={p} {f}"])
            // What the compiler itself runs has features of its own.
            .args([packages, &format!("--edges={edges},no-proc-macro")])
            .current_dir(workspace)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let lines = String::from_utf8(output.stdout).unwrap();
        // Those that were shown before have a mark.
        let lines = lines.lines().map(|line| line.trim_end_matches(" (*)"));
        lines.map(str::to_owned).collect()
    };
    &tree("--package=host", "normal") - &tree("--workspace", "normal,dev")
}
