//! Certificates and keys from files of PEM: a server's, a client's, and whom they trust.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::limits::process::CERTIFICATE_FILE_BYTES;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It cannot be read.
    #[error("cannot read `{}`: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// It is no PEM.
    #[error("`{}` is no file of PEM: {}", .0.display(), .1)]
    NotPem(PathBuf, String),
    /// There is no certificate in it.
    #[error("`{}` has no certificate: it needs a BEGIN CERTIFICATE", .0.display())]
    NoCertificate(PathBuf),
    /// There is no key in it.
    #[error("`{}` has no private key: it needs a BEGIN PRIVATE KEY that is not encrypted", .0.display())]
    NoKey(PathBuf),
    /// It is no certificate.
    #[error("certificate {} of `{}` cannot be read: {}", .1, .0.display(), .2)]
    Malformed(PathBuf, usize, String),
}

/// A key, and who else can read it.
#[derive(Debug)]
pub struct PrivateKey {
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// Every user of this machine can read the file.
    pub is_readable_by_all: bool,
}

/// Certificates, in the order of the file; there is one at least.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let (bytes, _) = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates =
        certificates.map_err(|error| PemError::NotPem(file.to_owned(), error.to_string()))?;
    match certificates.is_empty() {
        true => Err(PemError::NoCertificate(file.to_owned())),
        false => Ok(certificates),
    }
}

/// The certificates that those of the other side have to come from.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn roots(file: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates(file)?) {
        roots
            .add(certificate)
            .map_err(|error| PemError::Malformed(file.to_owned(), number, error.to_string()))?;
    }
    Ok(roots)
}

/// The first private key of the file.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn private_key(file: &Path) -> Result<PrivateKey, PemError> {
    let (bytes, mode) = read(file)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => PemError::NoKey(file.to_owned()),
        error => PemError::NotPem(file.to_owned(), error.to_string()),
    })?;
    Ok(PrivateKey {
        key,
        is_readable_by_all: mode & 0o004 != 0,
    })
}

/// What is in a file, and its mode. Bounded: the name may be that of a device.
fn read(path: &Path) -> Result<(Vec<u8>, u32), PemError> {
    let read = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        file.take(CERTIFICATE_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > CERTIFICATE_FILE_BYTES {
            let message = format!("it has more than {CERTIFICATE_FILE_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok((bytes, metadata.mode()))
    };
    read().map_err(|error| PemError::Unreadable(path.to_owned(), error))
}
