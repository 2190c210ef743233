//! The host's modules that face the network, without Wasmtime: it would make each build minutes
//! longer and is fuzzed by its own project.

#[path = "../../../host/src/conversation.rs"]
pub mod conversation;
#[path = "../../../host/src/framing.rs"]
pub mod framing;
#[path = "../../../host/src/limits.rs"]
pub mod limits;
