//! A door, where clients of a service come in: as one text, an address with parameters
//! (`unix:///run/airlock.sock?mode=0660`), or as a table of a file with the same as keys.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use ipnet::IpNet;

use crate::serve::listener::{MOST_BACKLOG, TcpOptions};
use crate::serve::tls::{CertificateFiles, ClientAuth, TlsFiles};
use crate::serve::unix_socket::UnixOptions;
use crate::serve::websocket::upgrade::Rules;
use crate::settings::address::{Address, Scheme};
use crate::settings::parameters::{self, Wrong};
use crate::settings::values::{Count, Mode, Network, Origin, Written, seconds, time};
use crate::talk::client::Endpoint;

/// The settings of one door.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DoorSettings {
    /// Where it is; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub address: Address,

    /// Who may connect to a Unix socket: its mode [default: what the umask leaves of 0777]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,

    /// The group of a Unix socket, by name or number [default: that of the process]
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Take clients of IPv6 alone at an address of IPv6
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    pub v6only: bool,

    /// Send replies at once, instead of waiting for more to send along
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub nodelay: bool,

    /// Ask the client's kernel for a sign of life after so long without one, and again as often
    /// [default: never]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub keepalive: Option<humantime::Duration>,

    /// Give a connection up when the client's kernel has acknowledged nothing for so long [default:
    /// the kernel's]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub user_timeout: Option<humantime::Duration>,

    /// Connections the kernel completes ahead of time [default: the service's]
    #[arg(long, value_name = "N")]
    pub backlog: Option<Count<MOST_BACKLOG>>,

    /// Share the port with other processes [default: the service's]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    pub reuse_port: Option<bool>,

    /// The certificate of a door for TLS, then those of its issuers, in PEM; several are for the hosts that
    /// they name
    #[arg(long, value_name = "FILE")]
    pub cert: Vec<PathBuf>,

    /// The private key of each certificate, in their order
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,

    /// Certificates that those of clients have to come from, in PEM [default: clients are asked for none]
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Whether clients have to show a certificate that comes from one of those
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = ClientAuth::Required)]
    pub client_auth: ClientAuth,

    /// Whose scripts may connect by WebSocket, as browsers write it (`https://example.org`); `*` are all
    /// [default: those of the same host]
    #[arg(long, value_name = "ORIGIN")]
    pub origins: Vec<Origin>,

    /// Take connections of proxies from these networks alone, which begin with a header of the PROXY
    /// protocol that says who the client is [default: clients connect themselves]
    #[arg(long, value_name = "NETWORK")]
    pub proxy_protocol: Vec<Network>,
}

impl DoorSettings {
    /// How its socket listens, if it is one of TCP, where the service says the same of all its doors.
    pub fn tcp(&self, backlog: u32, reuse_port: bool) -> TcpOptions {
        TcpOptions {
            backlog: self.backlog.map_or(backlog, Count::get),
            reuse_port: self.reuse_port.unwrap_or(reuse_port),
            v6only: self.v6only,
            nodelay: self.nodelay,
            keepalive: self.keepalive.map(Into::into),
            user_timeout: self.user_timeout.map(Into::into),
        }
    }

    /// What it needs for TLS, if it is a door for that.
    pub fn tls(&self) -> Option<TlsFiles> {
        let certificates = self.cert.iter().zip(&self.key);
        let certificates = certificates.map(|(chain, key)| CertificateFiles {
            chain: chain.clone(),
            key: key.clone(),
        });
        self.address.scheme.is_encrypted().then(|| TlsFiles {
            certificates: certificates.collect(),
            client_ca: self.client_ca.clone(),
            client_auth: self.client_auth,
        })
    }

    /// Which requests it takes, if it is a door for WebSocket.
    pub fn websocket(&self) -> Option<Rules> {
        self.address.scheme.is_websocket().then(|| Rules {
            path: self.address.path.clone(),
            origins: self
                .origins
                .iter()
                .map(|origin| origin.as_str().to_owned())
                .collect(),
        })
    }

    /// Where the proxies are that it is for, if it is for proxies.
    pub fn proxies(&self) -> Vec<IpNet> {
        self.proxy_protocol
            .iter()
            .map(|network| network.0)
            .collect()
    }

