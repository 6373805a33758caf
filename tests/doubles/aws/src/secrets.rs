//! AWS Secrets Manager, as its documentation describes it.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use crate::{ACCOUNT_ID, ServiceError};

/// The largest secret value in bytes
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
pub const MAX_SECRET: usize = 65_536;

/// The content of a version: `SecretString` or `SecretBinary`
/// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_GetSecretValue.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A `SecretString`.
    Text(String),
    /// A `SecretBinary`.
    Binary(Vec<u8>),
}

/// GetSecretValue's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretValue {
    /// `ARN`.
    pub arn: String,
    /// `Name`.
    pub name: String,
    /// `VersionId`.
    pub version: String,
    /// `VersionStages`.
    pub stages: Vec<&'static str>,
    /// `SecretString` or `SecretBinary`.
    pub content: Content,
    /// `CreatedDate`.
    pub created: OffsetDateTime,
}

#[derive(Debug)]
struct Secret {
    arn: String,
    /// The versions in the order of creation.
    versions: Vec<Version>,
    deleted: bool,
}

#[derive(Debug)]
struct Version {
    id: String,
    content: Content,
    created: OffsetDateTime,
}

/// Secrets Manager in one account and Region.
#[derive(Debug)]
pub struct Secrets {
    /// The time for which readers still see the previous version. The API documents no bound. Its best practices advise
    /// retries.
    pub lag: Duration,
    region: String,
    by_name: BTreeMap<String, Secret>,
}

impl Secrets {
    /// Secrets Manager without secrets, and without lag.
    #[must_use]
    pub fn new(region: &str) -> Self {
        Self { lag: Duration::ZERO, region: region.into(), by_name: BTreeMap::new() }
    }

    /// CreateSecret or PutSecretValue. Returns the new version's id. "Secrets Manager automatically moves the staging
    /// label AWSCURRENT to this version. If this operation moves the staging label AWSCURRENT from another version to
    /// this version, then it also moves AWSPREVIOUS to the version that AWSCURRENT was removed from"
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
    ///
    /// # Errors
    /// `InvalidParameterException` for a value above [`MAX_SECRET`].
    pub fn put(&mut self, name: &str, content: Content, now: OffsetDateTime) -> Result<String, ServiceError> {
        fits(&content)?;
        let arn = format!("arn:aws:secretsmanager:{}:{ACCOUNT_ID}:secret:{name}-AbCdEf", self.region);
        let secret = self.by_name.entry(name.into()).or_insert(Secret { arn, versions: Vec::new(), deleted: false });
        let id = format!("00000000-0000-4000-9000-{:012x}", secret.versions.len() + 1);
        secret.versions.push(Version { id: id.clone(), content, created: now });
        Ok(id)
    }

    /// PutSecretValue of a secret that is there. The token becomes the VersionId. "If a version with this value already
    /// exists and that version's SecretString and SecretBinary values are the same as those in the request, then the
    /// request is ignored. If a version with this value already exists and […] are different, then the request fails"
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_PutSecretValue.html>).
    ///
    /// # Errors
    /// The errors on the operation's page.
    pub fn put_secret_value(
        &mut self,
        secret_id: &str,
        content: Content,
        token: &str,
        now: OffsetDateTime,
    ) -> Result<(), ServiceError> {
        fits(&content)?;
        if !(32..=64).contains(&token.len()) {
            return Err(ServiceError::new("InvalidParameterException", "ClientRequestToken has 32 to 64 characters"));
        }
        let found = self.by_name.iter_mut().find(|(name, secret)| *name == secret_id || secret.arn == secret_id);
        let (_, secret) = found.filter(|(_, secret)| !secret.deleted).ok_or_else(|| {
            ServiceError::new("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
        })?;
        match secret.versions.iter().find(|version| version.id == token) {
            None => secret.versions.push(Version { id: token.into(), content, created: now }),
            Some(known) if known.content == content => {}
            Some(_) => {
                let said = "a version with this token and another value exists";
                return Err(ServiceError::new("ResourceExistsException", said));
            }
        }
        Ok(())
    }

    /// DeleteSecret with a recovery window, or RestoreSecret. A read of a deleted secret gives
    /// `InvalidRequestException`
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_DeleteSecret.html>).
    pub fn set_deleted(&mut self, name: &str, deleted: bool) {
        if let Some(secret) = self.by_name.get_mut(name) {
            secret.deleted = deleted;
        }
    }

    /// GetSecretValue, by name or ARN. "If you don't specify either a VersionStage or VersionId, Secrets Manager
    /// returns the AWSCURRENT version"
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/APIReference/API_GetSecretValue.html>).
    ///
    /// # Errors
    /// The errors on the operation's page.
    pub fn get_secret_value(
        &self,
        secret_id: &str,
        version_id: Option<&str>,
        version_stage: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<SecretValue, ServiceError> {
        let found = self.by_name.iter().find(|(name, secret)| *name == secret_id || secret.arn == secret_id);
        let missing = |what: &str| {
            ServiceError::new("ResourceNotFoundException", format!("Secrets Manager can't find the specified {what}"))
        };
        let (name, secret) = found.ok_or_else(|| missing("secret."))?;
        if secret.deleted {
            return Err(ServiceError::new(
                "InvalidRequestException",
                "You can't perform this operation on the secret because it was marked for deletion.",
            ));
        }
        let seen = secret.versions.iter().rposition(|version| version.created + self.lag <= now);
        let current = seen.ok_or_else(|| missing("secret."))?;
        let stages = |index: usize| match current.checked_sub(index) {
            Some(0) => vec!["AWSCURRENT"],
            Some(1) => vec!["AWSPREVIOUS"],
            _ => Vec::new(),
        };
        let stage = version_stage.or(version_id.is_none().then_some("AWSCURRENT"));
        let fits = |index: &usize| {
            let is_version = version_id.is_none_or(|id| secret.versions[*index].id == id);
            is_version && stage.is_none_or(|stage| stages(*index).contains(&stage))
        };
        let index = (0..=current).rev().find(fits).ok_or_else(|| missing("secret value for staging label"))?;
        let version = &secret.versions[index];
        Ok(SecretValue {
            arn: secret.arn.clone(),
            name: name.clone(),
            version: version.id.clone(),
            stages: stages(index),
            content: version.content.clone(),
            created: version.created,
        })
    }
}

