//! SECURITY.md says what is true: its limits are those of the code, and its tests exist.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::support::{agrees, root};

/// What stands before the table, which is the rest of the file.
const HEAD: &str = "\n| limit | default | why |\n| --- | --- | --- |\n";

/// `AIRLOCK_BLESS=1 cargo test -p host --test airlock security` writes the table.
#[test]
fn the_limits_are_those_of_the_code() {
    let path = root().join("SECURITY.md");
    let page = fs::read_to_string(&path).unwrap();
    let (text, _) = page.split_once(HEAD).unwrap();
    let current = format!("{text}{HEAD}{}", table());
    agrees(&path, &page, &current);
}

/// A row for every constant of `limits/`: its name, its value as written there, and its comment.
fn table() -> String {
    let read = |file: &str| {
        let path = root().join("host/src/limits").join(file);
        fs::read_to_string(path).unwrap()
    };
    let source = ["wire.rs", "guest.rs", "process.rs"].map(read).concat();
    let (mut rows, mut reason) = (String::new(), Vec::new());
    for line in source.lines() {
        if let Some(text) = line.strip_prefix("/// ") {
            reason.push(text);
            continue;
        }
        if let Some(constant) = line.strip_prefix("pub const ") {
            let (name, rest) = constant.split_once(':').unwrap();
            let (_, value) = rest.split_once(" = ").unwrap();
            let value = value.trim_end_matches(';');
            writeln!(rows, "| `{name}` | `{value}` | {} |", reason.join(" ")).unwrap();
        }
        reason.clear();
    }
    rows
}

#[test]
fn every_test_it_names_exists() {
    let page = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let mut sources = String::new();
    for folder in ["tests", "host/src"] {
        read_sources(&root().join(folder), &mut sources);
    }
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    // A test's name is a sentence; options and files are not.
    let tests: Vec<_> = names
        .filter(|name| name.matches('_').count() >= 3 && !name.contains(['/', '-', ' ', '*']))
        .filter(|name| name.chars().all(|char| char.is_lowercase() || char == '_'))
        .collect();
    assert!(tests.len() > 30, "{tests:?}");
    for test in tests {
        assert!(sources.contains(&format!("fn {test}()")), "{test}");
    }
}

fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
