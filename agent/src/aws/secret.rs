//! One secret of Secrets Manager, read and written whole.
//!
//! A secret's content never stands in an error or a log line.

use aws_config::{Region, SdkConfig};
use aws_sdk_secretsmanager::Client;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::calls::counted;
use super::denial::{self, Shared};
use super::{nonsense, refused};
use crate::error::{RemoteError, RemoteErrorKind};

const GET: &str = "secretsmanager:GetSecretValue";
const PUT: &str = "secretsmanager:PutSecretValue";

/// The largest secret, in bytes: Secrets Manager's own limit
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
const MAX_SECRET: usize = 65_536;

/// Why a secret could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Secrets Manager didn't answer with the secret.
    #[error(transparent)]
    Fetch(#[from] RemoteError),
    /// The secret's content is not usable.
    #[error("the secret {secret:?} {what}; {remedy}")]
    Content {
        /// Name or ARN.
        secret: String,
        /// What is wrong. It never quotes the content.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// A version of a secret.
pub struct SecretValue {
    /// The string or the binary content, as bytes.
    pub content: Zeroizing<Vec<u8>>,
    /// VersionId: changes with the content.
    pub version: String,
    /// CreatedDate, "that this version of the secret was created"
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_GetSecretValue.html>). Without a date the version
    /// counts as old.
    pub created: OffsetDateTime,
}

/// The Region of a secret that is named by its ARN.
pub(crate) fn region_of(id: &str) -> Option<&str> {
    match id.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", _, "secretsmanager", region, ..] => Some(region),
        _ => None,
    }
}

/// One secret.
pub(crate) struct Secret {
    client: Client,
    pub(crate) id: String,
}

impl Secret {
    /// `id` is a name or an ARN. An ARN is called in its own Region.
    pub(crate) fn new(aws: &SdkConfig, id: &str) -> Self {
        let mut config = aws_sdk_secretsmanager::config::Builder::from(aws);
        if let Some(region) = region_of(id) {
            config = config.region(Region::new(region.to_owned()));
        }
        Self { client: Client::from_conf(config.build()), id: id.to_owned() }
    }

    /// The current version. The request names the stage: without a stage moto returns an old version after a label moved.
    pub(crate) async fn current(&self) -> Result<SecretValue, SecretError> {
        self.staged("AWSCURRENT").await.map_err(|error| self.failed(error))
    }

    /// The previous version, if it exists and may be read: its label moves with AWSCURRENT
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
    pub(crate) async fn previous(&self) -> Result<Option<SecretValue>, SecretError> {
        match self.staged("AWSPREVIOUS").await {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.kind, RemoteErrorKind::Denied | RemoteErrorKind::Permanent) => {
                // A new node can begin without the previous version, and other nodes keep the credential that they hold.
                if error.code.as_deref() != Some("ResourceNotFoundException") {
                    tracing::warn!("the version AWSPREVIOUS of the secret {:?} can't be read: {error}", self.id);
                }
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn staged(&self, stage: &str) -> Result<SecretValue, RemoteError> {
        let request = self.client.get_secret_value().secret_id(&self.id).version_stage(stage);
        let answer = counted(GET, request.send().await).map_err(|error| refused(GET, error))?;
        let content = match (answer.secret_string, answer.secret_binary) {
            (Some(text), _) => Zeroizing::new(text.into_bytes()),
            (None, Some(bytes)) => Zeroizing::new(bytes.into_inner()),
            (None, None) => return Err(nonsense(GET, "the answer holds no secret")),
        };
        if content.len() > MAX_SECRET {
            return Err(nonsense(GET, format!("the answer is larger than {MAX_SECRET} bytes")));
        }
        let version = answer.version_id.filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| nonsense(GET, "the answer holds no VersionId"))?;
        let created = answer.created_date.and_then(|date| OffsetDateTime::from_unix_timestamp(date.secs()).ok());
        Ok(SecretValue { content, version, created: created.unwrap_or(OffsetDateTime::UNIX_EPOCH) })
    }

    /// Puts a new version, which becomes the current version. `token`, 32 to 64 characters, becomes its VersionId. A version of
    /// that id stays as it is: another process has made the version
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
    pub(crate) async fn put(&self, content: &str, token: &str) -> Result<(), SecretError> {
        let request = self.client.put_secret_value().secret_id(&self.id).secret_string(content);
        let sent = counted(PUT, request.client_request_token(token).send().await).map_err(|error| refused(PUT, error));
        match sent {
            Err(error) if error.code.as_deref() == Some("ResourceExistsException") => Ok(()),
            Err(error) => Err(self.not_written(error)),
            Ok(_) => Ok(()),
        }
    }

    fn not_written(&self, error: RemoteError) -> SecretError {
        let remedy = match error.code.as_deref() {
            Some("ResourceNotFoundException") => "make the secret; the agent writes its content".into(),
            // With a key of one's own the call needs both permissions of KMS
            // (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html>).
            Some("AccessDeniedException" | "EncryptionFailure") => {
                format!(
                    "allow {PUT} on the secret, and kms:GenerateDataKey and kms:Decrypt on its key, in the policy of the instance's role"
                )
            }
            _ => error.remedy,
        };
        let attempt = format!("writing the secret {:?}: {}", self.id, error.attempt);
        SecretError::Fetch(RemoteError { attempt, remedy, ..error })
    }

    fn failed(&self, error: RemoteError) -> SecretError {
        let remedy = match error.code.as_deref() {
            Some("ResourceNotFoundException") => {
                "check the secret's name, Region and account, and that it has a current version".into()
            }
            // The code is the same whether the policy of the role or of the KMS key denies the call
            // (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/troubleshoot.html>).
            Some("AccessDeniedException") => {
                let asked = format!("{GET} on the secret, and kms:Decrypt on the secret's key,");
                let policies = "the secret's resource policy and the policy of its key";
                // A name stands for a secret of the caller's own account.
                let owner = denial::owner(&self.id).or_else(|| denial::caller(&error.reason));
                let resource = Shared { what: "secret", owner, policies };
                denial::remedy(&asked, &error.reason, &resource)
            }
            Some("DecryptionFailure") => "allow the instance's role kms:Decrypt on the secret's key".into(),
            _ => error.remedy,
        };
        let attempt = format!("reading the secret {:?}: {}", self.id, error.attempt);
        SecretError::Fetch(RemoteError { attempt, remedy, ..error })
    }

    pub(crate) fn unfit(&self, (what, remedy): Unfit) -> SecretError {
        SecretError::Content { secret: self.id.clone(), what, remedy }
    }
}

/// What is wrong with a secret's content, and the remedy.
pub type Unfit = (String, String);
