//! The cluster credential: what routes must present (invariant 13), where it comes from, and when a new one takes over.

pub mod secret;
pub mod takeover;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use self::takeover::CredentialVersion;
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
    /// What makes it one that lets in everybody, or nobody.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        if self.username.is_empty() || self.password.is_empty() {
            return Some("has an empty username or password");
        }
        // Compared as a hash, not as text, by nats-server's isBcrypt (server/auth.go).
        let is_hash = ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| self.password.starts_with(prefix));
        is_hash.then_some("has a bcrypt hash for a password, which no route could present")
    }
}

impl std::fmt::Debug for ClusterCredential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ClusterCredential(…)")
    }
}

/// Where the credential comes from that routes must present.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// Reads it as it is now, and where that was made after `recently`, before it the version that it took over from.
    async fn fetch(&self, recently: OffsetDateTime) -> Result<Vec<CredentialVersion>, SecretError>;
}
