//! A store that the guests of a service are granted: as one text, `NAME=URL` with parameters
//! (`book=file:/var/lib/airlock/book.db?durability=relaxed`), or as a key of a file, whose value is such
//! a URL or a table with the same.

use std::path::PathBuf;

use clap::Args;

use crate::limits::guest::STORE_BYTES;
use crate::redis::address::{RedisAddress, RedisUrl};
use crate::settings::parameters::{self, Wrong};
use crate::settings::store_url::StoreUrl;
use crate::settings::values::{Count, MOST_NAME_LENGTH, Name, StoreSize, Written};
use crate::store::sqlite::Durability;

/// The settings of one store.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StoreSettings {
    /// What guests call it.
    #[arg(skip)]
    pub name: String,

    /// Where it is kept: `memory:` is empty at every start, `file:/PATH` is a file, `redis://HOST:PORT`,
    /// `rediss://HOST:PORT` (with TLS) and `redis+unix:///PATH` are a Redis or a Valkey
    #[arg(long, value_name = "URL", required = true)]
    pub url: StoreUrl,

    /// Grant only the keys that begin with this name and a colon, which guests do not see [default:
    /// all keys; of a Redis, those with the store's name]
    #[arg(long, value_name = "NAME")]
    pub prefix: Option<Name>,

    /// When a write is acknowledged: `commit` is when it is on the disk, `relaxed` at once, and the last
    /// second is lost when the machine dies
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Durability::Commit)]
    pub durability: Durability,

    /// The most bytes of keys and values, each of which counts 64 more
    ///
    /// Protects the disk, or the machine's memory, from the guest.
    #[arg(long, value_name = "SIZE", default_value_t = STORE_BYTES.into())]
    pub quota: StoreSize,

    /// Which database of the Redis [default: 0]
    #[arg(long, value_name = "NUMBER")]
    pub db: Option<Count>,

    /// A file with USER:PASSWORD, or a password alone, for the Redis [default: none]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,

    /// A file with the certificates that the one of the Redis has to come from, in PEM: for rediss://
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl StoreSettings {
    /// The store of this name, with these parameters by theirs.
    ///
    /// # Errors
    /// Something is wrong with them.
    pub fn new(
        name: &str,
        url: &str,
        parameters: &[(String, String)],
    ) -> Result<StoreSettings, Wrong> {
        let known: StoreUrl = url.parse().map_err(Wrong::address)?;
        let fits = |parameter: &str| {
            let (is_file, is_redis) = match known {
                StoreUrl::Memory => (false, false),
                StoreUrl::File(_) => (true, false),
                StoreUrl::Redis(_) => (false, true),
            };
            let wanted = match parameter {
                "durability" if !is_file => "file:",
                "quota" if is_redis => "memory: and file: (a Redis has its `maxmemory`)",
                "db" | "credentials" if !is_redis => "a Redis",
                "ca" if !matches!(known, StoreUrl::Redis(RedisUrl::Tls(_))) => "rediss://",
                _ => return Ok(()),
            };
            Err(format!("is for {wanted}, not for {}", known.scheme()))
        };
        let mut store: StoreSettings = parameters::parse("url", url, parameters, fits)?;
        store.name = name.to_owned();
        if let (StoreUrl::Redis(RedisUrl::Tls(_)), None) = (&store.url, &store.ca) {
            return Err(parameters::no_ca());
        }
        Ok(store)
    }

    /// The Redis at this URL, with what else it needs.
    pub fn redis(&self, url: &RedisUrl) -> RedisAddress {
        RedisAddress {
            url: url.clone(),
            database: self.db.map_or(0, Count::get),
            credentials: self.credentials.clone(),
            ca: self.ca.clone(),
        }
    }

    /// What the keys begin with, with a colon, that are granted. In a Redis, stores of several names
    /// are several.
    pub fn prefix(&self) -> Option<&str> {
        let named = matches!(self.url, StoreUrl::Redis(_)).then_some(&*self.name);
        self.prefix.as_ref().map(Name::as_str).or(named)
    }

    /// Whether both are one file and have it kept in different ways.
    pub(super) fn contradicts(&self, other: &StoreSettings) -> bool {
        matches!(self.url, StoreUrl::File(_))
            && self.url == other.url
            && (self.durability, self.quota) != (other.durability, other.quota)
    }
}

