//! A server's certificates: checked, and what stands in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::InconsistentKeys;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::logging::printable;
use crate::pem::{self, PemError, PrivateKey};
use crate::talk::client::Identity;

/// A certificate of this server with its key.
pub(crate) struct ServerCertificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// The names of hosts that it is for, in small letters; `*.` may begin one.
    pub(crate) names: Vec<String>,
    /// When the first of its chain expires.
    pub(crate) expires: SystemTime,
    /// Its key can be read by every user of this machine.
    pub(crate) is_key_readable: bool,
}

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Its time is over.
    #[error("certificate {} of `{}` ({}) expired on {}: renew it", .1, .0.display(), .2, .3)]
    Expired(PathBuf, usize, String, String),
    /// Its time has not begun.
    #[error("certificate {} of `{}` ({}) is not valid before {}: is this machine's clock right?", .1, .0.display(), .2, .3)]
    NotYetValid(PathBuf, usize, String, String),
    /// The one before was issued by another.
    #[error(
        "certificate {} of `{}` ({}) is not the issuer of the one before it ({}): the server's own \
         certificate comes first, then each one's issuer", .1, .0.display(), .2, .3)]
    Order(PathBuf, usize, String, String),
    /// The key is another certificate's.
    #[error("the key in `{}` is not that of the certificate in `{}`", .0.display(), .1.display())]
    Mismatch(PathBuf, PathBuf),
    /// The key cannot be used.
    #[error("the key in `{}` cannot be used: {}", .0.display(), .1)]
    Key(PathBuf, rustls::Error),
}

impl ServerCertificate {
    /// Reads and checks a chain and its key.
    pub(crate) fn read(
        chain_file: &Path,
        key_file: &Path,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<ServerCertificate, CertificateError> {
        let chain = pem::certificates(chain_file)?;
        let mut expires = None;
        let mut before: Option<Certificate> = None;
        for (number, der) in (1..).zip(&chain) {
            let certificate = Certificate::from_der(der).map_err(|error| {
                PemError::Malformed(chain_file.to_owned(), number, error.to_string())
            })?;
            let file = || chain_file.to_owned();
            let content = certificate.tbs_certificate();
            if let Some(before) = &before
                && before.tbs_certificate().issuer() != content.subject()
            {
                let before = subject(before);
                let subject = subject(&certificate);
                return Err(CertificateError::Order(file(), number, subject, before));
            }
            let begins = content.validity().not_before.to_system_time();
            let ends = content.validity().not_after.to_system_time();
            if now > ends {
                let (subject, ends) = (subject(&certificate), date(ends));
                return Err(CertificateError::Expired(file(), number, subject, ends));
            }
            if now < begins {
                let (subject, begins) = (subject(&certificate), date(begins));
                return Err(CertificateError::NotYetValid(
                    file(),
                    number,
                    subject,
                    begins,
                ));
            }
            expires = Some(expires.map_or(ends, |earlier: SystemTime| earlier.min(ends)));
            before = Some(certificate);
        }
        let (Some(expires), Some(first)) = (expires, chain.first()) else {
            return Err(PemError::NoCertificate(chain_file.to_owned()).into());
        };
        let names = identity(first).map_or_else(Vec::new, |identity| identity.dns_names);
        let names = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let PrivateKey {
            key,
            is_readable_by_all,
        } = pem::private_key(key_file)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertificateError::Mismatch(key_file.to_owned(), chain_file.to_owned())
            }
            error => CertificateError::Key(key_file.to_owned(), error),
        })?;
        Ok(ServerCertificate {
            key: Arc::new(key),
            names,
            expires,
            is_key_readable: is_readable_by_all,
        })
    }

    /// Whether it is for a host of this name, which is in small letters.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest == domain),
            None => name == host,
        })
    }
}

/// Who a certificate says its owner is; nothing if it cannot be read.
pub(crate) fn identity(der: &CertificateDer<'_>) -> Option<Identity> {
    let certificate = Certificate::from_der(der).ok()?;
    let names = certificate.tbs_certificate().get_extension().ok()?;
    let names = names.map(|(_, SubjectAltName(names))| names);
    let dns_names = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        _ => None,
    });
    Some(Identity {
        subject: certificate.tbs_certificate().subject().to_string(),
        dns_names: dns_names.collect(),
    })
}

/// A day, as people write it.
pub(crate) fn date(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

/// How long it is until then.
pub(crate) fn days_until(time: SystemTime, now: SystemTime) -> u64 {
    let left = time.duration_since(now).unwrap_or(Duration::ZERO);
    left.as_secs() / (24 * 60 * 60)
}

fn subject(certificate: &Certificate) -> String {
    printable(&certificate.tbs_certificate().subject().to_string())
}
