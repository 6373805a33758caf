//! A renewal that somebody asked for: a pass with a new certificate, and what it came to.

use tokio::time::Instant;

use super::protocol::{Refusal, RenewalResult, Renewed, RenewedLeaf};
use crate::progress::Progress;
use crate::reason::{Reason, Told};
use crate::reconcile::{Pass, PassRequest, Reconciler};
use crate::server::standing::Standing;
use crate::status::Status;

/// Makes one pass with a new certificate. `before` is the status of the pass before, if there was a pass.
pub(crate) async fn renew(
    reconciler: &mut Reconciler,
    before: Option<&Status>,
    wanted: PassRequest,
    progress: Progress,
) -> (Pass, Result<Renewed, Refusal>) {
    let started = Instant::now();
    let old = match before {
        Some(status) => status.leaf.as_ref().map(RenewedLeaf::from),
        None => reconciler.leaf().as_ref().map(RenewedLeaf::from),
    };
    let pass = reconciler.pass(&wanted, &progress).await;
    let seconds = started.elapsed().as_secs_f64();
    let new = pass.status.leaf.as_ref().map(RenewedLeaf::from);
    let committed =
        |new, confirmed_by| Renewed { result: RenewalResult::Committed, old: old.clone(), new, confirmed_by, seconds };
    let renewed = match (&pass.outcome, new) {
        (Err(error), new) => Err(not_renewed(Told::from(&Reason::from(error)), old.as_ref(), new)),
        (Ok(Standing::NotServed(mismatch)), new) => {
            let text = format!("the certificate is committed, but not served: {mismatch}");
            let reason = Told { text, ..Told::from(&Reason::CommittedNotServed(mismatch.clone())) };
            Err(not_renewed(reason, old.as_ref(), new))
        }
        (Ok(_), None) => Err(not_renewed(Told::from(&Reason::NoCertificate), old.as_ref(), None)),
        (Ok(Standing::Served(evidence)), Some(new)) => {
            Ok(Renewed { result: RenewalResult::Confirmed, old, new, confirmed_by: evidence.to_string(), seconds })
        }
        (Ok(Standing::NoServer { why }), Some(new)) => {
            Ok(committed(new, format!("nothing yet, nats-server isn't running: {why}")))
        }
        (Ok(Standing::NothingCommitted), new) => {
            Err(not_renewed(Told::from(&Reason::NothingCommitted), old.as_ref(), new))
        }
        (Ok(Standing::Unseen), new) => Err(not_renewed(Told::from(&Reason::ServerNotLookedAt), old.as_ref(), new)),
    };
    (pass, renewed)
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
