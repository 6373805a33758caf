//! The service's own certificate: a key that is made here, and a certificate of PCA, renewed as a node's is.
//!
//! The journal in the directory of the service has every certificate paid for once (invariant 11).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::client::CertificateConfig;
use crate::issue::journal::{Journal, JournalError};
use crate::issue::{Issuance, Issuer};
use crate::node::{Node, Placement};
use crate::progress::Progress;
use crate::reason::Reason;
use crate::reconcile::PassError;
use crate::schedule::{due, earliest};
use crate::trust::sources::issuer::FromIssuer;
use crate::trust::{RejectedChain, Role, TrustSource};
use crate::x509::chain::StoredChain;
use crate::x509::leaf::Leaf;

/// The share of the lifetime after which the certificate is renewed at the latest, as `renewal.at` of a node.
const RENEWED_AT: f64 = 0.67;

/// The way to certificates of one service.
pub(super) struct Certificates {
    issuance: Issuance,
    /// The service, in the shape in which an issuance knows a node: a name and SANs.
    service: Node,
}

impl Certificates {
    pub(super) fn new(config: &CertificateConfig, issuer: Arc<dyn Issuer>, directory: &Path, clock: Clock) -> Self {
        let issuance = Issuance {
            issuer,
            journal: Journal::of(directory),
            clock,
            validity: config.validity,
            renewed_after: earliest(config.validity, RENEWED_AT),
            algorithm: config.key_algorithm,
        };
        let service = Node {
            name: config.name.clone(),
            instance_id: None,
            region: None,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            sans: config.sans.clone(),
            further_addresses: [].into(),
            placement: Placement::default(),
        };
        Self { issuance, service }
    }

    /// Whether the issuer is asked: without a certificate, during an issuance, and where the certificate is due or differs from
    /// client.toml.
    pub(super) fn are_wanted(&self, current: Option<&StoredChain>) -> bool {
        let Some(current) = current else { return true };
        let (leaf, Issuance { validity, clock, .. }) = (current.leaf(), &self.issuance);
        let is_due = clock.now() >= due(leaf, *validity, RENEWED_AT, &self.service.name);
        self.issuance.is_under_way() || is_due || !self.is_as_asked(leaf)
    }

    /// Whether a certificate is what client.toml asks for.
    fn is_as_asked(&self, leaf: &Leaf) -> bool {
        leaf.sans.cover(&self.service.sans) && self.issuance.is_as_asked(leaf, &self.service)
    }

    /// Asks the issuer, or resumes the issuance under way, and verifies the answer against the issuer's own CA certificate. The
    /// nodes may trust other CAs for clients than for servers.
    pub(super) async fn obtain(&self, current: Option<&StoredChain>) -> Result<StoredChain, PassError> {
        let renewed = current.map(StoredChain::leaf).filter(|leaf| self.is_as_asked(leaf));
        let beyond = renewed.map(|leaf| leaf.not_after);
        let issued = self.issuance.obtain(&self.service, beyond, &Progress::default()).await?;
        let bundle = FromIssuer::new(Arc::clone(&self.issuance.issuer)).fetch().await;
        let bundle = bundle.map_err(|error| {
            let because = Some(Box::new(Reason::from(&error)));
            PassError::Waits(Reason::CertificateWaitsForBundle { because })
        })?;
        let now = self.issuance.clock.now();
        let verified = bundle.verify_for(Role::Client, &issued.chain, &issued.csr.key, &self.service.sans, now);
        match &verified {
            Err(RejectedChain::NotYetValid { not_before, .. }) => self.issuance.note_valid_from(*not_before)?,
            Err(rejected) if !rejected.may_pass_later() => {
                self.issuance.give_up()?;
            }
            Ok(_) | Err(_) => {}
        }
        Ok(verified?.stored().clone())
    }

    /// The certificate is safe in a generation.
    pub(super) fn note_written(&self, leaf: &Leaf) -> Result<(), JournalError> {
        if self.issuance.is_under_way() { self.issuance.conclude(leaf) } else { Ok(()) }
    }
}
