//! What the `airlock` binary does, a file for each command.

mod certificates;
pub(crate) mod check;
mod entries;
mod guest;
mod listen;
mod recorders;
pub(crate) mod serve;
mod services;
mod settings_file;
pub(crate) mod store;
mod stores;
pub(crate) mod test;
mod topics;
