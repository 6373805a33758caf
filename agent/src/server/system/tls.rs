//! TLS to nats-server on this machine, which must show a leaf of this node.
//!
//! The connection dials loopback, for which no leaf has a name. A certificate of the same CA isn't enough: another
//! process could answer in nats-server's place. So the leaf must be one that this node has the key of. nats-server
//! serves an expired leaf until the next leaf is loaded. The connection works then too, because the reload goes through it.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;

use crate::server::verifier::Verifier;
use crate::x509::chain::StoredChain;

/// Presents `ours`, and accepts `ours` and the leaves of the node's other generations. `None`: our own key can't be used.
pub(super) fn config(ours: &StoredChain, others: Vec<CertificateDer<'static>>) -> Option<ClientConfig> {
    let certificates = ours.chain().certificates().cloned().collect();
    let leaves = [others, vec![ours.chain().leaf().clone()]].concat();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::of_leaves(leaves, Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    config.with_client_auth_cert(certificates, ours.key().to_der()?).ok()
}
