//! Load on line servers, and what it took.
//!
//! One run opens connections to one server, loads it in one [mode](plan::Mode) and has every answer
//! checked. [`turns`] loads several servers, such as Airlock and its native [`twin`], round for
//! round. What is printed of it is [`report`]'s and [`plot`]'s.
//!
//! `airlock-bench` is the command line on top. In `benches` are programs that run by themselves: what
//! the parts of a connection cost, and the comparison with the servers in other languages of `peers`.

mod churn;
mod client;
mod connect;
pub mod cores;
pub mod door;
mod epoll_twin;
mod events;
pub mod fault;
mod haproxy;
mod lines;
mod load;
pub mod measured;
pub mod open;
pub mod options;
mod pace;
pub mod plan;
pub mod plot;
pub mod program;
pub mod progress;
pub mod report;
pub mod servers;
mod store_twin;
mod stream;
pub mod talk;
mod trust;
pub mod turns;
pub mod twin;
