//! The cluster credential: what routes must present (invariant 13), its source, and when a new version takes over.

pub mod secret;
pub(crate) mod takeover;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::aws::secret::SecretError;

/// What routes must present (invariant 13).
#[derive(Clone, Deserialize, Serialize, PartialEq, Eq)]
pub struct ClusterCredential {
    /// User name.
    pub username: String,
    /// Password.
    pub password: Zeroizing<String>,
}

impl ClusterCredential {
    /// Refuses a credential that lets in everybody, or nobody.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.username.is_empty() || self.password.is_empty() {
            return Err("has an empty username or password");
        }
        // nats-server's isBcrypt (server/auth.go) has these compared as a hash, and no longer as text.
        if ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| self.password.starts_with(prefix)) {
            return Err("has a bcrypt hash for a password, which no route could present");
        }
        Ok(())
    }
}

impl std::fmt::Debug for ClusterCredential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ClusterCredential(…)")
    }
}

/// A version of the secret that holds the credential.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct CredentialVersion {
    /// The credential.
    pub credential: ClusterCredential,
    /// When the version was made, by Secrets Manager's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// Where the cluster credential comes from.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// Reads the current version. Before it stands the previous version, where the current version was made after
    /// `recently`.
    async fn fetch(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError>;
}
