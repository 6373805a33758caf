//! TLS to nats-server on this machine, which must show a leaf of this node.
//!
//! The connection dials loopback, for which no leaf has a name. A certificate of the same CA isn't enough: another
//! process could answer in nats-server's place. So the leaf must be one that this node has the key of.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::x509::chain::StoredChain;

/// Presents `ours`, and accepts `ours` and the leaves of the node's other generations. `None`: our own key can't be used.
pub(super) fn config(ours: &StoredChain, others: Vec<CertificateDer<'static>>) -> Option<ClientConfig> {
    let certificates = ours.chain().certificates().cloned().collect();
    let leaves = [others, vec![ours.chain().leaf().clone()]].concat();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = OwnLeaf { leaves, provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    config.with_client_auth_cert(certificates, ours.key().to_der()?).ok()
}

#[derive(Debug)]
struct OwnLeaf {
    leaves: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OwnLeaf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // An expired leaf is served until the next one is loaded, and loading it is what the connection is for.
        if self.leaves.contains(leaf) {
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
