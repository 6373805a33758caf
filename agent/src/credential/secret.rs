//! The cluster credential in a secret of Secrets Manager.

use async_trait::async_trait;
use aws_config::SdkConfig;
use serde::Deserialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{ClusterCredential, CredentialSource, CredentialVersion};
use crate::aws::secret::{Secret, SecretError, SecretValue, Unfit};

/// A secret of the shape that Secrets Manager's own rotation uses: `{"username": …, "password": …}`.
pub struct ClusterSecret(Secret);

impl ClusterSecret {
    /// `secret_id` is a name or an ARN.
    #[must_use]
    pub fn new(aws: &SdkConfig, secret_id: &str) -> Self {
        Self(Secret::new(aws, secret_id))
    }

    /// The current version. Before it stands the previous version, where the current version was made after `recently`.
    pub async fn versions(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError> {
        let version = |value: SecretValue| {
            Ok(CredentialVersion { credential: credential(&value.content)?, created: value.created })
        };
        let current = version(self.0.current().await?).map_err(|unfit| self.0.unfit(unfit))?;
        let previous = if current.created > recently { self.0.previous().await? } else { None };
        // No node ever had a previous version that is no credential.
        let previous = previous.and_then(|value| version(value).ok());
        Ok(previous.into_iter().chain([current]).collect())
    }
}

#[async_trait]
impl CredentialSource for ClusterSecret {
    async fn fetch(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError> {
        self.versions(recently).await
    }
}

/// The credential in the content of a secret.
pub fn credential(content: &[u8]) -> Result<ClusterCredential, Unfit> {
    #[derive(Deserialize)]
    struct Shape {
        username: Zeroizing<String>,
        password: Zeroizing<String>,
    }
    let remedy = || "store {\"username\": \"…\", \"password\": \"…\"}, neither of them empty".to_owned();
    // serde's message may repeat a part of the content.
    let shape: Shape = serde_json::from_slice(content)
        .map_err(|_| ("is no JSON object with a username and a password, both text".to_owned(), remedy()))?;
    let credential = ClusterCredential { username: shape.username.to_string(), password: shape.password };
    // The refusal comes while the previous version is in force, and not at the takeover.
    credential.check().map_err(|what| (what.into(), remedy()))?;
    Ok(credential)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn invariant_01_whatever_a_secret_holds_no_word_of_it_is_in_an_error_about_the_credential(
            word in "[g-z]{12}", before in "(?s).{0,20}|\\{\"a\": \"", after in "(?s).{0,20}|\"\\}|\", \"password\": 1\\}",
        ) {
            let content = format!("{before}{word}{after}");
            if let Err((what, remedy)) = credential(content.as_bytes()) {
                proptest::prop_assert!(!what.contains(&word) && !remedy.contains(&word), "{what}; {remedy}");
            }
        }

        #[test]
        fn a_credential_is_read_back_whatever_it_is_made_of(username in "(?s).{1,30}", password in "(?s).{1,30}") {
            let secret = serde_json::json!({"username": username, "password": password, "engine": 1}).to_string();
            let read = credential(secret.as_bytes()).unwrap();
            proptest::prop_assert_eq!((&read.username, &*read.password), (&username, &password));
        }
    }

    #[test]
    fn a_credential_needs_both_words() {
        let good = credential(br#"{"username": "route", "password": "s3cret", "engine": "nats"}"#).unwrap();
        assert_eq!((good.username.as_str(), good.password.as_str()), ("route", "s3cret"));
        for wrong in [
            r#"{"username": "route"}"#,
            r#"{"username": "route", "password": ""}"#,
            r#"{"username": "", "password": "s3cret"}"#,
            r#"{"username": "route", "password": 7777}"#,
            r#"{"username": "route", "password": "$2a$s3cret"}"#,
            "s3cret",
            "",
        ] {
            let (what, remedy) = credential(wrong.as_bytes()).unwrap_err();
            assert!(!what.contains("s3cret") && !remedy.contains("s3cret") && !what.contains("7777"));
        }
    }
}
