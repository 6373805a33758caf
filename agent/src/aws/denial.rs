//! Which policies must allow a call that AWS denies.

/// A resource that another account may share.
pub(crate) struct Shared<'a> {
    /// `CA` or `secret`.
    pub(crate) what: &'static str,
    /// The account of the resource, 12 digits, where the resource's ARN is known.
    pub(crate) owner: Option<&'a str>,
    /// The policies of the owner, such as `the CA's resource policy or its AWS RAM share`.
    pub(crate) policies: &'static str,
}

/// The remedy of a denied call. `asked` is the call with its condition, such as `acm-pca:IssueCertificate`. `words` are the
/// service's, and name the caller (<https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>).
///
/// A resource of another account takes two policies: the role's policy and a policy of the owner
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html>).
pub(crate) fn remedy(asked: &str, words: &str, resource: &Shared<'_>) -> String {
    let Shared { what, owner, policies } = resource;
    if words.contains("explicit deny") {
        return format!("a policy denies {asked} explicitly, and the answer names its kind: change the policy");
    }
    let own = format!("allow {asked} in the policy of the instance's role");
    match (caller(words), owner) {
        (Some(caller), Some(owner)) if caller == *owner => own,
        (Some(caller), Some(owner)) => {
            format!("{own}, and in {policies}: the {what} is of account {owner}, and the role of account {caller}")
        }
        (_, _) => format!("{own}; where the {what} is of another account, {policies} must allow the call too"),
    }
}

/// The account of the caller's ARN in a service's words, such as `arn:aws:sts::111122223333:assumed-role/…`.
pub(crate) fn caller(words: &str) -> Option<&str> {
    let from = ["sts::", "iam::"].iter().find_map(|service| words.split_once(service))?.1;
    from.split_once(':').map(|(account, _)| account).filter(|account| is_account(account))
}

/// The account of an ARN.
pub(crate) fn owner(arn: &str) -> Option<&str> {
    arn.strip_prefix("arn:")?.split(':').nth(3).filter(|account| is_account(account))
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(words: &str, owner: Option<&str>) -> String {
        let policies = "the CA's resource policy or its AWS RAM share";
        remedy("acm-pca:IssueCertificate", words, &Shared { what: "CA", owner, policies })
    }

    #[test]
    fn a_denial_names_every_policy_that_must_allow_the_call_and_no_other() {
        let user = "User: arn:aws:sts::111122223333:assumed-role/nats/i-1 is not authorized to perform: X";
        let own = "allow acm-pca:IssueCertificate in the policy of the instance's role";
        assert_eq!(told(user, Some("111122223333")), own);
        let shared = told(user, Some("444455556666"));
        for word in [own, "resource policy", "RAM share", "of account 444455556666", "of account 111122223333"] {
            assert!(shared.contains(word), "{shared}");
        }
        // The role's account is unknown, so both policies are named.
        for words in ["", "not authorized", "arn:aws:sts::12:x", "sts::"] {
            let unknown = told(words, Some("444455556666"));
            assert!(unknown.starts_with(own) && unknown.contains("RAM share must allow the call too"), "{unknown}");
        }
        let denied = told(&format!("{user} with an explicit deny in a service control policy"), Some("111122223333"));
        assert!(denied.contains("explicitly") && !denied.contains("allow"), "{denied}");
    }

    #[test]
    fn the_owner_is_the_account_of_an_arn() {
        let arn = "arn:aws:acm-pca:eu-west-1:111122223333:certificate-authority/1";
        assert_eq!(owner(arn), Some("111122223333"));
        for wrong in ["", "nats/trust", "arn:aws:acm-pca:eu-west-1", "arn:aws:iam:::x", "arn:aws:a:b:1111:c"] {
            assert_eq!(owner(wrong), None, "{wrong}");
        }
    }
}
