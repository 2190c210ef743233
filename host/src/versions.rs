//! The guest's file over time: noticed, tried, judged, and which version a new connection gets.

pub mod assignment;
pub mod canary;
pub mod following;
pub mod guest_file;
pub mod reload;
pub mod trial;
pub(crate) mod watch;