    /// The same of a Unix socket.
    pub fn unix(&self, backlog: u32) -> UnixOptions {
        UnixOptions {
            backlog: self.backlog.map_or(backlog, Count::get),
            mode: self.mode.map(Mode::bits),
            group: self.group.clone(),
        }
    }
}

const OVER_TCP: [Scheme; 4] = [Scheme::Tcp, Scheme::Tls, Scheme::Ws, Scheme::Wss];
const ENCRYPTED: [Scheme; 2] = [Scheme::Tls, Scheme::Wss];

/// Parameters that only some schemes have. All others are for each.
const ONLY: [(&str, &[Scheme]); 13] = [
    ("mode", &[Scheme::Unix]),
    ("group", &[Scheme::Unix]),
    ("v6only", &OVER_TCP),
    ("nodelay", &OVER_TCP),
    ("keepalive", &OVER_TCP),
    ("user-timeout", &OVER_TCP),
    ("reuse-port", &OVER_TCP),
    ("cert", &ENCRYPTED),
    ("key", &ENCRYPTED),
    ("client-ca", &ENCRYPTED),
    ("client-auth", &ENCRYPTED),
    ("origins", &[Scheme::Ws, Scheme::Wss]),
    ("proxy-protocol", &OVER_TCP),
];

impl DoorSettings {
    /// A door at an address, with these parameters by their names.
    ///
    /// # Errors
    /// Something is wrong with them.
    pub fn new(address: &str, parameters: &[(String, String)]) -> Result<DoorSettings, Wrong> {
        let known: Address = address.parse().map_err(Wrong::address)?;
        let fits = |name: &str| fits(name, known.scheme);
        let door: DoorSettings = parameters::parse("address", address, parameters, fits)?;
        let wrong = |parameter: &str, message| {
            Err(Wrong {
                parameter: Some(parameter.to_owned()),
                message,
            })
        };
        let scheme = door.address.scheme;
        match door.address.endpoint {
            Endpoint::Ip(address) if door.v6only && address.is_ipv4() => {
                wrong("v6only", format!("{address} is an address of IPv4"))
            }
            _ if scheme.is_encrypted() && door.cert.is_empty() => {
                let message = format!("{scheme} needs a certificate and its key");
                wrong("cert", message)
            }
            _ if door.cert.len() != door.key.len() => {
                let (certificates, keys) = (door.cert.len(), door.key.len());
                wrong(
                    "key",
                    format!(
                        "want one for each certificate: there are {certificates} certificates and {keys} keys"
                    ),
                )
            }
            _ if door.client_ca.is_none()
                && parameters.iter().any(|(name, _)| name == "client-auth") =>
            {
                wrong("client-auth", "needs `client-ca`".to_owned())
            }
            _ => Ok(door),
        }
    }
}

/// Whether an address of this scheme may have this parameter.
fn fits(name: &str, scheme: Scheme) -> Result<(), String> {
    let only = ONLY.iter().find(|(only, _)| *only == name);
    match only {
        Some((_, schemes)) if !schemes.contains(&scheme) => {
            let schemes: Vec<_> = schemes.iter().map(Scheme::to_string).collect();
            Err(format!("is for {}, not for {scheme}", schemes.join(", ")))
        }
        _ => Ok(()),
    }
}

/// A door, from its text.
///
/// # Errors
/// What is wrong with it.
pub fn door(text: &str) -> Result<DoorSettings, String> {
    let (address, parameters) = parameters::split(text);
    DoorSettings::new(address, &parameters).map_err(|wrong| wrong.to_string())
}

