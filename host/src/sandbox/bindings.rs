//! The contract of `wit/world.wit`, as Rust. Nothing else is in this file.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "line-server",
});

/// What only some guests export.
pub(crate) mod batched {
    wasmtime::component::bindgen!({
        inline: "package airlock:host; world batch { export airlock:line/batch@0.1.0; }",
        path: "../wit",
        world: "airlock:host/batch",
    });
}
