//! From the schedule to an accepted certificate: when the issuer is asked, and what becomes of its answer.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::pass::PassError;
use super::retry::Retry;
use crate::clock::Clock;
use crate::config::RenewalConfig;
use crate::issue::{Issuance, Issued, ObtainError};
use crate::node::Node;
use crate::node::lifecycle::Lifecycle;
use crate::progress::Progress;
use crate::reason::{Code, Reason};
use crate::schedule::due;
use crate::state::generation::Generation;
use crate::status::RenewalStatus;
use crate::trust::{RejectedChain, TrustBundle, VerifiedChain};
use crate::x509::leaf::Leaf;

/// How soon an instance in a warm pool looks whether it is out.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Issuance, and when it is tried next.
pub(super) struct Issuing {
    pub(super) issuance: Issuance,
    clock: Clock,
    renewal: RenewalConfig,
    pub(super) retry: Retry,
    lifecycle: Option<Arc<dyn Lifecycle>>,
    /// Why the issuer is not asked: this instance is in a warm pool.
    pub(super) waits: Option<Reason>,
    /// What came of the issuance in this pass. `None`: the issuer was not asked.
    pub(super) tried: Option<Result<(), Code>>,
    /// The certificate of a new CA that waits until the CA is trusted. The journal has the certificate too.
    held: Option<Issued>,
    /// The certificate of this pass, until it is known whether it waits.
    taken: Option<Issued>,
    /// The pause before another certificate is paid for, where this pass gave a certificate up.
    pause: Option<Duration>,
    /// Whether `tried` told of the certificate of this pass in an earlier pass.
    is_told: bool,
}

impl Issuing {
    pub(super) fn new(
        issuance: Issuance,
        lifecycle: Option<Arc<dyn Lifecycle>>,
        clock: Clock,
        renewal: RenewalConfig,
    ) -> Self {
        Self {
            issuance,
            clock,
            renewal,
            retry: Retry::at_once(),
            lifecycle,
            waits: None,
            tried: None,
            held: None,
            taken: None,
            pause: None,
            is_told: false,
        }
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
    /// that is due or is not what agent.toml asks for, a leaf under a distrusted CA, or a request for a new certificate.
    ///
    /// Somebody who asks for a new certificate gets the newest certificate while the committed configuration doesn't name
    /// it: that certificate is paid for.
    pub(super) fn is_wanted(
        &self,
        newest: Option<&Generation>,
        is_committed: impl Fn(&Generation) -> bool,
        is_asked_for: bool,
        is_distrusted: bool,
        node: &Node,
        now: OffsetDateTime,
    ) -> bool {
        // The pause after a success is for an issuer whose leaves are due at once.
        if now < self.retry.next && !is_asked_for && (!is_distrusted || self.retry.failures > 0) {
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
        resume || is_distrusted || is_of_another_time || !is_as_asked || now >= self.due(newest, node)
    }

    /// Asks the issuer, or resumes the issuance under way, unless this instance is in a warm pool. A certificate in the place
    /// of `renewed` has to end later.
    pub(super) async fn obtain(
        &self,
        renewed: Option<&Generation>,
        node: &Node,
        progress: &Progress,
    ) -> Result<Issued, ObtainError> {
        if let Some(lifecycle) = &self.lifecycle
            && let Some(state) = lifecycle.warm_pool().await
        {
            return Err(ObtainError::InWarmPool { state });
        }
        let is_as_asked = |leaf: &&Leaf| leaf.sans.cover(&node.sans) && self.issuance.is_as_asked(leaf, node);
        let leaf = renewed.map(|renewed| renewed.chain.leaf()).filter(is_as_asked);
        self.issuance.obtain(node, leaf.map(|leaf| leaf.not_after), progress).await
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
        self.waits = None;
        if let Err(error @ ObtainError::InWarmPool { .. }) = issued {
            // The wait is no failure: it has no back-off, and is over as soon as the instance is out.
            self.waits = Some(Reason::from(&error));
            return Err(error.into());
        }
        self.pause = None;
        let verified = self.verify(issued, bundle, trust_reason, node);
        if let Err(error) = &verified {
            let RenewalConfig { retry_min, retry_max, .. } = self.renewal;
            let longest = retry_max.min(self.issuance.longest_pause(retry_min));
            let (retry_min, longest) = self.pause.map_or((retry_min, longest), |pause| (pause, pause));
            let reason = Reason::from(error);
            self.tried = Some(Err(reason.code()));
            self.retry.fail(self.clock.now(), retry_min, longest, reason);
        }
        verified.map(Some)
    }

    /// A certificate that isn't accepted stays in the journal and is collected again, because it is paid for. A
    /// certificate that no bundle and no time makes acceptable is given up after a while.
    fn verify(
        &mut self,
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
            Err(rejected) if !rejected.may_pass_later() => self.pause = self.issuance.give_up()?,
            Ok(_) | Err(_) => {}
        }
        Ok(verified?)
    }

    /// The certificate is safe in a generation.
    ///
    /// An issuer that returns leaves that are due at once is asked again after a tenth of the validity, or of what a leaf has
    /// left that its CA cut short.
    pub(super) fn note_written(&mut self, leaf: &Leaf) -> Result<(), PassError> {
        self.issuance.conclude(leaf)?;
        let now = self.clock.now();
        self.taken = None;
        self.tried = (!self.is_told).then_some(Ok(()));
        let left = (leaf.not_after - now).unsigned_abs().min(self.issuance.validity);
        self.retry.succeed(now, now + left / 10);
        Ok(())
    }

    /// Why there is no new certificate.
    pub(super) fn reason(&self) -> Option<Reason> {
        let because = Box::new(self.retry.reason.clone()?);
        Some(Reason::NoNewCertificate { attempts: self.retry.failures, because })
    }

    /// Whether the CA of the newest leaf ends within two lifetimes of a leaf.
    pub(super) fn warning(&self, newest: Option<&Generation>, now: OffsetDateTime) -> Option<Reason> {
        let newest = newest?;
        let (subject, at) = newest.bundle.issuer_of(newest.chain.chain())?;
        let is_soon = at > now && at - now < self.issuance.validity.saturating_mul(2);
        is_soon.then_some(Reason::IssuerEnds { subject, at })
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
        let waits = self.waits.is_some().then(|| self.clock.now() + LOOK_AGAIN);
        std::iter::once(due.max(waits.unwrap_or(due))).chain(failed).collect()
    }
}
