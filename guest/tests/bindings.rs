//! The guest's generated bindings are the ones that `wit/` and this wit-bindgen make.
//!
//! They are generated once and committed, because the macro that would do it at every build costs a
//! cold guest build half a minute (it compiles a parser for Rust and one for WIT first). After a
//! change in `wit/`:
//!
//! ```text
//! AIRLOCK_BLESS=1 cargo test -p guest --test bindings
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use wit_bindgen_core::wit_parser::{PackageId, Resolve};
use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::Opts;

#[test]
fn the_guests_bindings_are_current() {
    compare("batch-server", "guest/src/bindings.rs");
}

#[test]
fn the_bindings_of_the_tests_guests_are_current() {
    compare("line-server", "tests/guests/bindings.rs");
}

#[test]
fn the_bindings_of_guests_that_remember_are_current() {
    compare("store-server", "examples/guestbook/src/bindings.rs");
}

#[test]
fn the_bindings_of_guests_that_hear_each_other_are_current() {
    compare("topic-server", "tests/guests/speaker/src/bindings.rs");
}

#[test]
fn the_bindings_of_guests_that_hear_each_other_and_remember_are_current() {
    let mut resolve = Resolve::default();
    resolve.push_path(root().join("wit")).expect("wit/ parses");
    let text = "package examples:chat; world chat {
        include airlock:line/topic-server@0.1.0; include airlock:line/store-server@0.1.0; }";
    let package = resolve.push_str("chat.wit", text).expect("a world");
    compare_with(resolve, package, "chat", "examples/chat/src/bindings.rs");
}

/// What guests have that were built for another version of `wasi:keyvalue`.
#[test]
fn the_bindings_of_the_tests_other_guests_that_remember_are_current() {
    let line = fs::read_to_string(root().join("wit/world.wit")).expect("a file");
    let line = line.split("/// The world of a guest that remembers").next();
    let line = line.expect("the contract before it");

    let mut resolve = Resolve::default();
    resolve.push_str("world.wit", line).expect("it parses");
    let draft = root().join("host/wit/keyvalue-0.2.0-draft");
    resolve.push_path(draft).expect("it parses");
    let text = "package tests:draft; world draft {
        include airlock:line/line-server@0.1.0; include wasi:keyvalue/imports@0.2.0-draft; }";
    let package = resolve.push_str("draft.wit", text).expect("a world");
    compare_with(
        resolve,
        package,
        "draft",
        "tests/guests/keeper-draft/src/bindings.rs",
    );

    let mut resolve = Resolve::default();
    let folder = root().join("wit/deps/keyvalue");
    let read = |name| fs::read_to_string(folder.join(name)).expect("a file");
    let text = ["world.wit", "store.wit", "atomics.wit", "batch.wit"]
        .map(read)
        .concat();
    let older = text.replace(
        "list<tuple<string, option<list<u8>>>>",
        "list<option<tuple<string, list<u8>>>>",
    );
    assert_ne!(text, older);
    resolve.push_str("keyvalue.wit", &older).expect("it parses");
    resolve.push_str("world.wit", line).expect("it parses");
    let text = "package tests:older; world older {
        include airlock:line/line-server@0.1.0; include wasi:keyvalue/imports@0.2.0-draft2; }";
    let package = resolve.push_str("older.wit", text).expect("a world");
    compare_with(
        resolve,
        package,
        "older",
        "tests/guests/keeper-older/src/bindings.rs",
    );
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn compare(world: &str, file: &str) {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(root().join("wit")).expect("wit/ parses");
    compare_with(resolve, package, world, file);
}

fn compare_with(mut resolve: Resolve, package: PackageId, world: &str, file: &str) {
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("there is the world");
    let mut files = Files::default();
    let options = Opts {
        generate_all: true,
        ..Opts::default()
    };
    options
        .build()
        .generate(&mut resolve, world, &mut files)
        .expect("wit-bindgen generates");
    let (_, generated) = files.iter().next().expect("one file is generated");

    let committed = root().join(file);
    let mut current = fs::read(&committed).unwrap_or_default();
    // What is written is built again, by whoever builds something meanwhile.
    if current != generated && std::env::var_os("AIRLOCK_BLESS").is_some() {
        fs::write(&committed, generated).expect("it can be written");
        current = generated.to_vec();
    }
    assert!(
        current == generated,
        "{file} is not what wit/ gives: run `AIRLOCK_BLESS=1 cargo test -p guest --test bindings` \
         and commit the result"
    );
}
