//! Checks the name of the instance's role in the answer of instance metadata.
//!
//! The SDK puts the name into the path of its next request, and panics if the path is no URI (aws-config 1.13,
//! `imds/client.rs`). Without this check a proxy's login page in place of instance metadata would end the agent.

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt as _, Limited};

/// The largest answer that is read, in bytes. Every name of a role is shorter.
const MAX_ANSWER: usize = 1024;

/// Whether a request asks for the name of the role.
pub(super) fn is_asked_for(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/latest/meta-data/iam/security-credentials")
}

/// The answer unchanged, if its text may be the name of a role.
pub(super) async fn checked(mut answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let name = Limited::new(std::mem::replace(answer.body_mut(), SdkBody::taken()), MAX_ANSWER);
    let name = name.collect().await.map_err(|cause| ConnectorError::other(cause, None))?.to_bytes();
    if is_name(&name) {
        *answer.body_mut() = SdkBody::from(name.to_vec());
        Ok(answer)
    } else {
        Err(ConnectorError::other("instance metadata's answer is no name of a role".into(), None))
    }
}

/// Whether IAM allows a text as a role's name
/// (<https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html>).
fn is_name(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_roles_are_told_from_everything_else() {
        assert!(is_name(b"nats-Server_1+=,.@"));
        for other in ["", "<html>", "a b", "a\n", "a/b", "r\u{f6}le"] {
            assert!(!is_name(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn only_the_question_for_the_name_is_meant() {
        let path = "http://169.254.169.254/latest/meta-data/iam/security-credentials";
        assert!(is_asked_for(path) && is_asked_for(&format!("{path}/")));
        assert!(!is_asked_for(&format!("{path}/nats")) && !is_asked_for("http://169.254.169.254/latest/api/token"));
    }
}
