//! The doors of the servers that are started to be loaded: where they listen, and with what.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use airlock::settings::address::{Address, Scheme};
use airlock::talk::client::Endpoint;
use tempfile::TempDir;

/// A door, for several servers.
pub struct Door {
    /// What is spoken there.
    scheme: Scheme,
    /// What it needs: a certificate, or room for the files of sockets.
    folder: Option<TempDir>,
}

impl Door {
    /// Plain TCP.
    pub const TCP: Door = Door {
        scheme: Scheme::Tcp,
        folder: None,
    };

    /// With a new certificate, where it needs one.
    ///
    /// # Errors
    /// There is no folder for temporary files, or no `openssl`.
    pub fn new(scheme: Scheme) -> io::Result<Door> {
        let folder = TempDir::new()?;
        if scheme.is_encrypted() {
            make_certificate(folder.path())?;
        }
        Ok(Door {
            scheme,
            folder: Some(folder),
        })
    }

    /// Where the server of this name is to listen: at a path of its own, or any free port.
    pub fn address(&self, name: &str) -> Address {
        let endpoint = match &self.folder {
            Some(folder) if self.scheme == Scheme::Unix => {
                let path = folder.path().join(format!("{name}.sock"));
                Endpoint::Unix(Some(path.into()))
            }
            _ => SocketAddr::from(([127, 0, 0, 1], 0)).into(),
        };
        Address {
            scheme: self.scheme,
            endpoint,
            path: "/".to_owned(),
        }
    }

    /// The same, as its option.
    pub(crate) fn listen(&self, name: &str) -> String {
        let Address {
            scheme, endpoint, ..
        } = self.address(name);
        match &self.folder {
            _ if scheme == Scheme::Unix => format!("--listen={endpoint}"),
            Some(folder) if scheme.is_encrypted() => {
                let folder = folder.path().display();
                format!(
                    "--listen={scheme}{endpoint}?cert={folder}/{CERTIFICATE}&key={folder}/{KEY}"
                )
            }
            _ => format!("--listen={scheme}{endpoint}"),
        }
    }
}

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "certificate.pem.key";

/// Of the kind that costs a server least, and that most have: ECDSA with P-256.
fn make_certificate(folder: &Path) -> io::Result<()> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "30"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-keyout", KEY, "-out", CERTIFICATE])
        .current_dir(folder)
        .output();
    let cannot = |why: &str| io::Error::other(format!("`openssl` makes no certificate: {why}"));
    let output = made.map_err(|error| cannot(&error.to_string()))?;
    if !output.status.success() {
        return Err(cannot(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(())
}
