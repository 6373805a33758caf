//! Verifies servers in handshakes with nats-server: every leaf is accepted, or known leaves alone.
//!
//! No name is checked, because the agent dials addresses of its own machine and of peers. The signature that proves the key
//! is always checked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

/// Verifies the key of the leaf that a server shows.
#[derive(Debug)]
pub(super) struct Verifier {
    /// The leaves that are accepted. `None`: any leaf.
    leaves: Option<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Accepts any leaf. The caller compares the leaf with its own afterwards.
    pub(super) fn of_any_leaf(provider: Arc<CryptoProvider>) -> Self {
        Self { leaves: None, provider }
    }

    /// Accepts these leaves, also after their end.
    pub(super) fn of_leaves(leaves: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Self {
        Self { leaves: Some(leaves), provider }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.leaves.as_ref().is_none_or(|leaves| leaves.contains(leaf)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
