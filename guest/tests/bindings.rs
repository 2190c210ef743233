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
use std::path::Path;

use wit_bindgen_core::wit_parser::Resolve;
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

fn compare(world: &str, file: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(root.join("wit")).expect("wit/ parses");
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("wit/ has the world");
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

    let committed = root.join(file);
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
