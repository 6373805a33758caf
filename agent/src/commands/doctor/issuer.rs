//! The checks of the issuer: whether its CA issues, and whether the next leaf would be accepted.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Check, Grade, NO_CA};
use crate::clock::{Clock, rfc3339};
use crate::error::{RemoteError, RemoteErrorKind, with_causes};
use crate::issue::{Described, Issuance};
use crate::node::Node;
use crate::trust::TrustBundle;
use crate::x509::leaf::Leaf;

/// Whether the CA issues what the configuration asks for. Where the role may not ask for the CA's description, the CA's
/// certificate alone decides.
pub(super) async fn issues(issuance: &Issuance, ca: &Result<String, RemoteError>) -> Check {
    let name = "issuer";
    let pem = match ca {
        Ok(pem) => pem,
        Err(error) if error.kind == RemoteErrorKind::Absent => return Check::warning(name, NO_CA),
        Err(error) => return Check::failed(name, with_causes(error)),
    };
    match issuance.issuer.describe().await {
        Ok(described) => judge(&described.unwrap_or_default(), pem, issuance.validity, Clock::System.now()),
        Err(error) => {
            let check = judge(&Described::default(), pem, issuance.validity, Clock::System.now());
            let found = format!("{}; the CA's status is not known ({error})", check.found);
            let may_be_denied = error.kind == RemoteErrorKind::Denied && error.code.is_some();
            match check.grade {
                Grade::Ok if !may_be_denied => Check::warning(name, found),
                _ => Check { found, ..check },
            }
        }
    }
}

fn judge(described: &Described, ca_pem: &str, validity: Duration, now: OffsetDateTime) -> Check {
    let name = "issuer";
    if let Some(obstacle) = &described.obstacle {
        return Check::failed(name, obstacle.clone());
    }
    if let Some(longest) = described.longest.filter(|longest| *longest < validity) {
        let (longest, asked) = (humantime::format_duration(longest), humantime::format_duration(validity));
        return Check::failed(
            name,
            format!("its CA issues for {longest} at most, and issuer.validity is {asked}; write {longest} or less"),
        );
    }
    let ca = match Leaf::from_pem(ca_pem) {
        Ok(ca) => ca,
        Err(error) => return Check::failed(name, with_causes(&error)),
    };
    let found = format!("it gives its CA certificate, which ends at {}", rfc3339(ca.not_after));
    let left = ca.not_after - now;
    if left <= time::Duration::ZERO {
        Check::failed(
            name,
            format!("{found}: the certificate has ended, and the CA signs nothing any more; {RENEW_CA}"),
        )
    } else if left < validity {
        Check::warning(name, format!("{found}, before a certificate of issuer.validity would; {RENEW_CA}"))
    } else if left < validity.saturating_mul(2) {
        Check::warning(name, format!("{found}, within two lifetimes of a certificate; {RENEW_CA}"))
    } else {
        Check::ok(name, found)
    }
}

/// The remedy for a CA that ends.
const RENEW_CA: &str = "install a new certificate for the CA, or change to another CA";

/// Whether clients and peers would accept the next leaf of the CA, and for how long.
pub(super) fn is_trusted(
    ca_pem: &str,
    bundle: &TrustBundle,
    node: &Node,
    validity: Duration,
    now: OffsetDateTime,
) -> Check {
    let name = "issuer in trust";
    match bundle.judge(ca_pem, &node.sans, now) {
        Ok(end) => {
            let found = format!("the issuer's CA chains to the bundle until {}", rfc3339(end));
            if end - now < validity.saturating_mul(2) {
                let remedy = "replace the CA on the way that ends first";
                Check::warning(name, format!("{found}, within two lifetimes of a certificate; {remedy}"))
            } else {
                Check::ok(name, found)
            }
        }
        Err(objection) => Check::failed(name, objection.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::acm_pca::SHORT_LIVED_LIMIT;
    use crate::x509::test_ca::{Ca, NOW, sans};

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_ca_is_ok_only_where_it_issues_leaves_of_the_whole_validity_for_two_lifetimes() {
        let ca = Ca::root_with("root", |params| params.not_after = NOW + 10 * DAY);
        let graded = |validity, now, described: &Described| {
            let check = judge(described, &ca.pem, validity, now);
            assert!(check.grade == Grade::Ok || check.found.contains("; "), "no remedy: {}", check.found);
            check.grade
        };
        let active = Described::default();
        assert_eq!(graded(4 * DAY, NOW, &active), Grade::Ok);
        assert_eq!(graded(6 * DAY, NOW, &active), Grade::Warning);
        assert_eq!(graded(11 * DAY, NOW, &active), Grade::Warning);
        assert_eq!(graded(4 * DAY, NOW + 10 * DAY, &active), Grade::Failed);
        let short = Described { longest: Some(SHORT_LIVED_LIMIT), ..Described::default() };
        assert_eq!(graded(4 * DAY, NOW, &short), Grade::Ok);
        assert_eq!(graded(8 * DAY, NOW, &short), Grade::Failed);
        let disabled = Described { obstacle: Some("the CA is DISABLED; enable it".into()), ..Described::default() };
        assert_eq!(graded(4 * DAY, NOW, &disabled), Grade::Failed);
    }

    #[test]
    fn a_way_to_the_bundle_that_ends_before_two_lifetimes_is_a_warning_and_no_way_a_failure() {
        let root = Ca::root_with("root", |params| params.not_after = NOW + 10 * DAY);
        let (sub, other) = (root.below("sub"), Ca::root("other"));
        let node = Node {
            name: "n1".into(),
            instance_id: None,
            region: None,
            address: [10, 0, 1, 5].into(),
            sans: sans(),
            further_addresses: [].into(),
            placement: crate::node::Placement::default(),
        };
        let graded = |ca: &Ca, validity| {
            let bundle = TrustBundle::parse(ca.pem.as_bytes(), "test", "1").unwrap();
            is_trusted(&sub.pem, &bundle, &node, validity, NOW).grade
        };
        assert_eq!(graded(&root, 4 * DAY), Grade::Ok);
        assert_eq!(graded(&root, 6 * DAY), Grade::Warning);
        assert_eq!(graded(&other, 4 * DAY), Grade::Failed);
    }
}
