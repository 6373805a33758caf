//! The service's own certificate: a key that is made here, and a certificate of PCA, renewed as a node's is.
//!
//! The journal in the directory of the service has every certificate paid for once (invariant 11).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use crate::clock::Clock;
use crate::config::client::CertificateConfig;
use crate::issue::journal::{Journal, JournalError};
use crate::issue::{Issuance, Issuer, is_within};
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
    /// Why the last certificate was given up and when, and the pause before another certificate is paid for.
    paused: Mutex<Option<Paused>>,
}

type Paused = (Reason, OffsetDateTime, Duration);

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
        Self { issuance, service, paused: Mutex::default() }
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
        if let Some((reason, since, pause)) = &*self.paused()
            && is_within(*pause, *since, self.issuance.clock.now())
        {
            return Err(PassError::Waits(reason.clone()));
        }
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
        let pause = match &verified {
            Err(RejectedChain::NotYetValid { not_before, .. }) => {
                self.issuance.note_valid_from(*not_before)?;
                None
            }
            Err(rejected) if !rejected.may_pass_later() => self.issuance.give_up()?,
            Ok(_) | Err(_) => None,
        };
        let answer = verified.map(|chain| chain.stored().clone()).map_err(PassError::from);
        *self.paused() = answer.as_ref().err().zip(pause).map(|(error, pause)| (error.into(), now, pause));
        answer
    }

    fn paused(&self) -> MutexGuard<'_, Option<Paused>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate is safe in a generation.
    pub(super) fn note_written(&self, leaf: &Leaf) -> Result<(), JournalError> {
        if self.issuance.is_under_way() { self.issuance.conclude(leaf) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::config::CaArn;
    use crate::doubles::moody_issuer::{MoodyIssuer, SetMoods};
    use crate::issue::IssuedChain;
    use crate::issue::local::Local;
    use crate::x509::csr::KeyAlgorithm;
    use crate::x509::san::Sans;

    fn config() -> CertificateConfig {
        CertificateConfig {
            ca_arn: CaArn::try_from("arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/1".to_owned())
                .unwrap(),
            template_arn: "arn:aws:acm-pca:::template/EndEntityClientAuthCertificate/V1".into(),
            name: "app".into(),
            sans: Sans::default(),
            validity: Duration::from_hours(24 * 7),
            key_algorithm: KeyAlgorithm::EcdsaP256,
        }
    }

    /// A service looks every minute. A certificate for another key stands for every certificate that no look makes acceptable.
    #[tokio::test(start_paused = true)]
    async fn invariant_11_certificates_that_are_never_accepted_are_paid_for_more_and_more_rarely() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at(datetime!(2026-03-01 12:00 UTC));
        let ca: Arc<dyn Issuer> = Arc::new(Local::new(directory.path().join("ca"), clock));
        let of_another_key = Certificates::new(&config(), Arc::clone(&ca), &directory.path().join("other"), clock);
        std::fs::create_dir(directory.path().join("other")).unwrap();
        let wrong = of_another_key.obtain(None).await.unwrap();
        let wrong = IssuedChain { leaf_pem: wrong.chain().to_pem(), chain_pem: String::new() };

        let moods = Arc::new(SetMoods::default());
        let issuer = Arc::new(MoodyIssuer::new(ca, clock, Arc::clone(&moods) as _));
        let certificates = Certificates::new(&config(), Arc::clone(&issuer) as _, directory.path(), clock);
        let a_day = tokio::time::Instant::now() + Duration::from_hours(24);
        while tokio::time::Instant::now() < a_day {
            *moods.mistaken.lock().unwrap() = Some(wrong.clone());
            let reason = Reason::from(&certificates.obtain(None).await.unwrap_err());
            assert_eq!(reason.code(), crate::reason::Code::CertificateRejected, "{reason}");
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        let paid = issuer.requests();
        assert!((4..=10).contains(&paid), "{paid} certificates in a day");
        // The last certificate is given up, and then nothing is wrong any more.
        *moods.mistaken.lock().unwrap() = None;
        while certificates.obtain(None).await.is_err() {
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        assert!(issuer.requests() <= paid + 1);
    }

    /// Each certificate looks expired on arrival, as if the issuer were wrong.
    #[tokio::test(start_paused = true)]
    async fn invariant_11_a_service_whose_clock_was_a_month_ahead_heals_when_the_clock_is_set() {
        let (directory, start) = (tempfile::tempdir().unwrap(), datetime!(2026-03-01 12:00 UTC));
        let month = time::Duration::days(30);
        let clock = Clock::steppable(start + month);
        let issuers = Clock::starting_at(start);
        let ca = Arc::new(Local::new(directory.path().join("ca"), issuers));
        let issuer = Arc::new(MoodyIssuer::new(ca, issuers, Arc::new(SetMoods::default())));
        let certificates = Certificates::new(&config(), issuer, directory.path(), clock);
        for _minute in 0..60 {
            certificates.obtain(None).await.unwrap_err();
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        assert!(certificates.paused().is_some());
        clock.step(-month);
        certificates.obtain(None).await.unwrap();
    }
}
