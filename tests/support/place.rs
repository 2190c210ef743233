//! Where a server is to listen: at the door that is tested.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use airlock::settings::address::{Address, Scheme};
use airlock::talk::client::Endpoint;
use tempfile::TempDir;

use crate::authority::{Authority, Pair, shown};
use crate::tls_client::Trust;

/// Of WebSocket.
const PATH: &str = "/chat";

/// Through which door a test talks with its server, where it makes no difference to the test.
pub(crate) fn tested_door() -> Scheme {
    let name = std::env::var("AIRLOCK_DOOR").unwrap_or("tcp".to_owned());
    let mut all = Scheme::ALL.into_iter();
    let door = all.find(|scheme| door_name(*scheme) == name);
    door.unwrap_or_else(|| panic!("there is no door `{name}`"))
}

pub(crate) fn door_name(door: Scheme) -> String {
    door.to_string().trim_end_matches("://").to_owned()
}

/// Where a server is to listen, and what that takes.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) scheme: Scheme,
    /// As `--listen` has it.
    pub(crate) listen: String,
    /// Of a Unix socket.
    folder: Option<Arc<TempDir>>,
    encryption: Option<Arc<Encryption>>,
}

impl Place {
    pub(crate) fn new() -> Place {
        let scheme = tested_door();
        let unix = scheme == Scheme::Unix;
        let folder = unix.then(|| Arc::new(tempfile::tempdir().unwrap()));
        let encryption = scheme.is_encrypted().then(Encryption::shared);
        let mut place = Place {
            scheme,
            listen: "127.0.0.1:0".to_owned(),
            folder,
            encryption,
        };
        if let Some(path) = place.unix_path() {
            // Only of a port it is told that somebody listens.
            place.listen = format!("127.0.0.1:0,unix://{path}");
        } else {
            place.listen = place.at("127.0.0.1:0");
            if let Some(encryption) = &place.encryption {
                let [chain, key] = [&encryption.pair.chain, &encryption.pair.key];
                place.listen += &format!("?cert={}&key={}", shown(chain), shown(key));
            }
        }
        place
    }

    pub(crate) fn unix_path(&self) -> Option<String> {
        let folder = self.folder.as_ref();
        folder.map(|folder| shown(&folder.path().join("door.sock")))
    }

    /// An address and port as a URL.
    fn at(&self, address: &str) -> String {
        let path = if self.scheme.is_websocket() { PATH } else { "" };
        format!("{}{address}{path}", self.scheme)
    }

    /// Where a client finds the server that has this port.
    pub(crate) fn address(&self, port: SocketAddr) -> Address {
        let text = match self.unix_path() {
            Some(path) => format!("unix://{path}"),
            None => self.at(&port.to_string()),
        };
        text.parse().unwrap()
    }

    /// What the client binary is to be told of such an address.
    pub(crate) fn client_options(&self, address: &Address) -> Vec<String> {
        let address = match (&address.endpoint, &self.encryption) {
            (Endpoint::Ip(address), Some(_)) => self.at(&format!("localhost:{}", address.port())),
            (Endpoint::Ip(address), None) => self.at(&address.to_string()),
            (Endpoint::Unix(_), _) => address.to_string(),
        };
        let ca = self.encryption.iter().flat_map(|encryption| {
            [
                "--ca".to_owned(),
                shown(&encryption.authority.certificate()),
            ]
        });
        ["--connect".to_owned(), address]
            .into_iter()
            .chain(ca)
            .collect()
    }
}

/// The certificate of doors for TLS, and whoever trusts it.
pub(crate) struct Encryption {
    authority: Authority,
    pair: Pair,
    pub(crate) trust: Trust,
}

impl Encryption {
    /// One for all servers that there are: making it takes longer than most tests.
    pub(crate) fn shared() -> Arc<Encryption> {
        static SHARED: Mutex<Weak<Encryption>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let authority = Authority::new("Test CA");
            let new = Arc::new(Encryption {
                pair: authority.issue("server", &["localhost"]),
                trust: Trust::new(&authority),
                authority,
            });
            *shared = Arc::downgrade(&new);
            new
        })
    }
}
