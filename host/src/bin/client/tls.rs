//! What the client trusts and shows, where it speaks TLS.

use std::path::PathBuf;
use std::sync::Arc;

use airlock::pem;
use anyhow::{Result, bail};
use clap::Args;
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

/// Options for `tls://`.
#[derive(Debug, Args)]
pub(crate) struct TlsOptions {
    /// With tls://: certificates that the server's has to come from, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// With tls://: the client's own certificate, then those of its issuers, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// With tls://: its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsOptions {
    /// A connection to a server of this name.
    pub(crate) fn connection(&self, host: &str) -> Result<ClientConnection> {
        let Some(ca) = &self.ca else {
            bail!("name the certificates that the server's has to come from with --ca FILE");
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(pem::roots(ca)?);
        let config = match (&self.cert, &self.key) {
            (Some(chain), Some(key)) => {
                let key = pem::private_key(key)?.key;
                builder.with_client_auth_cert(pem::certificates(chain)?, key)?
            }
            _ => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(host.to_owned())?;
        Ok(ClientConnection::new(Arc::new(config), name)?)
    }
}
