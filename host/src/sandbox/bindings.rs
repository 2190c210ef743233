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

/// What guests ask that hear each other, and what they export to hear.
pub(crate) mod topical {
    wasmtime::component::bindgen!({
        inline: "package airlock:host; world topics {
            import airlock:line/topics@0.1.0;
            export airlock:line/subscriber@0.1.0;
        }",
        path: "../wit",
        world: "airlock:host/topics",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// The stores of guests that were built for one version of the interface.
pub(crate) mod keyvalue_draft2 {
    wasmtime::component::bindgen!({
        inline: "package airlock:host; world stores { include wasi:keyvalue/imports@0.2.0-draft2; }",
        path: "../wit",
        world: "airlock:host/stores",
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::sandbox::keyvalue::operations::Bucket,
            "wasi:keyvalue/atomics.cas": crate::sandbox::keyvalue::operations::Swap,
        },
    });
}

/// Those of guests that were built for the other.
pub(crate) mod keyvalue_draft {
    wasmtime::component::bindgen!({
        inline: "package airlock:host; world stores { include wasi:keyvalue/imports@0.2.0-draft; }",
        path: "wit/keyvalue-0.2.0-draft",
        world: "airlock:host/stores",
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::sandbox::keyvalue::operations::Bucket,
        },
    });
}
