//! The guest's file over time: noticed, tried, judged, and which version a new connection gets.

pub mod assignment;
pub mod canary;
pub mod guest_file;
pub mod reload;
pub mod trial;
mod watch;
