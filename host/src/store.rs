//! Where guests keep what outlives their connections: keys and values, in stores that an operator
//! grants by name.
//!
//! A [`Backend`] keeps the entries of one store; a [`Bucket`](bucket::Bucket) is what a service was
//! granted of it, with the bounds that hold for each operation. Guests and WIT are none of its
//! concern.

mod backend;
pub mod bucket;
mod counter;
pub mod journal;
pub mod memory;
pub mod redis;
pub mod sqlite;
mod usage;

#[cfg(test)]
mod tests;

pub use backend::{Backend, Error, Page, Swapped};
