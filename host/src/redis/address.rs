//! Where a Redis is, `redis://HOST:PORT`, `rediss://HOST:PORT` or `redis+unix:///PATH`, and as whom it
//! is spoken to.

use std::fmt;
use std::fs;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_pki_types::ServerName;
use socket2::SockAddr;

use crate::pem;

/// The port of a Redis, if none is given.
const PORT: u16 = 6379;

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisUrl {
    /// Over TCP.
    Tcp(Host),
    /// Over TLS over TCP.
    Tls(Host),
    /// At a Unix socket.
    Unix(PathBuf),
}

/// A machine and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// As it is written: it is looked up whenever we have to connect anew.
    pub name: String,
    /// Where it listens there.
    pub port: u16,
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<RedisUrl, String> {
        let (scheme, place) = text.split_once("://").unwrap_or((text, ""));
        match scheme {
            "redis" => Ok(RedisUrl::Tcp(place.parse()?)),
            "rediss" => Ok(RedisUrl::Tls(place.parse()?)),
            "redis+unix" if place.starts_with('/') => Ok(RedisUrl::Unix(place.into())),
            _ => Err(format!("want {}", RedisUrl::WANTED)),
        }
    }
}

impl RedisUrl {
    /// What is wanted of one.
    pub const WANTED: &str = "redis://HOST:PORT, rediss://HOST:PORT or redis+unix:///PATH";
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Host, String> {
        if text.contains('@') {
            return Err(
                "everybody on this machine could read a password here: write USER:PASSWORD, or the \
                 password alone, into a file, and name it with ?credentials=FILE"
                    .to_owned(),
            );
        }
        let text = text.strip_suffix('/').unwrap_or(text);
        if let Some((_, number)) = text.split_once('/') {
            return Err(format!(
                "the number of a database is a parameter: ?db={number}"
            ));
        }
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (name, port) = match bracketed {
            Some(split) => split,
            None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
        };
        let port = match port {
            "" => Some(PORT),
            port => port.strip_prefix(':').and_then(|port| port.parse().ok()),
        };
        match port {
            Some(port) if !name.is_empty() => Ok(Host {
                name: name.to_owned(),
                port,
            }),
            _ => Err(format!(
                "want a host and a port, like redis.internal:{PORT}"
            )),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisUrl::Tcp(host) => write!(f, "redis://{host}"),
            RedisUrl::Tls(host) => write!(f, "rediss://{host}"),
            RedisUrl::Unix(path) => write!(f, "redis+unix://{}", path.display()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

/// A server, and how to come to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// Where it is.
    pub url: RedisUrl,
    /// Which of its databases.
    pub database: u32,
    /// A file with `USER:PASSWORD`, or a password alone.
    pub credentials: Option<PathBuf>,
    /// For TLS, and nothing else: certificates that the server's has to come from.
    pub ca: Option<PathBuf>,
}

/// What a connection needs, with all files read.
pub(crate) struct Target {
    url: RedisUrl,
    pub(crate) database: u32,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Target {
    /// Reads the files that the address names.
    ///
    /// # Errors
    /// In words: which file is wrong.
    pub(crate) fn new(address: &RedisAddress) -> Result<Target, String> {
        let (user, password) = match &address.credentials {
            Some(file) => read_credentials(file)?,
            None => (None, None),
        };
        let tls = match (&address.url, &address.ca) {
            (RedisUrl::Tls(host), Some(ca)) => Some(tls(&host.name, ca)?),
            (RedisUrl::Tls(_), None) => return Err("TLS needs `ca`".to_owned()),
            _ => None,
        };
        Ok(Target {
            url: address.url.clone(),
            database: address.database,
            user,
            password,
            tls,
        })
    }

    /// Where to connect to, in this order. Asks the system's resolver, which may take its time.
    ///
    /// # Errors
    /// In words: the name is not known, or the path is too long.
    pub(crate) fn resolve(&self) -> Result<Vec<SockAddr>, String> {
        match &self.url {
            RedisUrl::Tcp(Host { name, port }) | RedisUrl::Tls(Host { name, port }) => {
                let found = (name.as_str(), *port).to_socket_addrs();
                let found = found.map_err(|error| format!("`{name}`: {error}"))?;
                Ok(found.map(SockAddr::from).collect())
            }
            RedisUrl::Unix(path) => {
                let address = SockAddr::unix(path);
                let address = address.map_err(|error| format!("`{}`: {error}", path.display()))?;
                Ok(vec![address])
            }
        }
    }
}

/// `USER:PASSWORD`, or a password alone.
fn read_credentials(file: &Path) -> Result<(Option<String>, Option<String>), String> {
    let name = file.display();
    let text =
        fs::read_to_string(file).map_err(|error| format!("cannot read `{name}`: {error}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains('\n') {
        return Err(format!(
            "`{name}` has to be one line: USER:PASSWORD, or the password alone"
        ));
    }
    Ok(match text.split_once(':') {
        Some((user, password)) => (Some(user.to_owned()), Some(password.to_owned())),
        None => (None, Some(text.to_owned())),
    })
}

fn tls(host: &str, ca: &Path) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let roots = pem::roots(ca).map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("`{host}` is no name that a certificate may have"))?;
    Ok((Arc::new(config), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_what_is_wrong_is_said() {
        for (text, written) in [
            ("redis://localhost", "redis://localhost:6379"),
            ("redis://127.0.0.1:7000/", "redis://127.0.0.1:7000"),
            ("rediss://[::1]:7000", "rediss://[::1]:7000"),
            ("redis+unix:///run/r.sock", "redis+unix:///run/r.sock"),
        ] {
            let url: RedisUrl = text.parse().expect("a URL");
            assert_eq!(url.to_string(), written);
        }
        for (text, part) in [
            ("redis://me:secret@host", "?credentials=FILE"),
            ("redis://", "want a host and a port"),
            ("redis://host:port", "want a host and a port"),
            ("redis://[::1]7", "want a host and a port"),
            ("redis://host/3", "?db=3"),
            ("redis+unix://run/redis.sock", "redis+unix:///PATH"),
            ("memcached://host", "want redis://HOST:PORT"),
        ] {
            let error = text.parse::<RedisUrl>().expect_err("no URL");
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("secret"));
        }
    }
}
