//! The host's modules that face the network, without Wasmtime: it would make each build minutes
//! longer and is fuzzed by its own project.

#[path = "../../../host/src/limits"]
pub mod limits {
    pub mod wire;
}

#[path = "../../../host/src/talk"]
pub mod talk {
    pub mod conversation;
    pub mod framing;
    pub mod handler;
    mod patience;
}
