//! AWS Secrets Manager: the trust bundle, and the credential that routes present.
//!
//! A secret's content never stands in an error or a log line, whatever is wrong with it.

use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_secretsmanager::Client;
use serde::Deserialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{CredentialSource, CredentialVersion, TrustBundle, TrustError, TrustSource};
use crate::aws::{Failure, FailureKind};
use crate::render::ClusterCredential;

const GET: &str = "secretsmanager:GetSecretValue";

/// The largest secret that is read, in bytes: Secrets Manager's own limit
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
const MAX_SECRET: usize = 65_536;

const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// Why a secret could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Secrets Manager didn't give it.
    #[error("reading the secret {secret:?}: {call}: {reason}; {remedy}")]
    Fetch {
        /// Name or ARN.
        secret: String,
        /// The call as IAM writes it.
        call: &'static str,
        /// What came back.
        reason: String,
        /// What to do about it.
        remedy: String,
        /// The cause below it, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It holds something else than it should.
    #[error("the secret {secret:?} {what}; {remedy}")]
    Content {
        /// Name or ARN.
        secret: String,
        /// What is wrong, without a word of the content.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// A version of a secret.
pub struct SecretValue {
    /// String or binary alike, as bytes.
    pub content: Zeroizing<Vec<u8>>,
    /// VersionId: changes with the content.
    pub version: String,
    /// CreatedDate, "that this version of the secret was created"
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_GetSecretValue.html>). An answer that doesn't say is
    /// of long ago.
    pub created: OffsetDateTime,
}

/// One secret.
struct Secret {
    client: Client,
    id: String,
}

impl Secret {
    /// An ARN is called in its own Region.
    fn new(aws: &SdkConfig, id: &str) -> Self {
        let mut config = aws_sdk_secretsmanager::config::Builder::from(aws);
        if let ["arn", _, "secretsmanager", region, ..] = id.split(':').collect::<Vec<_>>().as_slice() {
            config = config.region(Region::new((*region).to_owned()));
        }
        Self { client: Client::from_conf(config.build()), id: id.to_owned() }
    }

    /// Always with the stage: a double of Secrets Manager that leaves it out returns an old version after a label moved.
    async fn current(&self) -> Result<SecretValue, SecretError> {
        self.staged("AWSCURRENT").await.map_err(|failure| self.failed(failure))
    }

    /// The version before that, as far as there is one and it may be read: the label moves with AWSCURRENT
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
    async fn previous(&self) -> Result<Option<SecretValue>, SecretError> {
        match self.staged("AWSPREVIOUS").await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if matches!(failure.kind, FailureKind::Denied | FailureKind::Permanent) => {
                // Without it a node can still begin, and one that has a credential keeps it.
                if failure.code.as_deref() != Some("ResourceNotFoundException") {
                    tracing::warn!("the version AWSPREVIOUS of the secret {:?} can't be read: {failure}", self.id);
                }
                Ok(None)
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    async fn staged(&self, stage: &str) -> Result<SecretValue, Failure> {
        let request = self.client.get_secret_value().secret_id(&self.id).version_stage(stage);
        let answer = request.send().await.map_err(|error| Failure::sort(GET, error))?;
        let content = match (answer.secret_string, answer.secret_binary) {
            (Some(text), _) => Zeroizing::new(text.into_bytes()),
            (None, Some(bytes)) => Zeroizing::new(bytes.into_inner()),
            (None, None) => return Err(Failure::nonsense(GET, "the answer holds no secret")),
        };
        if content.len() > MAX_SECRET {
            return Err(Failure::nonsense(GET, format!("the answer is larger than {MAX_SECRET} bytes")));
        }
        let version = answer.version_id.filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| Failure::nonsense(GET, "the answer holds no VersionId"))?;
        let created = answer.created_date.and_then(|date| OffsetDateTime::from_unix_timestamp(date.secs()).ok());
        Ok(SecretValue { content, version, created: created.unwrap_or(OffsetDateTime::UNIX_EPOCH) })
    }

    fn failed(&self, failure: Failure) -> SecretError {
        let remedy = match failure.code.as_deref() {
            Some("ResourceNotFoundException") => {
                "check the secret's name, Region and account, and that it has a current version".into()
            }
            _ => failure.remedy,
        };
        SecretError::Fetch {
            secret: self.id.clone(),
            call: failure.call,
            reason: failure.reason,
            remedy,
            source: failure.source,
        }
    }

    fn unfit(&self, (what, remedy): Unfit) -> SecretError {
        SecretError::Content { secret: self.id.clone(), what, remedy }
    }
}

/// A trust bundle in a secret: PEM as string or binary, or a JSON object of which one value is the PEM.
pub struct SecretsManager {
    secret: Secret,
    json_key: Option<String>,
}

impl SecretsManager {
    /// `secret_id` is a name or an ARN; `json_key` names the value of a JSON secret.
    #[must_use]
    pub fn new(aws: &SdkConfig, secret_id: &str, json_key: Option<String>) -> Self {
        Self { secret: Secret::new(aws, secret_id), json_key }
    }

    /// The bundle's PEM, as the current version of the secret holds it.
    pub async fn pem(&self) -> Result<SecretValue, SecretError> {
        let SecretValue { content, version, created } = self.secret.current().await?;
        let content = pem(content, self.json_key.as_deref()).map_err(|unfit| self.secret.unfit(unfit))?;
        Ok(SecretValue { content, version, created })
    }
}

#[async_trait]
impl TrustSource for SecretsManager {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let SecretValue { content, version, .. } = self.pem().await?;
        let origin = &self.secret.id;
        TrustBundle::parse(&content, origin, &version)
            .map_err(|source| TrustError::Bundle { origin: origin.clone(), source })
    }
}

/// What routes must present, in a secret of the shape that Secrets Manager's own rotation uses:
/// `{"username": …, "password": …}`.
pub struct ClusterSecret(Secret);

impl ClusterSecret {
    /// `secret_id` is a name or an ARN.
    #[must_use]
    pub fn new(aws: &SdkConfig, secret_id: &str) -> Self {
        Self(Secret::new(aws, secret_id))
    }

    /// The credential as it is now, and where that was made after `recently`, before it the one that it took over from.
    pub async fn versions(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError> {
        let version = |value: SecretValue| {
            Ok(CredentialVersion { credential: credential(&value.content)?, created: value.created })
        };
        let current = version(self.0.current().await?).map_err(|unfit| self.0.unfit(unfit))?;
        let previous = if current.created > recently { self.0.previous().await? } else { None };
        // What can't be a credential, no node had.
        let previous = previous.and_then(|value| version(value).ok());
        Ok(previous.into_iter().chain([current]).collect())
    }
}

#[async_trait]
impl CredentialSource for ClusterSecret {
    async fn fetch(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, TrustError> {
        Ok(self.versions(recently).await?)
    }
}

/// What is wrong with a secret's content, and the remedy.
pub type Unfit = (String, String);

/// The PEM in a secret: all of it, or the named or only fitting value of a JSON object.
pub fn pem(content: Zeroizing<Vec<u8>>, json_key: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Unfit> {
    let is_json = content.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !is_json {
        return match json_key {
            None => Ok(content),
            Some(key) => Err((
                format!("is no JSON object, so it has no key {key:?}"),
                "write trust.secret_id without \"#KEY\", or store a JSON object".into(),
            )),
        };
    }
    // Values that aren't text can't be the bundle, and are none of our business.
    let object: std::collections::BTreeMap<String, Text> = serde_json::from_slice(&content).map_err(|_| {
        (
            "begins like a JSON object but is none".to_owned(),
            "store PEM, or a JSON object with the PEM as a value".into(),
        )
    })?;
    let text = if let Some(key) = json_key {
        object.get(key).and_then(|value| value.0.as_ref()).ok_or_else(|| {
            (format!("has no text under the key {key:?}"), "check KEY in trust.secret_id = \"NAME#KEY\"".to_owned())
        })?
    } else {
        let mut fitting =
            object.values().filter_map(|text| text.0.as_ref()).filter(|text| text.contains(BEGIN_CERTIFICATE));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => only,
            (None, _) => {
                return Err((
                    "is a JSON object without a PEM certificate".into(),
                    "store the bundle's PEM as one of its values".into(),
                ));
            }
            (Some(_), Some(_)) => {
                return Err((
                    "is a JSON object with several PEM values".into(),
                    "say which one: trust.secret_id = \"NAME#KEY\"".into(),
                ));
            }
        }
    };
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}

/// The credential in a secret.
pub fn credential(content: &[u8]) -> Result<ClusterCredential, Unfit> {
    #[derive(Deserialize)]
    struct Shape {
        username: Zeroizing<String>,
        password: Zeroizing<String>,
    }
    let remedy = || "store {\"username\": \"…\", \"password\": \"…\"}, neither of them empty".to_owned();
    // serde's own words may repeat a part of the content.
    let shape: Shape = serde_json::from_slice(content)
        .map_err(|_| ("is no JSON object with a username and a password, both text".to_owned(), remedy()))?;
    let credential = ClusterCredential { username: shape.username.to_string(), password: shape.password };
    // It is refused now, while the one before is in force, and not when it has taken over.
    credential.fault().map_or(Ok(credential.clone()), |fault| Err((fault.into(), remedy())))
}

/// A JSON value, kept only if it is text.
struct Text(Option<Zeroizing<String>>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Text(Zeroizing<String>),
            Other(serde::de::IgnoredAny),
        }
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::Text(text) => Some(text),
            Value::Other(_) => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";

    fn read(content: &str, key: Option<&str>) -> Result<String, Unfit> {
        pem(Zeroizing::new(content.as_bytes().to_vec()), key).map(|pem| String::from_utf8(pem.to_vec()).unwrap())
    }

    proptest::proptest! {
        #[test]
        fn invariant_01_whatever_a_secret_holds_no_word_of_it_is_in_an_error(
            word in "[g-z]{12}", before in "(?s).{0,20}|\\{\"a\": \"", after in "(?s).{0,20}|\"\\}|\", \"password\": 1\\}",
        ) {
            let content = format!("{before}{word}{after}");
            for key in [None, Some("a"), Some("KEY")] {
                if let Err((what, remedy)) = read(&content, key) {
                    proptest::prop_assert!(!what.contains(&word) && !remedy.contains(&word), "{what}; {remedy}");
                }
            }
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
    fn plain_pem_is_taken_whole() {
        assert_eq!(read(PEM, None).unwrap(), PEM);
    }

    #[test]
    fn a_json_secret_gives_the_named_value_or_its_only_certificate() {
        let secret = serde_json::json!({"bundle": PEM, "note": "x", "count": 3, "more": {"a": []}}).to_string();
        assert_eq!(read(&secret, None).unwrap(), PEM);
        assert_eq!(read(&secret, Some("bundle")).unwrap(), PEM);
        assert!(read(&secret, Some("count")).unwrap_err().0.contains("\"count\""));
        assert!(read(&secret, Some("absent")).is_err());
    }

    #[test]
    fn several_certificates_need_a_name() {
        let secret = serde_json::json!({"old": PEM, "new": PEM}).to_string();
        let (_, remedy) = read(&secret, None).unwrap_err();
        assert!(remedy.contains("NAME#KEY"));
        assert_eq!(read(&secret, Some("old")).unwrap(), PEM);
    }

    #[test]
    fn a_key_of_something_that_is_no_json_is_refused() {
        assert!(read(PEM, Some("bundle")).is_err());
        assert!(read("{not json", None).is_err());
        assert!(read("{}", None).is_err());
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

    #[test]
    fn invariant_01_a_broken_secrets_content_stays_out_of_the_error() {
        for secret in [r#"{"a": "s3cret""#, r#"{"a": "s3cret"}"#] {
            let (what, remedy) = read(secret, Some("b")).unwrap_err();
            assert!(!what.contains("s3cret") && !remedy.contains("s3cret"));
        }
    }
}
