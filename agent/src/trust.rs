//! The trust bundle, and the verification of a chain against it.
//!
//! ```text
//! source ─► PEM, read strictly ─► TrustBundle ─┐
//!                     key, SANs, IssuedChain ──┴─ verify ─► VerifiedChain
//! ```
//!
//! Here the issuer's answer is checked once. Only a [`VerifiedChain`] becomes a new generation.

pub(crate) mod authority;
pub(crate) mod bundle;
pub(crate) mod distrust;
pub mod rollover;
pub mod sources;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::RemoteError;

pub use bundle::TrustBundle;
pub(crate) use bundle::{BundleError, MAX_BUNDLE};
pub use distrust::{Distrusted, Fingerprint};
pub use verify::{Refusal, VerifiedChain};
pub(crate) use verify::{RejectedChain, Role};

/// The longest wait for a source's answer.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// A source of trust bundles.
#[async_trait]
pub trait TrustSource: Send + Sync {
    /// Reads the current bundle.
    async fn fetch(&self) -> Result<TrustBundle, TrustError>;
}

/// Why there is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file could not be read.
    #[error("could not read the trust bundle {}; write it, or correct `trust.file` or `trust.clients.file`", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The source's content is no usable bundle.
    #[error("the trust bundle from {origin} can't be used; correct it there, the bundle in force stays")]
    Bundle {
        /// The name of the source.
        origin: String,
        /// What is wrong with the content.
        #[source]
        source: BundleError,
    },
    /// The issuer didn't answer with its CA certificate.
    #[error("could not get the trust bundle from the issuer")]
    Issuer {
        /// The issuer's error.
        #[source]
        source: RemoteError,
    },
    /// The secret could not be read, or holds no bundle.
    #[error(transparent)]
    Secret(#[from] crate::aws::secret::SecretError),
    /// The content is longer than any bundle.
    #[error(
        "the trust bundle from {origin} is longer than {MAX_BUNDLE} bytes; leave in it only the CAs of this cluster"
    )]
    TooLarge {
        /// The name of the source.
        origin: String,
    },
    /// The source didn't answer in time.
    #[error("{origin} did not give the trust bundle within {} s; it is asked again", FETCH_TIMEOUT.as_secs())]
    Timeout {
        /// The name of the source.
        origin: String,
    },
}
