//! Why a handshake has failed, as whoever runs the server would put it.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// One line.
pub(crate) fn describe(error: &Error) -> String {
    let text = match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what came is no TLS: does the client speak plain text to a TLS port?"
        }
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // TLS 1.1 has none.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
        )
        | Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => {
            "no common version: the client knows neither TLS 1.2 nor 1.3"
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "the client does not know the issuer of this server's certificate (unknown_ca)"
        }
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate),
        ) => {
            let alert = alert.as_str().unwrap_or_default();
            return format!("the client refuses this server's certificate ({alert})");
        }
        Error::NoCertificatesPresented => {
            "the client has shown no certificate, and this door requires one"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the client's certificate is of an issuer that is not in the client CA's file"
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the client's certificate has expired",
        Error::InvalidCertificate(error) => {
            return format!("the client's certificate is refused: {error}");
        }
        error => return error.to_string(),
    };
    text.to_owned()
}
