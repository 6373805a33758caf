//! A trust bundle of the issuer's own CA certificate.

use std::sync::Arc;

use async_trait::async_trait;

use crate::digest::sha256_hex;
use crate::issue::Issuer;
use crate::trust::{FETCH_TIMEOUT, MAX_BUNDLE, TrustBundle, TrustError, TrustSource};

/// The name of this source in a bundle.
const ORIGIN: &str = "issuer";

/// Asks the issuer for its CA certificate and the chain above it. All of these certificates become anchors.
pub(crate) struct FromIssuer {
    issuer: Arc<dyn Issuer>,
}

impl FromIssuer {
    pub(crate) fn new(issuer: Arc<dyn Issuer>) -> Self {
        Self { issuer }
    }
}

#[async_trait]
impl TrustSource for FromIssuer {
    async fn fetch(&self) -> Result<TrustBundle, TrustError> {
        let pem = tokio::time::timeout(FETCH_TIMEOUT, self.issuer.ca_pem())
            .await
            .map_err(|_| TrustError::Timeout { origin: ORIGIN.to_owned() })?
            .map_err(|source| TrustError::Issuer { source })?;
        if pem.len() > MAX_BUNDLE {
            return Err(TrustError::TooLarge { origin: ORIGIN.to_owned() });
        }
        TrustBundle::parse(pem.as_bytes(), ORIGIN, &sha256_hex(pem.as_bytes()))
            .map_err(|source| TrustError::Bundle { origin: ORIGIN.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{RemoteError, RemoteErrorKind};
    use crate::issue::{CertificateHandle, IssueRequest, IssuedChain};

    /// An issuer that answers `ca_pem` after a while, with a certificate or a refusal.
    struct FakeIssuer {
        after: std::time::Duration,
        pem: Option<String>,
    }

    fn denied() -> RemoteError {
        RemoteError::new(RemoteErrorKind::Denied, "GetCertificateAuthorityCertificate on fake", "denied", "allow it")
    }

    #[async_trait]
    impl Issuer for FakeIssuer {
        fn name(&self) -> String {
            "fake".into()
        }

        async fn prepare(&self, _: std::time::Duration) -> Result<String, RemoteError> {
            Err(denied())
        }

        async fn request(&self, _: &IssueRequest<'_>) -> Result<CertificateHandle, RemoteError> {
            Err(denied())
        }

        async fn collect(&self, _: &CertificateHandle) -> Result<Option<IssuedChain>, RemoteError> {
            Err(denied())
        }

        async fn ca_pem(&self) -> Result<String, RemoteError> {
            tokio::time::sleep(self.after).await;
            self.pem.clone().ok_or_else(denied)
        }

        fn spare_issuances_a_day(&self) -> u32 {
            0
        }
    }

    async fn fetch(after: std::time::Duration, pem: Option<String>) -> Result<TrustBundle, TrustError> {
        FromIssuer::new(Arc::new(FakeIssuer { after, pem })).fetch().await
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_a_silent_issuer_is_given_up_and_a_slow_one_is_not() {
        let pem = crate::x509::test_ca::Ca::root("root").pem;
        let bundle = fetch(FETCH_TIMEOUT / 2, Some(pem.clone())).await.unwrap();
        assert_eq!((bundle.source.as_str(), bundle.anchors.len()), ("issuer", 1));
        assert!(matches!(fetch(FETCH_TIMEOUT * 2, Some(pem)).await.unwrap_err(), TrustError::Timeout { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_and_nonsense_are_errors() {
        let soon = std::time::Duration::ZERO;
        assert!(matches!(fetch(soon, None).await.unwrap_err(), TrustError::Issuer { .. }));
        assert!(matches!(fetch(soon, Some("<html>".into())).await.unwrap_err(), TrustError::Bundle { .. }));
        let huge = "a".repeat(MAX_BUNDLE + 1);
        assert!(matches!(fetch(soon, Some(huge)).await.unwrap_err(), TrustError::TooLarge { .. }));
    }
}
