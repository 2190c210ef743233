//! Lays the component's memory out so that a connection touches three pages of it instead of four.

use std::env;

/// The linker puts the stack first, then 8 KiB of data, then the heap, which the allocator marks at
/// both of its ends; and it rounds up to 64 KiB. With this much stack, what the greeter uses of the
/// three lies in the last 12 KiB of 1 MiB. What does not fit there is behind it: with more data the
/// memory is larger from the beginning, with large lines it grows.
const STACK_BYTES: u32 = 1014 * 1024;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "wasm") {
        println!("cargo::rustc-link-arg-cdylib=-zstack-size={STACK_BYTES}");
    }
}
