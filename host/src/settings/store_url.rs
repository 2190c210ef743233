//! Where a store is kept, as a URL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::redis::address::RedisUrl;

/// Where a store is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// In memory, for as long as it is granted.
    Memory,
    /// In a file.
    File(PathBuf),
    /// In a Redis, or a Valkey.
    Redis(RedisUrl),
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<StoreUrl, String> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(StoreUrl::Memory),
            Some(("file", path)) => {
                // As RFC 8089 has it too, without a host.
                let path = path.strip_prefix("//").unwrap_or(path);
                let is_file = !path.ends_with('/') && Path::new(path).is_absolute();
                match is_file {
                    true => Ok(StoreUrl::File(path.into())),
                    false => Err(format!("want a whole path, like {}", StoreUrl::FILE)),
                }
            }
            Some((scheme, _)) if scheme.starts_with("redis") => text.parse().map(StoreUrl::Redis),
            _ => Err(format!("want {}", StoreUrl::WANTED)),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Memory => f.write_str("memory:"),
            StoreUrl::File(path) => write!(f, "file:{}", path.display()),
            StoreUrl::Redis(url) => url.fmt(f),
        }
    }
}

impl StoreUrl {
    /// What it begins with.
    pub(super) fn scheme(&self) -> &'static str {
        match self {
            StoreUrl::Memory => "memory:",
            StoreUrl::File(_) => "file:",
            StoreUrl::Redis(RedisUrl::Tcp(_)) => "redis://",
            StoreUrl::Redis(RedisUrl::Tls(_)) => "rediss://",
            StoreUrl::Redis(RedisUrl::Unix(_)) => "redis+unix://",
        }
    }

    pub(super) const FILE: &str = "file:/var/lib/airlock/book.db";
    const WANTED: &str = "memory:, a file, like file:/var/lib/airlock/book.db, or a Redis, like \
                          redis://127.0.0.1:6379";
}
