//! What PCA's own error codes and the status of a CA mean, and the remedy of each.

use super::{COLLECT, ISSUE};
use crate::aws::denial::{self, Shared};
use crate::config::CaArn;
use crate::error::{RemoteError, RemoteErrorKind};

/// The status of the CA doesn't allow the call.
pub(crate) const INVALID_STATE: &str = "InvalidStateException";
/// The status of a CA that issues.
pub(super) const ACTIVE: &str = "ACTIVE";

/// Every status of a CA
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_CertificateAuthority.html>, `Status`).
const STATUSES: [&str; 7] = ["CREATING", "PENDING_CERTIFICATE", ACTIVE, "DELETED", "DISABLED", "EXPIRED", "FAILED"];

/// The keys that a remedy names, as the configuration of the caller has them.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    /// The table of the CA, the template and the validity.
    table: &'static str,
    /// The table of the names.
    names: &'static str,
}

/// The keys of agent.toml.
pub(super) const NODE: Keys = Keys { table: "issuer", names: "node" };
/// The keys of client.toml.
pub(super) const SERVICE: Keys = Keys { table: "client.certificate", names: "client.certificate" };

impl Keys {
    /// The key of the validity.
    pub(super) fn validity(self) -> String {
        format!("{}.validity", self.table)
    }
}

/// The error of a call with the kind and the remedy of PCA's own codes
/// (<https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html>,
/// <https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>).
pub(super) fn sorted(call: &str, ca: &CaArn, keys: Keys, error: RemoteError) -> RemoteError {
    let kind = match error.code.as_deref() {
        // The certificate will never exist.
        Some("RequestFailedException") => RemoteErrorKind::Permanent,
        // An operator may change the status of the CA, and then the same request succeeds.
        Some(INVALID_STATE) => RemoteErrorKind::Unavailable,
        // A new certificate may not be known everywhere yet. The certificate is paid for, so no refusal is final.
        _ if error.kind == RemoteErrorKind::Permanent && call == COLLECT => RemoteErrorKind::Absent,
        _ => error.kind,
    };
    let remedy = remedy(call, kind, ca, keys, &error).unwrap_or(error.remedy);
    RemoteError { kind, remedy, ..error }
}

fn remedy(call: &str, kind: RemoteErrorKind, ca: &CaArn, keys: Keys, error: &RemoteError) -> Option<String> {
    let Keys { table, names } = keys;
    Some(match error.code.as_deref()? {
        "AccessDeniedException" | "AccessDenied" => {
            let policies = "the CA's resource policy or its AWS RAM share";
            let resource = Shared { what: "CA", owner: denial::owner(ca.as_str()), policies };
            denial::remedy(call, &error.reason, &resource)
        }
        "RequestFailedException" => "a new certificate is requested; AWS CloudTrail says why this one failed".into(),
        INVALID_STATE => of_status(status_in(&error.reason).unwrap_or_default(), keys),
        "LimitExceededException" => format!(
            "the CA has issued as many certificates as its quota allows: ask for a higher quota of certificates per CA in \
             Service Quotas, or name another CA in {table}.ca_arn"
        ),
        _ if kind == RemoteErrorKind::Absent => {
            "the certificate is asked for again, and after five minutes a new certificate is requested".into()
        }
        "ValidationException" if call == ISSUE => format!(
            "check {table}.validity: a certificate ends before its CA, and a CA in short-lived certificate mode allows 7 days \
             at most"
        ),
        "MalformedCSRException" => format!(
            "a new key and CSR are made; if PCA refuses them too, check {table}.key_algorithm and the names in [{names}]"
        ),
        "InvalidArgsException" => format!(
            "check {table}.template_arn and {table}.validity against the CA's key and mode; a new request is made"
        ),
        "InvalidArnException" if call == ISSUE => {
            format!("check {table}.ca_arn and {table}.template_arn: partition, Region and account")
        }
        "ResourceNotFoundException" | "InvalidArnException" => format!(
            "check {table}.ca_arn: the CA's ARN, Region and account; a CA that was deleted for good needs a successor, and a CA \
             of another account a share with this account (AWS RAM)"
        ),
        _ => return None,
    })
}

/// The status that a refusal names. A refusal may also name the status that the CA should have.
pub(super) fn status_in(words: &str) -> Option<&str> {
    let mut words = words.split(|character: char| !character.is_ascii_uppercase() && character != '_');
    words.find(|word| *word != ACTIVE && STATUSES.contains(word))
}

