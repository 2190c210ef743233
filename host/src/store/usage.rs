//! How much a store holds of what it may hold.

use crate::limits::guest::STORE_ENTRY_BYTES;
use crate::store::backend::Error;

/// What an entry counts.
pub(super) fn entry_bytes(key: &str, value_bytes: usize) -> u64 {
    (key.len() + value_bytes) as u64 + STORE_ENTRY_BYTES
}

/// What there is in use when `new` has taken the place of `old`.
///
/// # Errors
/// That is more than the quota, and more than before.
pub(super) fn replaced(used: u64, quota: u64, old: u64, new: u64) -> Result<u64, Error> {
    let after = used.saturating_sub(old).saturating_add(new);
    if after > quota && new > old {
        return Err(Error::Quota);
    }
    Ok(after)
}