/// How doors are written.
pub(super) fn written() -> Written {
    Written {
        what: format!(
            "{}, with parameters as in \"unix:///run/airlock.sock?mode=0660\"",
            Address::written().what
        ),
        pattern: Some(
            "^(unix:.*/.+|((tcp|tls)://)?[^/?]+:[0-9]{1,5}(\\?.*)?|wss?://[^/?]+:[0-9]{1,5}(/[^?]*)?(\\?.*)?)$",
        ),
        ..Written::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_has_the_parameters_of_its_scheme() {
        let plain = door("127.0.0.1:9999").expect("an address");
        assert_eq!(door("tcp://127.0.0.1:9999"), Ok(plain.clone()));
        assert_eq!(door("127.0.0.1:9999?nodelay=true"), Ok(plain.clone()));
        assert!(plain.nodelay && !plain.v6only);
        let unix = door("unix:///run/a.sock?mode=0660&group=staff").expect("an address");
        assert_eq!(unix.mode.map(Mode::bits), Some(0o660));
        assert_eq!(unix.group.as_deref(), Some("staff"));
        let tcp = door(
            "tcp://[::]:80?v6only=true&keepalive=1m&user-timeout=90s&backlog=7&reuse-port=false",
        );
        let tcp = tcp.expect("an address");
        assert!(tcp.v6only);
        assert_eq!(tcp.keepalive.map(|time| time.as_secs()), Some(60));
        assert_eq!(tcp.user_timeout.map(|time| time.as_secs()), Some(90));
        assert_eq!(tcp.backlog.map(Count::get), Some(7));
        assert_eq!(tcp.reuse_port, Some(false));
        let proxies = door("[::]:80?proxy-protocol=10.1.2.3/8&proxy-protocol=192.0.2.1");
        let proxies = proxies.expect("an address").proxies();
        let shown: Vec<_> = proxies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "192.0.2.1/32"]);
    }

    #[test]
    fn what_is_wrong_with_a_door_is_said() {
        for (text, message) in [
            (
                "tls://127.0.0.1:1",
                "`cert`: tls:// needs a certificate and its key",
            ),
            (
                "tls://127.0.0.1:1?cert=a",
                "`key`: want one for each certificate: there are 1 certificates and 0 keys",
            ),
            (
                "tls://127.0.0.1:1?cert=a&key=b&client-auth=optional",
                "`client-auth`: needs `client-ca`",
            ),
            (
                "tls://127.0.0.1:1?cert=a&key=b&client-ca=c&client-auth=no",
                "`client-auth`: want one of required, optional, not `no`",
            ),
            (
                "127.0.0.1:1?cert=a",
                "`cert`: is for tls://, wss://, not for tcp://",
            ),
            (
                "127.0.0.1:1?origins=https://a.example",
                "`origins`: is for ws://, wss://, not for tcp://",
            ),
            (
                "ws://127.0.0.1:1?origins=a.example",
                "`origins`: want an origin like https://example.org, or *",
            ),
            (
                "wss://127.0.0.1:1/chat",
                "`cert`: wss:// needs a certificate and its key",
            ),
            (
                "127.0.0.1:1?mode=0660",
                "`mode`: is for unix://, not for tcp://",
            ),
            (
                "unix:/a?nodelay=true",
                "`nodelay`: is for tcp://, tls://, ws://, wss://, not for unix://",
            ),
            (
                "unix:/a?mod=0660",
                "`mod`: unknown parameter: did you mean `mode`?",
            ),
            ("unix:/a?zzz=1", "`zzz`: unknown parameter"),
            ("unix:/a?address=1", "`address`: unknown parameter"),
            ("unix:/a?mode=0660&mode=0600", "`mode`: is set twice"),
            ("unix:/a?mode=rw", "`mode`: want a mode like 0660"),
            ("unix:/a?mode=07777", "`mode`: want a mode like 0660"),
            (
                "[::]:1?v6only=yes",
                "`v6only`: `yes` is neither true nor false",
            ),
            ("[::]:1?v6only", "`v6only`: `` is neither true nor false"),
            (
                "0.0.0.0:1?v6only=true",
                "`v6only`: 0.0.0.0:1 is an address of IPv4",
            ),
            (
                "[::]:1?keepalive=500ms",
                "`keepalive`: want whole seconds, from 1s to 9h",
            ),
            (
                "[::]:1?proxy-protocol=10.0.0.0/33",
                "`proxy-protocol`: want a network like 10.0.0.0/8, or an address",
            ),
            (
                "[::]:1?backlog=0",
                "`backlog`: want a number from 1 to 2147483647",
            ),
        ] {
            assert_eq!(door(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_door_becomes_a_text_and_a_door_again() {
        let given = [("group", "a b&c,d"), ("mode", "0600")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let made = DoorSettings::new("unix:/run/a.sock", &given);
        let text = parameters::text("unix:/run/a.sock", &given);
        assert_eq!(text, "unix:/run/a.sock?group=a+b%26c%2Cd&mode=0600");
        assert_eq!(door(&text).ok(), made.ok());
    }
}
