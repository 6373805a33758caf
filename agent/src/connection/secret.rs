//! The connection document in a secret of Secrets Manager.

use async_trait::async_trait;
use aws_config::SdkConfig;

use super::{Document, DocumentStore, MAX_DOCUMENT, Stored, usable};
use crate::aws::secret::{Secret, SecretError};

/// A secret that holds the connection document.
pub struct ConnectionSecret(Secret);

impl ConnectionSecret {
    /// `id` is a name or an ARN.
    #[must_use]
    pub fn new(aws: &SdkConfig, id: &str) -> Self {
        Self(Secret::new(aws, id))
    }

    /// The document, for whoever connects by it.
    pub async fn document(&self) -> Result<Document, SecretError> {
        usable(&self.0.current().await?.content).map_err(|unfit| self.0.unfit(unfit))
    }
}

#[async_trait]
impl DocumentStore for ConnectionSecret {
    async fn read(&self) -> Result<Option<Stored>, SecretError> {
        match self.0.current().await {
            Ok(value) => Ok(Some(Stored { content: value.content, version: value.version })),
            Err(SecretError::Fetch(error)) if error.code.as_deref() == Some("ResourceNotFoundException") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, content: &str, token: &str) -> Result<(), SecretError> {
        if content.len() > MAX_DOCUMENT {
            let what =
                format!("can't take the connection document, which has {} bytes of {MAX_DOCUMENT}", content.len());
            return Err(self.0.unfit((what, "leave in the trust bundle only the CAs of this cluster".into())));
        }
        self.0.put(content, token).await
    }
}