/// What to do about a CA of this status
/// (<https://docs.aws.amazon.com/privateca/latest/userguide/PcaUpdateStatus.html>).
pub(super) fn of_status(status: &str, keys: Keys) -> String {
    let named = format!("{}.ca_arn", keys.table);
    match status {
        ACTIVE => "the CA is active now, and the call is tried again".into(),
        "CREATING" => "the CA is being made: wait, and then install its certificate".into(),
        "PENDING_CERTIFICATE" => {
            "the CA has no certificate yet: have its CSR signed (get-certificate-authority-csr), and install the certificate \
             (import-certificate-authority-certificate)"
                .into()
        }
        "DISABLED" => "enable the CA: aws acm-pca update-certificate-authority --status ACTIVE".into(),
        "EXPIRED" => format!(
            "the CA's certificate has expired: install a new certificate (import-certificate-authority-certificate), which \
             makes the CA active again, or name another CA in {named}"
        ),
        "DELETED" => format!(
            "the CA is deleted: restore it within its restoration period (restore-certificate-authority), then enable it \
             (update-certificate-authority --status ACTIVE), or name another CA in {named}"
        ),
        "FAILED" => format!(
            "the making of the CA failed, and this CA never recovers: make another CA, and name that CA in {named}"
        ),
        _ => "aws acm-pca describe-certificate-authority shows the CA's status, which must be ACTIVE".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> CaArn {
        let arn = "arn:aws:acm-pca:eu-west-1:444455556666:certificate-authority/1";
        CaArn::try_from(arn.to_owned()).unwrap()
    }

    fn refused(call: &str, code: &str, words: &str) -> RemoteError {
        let error = RemoteError::new(RemoteErrorKind::Permanent, call, format!("{code} ({words})"), "GENERIC");
        sorted(call, &ca(), NODE, RemoteError { code: Some(code.into()), ..error })
    }

    /// The errors of <https://docs.aws.amazon.com/privateca/latest/APIReference/API_IssueCertificate.html> and
    /// <https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificate.html>.
    #[test]
    fn every_documented_error_of_pca_has_a_remedy_of_its_own() {
        for (call, code, word) in [
            (ISSUE, "InvalidArgsException", "issuer.template_arn"),
            (ISSUE, "InvalidArnException", "issuer.template_arn"),
            (ISSUE, "InvalidStateException", "must be ACTIVE"),
            (ISSUE, "LimitExceededException", "certificates per CA"),
            (ISSUE, "MalformedCSRException", "issuer.key_algorithm"),
            (ISSUE, "ResourceNotFoundException", "issuer.ca_arn"),
            (ISSUE, "ValidationException", "issuer.validity"),
            (ISSUE, "AccessDeniedException", "RAM share"),
            (COLLECT, "AccessDeniedException", "RAM share"),
            (COLLECT, "InvalidArnException", "asked for again"),
            (COLLECT, "InvalidStateException", "must be ACTIVE"),
            (COLLECT, "RequestFailedException", "CloudTrail"),
            (COLLECT, "ResourceNotFoundException", "asked for again"),
        ] {
            let error = refused(call, code, "");
            assert!(
                error.remedy.contains(word) && !error.remedy.contains("GENERIC"),
                "{call} {code}: {}",
                error.remedy
            );
        }
        assert_eq!(refused(ISSUE, "SomethingNew", "").remedy, "GENERIC");
    }

    #[test]
    fn a_service_is_told_the_keys_of_its_own_file() {
        let named = ["DELETED", "EXPIRED", "FAILED"].map(|status| of_status(status, SERVICE));
        let codes = ["InvalidArgsException", "InvalidArnException", "LimitExceededException", "MalformedCSRException"];
        let remedies = codes.into_iter().chain(["ResourceNotFoundException", "ValidationException"]).map(|code| {
            let error = RemoteError::new(RemoteErrorKind::Permanent, ISSUE, code.to_owned(), "GENERIC");
            sorted(ISSUE, &ca(), SERVICE, RemoteError { code: Some(code.into()), ..error }).remedy
        });
        for remedy in remedies.chain(named) {
            assert!(remedy.contains("client.certificate") && !remedy.contains("issuer."), "{remedy}");
            assert!(!remedy.contains("[node]"), "{remedy}");
        }
    }

    #[test]
    fn each_status_of_a_ca_has_its_own_remedy_and_only_a_disabled_or_deleted_ca_is_to_be_enabled() {
        let remedies: std::collections::BTreeSet<String> =
            STATUSES.into_iter().map(|status| of_status(status, NODE)).collect();
        assert_eq!(remedies.len(), STATUSES.len());
        for status in STATUSES.into_iter().filter(|status| *status != ACTIVE) {
            let error = refused(ISSUE, INVALID_STATE, &format!("The CA is not in the correct state: {status}"));
            assert_eq!((error.kind, error.remedy.clone()), (RemoteErrorKind::Unavailable, of_status(status, NODE)));
            let is_enabled = error.remedy.contains("--status ACTIVE");
            assert_eq!(is_enabled, ["DISABLED", "DELETED"].contains(&status), "{status}: {}", error.remedy);
        }
        assert_eq!(status_in("not ACTIVE, nor DISABLED_BY_NOBODY: EXPIRED"), Some("EXPIRED"));
        assert_eq!(status_in("disabled"), None);
    }

    #[test]
    fn a_denial_of_a_shared_ca_names_its_share_and_a_denial_of_an_own_ca_the_role_alone() {
        let denied = |account: &str| {
            let words = format!("User: arn:aws:sts::{account}:assumed-role/nats/i-1 is not authorized");
            refused(ISSUE, "AccessDeniedException", &words).remedy
        };
        let shared = denied("111122223333");
        assert!(shared.contains("RAM share") && shared.contains("444455556666"), "{shared}");
        assert!(!denied("444455556666").contains("RAM"));
    }
}