/// A store, from its text.
///
/// # Errors
/// What is wrong with it.
pub fn store(text: &str) -> Result<StoreSettings, String> {
    let Some((name, url)) = text.split_once('=') else {
        return Err("want NAME=URL".to_owned());
    };
    check_name(name)?;
    let (url, parameters) = parameters::split(url);
    StoreSettings::new(name, url, &parameters).map_err(|wrong| wrong.to_string())
}

/// Whether a store may be called so.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let named: Result<Name, _> = name.parse();
    named.map(|_| ()).map_err(|_| {
        format!(
            "`{name}` is not a store's name: want at most {MOST_NAME_LENGTH} letters, digits, `-` \
             and `_`"
        )
    })
}

/// How the URL of a store is written where it stands alone.
pub(super) fn written() -> Written {
    Written {
        what: format!(
            "{}, with parameters as in \"{}?durability=relaxed\"",
            StoreUrl::written().what,
            StoreUrl::FILE
        ),
        pattern: Some("^(memory:|file:/[^?]+|redis(s|\\+unix)?://[^?]+)(\\?.*)?$"),
        ..Written::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_a_name_a_url_and_parameters() {
        let plain = store("a=memory:").expect("a store");
        assert_eq!((&*plain.name, &plain.url), ("a", &StoreUrl::Memory));
        assert_eq!(plain.quota.bytes(), STORE_BYTES);
        let all = store("b-1=file:/a b.db?prefix=p&durability=relaxed&quota=1MiB");
        let all = all.expect("a store");
        assert_eq!(all.url, StoreUrl::File("/a b.db".into()));
        assert_eq!(all.prefix.as_ref().map(Name::as_str), Some("p"));
        assert_eq!(all.durability, Durability::Relaxed);
        assert_eq!(all.quota.bytes(), 1 << 20);
        let url = store("c=file:///a.db").expect("a store").url;
        assert_eq!(url, StoreUrl::File("/a.db".into()));
    }

    #[test]
    fn what_is_wrong_with_a_store_is_said() {
        for (text, message) in [
            ("memory:", "want NAME=URL"),
            (
                "=memory:",
                "`` is not a store's name: want at most 64 letters, digits, `-` and `_`",
            ),
            (
                "a=etcd:",
                "want memory:, a file, like file:/var/lib/airlock/book.db, or a Redis, like \
                 redis://127.0.0.1:6379",
            ),
            (
                "a=file:book.db",
                "want a whole path, like file:/var/lib/airlock/book.db",
            ),
            (
                "a=file:/",
                "want a whole path, like file:/var/lib/airlock/book.db",
            ),
            (
                "a=memory:?durability=commit",
                "`durability`: is for file:, not for memory:",
            ),
            (
                "a=redis://host?quota=1MiB",
                "`quota`: is for memory: and file: (a Redis has its `maxmemory`), not for redis://",
            ),
            ("a=file:/b?db=1", "`db`: is for a Redis, not for file:"),
            (
                "a=redis://host?ca=a",
                "`ca`: is for rediss://, not for redis://",
            ),
            (
                "a=rediss://host",
                "`ca`: rediss:// needs the certificates that the server's has to come from",
            ),
            (
                "a=file:/b?durability=later",
                "`durability`: want one of commit, relaxed, not `later`",
            ),
            (
                "a=file:/b?quoat=1MiB",
                "`quoat`: unknown parameter: did you mean `quota`?",
            ),
            (
                "a=file:/b?prefix=a:b",
                "`prefix`: want at most 64 letters, digits, `-` and `_`",
            ),
        ] {
            assert_eq!(store(text), Err(message.to_owned()), "{text}");
        }
    }
}