/// Refuses a value above [`MAX_SECRET`].
fn fits(content: &Content) -> Result<(), ServiceError> {
    let length = match content {
        Content::Text(text) => text.len(),
        Content::Binary(bytes) => bytes.len(),
    };
    if length > MAX_SECRET {
        return Err(ServiceError::new("InvalidParameterException", "the secret value is too long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn text(value: &SecretValue) -> &str {
        match &value.content {
            Content::Text(text) => text,
            Content::Binary(_) => "binary",
        }
    }

    #[test]
    fn the_labels_move_with_every_new_version() {
        let mut secrets = Secrets::new("eu-west-1");
        for content in ["one", "two", "three"] {
            secrets.put("trust", Content::Text(content.into()), NOW).unwrap();
        }
        let read = |version, stage| secrets.get_secret_value("trust", version, stage, NOW);
        let current = read(None, None).unwrap();
        assert_eq!((text(&current), current.stages.as_slice()), ("three", ["AWSCURRENT"].as_slice()));
        assert_eq!(text(&read(None, Some("AWSPREVIOUS")).unwrap()), "two");
        let oldest = read(Some("00000000-0000-4000-9000-000000000001"), None).unwrap();
        assert_eq!((text(&oldest), oldest.stages.len()), ("one", 0));
        assert_eq!(text(&secrets.get_secret_value(&current.arn, None, None, NOW).unwrap()), "three");
        assert_eq!(read(None, Some("AWSPENDING")).unwrap_err().code, "ResourceNotFoundException");
        assert_eq!(read(Some(&current.version), Some("AWSPREVIOUS")).unwrap_err().code, "ResourceNotFoundException");
    }

    #[test]
    fn a_token_makes_one_version_of_one_value() {
        let mut secrets = Secrets::new("eu-west-1");
        let mut put = |content: &str, token: &str| {
            secrets.put_secret_value("document", Content::Text(content.into()), token, NOW).map_err(|error| error.code)
        };
        let (first, second) = ("1".repeat(32), "2".repeat(32));
        assert_eq!(put("one", &first), Err("ResourceNotFoundException"));
        secrets.put("document", Content::Text("{}".into()), NOW).unwrap();
        let mut put = |content: &str, token: &str| {
            secrets.put_secret_value("document", Content::Text(content.into()), token, NOW).map_err(|error| error.code)
        };
        assert_eq!(put("one", "short"), Err("InvalidParameterException"));
        assert_eq!((put("one", &first), put("two", &second)), (Ok(()), Ok(())));
        // The earlier version stays the earlier version.
        assert_eq!((put("one", &first), put("other", &first)), (Ok(()), Err("ResourceExistsException")));
        let current = secrets.get_secret_value("document", None, None, NOW).unwrap();
        assert_eq!((text(&current), current.version.as_str()), ("two", second.as_str()));
    }

    #[test]
    fn a_new_version_may_be_seen_late() {
        let mut secrets = Secrets::new("eu-west-1");
        secrets.put("trust", Content::Text("one".into()), NOW).unwrap();
        secrets.lag = Duration::seconds(5);
        let later = NOW + Duration::minutes(1);
        secrets.put("trust", Content::Text("two".into()), later).unwrap();
        let read = |at| secrets.get_secret_value("trust", None, Some("AWSCURRENT"), at).unwrap();
        assert_eq!(text(&read(later + Duration::seconds(4))), "one");
        assert_eq!(text(&read(later + Duration::seconds(5))), "two");
    }

    #[test]
    fn what_is_not_there_deleted_or_too_long_is_refused() {
        let mut secrets = Secrets::new("eu-west-1");
        let read = |secrets: &Secrets| secrets.get_secret_value("trust", None, None, NOW).map_err(|error| error.code);
        assert_eq!(read(&secrets).unwrap_err(), "ResourceNotFoundException");
        secrets.put("trust", Content::Binary(vec![1]), NOW).unwrap();
        secrets.set_deleted("trust", true);
        assert_eq!(read(&secrets).unwrap_err(), "InvalidRequestException");
        secrets.set_deleted("trust", false);
        assert_eq!(read(&secrets).unwrap().content, Content::Binary(vec![1]));
        let long = Content::Text("a".repeat(MAX_SECRET + 1));
        assert_eq!(secrets.put("trust", long, NOW).unwrap_err().code, "InvalidParameterException");
    }
}
