//! TLS at a door: its certificates and its rules, which may be replaced while it serves.

pub(crate) mod certificate;
pub(crate) mod failure;
pub(crate) mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use clap::ValueEnum;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use crate::limits::process::CERTIFICATE_NOTICE_TIME;
use crate::pem::{self, PemError};
use crate::serve::tls::certificate::{CertificateError, ServerCertificate};

/// Where what a door needs for TLS is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// At least one; the first is for clients that name no host, or one that none is for.
    pub certificates: Vec<CertificateFiles>,
    /// Certificates that those of clients have to come from; without, clients are asked for none.
    pub client_ca: Option<PathBuf>,
    /// Whether clients have to show one.
    pub client_auth: ClientAuth,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's own certificate, then each one's issuer.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ClientAuth {
    /// Who has none is turned away.
    #[default]
    Required,
    /// Who has none is let in all the same.
    Optional,
}

/// Why a door has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or its key is wrong.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The file of certificates for clients is.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The certificates for clients do not do.
    #[error("`{}` is no list of certificates for clients: {}", .0.display(), .1)]
    ClientCa(PathBuf, String),
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// The TLS of a door.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Tls {
    /// Reads the files, and checks them.
    ///
    /// # Errors
    /// One line that says which file is wrong and why.
    pub fn new(files: TlsFiles) -> Result<Arc<Tls>, TlsError> {
        let current = load(&files, SystemTime::now())?;
        let tls = Tls {
            files,
            current: RwLock::new(current),
        };
        tls.warn(SystemTime::now());
        Ok(Arc::new(tls))
    }

    /// What a new connection gets.
    pub fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }

    /// The files that it is made of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let certificates = self.files.certificates.iter();
        let certificates = certificates.flat_map(|files| [&files.chain, &files.key]);
        certificates.chain(&self.files.client_ca).map(AsRef::as_ref)
    }

    /// Reads the files again: new connections get what is in them, unless something is wrong.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let current = load(&self.files, SystemTime::now())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// Says what is not right yet, or soon is not.
    pub(crate) fn warn(&self, now: SystemTime) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        for (files, certificate) in self.files.certificates.iter().zip(&current.certificates.0) {
            let chain = files.chain.display();
            let expires = certificate.expires;
            let date = certificate::date(expires);
            match expires.duration_since(now) {
                Err(_) => {
                    tracing::error!("the certificate in `{chain}` expired on {date}: renew it");
                }
                Ok(left) if left < CERTIFICATE_NOTICE_TIME => {
                    let days = certificate::days_until(expires, now);
                    tracing::warn!(
                        "the certificate in `{chain}` expires in {days} days, on {date}: renew it"
                    );
                }
                Ok(_) => {}
            }
            if certificate.is_key_readable {
                let key = files.key.display();
                tracing::warn!(
                    "every user of this machine can read the key in `{key}`: chmod o-r it"
                );
            }
        }
    }

    /// The day on which the first of its certificates expires.
    pub(crate) fn expires(&self) -> String {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let expiries = current.certificates.0.iter();
        let first = expiries.map(|certificate| certificate.expires).min();
        certificate::date(first.unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

/// The certificates of a door, in the order of its settings.
struct Certificates(Vec<ServerCertificate>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|certificate| &certificate.names);
        f.debug_list().entries(names).finish()
    }
}

impl ResolvesServerCert for Certificates {
    /// The first for the host that the client names and whose key it can check; or else the first that
    /// it can check.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name().map(str::to_ascii_lowercase);
        let schemes = hello.signature_schemes();
        let suits =
            |certificate: &&ServerCertificate| certificate.key.key.choose_scheme(schemes).is_some();
        let is_named = |certificate: &&ServerCertificate| {
            host.as_ref().is_some_and(|host| certificate.is_for(host))
        };
        let mut all = self.0.iter().filter(suits);
        let named = all.clone().find(is_named);
        named
            .or_else(|| all.next())
            .map(|certificate| Arc::clone(&certificate.key))
    }
}

fn load(files: &TlsFiles, now: SystemTime) -> Result<Current, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let read = |files: &CertificateFiles| {
        ServerCertificate::read(&files.chain, &files.key, &provider, now)
    };
    let certificates = files.certificates.iter().map(read);
    let certificates = Arc::new(Certificates(certificates.collect::<Result<_, _>>()?));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            builder.with_client_cert_verifier(client_verifier(file, files.client_auth, provider)?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as _);
    // Its keys change every six hours. They go with this configuration: no ticket of before lets a client
    // in whose certificate a new one would not.
    config.ticketer = ring::Ticketer::new()?;
    Ok(Current {
        config: Arc::new(config),
        certificates,
    })
}

fn client_verifier(
    file: &Path,
    auth: ClientAuth,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = pem::roots(file)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = match auth {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    verifier
        .build()
        .map_err(|error| TlsError::ClientCa(file.to_owned(), error.to_string()))
}
