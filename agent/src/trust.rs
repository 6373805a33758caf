//! The trust bundle, and what it accepts.
//!
//! ```text
//! source ─► PEM, read strictly ─► TrustBundle ─┐
//!                     key, SANs, IssuedChain ──┴─ accept ─► VerifiedChain
//! ```
//!
//! Everything from outside is checked here, once. Only a [`VerifiedChain`] may be written as a generation.

mod bundle;
pub mod sources;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::RemoteError;

pub use bundle::{Anchor, AnchorFault, BundleError, TrustBundle};
pub use verify::{MAX_CHAIN, MAX_CHAIN_PEM, RejectedChain, VerifiedChain};

/// The largest bundle, in bytes. Secrets Manager's own limit is 65,536 bytes; a file may hold more.
pub(crate) const MAX_BUNDLE: usize = 1024 * 1024;

/// The most anchors of a bundle. nats-server tries each anchor at each handshake.
pub(crate) const MAX_ANCHORS: usize = 200;

/// How long a source may take to answer.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Where trust bundles come from.
#[async_trait]
pub trait TrustSource: Send + Sync {
    /// Reads the bundle as it is now.
    async fn fetch(&self) -> Result<TrustBundle, TrustError>;
}

/// Why there is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file could not be read.
    #[error("could not read the trust bundle {}; write it, or correct `trust.file`", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The source's answer is no usable bundle.
    #[error("the trust bundle from {origin} can't be used; correct it there, the bundle in force stays")]
    Bundle {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
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
    /// The bundle is too large.
    #[error(
        "the trust bundle from {origin} is longer than {MAX_BUNDLE} bytes; leave in it only the CAs of this cluster"
    )]
    TooLarge {
        /// Where it came from.
        origin: String,
    },
    /// The source didn't answer in time.
    #[error("{origin} did not give the trust bundle within {} s; it is asked again", FETCH_TIMEOUT.as_secs())]
    Timeout {
        /// Who was asked.
        origin: String,
    },
}
