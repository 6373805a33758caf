//! From the schedule to an accepted certificate: when the issuer is asked, and what becomes of its answer.

use time::OffsetDateTime;

use super::pass::PassError;
use super::retry::Retry;
use crate::clock::Clock;
use crate::config::RenewalConfig;
use crate::issue::{Issuance, Issued, ObtainError};
use crate::node::Node;
use crate::progress::Progress;
use crate::reason::{Code, Reason};
use crate::schedule::due;
use crate::state::generation::Generation;
use crate::status::RenewalStatus;
use crate::trust::{RejectedChain, TrustBundle, VerifiedChain};
use crate::x509::leaf::Leaf;

/// Issuance, and when it is tried next.
pub(super) struct Issuing {
    pub(super) issuance: Issuance,
    clock: Clock,
    renewal: RenewalConfig,
    pub(super) retry: Retry,
    /// What came of the issuance in this pass. `None`: the issuer was not asked.
    pub(super) tried: Option<Result<(), Code>>,
    /// The certificate of a new CA that waits until the CA is trusted. The journal has the certificate too.
    held: Option<Issued>,
    /// The certificate of this pass, until it is known whether it waits.
    taken: Option<Issued>,
    /// Whether `tried` told of the certificate of this pass in an earlier pass.
    is_told: bool,
}

impl Issuing {
    pub(super) fn new(issuance: Issuance, clock: Clock, renewal: RenewalConfig) -> Self {
        Self { issuance, clock, renewal, retry: Retry::at_once(), tried: None, held: None, taken: None, is_told: false }
    }

    /// When a generation's leaf is to be renewed.
    pub(super) fn due(&self, generation: &Generation, node: &Node) -> OffsetDateTime {
        due(generation.chain.leaf(), self.issuance.validity, self.renewal.at, &node.name)
    }

    /// The certificate that waits, unless the node has other names by now.
    pub(super) fn take_held(&mut self, node: &Node) -> Option<Issued> {
        self.is_told = self.held.is_some();
        self.held.take().filter(|held| held.csr.sans == node.sans)
    }

    /// Keeps the certificate of this pass for the next passes. Nothing failed, and the issuer is not asked meanwhile.
    pub(super) fn hold(&mut self) {
        let now = self.clock.now();
        self.held = self.taken.take();
        self.tried = (!self.is_told).then_some(Ok(()));
        self.retry.succeed(now, now);
    }

    /// Whether the issuer is asked. The reasons are: no generation, an issuance under way, a failed issuance, a leaf
    /// that is due or is not what agent.toml asks for, or a request for a new certificate.
    ///
    /// Somebody who asks for a new certificate gets the newest certificate while the committed configuration doesn't name
    /// it: that certificate is paid for.
    pub(super) fn is_wanted(
        &self,
        newest: Option<&Generation>,
        is_committed: impl Fn(&Generation) -> bool,
        is_asked_for: bool,
        node: &Node,
        now: OffsetDateTime,
    ) -> bool {
        if now < self.retry.next && !is_asked_for {
            return false;
        }
        let Some(newest) = newest else { return true };
        if is_asked_for && is_committed(newest) {
            return true;
        }
        let leaf = newest.chain.leaf();
        let resume = self.issuance.is_under_way() || self.retry.failures > 0;
        // A NotBefore that far off shows that one clock is wrong: the issuer's then, or this machine's now. A certificate
        // that is asked for now waits in the journal until the clock is set.
        let is_of_another_time = leaf.not_before > now + self.issuance.validity;
        let is_as_asked = leaf.sans.cover(&node.sans) && self.issuance.is_as_asked(leaf, node);
        resume || is_of_another_time || !is_as_asked || now >= self.due(newest, node)
    }

    /// Asks the issuer, or resumes the issuance under way.
    pub(super) async fn obtain(&self, node: &Node, progress: &Progress) -> Result<Issued, ObtainError> {
        self.issuance.obtain(node, progress).await
    }

    /// Verifies what the issuer answered. A failure is counted and returned.
    pub(super) fn take(
        &mut self,
        issued: Option<Result<Issued, ObtainError>>,
        bundle: Option<&TrustBundle>,
        trust_reason: Option<&Reason>,
        node: &Node,
    ) -> Result<Option<VerifiedChain>, PassError> {
        let Some(issued) = issued else { return Ok(None) };
        self.taken = issued.as_ref().ok().cloned();
        let verified = self.verify(issued, bundle, trust_reason, node);
        if let Err(error) = &verified {
            let RenewalConfig { retry_min, retry_max, .. } = self.renewal;
            let longest = retry_max.min(self.issuance.longest_pause(retry_min));
            let reason = Reason::from(error);
            self.tried = Some(Err(reason.code()));
            self.retry.fail(self.clock.now(), retry_min, longest, reason);
        }
        verified.map(Some)
    }

    /// A certificate that isn't accepted stays in the journal and is collected again, because it is paid for. A
    /// certificate that no bundle and no time makes acceptable is given up after a while.
    fn verify(
        &self,
        issued: Result<Issued, ObtainError>,
        bundle: Option<&TrustBundle>,
        trust_reason: Option<&Reason>,
        node: &Node,
    ) -> Result<VerifiedChain, PassError> {
        let issued = issued?;
        let Some(bundle) = bundle else {
            let because = trust_reason.cloned().map(Box::new);
            return Err(PassError::Waits(Reason::CertificateWaitsForBundle { because }));
        };
        let verified = bundle.verify(&issued.chain, &issued.csr.key, &node.sans, self.clock.now());
        match &verified {
            Err(RejectedChain::NotYetValid { not_before, .. }) => self.issuance.note_valid_from(*not_before)?,
            Err(rejected) if !rejected.may_pass_later() => self.issuance.give_up()?,
            Ok(_) | Err(_) => {}
        }
        Ok(verified?)
    }

    /// The certificate is safe in a generation.
    ///
    /// An issuer that returns leaves that are due at once is asked again after a tenth of the validity.
    pub(super) fn note_written(&mut self, leaf: &Leaf) -> Result<(), PassError> {
        self.issuance.conclude(leaf)?;
        let now = self.clock.now();
        self.taken = None;
        self.tried = (!self.is_told).then_some(Ok(()));
        self.retry.succeed(now, now + self.issuance.validity / 10);
        Ok(())
    }

    /// Why there is no new certificate.
    pub(super) fn reason(&self) -> Option<Reason> {
        let because = Box::new(self.retry.reason.clone()?);
        Some(Reason::NoNewCertificate { attempts: self.retry.failures, because })
    }

    /// The renewal, as the status shows it.
    pub(super) fn status(&self, newest: Option<&Generation>, node: &Node) -> RenewalStatus {
        RenewalStatus {
            next: newest.map(|newest| self.due(newest, node).max(self.retry.next)),
            attempts: self.retry.failures,
            last_error: self.retry.reason.as_ref().map(ToString::to_string),
        }
    }

    /// When the issuer is worth another question.
    ///
    /// A failure is tried again at its time however long the rest of the pass took: a request whose answer was lost is
    /// repeated while PCA remembers its token.
    pub(super) fn times(&self, newest: Option<&Generation>, node: &Node) -> Vec<OffsetDateTime> {
        if self.held.is_some() {
            return Vec::new();
        }
        let due = newest.map(|newest| self.due(newest, node));
        let due = due.map_or(self.retry.next, |due| due.max(self.retry.next));
        let failed = (self.retry.failures > 0).then_some(self.retry.next);
        std::iter::once(due).chain(failed).collect()
    }
}
