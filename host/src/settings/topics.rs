//! The topics of which the guests of a service hear each other: where what they publish goes, as one
//! text, a URL with parameters (`redis://127.0.0.1:6379?name=chat`).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::redis::address::{RedisAddress, RedisUrl};
use crate::settings::parameters::{self, Wrong};
use crate::settings::values::{Name, Written};

/// The settings of a service's topics.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TopicsSettings {
    /// Where it goes: `memory:` is to the connections of this process, `redis://HOST:PORT`,
    /// `rediss://HOST:PORT` (with TLS) and `redis+unix:///PATH` to those of all that name the same Redis or
    /// Valkey
    #[arg(long, value_name = "URL", required = true)]
    pub url: TopicsUrl,

    /// Services with the same name here have the same topics [default: the service's own name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// A file with USER:PASSWORD, or a password alone, for the Redis [default: none]
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,

    /// A file with the certificates that the one of the Redis has to come from, in PEM: for rediss://
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Where what is published goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicsUrl {
    /// To whoever is connected to this process.
    Memory,
    /// To whoever is connected to a process that names the same Redis, or Valkey.
    Redis(RedisUrl),
}

impl FromStr for TopicsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<TopicsUrl, String> {
        match text {
            "memory:" => Ok(TopicsUrl::Memory),
            redis if redis.starts_with("redis") => redis.parse().map(TopicsUrl::Redis),
            _ => Err(format!("want {}", TopicsUrl::WANTED)),
        }
    }
}

impl fmt::Display for TopicsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopicsUrl::Memory => f.write_str("memory:"),
            TopicsUrl::Redis(url) => url.fmt(f),
        }
    }
}

impl TopicsUrl {
    const WANTED: &str = "memory:, or a Redis, like redis://127.0.0.1:6379";
}

impl TopicsSettings {
    /// The topics at this URL, with these parameters by their names.
    ///
    /// # Errors
    /// Something is wrong with them.
    fn new(url: &str, parameters: &[(String, String)]) -> Result<TopicsSettings, Wrong> {
        let known: TopicsUrl = url.parse().map_err(Wrong::address)?;
        let is_tls = matches!(known, TopicsUrl::Redis(RedisUrl::Tls(_)));
        let fits = |parameter: &str| {
            let wanted = match parameter {
                "credentials" if known == TopicsUrl::Memory => "a Redis",
                "ca" if !is_tls => "rediss://",
                _ => return Ok(()),
            };
            Err(format!("is for {wanted}, not for {known}"))
        };
        let topics: TopicsSettings = parameters::parse("url", url, parameters, fits)?;
        if is_tls && topics.ca.is_none() {
            return Err(parameters::no_ca());
        }
        Ok(topics)
    }

    /// The Redis at this URL, with what else it needs. (A message is for all of its databases.)
    pub fn redis(&self, url: &RedisUrl) -> RedisAddress {
        RedisAddress {
            url: url.clone(),
            database: 0,
            credentials: self.credentials.clone(),
            ca: self.ca.clone(),
        }
    }

    /// What services have in common that have the same topics.
    pub fn name<'a>(&'a self, service: &'a str) -> &'a str {
        self.name.as_ref().map_or(service, Name::as_str)
    }
}

/// Topics, from their text.
///
/// # Errors
/// What is wrong with it.
pub fn topics(text: &str) -> Result<TopicsSettings, String> {
    let (url, parameters) = parameters::split(text);
    TopicsSettings::new(url, &parameters).map_err(|wrong| wrong.to_string())
}

/// How that is written.
pub(super) fn written() -> Written {
    Written {
        what: format!(
            "{}, with parameters as in \"memory:?name=chat\"",
            TopicsUrl::WANTED
        ),
        pattern: Some("^(memory:|redis(s|\\+unix)?://[^?]+)(\\?.*)?$"),
        ..Written::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_have_a_url_and_a_name() {
        let plain = topics("memory:").expect("topics");
        assert_eq!(
            (plain.url.clone(), plain.name("greeter")),
            (TopicsUrl::Memory, "greeter")
        );
        let named = topics("memory:?name=chat").expect("topics");
        assert_eq!(named.name("greeter"), "chat");
    }

    #[test]
    fn what_is_wrong_with_them_is_said() {
        for (text, message) in [
            (
                "chat",
                "want memory:, or a Redis, like redis://127.0.0.1:6379",
            ),
            (
                "memory:chat",
                "want memory:, or a Redis, like redis://127.0.0.1:6379",
            ),
            ("memory:?ca=a", "`ca`: is for rediss://, not for memory:"),
            (
                "memory:?credentials=a",
                "`credentials`: is for a Redis, not for memory:",
            ),
            (
                "rediss://host",
                "`ca`: rediss:// needs the certificates that the server's has to come from",
            ),
            ("redis://host?db=1", "`db`: unknown parameter"),
            (
                "memory:?nmae=a",
                "`nmae`: unknown parameter: did you mean `name`?",
            ),
            (
                "memory:?name=a:b",
                "`name`: want at most 64 letters, digits, `-` and `_`",
            ),
        ] {
            assert_eq!(topics(text), Err(message.to_owned()), "{text}");
        }
    }
}
