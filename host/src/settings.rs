//! Every setting, defined once: what it is called, its kind and bounds, its default, its help and why
//! it is there. The option, its variable `AIRLOCK_*`, the key of a file, the schema of files and what
//! the pages say follow from that.
//!
//! A field of a group is an option of the command line; its first paragraph is the help, a second one
//! says what it protects. Defaults that are limits stand in `limits`.

pub mod address;
mod bounds;
pub mod door;
pub mod effective;
pub mod file;
pub mod keys;
pub mod parameters;
pub mod process;
pub mod schema;
pub mod service;
mod spelling;
pub mod store;
pub mod store_url;
pub mod topics;
pub mod values;

pub use service::Settings;
