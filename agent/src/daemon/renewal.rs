//! A renewal that somebody asked for: a pass with a new certificate, and what it came to.

use tokio::time::Instant;

use super::protocol::{Refusal, RenewalResult, Renewed, RenewedLeaf};
use crate::progress::Progress;
use crate::reason::{Reason, Told};
use crate::reconcile::{Pass, PassRequest, Reconciler};
use crate::server::standing::Standing;
use crate::status::Status;

/// A renewal that somebody waits for. A reload that is under way makes the renewal longer than one pass.
pub(crate) struct Renewal {
    started: Instant,
    /// The leaf before.
    old: Option<RenewedLeaf>,
}

impl Renewal {
    /// Makes a pass with a new certificate. `before` is the status of the pass before, if there was a pass.
    pub(crate) async fn begin(
        reconciler: &mut Reconciler,
        before: Option<&Status>,
        wanted: PassRequest,
        progress: Progress,
    ) -> (Pass, Self) {
        let started = Instant::now();
        let old = match before {
            Some(status) => status.leaf.as_ref().map(RenewedLeaf::from),
            None => reconciler.leaf().as_ref().map(RenewedLeaf::from),
        };
        (reconciler.pass(&wanted, &progress).await, Self { started, old })
    }

    /// What the renewal came to, by the last pass. `None`: the reload is still under way.
    pub(crate) fn result(&self, pass: &Pass) -> Option<Result<Renewed, Refusal>> {
        let seconds = self.started.elapsed().as_secs_f64();
        let old = self.old.as_ref();
        let new = pass.status.leaf.as_ref().map(RenewedLeaf::from);
        let renewed = |result, new, confirmed_by| Renewed { result, old: old.cloned(), new, confirmed_by, seconds };
        Some(match (&pass.outcome, new) {
            (Ok(Standing::Reloading { .. }), _) => return None,
            (Err(error), new) => Err(not_renewed(Told::from(&Reason::from(error)), old, new)),
            (Ok(Standing::NotServed(mismatch)), new) => {
                let text = format!("the certificate is committed, but not served: {mismatch}");
                let reason = Told { text, ..Told::from(&Reason::CommittedNotServed(mismatch.clone())) };
                Err(not_renewed(reason, old, new))
            }
            (Ok(_), None) => Err(not_renewed(Told::from(&Reason::NoCertificate), old, None)),
            (Ok(Standing::Served(evidence)), Some(new)) => {
                Ok(renewed(RenewalResult::Confirmed, new, evidence.to_string()))
            }
            (Ok(Standing::NoServer { why }), Some(new)) => {
                let nothing = format!("nothing yet, nats-server isn't running: {why}");
                Ok(renewed(RenewalResult::Committed, new, nothing))
            }
            (Ok(Standing::NothingCommitted), new) => Err(not_renewed(Told::from(&Reason::NothingCommitted), old, new)),
            (Ok(Standing::Unseen), new) => Err(not_renewed(Told::from(&Reason::ServerNotLookedAt), old, new)),
        })
    }
}

/// Makes passes until a new certificate is in force, or it is clear why not.
pub(crate) async fn renew_alone(
    reconciler: &mut Reconciler,
    wanted: PassRequest,
    progress: Progress,
) -> Result<Renewed, Refusal> {
    let (mut pass, renewal) = Renewal::begin(reconciler, None, wanted, progress.clone()).await;
    loop {
        if let Some(result) = renewal.result(&pass) {
            return result;
        }
        reconciler.clock().sleep_until(pass.next).await;
        pass = reconciler.pass(&PassRequest::default(), &progress).await;
    }
}

/// A certificate that was issued and isn't in force is kept, so nobody pays for it again.
fn not_renewed(reason: Told, old: Option<&RenewedLeaf>, new: Option<RenewedLeaf>) -> Refusal {
    let kept = new.filter(|new| old.is_none_or(|old| old.serial != new.serial));
    Refusal::NotRenewed { reason, kept }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_renewal_that_only_failed_to_deploy_says_that_it_is_paid_for() {
        let leaf = |serial: &str, generation| RenewedLeaf {
            serial: serial.into(),
            not_after: datetime!(2026-03-01 12:00 UTC),
            generation,
        };
        let said = |old: Option<RenewedLeaf>, new| {
            not_renewed(Told::from(&Reason::NoRoute), old.as_ref(), new)
                .to_string()
                .split_off(Reason::NoRoute.to_string().len())
        };
        let kept = said(Some(leaf("0a", 6)), Some(leaf("0b", 7)));
        assert!(kept.contains("0b is kept as generation 7") && kept.contains("without another issuance"), "{kept}");
        assert_eq!(said(None, Some(leaf("0b", 1))), kept.replace("generation 7", "generation 1"));
        // Only the bundle is new.
        assert_eq!(said(Some(leaf("0a", 6)), Some(leaf("0a", 7))), "");
        assert_eq!(said(Some(leaf("0a", 6)), None), "");
    }
}
