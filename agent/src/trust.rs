//! The trust bundle, and what it accepts.
//!
//! ```text
//! source ─► PEM, read strictly ─► TrustBundle ─┐
//!                     key, SANs, IssuedChain ──┴─ accept ─► VerifiedChain
//! ```
//!
//! What comes from outside is checked here once; a [`VerifiedChain`] is what may be written as a generation.

mod bundle;
pub mod sources;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::issue::IssueError;

pub use bundle::{Anchor, AnchorFault, BundleError, TrustBundle};
pub use verify::{MAX_CHAIN, MAX_CHAIN_PEM, Refusal, RejectedChain, VerifiedChain};

/// The largest bundle that is read. Secrets Manager's own limit is 65,536 bytes; a file may hold a little more.
pub const MAX_BUNDLE: usize = 1024 * 1024;

/// The most anchors that a bundle may hold. Every one is tried at each handshake of nats-server.
pub const MAX_ANCHORS: usize = 200;

/// How long a source may take to answer.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Where trust bundles come from.
#[async_trait]
pub trait TrustSource: Send + Sync {
    /// Reads the bundle as it is now.
    async fn fetch(&self) -> Result<TrustBundle, TrustError>;
}

/// Why there is no trust bundle, or no cluster credential.
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
    /// What was read is no usable bundle.
    #[error("the trust bundle from {origin} can't be used; correct it there, the bundle in force stays")]
    Bundle {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: BundleError,
    },
    /// The issuer didn't give its CA certificate.
    #[error("could not get the trust bundle from the issuer")]
    Issuer {
        /// What the issuer said.
        #[source]
        source: IssueError,
    },
    /// The secret could not be read, or holds no bundle.
    #[error(transparent)]
    Secret(#[from] crate::aws::secret::SecretError),
    /// There is more than a bundle can be.
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
