//! Addresses to listen on or to connect to, each with its scheme: `127.0.0.1:9999`,
//! `tcp://[::1]:9999`, `unix:///run/airlock.sock`.

use std::ffi::OsStr;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use socket2::SockAddr;

use crate::settings::spelling::nearest;
use crate::talk::client::Endpoint;

/// What is spoken at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Lines over TCP.
    Tcp,
    /// Lines over a Unix socket.
    Unix,
    /// Lines over TLS over TCP.
    Tls,
    /// Messages of WebSocket over TCP.
    Ws,
    /// Messages of WebSocket over TLS over TCP.
    Wss,
}

impl Scheme {
    /// All.
    pub const ALL: [Scheme; 5] = [
        Scheme::Tcp,
        Scheme::Unix,
        Scheme::Tls,
        Scheme::Ws,
        Scheme::Wss,
    ];

    /// Whether TLS goes first.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Scheme::Tls | Scheme::Wss)
    }

    /// Whether what is said are messages of WebSocket.
    pub fn is_websocket(self) -> bool {
        matches!(self, Scheme::Ws | Scheme::Wss)
    }

    /// Without what ends it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Tcp => "tcp",
            Scheme::Unix => "unix",
            Scheme::Tls => "tls",
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.name())
    }
}

impl FromStr for Scheme {
    type Err = String;

    /// From its name.
    fn from_str(name: &str) -> Result<Scheme, String> {
        let mut all = Scheme::ALL.into_iter();
        if let Some(scheme) = all.find(|scheme| scheme.name() == name) {
            return Ok(scheme);
        }
        let known = Scheme::ALL.map(|scheme| (scheme.name(), scheme));
        Err(match nearest(name, known.into_iter()) {
            Some((_, near)) => format!("unknown scheme `{name}://`: did you mean `{near}`?"),
            None => {
                let known = Scheme::ALL.map(|scheme| scheme.to_string());
                format!("unknown scheme `{name}://`: there are {}", known.join(", "))
            }
        })
    }
}

/// An address with its scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// What is spoken there.
    pub scheme: Scheme,
    /// Where that is.
    pub endpoint: Endpoint,
    /// What is asked for there, of WebSocket; `/` if nothing else is said.
    pub path: String,
}

impl Address {
    /// Whether whoever listens there is to be given any free port.
    pub fn is_any_port(&self) -> bool {
        matches!(self.endpoint, Endpoint::Ip(address) if address.port() == 0)
    }

    /// As the system has it.
    ///
    /// # Errors
    /// In words: a path that is too long.
    pub fn socket_address(&self) -> Result<SockAddr, String> {
        match &self.endpoint {
            Endpoint::Ip(address) => Ok((*address).into()),
            Endpoint::Unix(path) => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                SockAddr::unix(path).map_err(|_| {
                    format!(
                        "`{}` is too long: the path of a Unix socket may have {SOCKET_PATH_BYTES} bytes",
                        path.display()
                    )
                })
            }
        }
    }
}

/// What `sockaddr_un` has room for, without the byte that ends it (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address {
            scheme: Scheme::Tcp,
            endpoint: address.into(),
            path: String::new(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

impl FromStr for Address {
    type Err = String;

    /// A path may have bytes as in a URL (`%20`).
    fn from_str(text: &str) -> Result<Address, String> {
        if let Some((_, parameters)) = text.split_once('?') {
            return Err(format!("an address has no parameters here: `{parameters}`"));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((name, rest)) => (name.parse()?, rest),
            None => match text.strip_prefix("unix:") {
                Some(path) => (Scheme::Unix, path),
                None => (Scheme::Tcp, text),
            },
        };
        let (place, path) = match rest.find('/') {
            Some(slash) if scheme.is_websocket() => rest.split_at(slash),
            _ if scheme.is_websocket() => (rest, "/"),
            _ => (rest, ""),
        };
        if let Some(wrong) = path
            .chars()
            .find(|&one| !one.is_ascii_graphic() || one == '#')
        {
            return Err(format!(
                "the path `{path}` has `{wrong}`: write it as browsers do, with %{:02X}",
                u32::from(wrong)
            ));
        }
        let endpoint = match scheme {
            Scheme::Tcp | Scheme::Tls | Scheme::Ws | Scheme::Wss => {
                Endpoint::from(host_and_port(place)?)
            }
            Scheme::Unix => Endpoint::Unix(Some(self::path(place)?.as_path().into())),
        };
        let address = Address {
            scheme,
            endpoint,
            path: path.to_owned(),
        };
        address.socket_address()?;
        Ok(address)
    }
}

fn path(text: &str) -> Result<std::path::PathBuf, String> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    match bytes.first() {
        Some(b'@' | 0) => Err(
            "abstract Unix sockets have neither owner nor mode, so anybody could connect: want a \
             path, like unix:///run/airlock.sock"
                .to_owned(),
        ),
        Some(b'/') if !bytes.contains(&0) && !bytes.ends_with(b"/") => {
            Ok(OsStr::from_bytes(&bytes).into())
        }
        _ => Err("want the whole path of a Unix socket, like unix:///run/airlock.sock".to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("want ADDR:PORT, as in 127.0.0.1:9999 or [::1]:9999")?;
    let port: u16 = port
        .parse()
        .map_err(|_| format!("`{port}` is not a port: want a number from 0 to 65535"))?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(format!(
            "write an IPv6 address in brackets: [{host}]:{port}"
        ));
    }
    (bare.unwrap_or(host), port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("`{host}` is not an address of this machine or a name it knows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<String, String> {
        text.parse().map(|address: Address| address.to_string())
    }

    #[test]
    fn an_address_that_cannot_be_used_is_named() {
        let long = format!("unix:///{}", "x".repeat(107));
        for (text, part) in [
            ("127.0.0.1:9999999", "`9999999` is not a port"),
            ("127.0.0.1:-1", "`-1` is not a port"),
            ("127.0.0.1:", "`` is not a port"),
            ("9999", "want ADDR:PORT"),
            ("::1:9999", "[::1]:9999"),
            ("300.0.0.1:9999", "`300.0.0.1` is not an address"),
            ("tcp://127.0.0.1", "want ADDR:PORT"),
            ("tcps://127.0.0.1:1", "`tcps://`: did you mean `tcp://`?"),
            (
                "gopher://127.0.0.1:1",
                "`gopher://`: there are tcp://, unix://, tls://, ws://, wss://",
            ),
            ("unix://run/airlock.sock", "want the whole path"),
            ("unix:airlock.sock", "want the whole path"),
            ("unix:///run/", "want the whole path"),
            ("unix:", "want the whole path"),
            ("unix:///run/a%00b", "want the whole path"),
            ("unix:@airlock", "abstract"),
            ("unix://@airlock", "abstract"),
            ("unix:%00airlock", "abstract"),
            ("ws://127.0.0.1/chat", "want ADDR:PORT"),
            ("ws://127.0.0.1:1/a b", "the path `/a b` has ` `: write it"),
            (long.as_str(), "may have 107 bytes"),
        ] {
            let error = address(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_is_shown_as_it_may_be_written() {
        for (text, shown) in [
            ("[::1]:0", "[::1]:0"),
            ("tcp://[::]:80", "[::]:80"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a%20b%3f.sock", "unix:/run/a b?.sock"),
        ] {
            assert_eq!(address(text), Ok(shown.to_owned()));
        }
    }
}
