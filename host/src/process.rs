//! This process among others: what the machine gives it, how it ends, and who takes over.

pub mod capacity;
pub(crate) mod connections;
pub mod heap;
mod interrupt;
pub mod listener;
pub mod room;
pub mod service_manager;
pub mod shutdown;
pub(crate) mod signal_stack;
pub mod takeover;
pub(crate) mod waiting;
