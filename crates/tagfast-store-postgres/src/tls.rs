//! TLS to PostgreSQL: only certificates of the configured authority are trusted.
//!
//! How it fails: a connection to a server without TLS, with a certificate of a different authority
//! or, under `verify-full`, with a different name is refused before the password is sent. The error
//! says which of these it was. Authorities that were changed are trusted from the next connection
//! on, the former ones no longer: while servers change their certificates, name both.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tagfast_resilience::{Credential, ErrorChain};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Which servers are trusted.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authorities' certificates, as PEM.
    pub authorities: Credential<Vec<u8>>,
    /// Whether the certificate must also name the address that was connected to (`verify-full`);
    /// otherwise every server of the authority is trusted (`verify-ca`).
    pub names: bool,
}

/// Why the authorities' certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is not PEM.
    #[error("not a file of PEM certificates")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The file is empty.
    #[error("there is no certificate in it")]
    Empty,
    /// A certificate is not an authority's, or cannot be read.
    #[error("a certificate in it cannot be used")]
    Certificate(#[from] Error),
    /// The verifier cannot be built.
    #[error("the certificate verifier cannot be built")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Whether the certificates of authorities, as PEM, can be used.
///
/// # Errors
///
/// Why they cannot.
pub fn check_authorities(authorities: &[u8]) -> Result<(), TlsError> {
    connector(authorities, true).map(drop)
}

/// Makes the TLS part of connections; made again when the authorities change.
pub(crate) struct TlsConnector {
    tls: Tls,
    made: Mutex<(u64, MakeRustlsConnect)>,
}

impl TlsConnector {
    pub(crate) fn new(tls: &Tls) -> Result<Self, TlsError> {
        let authorities = tls.authorities.newest();
        let made = (authorities.number, connector(&authorities.value, tls.names)?);
        Ok(Self { tls: tls.clone(), made: Mutex::new(made) })
    }

    /// Trusts the authorities of this moment. Ones that cannot be used replace nothing.
    pub(crate) fn get(&self) -> MakeRustlsConnect {
        let mut made = self.made.lock();
        if made.0 != self.tls.authorities.number() {
            let authorities = self.tls.authorities.newest();
            match connector(&authorities.value, self.tls.names) {
                Ok(connector) => *made = (authorities.number, connector),
                Err(error) => {
                    made.0 = authorities.number;
                    let error = ErrorChain(&error);
                    tracing::warn!(%error, "the authorities' certificates cannot be used");
                }
            }
        }
        made.1.clone()
    }
}

fn connector(authorities: &[u8], names: bool) -> Result<MakeRustlsConnect, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()?;
    let verifier = Arc::new(Verifier { inner, names });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// The usual verifier; without `names` it accepts a certificate whose only fault is its name.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // Names are checked last: everything else was valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let of = |text: &str| check_authorities(text.as_bytes());
        assert!(matches!(of(""), Err(TlsError::Empty)));
        assert!(of("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").is_err());
    }
}
