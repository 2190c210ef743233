//! What guests say to each other, across their connections: who hears what, and how much of it.

pub mod exchange;
pub mod hub;
pub(crate) mod member;
