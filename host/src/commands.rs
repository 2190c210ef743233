//! What the `airlock` binary does, a file for each command.

pub(crate) mod check;
mod guest;
mod listen;
pub(crate) mod serve;
pub(crate) mod test;
