//! The contract of `wit/world.wit`, as Rust. Nothing else is in this file.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "line-server",
});
