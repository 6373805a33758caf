//! A trust bundle in a file.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::io::AsyncReadExt;

use crate::digest::sha256_hex;
use crate::trust::{FETCH_TIMEOUT, MAX_BUNDLE, TrustBundle, TrustError, TrustSource};

/// Each fetch reads the PEM file again.
#[derive(Clone, Debug)]
pub(crate) struct File {
    path: PathBuf,
}

impl File {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn read(&self) -> std::io::Result<Vec<u8>> {
        // The `open` of a pipe blocks until another process writes to the pipe.
        if !tokio::fs::metadata(&self.path).await?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut content = Vec::new();
        let file = tokio::fs::File::open(&self.path).await?;
        file.take(MAX_BUNDLE as u64 + 1).read_to_end(&mut content).await?;
        Ok(content)
    }
}

#[async_trait]
impl TrustSource for File {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let origin = || self.path.display().to_string();
        let content = tokio::time::timeout(FETCH_TIMEOUT, self.read())
            .await
            .map_err(|_| TrustError::Timeout { origin: origin() })?
            .map_err(|source| TrustError::File { path: self.path.clone(), source })?;
        if content.len() > MAX_BUNDLE {
            return Err(TrustError::TooLarge { origin: origin() });
        }
        TrustBundle::parse(&content, &origin(), &sha256_hex(&content))
            .map_err(|source| TrustError::Bundle { origin: origin(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::x509::test_ca::Ca;

    #[tokio::test]
    async fn reads_the_file_anew_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let (one, two) = (Ca::root("one"), Ca::root("two"));
        let source = File::new(path.clone());
        std::fs::write(&path, &one.pem).unwrap();
        let first = source.fetch().await.unwrap();
        assert_eq!(first.source, path.display().to_string());
        assert_eq!(source.fetch().await.unwrap(), first);
        std::fs::write(&path, one.pem + &two.pem).unwrap();
        let second = source.fetch().await.unwrap();
        assert_eq!(second.anchors.len(), 2);
        assert_ne!(second.version, first.version);
    }

    #[tokio::test]
    async fn each_failure_names_the_file_and_has_its_cause_beneath() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let error = File::new(path.clone()).fetch().await.unwrap_err();
        assert!(matches!(error, TrustError::File { .. }));
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(File::new(directory.path().into()).fetch().await.unwrap_err().source().is_some());
        std::fs::write(&path, "nothing").unwrap();
        let error = File::new(path.clone()).fetch().await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("holds no certificate"));
        std::fs::write(&path, vec![b'a'; MAX_BUNDLE + 1]).unwrap();
        assert!(matches!(File::new(path).fetch().await.unwrap_err(), TrustError::TooLarge { .. }));
    }
}
