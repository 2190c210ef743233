//! What the `airlock` binary does, a file for each command.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod serve;
pub(crate) mod test;

use std::path::Path;

use airlock::guest_file::GuestFile;
use anyhow::{Context, Result};

fn read(file: &Path) -> Result<GuestFile> {
    GuestFile::read(file).with_context(|| format!("cannot read the guest `{}`", file.display()))
}
